"""Robust PLR end to end: the example learns, from replayed levels only; the mask is right at every row."""

from __future__ import annotations

import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from plr_server import Config, launch
from wrappers import LevelReplay, LevelReplayVector

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import robust_plr


def test_the_example_learns_from_replayed_levels_only():
    lengths, learnt_from, left_out, stats = robust_plr.train(rollouts=60, seed=0)
    assert np.mean(lengths[-10:]) > 1.2 * np.mean(lengths[:10])
    assert learnt_from > 0
    assert left_out > 0
    assert 0.5 < stats["replay_share"] < 1.0


@pytest.mark.parametrize("inside", [True, False], ids=["LevelReplay inside", "bare"])
def test_rows_of_a_levels_first_episode_are_masked_and_scored(inside):
    """Until a level is seen it is new: `train_mask` False; its first score makes every later episode a replay."""
    with launch(Config(levels=range(60), robust=True, strategy="one_step_td_error", num_steps=8)) as server:

        def make_env():
            env = gym.make("CartPole-v1", max_episode_steps=8)
            return LevelReplay(env, server.address) if inside else env

        envs = LevelReplayVector(gym.vector.SyncVectorEnv([make_env] * 4), server.address)
        envs.action_space.seed(0)
        envs.reset()
        seen = set()
        for _ in range(40):
            for _ in range(8):
                for level, train, is_replay in zip(envs.levels, envs.train_mask, envs.is_replay, strict=True):
                    assert train == is_replay
                    assert not is_replay or level in seen
                envs.step(envs.action_space.sample())
            played = set(envs._rollout.rows["levels"][envs._rollout.rows["valid"]].tolist())
            envs.push(np.zeros((8, 4)), np.zeros(4))
            seen |= played
        assert len(seen) > 30
        envs.close()

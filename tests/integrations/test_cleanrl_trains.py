"""examples/cleanrl_ppo.py trains for real: what it pushes, learns from and is scored by, against what the envs tell."""

from __future__ import annotations

import difflib
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import gymnasium as gym
import model
import numpy as np
import pytest
import torch
from level_env import LevelEnv, episode_of, reward_of
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from plr_client import Trainer
from plr_server import Config, launch
from wrappers.procgen import ProcgenVector

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import cleanrl_ppo
import cleanrl_ppo_uniform

ROOT = Path(__file__).parents[2]
NUM_LEVELS = 200
LENGTHS = np.array([episode_of(level)[0] for level in range(NUM_LEVELS)])
CONFIG = Config(levels=range(NUM_LEVELS), gamma=0.9, gae_lambda=0.8, alpha=0.5, temperature=1.0)
SMALL = {"num_minibatches": 3, "update_epochs": 2, "gamma": CONFIG.gamma, "gae_lambda": CONFIG.gae_lambda}

torch.set_num_threads(1)


class LevelImages(gym.ObservationWrapper):
    """A `LevelEnv` whose observation is an image that carries the level and how many steps were taken in it."""

    def __init__(self) -> None:
        super().__init__(LevelEnv())
        self.observation_space = gym.spaces.Box(0, 255, (7, 7, 3), np.uint8)

    def observation(self, observation: NDArray[np.float64]) -> NDArray[np.uint8]:
        assert observation[0] < NUM_LEVELS, "a level that nobody assigned"
        image = np.zeros((7, 7, 3), np.uint8)
        image[0, 0, :2] = observation
        return image


class LevelProcgen(ProcgenVector):
    """Real Procgen that keeps, for every step, the levels that the engine says were played, and the rewards."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observations, infos = super().reset(**kwargs)
        self.playing = infos["level_seed"].copy()
        return observations, infos

    def step(self, actions: Any) -> tuple[Any, ...]:
        levels = self.playing
        observations, rewards, terminations, truncations, infos = super().step(actions)
        assert (infos["prev_level_seed"] == levels).all()
        self.playing = infos["level_seed"].copy()
        STEPS.append((levels, rewards, terminations))
        return observations, rewards, terminations, truncations, infos


STEPS: list[tuple[NDArray[Any], ...]] = []


class Watched:
    """What a training run showed its agent, and what it pushed, update by update.

    Attributes:
        acted: images (N, ...) the agent acted on, and the values it gave them; at a rollout's end one more.
        learnt: images of all minibatches.
        pushes: the arrays of each push, by name.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, script: Any) -> None:
        self.acted: list[tuple[NDArray[np.uint8], NDArray[np.float32]]] = []
        self.learnt: list[NDArray[np.uint8]] = []
        self.pushes: list[dict[str, NDArray[Any]]] = []
        watched = self

        class WatchedAgent(script.Agent):
            def forward(self, images: torch.Tensor) -> Any:
                policy, values = super().forward(images)
                if torch.is_grad_enabled():
                    watched.learnt.append(images.numpy().copy())
                else:
                    watched.acted.append((images.numpy().copy(), values.numpy().copy()))
                return policy, values

        class WatchedTrainer(Trainer):
            def push(self, values: Any, rewards: Any, dones: Any, levels: Any, next_values: Any, **more: Any) -> int:
                names = {"values": values, "rewards": rewards, "dones": dones, "levels": levels}
                given = names | {"next_values": next_values} | more
                watched.pushes.append({name: np.array(array) for name, array in given.items()})
                return super().push(values, rewards, dones, levels, next_values, **more)

        monkeypatch.setattr(script, "Agent", WatchedAgent)
        monkeypatch.setattr(script, "Trainer", WatchedTrainer, raising=False)

    def rollouts(self, num_steps: int) -> list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]:
        """Returns images (T + 1, N, ...), values (T, N) and next values (N,) of each rollout."""
        images, values = (np.stack(each) for each in zip(*self.acted, strict=True))
        starts = range(0, len(images), num_steps + 1)
        return [(images[t : t + num_steps + 1], values[t : t + num_steps], values[t + num_steps]) for t in starts]


def scores_of(blocks: list[dict[str, NDArray[Any]]]) -> dict[int, float]:
    """Returns the scores of the levels by plain loops; blocks are what the trainer had, in the order of its pushes."""
    scores: dict[int, float] = {}
    for block in blocks:
        block["truncated"] = np.zeros_like(block["dones"])
        found = model.episodes(block["dones"], block["levels"], block["valid"])
        for level, column, rows, finished in sorted(found, key=lambda episode: (episode[2][-1], episode[1])):
            new = np.mean(model.step_scores("value_l1", rows, column, finished, block, CONFIG.gamma, CONFIG.gae_lambda))
            scores[int(level)] = (1 - CONFIG.alpha) * scores.get(int(level), new) + CONFIG.alpha * new
    return scores


def assert_scores(trainer: Trainer, expected: dict[int, float]) -> None:
    ids, scores, _, seen = trainer.scores()
    assert set(ids[seen].tolist()) == set(expected)
    np.testing.assert_allclose(scores[seen], [expected[level] for level in ids[seen].tolist()], rtol=1e-5, atol=1e-7)


@pytest.fixture(autouse=True)
def _logs_go_to_a_folder_of_the_test(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def level_images():
    gym.register("LevelImages-v0", LevelImages, disable_env_checker=True)
    yield "LevelImages-v0"
    del gym.registry["LevelImages-v0"]


def test_every_row_is_credited_to_the_level_its_observation_shows(level_images, monkeypatch):
    """Levels, validity, ends, rewards and values of every pushed row, and the scores that the server made of them."""
    watched = Watched(monkeypatch, cleanrl_ppo)
    args = cleanrl_ppo.Args(env_id=level_images, num_envs=16, num_steps=50, total_timesteps=10 * 800, **SMALL)
    with launch(CONFIG) as server, Trainer(server.address) as trainer:
        cleanrl_ppo.train(args, server.address)
        stats = trainer.stats()
        blocks = []
        for pushed, (images, values, next_values) in zip(watched.pushes, watched.rollouts(50), strict=True):
            levels, steps = (images[:-1, :, 0, 0, channel].astype(np.int64) for channel in range(2))
            dummy = steps == LENGTHS[levels]  # the observation is a terminal one: the step that follows only resets
            blocks.append(
                {
                    "values": values,
                    "rewards": np.where(dummy, 0, reward_of(levels, steps)),
                    "dones": steps + 1 == LENGTHS[levels],
                    "levels": levels,
                    "next_values": next_values,
                    "valid": ~dummy,
                }
            )
            for name, truth in blocks[-1].items():
                np.testing.assert_array_equal(pushed[name], truth.astype(pushed[name].dtype), name)
        assert_scores(trainer, scores_of(blocks))

    valid_rows = sum(int(block["valid"].sum()) for block in blocks)
    dummy_rows = 8000 - valid_rows
    finished = sum(int(block["dones"].sum()) for block in blocks)
    assert dummy_rows > 700
    assert finished > 700
    assert stats["levels_seen"] > 150
    assert stats["replay_share"] > 0.5
    assert (stats["pushes"], stats["steps"], stats["episodes"]) == (10, valid_rows, finished)
    assert_learnt_from_all_but_dummy_rows(watched, 50, args.update_epochs)


def assert_learnt_from_all_but_dummy_rows(watched: Watched, num_steps: int, epochs: int) -> None:
    """The minibatches hold every transition once an epoch, and nothing else."""
    acted = np.concatenate([images[:-1].reshape(-1, *images.shape[2:]) for images, *_ in watched.rollouts(num_steps)])
    shown = [Counter(map(tuple, rows[:, 0, 0, :2].tolist())) for rows in (acted, np.concatenate(watched.learnt))]
    transitions = {pair: epochs * times for pair, times in shown[0].items() if pair[1] < LENGTHS[pair[0]]}
    assert shown[1] == transitions


def test_without_a_curriculum_dummy_rows_stay_out_too_and_levels_are_uniform(level_images, monkeypatch):
    watched = Watched(monkeypatch, cleanrl_ppo_uniform)
    args = cleanrl_ppo_uniform.Args(env_id=level_images, num_envs=16, num_steps=50, total_timesteps=20 * 800, **SMALL)
    cleanrl_ppo_uniform.train(args)
    assert_learnt_from_all_but_dummy_rows(watched, 50, args.update_epochs)
    images = np.concatenate([images[:-1] for images, *_ in watched.rollouts(50)])
    begun = images[images[..., 0, 0, 1] == 0][:, 0, 0, 0]
    assert len(begun) > 2000
    counts = np.bincount(begun, minlength=NUM_LEVELS)
    assert model.chi_square_p_value(counts, np.full(NUM_LEVELS, 1 / NUM_LEVELS)) > 1e-3


def test_minigrid(monkeypatch):
    watched = Watched(monkeypatch, cleanrl_ppo)
    args = cleanrl_ppo.Args(num_envs=4, num_steps=100, total_timesteps=3 * 400, **SMALL)
    with launch(CONFIG) as server, Trainer(server.address) as trainer:
        cleanrl_ppo.train(args, server.address)
        stats = trainer.stats()
        assert_scores(trainer, scores_of(watched.pushes))
    valid = np.stack([push["valid"] for push in watched.pushes])
    ends = np.stack([push["dones"] for push in watched.pushes])
    assert (
        4 * 3 * 100 // 41 - 4 <= ends.sum() == stats["episodes"]
    )  # a time limit of 40 steps, and the step that resets
    assert stats["steps"] == valid.sum()
    assert 0 <= ends.sum() - (~valid).sum() <= 4  # all but the rollout's last rows are followed by a dummy row
    assert stats["draws"] >= 4 + (~valid).sum()
    assert sum(map(len, watched.learnt)) == 2 * valid.sum()
    logged = EventAccumulator(args.log_dir)
    logged.Reload()
    assert [event.step for event in logged.Scalars("charts/mean_return")] == [400, 800, 1200]
    assert [event.value for event in logged.Scalars("curriculum/pushes")] == [1, 2, 3]
    assert logged.Scalars("curriculum/mean_score")[-1].value == pytest.approx(stats["mean_score"])


@pytest.mark.parametrize(("game", "updates", "ends_at_least"), [("coinrun", 1, 0), ("bigfish", 3, 4)])
def test_procgen(game, updates, ends_at_least, monkeypatch):
    """Levels against those the engine tells; rewards and values are pushed on the scale that the agent learns from."""
    STEPS.clear()
    watched = Watched(monkeypatch, cleanrl_ppo)
    monkeypatch.setattr(cleanrl_ppo, "ProcgenVector", LevelProcgen)
    small = SMALL | {"update_epochs": 1}
    args = cleanrl_ppo.Args(env_id=f"procgen:{game}", num_envs=8, num_steps=64, total_timesteps=updates * 512, **small)
    with launch(CONFIG) as server, Trainer(server.address) as trainer:
        cleanrl_ppo.train(args, server.address)
        stats = trainer.stats()
        assert_scores(trainer, scores_of(watched.pushes))
    levels, raw_rewards, ends = (np.stack(each) for each in zip(*STEPS, strict=True))
    pushed = {
        name: np.concatenate([push[name] for push in watched.pushes])
        for name in ("levels", "rewards", "dones", "valid", "values")
    }
    np.testing.assert_array_equal(pushed["levels"], levels)
    np.testing.assert_array_equal(pushed["dones"], ends)
    assert pushed["valid"].all()
    np.testing.assert_array_equal(pushed["values"], np.concatenate([values for _, values, _ in watched.rollouts(64)]))
    np.testing.assert_allclose(pushed["rewards"], normalised(raw_rewards, ends), rtol=1e-4)
    assert (pushed["rewards"] != raw_rewards).any() == raw_rewards.any()
    assert (stats["pushes"], stats["steps"], stats["episodes"]) == (updates, updates * 512, ends.sum())
    assert ends.sum() >= ends_at_least
    assert stats["levels_seen"] == len(np.unique(levels)) >= 8
    assert sum(map(len, watched.learnt)) == updates * 512


def normalised(rewards: NDArray[np.float64], ends: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Returns rewards over the standard deviation of all discounted returns so far, clipped, by plain loops."""
    returns, running, scaled = [], np.zeros(rewards.shape[1]), []
    for reward, end in zip(rewards, ends, strict=True):
        running = CONFIG.gamma * running * ~end + reward
        returns.extend(running)
        scaled.append(np.clip(reward / np.sqrt(np.var(returns) + 1e-8), -10, 10))
        running = running * ~end
    return np.stack(scaled)


def test_procgen_without_a_curriculum_plays_its_levels_uniformly():
    rng = np.random.default_rng(0)
    envs = cleanrl_ppo_uniform.UniformLevels(ProcgenVector("bigfish", 64), 10, rng)
    envs.reset()
    played = []
    for _ in range(400):
        *_, terminations, _, infos = envs.step(rng.integers(15, size=64))
        played += infos["prev_level_seed"][terminations].tolist()
    envs.close()
    assert len(played) > 100
    assert set(played) == set(range(10))


def test_the_page_shows_the_whole_difference_which_is_at_most_13_added_lines_and_one_that_logs():
    names = ("examples/cleanrl_ppo_uniform.py", "examples/cleanrl_ppo.py")
    uniform, plr = ((ROOT / name).read_text().splitlines(keepends=True) for name in names)
    diff = list(difflib.unified_diff(uniform, plr, *names))
    page = (ROOT / "docs/cleanrl.md").read_text()
    assert re.search(r"```diff\n(.*?)```", page, re.DOTALL).group(1) == "".join(diff)
    added = [line for line in diff[2:] if line.startswith("+")]
    assert sum("log_to" in line for line in added) == 1
    assert len(added) - 1 <= 13
    for tag, first, end, _, _ in difflib.SequenceMatcher(None, uniform, plr, autojunk=False).get_opcodes():
        assert tag != "delete" or "UniformLevels" in "".join(uniform[first:end]), (
            "more is gone than what drew the levels"
        )

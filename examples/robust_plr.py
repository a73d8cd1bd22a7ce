"""Robust PLR: a linear actor-critic on CartPole that learns from replayed levels only.

Under `robust=True` new levels are played to be scored, and no more: their rows carry `train_mask` False, and the
trainer leaves them out of its gradient (arXiv 2110.02439, algorithm 1). The three lines marked ROBUST are the
difference to any other training loop with `LevelReplayVector`.
"""

from __future__ import annotations

import argparse

import gymnasium as gym
import numpy as np

from plr_client import Trainer
from plr_server import Config, launch
from wrappers import LevelReplayVector

NUM_ENVS, NUM_STEPS, GAMMA = 16, 64, 0.98


def features(observations: np.ndarray) -> np.ndarray:
    return np.concatenate([observations, np.abs(observations), np.ones((*observations.shape[:-1], 1))], axis=-1)


def train(rollouts: int, seed: int) -> tuple[list[float], int, int, dict]:
    """Returns mean episode lengths, one for each rollout, the rows learnt from, the rows left out, and the stats."""
    rng = np.random.default_rng(seed)
    policy, critic = np.zeros(9), np.zeros(9)
    lengths, learnt_from, left_out = [], 0, 0
    schedule = {"replay_schedule": "fixed", "replay_prob": 0.5}
    config = Config(levels=range(500), robust=True, **schedule, gamma=GAMMA, seed=seed)  # ROBUST
    with launch(config) as server, Trainer(server.address) as trainer:
        envs = gym.make_vec("CartPole-v1", NUM_ENVS, vectorization_mode="sync", max_episode_steps=200)
        envs = LevelReplayVector(envs, server.address)
        observations, _ = envs.reset(seed=seed)
        for _ in range(rollouts):
            rows = []
            for _ in range(NUM_STEPS):
                x = features(observations)
                right = 1 / (1 + np.exp(-x @ policy))
                actions = (rng.random(NUM_ENVS) < right).astype(int)
                train_mask = envs.train_mask  # ROBUST: of the episodes these observations are from
                observations, rewards, terminations, truncations, _ = envs.step(actions)
                dones, learnable = terminations | truncations, train_mask & envs.valid
                rows.append((x, actions - right, x @ critic, rewards, dones, learnable))
            x, surprise, values, rewards, dones, learnable = map(np.stack, zip(*rows, strict=True))
            next_values = features(observations) @ critic
            envs.push(values, next_values)
            targets, carried = np.empty_like(values), next_values
            for t in reversed(range(NUM_STEPS)):
                targets[t] = carried = rewards[t] + GAMMA * carried * ~dones[t]
            advantages = (targets - values)[learnable]  # ROBUST: the gradient sees no other row
            count = max(1, learnable.sum())
            policy += 0.02 * (x[learnable] * (surprise[learnable] * advantages)[:, None]).sum(0) / count
            critic += 0.1 * (x[learnable] * advantages[:, None]).sum(0) / count
            learnt_from, left_out = learnt_from + learnable.sum(), left_out + (~learnable).sum()
            lengths.append(dones.size / max(1, dones.sum()))
        stats = trainer.stats()
        envs.close()
    return lengths, int(learnt_from), int(left_out), stats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rollouts", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    lengths, learnt_from, left_out, stats = train(args.rollouts, args.seed)
    first, last = np.mean(lengths[:10]), np.mean(lengths[-10:])
    print(f"steps per episode  {first:.0f} in the first ten rollouts, {last:.0f} in the last ten")
    print(f"rows               {learnt_from} of replayed levels learnt from, {left_out} of new levels only scored")
    print(f"levels seen        {stats['levels_seen']} of {stats['levels']}, replay share {stats['replay_share']:.0%}")


if __name__ == "__main__":
    main()

"""Trains a small agent on 400 MiniGrid levels while the curriculum decides which level each episode plays.

Run it with `make demo`. It prints what the curriculum did, and draws it. The five lines marked PLR are all that
Prioritized Level Replay asks of a training script; the rest is a plain PPO agent, in numpy.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # small matrices: more threads would only disturb the envs

import gymnasium as gym
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from minigrid.envs import MultiRoomEnv
from minigrid.wrappers import ImgObsWrapper

from plr_client import Trainer
from plr_server import Config, launch
from wrappers import LevelReplay, LevelReplayVector

LEVELS = range(400)  # a level is a seed: it decides how many rooms lie on the way to the goal, and how they lie
HELD_OUT = range(10_000, 10_064)  # levels that are never trained on
ROOMS = range(2, 7)
ACTIONS = np.array([0, 1, 2, 5])  # turn left, turn right, go forward, open or close a door
GAMMA, GAE_LAMBDA, NUM_ENVS, NUM_STEPS = 0.99, 0.95, 8, 128


def make_env() -> gym.Env:
    return ImgObsWrapper(MultiRoomEnv(ROOMS[0], ROOMS[-1], maxRoomSize=6))


class Agent:
    """PPO with two tanh layers, four action logits and a value; gradients by hand, Adam."""

    def __init__(self, rng: np.random.Generator, hidden: int = 64) -> None:
        self.rng, self.updates = rng, 0
        layers = ((490, hidden, 0.2), (hidden, hidden, 0.18), (hidden, len(ACTIONS) + 1, 0.01))
        arrays = [p for m, n, std in layers for p in (rng.normal(0, std, (m, n)), np.zeros(n))]
        self.params, self.means, self.squares = ([s * p.astype(np.float32) for p in arrays] for s in (1, 0, 0))

    def forward(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """Takes views (B, 7, 7, 3) through x, one-hot cells, and two layers to log-probs (B, 4) and values (B,)."""
        cells = images[..., 0] + 5 * (images[..., 2] == 1)  # the type of object; a closed door, 4, becomes 9
        x = np.eye(10, dtype=np.float32)[cells].reshape(len(cells), -1)
        w1, b1, w2, b2, w3, b3 = self.params
        h1 = np.tanh(x @ w1 + b1)
        h2 = np.tanh(h1 @ w2 + b2)
        out = h2 @ w3 + b3
        logits = out[:, :-1] - out[:, :-1].max(1, keepdims=True)
        return x, h1, h2, logits - np.log(np.exp(logits).sum(1, keepdims=True)), out[:, -1]

    def act(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        *_, log_probs, values = self.forward(images)
        actions = (log_probs + self.rng.gumbel(size=log_probs.shape)).argmax(1)
        return actions, log_probs[np.arange(len(actions)), actions], values

    def learn(self, images, actions, old_log_probs, advantages, targets, remaining: float) -> None:  # noqa: ANN001
        """Makes 4 passes over (B, ...) steps; step size and entropy bonus fade as the remaining share goes 1 to 0."""
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        for rows in (rows for _ in range(4) for rows in np.array_split(self.rng.permutation(len(actions)), 4)):
            x, h1, h2, log_probs, values = self.forward(images[rows])
            chosen, advantage, probs = (np.arange(len(rows)), actions[rows]), advantages[rows], np.exp(log_probs)
            ratio = np.exp(log_probs[chosen] - old_log_probs[rows])
            pull = np.where(np.where(advantage > 0, ratio > 1.2, ratio < 0.8), 0, ratio * advantage)  # PPO's clip
            entropy = -(probs * log_probs).sum(1, keepdims=True)
            d_logits = probs * (pull[:, None] + 0.03 * remaining * (log_probs + entropy))
            d_logits[chosen] -= pull
            d_out = (np.column_stack([d_logits, values - targets[rows]]) / len(rows)).astype(np.float32)
            d_h2 = d_out @ self.params[4].T * (1 - h2**2)
            d_h1 = d_h2 @ self.params[2].T * (1 - h1**2)
            grads = [x.T @ d_h1, d_h1.sum(0), h1.T @ d_h2, d_h2.sum(0), h2.T @ d_out, d_out.sum(0)]
            shrink = min(1.0, 0.5 / np.sqrt(sum((g**2).sum() for g in grads)))
            self.updates += 1
            step_size = 1e-3 * remaining * np.sqrt(1 - 0.999**self.updates) / (1 - 0.9**self.updates)
            for p, g, mean, square in zip(self.params, grads, self.means, self.squares, strict=True):
                mean += 0.1 * (shrink * g - mean)
                square += 0.001 * ((shrink * g) ** 2 - square)
                p -= step_size * mean / (np.sqrt(square) + 1e-6)


def advantages_of(values, next_values, rewards, terminated, dones) -> np.ndarray:  # noqa: ANN001
    """GAE over (T, N). The observation after a time limit is the terminal one here, so its value is the bootstrap."""
    advantages = rewards + GAMMA * np.vstack([values[1:], next_values]) * ~terminated - values
    for t in reversed(range(len(values) - 1)):
        advantages[t] += GAMMA * GAE_LAMBDA * ~dones[t] * advantages[t + 1]
    return advantages


def success_rate(agent: Agent, envs: gym.vector.VectorEnv) -> float:
    images, _ = envs.reset(seed=list(HELD_OUT))
    playing, solved = np.ones(len(HELD_OUT), bool), np.zeros(len(HELD_OUT), bool)
    while playing.any():
        images, rewards, terminated, truncated, _ = envs.step(ACTIONS[agent.act(images)[0]])
        solved |= playing & (rewards > 0)
        playing &= ~(terminated | truncated)
    return float(solved.mean())


def train(seconds: float, seed: int) -> dict[str, Any]:
    config = Config(levels=LEVELS, temperature=0.3, staleness_coef=0.3, gamma=GAMMA, gae_lambda=GAE_LAMBDA, seed=seed)
    with launch(config) as server:  # PLR: the curriculum, in a process of its own
        envs = gym.vector.AsyncVectorEnv([lambda: LevelReplay(make_env(), server.address)] * NUM_ENVS)  # PLR: asks it
        envs = LevelReplayVector(envs, server.address)  # PLR: knows which level every step belongs to
        trainer = Trainer(server.address)  # PLR: looks into the curriculum, here to draw it
        exam = gym.vector.SyncVectorEnv([make_env] * len(HELD_OUT))
        agent = Agent(np.random.default_rng(seed))
        log: dict[str, Any] = {"t": [], "mass": [], "score": [], "return": [], "held_out": [(0.0, success_rate(agent, exam))]}
        images, _ = envs.reset(seed=seed)
        steps, returns, start = 0, [], time.monotonic()
        while (elapsed := time.monotonic() - start) < seconds:
            rollout = []
            for _ in range(NUM_STEPS):
                actions, log_probs, values = agent.act(images)
                before, (images, rewards, terminated, truncated, _) = images, envs.step(ACTIONS[actions])
                dones = terminated | truncated
                rollout.append((before, actions, log_probs, values, rewards, terminated, dones, envs.valid))
                returns += rewards[dones].tolist()  # MiniGrid rewards only the step that reaches the goal
            before, actions, log_probs, values, rewards, terminated, dones, valid = map(np.stack, zip(*rollout, strict=True))
            next_values = agent.forward(images)[-1]
            envs.push(values, next_values)  # PLR: what was played is scored, and so decides what is played next
            advantages = advantages_of(values, next_values, rewards, terminated, dones)
            batch = before, actions, log_probs, advantages, advantages + values
            agent.learn(*(array[valid] for array in batch), remaining=1 - elapsed / seconds)
            steps += int(valid.sum())
            _, scores, _, seen = trainer.scores()
            for key, value in (("t", elapsed), ("mass", trainer.weights()), ("score", np.where(seen, scores, np.nan)), ("return", np.mean(returns[-100:]))):
                log[key].append(value)
            if steps >= 30_000 * len(log["held_out"]):
                log["held_out"].append((elapsed, success_rate(agent, exam)))
            show_progress(elapsed / seconds, f"{steps:,} steps", log)
        log["held_out"].append((seconds, success_rate(agent, exam)))
        log["stats"] = trainer.stats()
        envs.close()
        trainer.close()
    return log

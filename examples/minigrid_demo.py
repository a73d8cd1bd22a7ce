"""Trains a small agent on 400 MiniGrid levels, and lets the curriculum decide which level every episode plays.

Run it with `make demo`, or `python examples/minigrid_demo.py --help`. It prints what the curriculum did and draws it.
The lines marked PLR are all there is to Prioritized Level Replay; the rest is a plain PPO agent in numpy.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from minigrid.envs import MultiRoomEnv
from minigrid.wrappers import ImgObsWrapper

from plr_client import Trainer
from plr_server import Config, launch
from wrappers import LevelReplay, LevelReplayVector

LEVELS = range(400)  # a level is a seed: it decides how many rooms lie between the agent and the goal, and where
HELD_OUT = range(10_000, 10_100)  # levels never trained on
ROOMS = range(2, 7)
ACTIONS = np.array([0, 1, 2, 5])  # turn left, turn right, go forward, open or close a door
NUM_ENVS, NUM_STEPS, GAMMA, GAE_LAMBDA = 8, 128, 0.99, 0.95


def make_env() -> gym.Env:
    return ImgObsWrapper(MultiRoomEnv(minNumRooms=ROOMS[0], maxNumRooms=ROOMS[-1], maxRoomSize=6))


class Agent:
    """PPO: two tanh layers, four action logits and a value, with gradients by hand and Adam."""

    def __init__(self, rng: np.random.Generator, hidden: int = 64) -> None:
        self.rng = rng
        scales = [(490, hidden, 0.2), (hidden, hidden, 0.18), (hidden, len(ACTIONS) + 1, 0.01)]
        self.params = [p for m, n, std in scales for p in (rng.normal(0, std, (m, n)), np.zeros(n))]
        self.moments = [(np.zeros_like(p), np.zeros_like(p)) for p in self.params]
        self.updates = 0

    def forward(self, observations):
        """Encodes (B, 7, 7, 3) images as one-hot cells; returns each layer's output: x, h1, h2, log-probs, values."""
        cells = observations[..., 0] + 5 * (observations[..., 2] == 1)  # object type; a closed door (4) becomes 9
        x = np.eye(10)[cells].reshape(len(cells), -1)
        w1, b1, w2, b2, w3, b3 = self.params
        h1 = np.tanh(x @ w1 + b1)
        h2 = np.tanh(h1 @ w2 + b2)
        out = h2 @ w3 + b3
        logits = out[:, :-1] - out[:, :-1].max(1, keepdims=True)
        return x, h1, h2, logits - np.log(np.exp(logits).sum(1, keepdims=True)), out[:, -1]

    def act(self, observations):
        *_, log_probs, values = self.forward(observations)
        actions = (log_probs + self.rng.gumbel(size=log_probs.shape)).argmax(1)
        return actions, log_probs[np.arange(len(actions)), actions], values

    def learn(self, observations, actions, old_log_probs, advantages, targets, progress: float) -> None:
        """Takes four epochs of clipped policy-gradient steps; step size and entropy bonus fade with progress (0 to 1)."""
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        for _ in range(4):
            for rows in np.array_split(self.rng.permutation(len(actions)), 4):
                x, h1, h2, log_probs, values = self.forward(observations[rows])
                chosen, advantage, probs = (np.arange(len(rows)), actions[rows]), advantages[rows], np.exp(log_probs)
                ratio = np.exp(log_probs[chosen] - old_log_probs[rows])
                clipped = np.where(advantage > 0, ratio > 1.2, ratio < 0.8)
                pull = np.where(clipped, 0.0, ratio * advantage)
                d_logits = probs * pull[:, None]
                d_logits[chosen] -= pull
                entropy = -(probs * log_probs).sum(1, keepdims=True)
                d_logits += 0.03 * (1 - progress) * probs * (log_probs + entropy)
                d_out = np.column_stack([d_logits, values - targets[rows]]) / len(rows)
                d_2 = d_out @ self.params[4].T * (1 - h2**2)
                d_1 = d_2 @ self.params[2].T * (1 - h1**2)
                grads = [x.T @ d_1, d_1.sum(0), h1.T @ d_2, d_2.sum(0), h2.T @ d_out, d_out.sum(0)]
                self._adam(grads, 1e-3 * (1 - progress))

    def _adam(self, grads, step_size: float) -> None:
        shrink = min(1.0, 0.5 / np.sqrt(sum((g**2).sum() for g in grads)))
        self.updates += 1
        for p, g, (mean, square) in zip(self.params, grads, self.moments, strict=True):
            mean += 0.1 * (shrink * g - mean)
            square += 0.001 * ((shrink * g) ** 2 - square)
            unbiased = mean / (1 - 0.9**self.updates), square / (1 - 0.999**self.updates)
            p -= step_size * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-5)


def advantages_of(rewards, values, next_values, terminated, dones):
    """Generalised advantage estimation over (T, N); with NEXT_STEP autoreset, V(terminal observation) is the next row."""
    following = np.concatenate([values[1:], next_values[None]])
    deltas = rewards + GAMMA * following * ~terminated - values
    for t in reversed(range(len(deltas) - 1)):
        deltas[t] += GAMMA * GAE_LAMBDA * ~dones[t] * deltas[t + 1]
    return deltas


def success_rate(agent: Agent, envs: list[gym.Env]) -> float:
    observations = np.stack([env.reset(seed=level)[0] for env, level in zip(envs, HELD_OUT, strict=True)])
    playing, solved = np.arange(len(envs)), 0
    while len(playing):
        ended = np.zeros(len(playing), bool)
        for k, (i, action) in enumerate(zip(playing, ACTIONS[agent.act(observations[playing])[0]], strict=True)):
            observations[i], reward, terminated, truncated, _ = envs[i].step(action)
            ended[k], solved = terminated or truncated, solved + (reward > 0)
        playing = playing[~ended]
    return solved / len(envs)


def train(address: str, seconds: float, seed: int) -> tuple[SimpleNamespace, dict]:
    agent, trainer = Agent(np.random.default_rng(seed)), Trainer(address)
    held_out_envs = [make_env() for _ in HELD_OUT]
    envs = gym.vector.AsyncVectorEnv([lambda: LevelReplay(make_env(), address)] * NUM_ENVS)  # PLR: resets ask the server
    envs = LevelReplayVector(envs, address)  # PLR: knows which level every row belongs to, and records the rollout
    log = SimpleNamespace(minutes=[], mass=[], scores=[], returns=[], held_out=[(0.0, success_rate(agent, held_out_envs))])
    observations, _ = envs.reset(seed=seed)
    start, steps, returns = time.monotonic(), 0, []
    while (elapsed := time.monotonic() - start) < seconds:
        rollout = []
        for _ in range(NUM_STEPS):
            actions, log_probs, values = agent.act(observations)
            before = observations
            observations, rewards, terminated, truncated, _ = envs.step(ACTIONS[actions])
            dones = terminated | truncated
            rollout.append((before, actions, log_probs, values, rewards, terminated, dones, envs.valid))
            returns += rewards[dones].tolist()  # MiniGrid rewards only the step that reaches the goal
        seen, actions, log_probs, values, rewards, terminated, dones, valid = map(np.stack, zip(*rollout, strict=True))
        next_values = agent.forward(observations)[-1]
        envs.push(values, next_values)  # PLR: the server scores the levels that were played
        advantages = advantages_of(rewards, values, next_values, terminated, dones)
        batch = seen, actions, log_probs, advantages, advantages + values
        agent.learn(*(array[valid] for array in batch), progress=elapsed / seconds)
        steps += int(valid.sum())
        _, scores, _, is_seen = trainer.scores()
        log.minutes.append(elapsed / 60)
        log.mass.append(trainer.weights())
        log.scores.append(np.where(is_seen, scores, np.nan))
        log.returns.append(np.mean(returns[-100:]))
        if elapsed > seconds * len(log.held_out) / 12:
            log.held_out.append((elapsed / 60, success_rate(agent, held_out_envs)))
        show_progress(elapsed / seconds, f"{steps:,} steps, {steps / elapsed:,.0f}/s", log)
    log.held_out.append((seconds / 60, success_rate(agent, held_out_envs)))
    stats = trainer.stats()
    envs.close()
    trainer.close()
    return log, stats

"""level-replay's train loop on the tests' env, and what each of its six strategies should score.

Used by the tests of wrappers.level_replay and of Syllabus' TaskSampler, with numpy's arrays and with torch's. It knows
nothing of either.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from level_env import LevelEnv, episode_of, value_of

from wrappers.level_replay import LevelSampler

SEEDS = list(range(100, 130))
STEPS, ENVS = 32, 5
GAMMA, GAE_LAMBDA = 0.99, 0.9
SPACES = Box(-np.inf, np.inf, (2,)), Discrete(3)
PAPER = {
    "replay_schedule": "proportionate",
    "rho": 0.0,
    "score_transform": "rank",
    "temperature": 0.1,
    "staleness_coef": 0.1,
}


def log_dist_of(level, step):
    """Returns the log-probabilities (3,) that the tests' policy has there."""
    weights = np.array([1.0, 2.0 + level % 7, 1.0 + step])
    return np.log(weights / weights.sum())


class Rollouts:
    """The fields that the sampler reads, filled as level-replay's train loop fills them.

    Args:
        zeros: makes an array of a shape; numpy's, or torch's.
    """

    def __init__(self, zeros=np.zeros):
        self.level_seeds = zeros((STEPS, ENVS, 1))
        self.rewards = zeros((STEPS, ENVS, 1))
        self.action_log_dist = zeros((STEPS, ENVS, 3))
        self.masks = zeros((STEPS + 1, ENVS, 1)) + 1
        self.value_preds = zeros((STEPS + 1, ENVS, 1))
        self.returns = zeros((STEPS + 1, ENVS, 1))

    def compute_returns(self):
        advantage = 0
        for t in reversed(range(STEPS)):
            delta = self.rewards[t] + GAMMA * self.value_preds[t + 1] * self.masks[t + 1] - self.value_preds[t]
            advantage = delta + GAMMA * GAE_LAMBDA * self.masks[t + 1] * advantage
            self.returns[t] = advantage + self.value_preds[t]

    def after_update(self):
        self.masks[0] = self.masks[-1]


class Training:
    """Five envs, played with the seeds that a sampler gives; knows from their observations what was played.

    Args:
        sampler: the sampler.
        rollouts: where the rollouts go.
        tells_next: the row that ends an episode names the seed of the next one, as Procgen's info does; where it is the
            episode's only row, nothing tells what was played.
    """

    def __init__(self, sampler, rollouts, *, tells_next=False):
        self.sampler, self.rollouts, self.tells_next = sampler, rollouts, tells_next
        self.envs = [LevelEnv() for _ in range(ENVS)]
        self.observations = [env.reset(seed=sampler.sample("sequential"))[0] for env in self.envs]
        self.first_levels = [int(observation[0]) for observation in self.observations]
        self.true_levels = np.zeros((STEPS, ENVS), int)

    def play_block(self):
        rollouts = self.rollouts
        for t in range(STEPS):
            for n, env in enumerate(self.envs):
                level, step = map(int, self.observations[n])
                observation, reward, terminated, truncated, _ = env.step(0)
                if done := terminated or truncated:
                    observation, _ = env.reset(seed=self.sampler.sample())
                self.true_levels[t, n] = level
                rollouts.level_seeds[t, n, 0] = int(observation[0]) if self.tells_next else level
                rollouts.rewards[t, n, 0] = reward
                rollouts.value_preds[t, n, 0] = value_of(level, step)
                for action, log_probability in enumerate(log_dist_of(level, step)):
                    rollouts.action_log_dist[t, n, action] = log_probability
                rollouts.masks[t + 1, n, 0] = not done
                self.observations[n] = observation
        for n in range(ENVS):
            rollouts.value_preds[-1, n, 0] = value_of(*map(int, self.observations[n]))
        rollouts.compute_returns()

    def episodes(self):
        """Yields (env, level, rows) of each episode in the block, or part of one."""
        for n in range(ENVS):
            start = 0
            for t in range(STEPS):
                if float(self.rollouts.masks[t + 1, n, 0]) == 0 or t == STEPS - 1:
                    levels = set(self.true_levels[start : t + 1, n].tolist())
                    assert len(levels) == 1
                    yield n, levels.pop(), range(start, t + 1)
                    start = t + 1


def value_score(rollouts, n, rows, of):
    return np.mean([of(float(rollouts.returns[t, n, 0]) - float(rollouts.value_preds[t, n, 0])) for t in rows])


def td_score(rollouts, n, rows, gamma):
    errors = []
    for t in rows:
        after = float(rollouts.value_preds[t + 1, n, 0]) * float(rollouts.masks[t + 1, n, 0])
        errors.append(abs(float(rollouts.rewards[t, n, 0]) + gamma * after - float(rollouts.value_preds[t, n, 0])))
    return np.mean(errors)


def margin_score(rollouts, n, rows):
    best = [np.sort(np.exp(np.asarray(rollouts.action_log_dist[t, n], float)))[::-1] for t in rows]
    return np.mean([1 - (probabilities[0] - probabilities[1]) for probabilities in best])


def entropy_score(rollouts, n, rows):
    logs = [np.asarray(rollouts.action_log_dist[t, n], float) for t in rows]
    return np.mean([-(np.exp(log) * log).sum() / np.log(3) for log in logs])


def confidence_score(rollouts, n, rows):
    return np.mean([1 - np.exp(np.asarray(rollouts.action_log_dist[t, n], float)).max() for t in rows])


SCORES = {
    "value_l1": lambda rollouts, n, rows: value_score(rollouts, n, rows, abs),
    "gae": lambda rollouts, n, rows: value_score(rollouts, n, rows, float),
    "positive_value_loss": lambda rollouts, n, rows: value_score(
        rollouts, n, rows, lambda advantage: max(advantage, 0)
    ),
    "one_step_td_error": lambda rollouts, n, rows: td_score(rollouts, n, rows, 0.7),
    "min_margin": margin_score,
    "policy_entropy": entropy_score,
    "least_confidence": confidence_score,
}


def train_and_check(strategy, rollouts, *, make=LevelSampler, tells_next=False, blocks=12, **arguments):
    """Runs level-replay's train loop, and checks every score at the server against what the trainer really had."""
    seeds = [seed for seed in SEEDS if episode_of(seed)[0] > tells_next]
    sampler = make(seeds, *SPACES, num_actors=ENVS, strategy=strategy, gamma=0.7, seed=0, **PAPER | arguments)
    training = Training(sampler, rollouts, tells_next=tells_next)
    assert training.first_levels == seeds[:ENVS]
    latest, pushed, push = {}, [], sampler._trainer.push
    sampler._trainer.push = lambda *fields, **more: pushed.append(fields[3]) or push(*fields, **more)
    for _ in range(blocks):
        training.play_block()
        sampler.update_with_rollouts(rollouts)
        assert (np.hstack(pushed) == training.true_levels).all()
        pushed.clear()
        of_block = defaultdict(list)
        for n, level, rows in training.episodes():
            of_block[level].append(SCORES[strategy](rollouts, n, rows))
        latest |= of_block
        rollouts.after_update()
        sampler.after_update()
    seen = sampler.unseen_seed_weights == 0
    assert set(sampler.seeds[seen].tolist()) == set(latest)
    assert len(latest) >= 15
    for level, score in zip(sampler.seeds[seen].tolist(), sampler.seed_scores[seen].tolist(), strict=True):
        assert any(score == pytest.approx(possible, rel=1e-4, abs=1e-6) for possible in latest[level])
    stats = sampler._trainer.stats()
    assert stats["steps"] == blocks * STEPS * ENVS
    assert stats["episodes"] > 200
    assert sampler.sample_weights()[seen].min() > 0
    assert sampler.sample_weights().sum() == pytest.approx(1)
    sampler.close()

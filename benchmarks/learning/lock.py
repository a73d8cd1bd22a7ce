"""A combination lock: a task whose truth is known, so small that a run takes a second. What does a field change there?

Level n wants the right one of four actions at each of its first positions, the same code on all levels; a wrong action
ends the episode with 0, the last right one with 1. What the agent can do, the success rate over all levels, is known in
closed form. Long levels teach nothing before the short ones are learnt, short ones nothing after: the case that a
curriculum is for. Needs numpy and the server alone; the test that a curriculum helps plays it too.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from plr_client.levels import Assignment
from plr_server import Config, Curriculum

LENGTH, NUM_ACTIONS = 16, 4
COPIES = 8  # levels of each length
NUM_ENVS, UPDATES, LEARNING_RATE, VALUE_RATE, GAE_LAMBDA = 16, 350, 0.1, 0.5, 0.95
FIRST_SEED = 1_000  # the test that a curriculum helps plays the first ones


def length_of(levels: np.ndarray) -> np.ndarray:
    """Returns (m,) how many right actions the levels want."""
    return levels % LENGTH + 1


class Agent:
    """REINFORCE with a table of preferences (position, action) and one of values (level, position).

    Args:
        rng: of its actions, and of the code.
        copies: how many levels there are of each length.
        luck: the chance that an episode that is won is rewarded; below 1 even a mastered level keeps its |A|.
    """

    def __init__(self, rng: np.random.Generator, copies: int = COPIES, luck: float = 1.0) -> None:
        self._rng, self._luck = rng, luck
        self.num_levels = LENGTH * copies
        self._code = rng.integers(NUM_ACTIONS, size=LENGTH)
        self._preferences = np.zeros((LENGTH, NUM_ACTIONS))
        self._values = np.zeros((self.num_levels, LENGTH))

    def policy(self) -> np.ndarray:
        """Returns (position, action) the probabilities."""
        exps = np.exp(self._preferences - self._preferences.max(1, keepdims=True))
        return exps / exps.sum(1, keepdims=True)

    def success_rate(self) -> float:
        """Returns the probability to win, over all levels; bad luck apart."""
        right = self.policy()[np.arange(LENGTH), self._code]
        return float(np.cumprod(right)[length_of(np.arange(self.num_levels)) - 1].mean())

    def play_and_learn(self, levels: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, ...]:
        """Plays one episode on each of the (N,) levels, and learns from those where `train` (N,).

        Returns:
            values, rewards, dones, levels, valid, each (T, N): what is pushed.
        """
        policy, length = self.policy(), length_of(levels)
        steps = np.arange(length.max())[:, np.newaxis]  # (T, 1)
        uniforms = self._rng.random((len(steps), len(levels), 1))
        actions = np.minimum((policy[: len(steps), np.newaxis].cumsum(-1) < uniforms).sum(-1), NUM_ACTIONS - 1)
        is_wrong = actions != self._code[: len(steps), np.newaxis]
        last = np.minimum(np.where(is_wrong.any(0), is_wrong.argmax(0), length), length - 1)
        valid, dones = steps <= last, steps == last
        rewards = (dones & ~is_wrong).astype(float)
        if self._luck < 1.0:
            rewards *= self._rng.random(len(levels)) < self._luck
        values = self._values[levels[np.newaxis], steps]

        carried = following = np.zeros(len(levels))
        advantages = np.zeros_like(values)
        for t in reversed(range(len(steps))):
            goes_on = ~dones[t]
            carried = rewards[t] + goes_on * (following + GAE_LAMBDA * carried) - values[t]
            advantages[t] = carried = carried * valid[t]
            following = values[t]
        learnt = advantages * train
        pull = (np.eye(NUM_ACTIONS)[actions] - policy[: len(steps), np.newaxis]) * learnt[..., np.newaxis]
        self._preferences[: len(steps)] += LEARNING_RATE * pull.sum(1)
        visits = np.bincount(levels, minlength=self.num_levels)
        np.add.at(self._values.T, (steps, levels[np.newaxis]), VALUE_RATE * advantages / visits[levels])
        return values, rewards, dones, np.broadcast_to(levels, values.shape), valid


def course(
    agent: Agent, next_levels: Callable[[int], Sequence[Assignment]], push: Callable[..., Any]
) -> tuple[list[float], list[list[int]]]:
    """Trains; returns the success rate over all levels after each update (U,), and the levels played (U, N).

    Args:
        agent: who is trained.
        next_levels: gives so many levels, as `Curriculum.sample` and `LevelClient.next` do.
        push: takes rollouts, as `Curriculum.update` and `Trainer.push` do.
    """
    rates, played = [], []
    for _ in range(UPDATES):
        assignments = next_levels(NUM_ENVS)
        levels, train = np.array([each.level for each in assignments]), np.array([each.train for each in assignments])
        values, rewards, dones, of_steps, valid = agent.play_and_learn(levels, train)
        push(values, rewards, dones, of_steps, np.zeros(NUM_ENVS), valid=valid)
        rates.append(agent.success_rate())
        played.append(levels.tolist())
    return rates, played


def config_of(fields: dict[str, Any], *, copies: int = COPIES, seed: int) -> Config:
    """Returns the configuration of a curriculum for the lock."""
    return Config(levels=range(LENGTH * copies), gamma=1.0, gae_lambda=GAE_LAMBDA, seed=seed, **fields)


# ---- what a field changes


@dataclasses.dataclass(frozen=True)
class Case:
    """One line of a table.

    Attributes:
        name: of the line.
        fields: those of `Config`.
        copies: how many levels there are of each length.
        ahead: how many updates before it is played a level is drawn, as with `prefetch`.
    """

    name: str
    fields: dict[str, Any]
    copies: int = COPIES
    ahead: int = 0


UNIFORM: dict[str, Any] = {"strategy": "random"}
VALUE_L1: dict[str, Any] = {"strategy": "value_l1", "transform": "rank", "temperature": 0.3, "staleness_coef": 0.3}
LEARNABILITY: dict[str, Any] = {
    "strategy": "learnability",
    "transform": "power",
    "temperature": 1.0,
    "staleness_coef": 0.3,
}
FIXED: dict[str, Any] = {"replay_schedule": "fixed", "replay_prob": 0.8}
SCHEDULES: dict[str, dict[str, Any]] = {
    "proportionate": {},
    "fixed 0.8": FIXED,
    "fixed 0.95": FIXED | {"replay_prob": 0.95},
    "fixed 0.8, robust": FIXED | {"robust": True},
}


def _varied(base: dict[str, Any], field: str, values: Sequence[Any]) -> list[Case]:
    return [Case(f"{base['strategy']}, {field} {value}", base | {field: value}) for value in values]


TABLES = {
    "strategy": [
        Case("uniform", UNIFORM),
        *(
            Case(strategy, VALUE_L1 | {"strategy": strategy})
            for strategy in ("value_l1", "positive_value_loss", "gae", "one_step_td_error", "maxmc")
        ),
        Case("learnability", LEARNABILITY),
        Case("tscl", LEARNABILITY | {"strategy": "tscl"}),
        Case("staleness only", VALUE_L1 | {"staleness_coef": 1.0}),
    ],
    "temperature": [
        *_varied(VALUE_L1, "temperature", [0.1, 0.3, 1.0]),
        *_varied(LEARNABILITY, "temperature", [0.5, 1.0, 2.0]),
    ],
    "staleness": [
        *_varied(VALUE_L1, "staleness_coef", [0.0, 0.1, 0.3, 0.6]),
        *_varied(LEARNABILITY, "staleness_coef", [0.0, 0.1, 0.3, 0.6]),
    ],
    "window": _varied(LEARNABILITY, "window", [3, 5, 10, 40]),
    "alpha": _varied(VALUE_L1, "alpha", [1.0, 0.5, 0.2]),
    "levels for 16 envs": [
        Case(f"{name}, {LENGTH * copies} levels", fields, copies=copies)
        for name, fields in (("uniform", UNIFORM), ("value_l1", VALUE_L1), ("learnability", LEARNABILITY))
        for copies in (1, 8, 64)
    ],
    "prefetch": [
        Case(f"{fields['strategy']}, drawn {ahead} updates ahead", fields, ahead=ahead)
        for fields in (VALUE_L1, LEARNABILITY)
        for ahead in (0, 4, 16)
    ],
    "replay or new, robust": [
        Case(f"{name}, {LENGTH * copies} levels, {what}", fields | more, copies=copies)
        for copies in (8, 64)
        for name, fields in (("value_l1", VALUE_L1), ("learnability", LEARNABILITY))
        for what, more in SCHEDULES.items()
    ],
}
LUCKS = {"area under the curve": 1.0, "the same, where a fifth of the wins is lost by chance": 0.8}


def area_of(case: Case, luck: float, seed: int) -> float:
    """Returns the success rate over all levels, averaged over the course of a training."""
    curriculum = Curriculum(config_of(case.fields, copies=case.copies, seed=seed))
    waiting = [curriculum.sample(NUM_ENVS) for _ in range(case.ahead)]

    def next_levels(k: int) -> list[Assignment]:
        waiting.append(curriculum.sample(k))
        return waiting.pop(0)

    agent = Agent(np.random.default_rng(seed), case.copies, luck)
    return float(np.mean(course(agent, next_levels, curriculum.update)[0]))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, default=16, help="runs of each line (default: %(default)s)")
    parser.add_argument("--table", choices=TABLES, action="append", help="which (default: all)")


def measure(options: argparse.Namespace) -> None:
    """Plays every line of the tables, and prints mean and standard deviation over seeds."""
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    for name in options.table or TABLES:
        print(f"\n| {name} ({len(seeds)} runs a line) | {' | '.join(LUCKS)} |\n|{'---|' * (1 + len(LUCKS))}")
        for case in TABLES[name]:
            areas = [np.array([area_of(case, luck, seed) for seed in seeds]) for luck in LUCKS.values()]
            cells = (f"{each.mean():.3f} ± {each.std(ddof=1):.3f}" for each in areas)
            print(f"| {case.name} | {' | '.join(cells)} |", flush=True)

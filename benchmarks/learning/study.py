"""What is registered: tasks, arms, seeds, levels. `protocol.md` says the same in words; a test holds the two together.

An arm is fields of `plr_server.Config` and nothing else. Used by all of the harness; computes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

FIRST_COUNTED_SEED = 100  # runs of seeds below are tuning, and play other levels
COUNTED_LEVELS, COUNTED_HELDOUT = 100_000, 5_000_000  # where the ids begin
TUNING_LEVELS, TUNING_HELDOUT = 0, 1_000_000
NUM_HELDOUT, FINAL_EPISODES = 1_000, 5  # levels; episodes on each of them at the end
NUM_CURVE, CURVE_LEVELS = 20, 300  # evaluations in the course of a run; the first so many held-out levels, once each


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a task is played.

    Attributes:
        role: primary; control (no gain is expected); fresh (nobody has looked at it); payload (levels are no seeds).
        num_levels: to train on; of the mazes, how many the table keeps.
        steps: env steps of a run, of all envs together.
        num_seeds: runs of each arm.
        arms: which are played.
        base: fields of Config that all of its arms share.
    """

    role: str
    num_levels: int
    steps: int
    num_seeds: int
    arms: tuple[str, ...]
    base: dict[str, Any] = dataclasses.field(default_factory=dict)


REPLAYED: dict[str, Any] = {"temperature": 1.0, "staleness_coef": 0.3}
ARMS: dict[str, dict[str, Any]] = {
    "uniform": {"strategy": "random"},
    "learnability": {"strategy": "learnability", "transform": "power", **REPLAYED},
    "value_l1": {"strategy": "value_l1", "transform": "rank", **REPLAYED},
    "paper": {"strategy": "value_l1", "transform": "rank", "temperature": 0.1, "staleness_coef": 0.3},
    "positive_value_loss": {"strategy": "positive_value_loss", "transform": "rank", **REPLAYED},
    "maxmc": {"strategy": "maxmc", "transform": "rank", **REPLAYED},
    "tscl": {"strategy": "tscl", "transform": "power", **REPLAYED},
    "staleness": {"strategy": "value_l1", "transform": "rank", "temperature": 1.0, "staleness_coef": 1.0},
    "learnability_robust": {
        "strategy": "learnability",
        "transform": "power",
        **REPLAYED,
        "robust": True,
        "replay_schedule": "fixed",
        "replay_prob": 0.8,
    },
    "learnability_fixed": {
        "strategy": "learnability",
        "transform": "power",
        **REPLAYED,
        "replay_schedule": "fixed",
        "replay_prob": 0.95,
    },
}
# Registered later, as exploratory, with seeds of their own: "Changes" of the protocol.
EXPLORATORY = {"learnability_fixed": ("keys16", "omg-easy", "keycorridor", "multiroom", "lava")}
FIRST_EXPLORATORY_SEED, EXPLORATORY_SEEDS = 200, 10
BASELINE, PRIMARY_ARM = "uniform", "learnability"
# Of an open level space, uniform is: new levels only.
UNIFORM_OF_OPEN: dict[str, Any] = {"strategy": "value_l1", "replay_schedule": "fixed", "replay_prob": 0.0}
MAZES: dict[str, Any] = {"levels": "payloads", "replay_schedule": "fixed", "replay_prob": 0.8, "min_fill_ratio": 0.1}

ALL = tuple(arm for arm in ARMS if arm not in EXPLORATORY)
STUDY = {
    "keys16": Plan("primary", 4_000, 12_000_000, 10, ALL),
    "omg-easy": Plan("primary", 3_000, 15_000_000, 20, ALL),
    "keycorridor": Plan("primary", 3_000, 15_000_000, 10, ALL),
    "multiroom": Plan("control", 3_000, 4_000_000, 10, ALL),
    "lava": Plan("control", 3_000, 4_000_000, 10, ALL),
    "unlock": Plan("fresh", 3_000, 8_000_000, 10, ALL),
    "maze": Plan("payload", 4_000, 4_000_000, 10, ALL, MAZES),
    "maze-accel": Plan(
        *("payload", 4_000, 4_000_000, 10), ("learnability", "value_l1", "positive_value_loss", "maxmc"), MAZES
    ),
}
QUICK_TASK, QUICK_ARMS, QUICK_SEEDS = "keys16", ("uniform", "learnability", "paper"), range(3)


@dataclasses.dataclass(frozen=True)
class Job:
    """One run: a task under an arm, from a seed."""

    task: str
    arm: str
    seed: int

    def __str__(self) -> str:
        return f"{self.task}.{self.arm}.{self.seed}"

    @property
    def plan(self) -> Plan:
        return STUDY[self.task]

    @property
    def counted(self) -> bool:
        return self.seed >= FIRST_COUNTED_SEED

    def levels(self) -> range:
        """Returns the seeds of the levels to train on."""
        first = COUNTED_LEVELS if self.counted else TUNING_LEVELS
        return range(first, first + self.plan.num_levels)

    def heldout(self) -> range:
        """Returns the seeds of the levels to evaluate on."""
        first = COUNTED_HELDOUT if self.counted else TUNING_HELDOUT
        return range(first, first + NUM_HELDOUT)

    def fields(self) -> dict[str, Any]:
        """Returns the fields of the arm and the task for `plr_server.Config`, but for levels, seed, gamma, lambda."""
        arm = ARMS[self.arm]
        if self.plan.base and self.arm == BASELINE:
            arm = UNIFORM_OF_OPEN
        return self.plan.base | arm


def registered() -> Iterator[Job]:
    """Yields all runs as registered first, seed by seed, so that whatever is done so far is balanced."""
    for number in range(max(plan.num_seeds for plan in STUDY.values())):
        for task, plan in STUDY.items():
            if number < plan.num_seeds:
                yield from (Job(task, arm, FIRST_COUNTED_SEED + number) for arm in plan.arms)


def exploratory() -> Iterator[Job]:
    """Yields the runs of the arms that were added, seed by seed."""
    for number in range(EXPLORATORY_SEEDS):
        for arm, tasks in EXPLORATORY.items():
            yield from (Job(task, arm, FIRST_EXPLORATORY_SEED + number) for task in tasks)


def quick() -> Iterator[Job]:
    """Yields the runs that show the direction: three seeds, one task, three arms."""
    for seed in QUICK_SEEDS:
        yield from (Job(QUICK_TASK, arm, seed) for arm in QUICK_ARMS)

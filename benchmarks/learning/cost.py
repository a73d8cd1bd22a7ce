"""What a server costs a training run: updates with it, and with the same curriculum in the trainer's process, in pairs.

Both draw the same levels and so do the same work, update by update: that they learn the same is a test of its own. They
take turns, so that a machine whose speed drifts hits both. Asked for is at most 3 % of the wall time.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from fastgrid import CELLS, NUM_INPUTS, FastMiniGrid
from ppo import NUM_ENVS, NUM_STEPS, Agent
from report import Row, show
from run import Record, World, rollout_and_update
from study import Job

from plr_server import Curriculum

WARM_UP_UPDATES = 3


class InProcess:
    """What `run` needs of a `LevelReplayVector`, with a curriculum at hand instead of a server."""

    def __init__(self, envs: FastMiniGrid, curriculum: Curriculum) -> None:
        self.levels, self.train_mask = np.zeros(envs.num_envs, np.int64), np.zeros(envs.num_envs, np.bool_)
        self._envs, self._curriculum = envs, curriculum
        self._rows: list[tuple[np.ndarray, ...]] = []

    def reset(self, *, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        mask = np.ones(self._envs.num_envs, np.bool_) if options is None else options["reset_mask"]
        slots = np.flatnonzero(mask)
        assignments = self._curriculum.sample(len(slots), slots=slots)
        self.levels, self.train_mask = self.levels.copy(), self.train_mask.copy()
        self.levels[slots] = [assignment.level for assignment in assignments]
        self.train_mask[slots] = [assignment.train for assignment in assignments]
        return self._envs.reset(seed=self.levels.tolist(), options={"reset_mask": mask})

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        observations, rewards, ended, cut, infos = self._envs.step(actions)
        self._rows.append((rewards, ended | cut, self.levels))
        return observations, rewards, ended, cut, infos

    def push(self, values: np.ndarray, next_values: np.ndarray) -> None:
        rewards, dones, levels = (np.stack(field) for field in zip(*self._rows, strict=True))
        self._curriculum.update(values, rewards, dones, levels, next_values)
        self._rows = []


class InProcessWorld(World):
    """A world without a server."""

    @contextlib.contextmanager
    def connected(self) -> Iterator[tuple[InProcess, Curriculum]]:
        curriculum = Curriculum(self.config)
        yield InProcess(FastMiniGrid(self.levels, NUM_ENVS, self.actions), curriculum), curriculum


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=150, help="pairs of updates (default: 150)")
    parser.add_argument("--task", default="keys16", help="(default: keys16)")
    parser.add_argument("--arm", default="learnability", help="(default: learnability)")
    parser.add_argument("--json", metavar="FILE", help="also write the rows as JSON; - for standard output, alone")


def measure(options: argparse.Namespace) -> None:
    """Takes the times of updates in turns, and shows them."""
    job = Job(options.task, options.arm, 0)
    turns = [updates(world) for world in (InProcessWorld(job), World(job))]
    taken_s = np.array([[next(turn) for turn in turns] for _ in range(WARM_UP_UPDATES + options.rounds)])
    for turn in turns:
        turn.close()
    (alone_s, served_s), (alone_cpu_s, served_cpu_s) = taken_s[WARM_UP_UPDATES:].T
    yardstick = Row("an update, curriculum in the process", "s", alone_s.tolist())
    steps = NUM_ENVS * NUM_STEPS
    show(
        [
            yardstick,
            Row("an update, through a server", "s", served_s.tolist(), yardstick.median),
            Row("server / in the process, by pair", "", (served_s / alone_s).tolist()),
            Row("the same of all updates together", "", [served_s.sum() / alone_s.sum()]),
            Row("the same, of CPU time of the trainer's process", "", [served_cpu_s.sum() / alone_cpu_s.sum()]),
            Row("env steps, through a server", "steps/s", (steps / served_s).tolist()),
        ],
        options,
    )


def updates(world: World) -> Iterator[tuple[float, float]]:
    """Trains, and yields the seconds of wall and of CPU time that each update took."""
    agent, record = Agent(NUM_INPUTS, CELLS, len(world.actions), world.config.seed), Record(world)
    with world.connected() as (envs, _):
        observations, _ = envs.reset()
        while True:
            begun_s, cpu_begun_s = time.perf_counter(), time.process_time()
            observations = rollout_and_update(agent, envs, observations, record)
            yield time.perf_counter() - begun_s, time.process_time() - cpu_begun_s

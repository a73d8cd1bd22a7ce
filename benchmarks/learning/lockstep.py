"""Does a server change what is learnt? Trains in lock-step with the curriculum in the process, and through servers.

Three agents of one seed: their levels come from a `Curriculum` in the trainer's process; from a server; from a server
with a state directory that is killed (SIGKILL) again and again and started anew. Every level of every step has to be
the same, and so the learning curve, the network's weights, the scores and P_replay, to the last bit.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from cost import InProcessWorld
from fastgrid import CELLS, NUM_INPUTS, FastMiniGrid
from ppo import NUM_ENVS, NUM_STEPS, Agent
from run import Record, World, evaluated, rollout_and_update
from study import Job

from plr_client import Trainer
from plr_server import launch
from wrappers import LevelReplayVector

CURVE_LEVELS, CURVE_POINTS = 100, 10


@dataclasses.dataclass(frozen=True)
class Course:
    """What a training came to.

    Attributes:
        levels: (U, T, N) what was played, of U updates.
        curve: (P,) held-out return in the course of it.
        params: the network's weights at the end, flat.
        scores: (levels,) at the end. weights: (levels,) P_replay at the end.
    """

    levels: np.ndarray
    curve: np.ndarray
    params: np.ndarray
    scores: np.ndarray
    weights: np.ndarray

    def differs_from(self, other: Course) -> list[str]:
        """Returns which of the above are not the same bits."""
        names = (field.name for field in dataclasses.fields(self))
        return [name for name in names if getattr(self, name).tobytes() != getattr(other, name).tobytes()]


class LevelsRecord(Record):
    """Keeps the levels of each rollout as well."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.levels: list[np.ndarray] = []

    def note_rollout(self, levels: np.ndarray, rewards: np.ndarray, dones: np.ndarray) -> None:
        super().note_rollout(levels, rewards, dones)
        self.levels.append(levels)


class KilledWorld(World):
    """A world whose server is killed in the middle of rollouts, and started anew on what it left on the disk.

    Args:
        job: which run.
        kills: after how many env steps of each env the server is killed.

    Attributes:
        killed: how often it was.
    """

    def __init__(self, job: Job, kills: frozenset[int]) -> None:
        super().__init__(job)
        self._kills = kills
        self.killed = 0

    @contextlib.contextmanager
    def connected(self) -> Iterator[tuple[LevelReplayVector, Trainer]]:
        """Yields as `World.connected`; the clients are never told."""
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="plr-"))
            running = stack.enter_context(contextlib.ExitStack())

            def start() -> str:
                options = {"address": f"ipc://{folder}/plr.sock", "state_dir": f"{folder}/state"}
                server = running.enter_context(launch(self.config, **options))
                running.callback(server.process.kill)  # before `launch` would stop it in an orderly way
                return server.address

            def kill_and_start() -> None:
                running.close()
                self.killed += 1
                start()

            address = start()
            trainer = stack.enter_context(Trainer(address))
            fast = KillingMiniGrid(self, self._kills, kill_and_start)
            envs = stack.enter_context(contextlib.closing(LevelReplayVector(fast, address)))
            yield envs, trainer


class KillingMiniGrid(FastMiniGrid):
    """Calls `kill` before the steps whose numbers are in `kills`."""

    def __init__(self, world: World, kills: frozenset[int], kill: Callable[[], None]) -> None:
        super().__init__(world.levels, NUM_ENVS, world.actions)
        self._kills, self._kill = kills, kill
        self._num_steps = 0

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        if self._num_steps in self._kills:
            self._kill()
        self._num_steps += 1
        return super().step(actions)


def course_of(world: World, num_updates: int) -> Course:
    """Trains an agent, and returns what it came to."""
    agent, record = Agent(NUM_INPUTS, CELLS, len(world.actions), world.config.seed), LevelsRecord(world)
    dice, rows, curve = np.random.default_rng((world.config.seed, 1)), np.arange(CURVE_LEVELS), []
    evaluated_at = set(np.linspace(1, num_updates, CURVE_POINTS).astype(int).tolist())
    with world.connected() as (envs, trainer):
        observations, _ = envs.reset()
        for update in range(1, num_updates + 1):
            observations = rollout_and_update(agent, envs, observations, record)
            if update in evaluated_at:
                curve.append(evaluated(agent, world, rows, dice).mean())
        scores, weights = trainer.scores()[1], trainer.weights()
    return Course(np.stack(record.levels), np.array(curve), agent.params(), scores, weights)


def kills_in(num_updates: int, num_kills: int) -> frozenset[int]:
    """Returns after how many steps to kill: spread over the training, at other places of a rollout each time.

    The last one falls before the last step of a rollout, so that the next request is a push.
    """
    at = np.linspace(0, num_updates * NUM_STEPS, num_kills + 2)[1:-1].astype(int)
    at += np.arange(num_kills) * NUM_STEPS // (num_kills + 1)
    at[-1] = at[-1] // NUM_STEPS * NUM_STEPS + NUM_STEPS - 1
    return frozenset(at.tolist())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--updates", type=int, default=60, help="of 16 384 env steps (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=4, help="of the third server (default: %(default)s)")
    parser.add_argument("--task", default="multiroom", help="of levels that are seeds (default: %(default)s)")
    parser.add_argument("--arm", default="learnability", help="(default: %(default)s)")


def compare(options: argparse.Namespace) -> bool:
    """Trains the three, says how they compare, and returns whether they are the same."""
    job = Job(options.task, options.arm, 0)
    killed = KilledWorld(job, kills_in(options.updates, options.kills))
    expected = course_of(InProcessWorld(job), options.updates)
    changes = np.count_nonzero(expected.levels[:, 1:] != expected.levels[:, :-1])
    print(f"in the process: {expected.levels.size} steps, {changes} changes of level in rollouts, {job}")
    print(f"  held-out return {' '.join(f'{each:.3f}' for each in expected.curve)}")
    same = True
    for name, world in (("through a server", World(job)), (f"killed {options.kills} times", killed)):
        differing = course_of(world, options.updates).differs_from(expected)
        print(f"{name}: {'differs in ' + ', '.join(differing) if differing else 'the same, bit for bit'}")
        same = same and not differing
    return same and killed.killed == options.kills

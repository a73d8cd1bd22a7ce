"""One run: PPO on a task, its levels chosen by a real server; gives rows of what the agent can do and what it played.

The same seed gives the same rows but for `wall_s`. Used by the queue; writes no file.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from fastgrid import CELLS, NUM_INPUTS, FastMiniGrid
from mazes import MazeWorld
from ppo import GAE_LAMBDA, GAMMA, NUM_ENVS, NUM_STEPS, Agent, Batch, advantages_of
from study import CURVE_LEVELS, FINAL_EPISODES, NUM_CURVE, Job
from tasks import TASKS

from plr_client import Trainer
from plr_server import Config, launch
from wrappers import LevelReplayVector

ALL = "all"
FIELDS = (
    "steps",  # env steps so far, of all envs; at the end twice: the curve's evaluation, then the final one
    "evaluation",  # curve or final
    "difficulty",  # what the row is about; all
    "heldout_episodes",
    "heldout_return",  # mean
    "heldout_success",  # share of returns above 0
    "train_episodes",  # finished since the last row
    "train_return",  # mean of these
    "mass",  # share of P_replay
    "seen",  # levels with a score
    "score",  # mean over these
    "distinct_levels",  # in a rollout, mean since the last row; from here on in the rows of `all` only
    "effective_levels",  # exp of the entropy of P_replay
    "entropy",  # of the policy, nats
    "wall_s",  # training, without evaluations
)
MIN_BATCH = 1_024  # with fewer transitions to learn from (robust arms, at the start) an update is left out

Row = dict[str, Any]


class World:
    """What a run plays: levels that are seeds, through a server.

    Attributes:
        difficulties: their names. actions: those of MiniGrid's that the agent has.
        levels: those to train on. heldout: those it is evaluated on.
        config: the curriculum's.
    """

    def __init__(self, job: Job) -> None:
        task = TASKS[job.task]
        self.difficulties, self.actions = task.difficulties, task.actions
        self.heldout = task.levels(job.heldout())
        self.levels = task.levels(job.levels())
        fields = job.fields() | {"levels": job.levels()}
        self.config = Config(**fields, seed=job.seed, gamma=GAMMA, gae_lambda=GAE_LAMBDA)

    @contextlib.contextmanager
    def connected(self) -> Iterator[tuple[LevelReplayVector, Trainer]]:
        """Yields the vector env whose levels the server chooses, and who tells about the curriculum."""
        with launch(self.config) as server, Trainer(server.address) as trainer:
            fast = FastMiniGrid(self.levels, NUM_ENVS, self.actions)
            with contextlib.closing(LevelReplayVector(fast, server.address)) as envs:
                yield envs, trainer

    def difficulties_of(self, levels: np.ndarray) -> np.ndarray:
        """Returns (m,) the difficulties of levels."""
        return self.levels.difficulty[levels - self.levels.seeds[0]]

    def after_update(self, trainer: Trainer) -> None:
        """Is called before the first rollout and after each update: there is nothing to do for seeds."""


def run(job: Job, world: World | MazeWorld | None = None, num_updates: int | None = None) -> Iterator[Row]:
    """Trains one agent, and yields rows as they come.

    Args:
        job: which run.
        world: what it plays; by default, what the job says.
        num_updates: stop after so many; by default after the steps of the plan.
    """
    if world is None:
        world = MazeWorld(job) if job.plan.role == "payload" else World(job)
    total = job.plan.steps // (NUM_ENVS * NUM_STEPS) if num_updates is None else num_updates
    evaluated_at = set(np.linspace(0, total, NUM_CURVE + 1).astype(int).tolist())
    agent = Agent(NUM_INPUTS, CELLS, len(world.actions), job.seed)
    dice = np.random.default_rng((job.seed, 1))  # of the evaluations: they leave the agent's own alone
    record = Record(world)
    with world.connected() as (envs, trainer):
        world.after_update(trainer)
        observations, _ = envs.reset()
        for update in range(total + 1):
            if update in evaluated_at:
                rows = np.arange(CURVE_LEVELS)
                returns = evaluated(agent, world, rows, dice)
                yield from record.rows(update * NUM_ENVS * NUM_STEPS, "curve", rows, returns, trainer)
            if update == total:
                break
            begun_s = time.perf_counter()
            observations = rollout_and_update(agent, envs, observations, record)
            world.after_update(trainer)
            record.wall_s += time.perf_counter() - begun_s
        rows = np.repeat(np.arange(len(world.heldout.seeds)), FINAL_EPISODES)
        returns = evaluated(agent, world, rows, dice)
        yield from record.rows(total * NUM_ENVS * NUM_STEPS, "final", rows, returns, trainer)


def trained(job: Job, num_updates: int) -> Agent:
    """Returns the agent of a run after so many updates."""
    world = World(job)
    agent, record = Agent(NUM_INPUTS, CELLS, len(world.actions), job.seed), Record(world)
    with world.connected() as (envs, _):
        observations, _ = envs.reset()
        for _ in range(num_updates):
            observations = rollout_and_update(agent, envs, observations, record)
    return agent


def rollout_and_update(agent: Agent, envs: LevelReplayVector, observations: np.ndarray, record: Record) -> np.ndarray:
    """Plays a rollout, pushes it, learns from it; returns the observations where the next one begins."""
    shape = (NUM_STEPS, NUM_ENVS)
    inputs, actions = np.empty((*shape, CELLS), np.int16), np.empty(shape, np.int64)
    log_probs, values = np.empty((2, *shape), np.float32)
    rewards, levels = np.empty(shape), np.empty(shape, np.int64)
    dones, learnt_from = np.empty((2, *shape), np.bool_)
    for t in range(NUM_STEPS):
        inputs[t], levels[t], learnt_from[t] = observations, envs.levels, envs.train_mask
        actions[t], log_probs[t], values[t] = agent.act(observations)
        observations, rewards[t], ended, cut, _ = envs.step(actions[t])
        dones[t] = ended | cut
        if dones[t].any():
            observations, _ = envs.reset(options={"reset_mask": dones[t]})
    next_values = agent.values(observations)
    envs.push(values, next_values)
    advantages = advantages_of(rewards, values, dones, next_values)
    record.note_rollout(levels, rewards, dones)
    if np.count_nonzero(learnt_from) >= MIN_BATCH:
        batch = Batch(*(array[learnt_from] for array in (inputs, actions, log_probs, values, advantages)))
        record.entropies.append(agent.learn(batch))
    return observations


def evaluated(agent: Agent, world: World | MazeWorld, rows: np.ndarray, dice: np.random.Generator) -> np.ndarray:
    """Returns (m,) the returns of one stochastic episode on each of the held-out levels `rows`."""
    envs = FastMiniGrid(world.heldout, len(rows), world.actions)
    observations, _ = envs.reset(seed=world.heldout.seeds[rows].tolist())
    returns, live = np.zeros(len(rows)), np.ones(len(rows), np.bool_)
    while live.any():
        actions = np.zeros(len(rows), np.int64)
        actions[live] = agent.act(observations[live], dice)[0]
        observations, rewards, ended, cut, _ = envs.step(actions)
        returns += rewards
        live &= ~(ended | cut)
    return returns


class Record:
    """What happened since the last row, and how long training took so far."""

    def __init__(self, world: World | MazeWorld) -> None:
        self.wall_s = 0.0
        self.entropies: list[float] = []
        self._world = world
        self._distinct: list[int] = []
        self._played: list[tuple[np.ndarray, np.ndarray]] = []  # difficulties and returns of finished episodes

    def note_rollout(self, levels: np.ndarray, rewards: np.ndarray, dones: np.ndarray) -> None:
        """Notes (T, N) of a rollout; only an episode's last reward is not 0 here, so that it is the return."""
        self._distinct.append(len(np.unique(levels)))
        self._played.append((self._world.difficulties_of(levels[dones]), rewards[dones]))

    def rows(
        self, steps: int, evaluation: str, heldout_rows: np.ndarray, returns: np.ndarray, trainer: Trainer
    ) -> Iterator[Row]:
        """Yields a row for all levels and one for each difficulty, and begins anew."""
        levels, scores, _, seen = trainer.scores()
        weights, stats = trainer.weights(), trainer.stats()
        of_table = self._world.difficulties_of(levels)
        of_heldout = self._world.heldout.difficulty[heldout_rows]
        played = [np.concatenate(part) for part in zip(*self._played, strict=True)] or [np.empty(0)] * 2
        for number, difficulty in enumerate((ALL, *self._world.difficulties), -1):
            here, table, trained = (
                slice(None) if difficulty == ALL else array == number for array in (of_heldout, of_table, played[0])
            )
            row = {
                "steps": steps,
                "evaluation": evaluation,
                "difficulty": difficulty,
                "heldout_episodes": len(returns[here]),
                "heldout_return": mean(returns[here]),
                "heldout_success": mean(returns[here] > 0),
                "train_episodes": len(played[1][trained]),
                "train_return": mean(played[1][trained]),
                "mass": float(weights[table].sum()),
                "seen": int(np.count_nonzero(seen[table])),
                "score": mean(scores[table][seen[table]]),
            }
            if difficulty == ALL:
                row |= {
                    "distinct_levels": mean(np.array(self._distinct)),
                    "effective_levels": stats["effective_levels"],
                    "entropy": mean(np.array(self.entropies)),
                    "wall_s": self.wall_s,
                }
            yield row
        self._played, self._distinct, self.entropies = [], [], []


def mean(array: np.ndarray) -> float:
    """Returns the mean, NaN of nothing."""
    return float(array.mean()) if len(array) else math.nan

"""The task whose levels are no seeds: mazes as payloads, random ones, and in `maze-accel` also edited ones.

Mazes are those of the field's studies (dcd, minimax, JaxUED): 13 x 13 cells, up to 60 of them walls, some without a way
through; the view and the rewards are MiniGrid's. New mazes wait in the server, so that their number never limits a
rollout. In `maze-accel`, after ACCEL (arXiv 2203.01302), half of the new mazes are edited from those of the highest
scores. They are scored by being played, as any new maze, so that all arms are given the same env steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium as gym
import numba as nb
import numpy as np
from fastgrid import EMPTY, GOAL, OUTSIDE, FastMiniGrid, Levels, stacked
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from ppo import GAE_LAMBDA, GAMMA, NUM_ENVS
from study import Job
from tasks import WALK

from plr_client import Trainer
from plr_server import Config, launch
from wrappers import LevelReplay, LevelReplayVector

SIZE, MAX_WALLS, MAX_STEPS = 13, 60, 250
NUM_WAITING = 1_024  # new mazes, after every update: a rollout needs fewer than that
NUM_CHILDREN, MAX_EDITS = 4, 5  # of each parent; cells that differ
PATHS = (4, 8, 16)  # lengths of the shortest way where one difficulty ends and the next begins
DIFFICULTIES = ("path 1-4", "path 5-8", "path 9-16", "path above 16", "no way through")

Maze = dict[str, Any]  # walls: 169 bits as bytes; start: x, y, direction; goal: x, y


def random_maze(rng: np.random.Generator) -> Maze:
    """Returns a maze with 0 to 60 walls, each number as likely."""
    places = rng.permutation(SIZE * SIZE)
    walls = np.zeros(SIZE * SIZE, np.bool_)
    walls[places[2 : 2 + rng.integers(MAX_WALLS + 1)]] = True
    start, goal = (divmod(int(place), SIZE)[::-1] for place in places[:2])
    return {"walls": np.packbits(walls).tobytes(), "start": [*start, int(rng.integers(4))], "goal": [*goal]}


def edited(maze: Maze, rng: np.random.Generator) -> Maze:
    """Returns the maze with one to five cells turned from wall to floor or back."""
    walls = walls_of(maze)
    walls[rng.choice(SIZE * SIZE, rng.integers(1, MAX_EDITS + 1), replace=False)] ^= True
    for x, y in (maze["start"][:2], maze["goal"]):
        walls[y * SIZE + x] = False
    return maze | {"walls": np.packbits(walls).tobytes()}


def walls_of(maze: Maze) -> np.ndarray:
    """Returns (169,) bool, row by row."""
    return np.unpackbits(np.frombuffer(maze["walls"], np.uint8), count=SIZE * SIZE).astype(np.bool_)


@nb.njit(cache=True)
def shortest_path(walls, x, y, goal_x, goal_y):  # noqa: ANN001, ANN201
    """Returns how many cells the goal is away, -1 if there is no way."""
    away = np.where(walls, -2, -1)
    queue = np.empty((SIZE * SIZE, 2), np.int64)
    away[y, x], queue[0] = 0, (x, y)
    head, tail = 0, 1
    while head < tail:
        x, y = queue[head]
        head += 1
        for dx, dy in ((1, 0), (0, 1), (-1, 0), (0, -1)):
            to_x, to_y = x + dx, y + dy
            if 0 <= to_x < SIZE and 0 <= to_y < SIZE and away[to_y, to_x] == -1:
                away[to_y, to_x] = away[y, x] + 1
                queue[tail] = to_x, to_y
                tail += 1
    return away[goal_y, goal_x]


def difficulty_of(maze: Maze) -> int:
    """Returns which of the difficulties a maze has."""
    length = shortest_path(walls_of(maze).reshape(SIZE, SIZE), *maze["start"][:2], *maze["goal"])
    return len(DIFFICULTIES) - 1 if length < 0 else int(np.searchsorted(PATHS, length))


def as_level(maze: Maze) -> dict[str, Any]:
    """Returns a maze as `fastgrid.Levels` has its levels."""
    grid = np.full((SIZE + 2, SIZE + 2), OUTSIDE, np.int16)
    grid[1:-1, 1:-1] = np.where(walls_of(maze).reshape(SIZE, SIZE), OUTSIDE, EMPTY)
    (x, y), (start_x, start_y, direction) = maze["goal"], maze["start"]
    grid[y + 1, x + 1] = GOAL
    return {
        "grid": grid,
        "content": np.zeros_like(grid),
        "start": (start_x + 1, start_y + 1, direction),
        "max_steps": MAX_STEPS,
        "target": 0,
        "difficulty": difficulty_of(maze),
    }


def levels_of(mazes: Sequence[Maze]) -> Levels:
    """Returns mazes as levels whose seeds are their numbers."""
    return Levels(range(len(mazes)), stacked([as_level(maze) for maze in mazes]))


def solvable(seeds: range) -> list[Maze]:
    """Returns for each seed its first random maze that has a way through."""
    mazes = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        maze = random_maze(rng)
        while difficulty_of(maze) == len(DIFFICULTIES) - 1:
            maze = random_maze(rng)
        mazes.append(maze)
    return mazes


class MazeEnv(gym.Env):
    """One env that plays `maze`, set before its reset."""

    def __init__(self) -> None:
        self.maze: Maze = {}
        self._env = FastMiniGrid(levels_of(solvable(range(1))), 1, WALK)
        self.observation_space, self.action_space = self._env.single_observation_space, self._env.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed, options=options)
        self._env.levels = levels_of([self.maze])
        observations, infos = self._env.reset(seed=[0])
        return observations[0], infos

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        observations, rewards, ended, cut, infos = self._env.step(np.array([action]))
        return observations[0], float(rewards[0]), bool(ended[0]), bool(cut[0]), infos


def set_maze(env: gym.Env, maze: Maze) -> None:
    """Makes a payload the env's level: what LevelReplay calls before every reset."""
    env.unwrapped.maze = maze


class MazeWorld:
    """What a run plays, as `run.World`: mazes that this world inserts."""

    difficulties, actions = DIFFICULTIES, WALK

    def __init__(self, job: Job) -> None:
        self.heldout = levels_of(solvable(job.heldout()))
        self.config = Config(
            **job.fields(), capacity=job.plan.num_levels, seed=job.seed, gamma=GAMMA, gae_lambda=GAE_LAMBDA
        )
        self._edits = job.task == "maze-accel"
        self._rng = np.random.default_rng((job.seed, 2))
        self._difficulty_of: dict[int, int] = {}

    @contextlib.contextmanager
    def connected(self) -> Iterator[tuple[LevelReplayVector, Trainer]]:
        with launch(self.config) as server, Trainer(server.address) as trainer:
            makers = [lambda: LevelReplay(MazeEnv(), server.address, set_level=set_maze)] * NUM_ENVS
            mazes = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED)
            with contextlib.closing(LevelReplayVector(mazes, server.address)) as envs:
                yield envs, trainer

    def difficulties_of(self, levels: np.ndarray) -> np.ndarray:
        return np.array([self._difficulty_of[level] for level in levels.tolist()], np.int64)

    def after_update(self, trainer: Trainer) -> None:
        """Fills up what waits: with random mazes, or half of it with children of those of the highest scores."""
        missing = NUM_WAITING - trainer.stats()["waiting"]
        if self._edits:
            ids, scores, _, _ = trainer.scores()
            parents = trainer.levels(ids[np.argsort(-scores)[: missing // (2 * NUM_CHILDREN)]])
            of = [parent for parent in parents for _ in range(NUM_CHILDREN)]
            self._insert(trainer, [edited(parent.payload, self._rng) for parent in of], [parent.level for parent in of])
            missing -= len(of)
        self._insert(trainer, [random_maze(self._rng) for _ in range(missing)])

    def _insert(self, trainer: Trainer, mazes: Sequence[Maze], parents: Sequence[int] | None = None) -> None:
        ids = trainer.insert(mazes, parents=parents)
        self._difficulty_of |= zip(ids.tolist(), map(difficulty_of, mazes), strict=True)

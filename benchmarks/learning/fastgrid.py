"""MiniGrid at the speed of compiled code: levels made by the stock package, stepped and seen in numba.

A level is the stock env's seed: the stock env generates it once, from then on it is two arrays and a few numbers.
`equal.py` plays both side by side. Used by the tasks; it knows nothing of curricula.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import numba as nb
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from minigrid.core.constants import OBJECT_TO_IDX
from minigrid.minigrid_env import MiniGridEnv

CACHE = Path(__file__).parent / "cache"
VIEW = 7  # cells on each side of what the agent sees
CELLS = VIEW * VIEW

# A cell is one number: type | colour << 4 | state << 7, in MiniGrid's own numbering.
EMPTY, WALL, FLOOR, DOOR, KEY, BALL, BOX, GOAL, LAVA = (
    OBJECT_TO_IDX[kind] for kind in ("empty", "wall", "floor", "door", "key", "ball", "box", "goal", "lava")
)
OUTSIDE = WALL | 5 << 4  # a grey wall, what MiniGrid shows beyond the grid
LEFT, RIGHT, FORWARD, PICKUP, DROP, TOGGLE, DONE = range(7)
DX, DY = np.array([1, 0, -1, 0]), np.array([0, 1, 0, -1])

MakeLevel = Callable[[int], tuple[MiniGridEnv, Callable[[MiniGridEnv], int]]]  # the env, and how difficult its level is


def kinds() -> tuple[np.ndarray, int]:
    """Returns (1536,) int16, what a cell's number is to the network, and how many such kinds there are.

    0 is a cell not seen. Colours count where they matter (keys, balls, boxes, doors), and so does a door's state.
    """
    kind_of = np.zeros(3 * 512, np.int16)
    cells = np.arange(len(kind_of))
    kind, colour, state = cells & 15, cells >> 4 & 7, cells >> 7
    number = 1
    for plain in (EMPTY, WALL, GOAL, LAVA):
        kind_of[kind == plain] = number
        number += 1
    for coloured in (KEY, BALL, BOX):
        for each in range(6):
            kind_of[(kind == coloured) & (colour == each)] = number
            number += 1
    for each in range(6):
        for opened in range(3):
            kind_of[(kind == DOOR) & (colour == each) & (state == opened)] = number
            number += 1
    return kind_of, number


KIND_OF, NUM_KINDS = kinds()
NUM_INPUTS = CELLS * NUM_KINDS


@nb.njit(cache=True)
def _view(grid, x, y, direction, carried, seen):
    """Fills `seen` (7, 7) with the cells in front of the agent, 0 where hidden, as MiniGrid's `gen_obs` does."""
    height, width = grid.shape
    dx, dy = DX[direction], DY[direction]
    for i in range(VIEW):
        for j in range(VIEW):
            ahead, aside = VIEW - 1 - j, i - VIEW // 2
            cx, cy = x + dx * ahead - dy * aside, y + dy * ahead + dx * aside
            seen[i, j] = grid[cy, cx] if 0 <= cx < width and 0 <= cy < height else OUTSIDE
    lit = np.zeros((VIEW, VIEW), nb.boolean)
    lit[VIEW // 2, VIEW - 1] = True
    for j in range(VIEW - 1, -1, -1):
        for step in (1, -1):
            for k in range(VIEW - 1):
                i = k if step == 1 else VIEW - 1 - k
                cell = seen[i, j]
                kind = cell & 15
                if not lit[i, j] or kind == WALL or (kind == DOOR and cell >> 7 != 0):
                    continue
                lit[i + step, j] = True
                if j > 0:
                    lit[i + step, j - 1] = True
                    lit[i, j - 1] = True
    seen[VIEW // 2, VIEW - 1] = carried if carried != 0 else EMPTY
    for i in range(VIEW):
        for j in range(VIEW):
            if not lit[i, j]:
                seen[i, j] = 0


@nb.njit(cache=True)
def observe(grid, at, direction, carried, rows, observations, kind_of):
    """Writes what the agents of `rows` see: for each of the 49 cells the number of its one-hot input, -1 if hidden."""
    seen = np.empty((VIEW, VIEW), np.int16)
    for n in range(len(grid)):
        if rows[n]:
            _view(grid[n], at[n, 0], at[n, 1], direction[n], carried[n, 0], seen)
            for i in range(VIEW):
                for j in range(VIEW):
                    kind, cell = kind_of[seen[i, j]], i * VIEW + j
                    observations[n, cell] = cell * NUM_KINDS + kind if kind else -1


@nb.njit(cache=True)
def advance(grid, content, at, direction, carried, steps, max_steps, target, over, actions, rewards, ended, cut):
    """Steps every env that is not over, as MiniGrid's `step` does."""
    for n in range(len(grid)):
        rewards[n], ended[n], cut[n] = 0.0, False, False
        if over[n]:
            continue
        steps[n] += 1
        x, y = at[n, 0] + DX[direction[n]], at[n, 1] + DY[direction[n]]
        cell = grid[n, y, x]
        kind, state = cell & 15, cell >> 7
        action, won = actions[n], False
        if action == LEFT:
            direction[n] = (direction[n] + 3) % 4
        elif action == RIGHT:
            direction[n] = (direction[n] + 1) % 4
        elif action == FORWARD:
            if kind == EMPTY or kind == GOAL or kind == FLOOR or kind == LAVA or (kind == DOOR and state == 0):
                at[n, 0], at[n, 1] = x, y
            won = kind == GOAL
            ended[n] = kind == LAVA
        elif action == PICKUP:
            if (kind == KEY or kind == BALL or kind == BOX) and carried[n, 0] == 0:
                carried[n, 0], carried[n, 1] = cell, content[n, y, x]
                grid[n, y, x], content[n, y, x] = EMPTY, 0
            won = carried[n, 0] != 0 and carried[n, 0] == target[n]
        elif action == DROP:
            if kind == EMPTY and carried[n, 0] != 0:
                grid[n, y, x], content[n, y, x] = carried[n, 0], carried[n, 1]
                carried[n, 0], carried[n, 1] = 0, 0
        elif action == TOGGLE:
            if kind == DOOR:
                opened, shut, locked = cell & 127, cell & 127 | 1 << 7, state == 2
                key_fits = carried[n, 0] & 15 == KEY and carried[n, 0] >> 4 & 7 == cell >> 4 & 7
                if state == 0:
                    grid[n, y, x] = shut
                elif not locked or key_fits:
                    grid[n, y, x] = opened
                won = grid[n, y, x] == target[n]  # of Unlock: its door, open
            elif kind == BOX:
                grid[n, y, x] = content[n, y, x] if content[n, y, x] != 0 else EMPTY
                content[n, y, x] = 0
        if won:
            ended[n] = True
            rewards[n] = 1.0 - 0.9 * (steps[n] / max_steps[n])
        cut[n] = steps[n] >= max_steps[n]
        over[n] = ended[n] or cut[n]


class Levels:
    """Levels as arrays.

    Attributes:
        seeds: (L,) int64, what a reset names them by.
        grid, content: (L, H, W) int16 cells, and what lies in the boxes (0: nothing).
        start: (L, 3) int64, the agent's x, y and direction.
        max_steps: (L,) int64. target: (L,) int64, the cell that wins when it is carried or, a door, opened; else 0.
        difficulty: (L,) int64, 0 or more.
    """

    def __init__(self, seeds: Sequence[int], arrays: dict[str, np.ndarray]) -> None:
        self.seeds = np.array(seeds)
        self.grid, self.content = arrays["grid"], arrays["content"]
        self.start, self.max_steps, self.target = arrays["start"], arrays["max_steps"], arrays["target"]
        self.difficulty = arrays["difficulty"]
        self._row_of = {int(seed): row for row, seed in enumerate(seeds)}

    def rows(self, seeds: Iterable[int]) -> np.ndarray:
        """Returns (m,) where the levels of `seeds` are; raises KeyError where one is not among them."""
        return np.array([self._row_of[seed] for seed in seeds], np.int64)

    @staticmethod
    def stock(name: str, make: MakeLevel, seeds: range) -> Levels:
        """Has the stock envs generate levels, or reads them where that has been done before."""
        made_by = f"{name} {seeds} minigrid {version('minigrid')} numpy {np.__version__}"
        path = CACHE / f"{name}-{hashlib.sha256(made_by.encode()).hexdigest()[:12]}.npz"
        if not path.exists():
            CACHE.mkdir(exist_ok=True)
            arrays = stacked([encoded(*make(seed), seed) for seed in seeds])
            part = path.with_suffix(f".{os.getpid()}.npz")  # two processes may do so at once
            np.savez_compressed(part, **arrays)
            part.rename(path)
        with np.load(path) as arrays:
            return Levels(seeds, dict(arrays))


def encoded(env: MiniGridEnv, difficulty: Callable[[MiniGridEnv], int], seed: int) -> dict[str, Any]:
    """Returns one level of a stock env as arrays and numbers."""
    env.reset(seed=seed)
    env = env.unwrapped
    if env.see_through_walls or env.agent_view_size != VIEW:
        raise ValueError(f"env: expected a 7x7 view that walls hide, got {env}")
    parts = env.grid.encode().astype(np.int16)  # (W, H, 3)
    grid = cell_of(parts[..., 0], parts[..., 1], parts[..., 2]).T.copy()
    grid[parts[..., 0].T == EMPTY] = EMPTY
    content = np.zeros_like(grid)
    for x, y in np.ndindex(env.width, env.height):
        thing = env.grid.get(x, y)
        if thing is not None and thing.type == "box" and thing.contains is not None:
            content[y, x] = cell_of(*thing.contains.encode())
    target = 0
    if getattr(env, "obj", None) is not None:
        target = cell_of(*env.obj.encode())
    elif type(env).__name__ == "UnlockEnv":
        target = cell_of(*env.door.encode()) & 127
    start = (*map(int, env.agent_pos), env.agent_dir)
    return {
        "grid": grid,
        "content": content,
        "start": start,
        "max_steps": env.max_steps,
        "target": target,
        "difficulty": difficulty(env),
    }


def cell_of(kind: Any, colour: Any, state: Any) -> Any:
    return kind | colour << 4 | state << 7


def stacked(levels: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Returns the arrays of several levels as one each, small grids filled up with wall."""
    height, width = np.max([level["grid"].shape for level in levels], axis=0)
    filled = {"grid": OUTSIDE, "content": 0}
    arrays = {name: np.full((len(levels), height, width), fill, np.int16) for name, fill in filled.items()}
    for name, array in arrays.items():
        for row, level in zip(array, levels, strict=True):
            h, w = level[name].shape
            row[:h, :w] = level[name]
    numbers = ("start", "max_steps", "target", "difficulty")
    return arrays | {name: np.array([level[name] for level in levels], np.int64) for name in numbers}


class FastMiniGrid(VectorEnv):
    """A vector env whose levels are named by seeds, in DISABLED autoreset.

    `reset` takes a seed for every env that it resets: all of them, or those of `options["reset_mask"]`. Observations
    are (N, 49) int16: for each cell of the view the number of the input that is 1, -1 where the cell is hidden.

    Args:
        levels: what may be played.
        num_envs: N.
        actions: which of MiniGrid's seven actions there are.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012  as Gymnasium has it

    def __init__(self, levels: Levels, num_envs: int, actions: Sequence[int]) -> None:
        self.metadata = dict(self.metadata)
        self.levels, self.num_envs = levels, num_envs
        self._actions = np.array(actions)
        self.single_action_space = gym.spaces.Discrete(len(actions))
        self.single_observation_space = gym.spaces.Box(-1, NUM_INPUTS - 1, (CELLS,), np.int16)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._grid = np.zeros((num_envs, *levels.grid.shape[1:]), np.int16)
        self._content = np.zeros_like(self._grid)
        self._carried = np.zeros((num_envs, 2), np.int16)  # the thing, and what is in it
        self._at = np.zeros((num_envs, 2), np.int64)
        self._direction, self._steps, self._target = np.zeros((3, num_envs), np.int64)
        self._max_steps = np.ones(num_envs, np.int64)
        self._over = np.zeros(num_envs, np.bool_)
        self._observations = np.full((num_envs, CELLS), -1, np.int16)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, np.bool_))
        rows = np.flatnonzero(mask)
        if seed is None or isinstance(seed, int):
            raise ValueError(f"seed: expected a list with a level for every env that is reset, got {seed!r}")
        levels, picked = self.levels, self.levels.rows(seed[row] for row in rows)
        self._grid[rows], self._content[rows] = levels.grid[picked], levels.content[picked]
        self._at[rows], self._direction[rows] = levels.start[picked, :2], levels.start[picked, 2]
        self._max_steps[rows], self._target[rows] = levels.max_steps[picked], levels.target[picked]
        self._carried[rows], self._steps[rows], self._over[rows] = 0, 0, False
        self._observe(mask)
        return self._observations, {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        live = ~self._over
        rewards, (ended, cut) = np.empty(self.num_envs), np.empty((2, self.num_envs), np.bool_)
        advance(
            *(self._grid, self._content, self._at, self._direction, self._carried, self._steps),
            *(self._max_steps, self._target, self._over, self._actions[actions], rewards, ended, cut),
        )
        self._observe(live)
        return self._observations, rewards, ended, cut, {}

    def _observe(self, rows: np.ndarray) -> None:
        self._observations = self._observations.copy()  # what was returned before may be kept
        observe(self._grid, self._at, self._direction, self._carried, rows, self._observations, KIND_OF)

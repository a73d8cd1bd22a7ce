"""History: what is remembered of each level, for the strategies that look back.

Used by the curriculum. Looking back and remembering are two steps, so that a push that fails in between has changed
nothing. No IO; arrays are allocated only for what the strategy remembers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plr_client.errors import InvalidInput
from plr_server.curriculum.arrays import Floats, Ints
from plr_server.curriculum.scoring.episodes import Episodes
from plr_server.curriculum.scoring.rollouts import UNSAID

MAX_WINDOW_NUMBERS = 2**22  # of the episodes of one push: the window after each


@dataclasses.dataclass(frozen=True, slots=True)
class Windows:
    """The last W returns or successes of levels.

    Attributes:
        values: (m, W) one level a row, the newest at the end, 0 where there are fewer.
        filled: (m,) how many there are, 0 to W.
    """

    values: NDArray[Any]
    filled: NDArray[Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Past:
    """E episodes of a block in the light of what came before, and what there is to remember once they are applied.

    Attributes:
        order: (m,) which of the episodes are scored, in the order in which they are applied.
        indices: (m,) the index of each one's level.
        returns: (E,) undiscounted, from the episode's first step on; NaN where rewards were not pushed.
        steps_before: (E,) valid steps of the episode in earlier blocks.
        best: (E,) the highest return of an episode finished on the level, up to and with this one in the order of
            application; -inf where there is none.
        windows: of m rows, the last returns or successes of each one's level, its own at the end.
    """

    order: Ints
    indices: Ints
    returns: Floats
    steps_before: Ints
    best: Floats | None
    windows: Windows | None


class History:
    """What a strategy remembers.

    Args:
        num_levels: N.
        remembers: what of each level: its "best" return, its last "returns" or its last "successes".
        window: W, how many of the last ones.
    """

    def __init__(self, num_levels: int, remembers: str, *, window: int) -> None:
        self._num_levels = num_levels
        self._of_successes = remembers == "successes"
        self._best = np.full(num_levels, -np.inf) if remembers == "best" else None
        self._windows: Windows | None = None
        if self._best is None:
            values = np.zeros((num_levels, window), dtype=np.uint8 if self._of_successes else np.float64)
            self._windows = Windows(values, np.zeros(num_levels, dtype=np.int32))

    def look_back(self, episodes: Episodes, *, order: Ints, indices: Ints, returns: Floats, steps_before: Ints) -> Past:
        """Puts the episodes of a block beside what is remembered; changes nothing.

        Args:
            episodes: its E episodes.
            order: (m,) which of the episodes are scored, in the order in which they are applied.
            indices: (m,) the index of each one's level.
            returns: (E,) undiscounted, from the episode's first step on; NaN where rewards were not pushed.
            steps_before: (E,) valid steps of the episode in earlier blocks.

        Raises:
            InvalidInput: so many windows at once would take too much memory.
        """
        count = len(episodes)
        if self._windows is not None and len(order) * self._windows.values.shape[1] > MAX_WINDOW_NUMBERS:
            most = MAX_WINDOW_NUMBERS // self._windows.values.shape[1]
            raise InvalidInput("levels", f"at most {most} finished episodes in one push (window)", str(len(order)))
        best, windows = None, None
        if self._best is not None:
            best = np.full(count, -np.inf)
            counted = episodes.finished[order] & ~np.isnan(returns[order])
            best[order] = running_best(self._best, indices, np.where(counted, returns[order], -np.inf))
        if self._windows is not None:
            new = returns[order]
            if self._of_successes:
                said = episodes.success[order]
                new = np.where(said == UNSAID, new > 0, said == 1)
            windows = windows_after(self._windows, indices, new)
        return Past(order, indices, returns, steps_before, best, windows)

    def remember(self, past: Past) -> None:
        """Takes over what `look_back` found."""
        if self._best is not None and past.best is not None:
            np.maximum.at(self._best, past.indices, past.best[past.order])
        if self._windows is not None and past.windows is not None:
            levels, from_end = np.unique(past.indices[::-1], return_index=True)
            newest = len(past.indices) - 1 - from_end
            self._windows.values[levels] = past.windows.values[newest]
            self._windows.filled[levels] = past.windows.filled[newest]

    def reserve(self, num: int) -> None:
        """Sees to it that beyond the N levels there are places for so many more, without a past until used."""
        size = self._num_levels + num
        if self._best is not None and len(self._best) < size:
            self._best = np.append(self._best, np.full(size - len(self._best), -np.inf))
        if self._windows is not None and len(self._windows.filled) < size:
            values, filled = self._windows.values, self._windows.filled
            more = np.zeros((size - len(filled), values.shape[1]), values.dtype)
            self._windows = Windows(
                np.append(values, more, axis=0), np.append(filled, np.zeros(len(more), filled.dtype))
            )

    def clear_reserved(self) -> None:
        """Drops what is remembered in the places beyond the N levels."""
        if self._best is not None:
            self._best[self._num_levels :] = -np.inf
        if self._windows is not None:
            self._windows.values[self._num_levels :] = 0
            self._windows.filled[self._num_levels :] = 0

    def replace(self, index: int, by: int | None) -> None:
        """Gives a level's place to another one: that of index `by`, or one without a past."""
        if self._best is not None:
            self._best[index] = -np.inf if by is None else self._best[by]
        if self._windows is not None:
            self._windows.values[index] = 0 if by is None else self._windows.values[by]
            self._windows.filled[index] = 0 if by is None else self._windows.filled[by]

    def state(self) -> dict[str, Any]:
        """Returns what is remembered.

        best: (N,) or None; windows: None, or values (N, W) and filled (N,).
        """
        num = self._num_levels
        windows = None
        if self._windows is not None:
            windows = {"values": self._windows.values[:num], "filled": self._windows.filled[:num]}
        return {
            "best": None if self._best is None else self._best[:num],
            "windows": windows,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to what `state` gave; the arrays become its own."""
        self._best = state["best"]
        self._windows = None if state["windows"] is None else Windows(**state["windows"])


def running_best(best: Floats, indices: Ints, returns: Floats) -> Floats:
    """The highest return on each level as the episodes come in.

    Args:
        best: (N,) the highest before; -inf where none.
        indices: (m,) the level of each episode, in the order in which they come.
        returns: (m,) what each returned; -inf where it does not count.

    Returns:
        (m,) the highest up to and with each.
    """
    by_level = np.argsort(indices, kind="stable")
    level = indices[by_level]
    group = np.cumsum(np.diff(level, prepend=level[:1]) != 0)
    values, rank = np.unique(returns[by_level], return_inverse=True)
    offset = group * len(values)  # keeps the running maximum of ranks within a level
    reached = np.maximum.accumulate(rank + offset) - offset
    running = np.empty(len(indices))
    running[by_level] = np.maximum(values[reached], best[level])
    return running


def windows_after(table: Windows, indices: Ints, new: NDArray[Any]) -> Windows:
    """The last W values of each level after every one of m episodes.

    Args:
        table: the last values of all N levels before.
        indices: (m,) the level of each episode, in the order in which they come.
        new: (m,) its value.

    Returns:
        m rows, the window of each one's level with its own value at the end.
    """
    width = table.values.shape[1]
    by_level = np.argsort(indices, kind="stable")
    level = indices[by_level]
    first = np.diff(level, prepend=-1) != 0
    begin = np.flatnonzero(first)[np.cumsum(first) - 1]
    place = np.arange(len(level)) - begin  # 0 for a level's first episode here
    at = place[:, np.newaxis] + 1 + np.arange(width)  # (m, W) in the level's row of the table, its new values after it
    row = np.take_along_axis(table.values[level], np.minimum(at, width - 1), axis=1)
    here = new[by_level][np.maximum(begin[:, np.newaxis] + at - width, 0)]
    values = np.empty((len(level), width), dtype=table.values.dtype)
    filled = np.empty(len(level), dtype=table.filled.dtype)
    values[by_level] = np.where(at >= width, here, row)
    filled[by_level] = np.minimum(table.filled[level] + place + 1, width)
    return Windows(values, filled)

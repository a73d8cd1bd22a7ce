"""Level spaces: which levels there are, and the way between a level's id and its index 0..N-1 in the table.

Used by the curriculum, which works on indices and speaks ids. No state that changes, no IO.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from plr_client.errors import LevelOutsideSpace


class LevelSpace:
    """N levels: their ids, and the index of each."""

    def __len__(self) -> int:
        raise NotImplementedError

    def id_of(self, index: int) -> int:
        """Returns the id at one index."""
        raise NotImplementedError

    def index_of(self, level: int) -> int:
        """Returns the index of one id that is in the space."""
        raise NotImplementedError

    def ids(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the ids at the indices, same shape."""
        raise NotImplementedError

    def indices(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the indices of the ids, same shape.

        Raises:
            LevelOutsideSpace: one of them is not in the space.
        """
        raise NotImplementedError


class RangeSpace(LevelSpace):
    """The levels of a Python range, without an object or a byte per level; its ends may be 2**64 apart.

    Distances from the first id are computed in uint64: they may be beyond int64, and there differences wrap to what
    they are. Those of ids on the other side of it wrap to more than that of the last one.
    """

    def __init__(self, levels: range) -> None:
        self._levels = levels
        self._first = np.array(levels[0]).astype(np.uint64)
        self._step = np.array(abs(levels.step) if len(levels) > 1 else 1, dtype=np.uint64)
        self._last_distance = np.array(abs(levels[-1] - levels[0]), dtype=np.uint64)

    def __len__(self) -> int:
        return len(self._levels)

    def id_of(self, index: int) -> int:
        return self._levels[index]

    def index_of(self, level: int) -> int:
        return (level - self._levels.start) // self._levels.step

    def ids(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        distance = indices.astype(np.uint64) * self._step
        return (self._first + distance if self._levels.step > 0 else self._first - distance).astype(np.int64)

    def indices(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        unsigned = ids.view(np.uint64)
        distance = unsigned - self._first if self._levels.step > 0 else self._first - unsigned
        outside = distance > self._last_distance
        if abs(self._levels.step) != 1:
            outside |= distance % self._step != 0
            distance //= self._step
        if np.count_nonzero(outside):  # faster than any
            raise _outside(ids[outside], f"one of the {len(self)} levels of {self._levels}")
        return distance.view(np.int64)


class ListSpace(LevelSpace):
    """The levels of a list of ids; index = position in the list."""

    def __init__(self, levels: tuple[int, ...]) -> None:
        self._ids = np.array(levels, dtype=np.int64)
        self._order = np.argsort(self._ids, kind="stable")
        self._sorted = self._ids[self._order]

    def __len__(self) -> int:
        return len(self._ids)

    def id_of(self, index: int) -> int:
        return int(self._ids[index])

    def index_of(self, level: int) -> int:
        return int(self._order[self._sorted.searchsorted(level)])

    def ids(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._ids[indices]

    def indices(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        position = np.minimum(np.searchsorted(self._sorted, ids), len(self) - 1)
        outside = self._sorted[position] != ids
        if np.count_nonzero(outside):
            raise _outside(ids[outside], f"one of the {len(self)} levels of the list")
        indices: NDArray[np.int64] = self._order[position]
        return indices


def level_space(levels: range | tuple[int, ...]) -> LevelSpace:
    """Returns the space of a configuration's `levels`."""
    return RangeSpace(levels) if isinstance(levels, range) else ListSpace(levels)


def _outside(ids: NDArray[np.int64], expected: str) -> LevelOutsideSpace:
    return LevelOutsideSpace("levels", expected, f"level {ids[0]}")

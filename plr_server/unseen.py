"""Which levels may be handed out as new ones, and a uniform draw among them in O(log N).

Used by the curriculum. A Fenwick tree of counts: 4 bytes a level, exact, and a function of the set alone, so that a restored
curriculum draws what the original would have drawn.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class AvailableLevels:
    """A set of indices out of 0..N-1, all of them at first, with selection by order."""

    def __init__(self, num_levels: int) -> None:
        positions = np.arange(num_levels + 1, dtype=np.int32)
        self._start(positions & -positions, np.ones(num_levels, dtype=np.uint8))  # node i counts its lowest set bit's worth

    @classmethod
    def where(cls, available: NDArray[np.bool_]) -> AvailableLevels:
        """Returns the set of the indices that are True in `available` (N,)."""
        before = np.concatenate([[0], np.cumsum(available)])
        positions = np.arange(len(before))
        found = cls.__new__(cls)
        found._start((before - before[positions & (positions - 1)]).astype(np.int32), available.astype(np.uint8))
        return found

    def _start(self, tree: NDArray[np.int32], inside: NDArray[np.uint8]) -> None:
        self._tree, self._inside = memoryview(tree), memoryview(inside)  # faster to index one by one than arrays
        self._size = int(inside.sum())
        self._top = 1 << (len(inside).bit_length() - 1)

    def __len__(self) -> int:
        return self._size

    def __contains__(self, index: int) -> bool:
        return bool(self._inside[index])

    def add(self, index: int) -> None:
        """Puts an index in; nothing happens where it is in."""
        if not self._inside[index]:
            self._change(index, 1)

    def discard(self, index: int) -> None:
        """Takes an index out; nothing happens where it is not in."""
        if self._inside[index]:
            self._change(index, -1)

    def select(self, rank: int) -> int:
        """Returns the index that `rank` others in the set come before, 0 <= rank < len."""
        tree, last = self._tree, len(self._tree) - 1
        position, step = 0, self._top
        while step:
            further = position + step
            if further <= last and tree[further] <= rank:
                position = further
                rank -= tree[further]
            step >>= 1
        return position

    def _change(self, index: int, by: int) -> None:
        self._inside[index] += by
        self._size += by
        tree, last = self._tree, len(self._tree) - 1
        position = index + 1
        while position <= last:
            tree[position] += by
            position += position & -position

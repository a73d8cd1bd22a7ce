"""Which levels may be handed out as new ones, and a uniform draw among them in O(log N).

Used by the curriculum. A Fenwick tree of counts: 4 bytes a level, exact, and a function of the set alone, so that a
restored curriculum draws what the original would have drawn.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

REBUILD_SHARE = 256  # to build the tree costs as much as to take one index in so many out


class AvailableLevels:
    """A set of indices out of 0..N-1, with selection by order.

    Args:
        available: (N,) bool, which indices are in it at first.
    """

    def __init__(self, available: NDArray[np.bool_]) -> None:
        self._build(available)

    def _build(self, available: NDArray[np.bool_]) -> None:
        before = np.zeros(len(available) + 1, dtype=np.int32)
        np.cumsum(available, out=before[1:])
        positions = np.arange(len(before), dtype=np.int32)
        tree = before - before[positions & (positions - 1)]  # node i counts as many as its lowest set bit says
        self._flags = available.astype(np.uint8)
        self._tree, self._inside = tree.data, self._flags.data  # faster than arrays, one by one
        self._size = int(before[-1])
        self._top = 1 << (len(available).bit_length() - 1)

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

    def discard_all(self, indices: NDArray[np.int64]) -> None:
        """Takes indices out; those that are not in stay out.

        Args:
            indices: (m,) ints. From about N / 256 on, the tree is built anew.
        """
        if len(indices) * REBUILD_SHARE <= len(self._flags):
            for index in indices.tolist():
                self.discard(index)
        else:
            self._flags[indices] = 0
            self._build(self._flags.view(np.bool_))

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

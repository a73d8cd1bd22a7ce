"""Levels in the order of a key, with selection by rank: what the rank-based transforms draw from.

Used by the sampler only. Pure: no IO, no generator. Sorted blocks of bounded size: a change costs a few bisections and
a move inside one block, a selection one bisection. What it answers depends on the pairs alone; where the blocks are cut
depends also on how they came.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Block = TypeVar("Block", "array[float]", "array[int]")

BLOCK = 1024  # entries a block is cut to; it holds from half of that to double, where there is more than one
MERGE_OVERHEAD, MERGE_SHARE = 20, 250  # one merge of everything costs as much as about 20 + n / 250 single changes


class KeyOrder:
    """Pairs (key, index), ascending; equal keys by the lower index. 12 bytes a pair, no object per pair.

    Attributes:
        size: how many there are.
    """

    def __init__(self) -> None:
        self._keys: list[array[float]] = []
        self._indices: list[array[int]] = []
        self._index_blocks()

    def __len__(self) -> int:
        return self.size

    def select(self, rank: int) -> int:
        """Returns the index of the pair that `rank` others come before, 0 <= rank < len."""
        block = bisect_right(self._ends, rank)
        return self._indices[block][rank - self._ends[block]]  # counted from the block's end: negative

    def indices(self) -> NDArray[np.int32]:
        """Returns all indices, shape (n,), in the order of their keys."""
        return np.concatenate([np.frombuffer(block, np.int32) for block in self._indices] or [np.empty(0, np.int32)])

    def replace(
        self,
        old: NDArray[np.int64],
        old_keys: NDArray[np.float64],
        new: NDArray[np.int64],
        new_keys: NDArray[np.float64],
    ) -> None:
        """Takes pairs out and puts pairs in.

        Args:
            old: (k,) unique indices that are in.
            old_keys: (k,) the keys they are in with.
            new: (m,) unique indices that are not in, once `old` is out.
            new_keys: (m,) their keys.
        """
        if max(len(old), len(new)) > MERGE_OVERHEAD + len(self) // MERGE_SHARE or not len(self):
            self._merge(old, new, new_keys)
            return
        before = dict(zip(old.tolist(), old_keys.tolist(), strict=True))
        for index, key in zip(new.tolist(), new_keys.tolist(), strict=True):
            if before.get(index) == key:
                del before[index]
            else:
                self._insert(key, index)
        for index, key in before.items():  # after the insertions, so that the order is not emptied in between
            self._remove(key, index)

    def _block_of(self, key: float, index: int) -> int:
        """Returns the first block that ends at (key, index) or after it; the number of blocks where none does."""
        return _position(self._last_keys, self._last_indices, key, index)

    def _insert(self, key: float, index: int) -> None:
        block = min(self._block_of(key, index), len(self._keys) - 1)
        keys, indices = self._keys[block], self._indices[block]
        position = _position(keys, indices, key, index)
        keys.insert(position, key)
        indices.insert(position, index)
        if len(keys) > 2 * BLOCK:
            self._recut_around(block)
        else:
            self._count(block, 1)

    def _remove(self, key: float, index: int) -> None:
        block = self._block_of(key, index)
        keys, indices = self._keys[block], self._indices[block]
        position = _position(keys, indices, key, index)
        del keys[position], indices[position]
        if not keys or (len(keys) < BLOCK // 2 and len(self._keys) > 1):
            self._recut_around(block)
        else:
            self._count(block, -1)

    def _count(self, block: int, change: int) -> None:
        self._last_keys[block], self._last_indices[block] = self._keys[block][-1], self._indices[block][-1]
        self._ends_array[block:] += change
        self.size += change

    def _recut_around(self, block: int) -> None:
        """Cuts a block that has become too large or too small anew, together with its neighbours."""
        begin, stop = max(block - 1, 0), block + 2
        keys, indices = array("d"), array("i")
        for some_keys, some_indices in zip(self._keys[begin:stop], self._indices[begin:stop], strict=True):
            keys.extend(some_keys)
            indices.extend(some_indices)
        self._keys[begin:stop], self._indices[begin:stop] = _cut(keys), _cut(indices)
        self._index_blocks()

    def _index_blocks(self) -> None:
        """Notes where the blocks end."""
        self._last_keys = [block[-1] for block in self._keys]
        self._last_indices = [block[-1] for block in self._indices]
        self._ends_array = np.fromiter(accumulate(map(len, self._keys)), np.int64, len(self._keys))
        self.size = sum(map(len, self._keys))
        self._ends = self._ends_array.data  # faster to bisect than an array

    def _merge(self, old: NDArray[np.int64], new: NDArray[np.int64], new_keys: NDArray[np.float64]) -> None:
        """Takes out and puts in by one pass over everything."""
        indices = self.indices()
        keys = np.concatenate([np.frombuffer(block) for block in self._keys] or [np.empty(0)])
        if len(old):
            is_old = np.zeros(max(int(indices.max()), int(old.max())) + 1, dtype=np.bool_)
            is_old[old] = True
            stays = ~is_old[indices]
            indices, keys = indices[stays], keys[stays]
        in_order = np.lexsort((new, new_keys))
        new, new_keys = new[in_order], new_keys[in_order]
        low, high = keys.searchsorted(new_keys, "left"), keys.searchsorted(new_keys, "right")
        while (tied := np.flatnonzero(low < high)).size:  # bisects by index among equal keys, all at once
            middle = (low[tied] + high[tied]) // 2
            after = indices[middle] < new[tied]
            low[tied[after]] = middle[after] + 1
            high[tied[~after]] = middle[~after]
        merged_keys, merged_indices = array("d"), array("i")
        merged_keys.frombytes(np.insert(keys, low, new_keys).view(np.uint8).data)
        merged_indices.frombytes(np.insert(indices, low, new.astype(np.int32)).view(np.uint8).data)
        self._keys, self._indices = _cut(merged_keys), _cut(merged_indices)
        self._index_blocks()


def _position(keys: Sequence[float], indices: Sequence[int], key: float, index: int) -> int:
    """Returns how many of the ascending pairs come before (key, index)."""
    position = bisect_left(keys, key)
    if position < len(keys) and keys[position] == key:
        position = bisect_left(indices, index, position, bisect_right(keys, key, position))
    return position


def _cut(entries: Block) -> list[Block]:
    """Cuts into blocks of about BLOCK entries, all of one size or one more; none where there is no entry."""
    num_blocks = max(round(len(entries) / BLOCK), 1) if entries else 0
    cuts = [len(entries) * block // num_blocks for block in range(num_blocks + 1)] if num_blocks else []
    return [entries[begin:stop] for begin, stop in pairwise(cuts)]

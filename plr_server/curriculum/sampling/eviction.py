"""Which level leaves a full table: the one that P_replay values least, found without looking at all of them.

Used by the sampler only. Pure: no IO, no generator. The levels are kept in the order of their scores, in blocks; of
each block it is known which level was drawn last. P_replay grows with P_S, which falls along the order, and with
staleness: the P_S at a block's end with the least staleness in it bounds the block from below. Blocks are opened by
that bound until none is left that could hold less.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from plr_server.curriculum.sampling.order import KeyOrder

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PReplay = Callable[[Ints, Floats, Ints], tuple[Floats, Floats]]

UNKNOWN = -1


class EvictionOrder(KeyOrder):
    """Levels by falling value, which P_S grows with; their keys are minus that. Each block knows its last drawn.

    Args:
        last_drawn: (N or more,) int64, 0 or more; the sampler's own array, read when it is needed.
    """

    def __init__(self, last_drawn: Ints) -> None:
        self._last_drawn = last_drawn
        super().__init__()

    def touch(self, key: float, index: int) -> None:
        """Notes that a level that is in was drawn lately: no other later, but for those this is called for as well."""
        block, last_drawn = self._block_of(key, index), self._last_drawn[index]
        if last_drawn > self._latest[block]:
            self._latest[block], self._latest_index[block] = last_drawn, index

    def lowest(self, p_replay: PReplay) -> int:
        """Returns the level that goes first by P_replay, P_S, value (minus its key), last_drawn and index.

        The lowest each, but of last_drawn the highest; one counts where those before it are alike.

        Args:
            p_replay: ranks (0 is the first), keys and last_drawn of m levels to (P_replay, P_S), each (m,). Both must
                not grow with the rank, nor P_replay with last_drawn.
        """
        for block in np.flatnonzero(self._latest == UNKNOWN).tolist():
            indices = np.frombuffer(self._indices[block], np.int32)
            last_drawn = self._last_drawn[indices]
            latest = last_drawn.max()
            self._latest[block], self._latest_index[block] = latest, indices[last_drawn == latest].min()
        # What no level of the block is below: each column at its least, and the least index with that last_drawn.
        bounds = _columns(p_replay, self._ends_array - 1, np.array(self._last_keys), self._latest)
        best: tuple[float, ...] | None = None
        for block in np.lexsort((self._latest_index, *bounds[::-1])).tolist():
            if best is not None and (*(column[block] for column in bounds), self._latest_index[block]) >= best:
                break
            indices = np.frombuffer(self._indices[block], np.int32)
            last_drawn = self._last_drawn[indices]
            stop = int(self._ends_array[block])
            ranks = np.arange(stop - len(indices), stop)
            columns = _columns(p_replay, ranks, np.frombuffer(self._keys[block]), last_drawn)
            left = np.arange(len(indices))
            for column in columns:
                left = left[column[left] == column[left].min()]
            first = left[indices[left].argmin()]
            found = (*(column[first] for column in columns), indices[first])
            best = found if best is None else min(best, found)
        assert best is not None  # noqa: S101  there is a level
        return int(best[-1])

    def _count(self, block: int, change: int) -> None:
        super()._count(block, change)
        self._latest[block] = UNKNOWN

    def _index_blocks(self) -> None:
        super()._index_blocks()
        self._latest = np.full(len(self._keys), UNKNOWN, dtype=np.int64)
        self._latest_index = np.zeros(len(self._keys), dtype=np.int64)


def _columns(p_replay: PReplay, ranks: Ints, keys: Floats, last_drawn: Ints) -> tuple[Floats, Floats, Floats, Ints]:
    """Returns by what levels are compared, ascending, before their indices."""
    return *p_replay(ranks, keys, last_drawn), -keys, -last_drawn

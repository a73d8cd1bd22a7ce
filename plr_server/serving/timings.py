"""Timings: how many requests of each operation were answered, how many with an error, and how long that took.

Used by dispatch, which knows what was asked for, and loop, which has the clock. They tell of this process alone: they
are no part of the state, and a server that is started again begins at nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

NUM_BINS = 25  # the last one holds what took 8 s or more
OTHER = "other"  # what is no operation of the server, or no message at all


class Timings:
    """Counts by operation.

    Args:
        ops: the operations that are counted, each by its name; all others together.
    """

    def __init__(self, ops: Iterable[str]) -> None:
        self._other = [0] * (2 + NUM_BINS)  # errors, nanoseconds, and the bins
        self._by_op = {op: [0] * (2 + NUM_BINS) for op in ops} | {OTHER: self._other}

    def add(self, op: str, is_error: bool, took_ns: int) -> None:
        """Counts a request that was answered; of every request, so it must cost less than a microsecond."""
        kept = self._by_op.get(op, self._other)
        kept[0] += is_error
        kept[1] += took_ns
        kept[2 + min((took_ns // 1000).bit_length(), NUM_BINS - 1)] += 1

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Returns what was counted, of the operations that were asked for: as `Trainer.timings` says."""
        return {
            op: {"errors": kept[0], "seconds": kept[1] / 1e9, "counts": kept[2:]}
            for op, kept in self._by_op.items()
            if any(kept[2:])
        }

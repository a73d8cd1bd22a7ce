"""ByColumn: what is kept of a source's env columns from one push to the next, and for how long.

Used by the stitching; its limits are those of under_way too. Deterministic: it counts pushes, not time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

Kept = TypeVar("Kept")

SILENT_PUSHES = 1_000  # a column that so many pushes of its source went without does not come back
MAX_COLUMNS = 2**18  # of one source; the longest silent go first


class ByColumn(Generic[Kept]):
    """Something for each column of one source, the longest silent first.

    A source that names its columns anew, as for envs that were cut off, must not make it grow for ever.
    """

    def __init__(self) -> None:
        self._pushes = 0
        # column -> (the push that last had it, what is kept); a plain dict is slow to look at the front of
        self._kept: OrderedDict[int, tuple[int, Kept]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Kept]:
        return (kept for _, kept in self._kept.values())

    def get(self, column: int) -> Kept | None:
        """Returns what is kept of a column; None where nothing is."""
        found = self._kept.get(column)
        return None if found is None else found[1]

    def update(self, columns: Sequence[int], kept: Mapping[int, Kept], over: set[int]) -> list[Kept]:
        """Notes one push.

        Args:
            columns: all that it had.
            kept: what is to be kept of some of them from now on.
            over: those of which nothing is; of the others what was kept stays.

        Returns:
            What was dropped because its column has been silent for too long.
        """
        self._pushes += 1
        for column in columns:
            before = self._kept.pop(column, None)
            if column in kept:
                self._kept[column] = self._pushes, kept[column]
            elif before is not None and column not in over:
                self._kept[column] = self._pushes, before[1]
        dropped = []
        while self._kept:
            last_push, _ = next(iter(self._kept.values()))
            if last_push > self._pushes - SILENT_PUSHES and len(self._kept) <= MAX_COLUMNS:
                break
            dropped.append(self.drop_first())
        return dropped

    def drop_first(self) -> Kept:
        """Drops what is kept of the column that has been silent for longest, and returns it."""
        return self._kept.popitem(last=False)[1][1]

    def drop(self, columns: Sequence[int]) -> None:
        """Drops what is kept of some columns."""
        for column in columns:
            self._kept.pop(column, None)

    def state(self, plain: Callable[[Kept], Any]) -> dict[str, Any]:
        """Returns pushes: how many there were; columns: [column, its last push, what is kept] each, in order."""
        return {"pushes": self._pushes, "columns": [[n, at, plain(kept)] for n, (at, kept) in self._kept.items()]}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], kept_of: Callable[[Any], Kept]) -> ByColumn[Kept]:
        """Returns what `state` was taken of."""
        restored = cls()
        restored._pushes = state["pushes"]
        restored._kept = OrderedDict((n, (at, kept_of(plain))) for n, at, plain in state["columns"])
        return restored

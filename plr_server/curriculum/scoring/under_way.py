"""UnderWay: what the episodes that a block's end cut have earned so far; an episode's return is that of all of it.

Used by the scorer, for every strategy: the table keeps what a level last returned. Deterministic: it counts pushes, not
time. Array operations over all columns of a push, for every push goes through here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from plr_server.curriculum.arrays import Floats, Ints
from plr_server.curriculum.scoring import columns as limits
from plr_server.curriculum.scoring.episodes import Episodes

NOWHERE = -1  # the place of a column that nothing is known of


class Parts(NamedTuple):
    """C env columns with the part of an episode that each has played; the longest silent first.

    Attributes:
        columns: (C,) their ids.
        levels: (C,) what the episode is played on.
        steps: (C,) its valid steps so far; 0 where none is under way.
        earned: (C,) the sum of its rewards so far; NaN where some were not pushed.
        last_push: (C,) the push of the source that last had the column.
    """

    columns: Ints
    levels: Ints
    steps: Ints
    earned: Floats
    last_push: Ints


NONE: Ints = np.zeros(0, dtype=np.int64)
NO_PARTS = Parts(NONE, NONE, NONE, np.zeros(0), NONE)


@dataclasses.dataclass(frozen=True, slots=True)
class Carried:
    """A block's E episodes with what came before them.

    Attributes:
        returns: (E,) undiscounted, from the episode's first step on; NaN where some rewards were not pushed.
        steps_before: (E,) valid steps of the episode in earlier blocks.
        after: what is under way then.
    """

    returns: Floats
    steps_before: Ints
    after: Parts


class UnderWay:
    """The episodes under way of one source."""

    def __init__(self) -> None:
        self._pushes = 0
        self._parts = NO_PARTS

    def __len__(self) -> int:
        return len(self._parts.columns)

    def look(self, block: Episodes, columns: Ints) -> Carried:
        """Puts a block's episodes behind their earlier parts; changes nothing.

        An episode on another level than the part before shows that this one was abandoned.

        Args:
            block: its E episodes.
            columns: (N,) the ids of its columns.
        """
        before, num = self._parts, len(columns)
        returns, steps_before = np.full(len(block), np.nan), np.zeros(len(block), dtype=np.int64)
        if block.rewards is not None and len(block):
            returns = np.add.reduceat(block.rewards, block.begin)
        levels, steps, earned = np.zeros(num, np.int64), np.zeros(num, np.int64), np.zeros(num)
        others = before
        if len(before.columns):
            place = _places(before.columns, columns)  # (N,)
            known = np.flatnonzero(place != NOWHERE)
            at = place[known]
            levels[known], steps[known], earned[known] = before.levels[at], before.steps[at], before.earned[at]
            first = np.flatnonzero(np.diff(block.column, prepend=-1))  # of each column that has one
            n = block.column[first]
            goes_on = (steps[n] > 0) & (levels[n] == block.level[first])
            returns[first[goes_on]] += earned[n[goes_on]]
            steps_before[first[goes_on]] = steps[n[goes_on]]
            steps[n] = 0
            others = _rest(before, at, self._pushes + 1 - limits.SILENT_PUSHES)
        cut = np.flatnonzero(~block.finished)
        n = block.column[cut]
        levels[n], steps[n], earned[n] = block.level[cut], steps_before[cut] + block.steps[cut], returns[cut]
        here = Parts(columns, levels, steps, earned, np.full(num, self._pushes + 1))
        if len(others.columns):
            joined: list[Any] = [np.concatenate(pair) for pair in zip(others, here, strict=True)]
            here = _taken(joined, slice(-limits.MAX_COLUMNS, None))
        return Carried(returns, steps_before, here)

    def keep(self, carried: Carried) -> None:
        """Takes over what `look` found."""
        self._pushes += 1
        self._parts = carried.after

    def drop(self, columns: Ints) -> None:
        """Drops the episodes of some columns."""
        self._parts = _taken(self._parts, ~np.isin(self._parts.columns, columns))

    def state(self) -> dict[str, Any]:
        """Returns pushes: how many there were; and the arrays of `Parts` by name."""
        return {"pushes": self._pushes, **self._parts._asdict()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> UnderWay:
        """Returns what `state` was taken of."""
        restored = cls()
        restored._pushes = state["pushes"]
        restored._parts = Parts(**{name: state[name] for name in Parts._fields})
        return restored


def _places(known: Ints, columns: Ints) -> Ints:
    """Returns (N,) where each column is among those known, which are distinct; NOWHERE where it is not."""
    if len(known) == len(columns) and (known == columns).all():  # as from one push to the next
        return np.arange(len(columns))
    order = np.argsort(known)
    at = order[np.searchsorted(known, columns, sorter=order).clip(max=len(known) - 1)]
    return np.where(known[at] == columns, at, NOWHERE)


def _taken(parts: Iterable[Any], which: Any) -> Parts:
    """Returns some of the parts."""
    arrays: list[Any] = [array[which] for array in parts]
    return Parts(*arrays)


def _rest(parts: Parts, without: Ints, since: int) -> Parts:
    """Returns the parts but for those at some places, those of which none is under way, and those silent too long."""
    if len(without) == len(parts.columns):
        return NO_PARTS
    rest = (parts.steps > 0) & (parts.last_push > since)
    rest[without] = False
    return _taken(parts, rest)

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
        before, num = self._parts, len(block)
        returns, steps_before = _returns(block), np.zeros(num, dtype=np.int64)
        all_ended = np.count_nonzero(block.finished) == num
        if all_ended and not len(before.columns):  # as of episodes that come whole
            return Carried(returns, steps_before, before)
        levels, steps, earned, others = _taken_up(before, columns, self._pushes + 1 - limits.SILENT_PUSHES)
        if num and len(before.columns):
            first = np.empty(num, dtype=np.bool_)  # of each column that has one
            first[0] = True
            np.not_equal(block.column[1:], block.column[:-1], out=first[1:])
            n = block.column[first]
            goes_on = (steps[n] > 0) & (levels[n] == block.level[first])
            e, at = np.flatnonzero(first)[goes_on], n[goes_on]
            returns[e] += earned[at]
            steps_before[e] = steps[at]
            steps[n] = 0
        if not all_ended:
            cut = np.flatnonzero(~block.finished)
            n = block.column[cut]
            levels[n], steps[n], earned[n] = block.level[cut], steps_before[cut] + block.steps[cut], returns[cut]
        here = Parts(columns, levels, steps, earned, np.full(len(columns), self._pushes + 1))
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


def _returns(block: Episodes) -> Floats:
    """Returns (E,) what each episode earned in the block; NaN where rewards were not pushed."""
    if block.rewards is None or not len(block):
        return np.full(len(block), np.nan)
    return np.add.reduceat(block.rewards, block.begin)


def _taken_up(before: Parts, columns: Ints, since: int) -> tuple[Ints, Ints, Floats, Parts]:
    """Returns levels, steps and earnings of the N columns of a block, new arrays; and the other parts to be kept."""
    known, num = before.columns, len(columns)
    if len(known) == num and (known == columns).all():  # as from one push to the next
        return before.levels.copy(), before.steps.copy(), before.earned.copy(), NO_PARTS
    levels, steps, earned = np.zeros(num, np.int64), np.zeros(num, np.int64), np.zeros(num)
    if not len(known):
        return levels, steps, earned, NO_PARTS
    order = np.argsort(known)
    place = order[np.searchsorted(known, columns, sorter=order).clip(max=len(known) - 1)]
    mine = np.flatnonzero(known[place] == columns)
    at = place[mine]
    levels[mine], steps[mine], earned[mine] = before.levels[at], before.steps[at], before.earned[at]
    rest = (before.steps > 0) & (before.last_push > since)
    rest[at] = False
    return levels, steps, earned, _taken(before, rest)


def _taken(parts: Iterable[Any], which: Any) -> Parts:
    """Returns some of the parts."""
    arrays: list[Any] = [array[which] for array in parts]
    return Parts(*arrays)

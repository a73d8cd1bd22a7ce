"""Groups of levels: rooms, edits, path length, or whatever a function of the user's says of a level; and what they do.

Used by collect. It keeps the group of each row of the table, six bytes each, and asks the user's function for a level
once, for as long as it stays in its row. It asks nobody for payloads: it is given a function that does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plr_server.viewer.functions import OfLevel
from plr_server.viewer.measures import Look, rounded_to, shade

MAX_GROUPS = 12  # with names of their own: what a chart can tell apart; all others are together in `OTHERS`
OTHERS = "others"
LABEL_CHARS = 24
RETURN_DIGITS = 3  # a history has many of them
AT_ONCE = 64  # levels, between two looks at the clock
NO_GROUP, FAILED = -1, -2  # of a row: not asked for yet; the function failed
NOBODY = -1  # the level of a row that was never asked for

GivenOf = Callable[[Sequence[int]], Sequence[Any]]  # ids to what the user's function is given, None for what is gone


class Groups:
    """The groups of one curriculum's levels.

    Args:
        function: from a level to its group: anything that `str` makes a short label of.
        budget_s: seconds that one `look` may spend on levels that were not asked for yet; the others come later.
        labels: those of the groups that were met before, as by an earlier viewer.

    Attributes:
        labels: of the groups, in the order in which they were met.
    """

    def __init__(self, function: OfLevel, budget_s: float, labels: Sequence[str] = ()) -> None:
        self._function, self._budget_s = function, budget_s
        self.labels = list(labels)
        self._ids: NDArray[Any] = np.zeros(0, dtype=np.int32)  # of the level that each row had when it was asked for
        self._groups: NDArray[np.int16] = np.zeros(0, dtype=np.int16)  # its group

    def look(self, it: Look, given_of: GivenOf) -> dict[str, Any]:
        """Returns where the sampling mass and the returns are, by group; of the levels whose groups are known.

        Args:
            it: what was seen of the levels.
            given_of: from ids to what the user's function is to be given.

        Returns:
            group_mass: the share of P_replay of each group, by its place in `labels`, packed by `shade`; group_returns:
            the mean of the last returns that are known, each level counted once, None where there is none;
            group_levels: how many seen levels each has.
        """
        self._ask(it, given_of)
        known = np.flatnonzero(self._groups[: len(it.levels.ids)] >= 0)
        groups, num = self._groups[known], len(self.labels)
        mass: Any = np.bincount(groups, it.by_score[known] + it.by_staleness[known], num)
        returns = it.levels.last_returns[known]
        told = ~np.isnan(returns)
        earned = np.bincount(groups[told], returns[told], num)
        counted = np.bincount(groups[told], minlength=num)
        return {
            "group_mass": shade(mass),
            "group_returns": [
                rounded_to(RETURN_DIGITS, total / count) if count and math.isfinite(total) else None
                for total, count in zip(earned.tolist(), counted.tolist(), strict=True)
            ],
            "group_levels": np.bincount(groups, minlength=num).tolist(),
        }

    def label_of(self, given: Any) -> str | None:
        """Returns the label of one level, given as the function takes it; None where there is none."""
        label: str | None = self._function(given, _label)
        if label is None or label in self.labels or len(self.labels) < MAX_GROUPS:
            return label
        return OTHERS

    def _ask(self, it: Look, given_of: GivenOf) -> None:
        """Asks for the groups of seen levels that are not known, as long as there is time."""
        ids, num = it.levels.ids, len(it.levels.ids)
        if len(self._ids) < num:
            self._ids = np.append(self._ids, np.full(num - len(self._ids), NOBODY, dtype=self._ids.dtype))
            self._groups = np.append(self._groups, np.full(num - len(self._groups), NO_GROUP, dtype=np.int16))
        if self._ids.dtype != ids.dtype:
            self._ids = self._ids.astype(np.result_type(self._ids, ids))
        left = (self._groups[:num] != NO_GROUP) & ((self._ids[:num] != ids) | ~it.levels.seen)
        self._groups[:num][left] = NO_GROUP
        missing = np.flatnonzero(it.levels.seen & (self._groups[:num] == NO_GROUP))
        until_s = time.monotonic() + self._budget_s
        for begin in range(0, len(missing), AT_ONCE):
            rows = missing[begin : begin + AT_ONCE]
            for row, given in zip(rows.tolist(), given_of(ids[rows].tolist()), strict=True):
                if given is not None:
                    self._groups[row], self._ids[row] = self._group_of(given), ids[row]
            if time.monotonic() > until_s:
                break

    def _group_of(self, given: Any) -> int:
        label = self.label_of(given)
        if label is None:
            return FAILED
        if label not in self.labels:
            self.labels.append(label)
        return self.labels.index(label)


def _label(group: Any) -> str:
    return str(group)[:LABEL_CHARS]

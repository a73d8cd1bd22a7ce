"""The level table: applies scores to levels, and decides who enters and who leaves where the level space is open.

It counts what was played, too, for people to look at: no draw depends on that. Used by the state machine. What
is given to `apply` and `played` has been checked: they cannot fail. No IO, no generator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from plr_client.errors import InvalidInput
from plr_server.curriculum.arrays import Floats, Ints
from plr_server.curriculum.sampling.sampler import Sampler
from plr_server.curriculum.spaces.level_space import LevelSpace
from plr_server.curriculum.spaces.open_space import NOT_IN_TABLE, OpenSpace

NOBODY: Mapping[int, int] = {}
MAX_ENTERING = 2**14  # episodes of one push, each of which may have a level take another's place at 0.3 to 3 ms


class LevelTable:
    """Which levels have which scores.

    Args:
        space: the level space.
        sampler: keeps the scores, by index.
        first_scores: called with the indices (m,) of levels that have just become seen.

    Attributes:
        plays: (N,) int32, by index, the episodes that ended on the level since it is in the table.
        last_played: (N,) int64, how many levels had been drawn when the last of them was noted; 0 where there is none.
        scores: how many scores were applied so far.
        entered: how many levels came into the table of an open space.
        evicted: how many of them took another one's place.
        rejected: how many scores were of levels that did not enter.
    """

    def __init__(self, space: LevelSpace, sampler: Sampler, first_scores: Callable[[Ints], None]) -> None:
        self._space, self._sampler, self._first_scores = space, sampler, first_scores
        self.plays = np.zeros(len(space), dtype=np.int32)
        self.last_played = np.zeros(len(space), dtype=np.int64)
        self._last_return = np.zeros(len(space))  # says nothing where there are no plays
        self.scores = self.entered = self.evicted = self.rejected = 0

    def check(self, num_scores: int, num_outside: int) -> None:
        """Tells whether scores may be applied at once, some of which are of levels outside the table.

        Raises:
            InvalidInput: the table is full or will be, and so many levels could take others' places.
        """
        is_full = isinstance(self._space, OpenSpace) and self._space.num_entered + num_outside > len(self._space)
        if num_outside and is_full and num_scores > MAX_ENTERING:
            expected = f"at most {MAX_ENTERING} episodes in one push, with levels outside a full table among them"
            raise InvalidInput("levels", expected, f"{num_scores}")

    def apply(
        self,
        levels: Iterable[int],
        scores: Floats,
        alpha: float,
        *,
        replace_past: Callable[[int, int | None], None],
        past: Mapping[int, int] = NOBODY,
    ) -> None:
        """Sets score <- (1 - alpha) old + alpha new for each in order; a level's first score is taken as it is.

        Of an open space the score of a level that is not in the table is a first score, whether it never was or has
        left: the level enters while there is room, and later in the place of the one of the lowest P_replay if the
        score is above that one's. Otherwise, and where its payload is no longer kept, the score is dropped.

        Args:
            levels: (m,) ids, which are asked for one by one.
            scores: (m,).
            alpha: the weight of a new score.
            replace_past: called with an index and the one at which the past stands that is to be there, or None.
            past: of an open space, the indices beyond the table at which levels outside it have their past.
        """
        if isinstance(self._space, OpenSpace):
            self._apply_open(self._space, levels, scores, alpha, replace_past=replace_past, past=past)
        else:
            self._apply(self._space.indices(np.fromiter(levels, np.int64, len(scores))), scores, alpha)

    def _apply_open(
        self,
        space: OpenSpace,
        levels: Iterable[int],
        scores: Floats,
        alpha: float,
        *,
        replace_past: Callable[[int, int | None], None],
        past: Mapping[int, int],
    ) -> None:
        indices: list[int] = []  # of the scores that wait to be applied: all up to the next eviction, at once
        waiting: list[float] = []
        lowest: int | None = None  # where P_replay is lowest, as long as nothing has changed
        for level, score in zip(levels, scores.tolist(), strict=True):
            index = space.index_of(level)
            if index == NOT_IN_TABLE and space.is_kept(level):
                if space.num_entered < len(space):
                    index = space.num_entered
                else:
                    if lowest is None:
                        self._apply(np.array(indices, dtype=np.int64), np.array(waiting), alpha)
                        indices, waiting = [], []
                        lowest = self._sampler.lowest()
                    index = lowest if score > self._sampler.scores[lowest] else NOT_IN_TABLE
                if index == NOT_IN_TABLE:
                    space.leave(level)
                else:
                    self._enter(space, level, index, replace_past, past)
            if index == NOT_IN_TABLE:
                self.rejected += 1
            else:
                indices.append(index)
                waiting.append(score)
                lowest = None
        self._apply(np.array(indices, dtype=np.int64), np.array(waiting), alpha)

    def _enter(
        self,
        space: OpenSpace,
        level: int,
        index: int,
        replace_past: Callable[[int, int | None], None],
        past: Mapping[int, int],
    ) -> None:
        if index < space.num_entered:
            leaving = space.id_of(index)
            if leaving in past:  # it may come back with a later score
                replace_past(past[leaving], index)
            self._sampler.forget(np.array([index]))
            self.evicted += 1
        replace_past(index, past.get(level))
        self.plays[index] = self.last_played[index] = 0
        # Staleness counts from the last draw, or from now where there is none.
        self._sampler.place(index, space.drawn_at(level, self._sampler.draws))
        space.enter(level, index)
        self.entered += 1

    def _apply(self, indices: Ints, scores: Floats, alpha: float) -> None:
        if not len(indices):
            return
        order = np.argsort(indices, kind="stable")  # groups a level's scores, in order
        in_order = indices[order]
        begin = np.flatnonzero(np.diff(in_order, prepend=-1))
        unique, count = in_order[begin], np.diff(begin, append=len(order))
        place = np.arange(len(order)) - np.repeat(begin, count)  # 0 for a level's first score here
        seen = self._sampler.seen[unique]
        left = np.repeat(count, count) - 1 - place  # how many come after it
        kept = np.multiply.accumulate(np.r_[1.0, np.full(count.max(), 1.0 - alpha)])  # powers of 1 - alpha
        weight = kept[left] * np.where((place == 0) & ~np.repeat(seen, count), 1.0, alpha)
        new = np.add.reduceat(weight * scores[order], begin) + np.where(
            seen, kept[count] * self._sampler.scores[unique], 0.0
        )
        self._sampler.set_scores(unique, new)
        if not seen.all():
            self._first_scores(unique[~seen])
        self.scores += len(indices)

    def played(self, levels: Ints, returns: Floats) -> None:
        """Notes episodes that ended, those of one level in the order in which they did.

        Args:
            levels: (m,) ids; those that are not in the table are left out.
            returns: (m,) what each returned; NaN where that is not known, which leaves the last one that is.
        """
        indices = self._space.indices(levels)
        if isinstance(self._space, OpenSpace):
            inside = indices != NOT_IN_TABLE
            indices, returns = indices[inside], returns[inside]
        known = ~np.isnan(returns)
        if not known.all():
            self._last_return[indices[self.plays[indices] == 0]] = np.nan
        np.add.at(self.plays, indices, 1)
        self.last_played[indices] = self._sampler.draws
        self._last_return[indices[known]] = returns[known]  # of several on one level, the last

    def last_returns(self, at: slice) -> Floats:
        """Returns, of the levels at some indices, what their last episode of known return returned; NaN for none."""
        return np.where(self.plays[at] > 0, self._last_return[at], np.nan)

    def counts(self) -> dict[str, int]:
        """Returns scores, entered, evicted and rejected."""
        return {name: getattr(self, name) for name in ("scores", "entered", "evicted", "rejected")}

    def state(self) -> dict[str, Any]:
        """Returns what was played: plays, last_played and last_return, (N,) each; the caller copies it."""
        return {"plays": self.plays, "last_played": self.last_played, "last_return": self._last_return}

    def restore(self, counts: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Goes back to what `counts` and `state` gave; the arrays become its own."""
        for name in self.counts():
            setattr(self, name, counts[name])
        self.plays, self.last_played, self._last_return = state["plays"], state["last_played"], state["last_return"]

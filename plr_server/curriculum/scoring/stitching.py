"""Stitching: the episodes that a block's end cut, kept until they end, so that each is scored whole.

Used by the scorer under `partial="stitch"`. An episode of P steps in blocks of T costs O(P), however long it is: its
steps are put together once, when it ends. Looking is pure; only `keep` changes anything.

Source: arXiv 2010.03934, appendix C.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from plr_client.errors import InvalidInput
from plr_server.curriculum.arrays import Floats, Ints
from plr_server.curriculum.scoring.columns import MAX_COLUMNS, ByColumn
from plr_server.curriculum.scoring.episodes import GOES_ON, PER_STEP, Episodes
from plr_server.curriculum.scoring.groups import NO_PARTS, ScoredEpisodes, taken

Fields = dict[str, Floats]  # values (L,), rewards (L,), logits (L, A) of L steps, those that the strategy reads


class OpenEpisode:
    """The steps in hand of an episode that has not ended.

    Attributes:
        level: what it is played on.
        steps: how many steps.
        parts: them, part by part.
        numbers: how many floats they are.
    """

    def __init__(self, level: int, part: Fields, steps: int) -> None:
        self.level = level
        self.steps = self.numbers = 0
        self.parts: list[Fields] = []
        self.append(part, steps)

    def append(self, part: Fields, steps: int) -> None:
        """Adds the steps of one more block."""
        self.parts.append(part)
        self.steps += steps
        self.numbers += sum(array.size for array in part.values())

    def goes_on(self, episodes: Episodes, e: int) -> bool:
        """Tells whether a block's first episode of the column is this one; another one shows that it was abandoned.

        Raises:
            InvalidInput: inside an episode, the number of actions in the logits changed, or a field came or went.
        """
        if int(episodes.level[e]) != self.level:
            return False
        last = self.parts[-1]
        for name in PER_STEP:
            array = getattr(episodes, name)
            if (array is None) == (name in last):
                got = f"{'none' if array is None else 'some'}, unlike the block before"
                raise InvalidInput(name, "all through an episode or not at all", got)
            if array is not None and array.shape[1:] != last[name].shape[1:]:
                expected = f"{last[name].shape[1]} actions, as in the block before"
                raise InvalidInput(name, expected, f"{array.shape[1]}")
        return True

    def state(self) -> dict[str, Any]:
        """Returns level, steps, and the arrays by name."""
        joined = {name: np.concatenate([part[name] for part in self.parts]) for name in self.parts[0]}
        return {"level": self.level, "steps": self.steps, "fields": joined}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> OpenEpisode:
        """Returns what `state` was taken of."""
        return cls(state["level"], dict(state["fields"]), state["steps"])


@dataclasses.dataclass(frozen=True, slots=True)
class Stitched:
    """A block's episodes, those that ended put together with what came before.

    Attributes:
        block: the episodes of the block alone.
        whole: the same, where one that ended began earlier with all of its steps. Of one that goes on still, only
            those of the block.
        going_on: by episode, the open one that it goes on with.
    """

    block: Episodes
    whole: Episodes
    going_on: dict[int, OpenEpisode]


class OpenEpisodes:
    """The open episodes of one source, and of those of groups the parts that have ended already.

    Attributes:
        numbers: how many floats are kept.
        ended: the parts of agents that have ended in earlier blocks while others of their group play on.
    """

    def __init__(self) -> None:
        self.numbers = 0
        self.ended: ScoredEpisodes = NO_PARTS
        self._columns: ByColumn[OpenEpisode] = ByColumn()

    def __len__(self) -> int:
        return len(self._columns)

    def level_of(self, column: int) -> int | None:
        """Returns the level of a column's open episode; None where it has none."""
        episode = self._columns.get(column)
        return None if episode is None else episode.level

    def stitch(self, block: Episodes, columns: Ints) -> Stitched:
        """Puts the block's episodes behind their earlier parts; changes nothing.

        Args:
            block: its episodes.
            columns: (N,) the ids of its columns.

        Raises:
            InvalidInput: inside an episode, the number of actions in the logits changed, or a field came or went.
        """
        going_on: dict[int, OpenEpisode] = {}
        if len(self._columns):
            names = columns.tolist()
            present, first = np.unique(block.column, return_index=True)
            for n, e in zip(present.tolist(), first.tolist(), strict=True):
                episode = self._columns.get(names[n])
                if episode is not None and episode.goes_on(block, e):
                    going_on[e] = episode
        if not going_on:
            return Stitched(block, block, going_on)
        started = list(going_on)
        ending = sorted(e for e in going_on if block.finished[e])
        start, steps = block.start.copy(), block.steps.copy()
        start[started] = GOES_ON
        for e in ending:
            steps[e] += going_on[e].steps
        begin = block.begin[ending].tolist()
        fields: dict[str, Any] = {}
        for name in PER_STEP:
            array = getattr(block, name)
            if array is None:
                continue
            pieces, at = [], 0
            for e, until in zip(ending, begin, strict=True):
                pieces += [array[at:until], *(part[name] for part in going_on[e].parts)]
                at = until
            fields[name] = np.concatenate([*pieces, array[at:]])
        return Stitched(block, dataclasses.replace(block, start=start, steps=steps, **fields), going_on)

    def keep(self, stitched: Stitched, columns: Ints, ended: ScoredEpisodes) -> int:
        """Takes over what a block's end cut; returns how many open episodes were given up as silent for too long."""
        block, begin, names = stitched.block, stitched.block.begin, columns.tolist()
        self.numbers -= self._numbers_of(names)
        kept: dict[int, OpenEpisode] = {}
        for e in np.flatnonzero(~block.finished).tolist():
            steps = slice(begin[e], begin[e] + block.steps[e])
            part = {
                name: array[steps].copy() for name in PER_STEP if (array := getattr(block, name)) is not None
            }  # a copy, for a view would keep the whole block
            episode = stitched.going_on.get(e)
            if episode is None:
                kept[names[block.column[e]]] = OpenEpisode(int(block.level[e]), part, int(block.steps[e]))
            else:
                episode.append(part, int(block.steps[e]))
                kept[names[block.column[e]]] = episode
        over = {names[n] for n in np.unique(block.column).tolist()} - kept.keys()
        silent = self._columns.update(names, kept, over)
        self.numbers += self._numbers_of(names) - sum(episode.numbers for episode in silent)
        self.ended = taken(ended, slice(-MAX_COLUMNS, None))
        return len(silent)

    def give_up_first(self) -> None:
        """Drops the open episode whose column has been silent for longest."""
        self.numbers -= self._columns.drop_first().numbers

    def drop(self, columns: Ints) -> None:
        """Drops the open episodes of some columns."""
        self.numbers -= self._numbers_of(columns.tolist())
        self._columns.drop(columns.tolist())

    def _numbers_of(self, columns: list[int]) -> int:
        found = map(self._columns.get, columns)
        return sum(episode.numbers for episode in found if episode is not None)

    def state(self) -> dict[str, Any]:
        """Returns open: by column, as of `ByColumn`; ended: arrays by name."""
        return {"open": self._columns.state(OpenEpisode.state), "ended": dataclasses.asdict(self.ended)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> OpenEpisodes:
        """Returns what `state` was taken of."""
        restored = cls()
        restored._columns = ByColumn.from_state(state["open"], OpenEpisode.from_state)
        restored.ended = ScoredEpisodes(**state["ended"])
        restored.numbers = sum(episode.numbers for episode in restored._columns)
        return restored

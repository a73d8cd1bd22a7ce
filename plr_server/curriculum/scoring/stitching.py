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
from plr_server.curriculum.scoring.rollouts import MAX_STEPS

OBJECT_BYTES = 1024  # of one episode, beside its steps
STEP_BYTES = 16  # of one number of a step: a buffer has up to twice the room that it needs

Fields = dict[str, Floats]  # values (L,), rewards (L,), logits (L, A) of L steps, those that the strategy reads


class OpenEpisode:
    """The steps in hand of an episode that has not ended.

    Attributes:
        level: what it is played on.
        steps: L, how many.
    """

    def __init__(self, level: int, part: Fields, steps: int) -> None:
        self.level, self.steps = level, steps
        self._buffers = {name: array.copy() for name, array in part.items()}  # (L or more, ...)

    @property
    def num_bytes(self) -> int:
        """What it takes in memory at most; by its steps alone, so that a restored one takes the same."""
        widths = (int(np.prod(buffer.shape[1:])) for buffer in self._buffers.values())
        return OBJECT_BYTES + self.steps * STEP_BYTES * sum(widths)

    def fields(self) -> Fields:
        """Returns the L steps."""
        return {name: buffer[: self.steps] for name, buffer in self._buffers.items()}

    def append(self, part: Fields, steps: int) -> None:
        """Adds the steps of one more block."""
        stop = self.steps + steps
        for name, buffer in self._buffers.items():
            if stop > len(buffer):
                grown = np.empty((max(stop, 2 * len(buffer)), *buffer.shape[1:]))
                grown[: self.steps] = buffer[: self.steps]
                self._buffers[name] = grown
            self._buffers[name][self.steps : stop] = part[name]
        self.steps = stop

    def goes_on(self, episodes: Episodes, e: int) -> bool:
        """Tells whether a block's first episode of the column is this one; another one shows that it was abandoned.

        Raises:
            InvalidInput: inside an episode, the number of actions in the logits changed, or a field came or went.
        """
        if int(episodes.level[e]) != self.level:
            return False
        for name in PER_STEP:
            array, buffer = getattr(episodes, name), self._buffers.get(name)
            if (array is None) != (buffer is None):
                got = f"{'none' if array is None else 'some'}, unlike the block before"
                raise InvalidInput(name, "all through an episode or not at all", got)
            if buffer is not None and array.shape[1:] != buffer.shape[1:]:
                expected = f"{buffer.shape[1]} actions, as in the block before"
                raise InvalidInput(name, expected, f"{array.shape[1]}")
        return True

    def state(self) -> dict[str, Any]:
        """Returns level, steps, and the arrays by name."""
        return {"level": self.level, "steps": self.steps, "fields": self.fields()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> OpenEpisode:
        """Returns what `state` was taken of."""
        return cls(state["level"], state["fields"], state["steps"])


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
        num_bytes: what the open episodes take in memory, about.
        ended: the parts of agents that have ended in earlier blocks while others of their group play on.
    """

    def __init__(self) -> None:
        self.num_bytes = 0
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
        before = [going_on[e].fields() for e in ending]
        fields: dict[str, Any] = {}
        for name in PER_STEP:
            array = getattr(block, name)
            if array is None:
                continue
            pieces, at = [], 0
            for earlier, until in zip(before, begin, strict=True):
                pieces += [array[at:until], earlier[name]]
                at = until
            fields[name] = np.concatenate([*pieces, array[at:]])
        return Stitched(block, dataclasses.replace(block, start=start, steps=steps, **fields), going_on)

    def keep(self, stitched: Stitched, columns: Ints, ended: ScoredEpisodes) -> int:
        """Takes over what a block's end cut; returns how many open episodes were given up.

        Those are the ones whose column was silent for too long, and those of more than MAX_STEPS steps.
        """
        block, begin, names = stitched.block, stitched.block.begin, columns.tolist()
        self.num_bytes -= self._bytes_of(names)
        kept: dict[int, OpenEpisode] = {}
        for e in np.flatnonzero(~block.finished).tolist():
            num_steps = int(block.steps[e])
            steps = slice(begin[e], begin[e] + num_steps)
            part = {name: array[steps] for name in PER_STEP if (array := getattr(block, name)) is not None}
            episode = stitched.going_on.get(e)
            if episode is None:
                episode = OpenEpisode(int(block.level[e]), part, num_steps)
            else:
                episode.append(part, num_steps)
            kept[names[block.column[e]]] = episode
        endless = {column for column, episode in kept.items() if episode.steps > MAX_STEPS}
        for column in endless:
            del kept[column]
        over = {names[n] for n in np.unique(block.column).tolist()} - kept.keys()
        silent = self._columns.update(names, kept, over)
        self.num_bytes += self._bytes_of(names) - sum(episode.num_bytes for episode in silent)
        self.ended = taken(ended, slice(-MAX_COLUMNS, None))
        return len(silent) + len(endless)

    def give_up_first(self) -> None:
        """Drops the open episode whose column has been silent for longest."""
        self.num_bytes -= self._columns.drop_first().num_bytes

    def drop(self, columns: Ints) -> None:
        """Drops the open episodes of some columns."""
        self.num_bytes -= self._bytes_of(columns.tolist())
        self._columns.drop(columns.tolist())

    def _bytes_of(self, columns: list[int]) -> int:
        found = map(self._columns.get, columns)
        return sum(episode.num_bytes for episode in found if episode is not None)

    def state(self) -> dict[str, Any]:
        """Returns open: by column, as of `ByColumn`; ended: arrays by name."""
        return {"open": self._columns.state(OpenEpisode.state), "ended": dataclasses.asdict(self.ended)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> OpenEpisodes:
        """Returns what `state` was taken of."""
        restored = cls()
        restored._columns = ByColumn.from_state(state["open"], OpenEpisode.from_state)
        restored.ended = ScoredEpisodes(**state["ended"])
        restored.num_bytes = sum(episode.num_bytes for episode in restored._columns)
        return restored

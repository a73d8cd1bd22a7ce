"""Open level spaces: a table of the best `capacity` levels, and where new ones come from.

Used by the curriculum, which gives levels scores and decides who enters and who leaves. A level has an index while it
is in the table, and an id always. No IO; draws from the generator it is given.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plr_client.errors import InvalidInput, LevelOutsideSpace
from plr_client.levels import NO_PARENT
from plr_server.curriculum.sampling.unseen import Bag, UnseenLevels
from plr_server.curriculum.spaces.level_space import LevelSpace

NUM_SEEDS = 2**31  # of the unbounded space
NOT_IN_TABLE = -1
DRAWN_REMEMBERED = 65_536  # new levels handed out of which it is known when, until their first score


class OpenSpace(LevelSpace):
    """A table of at most `capacity` levels, at first empty. Index = place in the table.

    Args:
        capacity: how many levels the table keeps, 1 or more.
    """

    def __init__(self, capacity: int) -> None:
        self._ids = np.full(capacity, NOT_IN_TABLE, dtype=np.int64)
        self._index: dict[int, int] = {}  # id -> index
        self._drawn: OrderedDict[int, int] = OrderedDict()  # id of a new level -> draws with it, the oldest first

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def num_entered(self) -> int:
        """Levels in the table: the indices below that are theirs."""
        return len(self._index)

    @property
    def num_waiting(self) -> int:
        """New levels that are kept, to be handed out until they have a score."""
        return 0

    def __contains__(self, level: int) -> bool:
        return level in self._index

    def id_of(self, index: int) -> int:
        return int(self._ids[index])

    def index_of(self, level: int) -> int:
        """Returns the index of one id; NOT_IN_TABLE where it has none."""
        return self._index.get(level, NOT_IN_TABLE)

    def ids(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._ids[indices]

    def indices(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the indices of the ids, same shape; NOT_IN_TABLE for those in the space that are not in the table.

        Raises:
            LevelOutsideSpace: one of them is not in the space.
        """
        stop, expected = self._ids_stop()
        outside = (ids < 0) | (ids >= stop)
        if outside.any():
            raise LevelOutsideSpace("levels", expected, f"level {ids[outside][0]}")
        return np.array([self._index.get(level, NOT_IN_TABLE) for level in ids.ravel().tolist()], np.int64).reshape(
            ids.shape
        )

    def is_kept(self, level: int) -> bool:
        """Tells whether a level that is not in the table may enter it."""
        raise NotImplementedError

    def enter(self, level: int, index: int) -> None:
        """Puts a level in the table, in the place of the one that is at the index, if one is."""
        out = self.id_of(index)
        if out != NOT_IN_TABLE:
            del self._index[out]
            self.leave(out)
        self._ids[index] = level
        self._index[level] = index

    def leave(self, level: int) -> None:
        """Forgets a level that is not, or no longer, in the table."""
        self._drawn.pop(level, None)

    def drawn(self, level: int, at: int) -> None:
        """Notes that a new level is handed out as the one that makes it `at` draws."""
        self._drawn.pop(level, None)
        self._drawn[level] = at
        if len(self._drawn) > max(DRAWN_REMEMBERED, len(self)):
            self._drawn.popitem(last=False)

    def drawn_at(self, level: int, otherwise: int) -> int:
        """Returns how many levels were drawn when a new one was last; `otherwise` where that is not known."""
        return self._drawn.pop(level, otherwise)

    def state(self) -> dict[str, Any]:
        """Returns the state, from which `restore` makes an equal space; the caller copies it."""
        return {"ids": self._ids[: self.num_entered], "drawn": dict(self._drawn)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state` returned; the space must be a new one."""
        self._ids[: len(state["ids"])] = state["ids"]
        self._index = {level: index for index, level in enumerate(state["ids"].tolist())}
        self._drawn = OrderedDict(state["drawn"])

    def _ids_stop(self) -> tuple[int, str]:
        """Returns what all ids are below, and that in words."""
        raise NotImplementedError


class UnboundedSpace(OpenSpace):
    """All 31-bit seeds. New ones are drawn; none is kept before it has a score."""

    def is_kept(self, level: int) -> bool:  # noqa: ARG002
        return True

    def new_level(self, rng: np.random.Generator) -> int:
        """Returns a level that is not in the table."""
        while (level := int(rng.random() * NUM_SEEDS)) in self._index:
            pass
        return level

    def _ids_stop(self) -> tuple[int, str]:
        return NUM_SEEDS, f"a seed from 0 to {NUM_SEEDS - 1}"


class PayloadSpace(OpenSpace):
    """Levels that were inserted, ids 0, 1, ... in that order. Those without a score wait to be handed out as new.

    Args:
        capacity: how many levels the table keeps, 1 or more.
        cap: how many slots may play a level, 0 for any number.

    Attributes:
        unseen: the levels that wait, by id; told by whoever hands them out how many slots play each.
    """

    def __init__(self, capacity: int, cap: int) -> None:
        super().__init__(capacity)
        self._next_id = 0
        self._packed: dict[int, bytes] = {}  # of every level kept, waiting or in the table
        self._id_of: dict[bytes, int] = {}
        self._parents: dict[int, int] = {}
        self.unseen = UnseenLevels(Bag, cap)

    @property
    def num_waiting(self) -> int:
        return len(self.unseen.every)

    def check(self, packed: Sequence[bytes], parents: Sequence[int], *, wait: bool) -> None:
        """Tells whether payloads can be interned, one parent each.

        Raises:
            InvalidInput: a parent was never a level, or there is no room for so many that wait.
        """
        for parent in parents:
            if not (parent == NO_PARENT or 0 <= parent < self._next_id):
                expected = f"ids of levels inserted before, or {NO_PARENT} for none"
                raise InvalidInput("parents", expected, str(parent))
        room = len(self) - self.num_waiting
        num_new = len({each for each in packed if each not in self._id_of})
        if wait and num_new > room:
            expected = f"at most {room} new ones until some that wait have scores (capacity {len(self)})"
            raise InvalidInput("payloads", expected, str(num_new))

    def intern(self, packed: bytes, parent: int) -> int:
        """Returns the id of a payload; a new one, which waits, where the payload is not kept."""
        known = self._id_of.get(packed)
        if known is not None:
            return known
        level = self._next_id
        self._next_id += 1
        self._packed[level] = packed
        self._id_of[packed] = level
        self._parents[level] = parent
        self.unseen.add(level)
        return level

    def packed(self, level: int) -> bytes:
        """Returns the payload of a level that is kept."""
        return self._packed[level]

    def described(self, levels: Sequence[int]) -> list[tuple[int, bytes, int]]:
        """Returns id, payload and parent of levels.

        Raises:
            LevelOutsideSpace: one of them is not kept.
        """
        for level in levels:
            if not self.is_kept(level):
                raise LevelOutsideSpace("levels", "ids of levels in the table or waiting", f"level {level}")
        return [(level, self.packed(level), self.parent(level)) for level in levels]

    def parent(self, level: int) -> int:
        """Returns the parent of a level that is kept, NO_PARENT for none; it need not be kept itself."""
        return self._parents[level]

    def is_kept(self, level: int) -> bool:
        return level in self._packed

    def enter(self, level: int, index: int) -> None:
        self.unseen.remove(level)
        super().enter(level, index)

    def leave(self, level: int) -> None:
        super().leave(level)
        self.unseen.remove(level)
        del self._id_of[self._packed.pop(level)], self._parents[level]

    def state(self) -> dict[str, Any]:
        kept = {"next_id": self._next_id, "packed": self._packed, "parents": self._parents}
        return super().state() | kept | {"unseen": self.unseen.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        self._next_id = state["next_id"]
        self._packed, self._parents = dict(state["packed"]), dict(state["parents"])
        self._id_of = {packed: level for level, packed in self._packed.items()}
        self.unseen.restore(state["unseen"])

    def _ids_stop(self) -> tuple[int, str]:
        return self._next_id, f"the id of a level inserted before, below {self._next_id}"

"""Which levels may be handed out as new ones: unseen, preferably played by nobody, otherwise below the cap.

Used by the assigner, and by the space of payloads. Pure: no IO, no generator. `UnseenLevels` chooses, from sets of
one of two kinds: of indices out of 0..N-1, and of any ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

REBUILD_SHARE = 256  # to build the tree costs as much as to take one index in so many out


class LevelSet(Protocol):
    """A set of levels from which one can be selected."""

    def __len__(self) -> int: ...

    def __contains__(self, level: int) -> bool: ...

    def add(self, level: int) -> None:
        """Puts a level in; nothing happens where it is in."""

    def discard(self, level: int) -> None:
        """Takes a level out; nothing happens where it is not in."""

    def discard_all(self, levels: NDArray[np.int64]) -> None:
        """Takes (m,) levels out; those that are not in stay out."""

    def select(self, place: int) -> int:
        """Returns a level, another one for each place, 0 <= place < len."""

    def pop(self, place: int) -> int:
        """Takes out the level that `select` returns, and returns it."""


class UnseenLevels:
    """The unseen levels, and which of them are handed out first: three sets, each within the one before.

    Args:
        new_set: makes a set of the unseen levels, of which nobody plays one.
        cap: how many slots may play a level; 0: any number.

    Attributes:
        every: all unseen levels.
        below_cap: those that fewer slots play than the cap.
        idle: those that nobody plays.
        sets: the three.
    """

    def __init__(self, new_set: Callable[[], LevelSet], cap: int) -> None:
        self._cap = cap
        self.every, self.idle = new_set(), new_set()
        self.below_cap = new_set() if cap else self.every
        self.sets = (self.every, self.below_cap, self.idle)

    def take(self, uniform: float) -> int:
        """Returns the level that a uniform number, 0 <= uniform < 1, falls on, which a slot plays from now on.

        It is one of the idle; where there is none, one below the cap; where there is none, any. There must be one.
        """
        if self.idle:
            return self.idle.pop(int(uniform * len(self.idle)))
        levels = self.below_cap or self.every
        return levels.select(int(uniform * len(levels)))

    def add(self, level: int) -> None:
        """Puts in a level that nobody plays."""
        for levels in self.sets:
            levels.add(level)

    def remove(self, level: int) -> None:
        """Takes a level out that is seen or gone; nothing happens where it is not in."""
        for levels in self.sets:
            levels.discard(level)

    def remove_all(self, levels: NDArray[np.int64]) -> None:
        """Does as `remove` for each of (m,) levels."""
        for each in self.sets:
            each.discard_all(levels)

    def played_by(self, level: int, num_slots: int) -> None:
        """Says how many slots play a level now; nothing happens where it is not in."""
        if level in self.every:
            _set(self.idle, level, inside=num_slots == 0)
            if self._cap:
                _set(self.below_cap, level, inside=num_slots < self._cap)

    def state(self) -> list[list[int]]:
        """Returns the levels of each set, in the order of their places."""
        return [[levels.select(place) for place in range(len(levels))] for levels in self.sets]

    def restore(self, state: Sequence[Iterable[int]]) -> None:
        """Takes over what `state` returned; the sets must be empty bags."""
        for levels, inside in zip(self.sets, state, strict=True):
            for level in inside:
                levels.add(level)


def _set(levels: LevelSet, level: int, *, inside: bool) -> None:
    (levels.add if inside else levels.discard)(level)


class IndexSet:
    """A set of indices out of 0..N-1, at first all of them, with selection by order in O(log N).

    A Fenwick tree of how many are out: 5 bytes an index, which take no memory before one near it goes; exact, and a
    function of the set alone, so that a restored curriculum draws what the original would have drawn.

    Args:
        num: N.
    """

    def __init__(self, num: int) -> None:
        self._size, self._last = num, num
        self._top = 1 << (num.bit_length() - 1)
        self._hold(np.zeros(num, dtype=np.uint8), np.zeros(num + 1, dtype=np.int32))

    def _hold(self, outside: NDArray[np.uint8], tree: NDArray[np.int32]) -> None:
        self._flags = outside
        self._outside, self._tree = outside.data, tree.data  # faster than arrays, one by one

    def __len__(self) -> int:
        return self._size

    def __contains__(self, index: int) -> bool:
        return not self._outside[index]

    def add(self, index: int) -> None:
        """Puts an index in; nothing happens where it is in."""
        if self._outside[index]:
            self._change(index, -1)

    def discard(self, index: int) -> None:
        """Takes an index out; nothing happens where it is not in."""
        if not self._outside[index]:
            self._change(index, 1)

    def discard_all(self, indices: NDArray[np.int64]) -> None:
        """Takes indices out; those that are not in stay out.

        Args:
            indices: (m,) ints. From about N / 256 on, the tree is built anew.
        """
        if len(indices) * REBUILD_SHARE <= self._last:
            for index in indices.tolist():
                self.discard(index)
        else:
            self._flags[indices] = 1
            before = np.zeros(self._last + 1, dtype=np.int32)
            np.cumsum(self._flags, out=before[1:])
            positions = np.arange(len(before), dtype=np.int32)
            # node i counts as many as its lowest set bit says
            self._hold(self._flags, before - before[positions & (positions - 1)])
            self._size = self._last - int(before[-1])

    def select(self, place: int) -> int:
        """Returns the index that `place` others in the set come before, 0 <= place < len."""
        tree, last = self._tree, self._last
        position, step = 0, self._top
        while step:
            further = position + step
            if further <= last and (inside := step - tree[further]) <= place:
                position = further
                place -= inside
            step >>= 1
        return position

    def pop(self, place: int) -> int:
        """Takes out the index that `select` returns, and returns it: in one pass, as the nodes above it are met."""
        tree, last = self._tree, self._last
        position, step = 0, self._top
        while step:
            further = position + step
            if further <= last:
                outside = tree[further]
                if step - outside <= place:
                    position = further
                    place -= step - outside
                else:
                    tree[further] = outside + 1
            step >>= 1
        self._outside[position] = 1
        self._size -= 1
        return position

    def _change(self, index: int, by: int) -> None:
        self._outside[index] += by
        self._size -= by
        tree, last = self._tree, self._last
        position = index + 1
        while position <= last:
            tree[position] += by
            position += position & -position


class Bag:
    """A set of ids, at first empty, in an order that its past decides; a change or a selection costs O(1).

    One to which levels are added in the order of another is that other.
    """

    def __init__(self) -> None:
        self._levels: list[int] = []
        self._place: dict[int, int] = {}  # in that list

    def __len__(self) -> int:
        return len(self._levels)

    def __contains__(self, level: int) -> bool:
        return level in self._place

    def add(self, level: int) -> None:
        """Puts a level in; nothing happens where it is in."""
        if level not in self._place:
            self._place[level] = len(self._levels)
            self._levels.append(level)

    def discard(self, level: int) -> None:
        """Takes a level out; nothing happens where it is not in."""
        place = self._place.pop(level, None)
        if place is not None:
            last = self._levels.pop()
            if last != level:
                self._levels[place] = last
                self._place[last] = place

    def discard_all(self, levels: NDArray[np.int64]) -> None:
        """Takes (m,) levels out; those that are not in stay out."""
        for level in levels.tolist():
            self.discard(level)

    def select(self, place: int) -> int:
        """Returns the level at a place, 0 <= place < len."""
        return self._levels[place]

    def pop(self, place: int) -> int:
        """Takes out the level that `select` returns, and returns it."""
        level = self._levels[place]
        self.discard(level)
        return level

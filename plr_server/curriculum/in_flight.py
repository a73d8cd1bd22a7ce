"""Who plays what: which level each slot of each holder plays, and how many slots play a level.

Used by the assigner. Bookkeeping alone: it knows neither scores nor which levels there are. No IO.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat

from plr_client.errors import InvalidInput

MAX_SLOTS = 2**17  # of one holder, that play something at once: twice as many as one request may be for
MAX_IN_FLIGHT = 2**22  # of all holders


_NOTHING: Mapping[int, int] = {}


class InFlight:
    """The levels in flight.

    Args:
        held: holder -> slot -> level, what `state` returned.

    Attributes:
        num_slots: level -> how many slots play it, 1 or more; levels that nobody plays are not in it.
    """

    def __init__(self, held: Mapping[str, Mapping[int, int]] | None = None) -> None:
        self._held = {holder: dict(levels) for holder, levels in (held or {}).items()}
        self.num_slots: Counter[int] = Counter()
        self._num = 0  # slots that play a level
        for levels in self._held.values():
            self.num_slots.update(levels.values())
            self._num += len(levels)

    def check(self, holder: str, slots: Sequence[int]) -> None:
        """Tells whether so many slots may begin to play.

        Raises:
            InvalidInput: the holder, or all together, would play with too many.
        """
        held, num = self._held.get(holder, _NOTHING), len(slots)
        if len(held) + num <= MAX_SLOTS and self._num + num <= MAX_IN_FLIGHT:
            return
        new = sum(slot not in held for slot in slots)
        if len(held) + new > MAX_SLOTS:
            expected = f"at most {MAX_SLOTS} of one client that play at once (use their numbers again)"
            raise InvalidInput("slots", expected, f"{new} more, beside {len(held)}")
        if self._num + new > MAX_IN_FLIGHT:
            expected = f"at most {MAX_IN_FLIGHT} of all clients that play at once"
            raise InvalidInput("slots", expected, f"{new} more, beside {self._num}")

    def begin(self, holder: str, slots: Sequence[int], levels: Sequence[int]) -> None:
        """Notes which levels slots play from now on; what they played before must have ended."""
        held = self._held.setdefault(holder, {})
        self._num += len(levels)
        if len(levels) == 1:  # the fast way for one
            held[slots[0]] = level = levels[0]
            self.num_slots[level] = self.num_slots.get(level, 0) + 1
        else:
            held.update(zip(slots, levels, strict=True))
            self.num_slots.update(levels)

    def end(self, holder: str, slots: Sequence[int]) -> Iterable[int]:
        """Notes that what slots played is over; those that play nothing may be among them.

        Returns:
            The levels that fewer slots play now, each once, in the order of `slots`.
        """
        held = self._held.get(holder)
        if not held:
            return ()
        if len(slots) == 1:  # the fast way for one
            level = held.pop(slots[0], None)
            if level is None:
                return ()
            self._num -= 1
            left = self.num_slots.pop(level) - 1
            if left:
                self.num_slots[level] = left
            return (level,)
        ended = list(map(held.pop, slots, repeat(None)))
        return self._fewer([level for level in ended if level is not None])

    def release(self, holder: str) -> Iterable[int]:
        """Notes that a holder is gone; returns as `end` does for all of its slots."""
        return self._fewer(list(self._held.pop(holder, {}).values()))

    def _fewer(self, ended: Sequence[int]) -> Iterable[int]:
        self._num -= len(ended)
        ended_of = Counter(ended)
        for level, num in ended_of.items():
            left = self.num_slots.pop(level) - num
            if left:
                self.num_slots[level] = left
        return ended_of

    def holds(self, holder: str) -> bool:
        """Returns whether one of the holder's slots plays a level."""
        return bool(self._held.get(holder))

    def total(self) -> int:
        """Returns how many slots play a level."""
        return self._num

    def state(self) -> dict[str, dict[int, int]]:
        """Returns holder -> slot -> level, the whole state; the caller copies it."""
        return self._held

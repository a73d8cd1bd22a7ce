"""Fallback: what is played while the server is away, by a wrapper that was told when_away="uniform".

Used by wrappers.env and wrappers.vector, which ask it before they ask the server. It never starts a thread, and never
keeps an env waiting for a server that it knows to be away: it asks for it now and then, for a short time.
"""

from __future__ import annotations

import time
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from plr_client import Assignment, InvalidInput, LevelClient, ServerUnreachable
from plr_client.address import Address
from plr_client.connection import Connection
from plr_client.keys import KeyFile

WHEN_AWAY = ("raise", "uniform")
NUM_RECENT = 256  # levels remembered, where a curriculum does not say which it has
NUM_SEEDS = 2**31  # of an unbounded space
PATIENCE_S = 0.1  # with a server that may be back, beside the time that it once took to answer
PAUSE = 20  # times that long until it is asked again: an env waits for a twentieth of its time at most


class Fallback:
    """Levels drawn uniformly from the last known space, and whether it is time for them.

    The space is what the server says of it: a range, or all 31-bit seeds. Of a list of ids, and of payloads, a client
    knows only those that it was handed: the last `NUM_RECENT` different ones.

    Args:
        address: where the server listens.
        curriculum: the name of the curriculum.
        timeout_s: seconds without a reply after which a request has failed; above 0.
        keys: the path of a key file, as of `LevelClient`.
    """

    def __init__(self, address: Address, *, curriculum: str, timeout_s: float, keys: KeyFile) -> None:
        self._address, self._curriculum, self._timeout_s, self._keys = address, curriculum, timeout_s, keys
        self._rng = np.random.default_rng()
        self._space: range | None = None
        self._recent: OrderedDict[int, Any] = OrderedDict()  # payloads by level, the one handed out last at the end
        self._patience_s: float | None = None  # None before the server was first asked for the space
        self._away = False
        self._ask_again_s = 0.0  # on the monotonic clock

    def seed(self, seed: int) -> None:
        """Begins the draws anew, as the seed of a reset says."""
        self._rng = np.random.default_rng(seed)

    def is_away(self) -> bool:
        """Returns whether the server is away still, which it is not before `left` has said so."""
        if not self._away:
            return False
        if time.monotonic() < self._ask_again_s:
            return True
        self._away = not self._ask(min(self._timeout_s, self._patience_s or PATIENCE_S))
        return self._away

    def next(
        self, client: LevelClient, k: int = 1, *, slots: Sequence[int] | None = None
    ) -> tuple[list[Assignment], bool]:
        """Returns the levels that k env slots play next, as `client` does, and whether they are to be scored.

        Raises:
            ServerUnreachable: the server is away, and no level is known.
            PlrError: as `LevelClient.next`.
        """
        if not self.is_away():
            try:
                assignments = client.next(k, slots=slots)
            except ServerUnreachable as error:
                if self._space is None and not self._recent:
                    raise
                self.left(error)
            else:
                self._note(assignments)
                return assignments, True
        return self._draw(k), False

    def left(self, error: ServerUnreachable) -> None:
        """Notes that the server does not answer, and warns of it."""
        self._away = True
        self._pause()
        warnings.warn(
            f"{error}. Until it is back, levels are drawn uniformly and not scored (when_away='uniform')", stacklevel=5
        )

    def _note(self, assignments: Iterable[Assignment]) -> None:
        """Remembers what the server handed out; with the first levels, asks it which there are."""
        if self._patience_s is None:
            self._ask(self._timeout_s)
        if self._space is None:
            for assignment in assignments:
                self._recent[assignment.level] = assignment.payload
                self._recent.move_to_end(assignment.level)
                if len(self._recent) > NUM_RECENT:
                    self._recent.popitem(last=False)

    def _draw(self, k: int) -> list[Assignment]:
        levels = list(self._recent) if self._space is None else self._space
        drawn = (levels[place] for place in self._rng.integers(len(levels), size=k).tolist())
        return [Assignment(each, is_replay=False, train=True, payload=self._recent.get(each)) for each in drawn]

    def _ask(self, timeout_s: float) -> bool:
        """Asks the server which levels there are, over a connection of its own; returns whether it answered."""
        connection = Connection(self._address, curriculum=self._curriculum, timeout_s=timeout_s, keys=self._keys)
        began_s = time.monotonic()
        try:
            curricula = connection.request("describe").result["curricula"]
        except ServerUnreachable:
            self._pause()
            return False
        self._patience_s = PATIENCE_S + time.monotonic() - began_s
        connection.close()
        self._space = _space_of(curricula.get(self._curriculum, {}).get("levels"))
        return True

    def _pause(self) -> None:
        self._ask_again_s = time.monotonic() + PAUSE * (self._patience_s or PATIENCE_S)


def fallback_of(
    when_away: str, address: Address, *, curriculum: str, timeout_s: float, keys: KeyFile
) -> Fallback | None:
    """Returns what to do where the server is away for longer than `timeout_s`; None to raise then.

    Raises:
        InvalidInput: there is no such way.
    """
    if when_away not in WHEN_AWAY:
        raise InvalidInput("when_away", f"one of {', '.join(WHEN_AWAY)}", repr(when_away))
    return None if when_away == "raise" else Fallback(address, curriculum=curriculum, timeout_s=timeout_s, keys=keys)


def _space_of(levels: object) -> range | None:
    """Returns the levels of a curriculum as it describes them; None where it does not say which they are."""
    if levels == "unbounded":
        return range(NUM_SEEDS)
    if isinstance(levels, str) and ":" in levels:
        start, stop, step = map(int, levels.split(":"))
        return range(start, stop, step)
    return None

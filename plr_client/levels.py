"""LevelClient: asks the server which levels to play next. Used by env workers and wrappers; knows nothing of training.

May be imported by wrappers and users. It imports numpy and the connection, and nothing heavier: a worker pays for no
more.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plr_client.address import Address
from plr_client.connection import Connection
from plr_client.errors import InvalidInput, NoLevels
from plr_client.keys import KeyFile
from plr_client.pending import Pending
from plr_client.protocol import (
    DEFAULT_CURRICULUM,
    MAX_LEVELS_AT_ONCE,
    MAX_LEVELS_IN_HEADER,
    MAX_PAYLOADS,
    Reply,
    shown,
    split_payloads,
    unpack_payload,
)

NO_PARENT = -1
NEVER = -1  # of `TableRows.since_played`


class Assignment(NamedTuple):
    """One level handed to one env slot.

    Attributes:
        level: the level's id; for seeds the id is the seed.
        is_replay: True where the level was drawn from the seen ones, False where it is new.
        train: whether the trainer should learn from this episode; False only under robust PLR for new levels.
        payload: what the level is, for levels that are more than a number; None for ids.
    """

    level: int
    is_replay: bool
    train: bool
    payload: Any = None


class Assignments(NamedTuple):
    """k levels handed to k env slots, as arrays: what `Assignment` is for one, without an object for each.

    Attributes:
        levels: (k,) int64, the ids.
        is_replay: (k,) bool.
        train: (k,) bool.
        payloads: k of them, for levels that are more than a number; None for ids.
    """

    levels: NDArray[np.int64]
    is_replay: NDArray[np.bool_]
    train: NDArray[np.bool_]
    payloads: list[Any] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Level:
    """A level that is more than a number.

    Attributes:
        level: its id.
        payload: what it is.
        parent: the id of the level it was made from, which may be gone; None for none.
    """

    level: int
    payload: Any
    parent: int | None


class TableRows(NamedTuple):
    """Rows of the level table, in the order of `Trainer.scores`. A level has been played where an episode of it ended.

    Attributes:
        ids: (m,) int64.
        scores: (m,) float64, 0 where unseen.
        staleness: (m,) int64, draws since the level was last drawn.
        seen: (m,) bool.
        plays: (m,) int32, how many episodes of it have been pushed since it is in the table: those that ended, of
            agents of one env each, and every score of `push_scores`.
        last_returns: (m,) float64, what the last of them returned, undiscounted; NaN where no rewards were pushed.
        since_played: (m,) int64, draws since the last of them was pushed, which its score is as old as; -1 for none.
    """

    ids: NDArray[np.int64]
    scores: NDArray[np.float64]
    staleness: NDArray[np.int64]
    seen: NDArray[np.bool_]
    plays: NDArray[np.int32]
    last_returns: NDArray[np.float64]
    since_played: NDArray[np.int64]


class LevelClient:
    """Asks for levels. The connection opens with the first request, in the process that makes it.

    With `prefetch`, up to so many levels wait in the client, so that `next` takes microseconds instead of a round trip.
    More are asked for when half of them are gone, and their reply is not waited for. The price is freshness: a level
    was chosen by the scores as they were when it was drawn, up to `prefetch` levels before it is played. A level that
    waits is in flight, and one that is over stays so until the next request. The server's stats tell how many waited
    when their clients last asked (`prefetched`), and by how many pushes the scores were behind when a level's turn came
    (`prefetch_lag_pushes`).

    Args:
        address: where the server listens; or a function that tells, asked whenever a connection is opened, for a server
            that may come back elsewhere (`wrappers.ray.Lookup`). It returns None while nobody knows.
        curriculum: the name of the curriculum, where the server has several.
        prefetch: how many levels to have ready, 0 to 4096; 0 asks when a level is needed.
        timeout_s: seconds without a reply after which a request raises; above 0.
        keys: the path of a key file, where the server asks for keys; by default what PLR_KEYS names, and "" for none.
            It is read when the connection opens.

    Raises:
        InvalidInput: the address, the name, prefetch or the timeout is not what it must be.
    """

    def __init__(
        self,
        address: Address,
        *,
        curriculum: str = DEFAULT_CURRICULUM,
        prefetch: int = 0,
        timeout_s: float = 30.0,
        keys: KeyFile = None,
    ) -> None:
        self._connection = Connection(address, curriculum=curriculum, timeout_s=timeout_s, keys=keys)
        if isinstance(prefetch, bool) or not isinstance(prefetch, int) or not 0 <= prefetch <= MAX_PAYLOADS:
            raise InvalidInput("prefetch", f"an integer from 0 to {MAX_PAYLOADS}", repr(prefetch))
        self._ahead = _Ahead(self._connection, prefetch) if prefetch else None

    @property
    def address(self) -> Address:
        """Where the server listens, as given."""
        return self._connection.address

    def next(self, k: int = 1, *, slots: ArrayLike | None = None) -> list[Assignment]:
        """Returns the levels that k env slots play next.

        Args:
            k: how many levels, 1 to 65 536; 1 to 4096 of payloads.
            slots: which of this client's env slots they are for, k distinct ints; by default 0 to k - 1. The level that
                a slot held before is over.

        Returns:
            k assignments, in the order of `slots`.

        Raises:
            InvalidInput: k or slots are not what they must be.
            NoLevels: the levels are payloads, and none has been inserted yet.
            NotAdmitted: the server asks for other keys.
            ServerUnreachable: no reply within the timeout.
        """
        if self._ahead is not None and slots is None and type(k) is int and k == 1:  # a reset of one env: the fast way
            return self._ahead.next((0,))
        check_k(k)
        chosen = None if slots is None else _slots(k, slots)
        if self._ahead is not None:
            return self._ahead.next(range(k) if chosen is None else chosen.tolist())
        return _assignments(self._connection.request("next", *_asking(k, chosen)))

    def next_arrays(self, k: int, *, slots: ArrayLike | None = None) -> Assignments:
        """Returns the levels that k env slots play next as arrays: what `next` does, for thousands of envs.

        Args:
            k: how many levels, 1 to 65 536; 1 to 4096 of payloads.
            slots: (k,) distinct ints: which of this client's env slots they are for; by default 0 to k - 1. The level
                that a slot held before is over.

        Returns:
            levels (k,) int64, is_replay (k,) bool, train (k,) bool, and for levels that are more than a number k
            payloads; all in the order of `slots`.

        Raises:
            InvalidInput, NoLevels, NotAdmitted, ServerUnreachable: as `next`.
        """
        if self._ahead is not None:
            columns = list(zip(*self.next(k, slots=slots), strict=True))
            handed = None if columns[3][0] is None else list(columns[3])
            return Assignments(np.array(columns[0]), np.array(columns[1]), np.array(columns[2]), handed)
        check_k(k)
        reply = self._connection.request("next", *_asking(k, None if slots is None else _slots(k, slots)))
        given = reply.arrays if "levels" in reply.arrays else reply.result
        levels = np.asarray(given["levels"], dtype=np.int64)
        is_replay, train = (np.asarray(given[name], dtype=bool) for name in ("is_replay", "train"))
        return Assignments(levels, is_replay, train, _payloads(reply))

    def close(self) -> None:
        """Gives back the levels in flight and closes the connection; a later request opens it anew."""
        self._connection.close()

    def __enter__(self) -> LevelClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_k(k: Any) -> None:
    """Raises InvalidInput unless so many levels can be asked for at once."""
    no_integer = type(k) is not int and (isinstance(k, bool) or not isinstance(k, int | np.integer))
    if no_integer or not 1 <= k <= MAX_LEVELS_AT_ONCE:
        raise InvalidInput("k", f"an integer from 1 to {MAX_LEVELS_AT_ONCE}", shown(k))


class _Ahead:
    """Levels drawn before they are needed.

    At the server each level is held by a slot; here slots are numbered as they are needed (tickets), so that an env
    slot may play one level while others wait for it. A ticket is used again once its level is over.

    When half of the levels are gone, one call asks for more. A later one, when a quarter is left, takes the reply if it
    has come; so no call does both, and none waits before the last level is gone.

    Args:
        connection: the client's.
        depth: how many levels to have ready, 1 or more.
    """

    def __init__(self, connection: Connection, depth: int) -> None:
        self._connection = connection
        self._depth = depth
        self._half, self._few = depth // 2, depth // 4  # levels ready
        self._start()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Ahead, (self._connection, self._depth)

    def _start(self) -> None:
        self._session = self._connection.session
        self._ready: deque[tuple[int, Assignment]] = deque()
        self._pending: tuple[Pending, list[int]] | None = None  # a request for more, and its tickets
        self._taken: deque[tuple[int, int]] = deque()  # env slot, ticket: since the last request, not yet noted below
        self._playing: dict[int, int] = {}  # env slot -> ticket
        self._over: list[int] = []  # tickets to be used again
        self._begun: list[int] = []  # tickets whose level's turn has come since the last request
        self._num_tickets = 0

    def next(self, slots: Sequence[int]) -> list[Assignment]:
        with self._connection.exclusive():
            if self._session is not self._connection.session:  # closed, or forked: what waited is not this session's
                self._start()
            ready, taken = self._ready, self._taken
            if 0 < len(ready) == self._few and self._pending is not None:
                self._fetch(wait=False)
            assignments: list[Assignment] = []
            for slot in slots:
                if not ready:
                    self._make_ready(slots[len(assignments) :])
                ticket, assignment = ready.popleft()
                taken.append((slot, ticket))
                assignments.append(assignment)
            if len(ready) <= self._half and self._pending is None:
                self._ask(self._depth - len(ready), ahead=True)
            return assignments

    def _make_ready(self, slots: Sequence[int]) -> None:
        """Makes the levels ready that were asked for ahead; where there are none, asks now for those of some slots."""
        if self._pending is not None:
            # What was refused then may be granted now, such as levels that have been inserted since.
            with contextlib.suppress(NoLevels):
                self._fetch(wait=True)
        if not self._ready:
            self._note_taken()
            self._over += [self._playing.pop(slot) for slot in slots if slot in self._playing]
            self._ask(len(slots), ahead=False)
            self._fetch(wait=True)

    def _note_taken(self) -> None:
        """Notes what was played since the last request: put off until now, so that most calls touch little memory."""
        while self._taken:
            slot, ticket = self._taken.popleft()
            if slot in self._playing:
                self._over.append(self._playing[slot])
            self._playing[slot] = ticket
            self._begun.append(ticket)

    def _ask(self, num: int, *, ahead: bool) -> None:
        self._note_taken()
        again = self._over[:num]
        tickets = again + list(range(self._num_tickets, self._num_tickets + num - len(again)))
        args, arrays = _ints({"slots": tickets, "begun": self._begun})
        args["ahead"] = ahead
        self._pending = self._connection.send("next", args, arrays), tickets
        # Not before: what could not be sent is asked for again, with the same tickets.
        del self._over[:num]
        self._num_tickets += num - len(again)
        self._begun = []

    def _fetch(self, *, wait: bool) -> None:
        """Makes the levels that were asked for ready; where they have not come it waits for them, or leaves them be."""
        assert self._pending is not None  # noqa: S101  narrows the type
        (pending, tickets), self._pending = self._pending, None
        try:
            reply = self._connection.reply(pending) if wait else self._connection.arrived(pending)
            if reply is None:
                self._pending = pending, tickets
            else:
                self._ready += zip(tickets, _assignments(reply), strict=True)
        except BaseException:
            self._over += tickets
            raise


def _slots(k: int, slots: ArrayLike) -> NDArray[Any]:
    """Returns (k,) slots as an array of ints."""
    try:
        chosen = np.asarray(slots)
    except ValueError as exc:
        raise InvalidInput("slots", f"{k} distinct ints", "lists of different lengths") from exc
    if chosen.shape != (k,):
        raise InvalidInput("slots", f"{k} slots, one for each level asked for", f"shape {chosen.shape}")
    if chosen.dtype.kind not in "iu" or len(set(chosen.tolist())) != k:
        raise InvalidInput("slots", f"{k} distinct ints", f"{chosen!s:.80}")
    return chosen


def _asking(k: int, slots: NDArray[Any] | None) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Returns args and arrays of a request for levels."""
    if slots is None:
        return {"k": int(k)}, {}
    return _ints({"slots": slots.tolist()}) if k <= MAX_LEVELS_IN_HEADER else ({}, {"slots": slots})


def _ints(named: dict[str, list[int]]) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Returns args and arrays that carry lists of ints, the long ones as arrays."""
    short = {name: ints for name, ints in named.items() if len(ints) <= MAX_LEVELS_IN_HEADER}
    return short, {name: np.array(ints) for name, ints in named.items() if name not in short}


def _assignments(reply: Reply) -> list[Assignment]:
    result = reply.result
    if not reply.arrays:  # few levels, and none that are more than a number
        return list(map(Assignment, result["levels"], result["is_replay"], result["train"]))
    names = ("levels", "is_replay", "train")
    columns = [reply.arrays[name].tolist() if "levels" in reply.arrays else result[name] for name in names]
    if (payloads := _payloads(reply)) is not None:
        columns.append(payloads)
    return list(map(Assignment, *columns))


def _payloads(reply: Reply) -> list[Any] | None:
    if "payloads" not in reply.arrays:
        return None
    return [unpack_payload(packed) for packed in split_payloads(reply.arrays)]

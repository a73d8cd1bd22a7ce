"""Sessions: which clients there are, on which connection each speaks, and what it said last.

Used by the dispatcher, which asks `admit` about every request, and by the loop, which tells it which connections are
gone. Without IO and without a clock; it knows nothing of curricula, and never applies anything.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from plr_client.errors import NotAllowed, OutOfStep, PlrError, SessionExpired, TooManySessions
from plr_client.protocol import Reply, Request, decode_reply, encode_reply

MAX_SESSIONS = 16_384
MAX_SESSIONS_PER_CONNECTION = 64  # a client of ours has one
_ANY_CONNECTION = frozenset(("hello", "goodbye"))  # that is later than the session's
MAX_ENDED = 4_096  # sessions that said goodbye, and whose late copies are known for what they are


@dataclasses.dataclass(slots=True)
class Session:
    """One client, from its hello until it says goodbye or is given up.

    Attributes:
        begun: how many sessions had been begun with this one.
        peer: the transport's name for the connection it speaks on.
        connection: the how-manieth of the session that is; 0 where it has not spoken to this run of the server.
        sequence: the highest sequence number that was applied.
        written: the highest of a request that changed something.
        position: how many commands the state had seen with that one.
        reply: the reply to `written`, repeated when that request comes again; None before there is one.
        refused: the highest of a request that could not be written down, and why: a copy of it that comes when there is
            space again is refused too, for its client has been told that it was not applied.
        waiting: curriculum -> slot -> how many pushes there had been when its level was drawn, for levels drawn ahead
            whose turn has not come.
        client: the name of the client whose key began it, and alone may speak in it; None where there are no keys.
    """

    begun: int
    peer: bytes = b""
    connection: int = 0
    sequence: int = 0
    written: int = 0
    position: int = 0
    reply: Reply | None = None
    refused: tuple[int, PlrError] | None = None
    waiting: dict[str, dict[int, int]] = dataclasses.field(default_factory=lambda: defaultdict(dict))
    client: str | None = None


class Sessions:
    """All sessions by name.

    Attributes:
        max_open: how many there may be; the loop lowers it to what the process may open.
    """

    def __init__(self) -> None:
        self.max_open = MAX_SESSIONS
        self._open: dict[str, Session] = {}
        self._names: defaultdict[bytes, set[str]] = defaultdict(set)  # peer -> its sessions
        self._ended: dict[str, None] = {}  # the oldest first
        self._num_begun = 0

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[str]:
        return iter(self._open)

    def __getitem__(self, name: str) -> Session:
        return self._open[name]

    def get(self, name: str) -> Session | None:
        """Returns an open session, or None."""
        return self._open.get(name)

    def admit(self, peer: bytes, request: Request, client: str | None = None) -> Session:
        """Returns the session of a request, which is to be applied if its number is above the session's.

        Args:
            peer: the connection it came on. A hello that says it is a later one than the session's moves the session
                there, and from then on a copy that was delayed on an earlier one comes too late.
            request: the request; a hello begins a session.
            client: the name of the client whose key the connection has; None where there are no keys.

        Raises:
            NotAllowed: the session is another client's.
            SessionExpired: there is no such session, or one to be begun has said goodbye: this is a late copy.
            TooManySessions: there are too many to begin one.
            OutOfStep: it is not the request's turn, or no longer.
        """
        name = request.session
        session = self._open.get(name)
        if session is None:
            return self._begin(peer, request, client)
        if client != session.client:
            raise NotAllowed(f"{request.op:.80}", "the key that began the session", f"that of {client!r}")
        connection, op = request.connection, request.op
        if connection != session.connection:
            if connection < session.connection:
                raise OutOfStep(op[:80], f"connection {session.connection} or a later one", f"connection {connection}")
            if op not in _ANY_CONNECTION:
                raise OutOfStep(op[:80], f"a hello first, on connection {connection}", "none")
            self._unname(session.peer, name)
            self._names[peer].add(name)
            session.peer, session.connection = peer, connection
        if request.sequence < session.sequence:
            raise OutOfStep(op[:80], f"seq {session.sequence} or more", f"seq {request.sequence}")
        if request.after > session.sequence:
            raise OutOfStep(op[:80], f"seq {request.after} first", f"seq {session.sequence} as the last")
        return session

    def replayed(self, request: Request, client: str | None = None) -> Session:
        """Returns the session of a request that was admitted when it first came; a hello begins it again.

        Args:
            request: the request.
            client: of a hello, whose it was.
        """
        session = self._open.get(request.session)
        if session is None:
            session = self._open[request.session] = self._begun(client=client)
        return session

    def state(self) -> dict[str, Any]:
        """Returns what the requests that changed something have made of the sessions, a plain value.

        open: by name, which one it is, the number and the reply of the last such request, what waits, and whose it is;
        payloads: those of all replies, each once, for many replies may hold the same; ended: names; begun: how many. On
        which connection a session speaks, and what it only asked, is not in it.
        """
        places: dict[bytes, int] = {}  # payload -> the how-manieth it is
        return {
            "open": {
                name: {
                    "begun": session.begun,
                    "written": session.written,
                    "reply": None if session.reply is None else _packed(session.reply, places),
                    "waiting": {curriculum: dict(slots) for curriculum, slots in session.waiting.items()},
                    **({} if session.client is None else {"client": session.client}),
                }
                for name, session in self._open.items()
            },
            "payloads": list(places),
            "ended": list(self._ended),
            "begun": self._num_begun,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to what `state` gave; nobody is connected."""
        self._open.clear()
        for name, kept in state["open"].items():
            session = self._open[name] = Session(kept["begun"], sequence=kept["written"], written=kept["written"])
            session.reply = None if kept["reply"] is None else _unpacked(kept["reply"], state["payloads"])
            session.waiting.update(kept["waiting"])
            session.client = kept.get("client")
        self._ended = dict.fromkeys(state["ended"])
        self._num_begun = state["begun"]

    def end(self, name: str, *, said_goodbye: bool) -> None:
        """Drops an open session; one that said goodbye cannot be begun again."""
        self._unname(self._open.pop(name).peer, name)
        if said_goodbye:
            self._ended[name] = None
            if len(self._ended) > MAX_ENDED:
                del self._ended[next(iter(self._ended))]

    def of(self, peer: bytes) -> list[str]:
        """Returns the names of the sessions that speak on a connection."""
        return list(self._names.get(peer, ()))

    def _begin(self, peer: bytes, request: Request, client: str | None) -> Session:
        if request.op != "hello" or request.session in self._ended:
            raise SessionExpired(f"{request.op:.80}", "not applied")
        if len(self._open) >= self.max_open:
            raise TooManySessions("in all", self.max_open)
        if len(self._names.get(peer, ())) >= MAX_SESSIONS_PER_CONNECTION:
            raise TooManySessions("on one connection", MAX_SESSIONS_PER_CONNECTION)
        session = self._open[request.session] = self._begun(peer, request.connection, client)
        self._names[peer].add(request.session)
        return session

    def _begun(self, peer: bytes = b"", connection: int = 0, client: str | None = None) -> Session:
        self._num_begun += 1
        return Session(self._num_begun, peer, connection, client=client)

    def _unname(self, peer: bytes, name: str) -> None:
        names = self._names[peer]
        names.discard(name)
        if not names:
            del self._names[peer]


def _packed(reply: Reply, places: dict[bytes, int]) -> list[Any]:
    """Returns a reply that can be repeated in any run of the server: its frames, and the places of its payloads.

    Args:
        reply: the reply.
        places: of the payloads of the replies before; those of this one are added.
    """
    frames = [bytes(frame) for frame in encode_reply(reply._replace(epoch=0, durable=0, position=0, payloads=None))]
    held = reply.payloads
    return [frames, None if held is None else [places.setdefault(payload, len(places)) for payload in held]]


def _unpacked(packed: list[Any], payloads: list[bytes]) -> Reply:
    frames, places = packed
    reply = decode_reply(frames)
    assert isinstance(reply, Reply)  # noqa: S101  narrows the type
    return reply if places is None else reply._replace(payloads=[payloads[place] for place in places])

"""One client's connection to the server: a lazy DEALER socket, one request under way, sent again until answered.

Used by plr_client.levels and plr_client.trainer. It knows nothing of levels or scores, never starts a thread and never
uses a socket in a process that did not open it: after a fork the child opens its own, under a session of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
import uuid
import weakref
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import zmq
from numpy.typing import NDArray

from plr_client.errors import InvalidInput, MessageTooLarge, ServerUnreachable
from plr_client.protocol import (
    MAX_FRAME_BYTES,
    Frames,
    Notice,
    Reply,
    Request,
    decode_reply,
    encode_request,
)

FIRST_ATTEMPT_S = 2.0  # an unanswered request is sent again after 2 s, 4 s, 8 s, ... on a fresh socket
HEARTBEAT_MS = 5_000  # a peer silent for three heartbeats is taken for gone by the transport
GOODBYE_LINGER_MS = 200

# A forked child keeps its parent's sockets alive and untouched for ever: closing them is the parent's business.
_inherited: list[Any] = []


@dataclasses.dataclass(slots=True)
class Pending:
    """A request under way.

    Attributes:
        sequence: its number in the session, and its id.
        frames: what is sent, and sent again.
        attempts: how often it was sent.
        sent_s: when last, on the monotonic clock.
    """

    sequence: int
    frames: Frames
    attempts: int = 0
    sent_s: float = 0.0


class Connection:
    """Requests and replies between one client and the server at `address`.

    Safe to share between threads (requests take turns) and to carry through a fork or, unopened or not, a pickle.

    Attributes:
        session: whom the server takes this client for: another after `close`, and in a forked child.

    Args:
        address: where the server listens, such as `ipc:///run/plr.sock` or `tcp://127.0.0.1:5555`.
        curriculum: the name of the curriculum that the requests are for.
        timeout_s: seconds after which a request without a reply raises `ServerUnreachable`; above 0.

    Raises:
        InvalidInput: the address is no ipc or tcp address, or the timeout is not above 0.
    """

    def __init__(self, address: str, *, curriculum: str, timeout_s: float) -> None:
        if not (isinstance(address, str) and address.startswith(("ipc://", "tcp://"))):
            raise InvalidInput("address", "ipc://PATH or tcp://HOST:PORT", repr(address))
        if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not timeout_s > 0:
            raise InvalidInput("timeout_s", "a number of seconds above 0", repr(timeout_s))
        if not (isinstance(curriculum, str) and curriculum):
            raise InvalidInput("curriculum", "the name of a curriculum", repr(curriculum))
        self.address = address
        self.curriculum = curriculum
        self.timeout_s = timeout_s
        self._start_session()

    def __getstate__(self) -> dict[str, Any]:
        return {"address": self.address, "curriculum": self.curriculum, "timeout_s": self.timeout_s}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _start_session(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self.session = uuid.uuid4().hex
        self._sequence = 0
        self._greeted = False
        self._closing_seen = False
        self._max_frame_bytes = MAX_FRAME_BYTES
        self._socket: zmq.Socket[bytes] | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None

    def request(
        self, op: str, args: Mapping[str, Any] | None = None, arrays: Mapping[str, NDArray[Any]] | None = None
    ) -> Reply:
        """Sends one request and waits for its reply; the first one of a session is preceded by a hello.

        Args:
            op: the operation.
            args: its plain arguments.
            arrays: its arrays, by name.

        Returns:
            The reply, whose `error` is None.

        Raises:
            PlrError: of the class the server raised, or `ServerUnreachable` after `timeout_s`, or `MessageTooLarge`
                before anything is sent.
        """
        with self.exclusive():
            return self.reply(self.send(op, args, arrays))

    def exclusive(self) -> AbstractContextManager[Any]:
        """Returns a context in which other threads wait: what is done in it meets one session, with nothing between."""
        if self._pid != os.getpid():
            if self._finalizer is not None and (detached := self._finalizer.detach()):
                _inherited.append(detached[2])
            self._start_session()
        return self._lock

    def send(
        self, op: str, args: Mapping[str, Any] | None = None, arrays: Mapping[str, NDArray[Any]] | None = None
    ) -> Pending:
        """Sends a request, to be finished by `reply` before the next is sent; both in `exclusive`.

        Raises:
            PlrError: as `request`, where a hello has to go first, or the request is too large.
        """
        if not self._greeted:
            hello = self.reply(self._send_numbered("hello", {"pid": self._pid}, {}))
            self._max_frame_bytes = int(hello.result["max_frame_bytes"])
            self._greeted = True
        return self._send_numbered(op, args or {}, arrays or {})

    def reply(self, pending: Pending) -> Reply:
        """Waits for the reply, and sends the request again where none comes.

        Raises:
            PlrError: as `request`; `timeout_s` counts from this call on.
        """
        started = time.monotonic()
        while (left_s := self.timeout_s - (time.monotonic() - started)) > 0:
            unanswered_s = time.monotonic() - pending.sent_s
            patience_s = FIRST_ATTEMPT_S * 2 ** (pending.attempts - 1)
            reply = self._receive(pending.sequence, min(left_s, max(0.0, patience_s - unanswered_s)))
            if reply is None and left_s > patience_s - unanswered_s:
                self._hang_up()
                self._transmit(pending)
            elif reply is not None:
                if reply.error is not None:
                    raise reply.error
                return reply
        self._hang_up()
        hint = (
            "the server said it was stopping: start it again, it is found by itself"
            if self._closing_seen
            else "is plr-server running there? (plr-server serve --bind ADDRESS)"
        )
        raise ServerUnreachable(self.address, pending.attempts, time.monotonic() - started, hint)

    def close(self) -> None:
        """Says goodbye, so that the server takes back the levels in flight, and hangs up; again it does nothing."""
        if self._pid != os.getpid():
            return
        with self._lock:
            if self._socket is None and not self._greeted:
                return
            socket = self._socket or self._open()  # after a timeout too: the server may be there and know this session
            self._sequence += 1
            socket.setsockopt(zmq.LINGER, GOODBYE_LINGER_MS)
            self._put(socket, encode_request(Request(0, self.session, self._sequence, "goodbye")))
            self._hang_up()
            self._greeted = False
            self.session = uuid.uuid4().hex

    def _send_numbered(self, op: str, args: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Pending:
        sequence = self._sequence + 1
        frames = encode_request(Request(sequence, self.session, sequence, op, args, arrays, self.curriculum))
        for name, array in arrays.items():
            if array.nbytes > self._max_frame_bytes:
                raise MessageTooLarge(name, self._max_frame_bytes, array.nbytes)
        self._sequence = sequence  # taken only by what can be sent
        pending = Pending(sequence, frames)
        self._transmit(pending)
        return pending

    def _transmit(self, pending: Pending) -> None:
        pending.attempts += 1
        pending.sent_s = time.monotonic()
        self._put(self._socket or self._open(), pending.frames)

    def _receive(self, request_id: int, within_s: float) -> Reply | None:
        """Returns the reply to a request, or None when `within_s` have passed without one."""
        socket = self._socket or self._open()
        deadline = time.monotonic() + within_s
        while socket.poll(max(0, int((deadline - time.monotonic()) * 1000) + 1)):
            reply = decode_reply(socket.recv_multipart())
            if isinstance(reply, Notice):
                self._closing_seen |= reply.notice == "closing"
            elif reply.id == request_id:
                self._closing_seen = False
                return reply
            elif reply.id is None:  # the server could not even read the id
                return reply
        return None

    @staticmethod
    def _put(socket: zmq.Socket[bytes], frames: Frames) -> None:
        with contextlib.suppress(zmq.Again):  # the queue to an absent server is full: the attempt runs out instead
            socket.send_multipart(frames, zmq.DONTWAIT)

    def _open(self) -> zmq.Socket[bytes]:
        context = zmq.Context()
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.IDENTITY, b"\x01" + uuid.uuid4().bytes)  # must not begin with a zero byte
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * HEARTBEAT_MS)
        try:
            socket.connect(self.address)
        except zmq.ZMQError as exc:
            socket.close()
            context.term()
            raise InvalidInput("address", "an address ZeroMQ can connect to", f"{self.address} ({exc})") from exc
        self._socket = socket
        self._finalizer = weakref.finalize(self, _close, context, socket, os.getpid())
        return socket

    def _hang_up(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._socket = self._finalizer = None


def _close(context: zmq.Context[Any], socket: zmq.Socket[bytes], pid: int) -> None:
    if pid == os.getpid():
        socket.close()
        context.term()
    else:
        _inherited.append((context, socket))

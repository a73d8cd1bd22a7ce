"""One client's connection to the server: a lazy DEALER socket, one request under way, sent again until answered.

Used by plr_client.levels and plr_client.trainer. It knows nothing of levels or scores, never starts a thread of its own
and never uses a socket in a process that did not open it: after a fork the child opens its own, under a session of its
own. All connections of a process share one ZeroMQ context, its threads and its descriptors.
"""

from __future__ import annotations

import contextlib
import os
import resource
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import zmq
from numpy.typing import NDArray

from plr_client.errors import (
    InvalidInput,
    MessageTooLarge,
    NotAdmitted,
    ServerUnreachable,
    SessionExpired,
    TooManyOpenFiles,
)
from plr_client.handshake import Handshake
from plr_client.keys import KeyFile, key_file, read_client_keys
from plr_client.protocol import (
    MAX_FRAME_BYTES,
    MAX_REQUEST_FRAMES,
    Frames,
    Notice,
    Reply,
    Request,
    decode_reply,
    encode_request,
)

FIRST_ATTEMPT_S = 2.0  # an unanswered request is sent again after 2 s, 4 s, 8 s, ... on a fresh socket
HEARTBEAT_MS = 5_000  # a peer silent for three heartbeats is taken for gone by the transport
GOODBYE_S = 0.2  # how long to wait for the answer to a goodbye
COPIED_BYTES = 64 * 1024  # of a frame; to send a larger one from where it lies costs less than to copy it
SPARE_FILES = 16  # that can be opened before a socket is: libzmq ends the process where it finds none

_NOW = int(zmq.DONTWAIT)  # enum members cost a microsecond each time they are joined
_NOW_AND_MORE = int(zmq.DONTWAIT | zmq.SNDMORE)
_HARMLESS_TWICE = frozenset(("next", "counters", "describe", "stats", "weights", "scores", "levels"))
_NONE: Mapping[str, Any] = {}

# Where a server listens; or what tells, asked anew whenever a socket is opened: None while nobody knows.
Address = str | Callable[[], str | None]

# A forked child keeps its parent's context and sockets alive and untouched: closing them is the parent's business.
_inherited: list[Any] = []


class _Process:
    """What the connections of this process share."""

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self.start_afresh()

    def start_afresh(self) -> None:
        """For a forked child too, where a thread that is not here may hold the parent's lock."""
        self.pid = os.getpid()  # known without asking the system at each request
        _inherited.append(self._context)
        self._context = None
        self._lock = threading.Lock()

    def socket(self) -> zmq.Socket[bytes]:
        with self._lock:
            _have_spare_files()
            if self._context is None:
                self._context = zmq.Context()
                self._context.set(zmq.MAX_SOCKETS, self._context.get(zmq.SOCKET_LIMIT))
            return self._context.socket(zmq.DEALER)


_process = _Process()
os.register_at_fork(after_in_child=_process.start_afresh)


def _have_spare_files() -> None:
    """Raises this process's soft limit of open files where it is near.

    Raises:
        TooManyOpenFiles: the hard limit is near.
    """
    opened: list[int] = []
    try:
        while len(opened) < SPARE_FILES:
            opened.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as exc:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft >= hard:
            raise TooManyOpenFiles(hard) from exc
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(2 * soft, hard), hard))
    finally:
        for file in opened:
            os.close(file)


class Pending:
    """A request under way.

    Attributes:
        request: what is asked for.
        frames: what is sent.
        attempts: how often it was sent.
        sent_s: when last, on the monotonic clock.
        renewed: whether it was sent again in a session begun anew.
    """

    __slots__ = ("attempts", "frames", "renewed", "request", "sent_s")

    def __init__(self, request: Request, frames: Frames) -> None:
        self.request = request
        self.frames = frames
        self.attempts = 0
        self.sent_s = 0.0
        self.renewed = False


class Connection:
    """Requests and replies between one client and the server at `address`.

    Safe to share between threads (requests take turns) and to carry through a fork or, unopened or not, a pickle.

    Attributes:
        session: whom the server takes this client for: another after `close`, and in a forked child.
        epoch: the run of the server's state that the session was begun in; None before.

    Args:
        address: where the server listens, such as `ipc:///run/plr.sock` or `tcp://127.0.0.1:5555`; or a function that
            tells, asked whenever a socket is opened. It returns None while nobody knows.
        curriculum: the name of the curriculum that the requests are for.
        timeout_s: seconds after which a request without a reply raises `ServerUnreachable`; above 0.
        keys: the path of a key file, read when the connection opens; None for what PLR_KEYS names, "" for none.

    Raises:
        InvalidInput: the address is no ipc or tcp address, or the timeout is not above 0, or keys is no path.
    """

    def __init__(self, address: Address, *, curriculum: str, timeout_s: float, keys: KeyFile = None) -> None:
        if not (callable(address) or (isinstance(address, str) and address.startswith(("ipc://", "tcp://")))):
            raise InvalidInput("address", "ipc://PATH or tcp://HOST:PORT", repr(address))
        if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not timeout_s > 0:
            raise InvalidInput("timeout_s", "a number of seconds above 0", repr(timeout_s))
        if not (isinstance(curriculum, str) and curriculum):
            raise InvalidInput("curriculum", "the name of a curriculum", repr(curriculum))
        if not isinstance(keys, str | os.PathLike | None):
            raise InvalidInput("keys", "the path of a key file", repr(keys))
        self.address = address
        self.curriculum = curriculum
        self.timeout_s = timeout_s
        self.keys = keys
        self._start_session()

    def __getstate__(self) -> dict[str, Any]:
        settings = ("address", "curriculum", "timeout_s", "keys")  # of keys the path: what is in it is not carried
        return {name: getattr(self, name) for name in settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _start_session(self) -> None:
        self._pid = _process.pid
        self._lock = threading.Lock()
        self.session = uuid.uuid4().hex
        self.epoch: int | None = None
        self._sequence = 0
        self._num_opened = 0
        self._greeted = False
        self._closing_seen = False
        self._max_frame_bytes = MAX_FRAME_BYTES
        self._socket: zmq.Socket[bytes] | None = None
        self._patience_ms = -1  # the socket's RCVTIMEO
        self._handshake: Handshake | None = None  # until something has come on the socket
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
        if self._pid != _process.pid:
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
            self._greet()
        return self._send_numbered(op, args or _NONE, arrays or _NONE)

    def arrived(self, pending: Pending) -> Reply | None:
        """Returns the reply to a request if it has come, and None if `reply` would have to wait for it.

        Raises:
            PlrError: of the class the server raised.
        """
        reply = self._receive(pending.request.sequence, 0.0)
        return None if reply is None else self._granted(pending, reply)

    def reply(self, pending: Pending) -> Reply:
        """Waits for the reply, and sends the request again where none comes.

        Raises:
            PlrError: as `request`; `timeout_s` counts from this call on.
        """
        started = now = time.monotonic()
        try:
            while (left_s := self.timeout_s - (now - started)) > 0:
                patience_s = FIRST_ATTEMPT_S * 2.0 ** (pending.attempts - 1) - (now - pending.sent_s)
                reply = self._receive(pending.request.sequence, max(0.0, min(left_s, patience_s)))
                if reply is not None:
                    if (granted := self._granted(pending, reply)) is not None:
                        return granted
                elif left_s > patience_s:
                    self._hang_up()
                    self._transmit(pending)
                now = time.monotonic()
        except BaseException:
            if len(pending.frames) > 1:  # interrupted, perhaps: the arrays may be the caller's own memory
                self._hang_up()
            raise
        self._hang_up()
        hint = (
            "the server said it was stopping: start it again, it is found by itself"
            if self._closing_seen
            else "is plr-server running there? (plr-server serve --bind ADDRESS)"
        )
        raise ServerUnreachable(f"{self.address}", pending.attempts, time.monotonic() - started, hint)

    def close(self) -> None:
        """Says goodbye, so that the server takes back the levels in flight, and hangs up; again it does nothing."""
        if self._pid != _process.pid:
            return
        with self._lock:
            if self._socket is None and not self._greeted:
                return
            # After a timeout too: the server may be there and know this session.
            with contextlib.suppress(NotAdmitted):  # any more
                goodbye = self._send_numbered("goodbye", _NONE, _NONE)
                self._receive(goodbye.request.sequence, GOODBYE_S)
            self._hang_up()
            self._greeted = False
            self.session = uuid.uuid4().hex
            self._sequence = self._num_opened = 0

    def _greet(self) -> None:
        hello = self.reply(self._send_numbered("hello", {"pid": self._pid}, _NONE))
        self._max_frame_bytes = int(hello.result["max_frame_bytes"])
        self.epoch = hello.epoch
        self._greeted = True

    def _granted(self, pending: Pending, reply: Reply) -> Reply | None:
        """Returns the reply, raises the error that it is, or sends the request again in a session begun anew."""
        if reply.error is None:
            return reply
        if not isinstance(reply.error, SessionExpired):
            raise reply.error
        self._renew(pending, reply)
        return None

    def _renew(self, pending: Pending, refusal: Reply) -> None:
        """Begins the session anew where the server does not know it, and sends the refused request again.

        The refused copy was not applied. An earlier copy may have been; but not to a state of another epoch.
        """
        op, attempts = pending.request.op, pending.attempts
        if op == "hello" or pending.renewed:
            assert refusal.error is not None  # noqa: S101  narrows the type
            raise refusal.error
        self._greeted = False
        if attempts > 1 and refusal.epoch == self.epoch and op not in _HARMLESS_TWICE:
            raise SessionExpired(op, f"sent {attempts} times and applied once or not at all, which is not known")
        self._greet()
        self._sequence += 1
        pending.request = pending.request._replace(sequence=self._sequence, connection=0)
        pending.attempts, pending.renewed = 0, True
        self._transmit(pending)

    def _send_numbered(self, op: str, args: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Pending:
        if self._socket is None:
            self._open()
        sequence = self._sequence + 1
        request = Request(self.session, self._num_opened, sequence, self.curriculum, op, args, arrays)
        frames = encode_request(request)
        if len(frames) > 1:  # what is in the header is small
            self._check_sizes(arrays, frames)
        self._sequence = sequence  # taken only by what can be sent
        pending = Pending(request, frames)
        self._transmit(pending)
        return pending

    def _check_sizes(self, arrays: Mapping[str, NDArray[Any]], frames: Frames) -> None:
        for name, array in arrays.items():
            if array.nbytes > self._max_frame_bytes:
                raise MessageTooLarge(name, self._max_frame_bytes, array.nbytes)
        limit = self._max_frame_bytes * MAX_REQUEST_FRAMES
        if len(frames) > MAX_REQUEST_FRAMES and (num_bytes := sum(map(len, frames))) > limit:
            raise MessageTooLarge("all arrays", limit, num_bytes)

    def _transmit(self, pending: Pending) -> None:
        socket = self._socket or self._open()
        if pending.request.connection != self._num_opened:
            pending.request = pending.request._replace(connection=self._num_opened)
            pending.frames = encode_request(pending.request)
        pending.attempts += 1
        pending.sent_s = time.monotonic()
        self._put(socket, pending.frames)

    def _receive(self, number: int, within_s: float) -> Reply | None:
        """Returns the reply to a request, or None when `within_s` have passed without one; at 0 it does not wait.

        Raises:
            NotAdmitted: the server does not let this client in.
        """
        socket = self._socket or self._open()
        deadline = time.monotonic() + within_s
        if self._handshake is not None and within_s > 0.0:
            self._await_admission(self._handshake, within_s)
            within_s = max(0.0, deadline - time.monotonic())
        while True:
            if within_s > 0.0 and (patience_ms := int(within_s * 1000) + 1) != self._patience_ms:
                socket.setsockopt(zmq.RCVTIMEO, patience_ms)
                self._patience_ms = patience_ms
            try:
                frame = socket.recv(0 if within_s > 0.0 else _NOW, copy=False)
            except zmq.Again:
                return None
            if self._handshake is not None:
                self._handshake.close()
                self._handshake = None
            frames: list[Any] = [frame.bytes]
            while frame.more:
                frame = socket.recv(copy=False)
                frames.append(frame.buffer)
            reply = decode_reply(frames)
            if isinstance(reply, Notice):
                self._closing_seen |= reply.notice == "closing"
            elif reply.id == number or reply.id is None:  # None: the server could not even read the number
                self._closing_seen = False
                return reply
            if within_s > 0.0 and (within_s := deadline - time.monotonic()) <= 0.0:
                return None

    def _await_admission(self, handshake: Handshake, within_s: float) -> None:
        """Waits until something has come on the socket, or raises NotAdmitted."""
        refusal = handshake.refusal(within_s)
        if refusal is not None:
            self._hang_up()  # libzmq would try for ever
            raise refusal

    @staticmethod
    def _put(socket: zmq.Socket[bytes], frames: Frames) -> None:
        try:
            for frame in frames[:-1]:
                socket.send(frame, _NOW_AND_MORE, copy=len(frame) < COPIED_BYTES)
            socket.send(frames[-1], _NOW, copy=len(frames[-1]) < COPIED_BYTES)
        except zmq.Again:
            pass  # the queue to an absent server is full: the attempt runs out instead

    def _open(self) -> zmq.Socket[bytes]:
        address = self.address() if callable(self.address) else self.address
        keys = key_file(self.keys)
        pair = None if keys is None else read_client_keys(keys)
        socket = _process.socket()
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.IDENTITY, b"\x01" + uuid.uuid4().bytes)  # must not begin with a zero byte
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * HEARTBEAT_MS)
        if pair is not None:
            socket.setsockopt(zmq.CURVE_SERVERKEY, pair.server)
            socket.setsockopt(zmq.CURVE_PUBLICKEY, pair.public)
            socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret)
        handshake = None
        if address is not None:  # otherwise what is sent waits in vain, and is sent again
            handshake = Handshake(socket, address, keys)
            _connect(socket, address, handshake)
        self._socket, self._handshake = socket, handshake
        self._patience_ms = -1
        self._num_opened += 1
        self._finalizer = weakref.finalize(self, _close, socket, handshake, self._pid)
        return socket

    def _hang_up(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._socket = self._handshake = self._finalizer = None


def _connect(socket: zmq.Socket[bytes], address: str, handshake: Handshake) -> None:
    if address.startswith("tcp://["):
        socket.setsockopt(zmq.IPV6, 1)
    try:
        socket.connect(address)
    except zmq.ZMQError as exc:
        handshake.close()
        socket.close()
        raise InvalidInput("address", "an address ZeroMQ can connect to", f"{address} ({exc})") from exc


def _close(socket: zmq.Socket[bytes], handshake: Handshake | None, pid: int) -> None:
    if pid == _process.pid:
        if handshake is not None:
            handshake.close()
        socket.close()
    else:
        _inherited.append((socket, handshake))

"""One client's connection to the server: a lazy DEALER socket, a clock, and the exchange that they carry out.

Used by plr_client.levels and plr_client.trainer. What to send, and when again, the exchange decides. The connection
knows nothing of levels or scores, never starts a thread of its own and never uses a socket in a process that did not
open it: after a fork the child opens its own, under a session of its own. All connections of a process share one ZeroMQ
context, its threads and its descriptors.
"""

from __future__ import annotations

import contextlib
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

from plr_client.address import Address, check_address
from plr_client.errors import InvalidInput, NotAdmitted, StateNotWritten
from plr_client.exchange import HANG_UP, MAX_KEPT_BYTES, MAX_UNDER_WAY, ONCE, Exchange
from plr_client.handshake import Handshake
from plr_client.keys import KeyFile, key_file, read_client_keys
from plr_client.pending import Pending
from plr_client.process import inherited, process
from plr_client.protocol import Frames, Notice, Reply, decode_reply

HEARTBEAT_MS = 5_000  # a peer silent for three heartbeats is taken for gone by the transport
HELLO_S = 0.2  # how long who waits for nothing else waits for the answer to a hello
GOODBYE_S = 0.2  # and to a goodbye
QUIET_S = 0.5  # of silence, after which it is looked whether the server would let this client in now
COPIED_BYTES = 64 * 1024  # of a frame; to send a larger one from where it lies costs less than to copy it
LOOK_AGAIN_S = 0.02  # what has become of a sync

_NOW = int(zmq.DONTWAIT)  # enum members cost a microsecond each time they are joined
_NOW_AND_MORE = int(zmq.DONTWAIT | zmq.SNDMORE)
_NONE: Mapping[str, Any] = {}


class Connection:
    """Requests and replies between one client and the server at `address`.

    Safe to share between threads (requests take turns) and to carry through a fork or, unopened or not, a pickle.

    Attributes:
        session: whom the server takes this client for: another after `close`, and in a forked child.

    Args:
        address: where the server listens, such as `ipc:///run/plr.sock` or `tcp://127.0.0.1:5555`; or a function that
            tells, asked whenever a socket is opened. It returns None while nobody knows.
        curriculum: the name of the curriculum that the requests are for.
        timeout_s: seconds after which a request without a reply raises `ServerUnreachable`; above 0.
        keys: the path of a key file, read when the connection opens; None for what PLR_KEYS names, "" for none.

    Raises:
        InvalidInput: no server can have the address, or the timeout is not above 0, or keys is no path.
    """

    def __init__(self, address: Address, *, curriculum: str, timeout_s: float, keys: KeyFile = None) -> None:
        if not callable(address):
            check_address(address)
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
        self._pid = process.pid
        self._lock = threading.Lock()
        self._start_exchange()
        self._socket: zmq.Socket[bytes] | None = None
        self._patience_ms = -1  # the socket's RCVTIMEO
        self._handshake: Handshake | None = None  # the socket's
        self._unsure = False  # that it lets this client in: until something has come, and again after silence
        self._finalizer: weakref.finalize[Any, Any] | None = None

    def _start_exchange(self) -> None:
        self.session = uuid.uuid4().hex
        self._exchange = Exchange(self.session, address=f"{self.address}", curriculum=self.curriculum, pid=self._pid)

    def request(self, op: str, args: Mapping[str, Any] = _NONE, arrays: Mapping[str, NDArray[Any]] = _NONE) -> Reply:
        """Sends one request and waits for its reply.

        Args:
            op: the operation.
            args: its plain arguments.
            arrays: its arrays, by name.

        Returns:
            The reply, whose `error` is None.

        Raises:
            PlrError: of the class the server raised; or `ServerUnreachable` after `timeout_s`; or `MessageTooLarge`
                before anything is sent; or of a request that was not waited for, and then nothing is sent.
        """
        with self.exclusive():
            return self.reply(self.send(op, args, arrays))

    def exclusive(self) -> AbstractContextManager[Any]:
        """Returns a context in which other threads wait: what is done in it meets one session, with nothing between."""
        if self._pid != process.pid:
            if self._finalizer is not None and (detached := self._finalizer.detach()):
                inherited.append(detached[2])
            self._start_session()
        return self._lock

    def send(
        self,
        op: str,
        args: Mapping[str, Any] = _NONE,
        arrays: Mapping[str, NDArray[Any]] = _NONE,
        *,
        waited: bool = True,
    ) -> Pending:
        """Sends a request, after all that were sent before; in `exclusive`.

        Args:
            op: the operation.
            args: its plain arguments.
            arrays: its arrays, by name.
            waited: `reply` is called for it before anything else is sent. Otherwise the arrays are copied, and what it
                raises is raised by what is called next.

        Raises:
            PlrError: as `request`, before it is sent.
        """
        exchange = self._exchange
        if exchange.errors or exchange.unanswered:
            self._make_room(MAX_UNDER_WAY)
        if exchange.kept_bytes >= MAX_KEPT_BYTES and op in ONCE:
            self._make_durable(op, MAX_KEPT_BYTES)
        pending = exchange.ask(op, args, arrays, waited)
        try:
            self._carry_out(time.monotonic())
        except BaseException:
            exchange.give_up(pending)
            raise
        return pending

    def post(self, op: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Sends a request that nobody waits for; on a fresh connection once the server has answered, or `HELLO_S` over.

        Raises:
            PlrError: as `request`, before it is sent.
        """
        with self.exclusive():
            before = self._exchange.num_connections
            pending = self.send(op, arrays=arrays, waited=False)
            if self._exchange.num_connections != before:
                self._await_greeting(pending)

    def _await_greeting(self, pending: Pending) -> None:
        """Waits for the answer to a hello, for what comes after it would stay here until the next call otherwise."""
        exchange = self._exchange
        deadline_s = time.monotonic() + HELLO_S
        try:
            while not exchange.greeted and (left_s := deadline_s - time.monotonic()) > 0.0:
                message = self._receive(left_s)
                if message is not None:
                    exchange.heard(message, time.monotonic())
                    if exchange.refused:
                        return
            self._carry_out(time.monotonic())
        except BaseException:
            exchange.give_up(pending)
            exchange.lost()
            self._hang_up()
            raise

    def arrived(self, pending: Pending) -> Reply | None:
        """Returns the reply to a request if it has come, and None if `reply` would have to wait for it.

        Raises:
            PlrError: of the class the server raised.
        """
        self._take_what_came()
        return None if pending.outcome is None else self.reply(pending)

    def reply(self, pending: Pending) -> Reply:
        """Waits for the reply to a request; in `exclusive`.

        Raises:
            PlrError: as `request`; `timeout_s` counts from this call on.
        """
        self._wait_for(pending)
        outcome = pending.outcome
        if isinstance(outcome, Reply):
            return outcome
        assert outcome is not None  # noqa: S101  narrows the type
        raise outcome

    def flush(self) -> None:
        """Waits until all requests are applied, and as durable as the server promises.

        Raises:
            PlrError: of a request that was not waited for; the others are still to be flushed.
            StateNotWritten: the server has not got everything onto its disk within `timeout_s`.
            StateRolledBack: what was on its disk is not there any more, as an earlier request was told.
        """
        with self.exclusive():
            self._make_room(1)
            if self._exchange.refused:  # nothing waits, and yet not everything is on the disk
                self.reply(self._exchange.ask("sync"))
            self._make_durable("flush", 1)

    def close(self) -> None:
        """Says goodbye, so that the server takes back the levels in flight, and hangs up; again it does nothing.

        Before that it waits for the replies that nobody has waited for.

        Raises:
            PlrError: of a request that was not waited for; it is closed nevertheless.
        """
        if self._pid != process.pid:
            return
        with self._lock:
            if self._socket is None and not (self._exchange.begun or self._exchange.unanswered):
                return
            self._exchange.give_up_waiting()  # such as for levels asked for ahead
            try:
                self._make_room(1)
            finally:
                with contextlib.suppress(NotAdmitted):  # any more
                    self._say_goodbye()
                self._hang_up()
                self._start_exchange()

    def _say_goodbye(self) -> None:
        """Says so after a timeout too: the server may be there and know this session."""
        number, frames = self._exchange.farewell()
        self._put(self._socket or self._open(), frames)
        deadline_s = time.monotonic() + GOODBYE_S
        while (left_s := deadline_s - time.monotonic()) > 0.0:
            message = self._receive(left_s)
            if message is None or (isinstance(message, Reply) and message.id == number):
                return

    def _make_room(self, most: int) -> None:
        """Waits until fewer requests than `most` are unanswered.

        Raises:
            PlrError: of one that was not waited for, or `ServerUnreachable`.
        """
        exchange = self._exchange
        self._take_what_came()
        while not exchange.errors and exchange.unanswered >= most:
            self._wait_for(exchange.oldest)
        if exchange.errors:
            raise exchange.errors.popleft()

    def _make_durable(self, op: str, most: int) -> None:
        """Waits until fewer bytes than `most` are kept to be sent again.

        Raises:
            StateNotWritten: that takes longer than `timeout_s`.
        """
        exchange = self._exchange
        deadline_s = time.monotonic() + self.timeout_s
        while exchange.kept_bytes >= most:
            self.reply(exchange.ask("sync"))
            if exchange.kept_bytes < most:
                break
            if time.monotonic() > deadline_s:
                reason = f"{exchange.kept_bytes} bytes of earlier requests are not on its disk after {self.timeout_s} s"
                raise StateNotWritten(op, reason)
            time.sleep(LOOK_AGAIN_S)

    def _wait_for(self, pending: Pending) -> None:
        """Waits for the outcome of a request; where nobody else does, an error ends the wait too."""
        exchange = self._exchange
        now_s = time.monotonic()
        exchange.expect(pending, now_s, self.timeout_s)
        try:
            while pending.outcome is None and (pending.waited or not exchange.errors):
                message = self._receive(exchange.wake_s - now_s)
                now_s = time.monotonic()
                if message is not None:
                    exchange.heard(message, now_s)
                    if pending.outcome is not None:
                        return
                self._carry_out(now_s)
        except BaseException:  # interrupted, perhaps: what is sent may be the caller's own memory
            if pending.waited:
                exchange.give_up(pending)
            exchange.lost()
            self._hang_up()
            raise

    def _take_what_came(self) -> None:
        exchange = self._exchange
        while exchange.unanswered and (message := self._receive(0.0)) is not None:
            exchange.heard(message, time.monotonic())
        self._carry_out(time.monotonic())

    def _carry_out(self, now_s: float) -> None:
        act = self._exchange.act
        try:
            while (todo := act(now_s)) is not None:
                if todo is HANG_UP:
                    self._hang_up()
                else:
                    self._put(self._socket or self._open(), todo)
        except BaseException:
            self._exchange.lost()
            raise

    def _receive(self, within_s: float) -> Reply | Notice | None:
        """Returns the next message, or None when `within_s` have passed without one; at 0 it does not wait.

        Raises:
            NotAdmitted: the server does not let this client in.
        """
        socket = self._socket
        if socket is None:
            return None
        quiet_s = within_s
        if self._unsure:
            if within_s > 0.0:
                started = time.monotonic()
                self._await_admission(within_s)
                quiet_s = within_s - (time.monotonic() - started)
        elif within_s > QUIET_S:
            quiet_s = QUIET_S
        if quiet_s > 0.0 and (patience_ms := int(quiet_s * 1000) + 1) != self._patience_ms:
            socket.setsockopt(zmq.RCVTIMEO, patience_ms)
            self._patience_ms = patience_ms
        try:
            frame = socket.recv(0 if quiet_s > 0.0 else _NOW, copy=False)
        except zmq.Again:
            if self._unsure or within_s <= QUIET_S or self._handshake is None:
                return None
            self._doubt(socket, self._handshake)
            return self._receive(within_s - QUIET_S)
        if self._unsure:
            self._be_sure()
        frames: list[Any] = [frame.bytes]
        while frame.more:
            frame = socket.recv(copy=False)
            frames.append(frame.buffer)
        return decode_reply(frames)

    def _await_admission(self, within_s: float) -> None:
        """Waits until something has come on the socket, or raises NotAdmitted."""
        assert self._handshake is not None  # noqa: S101  narrows the type
        refusal = self._handshake.refusal(within_s)
        if refusal is not None:
            self._hang_up()  # libzmq would try for ever
            raise refusal

    def _doubt(self, socket: zmq.Socket[bytes], handshake: Handshake) -> None:
        """Watches the handshakes again: another server may be in the place of the one that let this client in."""
        handshake.watch()
        self._unsure = True
        if not socket.poll(0, zmq.POLLOUT):  # libzmq was refused before, and connects no more: a fresh one is told why
            self._exchange.lost()
            self._hang_up()

    def _be_sure(self) -> None:
        assert self._handshake is not None  # noqa: S101  narrows the type
        self._handshake.close()
        self._unsure = False

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
        if address is not None:
            check_address(address)
        keys = key_file(self.keys)
        pair = None if keys is None else read_client_keys(keys)
        socket = process.socket()
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
        self._socket, self._handshake, self._unsure = socket, handshake, handshake is not None
        self._patience_ms = -1
        self._finalizer = weakref.finalize(self, _close, socket, handshake, self._pid)
        return socket

    def _hang_up(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._socket = self._handshake = self._finalizer = None
        self._unsure = False


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
    if pid == process.pid:
        if handshake is not None:
            handshake.close()
        socket.close()
    else:
        inherited.append((socket, handshake))

"""The server's socket: what it takes and holds at most, which connections there are, and whom it lets in.

Used by the loop alone. It moves frames and never reads them, knows no sessions, and owns no clock.

What waits in memory is bounded: RECEIVE_QUEUE requests of a connection, each at most four times `max_frame_bytes`;
SEND_QUEUE replies to a connection; and of the large ones among them MAX_UNREAD_BYTES_OF_ONE, in all MAX_UNREAD_BYTES. A
message whose end never comes escapes all of that, for libzmq hands over whole messages only and tells nobody of the
others: `shed` notices it by this process's memory, and hangs up on who may be sending it.

So are the connections: the server hangs up on new ones, and takes an ipc socket out of sight, before it has no file
left for the next, for then libzmq would abort it (ipc) or spin (tcp). It cannot stop listening instead: libzmq would
close every connection too.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import socket
import struct
import sys
from collections import defaultdict
from collections.abc import Callable, Container
from pathlib import Path

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from plr_client.errors import MessageTooLarge, PlrError, ProtocolError, RepliesUnread
from plr_client.protocol import (
    MAX_FRAMES,
    MAX_HEADER_BYTES,
    MAX_REQUEST_FRAMES,
    Frames,
    Notice,
    decode_reply,
)
from plr_server.serving.turns import Received

logger = logging.getLogger("plr_server")

HEARTBEAT_MS = 5_000  # a peer silent for three heartbeats is gone
RECEIVE_QUEUE = 4  # what a client of ours has under way beside, the transport holds back there
SEND_QUEUE = 32  # further messages to a peer that does not read are dropped
LARGE_BYTES = 64 * 1024  # of a frame: it is sent from where it lies, and counted until it has gone
MAX_UNREAD_BYTES_OF_ONE = 64 * 1024 * 1024
MAX_UNREAD_BYTES = 1024 * 1024 * 1024
# Of requests that are not whole, or not read yet: four of the largest pushes that there are (MAX_STEPS, MAX_LOGITS) may
# arrive at one instant.
MAX_HELD_BYTES = 1024 * 1024 * 1024
MAX_BACKLOG = 100  # connections that wait to be accepted
MAX_SPARE_FILES = 256  # connections that may come before the loop notices; fewer where few may be open at all
_EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED
_MONITOR = "inproc://monitor"
_AT_ONCE = struct.pack("ii", 1, 0)  # a linger of 0 s
_ZAP = "inproc://zeromq.zap.01"  # where libzmq asks whether a key may connect (RFC 27)
CURVE_BYTES = 33  # that encryption adds to a frame
_NOW, _MORE = int(zmq.DONTWAIT), int(zmq.SNDMORE)  # enum members cost a microsecond each time they are joined
_NOW_AND_MORE = _NOW | _MORE


class Wire:
    """A ROUTER socket and what watches it.

    Attributes:
        router: to be bound, then read by `receive` alone.
        monitor: readable when connections have come or gone.
        zap: readable when somebody asks to be let in; None where there are no keys.
        admitted: the public keys that may connect.

    Args:
        max_frame_bytes: the largest frame taken; the transport drops who sends more.
        secret: the server's secret key in Z85, where it has one: then whoever has none may not connect.
    """

    def __init__(self, max_frame_bytes: int, secret: bytes | None = None) -> None:
        self._max_request_bytes = MAX_REQUEST_FRAMES * max_frame_bytes
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.router = self._context.socket(zmq.ROUTER)
        self.router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.router.setsockopt(zmq.RCVHWM, RECEIVE_QUEUE)
        self.router.setsockopt(zmq.SNDHWM, SEND_QUEUE)
        self.router.setsockopt(zmq.MAXMSGSIZE, max_frame_bytes)
        self.router.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        self.router.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * HEARTBEAT_MS)
        self.zap: zmq.Socket[bytes] | None = None
        self.admitted: Container[str] = ()
        if secret is not None:
            self.zap = self._context.socket(zmq.REP)
            self.zap.bind(_ZAP)
            self.router.setsockopt(zmq.CURVE_SERVER, 1)
            self.router.setsockopt(zmq.CURVE_SECRETKEY, secret)
            self.router.setsockopt(zmq.ZAP_DOMAIN, b"plr")
            self.router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without `zap` nobody gets in, rather than everybody
            self.router.setsockopt(zmq.MAXMSGSIZE, max_frame_bytes + CURVE_BYTES)
        self.router.monitor(_MONITOR, _EVENTS)
        self.monitor = self._context.socket(zmq.PAIR)
        self.monitor.setsockopt(zmq.RCVHWM, 0)  # libzmq waits for room with a lock held
        self.monitor.connect(_MONITOR)
        self._peers: defaultdict[int, set[bytes]] = defaultdict(set)  # file of a connection -> who spoke on it
        self._known: set[bytes] = set()  # all of them
        self._connections: set[int] = set()  # files
        self._left: set[bytes] = set()  # gone before a reply: their connections may have closed before they were met
        self._unread: dict[bytes, list[tuple[zmq.MessageTracker, int]]] = {}  # large frames on their way, and bytes
        self._memory = _memory_file()  # kept open: `shed` must not need a file where none is left
        self._calm_bytes = _resident_bytes(
            self._memory
        )  # this process's memory when it held least, since `shed` last hung up
        self._heard: set[bytes] | None = None  # who has finished a message since; None while there is no need to know
        self._max_connections, self._spare_files = sys.maxsize, 0
        self._door: Path | None = None  # an ipc socket
        self._shut = False

    def take_files(self) -> None:
        """Raises the soft limit of open files, and bounds connections by it; to be called before `router` is bound."""
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        lowest = os.dup(self.monitor.fileno())  # the lowest that is free, so about as many are open
        os.close(lowest)
        self._spare_files = min(MAX_SPARE_FILES, hard // 4)
        self._max_connections = max(1, hard - lowest - self._spare_files)
        self.router.setsockopt(zmq.BACKLOG, max(1, min(MAX_BACKLOG, self._spare_files // 4)))

    def guards(self, address: str) -> None:
        """Takes an ipc socket out of sight while there are too many connections; a tcp port stays open."""
        if address.startswith("ipc://"):
            self._door = Path(address.removeprefix("ipc://"))

    def close(self, linger_ms: int = 0) -> None:
        """Closes everything; again it does nothing."""
        self._guard_door(0)
        if not self.router.closed:
            self.router.disable_monitor()
            self.monitor.close(0)
            self.router.close(linger_ms)
            if self.zap is not None:
                self.zap.close(0)
            if self._memory is not None:
                os.close(self._memory)
        self._context.term()

    def receive(self) -> Received | None:
        """Returns the next request without waiting for one.

        Returns:
            Who sent it, with which public key (None where there are no keys), its frames, and why it is to be refused
            unread, if it is; None where there is none.
        """
        try:
            peer = self.router.recv(_NOW)
        except zmq.Again:
            return None
        frame = self.router.recv(copy=False)
        if self._heard is not None:
            self._heard.add(peer)
        refusal = None if peer in self._known else self._meet(peer, frame)
        # Asked of each message: who connects may name its connection as another was named.
        key = None if self.zap is None else str(frame.get("User-Id"))
        frames: Frames = [frame.bytes if len(frame) <= MAX_HEADER_BYTES else frame.buffer]
        if not frame.more:
            return Received(peer, key, frames, refusal)
        num_frames, num_bytes = 1, len(frame)
        while frame.more:
            frame = self.router.recv(copy=False)
            num_frames += 1
            num_bytes += len(frame)
            if num_frames <= MAX_FRAMES and num_bytes <= self._max_request_bytes:
                frames.append(frame.buffer)
            else:
                del frames[1:]
        if num_frames > MAX_FRAMES:
            refusal = MessageTooLarge("frames", MAX_FRAMES, num_frames)
        elif num_bytes > self._max_request_bytes:
            refusal = MessageTooLarge("all arrays", self._max_request_bytes, num_bytes)
        return Received(peer, key, frames, refusal)

    def _meet(self, peer: bytes, frame: zmq.Frame) -> PlrError | None:
        """Notes on which connection a peer speaks; returns why nobody who speaks like that is served, if so."""
        try:
            file = int(frame.get(zmq.SRCFD))
        except zmq.ZMQError:  # libzmq understands such peers, but tells nothing of them; with keys it lets none in
            return ProtocolError("transport: expected ZMTP 3 (libzmq 4.0 or newer), got an older one")
        self._peers[file].add(peer)
        self._known.add(peer)
        return None

    def send(self, peer: bytes, frames: Frames) -> bool:
        """Sends without waiting; False where the peer is not connected. Who does not read gets no more."""
        try:
            if not (self._has_room(peer) or self._has_room(peer)):
                return True
        except zmq.ZMQError as exc:
            if exc.errno == zmq.EHOSTUNREACH:
                return False
            raise
        last = len(frames) - 1
        for i, frame in enumerate(frames):
            flags = _MORE if i < last else 0
            if len(frame) < LARGE_BYTES:
                self.router.send(frame, flags)
            else:
                tracker = self.router.send(frame, flags, copy=False, track=True)
                self._unread.setdefault(peer, []).append((tracker, len(frame)))
        return True

    def _has_room(self, peer: bytes) -> bool:
        """Begins a message to a peer; False where its queue is full, or was when libzmq last looked."""
        try:
            self.router.send(peer, _NOW_AND_MORE)
        except zmq.Again:
            self.router.getsockopt(zmq.EVENTS)  # has libzmq look what the peer has read: it does so rarely by itself
            return False
        return True

    def send_reply(self, peer: bytes, frames: Frames, refusal: Callable[[int | None, PlrError], Frames]) -> None:
        """Sends a reply, or in its place a refusal where too much waits already for this peer or for all."""
        if self._unread and len(frames) > 1 and (num_bytes := sum(map(len, frames))) >= LARGE_BYTES:
            error = self._over_budget(peer, num_bytes)
            if error is not None:
                reply = decode_reply(frames)
                frames = refusal(None if isinstance(reply, Notice) else reply.id, error)
        if not self.send(peer, frames):
            logger.debug("a peer left before its reply")
            self._left.add(peer)

    def closed_peers(self) -> list[bytes]:
        """Returns who spoke on the connections that have closed since the last call, or was gone before a reply."""
        closed = list(self._left)
        for spoke in self._peers.values() if closed else ():
            spoke.difference_update(self._left)
        self._left.clear()
        while self.monitor.poll(0):
            message = recv_monitor_message(self.monitor)
            event, file = message["event"], message["value"]
            if event == zmq.EVENT_DISCONNECTED:
                self._connections.discard(file)
                closed += self._peers.pop(file, ())
            else:
                self._connections.add(file)
                if len(self._connections) > self._max_connections:
                    self._hang_up(file)
        self._known.difference_update(closed)
        return closed

    def shed(self) -> bool:
        """Hangs up on who may be sending a message without an end, where more is held than may be.

        Who sends one cannot finish another on its connection meanwhile. So the first call that finds too much has it
        noted who does, and the second, soon after, hangs up on all others: on those who were silent too, which costs
        them nothing, for they connect again. Call it after `closed_peers`.

        Returns:
            Whether to call it again soon.
        """
        resident = _resident_bytes(self._memory)
        self._calm_bytes = min(self._calm_bytes, resident)
        grown = resident - self._calm_bytes
        if grown <= MAX_HELD_BYTES + self._unread_bytes():
            self._heard = None
            return False
        if self._heard is None:
            self._heard = set()
            return True
        silent = [file for file in self._connections if self._heard.isdisjoint(self._peers.get(file, ()))]
        logger.warning(
            "%d MB more than before, as from messages without an end: hanging up on the %d of %d connections that have "
            "finished none of late; clients connect again by themselves",
            grown // 1_000_000,
            len(silent),
            len(self._connections),
        )
        for file in silent:
            self._hang_up(file)
        self._heard = None
        self._calm_bytes = resident  # where it is the curricula that have grown, this is what they take from now on
        return False

    def answer_zap(self) -> None:
        """Lets those in that have a key that is admitted, and tells the others that it is not."""
        while self.zap is not None:
            try:
                version, number, *_, key = self.zap.recv_multipart(_NOW)
            except zmq.Again:
                return
            name = z85.encode(key)
            code, text = (b"200", b"OK") if name.decode() in self.admitted else (b"400", b"unknown key")
            self.zap.send_multipart([version, number, code, text, name, b""])

    def knows(self, peer: bytes) -> bool:
        """Returns whether `closed_peers` will tell of a peer."""
        return peer in self._known

    def crowded(self) -> bool:
        """Returns whether files are so short that no client should be taken on."""
        num = len(self._connections)
        self._guard_door(num)
        return num >= self._max_connections - self._spare_files // 2

    def _guard_door(self, num: int) -> None:
        """Takes the ipc socket out of sight where so many connections are too many, and puts it back when they go."""
        full, some_left = self._max_connections, self._max_connections - self._spare_files // 4
        if self._door is None or (self._shut and num >= some_left) or (not self._shut and num < full):
            return
        away = self._door.with_name(self._door.name + ".full")
        self._shut = not self._shut
        with contextlib.suppress(FileNotFoundError):  # somebody has cleaned up
            if self._shut:
                logger.warning("%d connections: taking no more before some close, for want of open files", num)
                self._door.rename(away)
            else:
                away.rename(self._door)

    def _hang_up(self, file: int) -> None:
        with contextlib.suppress(OSError):
            copy = os.dup(file)
            try:
                connection = socket.socket(fileno=copy)
            except OSError:  # libzmq has closed it meanwhile, and the number is some other file's
                os.close(copy)
                return
            with connection:
                # What is on its way is not waited for.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
                connection.shutdown(socket.SHUT_RDWR)  # libzmq, whose file it is, sees that and closes it

    def _over_budget(self, peer: bytes, num_bytes: int) -> PlrError | None:
        """Returns the refusal of one more large reply, if that has to be."""
        in_all = self._unread_bytes()
        of_one = sum(size for _, size in self._unread.get(peer, ()))
        if of_one and of_one + num_bytes > MAX_UNREAD_BYTES_OF_ONE:
            return RepliesUnread("by one client", MAX_UNREAD_BYTES_OF_ONE)
        if in_all and in_all + num_bytes > MAX_UNREAD_BYTES:
            return RepliesUnread("by all clients", MAX_UNREAD_BYTES)
        return None

    def _unread_bytes(self) -> int:
        """Returns how many bytes of large replies are on their way; what has gone meanwhile counts no more."""
        for each, frames in list(self._unread.items()):
            frames[:] = [(tracker, size) for tracker, size in frames if not tracker.done]
            if not frames:
                del self._unread[each]
        return sum(size for frames in self._unread.values() for _, size in frames)


def _memory_file() -> int | None:
    """Returns the file that tells the memory of this process; None where the system has none."""
    try:
        return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None


def _resident_bytes(file: int | None) -> int:
    """Returns the memory of this process; 0 where it is not known."""
    return 0 if file is None else int(os.pread(file, 256, 0).split()[1]) * resource.getpagesize()

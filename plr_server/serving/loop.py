"""The ZeroMQ loop around the curricula: receives, has the dispatcher decide, sends; watches for peers that vanish.

Single-threaded: one request after the other. It owns the socket, the signals and the clock, and none of the
mathematics. Used by the command line and, through it, by `plr_server.launch`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from plr_client.errors import ConfigError
from plr_client.protocol import MAX_FRAME_BYTES, MAX_HEADER_BYTES, encode_notice
from plr_server.curriculum.state_machine import Curriculum
from plr_server.serving.dispatch import Dispatcher
from plr_server.serving.endpoint import beyond_this_machine, listening

logger = logging.getLogger("plr_server")

HEARTBEAT_MS = 5_000  # a peer silent for three heartbeats is gone
SEND_QUEUE = 64  # messages that wait for a peer that does not read; further ones are dropped
BATCH = 64  # requests between two looks at signals and the clock
TICK_MS = 500
SWEEP_AFTER_S = (0.05, 1.0)  # after a disconnect: soon, and once more for what the transport had not noticed yet
FORGET_EVERY_S = 3_600.0  # how often sessions whose peer has gone are dropped, with what was kept for their return
CLOSING_LINGER_MS = 500


def serve(
    curricula: Mapping[str, Curriculum],
    address: str,
    *,
    ready: Callable[[str], None],
    insecure: bool = False,
    allow_pickle: bool = False,
    max_frame_bytes: int = MAX_FRAME_BYTES,
    parent_pid: int | None = None,
) -> None:
    """Serves curricula until SIGINT or SIGTERM, then tells the clients and returns. Call it from the main thread.

    Args:
        curricula: what to serve, by the name that clients ask for.
        address: `ipc://PATH` or `tcp://HOST:PORT`, port 0 for a free one.
        ready: called with the address once clients can connect.
        insecure: allow a tcp address beyond loopback.
        allow_pickle: take score functions from clients, who can then run code in this process.
        max_frame_bytes: the largest frame taken from a client, in bytes; the transport drops who sends more.
        parent_pid: stop also when this process is no longer the parent.

    Raises:
        ConfigError: the address is not one that may be served, or not with `allow_pickle`; or `max_frame_bytes` would
            not let a header through.
        AddressTaken: something already listens there.
        ServerStartError: the address cannot be bound for another reason.
    """
    if max_frame_bytes < MAX_HEADER_BYTES:
        raise ConfigError("max_frame_bytes", f"an integer, {MAX_HEADER_BYTES} or more", str(max_frame_bytes))
    if allow_pickle and beyond_this_machine(address):
        expected = "an ipc or loopback address: whoever reaches the server could run code in it"
        raise ConfigError("allow_pickle", expected, address)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.LINGER, CLOSING_LINGER_MS)
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    router.setsockopt(zmq.SNDHWM, SEND_QUEUE)
    router.setsockopt(zmq.MAXMSGSIZE, max_frame_bytes)
    router.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    router.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * HEARTBEAT_MS)
    monitor = router.get_monitor_socket(zmq.EVENT_DISCONNECTED)

    with contextlib.ExitStack() as stack:
        stack.callback(_close, context, router, monitor)
        stop = stack.enter_context(_stop_signals())
        bound = stack.enter_context(listening(router, address, insecure=insecure))
        stack.callback(_close, context, router, monitor)  # before giving up the address: it unlinks what is there
        dispatcher = Dispatcher(curricula, max_frame_bytes=max_frame_bytes, allow_pickle=allow_pickle)
        loop = _Loop(dispatcher, router, monitor, stop)
        ready(bound)
        loop.run(parent_pid)
        logger.info("stopping: telling %d sessions", len(loop.dispatcher.sessions))
        loop.tell_closing()


def _close(context: zmq.Context[zmq.Socket[bytes]], router: zmq.Socket[bytes], monitor: zmq.Socket[bytes]) -> None:
    if not router.closed:
        router.disable_monitor()
        monitor.close()
        router.close()
    context.term()


class _Loop:
    def __init__(
        self, dispatcher: Dispatcher, router: zmq.Socket[bytes], monitor: zmq.Socket[bytes], stop: socket.socket
    ) -> None:
        self.dispatcher = dispatcher
        self._router, self._monitor, self._stop = router, monitor, stop
        self._sweeps_s: list[float] = []  # when to look for sessions whose peer has gone
        self._forget_s = time.monotonic() + FORGET_EVERY_S

    def run(self, parent_pid: int | None) -> None:
        poller = zmq.Poller()
        for source in (self._router, self._monitor, self._stop):
            poller.register(source, zmq.POLLIN)
        while True:
            events = dict(poller.poll(self._patience_ms()))
            if self._stop.fileno() in events or (parent_pid is not None and os.getppid() != parent_pid):
                return
            if self._router in events:
                self._answer_some()
            if self._monitor in events:
                self._note_disconnects()
            self._look_after_sessions()

    def tell_closing(self) -> None:
        """Tells every client that the server is stopping."""
        for session in self.dispatcher.sessions.values():
            self._send(session.peer, encode_notice("closing"))

    def _patience_ms(self) -> int:
        if not self._sweeps_s:
            return TICK_MS
        return min(TICK_MS, max(0, int(1000 * (self._sweeps_s[0] - time.monotonic()))) + 1)

    def _answer_some(self) -> None:
        for _ in range(BATCH):
            try:
                peer, *frames = self._router.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            reply = self.dispatcher.answer(peer, frames)
            if reply is not None and not self._send(peer, reply):
                logger.debug("a peer left before its reply")

    def _send(self, peer: bytes, frames: list[Any]) -> bool:
        """Sends without waiting; False where the peer is not connected. Who does not read its replies gets none."""
        try:
            self._router.send_multipart([peer, *frames], zmq.DONTWAIT)
        except zmq.Again:
            return True
        except zmq.ZMQError as exc:
            if exc.errno == zmq.EHOSTUNREACH:
                return False
            raise
        return True

    def _note_disconnects(self) -> None:
        with contextlib.suppress(zmq.Again):
            while True:
                recv_monitor_message(self._monitor, zmq.DONTWAIT)
        now_s = time.monotonic()
        soon_s, later_s = (now_s + after_s for after_s in SWEEP_AFTER_S)
        self._sweeps_s = [min([*self._sweeps_s, soon_s]), later_s]  # under steady coming and going it must come too

    def _look_after_sessions(self) -> None:
        now_s = time.monotonic()
        if self._sweeps_s and self._sweeps_s[0] <= now_s:
            self._sweeps_s.pop(0)
            for name, session in self.dispatcher.sessions.items():
                if self.dispatcher.holds(name) and not self._send(session.peer, encode_notice("ping")):
                    logger.info("session %s is gone: its levels are no longer in flight", name)
                    self.dispatcher.release(name)
        if self._forget_s <= now_s:
            self._forget_s = now_s + FORGET_EVERY_S
            for name, session in list(self.dispatcher.sessions.items()):
                if not self._send(session.peer, encode_notice("ping")):
                    self.dispatcher.forget(name)


@contextlib.contextmanager
def _stop_signals() -> Iterator[socket.socket]:
    """Yields a socket that becomes readable when SIGINT or SIGTERM arrives."""
    read, write = socket.socketpair()
    write.setblocking(False)
    wakeup = signal.set_wakeup_fd(write.fileno())
    handlers = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield read
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        read.close()
        write.close()

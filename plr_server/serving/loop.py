"""The ZeroMQ loop around the curricula: receives, has the dispatcher decide, sends; watches for peers that vanish.

Single-threaded: one request after the other. It owns the socket, the signals, the folder of keys and the clock, and
none of the mathematics. Used by the command line and, through it, by `plr_server.launch`.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import os
import secrets
import select
import signal
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from plr_client.errors import ConfigError, PlrError, counted
from plr_client.protocol import MAX_FRAME_BYTES, MAX_HEADER_BYTES, Frames, encode_notice, request_id
from plr_server.curriculum.state_machine import Curriculum
from plr_server.durability.state_dir import StateDir
from plr_server.serving.dispatch import Dispatcher
from plr_server.serving.endpoint import beyond_this_machine, listening
from plr_server.serving.keys import read_keys
from plr_server.serving.restart import restart
from plr_server.serving.roles import Client
from plr_server.serving.sessions import MAX_SESSIONS
from plr_server.serving.turns import Received, Turns
from plr_server.serving.wire import Wire

logger = logging.getLogger("plr_server")

BATCH = 64  # requests between two looks at signals and the clock
SLICE_S = 0.005  # for large requests, before it is looked for small ones again
TICK_S = 0.5
LOOK_AGAIN_S = 0.1  # where memory has grown, to see who is still there
LOOK_AFTER_S = (0.05, 1.0)  # after a connection has closed: soon, and once more for what the transport saw late
RETURN_WITHIN_S = 60.0  # how long what a vanished client has pooled waits for its return
# The same for clients of the run before: who has connected anew, and plays a long episode, has not said who it is.
AFTER_RESTART_S = 3600.0
CLOSING_LINGER_MS = 500


def serve(
    curricula: Mapping[str, Curriculum],
    address: str,
    *,
    ready: Callable[[str], None],
    keys: Path | None = None,
    insecure: bool = False,
    allow_pickle: bool = False,
    max_frame_bytes: int = MAX_FRAME_BYTES,
    parent_pid: int | None = None,
    log: StateDir | None = None,
) -> None:
    """Serves curricula until SIGINT or SIGTERM, then tells the clients and returns. Call it from the main thread.

    With keys, SIGHUP has the list of clients read again: who is not in it any more is refused from then on. The soft
    limit of open files is raised to the hard one.

    Args:
        curricula: what to serve, by the name that clients ask for.
        address: `ipc://PATH` or `tcp://HOST:PORT`, port 0 for a free one.
        ready: called with the address once clients can connect.
        keys: a folder of keys (`plr_server.serving.keys`): clients need one of them, and may do what its role may.
        insecure: allow a tcp address beyond loopback without keys.
        allow_pickle: take score functions from clients, with keys from operators alone, who can then run code in this
            process.
        max_frame_bytes: the largest frame taken from a client, in bytes; the transport drops who sends more. A request
            has at most four times that in all.
        parent_pid: stop also when this process is no longer the parent.
        log: the folder that the state lives in; it is closed at the end. Without one, it lives in memory.

    Raises:
        ConfigError: the address is not one that may be served, or not with `allow_pickle`; or the keys cannot be read;
            or `max_frame_bytes` would not let a header through; or the folder is of another configuration.
        StateDiverged, PickleRefused: the folder's state cannot be gone on with here (`restart`).
        StateDirTaken: another server has taken the folder over meanwhile; clients hear nothing, and find that one.
        AddressTaken: something already listens there.
        ServerStartError: the address cannot be bound for another reason.
    """
    if max_frame_bytes < MAX_HEADER_BYTES:
        raise ConfigError("max_frame_bytes", f"an integer, {MAX_HEADER_BYTES} or more", str(max_frame_bytes))
    if allow_pickle and keys is None and beyond_this_machine(address):
        expected = "an ipc or loopback address, or keys: whoever reaches the server could run code in it"
        raise ConfigError("allow_pickle", expected, address)
    pair = None if keys is None else read_keys(keys)
    epoch = secrets.randbits(63)
    dispatcher = Dispatcher(curricula, max_frame_bytes=max_frame_bytes, epoch=epoch, allow_pickle=allow_pickle)
    with contextlib.ExitStack() as stack:
        # A client may send any NaN; numpy warns of some where they become float64, before they are refused.
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "invalid value encountered in cast", RuntimeWarning)
        if log is not None:
            stack.callback(log.close)
            restart(dispatcher, log)
        wire = Wire(max_frame_bytes, None if pair is None else pair.secret)
        stack.callback(wire.close)
        wire.take_files()
        told = stack.enter_context(_signals(*(() if keys is None else (signal.SIGHUP,))))
        bound = stack.enter_context(listening(wire.router, address, insecure=insecure or keys is not None))
        stack.callback(wire.close, CLOSING_LINGER_MS)  # before giving up the address: it unlinks what is there
        wire.guards(bound)
        loop = _Loop(dispatcher, wire, told, log, keys)
        if pair is not None:
            loop.admit(pair.clients)
        ready(bound)
        loop.run(parent_pid)
        logger.info("stopping: telling %s", counted(len(dispatcher.sessions), "session"))
        loop.tell_closing()


class _Loop:
    def __init__(
        self,
        dispatcher: Dispatcher,
        wire: Wire,
        told: socket.socket,
        log: StateDir | None = None,
        keys: Path | None = None,
    ) -> None:
        self.dispatcher = dispatcher
        self._wire, self._told, self._log, self._keys = wire, told, log, keys
        self._turns = Turns()
        self._due: list[tuple[float, int, Callable[[], None]]] = []  # a heap of what to do when
        self._num_due = 0
        for name in dispatcher.sessions:  # of the run before: who is still there comes back
            self._after(AFTER_RESTART_S, partial(self._forget, name, dispatcher.sessions[name].peer))

    def run(self, parent_pid: int | None) -> None:
        wire, told = self._wire, self._told.fileno()
        router = wire.router.FD
        poll = select.poll()
        for file in (router, wire.monitor.FD, told, *(() if wire.zap is None else (wire.zap.FD,))):
            poll.register(file, select.POLLIN)
        alone = [(router, select.POLLIN)]
        look_s = time.monotonic()
        while True:
            # A socket's file tells of what comes after the socket was found empty: so each is read until it is.
            none_left, now_s = self._answer_some(), time.monotonic()
            files = poll.poll(max(0, int(1000 * (look_s - now_s)) + 1) if none_left else 0)
            if files == alone and now_s < look_s:
                continue  # requests and nothing else
            ready = {file for file, _ in files}
            if (told in ready and self._told_to_stop()) or (parent_pid is not None and os.getppid() != parent_pid):
                return
            wire.answer_zap()
            self._note_closed()
            grown = wire.shed()
            self._do_what_is_due()
            if self._log is not None:
                self._log.look_after()
            look_s = time.monotonic() + (LOOK_AGAIN_S if grown else TICK_S)
            if self._due:
                look_s = min(look_s, self._due[0][0])

    def admit(self, clients: Mapping[str, Client]) -> None:
        """Lets these clients connect and ask, and nobody else; whoever else there is is forgotten."""
        self._wire.admitted = self.dispatcher.clients = clients
        names = {client.name for client in clients.values()}
        sessions = self.dispatcher.sessions
        for name in [name for name in sessions if sessions[name].client not in names]:
            logger.info("session %r is of a client that has no key any more: it is forgotten", name)
            self.dispatcher.forget(name)

    def tell_closing(self) -> None:
        """Tells every client that the server is stopping."""
        sessions = self.dispatcher.sessions
        for name in sessions:
            self._wire.send(sessions[name].peer, encode_notice("closing"))

    def _told_to_stop(self) -> bool:
        """Reads which signals came; where they only ask for that, reads the list of clients again."""
        if self._keys is None or set(self._told.recv(BATCH)) != {signal.SIGHUP}:
            return True
        try:
            self.admit(read_keys(self._keys).clients)
        except PlrError as error:
            logger.error("the list of clients stays as it was: %s", error)  # noqa: TRY400
        else:
            logger.info("the list of clients was read again")
        return False

    def _after(self, seconds: float, do: Callable[[], None]) -> None:
        self._num_due += 1
        heapq.heappush(self._due, (time.monotonic() + seconds, self._num_due, do))

    def _do_what_is_due(self) -> None:
        while self._due and self._due[0][0] <= time.monotonic():
            heapq.heappop(self._due)[2]()
        sessions = self.dispatcher.sessions
        sessions.max_open = len(sessions) if self._wire.crowded() else MAX_SESSIONS

    def _answer_some(self) -> bool:
        """Answers a batch of requests, and of those that are put off some; returns whether none was left.

        Nobody knows that where something was sent after the socket was found empty: its file may not tell what has come
        meanwhile. Where replies have to wait for the disk, all of the batch wait for it together.
        """
        wire, turns, log = self._wire, self._turns, self._log
        held: list[tuple[bytes, Frames]] | None = [] if log is not None and log.holds_replies else None
        received = None
        for _ in range(BATCH):
            if turns.full:
                break
            received = wire.receive()
            if received is None:
                break
            if not turns.put_off(received):
                self._answer(received, held)
                if held and len(held[-1][1]) > 1:  # it has arrays: of such replies only one is held
                    break
        none_left = received is None and not (turns or held)
        until_s = time.monotonic() + SLICE_S if turns else 0.0
        while turns:
            self._answer(turns.next(), held)
            if time.monotonic() > until_s:
                break
        if log is None or log.commit():  # who hears nothing asks again, and by then it may be on the disk
            for peer, reply in held or ():
                wire.send_reply(peer, reply, self.dispatcher.refusal)
        return none_left

    def _answer(self, received: Received, held: list[tuple[bytes, Frames]] | None) -> None:
        """Answers one request, or has its reply held."""
        peer, key, frames, refusal = received
        dispatcher = self.dispatcher
        if refusal is None:
            began_ns = time.perf_counter_ns()
            reply = dispatcher.answer(peer, frames, key)
            dispatcher.timings.add(*dispatcher.answered, time.perf_counter_ns() - began_ns)
        else:
            reply = dispatcher.refusal(request_id(frames), refusal)
        if held is None:
            self._wire.send_reply(peer, reply, dispatcher.refusal)
        else:
            held.append((peer, reply))

    def _note_closed(self) -> None:
        for peer in self._wire.closed_peers():
            for after_s in LOOK_AFTER_S:
                self._after(after_s, partial(self._look_for, peer))

    def _look_for(self, peer: bytes) -> None:
        """Takes back the levels of clients whose connection has closed, unless it has opened again."""
        names = self.dispatcher.sessions.of(peer)
        if not names:
            return
        if self._is_there(peer):
            if not self._wire.knows(peer):  # connected anew and silent: nobody will tell when that closes
                self._after(RETURN_WITHIN_S, partial(self._look_for, peer))
            return
        for name in names:
            logger.info("session %r is gone: its levels are no longer in flight", name)
            self.dispatcher.release(name)
            self._after(RETURN_WITHIN_S, partial(self._forget, name, peer))

    def _forget(self, name: str, peer: bytes) -> None:
        session = self.dispatcher.sessions.get(name)
        if session is not None and session.peer == peer and not self._is_there(peer):
            logger.info("session %r did not come back: it is forgotten", name)
            self.dispatcher.forget(name)

    def _is_there(self, peer: bytes) -> bool:
        """Asks the transport; only about a peer whose connection has closed, so that pings do not pile up."""
        return self._wire.send(peer, encode_notice("ping"))


@contextlib.contextmanager
def _signals(*others: signal.Signals) -> Iterator[socket.socket]:
    """Yields a socket from which the numbers of SIGINT, SIGTERM and others can be read when they arrive."""
    read, write = socket.socketpair()
    write.setblocking(False)
    wakeup = signal.set_wakeup_fd(write.fileno())
    handlers = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM, *others)}
    try:
        yield read
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        read.close()
        write.close()

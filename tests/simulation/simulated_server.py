"""One life of the real server in a simulated world: its loop, dispatcher, sessions, curricula and state folder.

What the server does is told to the judge from between its parts: which command is written down, which reply goes out.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path

from judge import MAX_FRAME_BYTES, require
from simulated_clients import LEVELS, READS
from simulated_disk import Background

from plr_client.errors import StateNotWritten
from plr_client.protocol import decode_reply, decode_request
from plr_server import Config, Curriculum
from plr_server.durability import state_dir
from plr_server.durability.records import Kind
from plr_server.durability.state_dir import StateDir
from plr_server.durability.values import pack
from plr_server.serving.dispatch import Dispatcher
from plr_server.serving.loop import _Loop
from plr_server.serving.restart import restart
from plr_server.serving.turns import Received

FOLDER = Path("state")
CONFIGS = {
    "seeds": Config(levels=range(LEVELS), seed=3, num_steps=2, staleness_coef=0.5),
    "payloads": Config(levels="payloads", capacity=3, seed=4, num_steps=2, partial="stitch"),
}


class Server:
    """One life of the server, on the world's disk and network."""

    def __init__(self, world, *, accept_loss):
        self.world, self.judge, self.rng = world, world.judge, world.rng
        self.background = Background()
        state_dir.ThreadPoolExecutor = lambda *_: self.background
        log = StateDir(FOLDER, fsync=world.fsync, accept_loss=accept_loss)
        curricula = {name: Curriculum(config) for name, config in CONFIGS.items()}
        self.dispatcher = Dispatcher(curricula, max_frame_bytes=MAX_FRAME_BYTES)
        restart(self.dispatcher, log)
        world.found(log.sequence, self._state())
        self.log, self._write, self._answer = log, log.write, self.dispatcher.answer
        log.write, self.dispatcher.answer = self._written, self._answered
        self.wire = SimulatedWire(world, self)
        self._request = None
        self._told = {}
        self.loop = _Loop(self.dispatcher, self.wire, None, log)

    def _state(self):
        return b"".join(pack(self.dispatcher.state()))

    def answer_some(self):
        while not self.loop._answer_some():
            pass
        if self.rng.random() < 0.5:
            self.look()

    def look(self):
        self.loop._note_closed()
        self.loop._do_what_is_due()
        self.log.look_after()
        if self.rng.random() < 0.3:
            if self.background.busy and self.world.fails_behind and self.rng.random() < 0.3:
                self.world.disk.failing_once.add("sync")
            self.background.step()

    def has_forgotten(self, name):
        """Neither is there such a session, nor is it known to have said goodbye."""
        sessions = self.dispatcher.sessions
        return sessions.get(name) is None and name not in sessions._ended

    def stop(self):
        self.log.close()
        self.judge.agrees(self._state())

    # ---- what is seen of it

    def _written(self, kind, payload, *, op, needed):
        request = self._request if kind is Kind.REQUEST else None
        session = None if request is None else self.dispatcher.sessions.get(request.session)
        self.judge.writes(kind, b"".join(payload), request, 0 if session is None else session.begun)
        try:
            self._write(kind, payload, op=op, needed=needed)
        except StateNotWritten:
            self.judge.has_not_written()
            raise
        require(not needed or self.log._behind is None, "a push in memory alone", op)
        self.judge.has_written(self.log.sequence)

    def _answered(self, peer, frames, *key):
        self._request = decode_request(frames)
        reply = self._answer(peer, frames, *key)
        if self._request.op in READS:
            self.judge.answers_read(self._request, reply)
        memory_only = self.log._behind is not None
        self._told[id(reply)] = reply, self._request, len(self.judge.history), memory_only
        return reply

    def tells(self, frames):
        _, request, position, memory_only = self._told.pop(id(frames))
        reply = decode_reply(list(map(bytes, frames)))
        require(reply.error is None or reply.error.code != "server_error", "the server's own failure", reply.error)
        self.judge.tells(request, reply, position, memory_only=memory_only)
        return reply


class SimulatedWire:
    """What the loop sees of the network: plr_server.serving.wire without a socket."""

    def __init__(self, world, server):
        self._world, self._server = world, server
        self.inbox, self._known, self._closed = deque(), set(), []

    def receive(self):
        if not self.inbox:
            return None
        peer, frames = self.inbox.popleft()
        self._known.add(peer)
        return Received(peer, None, frames, None)

    def send(self, peer, _frames):
        return self._world.connected(peer)

    def send_reply(self, peer, frames, _refusal):
        reply = self._server.tells(frames)
        if self._world.connected(peer):
            self._world.to_client(peer, reply)

    def close_peer(self, peer):
        if peer in self._known:
            self._known.discard(peer)
            self._closed.append(peer)

    def closed_peers(self):
        closed, self._closed = self._closed, []
        return closed

    def knows(self, peer):
        return peer in self._known

    def crowded(self):
        return False

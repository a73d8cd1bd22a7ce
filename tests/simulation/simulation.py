"""A seeded run of the real server, curricula and state folder among clients, over a network and a disk that fail.

`run(seed)` is one schedule: everything that happens in it follows from the seed, so a failure is repeated by running
it again. The clock, the network, the disk and the server's second thread are simulated; the loop, the dispatcher, the
sessions, the curricula, the journal, snapshots and recovery are the real ones.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import random

from judge import Failure, Judge, require
from simulated_clients import Client
from simulated_disk import Crash, SimulatedDisk
from simulated_server import CONFIGS, Server

from plr_client import exchange
from plr_client.errors import ServerStartError, StateDamaged, StateDiverged
from plr_client.protocol import decode_request
from plr_server.durability import state_dir
from plr_server.serving import loop

RETURN_WITHIN_S = 12.0  # instead of a minute
AFTER_RESTART_S = 60.0  # instead of an hour
LATEST_S = 6.0  # that a message comes
VERY_LATE_S = 30.0  # that a copy of a request comes
LOOKS_EVERY_S = 1.0
MAY_FAIL = (*["sync", "sync_folder"] * 3, "unlink", "unlink", "write", "truncate", "rename", "link", "open_new", "read")
END_S = 200.0  # of the troubles
STUCK_S = 1500.0


class World:
    """All there is in a schedule.

    Attributes:
        rng: what decides everything.
        is_lossy: the network may lose messages.
        fails_behind: now and then a sync in the background fails.
        now_s: the time.
        judge: hears what happens.
    """

    def __init__(self, seed):
        self.rng = rng = random.Random(seed)
        self.now_s = 0.0
        self._due, self._num_due = [], 0
        self._power = rng.random() < 0.5  # what a crash is
        self.fsync = rng.choice(("always", "interval") if self._power else ("always", "interval", "never"))
        self._rots = rng.random() < 0.1
        self._loses, self._doubles = rng.choice((0.0, 0.05, 0.3)), rng.choice((0.0, 0.1, 0.4))
        self.is_lossy = self._loses > 0
        self._slow_s = rng.choice((0.01, 1.0, LATEST_S))
        self.judge = Judge(CONFIGS, replies_wait=self.fsync == "always")
        self.disk = SimulatedDisk(rng)
        self._arrived_s = {}  # connection and direction -> when its last message comes
        self._client_of, self._num_connections = {}, 0
        self.fails_behind = False
        self._away = set()  # peers that the server's transport takes for gone
        self.server = None
        self._accept_loss = self._power_failed = False
        self.clients = [Client(self, name, rng.randrange(2, 6)) for name in range(rng.randrange(1, 4))]
        self._plan_troubles()

    def described(self):
        crash = "loss of power" if self._power else "kill"
        return f"fsync {self.fsync}, {len(self.clients)} clients, a crash is a {crash}, syncs lie: {self.disk.lies}"

    # ---- time and chance

    def monotonic(self):
        return self.now_s

    def perf_counter_ns(self):
        return int(self.now_s * 1e9)

    def randbits(self, num):
        return self.rng.getrandbits(num)

    def after(self, seconds, do, *arguments):
        self._num_due += 1
        heapq.heappush(self._due, (self.now_s + seconds, self._num_due, do, arguments))

    def run(self):
        self._survive(self._start)
        while not all(client.done for client in self.clients):
            require(self.now_s < STUCK_S, "the clients' progress", f"none is done after {STUCK_S} s")
            self.now_s, _, do, arguments = heapq.heappop(self._due)
            self._survive(do, *arguments)
        self.troubles_end()
        if self.server is not None and self.rng.random() < 0.3:
            self._survive(self._stop)
        self.crash()
        self._start()
        require(self.server is not None, "the server's last start")
        self.judge.at_the_end()

    def _survive(self, do, *arguments):
        try:
            do(*arguments)
        except Crash:
            self._after_crash()

    # ---- troubles

    def _plan_troubles(self):
        rng = self.rng
        begin_s, end_s = sorted((rng.random() * 8.0, rng.random() * 14.0))
        if rng.random() < 0.25:
            self.after(begin_s, self._set, "full", True)
            self.after(end_s, self._set, "full", False)
        elif rng.random() < 0.3:
            failing = {name: rng.choice((0.2, 1.0)) for name in rng.sample(MAY_FAIL, rng.randrange(1, 5))}
            self.after(begin_s, self._set, "failing", failing)
            self.after(end_s, self._set, "failing", {})
        elif rng.random() < 0.4:
            for _ in range(rng.randrange(1, 8)):
                self.after(rng.random() * 10.0, self._fail_once, rng.choice(MAY_FAIL))
            self.fails_behind = rng.random() < 0.5
        elif rng.random() < 0.1:
            self.disk.lies = self.judge.disk_lied = True
        for _ in range(rng.choice((0, 1, 1, 2, 3))):
            at_s = rng.uniform(begin_s, end_s) if rng.random() < 0.5 else rng.random() * 12.0
            if rng.random() < 0.7:
                self.after(at_s, self._crash_soon, rng.randrange(40))
            else:
                self.after(at_s, self.crash)
        for client in self.clients:
            if rng.random() < 0.2:
                self.after(rng.random() * 8.0, self._cut_off, client, rng.random() * 3 * RETURN_WITHIN_S)
        self.after(END_S, self.troubles_end)

    def _set(self, what, value):
        setattr(self.disk, what, value)

    def _fail_once(self, name):
        self.disk.failing_once.add(name)

    def _crash_soon(self, num_calls):
        self.disk.crash_in = num_calls

    def crash(self):
        if self.server is not None:
            self._after_crash()

    def _after_crash(self):
        """The process has ended; with the whole machine, or alone."""
        self.server = None
        if self._power:
            self.disk.power_fails()
            self._power_failed = True
        else:
            self.disk.process_ends()
        if self._rots and self.rng.random() < 0.5:
            self.disk.rots()
        self.after(self.rng.random() * 3.0, self._start)

    def troubles_end(self):
        self.disk.full, self.disk.failing, self.disk.crash_in = False, {}, None
        self.disk.failing_once.clear()
        self.fails_behind = False
        self._loses = self._doubles = 0.0
        for client in self.clients:
            client.cut_off = False

    def _cut_off(self, client, seconds):
        client.cut_off = client.was_cut_off = True
        for peer in [peer for peer, each in self._client_of.items() if each is client]:
            self.after(self.rng.random() * 5.0, self._closes, peer)
        self.after(seconds, self._back, client)

    def _back(self, client):
        client.cut_off = False
        self._away -= {peer for peer, each in self._client_of.items() if each is client}

    # ---- the server

    def _start(self):
        if self.server is not None:
            return
        try:
            # Whoever has a copy of a rotten file restores it before a loss is accepted.
            self.server = Server(self, accept_loss=self._accept_loss and self.disk.rotten is None)
        except Crash:
            self._after_crash()
        except StateDamaged as error:
            if self.disk.is_restored():
                self._start()
                return
            require(self.disk.may_look_damaged, "damage where there is none", error)
            self._accept_loss = True
            self._start()
        except StateDiverged as error:
            raise Failure("replay", error) from error
        except ServerStartError:
            self.disk.process_ends()
            self.after(2.0, self._start)
        else:
            self._accept_loss = self._power_failed = self.disk.may_look_damaged = False
            self.disk.rotten = None
            self._tick(self.server)

    def found(self, sequence, state):
        self.judge.restarted(sequence, state, power_failed=self._power_failed)

    def _tick(self, server):
        if server is self.server:
            server.look()
            self.after(LOOKS_EVERY_S, self._tick, server)

    def _stop(self):
        self.server.stop()
        self.server = None
        self.disk.process_ends()

    # ---- the network

    def connect(self, client):
        self._num_connections += 1
        peer = b"%d" % self._num_connections
        self._client_of[peer] = client
        return peer

    def hang_up(self, peer):
        if peer is not None:
            del self._client_of[peer]
            self.after(self._delay_s(), self._closes, peer)

    def _closes(self, peer):
        self._away.add(peer)
        if self.server is not None:
            self.server.wire.close_peer(peer)

    def connected(self, peer):
        return peer in self._client_of and peer not in self._away

    def to_server(self, peer, frames):
        if not self._client_of[peer].cut_off:
            for copy in range(self._copies()):
                late_s = VERY_LATE_S if copy and self.rng.random() < 0.5 else 0.0
                self.after(self._flight_s(peer, 0) + late_s, self._arrives, peer, frames, late_s)

    def _arrives(self, peer, frames, late_s):
        server = self.server
        if server is None:
            return
        if late_s:  # a hello that comes after its session was forgotten would begin it: none is as late as that
            request = decode_request(frames)
            if request.op == "hello" and server.has_forgotten(request.session):
                return
        server.wire.inbox.append((peer, frames))
        self.after(self.rng.random() * 0.01, self._serve, server)

    def _serve(self, server):
        if server is self.server:
            server.answer_some()

    def to_client(self, peer, reply):
        if not self._client_of[peer].cut_off:
            for _ in range(self._copies()):
                self.after(self._flight_s(peer, 1), self._is_heard, peer, reply)

    def _is_heard(self, peer, reply):
        if peer in self._client_of:
            self._client_of[peer].hears(reply)

    def _copies(self):
        rng = self.rng
        return 0 if rng.random() < self._loses else 2 if rng.random() < self._doubles else 1

    def _delay_s(self):
        return self.rng.random() * self._slow_s * self.rng.random()

    def _flight_s(self, peer, direction):
        """How long a message is on its way: one connection delivers in order, but for copies on the way."""
        arrives_s = self.now_s + self._delay_s()
        if not self._doubles:
            arrives_s = self._arrived_s[peer, direction] = max(arrives_s, self._arrived_s.get((peer, direction), 0.0))
        return arrives_s - self.now_s


def run(seed):
    """Runs one schedule.

    Raises:
        Failure: something did not hold.
    """
    world = World(seed)
    with installed(world):
        world.run()
    return world


@contextlib.contextmanager
def installed(world):
    """The simulated clock, chance and disk, in the place of the system's."""
    rng = world.rng
    constants = {
        "SNAPSHOT_AFTER_COMMANDS": rng.choice((3, 8, 1000)),
        "DIGEST_AFTER_COMMANDS": rng.choice((2, 5)),
        "time": world,
        "secrets": world,
        "ThreadPoolExecutor": None,
    }
    before = [(state_dir, name, getattr(state_dir, name)) for name in constants]
    logged = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    before += [(loop, name, getattr(loop, name)) for name in ("time", "RETURN_WITHIN_S", "AFTER_RESTART_S")]
    before += [(exchange, "REMEMBERED_S", exchange.REMEMBERED_S)]
    for name, value in constants.items():
        setattr(state_dir, name, value)
    loop.time, loop.RETURN_WITHIN_S, loop.AFTER_RESTART_S = world, RETURN_WITHIN_S, AFTER_RESTART_S
    exchange.REMEMBERED_S = RETURN_WITHIN_S / 2
    try:
        with world.disk:
            yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
        logging.disable(logged)  # and loggers look again what they are to tell

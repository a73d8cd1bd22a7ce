"""Proxies between real clients and a real server, which lose, repeat, delay and cut what passes, for the tests.

`Cutting` passes bytes and knows nothing of messages: it cuts connections anywhere in them. `Shuffling` passes whole
messages of ZeroMQ, and drops, repeats and delays them, so that they overtake each other. Both are reached at
`proxy.address`, and run in a thread of their own until they are left.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import random
import selectors
import socket
import threading
import time
from collections import Counter, OrderedDict

import faults
import zmq

MAX_BACKENDS = 64  # connections to the server that a shuffling proxy keeps; a client has its own, and moves to others
LATER_S = 0.03  # how long what is delayed is held at most


class _Proxy:
    """What both have in common.

    Attributes:
        address: where clients connect to.
        did: how often it did what.
    """

    def __init__(self, server: str, seed: int) -> None:
        self._server, self._random = server, random.Random(seed)
        self.did: Counter[str] = Counter()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stopped.set()
        self._thread.join()

    def _run(self):
        raise NotImplementedError


class Cutting(_Proxy):
    """Passes bytes both ways; cuts a connection, both its ends, after `mean_bytes` of either way on average."""

    def __init__(self, server: str, seed: int, *, mean_bytes: int) -> None:
        super().__init__(server, seed)
        self._mean_bytes = mean_bytes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._others: dict[socket.socket, socket.socket] = {}  # the other end of each
        self._left: dict[socket.socket, int] = {}  # bytes to be passed on from here before the cut
        self._waiting = selectors.DefaultSelector()

    def _run(self):
        with self._listener, self._waiting:
            self._waiting.register(self._listener, selectors.EVENT_READ)
            while not self._stopped.is_set():
                for key, _ in self._waiting.select(0.05):
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.fileobj in self._others:
                        self._pass_on(key.fileobj)
            while self._others:
                self._cut(next(iter(self._others)))

    def _accept(self):
        client, server = self._listener.accept()[0], faults.plain(self._server)
        for end, other in ((client, server), (server, client)):
            self._others[end] = other
            self._left[end] = int(self._random.expovariate(1 / self._mean_bytes))
            self._waiting.register(end, selectors.EVENT_READ)

    def _pass_on(self, end):
        try:
            data = end.recv(65536)
            self._others[end].sendall(data[: self._left[end]])
        except OSError:
            data = b""
        self._left[end] -= len(data)
        if not data or self._left[end] < 0:
            self.did["cut" if data else "closed"] += 1
            self._cut(end)

    def _cut(self, one):
        for end in (one, self._others[one]):
            self._waiting.unregister(end)
            del self._others[end], self._left[end]
            end.close()


class Shuffling(_Proxy):
    """Passes messages both ways; each is dropped, repeated or delayed with a probability of `share`."""

    def __init__(self, server: str, seed: int, *, share: float) -> None:
        super().__init__(server, seed)
        self._share = share
        self._context = zmq.Context()
        self._front = self._context.socket(zmq.ROUTER)
        self._front.linger = 0
        self._front.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self.address = f"tcp://127.0.0.1:{self._front.bind_to_random_port('tcp://127.0.0.1')}"
        self._later: list[tuple[float, int, bytes, bool, list[bytes]]] = []
        self._numbers = itertools.count()

    def _run(self):
        backs: OrderedDict[bytes, zmq.Socket[bytes]] = OrderedDict()  # by client; the longest silent first
        poller = zmq.Poller()
        poller.register(self._front, zmq.POLLIN)
        while not self._stopped.is_set():
            for ready, _ in poller.poll(5):
                if ready is self._front:
                    client, *frames = ready.recv_multipart()
                    if client not in backs:
                        backs[client] = back = self._context.socket(zmq.DEALER)
                        back.linger = 0
                        back.connect(self._server)
                        poller.register(back, zmq.POLLIN)
                    backs.move_to_end(client)
                    self._decide(client, frames, up=True)
                else:
                    client = next(client for client, back in backs.items() if back is ready)
                    self._decide(client, ready.recv_multipart(), up=False)
            while self._later and self._later[0][0] <= time.monotonic():
                _, _, client, up, frames = heapq.heappop(self._later)
                with contextlib.suppress(zmq.ZMQError):
                    if not up:
                        self._front.send_multipart([client, *frames], zmq.DONTWAIT)
                    elif client in backs:
                        backs[client].send_multipart(frames, zmq.DONTWAIT)
            while len(backs) > MAX_BACKENDS:
                _, back = backs.popitem(last=False)
                poller.unregister(back)
                back.close()
        for each in (self._front, *backs.values()):
            each.close()
        self._context.term()

    def _decide(self, client, frames, *, up):
        fate = self._random.random() / self._share
        times = [0.0]
        if fate < 1:
            self.did["dropped"] += 1
            times = []
        elif fate < 2:
            self.did["repeated"] += 1
            times = [0.0, self._random.uniform(0, LATER_S)]
        elif fate < 3:
            self.did["delayed"] += 1
            times = [self._random.uniform(0, LATER_S)]
        for after_s in times:
            heapq.heappush(self._later, (time.monotonic() + after_s, next(self._numbers), client, up, frames))

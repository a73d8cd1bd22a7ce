"""Workers that ask a bare pyzmq ROUTER where ours ask the server: the floor of waits and rates. Not run by hand.

Without levels held ready each reset is a round trip. With them one request goes out for every half of them, and the
reply is taken by a later reset, half the way to the next request, as `LevelClient(prefetch=...)` does.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from typing import Any

import gymnasium as gym
import zmq
from resets_contender import Block, Trivial, main

ASKED = bytes(62)


class Asks(gym.Wrapper):
    """Asks at reset; the socket opens in the process of the worker."""

    def __init__(self, address: str, ready: int) -> None:
        super().__init__(Trivial())
        self._address, self._every = address, max(2, ready // 2)
        self._waits_for = not ready
        self._resets = 0
        self._pid = 0

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._socket = zmq.Context().socket(zmq.DEALER)
            self._socket.connect(self._address)
        if self._waits_for:
            self._socket.send_multipart([ASKED])
            self._socket.recv_multipart()
        elif self._resets % self._every == 0:
            self._socket.send_multipart([ASKED])
        elif self._resets % self._every == self._every // 2:
            self._socket.recv_multipart()
        self._resets += 1
        return self.env.reset(**kwargs)


class Router:
    """A process that answers whatever it gets."""

    def __init__(self, num_levels: int, ready: int) -> None:  # noqa: ARG002
        self._ready = ready
        self._folder = tempfile.TemporaryDirectory(prefix="plr-")
        self._address = f"ipc://{self._folder.name}/bare.sock"
        self._process = multiprocessing.Process(target=echo_for_ever, args=(self._address,), daemon=True)
        self._process.start()

    def make_env(self) -> gym.Env:
        return Asks(self._address, self._ready)

    def push(self, block: Block) -> None:
        pass

    def close(self) -> None:
        self._process.terminate()
        self._process.join()
        self._folder.cleanup()


def echo_for_ever(address: str) -> None:
    router = zmq.Context().socket(zmq.ROUTER)
    router.bind(address)
    while True:
        router.send_multipart(router.recv_multipart())


if __name__ == "__main__":
    main(Router)

"""What the connections of this process share: one ZeroMQ context, its threads and its files.

Used by plr_client.connection alone. It opens sockets and never uses one.
"""

from __future__ import annotations

import os
import resource
import threading
from typing import Any

import zmq

from plr_client.errors import TooManyOpenFiles

SPARE_FILES = 16  # that can be opened before a socket is: libzmq ends the process where it finds none

# A forked child keeps its parent's context and sockets alive and untouched: closing them is the parent's business.
inherited: list[Any] = []


class Process:
    """What the connections of this process share."""

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self.start_afresh()

    def start_afresh(self) -> None:
        """For a forked child too, where a thread that is not here may hold the parent's lock."""
        self.pid = os.getpid()  # known without asking the system at each request
        inherited.append(self._context)
        self._context = None
        self._lock = threading.Lock()

    def socket(self) -> zmq.Socket[bytes]:
        with self._lock:
            _have_spare_files()
            if self._context is None:
                self._context = zmq.Context()
                self._context.set(zmq.MAX_SOCKETS, self._context.get(zmq.SOCKET_LIMIT))
            return self._context.socket(zmq.DEALER)


process = Process()
os.register_at_fork(after_in_child=process.start_afresh)


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

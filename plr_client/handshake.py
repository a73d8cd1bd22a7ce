"""Handshake: why a server does not let a client in.

libzmq tells nobody: it connects again for ever, or no more, and a request waits. What it knows it writes to a monitor
of the socket, and what the server asks for stands in its greeting (ZMTP 3.1, RFC 37). Used by plr_client.connection for
as long as nothing has come from the server, and again where it falls silent. It never sends anything on the client's
socket.
"""

from __future__ import annotations

import socket as sockets
import struct
import time
import uuid
from typing import Any

import zmq

from plr_client.errors import NotAdmitted

GREETING_S = 1.0  # how long a server may take for its greeting
FAILURES = 3  # in a row that are believed where libzmq gives no reason

_SIGNATURE = b"\xff" + bytes(8) + b"\x7f\x03"  # what makes a server send its whole greeting
_GREETING_BYTES = 64
_MECHANISM = slice(12, 32)
_EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


class Handshake:
    """Watches a socket's handshakes until `close`, which comes before the socket is closed, and from `watch` on again.

    Args:
        socket: the client's, not yet connected.
        address: where it will connect.
        keys: the key file that it uses; None for none.
    """

    def __init__(self, socket: zmq.Socket[Any], address: str, keys: str | None) -> None:
        self._socket, self._address, self._keys = socket, address, keys
        self.watch()

    def watch(self) -> None:
        """Watches, once it does not any longer."""
        self._failures = 0
        where = f"inproc://handshake-{uuid.uuid4().hex}"
        self._socket.monitor(where, _EVENTS)
        self._events: zmq.Socket[Any] = self._socket.context.socket(zmq.PAIR)
        self._events.setsockopt(zmq.RCVHWM, 0)  # libzmq waits for room with a lock held
        self._events.setsockopt(zmq.LINGER, 0)
        self._events.connect(where)
        self._poller = zmq.Poller()
        for each in (self._socket, self._events):
            self._poller.register(each, zmq.POLLIN)

    def refusal(self, within_s: float) -> NotAdmitted | None:
        """Waits until something has come from the server, or it is known why nothing will; returns the latter.

        Args:
            within_s: seconds to wait at most.
        """
        deadline = time.monotonic() + within_s
        while (left_s := deadline - time.monotonic()) > 0:
            ready = dict(self._poller.poll(int(1000 * left_s) + 1))
            if self._socket in ready:
                break
            while self._events in ready and self._events.poll(0):
                event, _value = struct.unpack("=hi", self._events.recv_multipart()[0])
                if (error := self._judge(event)) is not None:
                    return error
        return None

    def close(self) -> None:
        """Watches no longer; again it does nothing."""
        if not self._events.closed:
            self._socket.disable_monitor()  # before nobody reads: libzmq would wait for a reader
            self._events.close()

    def _judge(self, event: int) -> NotAdmitted | None:
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._failures = 0
            return None
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            expected = f"keys that the server at {self._address} knows (it reads the list at its start and at SIGHUP)"
            return NotAdmitted(expected, f"{self._keys}, which it does not know, or which was withdrawn")
        asked_for = mechanism_of(self._address)
        if self._keys is None and asked_for == "CURVE":
            expected = f"a key file, which the server at {self._address} asks for (keys=FILE, PLR_KEYS or --keys FILE)"
            return NotAdmitted(f"{expected}; who runs it makes one with plr-server keygen", "none")
        if self._keys is not None and asked_for == "NULL":
            expected = f"none, because the server at {self._address} was started without keys (serve --keys DIR)"
            return NotAdmitted(expected, self._keys)
        self._failures += asked_for == "CURVE"
        if self._keys is not None and self._failures >= FAILURES:
            expected = f"keys made for the server at {self._address}, whose own key is another"
            return NotAdmitted(expected, f"{self._keys}, made for another server or before it had this key")
        return None  # somebody hung up, perhaps because it stops, or has no room: it is tried again


def mechanism_of(address: str) -> str | None:
    """Returns what a ZeroMQ server asks of who connects: "NULL", "CURVE" or another; None where nobody greets."""
    kind, _, where = address.partition("://")
    host, _, port = where.rpartition(":")
    greeting = b""
    try:
        with sockets.socket(sockets.AF_UNIX) if kind == "ipc" else _tcp(host.strip("[]"), int(port)) as plain:
            plain.settimeout(GREETING_S)
            if kind == "ipc":
                plain.connect(where)
            plain.sendall(_SIGNATURE)
            while len(greeting) < _GREETING_BYTES and (more := plain.recv(_GREETING_BYTES - len(greeting))):
                greeting += more
    except (OSError, ValueError):
        return None
    return greeting[_MECHANISM].rstrip(b"\0").decode("ascii", "replace") if len(greeting) == _GREETING_BYTES else None


def _tcp(host: str, port: int) -> sockets.socket:
    return sockets.create_connection((host, port), GREETING_S)

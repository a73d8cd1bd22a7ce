"""Where the server listens: checks an address, claims it, binds the socket, and leaves nothing behind.

Used by the server loop only. ZeroMQ would take over an ipc path that another server listens on, without a word: a lock
file beside the socket and a connection attempt stand before that.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zmq

from plr_client.address import MAX_IPC_PATH, MAX_PORT, kinds
from plr_client.errors import AddressTaken, ConfigError, ServerStartError


@contextlib.contextmanager
def listening(router: zmq.Socket[Any], address: str, *, insecure: bool = False) -> Iterator[str]:
    """Binds `router` to the address while the context lasts.

    Args:
        router: the socket, not yet bound.
        address: `ipc://PATH`, or `tcp://HOST:PORT` with port 0 (or `*`) for a free one.
        insecure: allow a tcp address beyond loopback, where whoever reaches it can read and change the curriculum,
            unless the socket asks for keys.

    Yields:
        The address clients connect to, with the real port.

    Raises:
        ConfigError: the address is no such address, or is beyond loopback without `insecure`.
        AddressTaken: something already listens there.
        ServerStartError: the address cannot be bound for another reason.
    """
    if address.startswith("ipc://"):
        with _ipc(Path(address.removeprefix("ipc://"))):
            yield _bind(router, address)
    elif address.startswith("tcp://"):
        _, _, port = address.rpartition(":")
        if not (port == "*" or (port.isdecimal() and int(port) <= MAX_PORT)):
            raise ConfigError("bind", f"tcp://HOST:PORT with a port from 0 (a free one) to {MAX_PORT}", address)
        if not insecure and beyond_this_machine(address):
            raise ConfigError(
                "bind",
                "a loopback address such as tcp://127.0.0.1:5555, or --keys DIR (plr-server keygen makes them), or "
                "--insecure said aloud, and then whoever reaches it may read and change the curriculum",
                address,
            )
        yield _bind(router, address)
    else:
        raise ConfigError("bind", kinds(address), repr(address))


def _bind(router: zmq.Socket[Any], address: str) -> str:
    if address.startswith("tcp://["):
        router.setsockopt(zmq.IPV6, 1)
    mask = os.umask(0o077)  # an ipc socket is its owner's alone
    try:
        router.bind(address)
    except zmq.ZMQError as exc:
        if exc.errno == zmq.EADDRINUSE:
            raise AddressTaken(address, "another process") from exc
        raise ServerStartError(f"bind: expected an address that can be bound, got {address} ({exc})") from exc
    finally:
        os.umask(mask)
    return router.get_string(zmq.LAST_ENDPOINT).rstrip("\0")


def beyond_this_machine(address: str) -> bool:
    """Returns whether what listens at the address may be reached from other machines: a tcp address not of loopback."""
    host, _, _ = address.removeprefix("tcp://").rpartition(":")
    if not address.startswith("tcp://") or host == "localhost":
        return False
    try:
        return not ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return True  # a name, an interface or *


@contextlib.contextmanager
def _ipc(path: Path) -> Iterator[None]:
    """Holds the lock of an ipc path; afterwards neither socket nor lock is left."""
    address = f"ipc://{path}"
    if not path.name or path.name == "*" or str(path).startswith("@") or len(os.fsencode(path)) > MAX_IPC_PATH:
        raise ConfigError("bind", f"an ipc path of 1 to {MAX_IPC_PATH} bytes (the system's limit), no @ or *", address)
    if path.exists() and not path.is_socket():  # ZeroMQ would remove it
        kind = "folder" if path.is_dir() else "file"
        raise ServerStartError(f"bind: expected a path where nothing is yet, got the {kind} {path}")
    lock_path = path.with_name(path.name + ".lock")
    try:
        lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise ServerStartError(
            f"bind: expected a folder that can be written, got {path.parent} ({exc.strerror})"
        ) from exc
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            owner = os.read(lock, 32).decode(errors="replace")
            raise AddressTaken(address, f"the server of process {owner or 'unknown'}") from exc
        if os.fstat(lock).st_nlink == 0:
            raise AddressTaken(address, "a server that was just stopping (start again)")
        if _answers(path):
            lock_path.unlink(missing_ok=True)
            raise AddressTaken(address, "another program that listens there")
        os.ftruncate(lock, 0)
        os.write(lock, str(os.getpid()).encode())
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            lock_path.unlink(missing_ok=True)
    finally:
        os.close(lock)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        return probe.connect_ex(os.fspath(path)) in (0, errno.EAGAIN)  # EAGAIN: a listener with a full backlog

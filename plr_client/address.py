"""What the address of a server must look like, before anybody connects to it.

Used by plr_client.connection and, for its limits, by plr_server. ZeroMQ takes many an address that nothing can be found
at, without a word: a request then waits in vain. Opens nothing and asks no name server.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from plr_client.errors import InvalidInput

MAX_PORT = 65_535  # ZeroMQ takes a larger one modulo 65 536
MAX_IPC_PATH = 107  # bytes of sockaddr_un.sun_path, less the closing zero

# Where a server listens; or what tells, asked anew whenever a socket is opened: None while nobody knows.
Address = str | Callable[[], str | None]


def check_address(address: object) -> None:
    """Refuses an address that no server can have.

    Args:
        address: `ipc://PATH` or `tcp://HOST:PORT`.

    Raises:
        InvalidInput: it is neither; says what is wrong with it.

    >>> check_address("tcp://127.0.0.1:99999")
    Traceback (most recent call last):
    plr_client.errors.InvalidInput: address: expected tcp://HOST:PORT with a port from 1 to 65535, got \
'tcp://127.0.0.1:99999'
    """
    expected = None
    if not (isinstance(address, str) and address.startswith(("ipc://", "tcp://"))):
        expected = kinds(address)
    elif address.startswith("ipc://"):
        if not 1 <= len(os.fsencode(address.removeprefix("ipc://"))) <= MAX_IPC_PATH:
            expected = f"ipc://PATH with a path of 1 to {MAX_IPC_PATH} bytes"
    else:
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        if re.search(r"\s", address):
            expected = "tcp://HOST:PORT without spaces"
        elif not (port.isascii() and port.isdigit() and 1 <= int(port) <= MAX_PORT):
            expected = f"tcp://HOST:PORT with a port from 1 to {MAX_PORT}"
        elif host in ("", "*"):
            expected = "tcp://HOST:PORT with the name of the server's machine, or 127.0.0.1 for this one"
    if expected is not None:
        raise InvalidInput("address", expected, repr(address))


def kinds(address: object) -> str:
    """Returns what is expected in the place of what is no address of either kind."""
    forgot_tcp = isinstance(address, str) and re.fullmatch(r"[^\s/]+:\d+", address)
    return "ipc://PATH or tcp://HOST:PORT" + (f", such as tcp://{address}" if forgot_tcp else "")

"""Key files: what a client needs to connect to a server that asks who it is.

A key file is one JSON object of CURVE keys, each 40 characters of Z85: `secret`, the client's own, and `server`, the
server's public key. `plr-server keygen` makes it; it is read in the process that connects, when it connects. Used by
plr_client.connection, and by the server for its own file, which has a `secret` alone. It never writes a file.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from typing import Any, NamedTuple

import zmq
from zmq.utils import z85

from plr_client.errors import InvalidInput

# The path of a key file; None for what PLR_KEYS names, and "" for no keys whatever it names.
KeyFile = str | os.PathLike[str] | None

PLR_KEYS = "PLR_KEYS"  # the environment variable that names a key file
KEY_CHARS = 40

_OTHERS = 0o077
_EXPECTED = "a file made by plr-server keygen DIR --role ROLE --name NAME"


class ClientKeys(NamedTuple):
    """What one client needs, in Z85.

    Attributes:
        server: the server's public key.
        public: the client's own.
        secret: the client's own.
    """

    server: bytes
    public: bytes
    secret: bytes


def key_file(keys: KeyFile) -> str | None:
    """Returns the path of the key file to use; None for no keys."""
    return (os.environ.get(PLR_KEYS) if keys is None else os.fspath(keys)) or None


def read_client_keys(path: str) -> ClientKeys:
    """Reads a client's key file.

    Raises:
        InvalidInput: it cannot be read, others can read it too, or it is no client's key file.
    """
    fields = read_key_file(path, "secret", "server")
    return ClientKeys(fields["server"], public_of(fields["secret"], path), fields["secret"])


def read_key_file(path: str | os.PathLike[str], *names: str) -> dict[str, bytes]:
    """Returns the named keys of a key file.

    Raises:
        InvalidInput: it cannot be read, its owner is this user and others can read it too, or it lacks one of the keys.
    """
    try:
        with open(path, "rb") as file:  # noqa: PTH123  one open file, so that what is checked is what is read
            status = os.fstat(file.fileno())
            text = file.read(4096)
    except OSError as exc:
        raise InvalidInput("keys", _EXPECTED, f"{os.fspath(path)} ({exc.strerror})") from exc
    if status.st_uid == os.geteuid() and status.st_mode & _OTHERS:  # as ssh does
        expected = "a key file that no other user can read (chmod 600 FILE)"
        raise InvalidInput("keys", expected, f"{os.fspath(path)} of mode {status.st_mode & 0o777:03o}")
    fields: Any = None
    with contextlib.suppress(ValueError):
        fields = json.loads(text)
    for name in names:
        if not (isinstance(fields, dict) and is_key(fields.get(name))):
            raise InvalidInput("keys", _EXPECTED, f"{os.fspath(path)}, which has no key {name!r}")
    return {name: fields[name].encode() for name in names}


def is_key(text: object) -> bool:
    """Returns whether something is a CURVE key in Z85."""
    if not (isinstance(text, str) and len(text) == KEY_CHARS and text.isascii()):
        return False
    try:
        z85.decode(text)
    except (KeyError, ValueError, struct.error):
        return False
    return True


def public_of(secret: bytes, path: str | os.PathLike[str]) -> bytes:
    """Returns the public key that goes with a secret one.

    Raises:
        InvalidInput: this libzmq cannot do CURVE.
    """
    try:
        return zmq.curve_public(secret)
    except zmq.ZMQError as exc:
        expected = "a libzmq that can do CURVE (the wheels of pyzmq can)"
        raise InvalidInput("keys", expected, f"{zmq.zmq_version()}, which cannot, for {os.fspath(path)}") from exc

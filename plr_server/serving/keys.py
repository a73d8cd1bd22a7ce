"""The folder of keys: the server's own pair, and who may connect.

    server.key   the server's secret; it stays here
    clients.txt  a line a client: its name, its role and its public key. A key whose line is taken out is withdrawn
    NAME.key     all that the client NAME needs, to be copied to where it runs (plr_client.keys)

Read by the loop, when it starts and when it is told to, and written by the command line (`plr-server keygen`). Secrets
are readable by their owner alone from the first byte.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

import zmq

from plr_client.errors import ConfigError, InvalidInput
from plr_client.keys import is_key, public_of, read_key_file
from plr_server.serving.roles import ROLES, Client

SERVER_KEY = "server.key"
CLIENTS = "clients.txt"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


@dataclasses.dataclass(frozen=True)
class Keys:
    """What a folder of keys holds.

    Attributes:
        public: the server's, in Z85.
        secret: the server's, in Z85.
        clients: who may connect, by public key in Z85.
    """

    public: bytes
    secret: bytes
    clients: Mapping[str, Client]


def read_keys(folder: Path) -> Keys:
    """Reads a folder of keys.

    Raises:
        ConfigError: there is none, it cannot be read, others may read the secret or write the list, or the list has a
            line that is none.
    """
    path = folder / SERVER_KEY
    if not path.exists():
        expected = "a folder made by plr-server keygen DIR --role ROLE --name NAME"
        raise ConfigError("keys", expected, f"{folder}, which has no {SERVER_KEY}")
    try:
        secret = read_key_file(path, "secret")["secret"]
        return Keys(public_of(secret, path), secret, _read_clients(folder / CLIENTS))
    except InvalidInput as exc:
        raise ConfigError(exc.field, exc.expected, exc.got) from exc


def make_key(folder: Path, *, name: str, role: str) -> Path:
    """Makes a client's key, and the folder and the server's pair where they are not there yet.

    Args:
        folder: of the keys.
        name: of the client: 1 to 64 letters, digits, dots, underscores and hyphens.
        role: one of ROLES.

    Returns:
        The path of the file that the client needs.

    Raises:
        InvalidInput: the name is none, or taken, or the role is none.
        ConfigError: as `read_keys`, or the folder cannot be written.
    """
    if role not in ROLES:
        raise InvalidInput("role", f"one of {', '.join(ROLES)}", repr(role))
    if not _NAME.fullmatch(name) or f"{name}.key" == SERVER_KEY:
        expected = "1 to 64 letters, digits, dots, underscores and hyphens, a letter or digit first, and not 'server'"
        raise InvalidInput("name", expected, repr(name))
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (folder / SERVER_KEY).exists():
            _, secret = zmq.curve_keypair()
            _write_secret(folder / SERVER_KEY, secret=secret)
        keys = read_keys(folder)
        path = folder / f"{name}.key"
        if path.exists() or any(client.name == name for client in keys.clients.values()):
            expected = f"a new one (to make its key anew, take its line out of {folder / CLIENTS} and remove {path})"
            raise InvalidInput("name", expected, repr(name))
        public, secret = zmq.curve_keypair()
        _write_secret(path, secret=secret, server=keys.public)
        with os.fdopen(os.open(folder / CLIENTS, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "r+") as file:
            line_ends = (file.read() or "\n").endswith("\n")  # not where an editor by hand has left it so
            file.write(f"{name} {role} {public.decode()}\n" if line_ends else f"\n{name} {role} {public.decode()}\n")
    except OSError as exc:
        raise ConfigError("keys", "a folder that can be written", f"{folder} ({exc.strerror})") from exc
    return path


def _write_secret(path: Path, **keys: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(file, "w") as opened:
        json.dump({name: key.decode() for name, key in keys.items()}, opened)
        opened.write("\n")


def _read_clients(path: Path) -> dict[str, Client]:
    try:
        with path.open(encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            lines = file.read().splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as exc:
        raise ConfigError("keys", f"a list of clients at {path} that can be read", str(exc)) from exc
    if mode & _WRITABLE_BY_OTHERS:
        expected = f"a list of clients that no other user can write (chmod 600 {path})"
        raise ConfigError("keys", expected, f"one of mode {mode & 0o777:03o}")
    clients: dict[str, Client] = {}
    names: set[str] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, role, key = (*line.split(), "", "", "")[:3]
        if not (len(line.split()) == 3 and _NAME.fullmatch(name) and role in ROLES and is_key(key)):  # noqa: PLR2004
            expected = f"a client's name, its role ({', '.join(ROLES)}) and its public key"
            raise ConfigError("keys", expected, f"line {number} of {path}: {line[:80]!r}")
        if name in names or key in clients:
            raise ConfigError("keys", "each name and each key once", f"line {number} of {path}: {name!r} again")
        names.add(name)
        clients[key] = Client(name, role)
    return clients

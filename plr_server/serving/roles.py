"""Roles: who of those that may connect may ask for what.

A worker asks for levels; a trainer also pushes, inserts and reads; an operator also saves and sends functions. Used by
the dispatcher about every request of a server that has keys, and by plr_server.serving.keys. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from plr_client.errors import NotAdmitted, NotAllowed

# In this order: each may do what those before it may.
ROLES = {
    "worker": "asks for levels",
    "trainer": "asks for levels, pushes, inserts and reads",
    "operator": "all of that, saves, and sends score functions",
}

_WORKERS = frozenset(("hello", "goodbye", "next", "levels", "describe"))
_OPERATORS = frozenset(("save", "set_score_function"))


class Client(NamedTuple):
    """Who may connect.

    Attributes:
        name: what its sessions are bound to, whatever becomes of its key.
        role: one of ROLES.
    """

    name: str
    role: str


def allowed(op: str, key: str | None, clients: Mapping[str, Client]) -> str:
    """Returns the name of the client that asks for an operation.

    Args:
        op: what it asks for; one that no server has is for trainers, to be refused elsewhere.
        key: the public key of its connection, in Z85.
        clients: who may connect, by public key.

    Raises:
        NotAdmitted: the key has been withdrawn since the connection was made.
        NotAllowed: the client's role has no right to it.
    """
    client = clients.get(key or "")
    if client is None:
        raise NotAdmitted(
            "keys that the server knows (plr-server keygen lists them there)", "some that have been withdrawn"
        )
    if op in _WORKERS or client.role == "operator" or (client.role == "trainer" and op not in _OPERATORS):
        return client.name
    needed = "an operator" if op in _OPERATORS else "a trainer or an operator"
    raise NotAllowed(f"{op:.80}", f"the key of {needed}", f"that of the {client.role} {client.name!r}")

"""plr_client/address.py: every address that no server can have is refused at once, and the message says why."""

from __future__ import annotations

import pytest

from plr_client import InvalidInput, LevelClient, Trainer
from plr_client.address import check_address

KINDS = "ipc://PATH or tcp://HOST:PORT"
PORT = "tcp://HOST:PORT with a port from 1 to 65535"
HOST = "tcp://HOST:PORT with the name of the server's machine, or 127.0.0.1 for this one"
PATH = "ipc://PATH with a path of 1 to 107 bytes"

# address -> what was expected
WRONG = {
    "": KINDS,
    "/run/plr.sock": KINDS,
    "localhost": KINDS,
    "http://localhost:5555": KINDS,
    "TCP://localhost:5555": KINDS,
    "tcp:/localhost:5555": KINDS,
    " tcp://localhost:5555": KINDS,
    "localhost:5555": f"{KINDS}, such as tcp://localhost:5555",
    "tcp://localhost": PORT,
    "tcp://localhost:": PORT,
    "tcp://localhost:0": PORT,
    "tcp://localhost:-1": PORT,
    "tcp://localhost:65536": PORT,
    "tcp://localhost:99999": PORT,
    "tcp://localhost:http": PORT,
    "tcp://localhost:5555/": PORT,
    "tcp://localhost:\u0665": PORT,  # a digit, of another alphabet
    "tcp:// localhost:5555": "tcp://HOST:PORT without spaces",
    "tcp://localhost:5555\n": "tcp://HOST:PORT without spaces",
    "tcp://:5555": HOST,
    "tcp://*:5555": HOST,
    "ipc://": PATH,
    "ipc://" + "x" * 108: PATH,
    None: KINDS,
    b"ipc:///tmp/x": KINDS,
    5555: KINDS,
}


@pytest.mark.parametrize("address", WRONG, ids=repr)
@pytest.mark.parametrize("client", [LevelClient, Trainer])
def test_a_wrong_address_is_refused_before_anybody_connects(client, address):
    with pytest.raises(InvalidInput) as raised:
        client(address)
    assert str(raised.value) == f"address: expected {WRONG[address]}, got {address!r}"


@pytest.mark.parametrize(
    "address",
    ["tcp://localhost:1", "tcp://10.0.0.7:65535", "tcp://[::1]:5555", "ipc:///run/plr.sock", "ipc://" + "x" * 107],
)
def test_others_are_taken(address):
    check_address(address)


def test_what_a_function_tells_is_checked_when_the_connection_opens():
    client = LevelClient(lambda: "tcp://localhost:99999")
    with pytest.raises(InvalidInput, match=r"^address: expected tcp://HOST:PORT with a port"):
        client.next()
    client.close()

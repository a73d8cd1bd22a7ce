"""turns.py: large requests wait for small ones, each peer's in order, and nobody's for all of another's."""

from __future__ import annotations

import itertools
import threading

import faults
import numpy as np
import pytest

from plr_client import LevelClient, Trainer
from plr_server.serving.turns import LARGE_BYTES, MAX_PUT_OFF, MAX_PUT_OFF_BYTES, Received, Turns

A, B, C = b"\x01a", b"\x01b", b"\x01c"


def request(peer, num_bytes, text=b"header"):
    return Received(peer, None, [text] if num_bytes == 0 else [text, bytes(num_bytes)], None)


def taken(turns):
    return [(each.peer, each.frames[0]) for each in iter(lambda: turns.next() if turns else None, None)]


def test_small_ones_are_not_put_off():
    turns = Turns()
    assert not turns.put_off(request(A, 0))
    assert not turns.put_off(request(A, LARGE_BYTES - len(b"header") - 1))
    assert not turns.put_off(request(A, 0, b"h" * LARGE_BYTES))
    assert len(turns) == 0


def test_each_peer_has_its_turn_and_its_own_order():
    turns = Turns()
    for number, peer in enumerate([A, A, A, B, A, C]):
        assert turns.put_off(request(peer, LARGE_BYTES, b"%d" % number))
    assert turns.put_off(request(B, 0, b"6"))  # a small one, but not before what its peer has said before
    assert len(turns) == 7
    assert taken(turns) == [(A, b"0"), (B, b"3"), (C, b"5"), (A, b"1"), (B, b"6"), (A, b"2"), (A, b"4")]
    assert not turns.put_off(request(B, 0))


def test_only_so_much_is_put_off():
    turns = Turns()
    for number in range(MAX_PUT_OFF):
        assert not turns.full
        turns.put_off(request(b"%d" % (number % 7), LARGE_BYTES))
    assert turns.full
    turns.next()
    assert not turns.full
    while turns:
        turns.next()
    large = bytes(MAX_PUT_OFF_BYTES // 2)
    for peer, full in ((A, False), (B, True)):
        turns.put_off(Received(peer, None, [b"header", large], None))
        assert turns.full is full


@pytest.mark.parametrize("fsync", ["interval", "always"])
def test_under_a_flood_of_pushes_everybody_is_served_and_each_push_counts_once(tmp_path, ipc, fsync):
    fields = {
        "values": np.zeros((256, 64), dtype=np.float32),
        "rewards": np.zeros((256, 64), dtype=np.float32),
        "dones": np.ones((256, 64), dtype=bool),
        "levels": np.ones((256, 64), dtype=np.int64),
        "next_values": np.zeros(64, dtype=np.float32),
    }
    num = 12  # of each connection, all sent at once
    with faults.daemon(ipc, "--state-dir", str(tmp_path / "state"), "--fsync", fsync), Trainer(ipc) as trainer:
        done = threading.Event()

        def flood(name):
            with faults.Raw(ipc) as raw:
                raw.ask(faults.hello(name))
                for seq in range(2, num + 2):
                    raw.send(faults.request("push", fields, session=name, seq=seq))
                for seq in range(2, num + 2):
                    reply = raw.receive()
                    assert (reply.id, reply.error, reply.result) == (seq, None, {"scored": 256 * 64})
            done.set()

        floods = [threading.Thread(target=flood, args=(name,)) for name in ("one", "two", "three")]
        for each in floods:
            each.start()
        with LevelClient(ipc) as client:
            asked = next(asked for asked in itertools.count(1) if client.next() and done.is_set())
        for each in floods:
            each.join()
        stats = trainer.stats()
        assert (stats["pushes"], stats["draws"]) == (3 * num, asked)

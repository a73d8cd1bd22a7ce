"""A short run of `make fuzz` (tests/fuzz.py), over what its own claims rest on."""

from __future__ import annotations

from collections import Counter

import fuzz


def test_thousands_of_malformed_messages_change_nothing():
    with fuzz.fuzzed_server() as (server, seen):
        told, before, _ = fuzz.fuzz(server, seen, messages=2_000, seed=1)
        fuzz.throw_garbage(server, seen, connections=30, seed=1)
        assert told.total() == 2_000
        assert before > 0


def test_the_same_seed_makes_the_same_messages_of_every_kind():
    streams = [fuzz.Malformed(seed) for seed in (1, 1, 2)]
    first, again, other = ([stream.next() for _ in range(200)] for stream in streams)
    assert first == again != other
    assert min(Counter(kind for kind, _, _ in first).values()) > 10

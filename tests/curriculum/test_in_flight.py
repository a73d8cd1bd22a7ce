from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plr_client import InvalidInput
from plr_server.curriculum import in_flight as module
from plr_server.curriculum.in_flight import InFlight

SLOTS = st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True)
COMMANDS = st.lists(st.tuples(st.sampled_from(["play", "play", "release"]), st.sampled_from("ab"), SLOTS, st.data()))


@given(COMMANDS)
def test_it_is_a_dict_of_who_plays_what(commands):
    in_flight, held = InFlight(), {}
    for command, holder, slots, data in commands:
        before = Counter(held.values())
        if command == "play":
            ended = in_flight.end(holder, slots)
            for slot in slots:
                held.pop((holder, slot), None)
            between = Counter(held.values())
            levels = data.draw(st.lists(st.integers(0, 3), min_size=len(slots), max_size=len(slots)))
            in_flight.begin(holder, slots, levels)
            held |= {(holder, slot): level for slot, level in zip(slots, levels, strict=True)}
        else:
            ended = in_flight.release(holder)
            held = {key: level for key, level in held.items() if key[0] != holder}
            between = Counter(held.values())
        assert sorted(ended) == sorted(before - between)  # each once, where fewer play it
        for each in (in_flight, InFlight(in_flight.state())):
            assert each.num_slots == Counter(held.values())
            assert all(each.num_slots.values())
            assert each.total() == len(held)
            assert [each.holds(name) for name in "abc"] == [any(key[0] == name for key in held) for name in "abc"]
            assert {(name, slot): level for name, of in each.state().items() for slot, level in of.items()} == held


def test_only_so_many_slots_play_at_once(monkeypatch):
    monkeypatch.setattr(module, "MAX_SLOTS", 5)
    monkeypatch.setattr(module, "MAX_IN_FLIGHT", 8)
    in_flight = InFlight({"a": {0: 7, 1: 7, 2: 7}})

    def refused(holder, slots):
        with pytest.raises(InvalidInput) as raised:
            in_flight.check(holder, slots)
        return str(raised.value)

    in_flight.check("a", [3, 4])
    in_flight.check("a", [0, 1, 2, 3, 4])  # of which three play now
    expected = (
        "slots: expected at most 5 of one client that play at once (use their numbers again), got 3 more, beside 3"
    )
    assert refused("a", [3, 4, 5]) == expected
    in_flight.begin("b", range(5), [1] * 5)
    in_flight.check("b", range(5))
    assert refused("c", [0]) == "slots: expected at most 8 of all clients that play at once, got 1 more, beside 8"
    in_flight.end("b", [4])
    in_flight.check("c", [0])
    in_flight.release("b")
    in_flight.check("c", range(5))
    assert in_flight.total() == 3


def test_levels_that_end_come_in_the_order_of_their_slots():
    in_flight = InFlight()
    in_flight.begin("a", [0, 1, 2, 3], [7, 5, 6, 7])
    assert list(in_flight.end("a", [3, 9, 1, 0])) == [7, 5]
    assert list(in_flight.end("nobody", [0])) == list(in_flight.end("a", [0])) == []
    assert in_flight.num_slots == {6: 1}

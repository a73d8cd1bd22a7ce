"""plr_server/viewer/history.py: bounded, evenly thinned, and never without its newest sample."""

from __future__ import annotations

import json

import pytest

from plr_server.viewer.history import CAPACITY, History


def filled(num):
    history = History()
    for t in range(num):
        history.add({"t": t, "draws": 3 * t})
    return history


@pytest.mark.parametrize("num", [1, 2, CAPACITY, CAPACITY + 1, CAPACITY + 2, 1000, 5003, 12_345])
def test_it_keeps_the_first_the_newest_and_evenly_spaced_ones_between(num):
    history = filled(num)
    times = [sample["t"] for sample in history.samples]
    assert len(times) <= CAPACITY
    assert num <= CAPACITY or len(times) > CAPACITY // 2
    assert times[-1] == num - 1
    assert times[:-1] == list(range(0, num - 1, history.stride))


def test_a_day_of_looks_takes_no_more_room_than_an_hour():
    day = len(json.dumps(filled(43_200).to_dict()))  # one every two seconds
    assert day < 1.3 * len(json.dumps(filled(1800).to_dict()))


@pytest.mark.parametrize("num", [0, 5, CAPACITY + 1, 999])
def test_it_goes_on_from_what_was_saved(num):
    history = History.from_dict(json.loads(json.dumps(filled(num).to_dict())))
    for t in range(num, num + 400):
        history.add({"t": t, "draws": 3 * t})
    assert history.to_dict() == filled(num + 400).to_dict()


def test_newest_is_what_a_page_lacks():
    assert History().newest() == {"stride": 1, "length": 0, "newest": None}
    assert filled(CAPACITY + 1).newest() == {
        "stride": 2,
        "length": CAPACITY // 2 + 1,
        "newest": {"t": CAPACITY, "draws": 3 * CAPACITY},
    }

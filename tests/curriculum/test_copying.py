"""plr_server/curriculum/copying.py: nothing is shared, and memory is used again where it fits."""

from __future__ import annotations

import copy

import faults
import numpy as np

from plr_server.curriculum.copying import copied

STATE = {
    "counts": {"draws": 3, "share": 0.5, "name": "a", "packed": b"b", "is": True, "none": None},
    "arrays": {"scores": np.arange(5.0), "seen": np.zeros((2, 3), dtype=np.bool_), "none": None},
    "lists": [1, [2, np.arange(2)], {"x": [3]}, (4, 5)],
    "by int": {7: {8: 9}},
}


def test_a_copy_is_equal_and_shares_nothing_that_can_change():
    state, kept = copy.deepcopy(STATE), copied(STATE)
    assert faults.same(kept, STATE)
    kept["counts"]["draws"] = 4
    kept["arrays"]["scores"][0] = 9.0
    kept["lists"][0] = 9
    kept["lists"][1][1][0] = 9
    kept["lists"][2]["x"].append(9)
    kept["by int"][7][8] = 10
    assert faults.same(STATE, state)


def test_a_read_only_array_is_copied_to_one_that_is_not():
    array = np.arange(3)
    array.setflags(write=False)
    assert copied({"x": array})["x"].flags.writeable


def test_the_arrays_of_a_copy_that_is_given_up_are_filled_anew_where_they_fit():
    before = copied(STATE)
    changed = copied(STATE)
    changed["arrays"]["scores"] += 1.0
    changed["arrays"]["seen"] = np.ones((3, 3), dtype=np.bool_)
    again = copied(changed, before)
    assert faults.same(again, changed)
    assert again["arrays"]["scores"] is before["arrays"]["scores"]
    assert again["arrays"]["seen"] is not changed["arrays"]["seen"]

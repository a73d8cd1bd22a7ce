from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from plr_server.curriculum.sampling.unseen import AvailableLevels


@given(st.lists(st.booleans(), min_size=1, max_size=70), st.lists(st.tuples(st.booleans(), st.integers(0, 69))))
def test_selection_by_order_is_that_of_a_sorted_list(start, changes):
    inside = {i for i, flag in enumerate(start) if flag}
    levels = AvailableLevels(np.array(start))
    for add, index in changes:
        if index < len(start):
            (levels.add if add else levels.discard)(index)
            (inside.add if add else inside.discard)(index)
    assert len(levels) == len(inside)
    assert [levels.select(rank) for rank in range(len(levels))] == sorted(inside)
    assert [index in levels for index in range(len(start))] == [index in inside for index in range(len(start))]


@given(
    st.sets(st.integers(0, 1999)), st.integers(0, 5), st.lists(st.sets(st.integers(0, 1999), max_size=40), max_size=4)
)
def test_many_are_taken_out_as_one_by_one(start, few, taken):
    levels = AvailableLevels(np.isin(np.arange(2000), list(start)))
    for indices in [set(range(few)), *taken]:  # few enough to be taken out one by one, and too many for that
        levels.discard_all(np.array(sorted(indices), dtype=np.int64))
        start -= indices
    assert [levels.select(rank) for rank in range(len(levels))] == sorted(start)
    assert [index in levels for index in range(2000)] == [index in start for index in range(2000)]

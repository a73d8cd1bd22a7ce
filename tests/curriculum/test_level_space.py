from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plr_client import LevelOutsideSpace
from plr_server.curriculum.spaces.level_space import level_space

SPACES = st.one_of(
    st.builds(range, st.integers(-50, 50), st.integers(-50, 50), st.integers(-7, 7).filter(bool)).filter(len),
    st.lists(st.integers(-(2**63) + 1, 2**63 - 1), min_size=1, max_size=20, unique=True).map(tuple),
)


@given(SPACES)
def test_ids_and_indices_are_each_others_inverse(levels):
    space = level_space(levels)
    indices = np.arange(len(space))
    assert space.ids(indices).tolist() == list(levels) == [space.id_of(i) for i in indices.tolist()]
    np.testing.assert_array_equal(space.indices(np.array(levels)), indices)


@given(SPACES, st.integers(-(2**63), 2**63 - 1))
def test_an_id_outside_is_refused_and_named(levels, wanted):
    space = level_space(levels)
    if wanted in levels:
        assert space.indices(np.array([wanted])).tolist() == [levels.index(wanted)]
    else:
        with pytest.raises(LevelOutsideSpace, match=rf"got level {wanted}$"):
            space.indices(np.array([levels[0], wanted]))


def test_ten_million_levels_cost_no_object_each():
    space = level_space(range(10**7))
    assert space.indices(np.array([0, 9_999_999])).tolist() == [0, 9_999_999]

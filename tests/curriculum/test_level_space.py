from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plr_client import LevelOutsideSpace
from plr_server import Config, Curriculum
from plr_server.curriculum.spaces.level_space import level_space

ENDS = st.integers(-(2**63) + 1, 2**63 - 1)


def wide(first, last, parts, *, backwards):
    """A range over up to the whole of int64, in at most so many levels."""
    first, last = min(first, last), max(first, last)
    step = max((last - first) // parts, 1)
    levels = range(first, last + 1, step)[:20]
    return levels[::-1] if backwards else levels


SPACES = st.one_of(
    st.builds(wide, ENDS, ENDS, st.integers(1, 5), backwards=st.booleans()),
    st.builds(lambda first, step: range(first, first + 1, step), ENDS, st.integers(1, 2**70)),
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


def test_a_range_across_int64_is_played_scored_and_restored():
    levels = range(-(2**63 - 1), 2**63 - 1, 2**62)
    curriculum = Curriculum(Config(levels=levels, strategy="external", replay_prob=0.5))
    curriculum.update_scores(list(levels)[2:3], [1.0])
    ids, _, _, seen = curriculum.scores()
    assert ids.tolist() == list(levels)
    assert seen.tolist() == [False, False, True, False]
    assert {assignment.level for assignment in curriculum.sample(50, holder="b")} == set(levels)
    twin = Curriculum.from_state(curriculum.state())
    assert twin.sample(20) == curriculum.sample(20)
    for outside in (-(2**63), levels[0] + 1, 2**63 - 1):
        with pytest.raises(LevelOutsideSpace):
            curriculum.update_scores([outside], [1.0])

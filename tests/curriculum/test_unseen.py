from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from plr_server.curriculum.sampling.unseen import Bag, IndexSet, UnseenLevels


@given(st.integers(1, 70), st.lists(st.tuples(st.booleans(), st.integers(0, 69)), max_size=150))
def test_selection_by_order_is_that_of_a_sorted_list(num, changes):
    inside, levels = set(range(num)), IndexSet(num)
    for add, index in changes:
        if index < num:
            (levels.add if add else levels.discard)(index)
            (inside.add if add else inside.discard)(index)
    assert len(levels) == len(inside)
    assert [levels.select(rank) for rank in range(len(levels))] == sorted(inside)
    assert [index in levels for index in range(num)] == [index in inside for index in range(num)]
    while inside:
        place = len(inside) * 3 // 7
        assert levels.pop(place) == sorted(inside)[place]
        inside.remove(sorted(inside)[place])
        assert [levels.select(rank) for rank in range(len(levels))] == sorted(inside)
    assert levels._tree.tolist() == [0] + [index & -index for index in range(1, num + 1)]


@given(st.integers(0, 5), st.lists(st.sets(st.integers(0, 1999), max_size=40), max_size=4))
def test_many_are_taken_out_as_one_by_one(few, taken):
    left, levels = set(range(2000)), IndexSet(2000)
    for indices in [set(range(few)), *taken]:  # few enough to be taken out one by one, and too many for that
        levels.discard_all(np.array(sorted(indices), dtype=np.int64))
        left -= indices
        for index in sorted(indices)[:2]:
            levels.add(index)
            left.add(index)
    assert [levels.select(rank) for rank in range(len(levels))] == sorted(left)
    assert [index in levels for index in range(2000)] == [index in left for index in range(2000)]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=60))
def test_a_bag_is_a_set_whose_order_can_be_made_again(changes):
    inside, bag = set(), Bag()
    for add, level in changes:
        (bag.add if add else bag.discard)(level)
        (inside.add if add else inside.discard)(level)
    in_order, again = [bag.select(place) for place in range(len(bag))], Bag()
    for level in in_order:
        again.add(level)
    assert sorted(in_order) == sorted(inside)
    for each in (bag, again):
        assert [each.select(place) for place in range(len(each))] == in_order
        assert [level in each for level in range(10)] == [level in inside for level in range(10)]


class UnseenBesideACount(RuleBasedStateMachine):
    """Levels are played, released, seen and added; a plain dict counts who plays them."""

    @initialize(cap=st.integers(0, 3), of_ids=st.booleans(), num=st.integers(1, 6))
    def start(self, cap, of_ids, num):
        self.cap, self.of_ids = cap, of_ids
        self.unseen = UnseenLevels(Bag if of_ids else lambda: IndexSet(num), cap)
        self.played = {} if of_ids else dict.fromkeys(range(num), 0)
        self.added = num

    @precondition(lambda self: self.of_ids)
    @rule()
    def add(self):
        self.unseen.add(self.added)
        self.played[self.added] = 0
        self.added += 1

    @precondition(lambda self: len(self.played) > 1)
    @rule(data=st.data(), many=st.booleans())
    def remove(self, data, many):
        level = data.draw(st.sampled_from(sorted(self.played)))
        if many:
            self.unseen.remove_all(np.array([level]))
        else:
            self.unseen.remove(level)
        del self.played[level]
        self.unseen.played_by(level, 0)  # who still plays it may let it go: it stays out

    @precondition(lambda self: self.played)
    @rule(uniform=st.floats(0, 1, exclude_max=True))
    def take(self, uniform):
        def tier(level):
            return 0 if not self.played[level] else 1 if not self.cap or self.played[level] < self.cap else 2

        level = self.unseen.take(uniform)
        assert tier(level) == min(map(tier, self.played))
        self.played[level] += 1
        self.unseen.played_by(level, self.played[level])

    @precondition(lambda self: self.played)
    @rule(data=st.data())
    def play_or_let_go(self, data):
        level = data.draw(st.sampled_from(sorted(self.played)))
        self.played[level] = data.draw(st.integers(0, 4))
        self.unseen.played_by(level, self.played[level])

    @invariant()
    def the_sets_are_those_of_the_counts(self):
        if hasattr(self, "unseen"):
            below = {level for level, num in self.played.items() if not self.cap or num < self.cap}
            idle = {level for level, num in self.played.items() if not num}
            for levels, expected in zip(self.unseen.sets, (set(self.played), below, idle), strict=True):
                assert {levels.select(place) for place in range(len(levels))} == expected
                assert len(levels) == len(expected)
            assert len(self.unseen.every) == len(self.played)


TestUnseenBesideACount = UnseenBesideACount.TestCase
TestUnseenBesideACount.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("num_seen", [0, 3])
def test_ten_million_levels_take_no_memory_before_they_are_touched(num_seen):
    levels = IndexSet(10_000_000)
    levels.discard_all(np.arange(num_seen))
    assert levels.select(0) == num_seen
    assert levels.select(len(levels) - 1) == 9_999_999

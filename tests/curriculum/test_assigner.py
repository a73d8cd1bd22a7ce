"""Which level is handed out next: with a cap and without, one at a time and whole batches as arrays."""

from __future__ import annotations

import pickle
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plr_client import InvalidInput
from plr_client.errors import NoLevels
from plr_server import Config, Curriculum
from plr_server.curriculum.sampling.transforms import TRANSFORMS

SPACES = st.sampled_from([range(5, 305, 7), [3, 1, 8], range(1), "unbounded", "payloads"])


def frozen(curriculum):
    return pickle.dumps(curriculum.state())


def set_up(config, rng):
    """A curriculum some levels of which are seen and some in flight."""
    curriculum = Curriculum(config)
    if config.levels == "payloads":
        curriculum.insert(list(range(int(rng.integers(1, 9)))))
    for holder in "ab":
        levels = [assignment.level for assignment in curriculum.sample(int(rng.integers(1, 7)), holder=holder)]
        scored = levels[: int(rng.integers(0, len(levels) + 1))]
        if config.strategy == "external":
            curriculum.update_scores(np.array(scored, dtype=np.int64), rng.random(len(scored)))
    if isinstance(config.levels, range) and rng.random() < 0.3:
        curriculum.update_scores(list(config.levels), rng.random(len(config.levels)))
    return curriculum


def configs(**fields):
    return st.builds(
        Config,
        levels=fields.pop("levels", SPACES),
        capacity=st.just(9),
        strategy=fields.pop("strategy", st.just("external")),
        transform=st.sampled_from(TRANSFORMS),
        temperature=st.sampled_from([0.1, 2.0]),
        staleness_coef=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
        staleness_temperature=st.sampled_from([1.0, 1.0, 0.5]),
        replay_schedule=st.sampled_from(["proportionate", "fixed"]),
        replay_prob=st.sampled_from([0.0, 0.6, 1.0]),
        min_fill_ratio=st.sampled_from([0.0, 0.5]),
        robust=st.booleans(),
        seed=st.integers(0, 9),
        **fields,
    )


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        configs(max_in_flight=st.sampled_from([0, 0, 1, 2])),
        configs(levels=st.just(range(7)), strategy=st.sampled_from(["random", "sequential"])),
    ),
    st.integers(1, 40),
    st.integers(0, 99),
)
def test_a_batch_is_as_many_single_draws(config, k, seed):
    """In levels, replays, training and the state after it; the numbers that single draws take come in another order.

    Without a cap, a batch decides replay or new, and which new, k times first, and then draws the replays. So the
    single draws take their decisions from the generator as it was, and their replays from where the batch began with
    those. With a cap it is the same order.
    """
    arrays = set_up(config, np.random.default_rng(seed))
    listed, single = (Curriculum.from_state(arrays.state()) for _ in range(2))
    got = arrays.sample_arrays(k, holder="new")
    assert [x.dtype for x in got[:3]] == [np.int64, np.bool_, np.bool_]
    assert listed.sample(k, holder="new") == listed_of(got)
    assert frozen(listed) == frozen(arrays)

    state_after = arrays._rng.bit_generator.state
    if not config.max_in_flight and config.strategy == "external":
        replays = np.random.Generator(np.random.PCG64())
        replays.bit_generator.state = state_after
        replays.bit_generator.advance(2**128 - 2 * int(got.is_replay.sum()))
        replays_begin = replays.bit_generator.state
        draw, replay = single._sampler.draw, single._sampler.replay
        single._sampler.draw = lambda _, picks, **options: draw(replays, picks, **options)
        single._sampler.replay = lambda _: replay(replays)
    drawn = [assignment for slot in range(k) for assignment in single.sample(1, slots=[slot], holder="new")]
    assert drawn == listed_of(got)
    if not config.max_in_flight and config.strategy == "external":
        assert single._rng.bit_generator.state == replays_begin
        assert replays.bit_generator.state == state_after
        single._rng.bit_generator.state = state_after
    assert frozen(single) == frozen(arrays)


def listed_of(got):
    payloads = got.payloads or [None] * len(got.levels)
    return list(zip(got.levels.tolist(), got.is_replay.tolist(), got.train.tolist(), payloads, strict=True))


def test_arrays_of_bad_requests_are_refused_as_lists_are():
    curriculum = Curriculum(Config(levels="payloads"))
    before = frozen(curriculum)
    for arguments, kind in (
        ({"k": 0}, InvalidInput),
        ({"k": 2, "slots": [1, 1]}, InvalidInput),
        ({"k": 4097}, InvalidInput),
        ({"k": 1}, NoLevels),
    ):
        with pytest.raises(kind):
            curriculum.sample_arrays(**arguments)
    assert frozen(curriculum) == before


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(0, 99))
def test_a_cap_that_does_not_bind_changes_nothing(data, seed):
    capped = set_up(data.draw(configs(max_in_flight=st.just(1000))), np.random.default_rng(seed))
    state = capped.state()
    state["config"]["max_in_flight"] = 0
    free = Curriculum.from_state(state)
    for slot in range(30):
        assert capped.sample(slots=[slot], holder="c") == free.sample(slots=[slot], holder="c")


@settings(max_examples=150, deadline=None)
@given(configs(max_in_flight=st.integers(1, 3)), st.integers(1, 60), st.integers(0, 99))
def test_no_level_is_above_the_cap_while_one_is_below_it(config, k, seed):
    curriculum = set_up(config, np.random.default_rng(seed))
    plays = Counter(level for slots in curriculum.state()["held"].values() for level in slots.values())
    seen = set(curriculum.scores()[0][curriculum.scores()[3]].tolist())
    known = {
        "unbounded": lambda: seen,
        "payloads": lambda: seen | {level for level in range(9) if curriculum._payloads.is_kept(level)},
    }.get(config.levels if isinstance(config.levels, str) else "", lambda: set(config.levels))()
    for slot in range(k):
        (assignment,) = curriculum.sample(slots=[slot], holder="c")
        if config.levels == "unbounded":  # there is always another seed
            assert plays[assignment.level] < (config.max_in_flight if assignment.is_replay else 1)
        else:
            assert (
                plays[assignment.level] < config.max_in_flight
                or min(plays[each] for each in known) >= config.max_in_flight
            )
        plays[assignment.level] += 1


SITUATIONS = {  # name: fields, how many of N levels are seen, how many slots play
    "all seen, all at the cap": ({"max_in_flight": 1}, 1.0, 1.0),
    "all seen, one below the cap": ({"max_in_flight": 1}, 1.0, -1),
    "all unseen, all in flight": ({}, 0.0, 1.0),
    "all unseen, all at the cap": ({"max_in_flight": 1}, 0.0, 1.0),
    "half seen, half in flight": ({"max_in_flight": 1}, 0.5, 0.5),
}


@pytest.mark.parametrize("transform", ["rank", "power"])
@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_draw_costs_the_logarithm_of_the_levels(situation, transform):
    """Lines of Python that are run for a draw and the end of one: from 200 to 20 000 levels, by less than three."""
    fields, seen, in_flight = SITUATIONS[situation]
    lines = {}
    for num in (200, 20_000):
        curriculum = Curriculum(Config(levels=range(num), strategy="external", transform=transform, **fields))
        levels = np.arange(int(seen * num))
        curriculum.update_scores(levels, np.random.default_rng(0).random(len(levels)))
        curriculum.sample(num - 1 if in_flight < 0 else int(in_flight * num), holder="busy")
        curriculum.sample(4)
        lines[num] = lines_run(lambda curriculum=curriculum: [curriculum.sample(1) for _ in range(40)])
    assert lines[20_000] < 3 * lines[200]


def test_a_draw_of_a_closed_space_that_is_all_seen_goes_the_short_way():
    """What most requests of a long run ask for: 71 lines of Python each, no look at what is unseen or at the cap."""
    curriculum = Curriculum(Config(levels=range(200), strategy="external"))
    curriculum.update_scores(np.arange(199), np.arange(199.0))
    curriculum.sample()
    some_unseen = lines_run(lambda: [curriculum.sample() for _ in range(100)])
    curriculum.update_scores([199], [0.5])
    assert lines_run(lambda: [curriculum.sample() for _ in range(100)]) < min(100 * 80, some_unseen)


def lines_run(function):
    num = 0

    def trace(_frame, event, _argument):
        nonlocal num
        num += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return num

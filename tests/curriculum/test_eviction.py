"""The level of the lowest P_replay, against all of them in 400-digit decimals."""

from __future__ import annotations

import decimal
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sampler import p_score

from plr_server.curriculum.sampling import order
from plr_server.curriculum.sampling.sampler import OUTSIDE, REPLAY, Sampler
from plr_server.curriculum.sampling.transforms import TRANSFORMS

SCORES = st.one_of(
    st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, -1.0, 2.0]),  # ties
    st.floats(-2, 2).map(lambda score: round(score, 3)),
    st.sampled_from([1e30, -1e30, 1e-30, -1e-30]),
    st.floats(-200, 200).map(round),  # at the temperature 0.1, P_S of most underflows
)


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    """Blocks of 4 levels, so that 40 levels make 10."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "BLOCK", 4)
        yield


def assert_lowest(sampler, config):
    """By the rule of `Sampler.lowest`, all of it in decimals.

    Float64 may not tell two close values of P_replay apart; that makes a difference only where the staler of the two
    has the lower P_S, for otherwise the rule goes on in the order of the decimals.
    """
    found, exact = sampler.lowest(), rule(sampler, config)
    for other, place in exact.items():
        staler = sampler.last_drawn[other] != sampler.last_drawn[found]
        close = place[0] >= exact[found][0] * Decimal(1 - 1e-12) - Decimal("1e-300")
        assert exact[found] <= place or (staler and close)


def rule(sampler, config):
    """{index: (P_replay, P_S, value, last drawn last, index)} of the seen levels; the lowest is to be found."""
    seen = np.flatnonzero(sampler.seen).tolist()
    transform, rho = config["transform"], Decimal(config["staleness_coef"])
    values = sampler.scores[seen].tolist()
    if transform in {"match", "match_rank"} and rho < 1:  # the float64 product: 0.3 and 0.7 are alike
        values = [(1 - score) * score for score in values]
        transform = {"match": "power", "match_rank": "rank"}[transform]
    with decimal.localcontext() as context:
        context.prec = 400  # so that 1e-307 beside 0.03 is no tie
        context.Emin = -(10**12)  # and a softmax of -1e30 not too small
        if rho == 1:
            by_score = [Decimal(0)] * len(seen)
        else:
            by_score = p_score(values, transform, config["temperature"], config["eps"], precision=400)
        exponent = 1 / Decimal(config["staleness_temperature"])
        stale = [Decimal(int(sampler.draws - sampler.last_drawn[i])) for i in seen]
        by_age = [age**exponent if age else Decimal(0) for age in stale]
        total = sum(by_age)
        return {
            i: ((1 - rho) * p + rho * (age / total if total else 1 / Decimal(len(seen))), p, value, age, i)
            for i, p, value, age in zip(seen, by_score, values, by_age, strict=True)
        }


@settings(max_examples=300, deadline=None)
@given(
    transform=st.sampled_from(TRANSFORMS),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 5.0]),
    staleness_coef=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    staleness_temperature=st.sampled_from([1.0, 1.0, 0.5]),
    num_levels=st.integers(1, 40),
    data=st.data(),
)
def test_it_is_the_lowest_of_all(transform, temperature, staleness_coef, staleness_temperature, num_levels, data):
    config = {
        "transform": transform,
        "temperature": temperature,
        "staleness_coef": staleness_coef,
        "staleness_temperature": staleness_temperature,
        "eps": 0.05,
    }
    sampler = Sampler(num_levels, **config, evicts=True)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    index = st.integers(0, num_levels - 1)
    for _ in range(data.draw(st.integers(1, 8))):
        changed = np.array(data.draw(st.lists(index, unique=True, max_size=num_levels)), dtype=np.int64)
        sampler.set_scores(changed, np.array(data.draw(st.lists(SCORES, min_size=len(changed), max_size=len(changed)))))
        if sampler.num_seen:
            sampler.draw(rng, data.draw(st.lists(st.one_of(st.sampled_from([REPLAY, OUTSIDE]), index), max_size=12)))
        gone = data.draw(st.lists(index, unique=True, max_size=3))
        sampler.forget(np.array(gone, dtype=np.int64))
        for unseen in gone:
            sampler.place(unseen, data.draw(st.integers(0, sampler.draws)))
        if sampler.num_seen:
            assert_lowest(sampler, config)
    restored = Sampler.from_state(sampler.state(), **config, evicts=True)
    if sampler.num_seen:
        assert restored.lowest() == sampler.lowest()


@pytest.mark.parametrize("staleness_coef", [0.0, 0.1])
@pytest.mark.parametrize(
    ("transform", "temperature", "scores", "lowest"),
    [
        ("softmax", 0.1, [100.0, 20.0, 1.0, 3.0, 2.0], 2),
        ("rank", 0.001, [100.0, 20.0, 1.0, 3.0, 2.0], 2),
        ("power", 0.001, [100.0, 20.0, 1.0, 3.0, 2.0], 2),
        ("power", 0.1, [1.0, -1.0, -3.0, -2.0, 0.0], 2),  # all but one weigh nothing
        ("match", 0.1, [0.5, 2.0, 3.0, 2.5, 1.0], 2),
        ("max", 0.1, [100.0, 20.0, 1.0, 3.0, 2.0], 2),
        ("constant", 0.1, [100.0, 20.0, 1.0, 3.0, 2.0], 2),
        ("softmax", 0.1, [100.0, 1.0, 1.0, 1.0, 2.0], 3),  # of the lowest, the one drawn last
    ],
)
def test_where_p_s_vanishes_the_lower_value_goes(transform, temperature, scores, lowest, staleness_coef):
    config = {"transform": transform, "temperature": temperature, "staleness_coef": staleness_coef}
    sampler = Sampler(5, **config, staleness_temperature=1.0, eps=0.05, evicts=True)
    sampler.set_scores(np.arange(5), np.array(scores))
    if lowest == 3:
        sampler.draw(np.random.default_rng(0), [0, 4, 1, 2, 3])
    assert sampler.lowest() == lowest


def test_a_level_drawn_twice_in_a_batch_was_drawn_the_second_time():
    config = {"transform": "rank", "temperature": 0.7, "staleness_coef": 1.0, "staleness_temperature": 1.0, "eps": 0.05}
    sampler = Sampler(8, **config, evicts=True)
    sampler.set_scores(np.arange(8), np.arange(8, 0, -1.0))  # two blocks
    sampler.lowest()
    sampler.draw(np.random.default_rng(0), [0, 1, 4, 0])
    assert sampler.lowest() == 0


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("alike", ["scores", "staleness", "both"])
def test_many_ties_are_broken_by_index_without_opening_every_block(transform, alike):
    """All of 4 000 levels that no draw has touched, in 1 000 blocks: what is alike for all costs no search."""
    num = 4_000
    config = {
        "transform": transform,
        "temperature": 0.7,
        "staleness_coef": 0.3,
        "staleness_temperature": 1.0,
        "eps": 0.05,
    }
    rng = np.random.default_rng(5)
    sampler = Sampler(num, **config, evicts=True)
    sampler.set_scores(np.arange(num), np.full(num, 0.5) if alike != "staleness" else rng.random(num))
    if alike == "scores":
        sampler.draw(rng, rng.permutation(num).tolist())
    opened = []
    staleness = sampler._all.by_staleness
    p_stale = staleness.p_stale(sampler.draws)
    staleness.p_stale = lambda _draws: lambda last_drawn: opened.append(len(last_drawn)) or p_stale(last_drawn)
    found = sampler.lowest()
    weights = sampler.weights()
    assert weights[found] == pytest.approx(weights.min(), rel=1e-9)
    assert sum(opened[1:]) <= 64  # after the bounds of the blocks


def test_one_hundred_thousand_levels_are_searched_in_few_blocks():
    """Levels as a run leaves them, the high scores drawn often: the levels looked at are a small share of all."""
    num = 100_000
    rng = np.random.default_rng(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "BLOCK", 1024)
        config = {
            "transform": "rank",
            "temperature": 0.3,
            "staleness_coef": 0.1,
            "staleness_temperature": 1.0,
            "eps": 0.05,
        }
        sampler = Sampler(num, **config, evicts=True)
        sampler.set_scores(np.arange(num), rng.random(num))
        looked_at, of = [], sampler._all.by_score.of
        sampler._all.by_score.of = lambda ranks, values: looked_at.append(len(ranks)) or of(ranks, values)
        for _ in range(40):
            sampler.draw(rng, [REPLAY] * 500)
            lowest = sampler.lowest()
            weights = sampler.weights()
            assert weights[lowest] <= weights.min() * (1 + 1e-9)
            sampler.forget(np.array([lowest]))
            sampler.place(lowest, sampler.draws)
            sampler.set_scores(np.array([lowest]), rng.random(1))
        assert sum(looked_at) / 40 < num / 10

"""The sampler against the equations in 30-digit decimals, and against itself rebuilt from its state.

Statistical tests: chi-square (upper tail by Wilson and Hilferty, cells expecting under 5 pooled), fixed seeds, refused
at p <= 1e-4.
"""

from __future__ import annotations

import decimal
from decimal import Decimal

import numpy as np
import pytest
from golden import WEIGHT_KEYS, WEIGHTS
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from model import chi_square_p_value

from plr_client.errors import InvalidInput
from plr_server.curriculum.sampling.sampler import REPLAY, Sampler
from plr_server.curriculum.sampling.transforms import TRANSFORMS

SIGNIFICANCE = 1e-4
NUM_DRAWS = 200_000
CONFIG = {"transform": "rank", "temperature": 0.7, "staleness_coef": 0.1, "staleness_temperature": 1.0, "eps": 0.05}
SCORES = {
    "spread": lambda rng, num: rng.random(num),
    "mixed": lambda rng, num: rng.choice([-1.0, 0.0, 0.25, 0.25, 0.75, *rng.uniform(-0.5, 1.5, 12)], num),
    "tied": lambda _, num: np.full(num, 0.5),
    "zero": lambda _, num: np.zeros(num),
    "negative": lambda rng, num: -rng.random(num),
    "large": lambda rng, num: 1e30 * rng.uniform(0.8, 1.0, num),
    "extreme": lambda rng, num: rng.choice([-1e30, 1e30, 0.9e30, -1e-30, 1e-30, 0.0, 1.0], num),
    "tiny": lambda rng, num: 1e-30 * rng.uniform(0.8, 1.0, num),
}


def p_score(scores, transform, temperature, eps, precision=30):
    """P_S of a few seen levels, from the equations, in decimals."""
    with decimal.localcontext() as context:
        context.prec = precision
        context.traps[decimal.Underflow] = context.traps[decimal.Subnormal] = False
        exponent, exact = 1 / Decimal(temperature), [Decimal(score) for score in scores]
        num = len(scores)
        by_match = transform in {"match", "match_rank"}
        value = [(1 - score) * score for score in exact] if by_match else exact
        # what ranks is the float64 product: that of 0.3 and that of 0.7 are equal
        key = [(1 - score) * score for score in scores] if by_match else scores
        first_to_last = sorted(range(num), key=lambda i: (-key[i], i))
        rank = {i: Decimal(r + 1) for r, i in enumerate(first_to_last)}
        top = [Decimal(i == first_to_last[0]) for i in range(num)]
        if transform in {"rank", "match_rank"}:
            weights = [rank[i] ** -exponent for i in range(num)]
        elif transform in {"power", "match"}:
            weights = [v**exponent if v > 0 else Decimal(0) for v in value]
        elif transform == "softmax":
            weights = [((v - max(value)) / Decimal(temperature)).exp() for v in value]
        elif transform == "constant":
            weights = [Decimal(1)] * num
        elif transform == "max":
            weights = top
        else:
            weights = [(1 - Decimal(eps)) * flag + Decimal(eps) / num for flag in top]
        total = sum(weights)
        return [weight / total if total else 1 / Decimal(num) for weight in weights]


def p_staleness(staleness, temperature):
    with decimal.localcontext() as context:
        context.prec = 30
        return normalised([Decimal(int(s)) ** (1 / Decimal(temperature)) if s else Decimal(0) for s in staleness])


def normalised(weights):
    total = sum(weights)
    return np.array([float(weight / total) if total else 1 / len(weights) for weight in weights])


def p_replay(state, config):
    """P_replay of a state, (N,)."""
    seen = np.flatnonzero(state["seen"])
    weights = np.zeros(len(state["seen"]))
    if len(seen):
        coef = config["staleness_coef"]
        by_score = np.array(
            p_score(state["scores"][seen].tolist(), config["transform"], config["temperature"], config["eps"]), float
        )
        by_staleness = p_staleness(state["draws"] - state["last_drawn"][seen], config["staleness_temperature"])
        weights[seen] = (1 - coef) * by_score + coef * by_staleness
    return weights


def assert_weights(sampler, config):
    np.testing.assert_allclose(sampler.weights(), p_replay(sampler.state(), config), rtol=1e-9, atol=1e-30)
    by_score, by_staleness = sampler.parts()
    np.testing.assert_array_equal(by_score + by_staleness, sampler.weights())
    if sampler.num_seen:
        np.testing.assert_allclose(by_score.sum(), 1 - config["staleness_coef"])


def started(scores, seen, **config):
    """A sampler of some seen levels, of which every other one was drawn before it had a score."""
    sampler = Sampler(len(scores), **config)
    sampler.draw(np.random.default_rng(0), list(range(0, len(scores), 2)))
    seen = np.flatnonzero(seen)
    for some in np.array_split(seen, 3):
        sampler.set_scores(some, np.asarray(scores)[some])
    return sampler


def structures(sampler):
    """Everything a sampler derives from its state, as arrays."""
    found = []
    for candidates in (sampler._all, sampler._drawable):
        staleness, transform = candidates.by_staleness, candidates.by_score
        found += [*staleness._counts, *staleness._sums, np.array([staleness.size, staleness._sum])]
        found += structures_of_transform(transform)
    return found


def structures_of_transform(transform):
    if hasattr(transform, "_order"):
        return [transform._order.indices(), np.concatenate(transform._order._keys or [[]])]
    return [] if transform is None else [*transform._values, *transform._sums, *transform._masses]


def assert_is_rebuilt(sampler, config):
    rebuilt = Sampler.from_state(sampler.state(), **config)
    assert_same_structures(sampler, rebuilt)


def assert_same_structures(sampler, rebuilt):
    for running, new in zip(structures(sampler), structures(rebuilt), strict=True):
        np.testing.assert_array_equal(running, new)


def changed_at_random(sampler, rng, num_operations):
    """Draws, scores and forgets one level or many at a time; a level drawn, scored or forgotten is one operation."""
    num_levels = len(sampler.scores)
    done = 0
    while done < num_operations:
        kind = rng.random()
        num = 1 if kind < 0.6 else int(rng.integers(1, min(num_levels // 2, 300)))
        some = rng.choice(num_levels, num, replace=False)
        if kind < 0.2 and sampler.num_seen:
            sampler.draw(rng, [REPLAY] * num)
        elif kind < 0.3:
            sampler.draw(rng, some.tolist())
        elif kind < 0.9 or num_levels // 4 > sampler.num_seen:
            sampler.set_scores(some, SCORES["mixed" if kind < 0.7 else "extreme"](rng, num))
        else:
            sampler.forget(some[: num // 4 + 1])
        done += num


@pytest.mark.parametrize("name", WEIGHT_KEYS)
def test_golden_weights(name):
    transform, temperature, coef = name.split("/")
    staleness = WEIGHTS["staleness"].astype(np.int64)
    config = CONFIG | {"transform": transform, "temperature": float(temperature), "staleness_coef": float(coef)}
    state = {
        "scores": WEIGHTS["scores"],
        "seen": WEIGHTS["seen"],
        "last_drawn": 1000 - staleness,
        "draws": 1000,
    }
    np.testing.assert_allclose(Sampler.from_state(state, **config).weights(), WEIGHTS[name], rtol=1e-6, atol=0)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("kind", SCORES)
def test_weights_of_every_range_of_scores(transform, kind):
    rng = np.random.default_rng(1)
    for num_levels in (1, 2, 17, 40):
        for temperature in (0.01, 0.1, 1.0, 10.0):
            for staleness_temperature in (1.0, 0.3):
                config = CONFIG | {
                    "transform": transform,
                    "temperature": temperature,
                    "staleness_temperature": staleness_temperature,
                }
                seen = rng.random(num_levels) < 0.8
                sampler = started(SCORES[kind](rng, num_levels), seen, **config)
                assert_weights(sampler, config)
                if sampler.num_seen:
                    sampler.draw(rng, [REPLAY] * 20)
                    assert_weights(sampler, config)


def test_nothing_seen():
    sampler = Sampler(3, **CONFIG)
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    assert sampler.weights().tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(InvalidInput, match="picks: expected a seen level to replay, got none seen"):
        sampler.draw(rng, [1, REPLAY])
    assert (sampler.draws, sampler.last_drawn.tolist()) == (0, [0, 0, 0])
    assert sampler.draw(rng, [1, 1, 2]) == [1, 1, 2]
    assert (sampler.draws, sampler.last_drawn.tolist()) == (3, [0, 2, 3])
    assert rng.bit_generator.state == before


def test_power_at_a_low_temperature_neither_overflows_nor_vanishes():
    scores = np.array([1e30, 0.5e30, 1e-30, 3.0])
    sampler = started(scores, np.ones(4), **CONFIG | {"transform": "power", "temperature": 0.1, "staleness_coef": 0.0})
    np.testing.assert_allclose(sampler.weights()[:2], [1024 / 1025, 1 / 1025])
    sampler.set_scores(np.array([0, 1, 3]), np.array([2e-30, -1.0, 0.0]))  # what was hopeless now competes
    np.testing.assert_allclose(sampler.weights(), [1024 / 1025, 0.0, 1 / 1025, 0.0])


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("kind", SCORES)
def test_draws_by_score_follow_the_equations(transform, kind):
    # 3 layers of the trees and, at 200 000 draws, 40 to a level where the weights are alike
    num_levels, num_draws = (5000, NUM_DRAWS) if kind == "mixed" else (300, 20_000)
    rng = np.random.default_rng([TRANSFORMS.index(transform), list(SCORES).index(kind)])
    config = CONFIG | {"transform": transform, "staleness_coef": 0.0}
    sampler = started(SCORES[kind](rng, num_levels), rng.random(num_levels) < 0.9, **config)
    drawn = sampler.draw(rng, [REPLAY] * num_draws)
    counts = np.bincount(drawn, minlength=num_levels)
    assert chi_square_p_value(counts, p_replay(sampler.state(), config)) > SIGNIFICANCE


@pytest.mark.parametrize(
    ("transform", "num_levels", "staleness_coef", "staleness_temperature"),
    [
        *[(transform, 40, 0.3, 1.0) for transform in TRANSFORMS],
        ("rank", 300, 1.0, 1.0),
        ("rank", 40, 0.5, 0.5),
        ("rank", 40, 0.5, 3.0),
    ],
)
def test_draws_with_staleness_follow_the_equations(transform, num_levels, staleness_coef, staleness_temperature):
    """Every draw changes the staleness, so that each has probabilities of its own, known from the draws before it.

    The share of the levels before the drawn one, plus a uniform part of its own, is then uniform and independent: that
    is tested, with "before" by index, by score and by staleness.
    """
    rng = np.random.default_rng([TRANSFORMS.index(transform), num_levels])
    config = CONFIG | {
        "transform": transform,
        "staleness_coef": staleness_coef,
        "staleness_temperature": staleness_temperature,
    }
    sampler = started(SCORES["mixed"](rng, num_levels), rng.random(num_levels) < 0.8, **config)
    levels = np.flatnonzero(sampler.seen)
    scores, draws, last_drawn = sampler.scores[levels], sampler.draws, sampler.last_drawn[levels]
    by_score = np.array(p_score(scores.tolist(), transform, config["temperature"], config["eps"]), float)
    drawn = np.searchsorted(levels, sampler.draw(rng, [REPLAY] * NUM_DRAWS))
    tests = {"index": np.empty(NUM_DRAWS), "score": np.empty(NUM_DRAWS), "staleness": np.empty(NUM_DRAWS)}
    own_part = rng.random(NUM_DRAWS)
    for begin in range(0, NUM_DRAWS, 5000):
        chosen = drawn[begin : begin + 5000]
        now = draws + begin + np.arange(len(chosen))
        rows = np.arange(len(chosen))
        drawn_at = np.zeros((len(chosen) + 1, len(levels)), dtype=np.int64)
        drawn_at[0] = last_drawn
        drawn_at[rows + 1, chosen] = now + 1
        drawn_at = np.maximum.accumulate(drawn_at)
        last_drawn = drawn_at[-1]
        weights = (now[:, np.newaxis] - drawn_at[:-1]) ** (1 / staleness_temperature)
        p = (1 - staleness_coef) * by_score + staleness_coef * weights / weights.sum(axis=1, keepdims=True)
        own = own_part[begin : begin + 5000] * p[rows, chosen]
        for name, key in (("index", np.arange(len(levels))), ("score", scores), ("staleness", drawn_at[:-1])):
            key = np.broadcast_to(key, p.shape)  # noqa: PLW2901
            of_chosen = key[rows, chosen][:, np.newaxis]
            before = (key < of_chosen) | ((key == of_chosen) & (np.arange(len(levels)) < chosen[:, np.newaxis]))
            tests[name][begin : begin + 5000] = (p * before).sum(axis=1) + own
    for name, uniform in tests.items():
        counts = np.histogram(uniform, bins=200, range=(0.0, 1.0 + 1e-9))[0]
        assert chi_square_p_value(counts, np.full(200, 1 / 200)) > SIGNIFICANCE, name


@pytest.mark.parametrize("transform", ["rank", "softmax"])
def test_draws_of_one_state_follow_its_weights(transform):
    rng = np.random.default_rng(5)
    config = CONFIG | {"transform": transform, "staleness_coef": 0.4}
    sampler = started(rng.random(20), rng.random(20) < 0.8, **config)
    sampler.draw(rng, [REPLAY] * 30)
    state = sampler.state()
    counts = np.zeros(20)
    for _ in range(10_000):
        counts[Sampler.from_state(state, **config).draw(rng, [REPLAY])] += 1
    assert chi_square_p_value(counts, sampler.weights()) > SIGNIFICANCE


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("staleness_coef", [0.0, 0.3])
def test_a_batch_draws_what_single_draws_would(transform, staleness_coef):
    rng = np.random.default_rng(2)
    config = CONFIG | {"transform": transform, "staleness_coef": staleness_coef}
    picks = np.where(rng.random(300) < 0.7, REPLAY, rng.integers(0, 100, 300)).tolist()
    batch, single = (started(np.arange(100) / 100, np.arange(100) < 80, **config) for _ in range(2))
    rng_batch, rng_single = np.random.default_rng(3), np.random.default_rng(3)
    drawn = batch.draw(rng_batch, picks)
    assert drawn == [index for pick in picks for index in single.draw(rng_single, [pick])]
    assert all(pick in (REPLAY, index) for pick, index in zip(picks, drawn, strict=True))
    np.testing.assert_array_equal(batch.last_drawn, single.last_drawn)
    assert rng_batch.bit_generator.state == rng_single.bit_generator.state


@pytest.mark.parametrize(
    ("transform", "drawn"),
    [
        ("rank", [48, 14, 92, 12, 42, 28, 14, 78, 28, 42, 14, 28]),
        ("power", [48, 8, 92, 12, 62, 52, 28, 78, 52, 54, 22, 48]),
        ("softmax", [48, 4, 92, 12, 62, 50, 26, 78, 50, 54, 22, 48]),
        ("constant", [48, 2, 92, 12, 62, 50, 26, 78, 50, 54, 20, 48]),
        ("max", [48, 14, 92, 12, 14, 14, 14, 78, 14, 14, 14, 14]),
        ("eps_greedy", [48, 6, 92, 12, 14, 14, 14, 78, 14, 14, 14, 14]),
        ("match", [48, 4, 92, 12, 62, 50, 26, 78, 50, 54, 20, 50]),
        ("match_rank", [48, 50, 92, 12, 64, 36, 50, 78, 36, 64, 50, 36]),
    ],
)
def test_a_seed_draws_the_same_on_every_python_and_numpy(transform, drawn):
    sampler = Sampler(100, **CONFIG | {"transform": transform, "staleness_coef": 0.3})
    sampler.set_scores(np.arange(0, 100, 2), np.arange(50) * 7 % 50 / 50)
    assert sampler.draw(np.random.default_rng(11), [REPLAY] * 12) == drawn


def check_against_rebuild(transform, num_levels, num_operations):
    rng = np.random.default_rng([TRANSFORMS.index(transform), num_levels])
    config = CONFIG | {"transform": transform, "temperature": 2.0}
    sampler = Sampler(num_levels, **config)
    for _ in range(4):
        changed_at_random(sampler, rng, num_operations // 4)
        rebuilt = Sampler.from_state(sampler.state(), **config)
        assert_same_structures(sampler, rebuilt)
        rngs = [np.random.default_rng(0) for _ in range(2)]
        if sampler.num_seen:
            assert sampler.draw(rngs[0], [REPLAY] * 200) == rebuilt.draw(rngs[1], [REPLAY] * 200)
            assert_same_structures(sampler, rebuilt)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("num_levels", [7, 300, 5000])
def test_running_structures_are_those_rebuilt_from_the_state(transform, num_levels):
    check_against_rebuild(transform, num_levels, 20_000)


@pytest.mark.slow
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("num_levels", [300, 5000, 100_000])
def test_running_structures_are_those_rebuilt_after_a_million_operations(transform, num_levels):
    check_against_rebuild(transform, num_levels, 1_000_000)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("staleness_temperature", [1.0, 2.0])
def test_a_restored_sampler_goes_on_bit_for_bit(transform, staleness_temperature):
    config = CONFIG | {
        "transform": transform,
        "staleness_coef": 0.5,
        "staleness_temperature": staleness_temperature,
    }
    original = Sampler(500, **config)
    changed_at_random(original, np.random.default_rng(7), 5000)
    state = original.state()
    restored = Sampler.from_state(state, **config)
    first, second = np.random.default_rng(8), np.random.default_rng(8)
    for _ in range(5):
        assert original.draw(first, [REPLAY] * 200) == restored.draw(second, [REPLAY] * 200)
        changed_at_random(original, first, 500)
        changed_at_random(restored, second, 500)
    np.testing.assert_array_equal(original.weights(), restored.weights())
    for name, value in original.state().items():
        np.testing.assert_array_equal(value, restored.state()[name])
    assert state["draws"] < original.draws  # the state was a copy
    np.testing.assert_array_equal(Sampler.from_state(state, **config).state()["last_drawn"], state["last_drawn"])


def test_forgotten_levels_are_as_at_first():
    sampler = Sampler(40, **CONFIG | {"transform": "power"})
    rng = np.random.default_rng(4)
    changed_at_random(sampler, rng, 500)
    sampler.forget(np.arange(20))
    sampler.draw(rng, list(range(10, 30)))  # of which ten are unseen
    sampler.forget(np.arange(40))
    untouched = Sampler(40, **CONFIG | {"transform": "power"})
    untouched.draws = sampler.draws
    for name, value in sampler.state().items():
        np.testing.assert_array_equal(value, untouched.state()[name])
    assert_same_structures(sampler, untouched)


def test_what_it_shows_cannot_be_written():
    sampler = Sampler(3, **CONFIG)
    for shown in (sampler.scores, sampler.seen, sampler.last_drawn):
        with pytest.raises(ValueError, match="read-only"):
            shown[0] = 1


class Grid:
    """Stands for the generator: uniform numbers that lie evenly, one component and one level each."""

    def random(self, num):
        level = (np.arange(num // 2) + 0.5) / (num // 2)
        return np.stack([np.full(num // 2, 0.5), level], axis=1).ravel()


class SamplerBesideAPlainModel(RuleBasedStateMachine):
    scores = st.sampled_from([-1e30, -1.0, -0.0, 0.0, 5e-324, 1e-30, 0.3, 0.7, 1.0, 1e30]) | st.floats(-1e30, 1e30)

    @initialize(
        transform=st.sampled_from(TRANSFORMS),
        num_levels=st.integers(1, 40),
        temperature=st.sampled_from([0.01, 0.1, 1.0, 10.0]),
        coef=st.sampled_from([0.0, 0.1, 1.0]),
        staleness_temperature=st.sampled_from([1.0, 1.0, 0.5, 4.0]),
    )
    def start(self, transform, num_levels, temperature, coef, staleness_temperature):
        self.config = {
            "transform": transform,
            "temperature": temperature,
            "staleness_coef": coef,
            "staleness_temperature": staleness_temperature,
            "eps": 0.05,
        }
        self.sampler = Sampler(num_levels, **self.config)
        self.num_levels = num_levels
        self.of_seen, self.drawn_at, self.draws = {}, {}, 0
        self.rng = np.random.default_rng(0)

    @rule(data=st.data())
    def set_scores(self, data):
        levels = st.integers(0, self.num_levels - 1)
        new = data.draw(st.dictionaries(levels, self.scores))
        self.sampler.set_scores(np.array(list(new), np.int64), np.array(list(new.values()), np.float64))
        self.of_seen |= new

    @rule(data=st.data())
    def forget(self, data):
        gone = data.draw(st.sets(st.integers(0, self.num_levels - 1), max_size=5))
        self.sampler.forget(np.array(list(gone), np.int64))
        for index in gone:
            self.of_seen.pop(index, None)
            self.drawn_at.pop(index, None)

    @precondition(lambda self: self.of_seen)
    @rule(data=st.data())
    def draw(self, data):
        picks = data.draw(st.lists(st.integers(-3, self.num_levels - 1).map(lambda i: max(i, REPLAY)), max_size=10))
        drawn = self.sampler.draw(self.rng, picks)
        for pick, index in zip(picks, drawn, strict=True):
            assert index == pick if pick != REPLAY else index in self.of_seen
            self.draws += 1
            self.drawn_at[index] = self.draws

    @rule()
    def restart(self):
        self.sampler = Sampler.from_state(self.sampler.state(), **self.config)

    @precondition(lambda self: self.of_seen)
    @rule()
    def draws_by_score_divide_the_unit_interval(self):
        config = self.config | {"staleness_coef": 0.0}
        sampler = Sampler.from_state(self.sampler.state(), **config)
        drawn = sampler.draw(Grid(), [REPLAY] * 500)
        counts = np.bincount(drawn, minlength=self.num_levels)
        assert np.abs(counts - 500 * p_replay(sampler.state(), config)).max() <= 2.001  # eps_greedy: two intervals

    @invariant()
    def is_the_model(self):
        sampler = self.sampler
        everywhere = range(self.num_levels)
        assert (sampler.draws, sampler.num_seen) == (self.draws, len(self.of_seen))
        assert sampler.scores.tolist() == [self.of_seen.get(index, 0.0) for index in everywhere]
        assert sampler.seen.tolist() == [index in self.of_seen for index in everywhere]
        assert sampler.last_drawn.tolist() == [self.drawn_at.get(index, 0) for index in everywhere]
        assert_weights(sampler, self.config)
        assert_is_rebuilt(sampler, self.config)


TestSamplerBesideAPlainModel = SamplerBesideAPlainModel.TestCase
TestSamplerBesideAPlainModel.settings = settings(max_examples=40, stateful_step_count=12, deadline=None)

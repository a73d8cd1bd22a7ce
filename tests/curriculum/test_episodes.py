from __future__ import annotations

import golden
import model
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plr_client import InvalidInput
from plr_server.curriculum.scoring.episodes import NARROW, advantages, find_episodes
from plr_server.curriculum.scoring.rollouts import check
from plr_server.curriculum.scoring.scorer import scores_of
from plr_server.curriculum.scoring.strategies import strategy_named


def found(strategy, fields):
    """The episodes of what was pushed."""
    rule = strategy_named(strategy)
    return find_episodes(check(fields, strategy, needs=rule.needs, takes=rule.takes))


def scored(strategy, fields, gamma, gae_lambda):
    """Mean and maximum of each episode."""
    return scores_of(strategy_named(strategy), found(strategy, fields), gamma=gamma, gae_lambda=gae_lambda)


@pytest.mark.parametrize("case", golden.CASES)
def test_advantages_match_the_golden_numbers(case):
    gae, _ = advantages(found("gae", golden.block(case)), golden.GAMMA, golden.GAE_LAMBDA)
    expected = golden.SCORES[f"{case}/advantages"]
    np.testing.assert_allclose(gae.reshape(expected.T.shape).T, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("case", golden.CASES)
def test_episodes_match_the_golden_ones(case):
    episodes = found("gae", golden.block(case))
    rows = np.stack([episodes.column, episodes.start, episodes.stop, episodes.finished], axis=1)
    np.testing.assert_array_equal(rows, golden.SCORES[f"{case}/episodes"])


@pytest.mark.parametrize("lengths", [[3000], [3000, 1, 2], [40] * NARROW + [700, 3000], [5] * 100, [1] * 50, [0] * 3])
def test_advantages_of_few_long_and_many_short_episodes_are_those_of_plain_loops(lengths):
    rng = np.random.default_rng(0)
    num_steps = max(*lengths, 1)
    shape = (num_steps, len(lengths))
    block = {
        "values": rng.normal(size=shape),
        "rewards": rng.normal(size=shape),
        "next_values": rng.normal(size=len(lengths)),
    }
    block["valid"] = np.arange(num_steps)[:, None] < lengths
    block["dones"] = rng.random(shape) < 0.001
    block["levels"] = np.zeros(shape, int)
    block["truncated"] = np.zeros(shape, bool)
    gae, _ = advantages(found("gae", block), 0.99, 0.95)
    expected = []
    for _, column, rows, finished in model.episodes(block["dones"], block["levels"], block["valid"]):
        expected += model.advantages(rows, column, finished, block, 0.99, 0.95)[0]
    np.testing.assert_allclose(gae, expected, rtol=1e-9, atol=1e-12)


@st.composite
def blocks(draw):
    """A random block with its levels consistent, some rows not valid, some ends truncated."""
    num_steps, num_columns = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (num_steps, num_columns)
    dones = rng.random(shape) < draw(st.sampled_from([0.0, 0.1, 0.4, 1.0]))
    valid = rng.random(shape) < draw(st.sampled_from([1.0, 0.8, 0.3]))
    levels = rng.integers(0, 5, size=shape)
    for n in range(num_columns):  # one level from an episode's first valid row to its last
        current = None
        for t in range(num_steps):
            if valid[t, n]:
                current = levels[t, n] if current is None else current
                levels[t, n] = current
                current = None if dones[t, n] else current
    return {
        "values": rng.normal(size=shape),
        "rewards": rng.normal(size=shape),
        "dones": dones,
        "levels": levels,
        "next_values": rng.normal(size=num_columns),
        "truncated": dones & (rng.random(shape) < 0.5),
        "final_values": rng.normal(size=shape),
        "valid": valid,
        "logits": rng.normal(size=(*shape, 3), scale=4),
    }


@given(
    blocks(), st.sampled_from(golden.STRATEGIES), st.sampled_from([0.0, 0.9, 1.0]), st.sampled_from([0.0, 0.95, 1.0])
)
def test_every_episode_scores_what_plain_loops_give(block, strategy, gamma, gae_lambda):
    episodes = found(strategy, block)
    mean, highest = scored(strategy, block, gamma, gae_lambda)
    expected = model.episodes(block["dones"], block["levels"], block["valid"])
    assert len(episodes) == len(expected)
    for e, (level, column, rows, finished) in enumerate(expected):
        scores = model.step_scores(strategy, rows, column, finished, block, gamma, gae_lambda)
        assert (episodes.level[e], episodes.column[e], bool(episodes.finished[e])) == (level, column, finished)
        assert (episodes.start[e], episodes.stop[e], episodes.steps[e]) == (rows[0], rows[-1] + 1, len(rows))
        assert mean[e] == pytest.approx(sum(scores) / len(scores), rel=1e-9, abs=1e-12)
        assert highest[e] == pytest.approx(max(scores), rel=1e-9, abs=1e-12)


@given(blocks())
def test_rows_that_are_not_valid_are_as_if_never_pushed(block):
    """Whatever stands in them, NaN included, changes nothing."""
    gone = ~block["valid"]
    spoilt = {name: np.array(array, copy=True) for name, array in block.items()}
    for name in ("values", "rewards", "final_values", "logits"):
        spoilt[name][gone] = np.nan
    spoilt["levels"][gone] = 10**15
    spoilt["dones"][gone] = ~spoilt["dones"][gone]
    spoilt["truncated"][gone] = True
    for strategy in ("value_l1", "policy_entropy"):
        one, other = (scored(strategy, fields, 0.9, 0.95) for fields in (block, spoilt))
        np.testing.assert_array_equal(one, other)


def test_a_policy_with_probabilities_of_zero_has_a_finite_entropy():
    fields = {"dones": np.ones((1, 1), bool), "levels": np.zeros((1, 1), int), "logits": np.array([[[0.0, -1e8, 0.0]]])}
    assert scored("policy_entropy", fields, 1.0, 1.0)[0] == pytest.approx(np.log(2) / np.log(3))


def test_a_level_that_changes_inside_an_episode_is_refused():
    fields = {
        "dones": np.zeros((3, 2), bool),
        "levels": np.array([[1, 2], [1, 2], [1, 9]]),
        "logits": np.zeros((3, 2, 2)),
    }
    with pytest.raises(InvalidInput, match="level 9 after 2 in column 1 at step 2"):
        found("min_margin", fields)


@pytest.mark.parametrize("strategy", ["uniform", "random", "sequential", "external"])
def test_strategies_without_steps_score_one(strategy):
    fields = {"dones": np.ones((2, 1), bool), "levels": np.zeros((2, 1), int)}
    np.testing.assert_array_equal(scored(strategy, fields, 1.0, 1.0)[0], [1.0, 1.0])

from __future__ import annotations

import golden
import model
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plr_client import InvalidInput
from plr_server.curriculum.scoring.rollouts import check
from plr_server.curriculum.scoring.scores import advantages, find_episodes, score_episodes


@pytest.mark.parametrize("case", golden.CASES)
def test_advantages_match_the_golden_numbers(case):
    rollout, _ = check("gae", golden.block(case))
    gae, _ = advantages(rollout, golden.GAMMA, golden.GAE_LAMBDA)
    np.testing.assert_allclose(gae, golden.SCORES[f"{case}/advantages"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("case", golden.CASES)
def test_episodes_match_the_golden_ones(case):
    rollout, _ = check("gae", golden.block(case))
    _, found = find_episodes(rollout)
    rows = np.stack([found.column, found.start, found.stop, found.finished], axis=1)
    np.testing.assert_array_equal(rows, golden.SCORES[f"{case}/episodes"])


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
    rollout, _ = check(strategy, block)
    found = score_episodes(rollout, strategy, gamma, gae_lambda)
    expected = model.episodes(block["dones"], block["levels"], block["valid"])
    assert len(found.level) == len(expected)
    for e, (level, column, rows, finished) in enumerate(expected):
        scores = model.step_scores(strategy, rows, column, finished, block, gamma, gae_lambda)
        assert (found.level[e], found.column[e], bool(found.finished[e])) == (level, column, finished)
        assert (found.start[e], found.stop[e], found.steps[e]) == (rows[0], rows[-1] + 1, len(rows))
        assert found.mean[e] == pytest.approx(sum(scores) / len(scores), rel=1e-9, abs=1e-12)
        assert found.max[e] == pytest.approx(max(scores), rel=1e-9, abs=1e-12)


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
        one, other = (score_episodes(check(strategy, b)[0], strategy, 0.9, 0.95) for b in (block, spoilt))
        np.testing.assert_array_equal(one.mean, other.mean)
        np.testing.assert_array_equal(one.max, other.max)


def test_a_policy_with_probabilities_of_zero_has_a_finite_entropy():
    fields = {"dones": np.ones((1, 1), bool), "levels": np.zeros((1, 1), int), "logits": np.array([[[0.0, -1e8, 0.0]]])}
    rollout, _ = check("policy_entropy", fields)
    assert score_episodes(rollout, "policy_entropy", 1.0, 1.0).mean == pytest.approx(np.log(2) / np.log(3))


def test_a_level_that_changes_inside_an_episode_is_refused():
    fields = {
        "dones": np.zeros((3, 2), bool),
        "levels": np.array([[1, 2], [1, 2], [1, 9]]),
        "logits": np.zeros((3, 2, 2)),
    }
    rollout, _ = check("min_margin", fields)
    with pytest.raises(InvalidInput, match="level 9 after 2 in column 1 at step 2"):
        find_episodes(rollout)


@pytest.mark.parametrize("strategy", ["uniform", "random", "sequential", "external"])
def test_strategies_without_steps_score_one(strategy):
    rollout, _ = check(strategy, {"dones": np.ones((2, 1), bool), "levels": np.zeros((2, 1), int)})
    np.testing.assert_array_equal(score_episodes(rollout, strategy, 1.0, 1.0).mean, [1.0, 1.0])

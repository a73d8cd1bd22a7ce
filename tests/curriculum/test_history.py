"""history.py: the strategies that look back, through the curriculum, beside plain loops."""

from __future__ import annotations

import itertools
import pickle

import faults
import model
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plr_client import InvalidInput, LevelOutsideSpace, MissingField, Trainer
from plr_server import Config, Curriculum, launch
from plr_server.curriculum.scoring.history import Windows, running_best, windows_after

LOOKING_BACK = ("grounded_signed_value_loss", "maxmc", "grounded_positive_value_loss", "learnability", "tscl")
STRATEGIES = ("alt_advantage_abs", *LOOKING_BACK)
NUM_LEVELS = 5


def frozen(curriculum):
    return pickle.dumps(curriculum.state())


def scored(curriculum):
    """{level: score} of the seen levels."""
    ids, scores, _, seen = curriculum.scores()
    return dict(zip(ids[seen].tolist(), scores[seen].tolist(), strict=True))


def column(rewards, dones, *, level=0, values=None, **fields):
    """A block of one column that plays one level."""
    like = np.zeros((len(rewards), 1))
    return {
        "values": like if values is None else np.array(values, dtype=float)[:, np.newaxis],
        "rewards": np.array(rewards, dtype=float)[:, np.newaxis],
        "dones": np.array(dones, dtype=bool)[:, np.newaxis],
        "levels": np.full((len(rewards), 1), level),
        "next_values": [0.0],
        **fields,
    }


# ---- beside plain loops


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    strategy=st.sampled_from(STRATEGIES),
    partial=st.sampled_from(["commit", "stitch"]),
    alpha=st.sampled_from([1.0, 0.3]),
    max_score_coef=st.sampled_from([0.0, 0.4]),
    window=st.integers(2, 5),
    done=st.sampled_from([0.05, 0.3, 0.9]),
    flagged=st.booleans(),
)
def test_scores_are_those_of_plain_loops(seed, strategy, partial, alpha, max_score_coef, window, done, flagged):
    """Blocks of two sources in turn, columns named out of order, a restart from the state in between."""
    rng = np.random.default_rng(seed)
    given_to_both = {
        "partial": partial,
        "alpha": alpha,
        "max_score_coef": max_score_coef,
        "gamma": 0.9,
        "window": window,
    }
    curriculum = Curriculum(Config(levels=range(NUM_LEVELS), strategy=strategy, **given_to_both))
    ledger = model.Ledger(strategy, **given_to_both)
    streams = {
        source: model.stream(rng, num_blocks=8, num_columns=3, num_levels=NUM_LEVELS, done=done) for source in "ab"
    }
    for turn in range(16):
        source = "ab"[turn % 2]
        block = next(streams[source])
        if flagged and rng.random() < 0.7:
            block["successes"] = rng.random(block["dones"].shape) < 0.5
        columns = [7, 2, 5]
        assert curriculum.update(**block, columns=columns, source=source) == ledger.push(block, source, columns)
        assert scored(curriculum) == pytest.approx(ledger.scores, rel=1e-9, abs=1e-12)
        if turn == 7:
            restored = Curriculum.from_state(curriculum.state())
            assert frozen(restored) == frozen(curriculum)
            curriculum = restored


@given(st.integers(0, 2**32), st.integers(0, 30), st.integers(1, 6))
def test_running_best_is_a_running_maximum_per_level(seed, count, num_levels):
    rng = np.random.default_rng(seed)
    best = np.where(rng.random(num_levels) < 0.5, -np.inf, rng.normal(size=num_levels).round(1))
    indices = rng.integers(0, num_levels, size=count)
    returns = np.where(rng.random(count) < 0.3, -np.inf, rng.normal(size=count).round(1))
    expected, highest = [], best.tolist()
    for index, earned in zip(indices, returns, strict=True):
        highest[index] = max(highest[index], earned)
        expected.append(highest[index])
    assert running_best(best, indices, returns).tolist() == expected


@given(st.integers(0, 2**32), st.integers(0, 30), st.integers(1, 6), st.integers(1, 5))
def test_windows_hold_the_last_values(seed, count, num_levels, width):
    rng = np.random.default_rng(seed)
    filled = rng.integers(0, width + 1, size=num_levels)
    values = rng.normal(size=(num_levels, width)) * (np.arange(width) >= width - filled[:, np.newaxis])
    past = [values[i, width - filled[i] :].tolist() for i in range(num_levels)]
    indices, new = rng.integers(0, num_levels, size=count), rng.normal(size=count)
    after = windows_after(Windows(values, filled), indices, new)
    assert after.values.shape == (count, width)
    for i, (index, value) in enumerate(zip(indices, new, strict=True)):
        past[index] = [*past[index], value][-width:]
        assert after.filled[i] == len(past[index])
        assert after.values[i, width - after.filled[i] :].tolist() == past[index]
        assert not after.values[i, : width - after.filled[i]].any()


# ---- the rules, one by one


def test_alternative_advantages_are_those_of_lambda_one():
    rng = np.random.default_rng(2)
    block = next(model.stream(rng, num_blocks=1, num_columns=4, num_levels=NUM_LEVELS))
    config = {"levels": range(NUM_LEVELS), "gamma": 0.9}
    alternative = Curriculum(Config(**config, strategy="alt_advantage_abs", gae_lambda=0.5))
    monte_carlo = Curriculum(Config(**config, strategy="value_l1", gae_lambda=1.0))
    alternative.update(**block)
    monte_carlo.update(**block)
    assert scored(alternative) == scored(monte_carlo) != {}


def test_the_best_return_is_the_levels_and_stays():
    curriculum = Curriculum(Config(levels=range(2), strategy="maxmc"))
    curriculum.update(**column([3.0, 1.0], [0, 1], values=[1.0, 2.0]))
    assert scored(curriculum) == {0: 2.5}  # R_max = 4
    curriculum.update(**column([1.0], [1], values=[0.5]))
    assert scored(curriculum) == {0: 3.5}
    curriculum.update(**column([1.0], [1], values=[0.5], level=1))
    assert scored(curriculum) == {0: 3.5, 1: 0.5}


def test_the_positive_part_is_taken_per_step():
    curriculum = Curriculum(Config(levels=range(2), strategy="grounded_positive_value_loss"))
    curriculum.update(**column([1.0, 0.0], [0, 1], values=[0.0, 9.0]))
    assert scored(curriculum) == {0: 0.5}


def test_episodes_of_one_block_see_the_best_of_those_that_ended_before():
    """By end step, then column: column 0 ends second on level 0 and sees the 5 of column 1; column 2 sees both."""
    curriculum = Curriculum(Config(levels=range(9), strategy="maxmc", alpha=0.5))
    block = {
        "values": np.zeros((2, 3)),
        "rewards": np.array([[0.0, 5.0, 0.0], [1.0, 0.0, 7.0]]),
        "dones": np.array([[0, 1, 0], [1, 1, 1]]),
        "levels": np.array([[0, 0, 0], [0, 8, 0]]),
    }
    curriculum.update(**block)
    assert scored(curriculum)[0] == 0.5 * (0.5 * 5.0 + 0.5 * 5.0) + 0.5 * 7.0


def test_a_part_sees_the_best_finished_return_and_its_own_so_far_where_there_is_none():
    curriculum = Curriculum(Config(levels=range(2), strategy="maxmc"))
    curriculum.update(**column([2.0, 1.0], [0, 0]))
    assert scored(curriculum) == {0: 3.0}
    curriculum.update(**column([4.0], [0]))
    assert scored(curriculum) == {0: 7.0}  # from the episode's first step on
    curriculum.update(**column([-6.0], [1]))
    assert scored(curriculum) == {0: 1.0}
    curriculum.update(**column([9.0], [0]))
    assert scored(curriculum) == {0: 1.0}  # 9 is not finished
    curriculum.update(**column([0.0], [1]))
    assert scored(curriculum) == {0: 9.0}


def test_what_an_episode_earned_is_dropped_with_it():
    curriculum = Curriculum(Config(levels=range(2), strategy="maxmc"))
    curriculum.update(**column([2.0], [0], level=1), source="a")
    curriculum.update(**column([1.0], [1], level=0), source="a")  # level 1 was abandoned
    curriculum.update(**column([1.0], [1], level=1), source="a")
    assert scored(curriculum) == {0: 1.0, 1: 1.0}
    curriculum.update(**column([2.0], [0], level=1), source="a")
    curriculum.forget("a")
    curriculum.update(**column([0.5], [1], level=1), source="a")
    assert scored(curriculum) == {0: 1.0, 1: 1.0}
    assert curriculum.state()["scorer"]["under_way"]["a"]["steps"].tolist() == []


def test_maxmc_needs_no_bootstrap():
    curriculum = Curriculum(Config(levels=range(2), strategy="maxmc"))
    curriculum.update(**{**column([1.0], [1], truncated=[[True]]), "next_values": None})
    assert scored(curriculum) == {0: 1.0}


def test_success_is_a_return_above_zero_unless_the_trainer_says_otherwise():
    curriculum = Curriculum(Config(levels=range(4), strategy="learnability"))
    for reward in (1.0, 0.0, -1.0, 1.0):
        curriculum.update(**column([reward], [1]))
    assert scored(curriculum) == {0: 0.25}
    for reward, success in ((1.0, False), (0.0, True), (-1.0, False), (1.0, False)):
        curriculum.update(**column([reward], [1], level=1, successes=[[success]]))
    assert scored(curriculum)[1] == pytest.approx(0.25 * 0.75)
    curriculum.update(**column([1.0, 1.0], [0, 1], level=2, successes=[[False], [True]]))  # read where done
    curriculum.update(**column([1.0, 1.0], [0, 1], level=2, successes=[[True], [False]]))
    assert scored(curriculum)[2] == 0.25


def test_only_the_window_counts():
    curriculum = Curriculum(Config(levels=range(2), strategy="learnability", window=4))
    for reward in (0, 0, 0, 0, 1):
        curriculum.update(**column([reward], [1]))
    assert scored(curriculum) == {0: 0.1875}
    for _ in range(3):
        curriculum.update(**column([1], [1]))
    assert scored(curriculum) == {0: 0.0}


@pytest.mark.parametrize("strategy", ["learnability", "tscl"])
def test_parts_are_not_scored_and_alpha_does_not_smooth_twice(strategy):
    curriculum = Curriculum(Config(levels=range(2), strategy=strategy, alpha=0.1))
    assert curriculum.update(**column([1.0], [0])) == 0
    assert scored(curriculum) == {}
    assert curriculum.update(**column([0.0], [1])) == 1
    assert scored(curriculum) == {0: 0.0}
    assert curriculum.update(**column([0.0], [1])) == 1
    assert scored(curriculum) == {0: 0.25 if strategy == "learnability" else 1.0}


def test_slope_of_falling_equal_and_few_returns():
    curriculum = Curriculum(Config(levels=range(3), strategy="tscl", window=3))
    curriculum.update(**column([1e20], [1]))
    assert scored(curriculum) == {0: 0.0}
    for level, rewards, expected in ((1, (9.0, 3.0, 2.0, 1.0), 1.0), (2, (0.1, 0.1, 0.1), 0.0)):
        for reward in rewards:
            curriculum.update(**column([reward], [1], level=level))
        assert scored(curriculum)[level] == expected


def test_only_what_the_strategy_remembers_is_kept():
    for strategy in ("value_l1", "alt_advantage_abs", "min_margin", "external"):
        assert Curriculum(Config(strategy=strategy)).state()["scorer"]["history"] is None
    assert Curriculum(Config(strategy="maxmc")).state()["scorer"]["history"]["windows"] is None
    remembered = Curriculum(Config(strategy="learnability", window=7)).state()["scorer"]["history"]
    assert remembered["best"] is None
    assert (remembered["windows"]["values"].shape, remembered["windows"]["values"].itemsize) == ((200, 7), 1)


# ---- steps, bad input, a running server


@pytest.mark.parametrize("partial", ["commit", "stitch"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_steps_pushed_one_by_one_score_as_the_block(strategy, partial):
    rng = np.random.default_rng(4)
    by_block, by_step = (
        Curriculum(Config(levels=range(NUM_LEVELS), strategy=strategy, partial=partial, num_steps=6)) for _ in range(2)
    )
    for _ in range(20):
        wide = [
            next(model.stream(rng, num_blocks=1, num_columns=3, num_levels=NUM_LEVELS, done=0.3, abandoned=0.0))
            for _ in range(6)
        ]
        steps = [{name: x if name == "next_values" else x[0] for name, x in block.items()} for block in wide]
        for before, after in itertools.pairwise(steps):  # one level until a done
            goes_on = ~before["dones"] | ~before["valid"]
            after["levels"] = np.where(goes_on, before["levels"], after["levels"])
        for step in steps:
            step["successes"] = rng.random(3) < 0.5
        block = {
            name: steps[-1][name] if name == "next_values" else np.stack([step[name] for step in steps])
            for name in steps[0]
        }
        by_block.update(**block)
        for step in steps:
            by_step.update_step(**step)
        assert frozen(by_step) == frozen(by_block)


def test_a_step_without_a_flag_falls_back_to_the_return():
    curriculum = Curriculum(Config(levels=range(2), strategy="learnability", num_steps=2))
    step = {"dones": [True], "levels": [0], "rewards": [1.0]}
    curriculum.update_step(**step, successes=[False])
    curriculum.update_step(**step)
    assert scored(curriculum) == {0: 0.25}


@pytest.mark.parametrize("partial", ["commit", "stitch"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_bad_block_is_refused_whole(strategy, partial):
    curriculum = Curriculum(Config(levels=range(NUM_LEVELS), strategy=strategy, partial=partial))
    for block in model.stream(np.random.default_rng(5), num_blocks=6, num_columns=3, num_levels=NUM_LEVELS, done=0.3):
        curriculum.update(**block)
    before = frozen(curriculum)
    shape = block["dones"].shape
    for wrong, kind, message in (
        ({"rewards": None}, MissingField, f"rewards: expected an array: the strategy {strategy} needs it"),
        ({"rewards": np.full(shape, np.nan), "valid": None}, InvalidInput, "rewards: expected finite"),
        ({"levels": np.full(shape, NUM_LEVELS), "valid": None}, LevelOutsideSpace, "levels"),
        ({"successes": np.ones(3)}, InvalidInput, "successes: expected shape"),
        ({"successes": np.full(shape, 0.5)}, InvalidInput, "successes: expected bools"),
        ({"successes": np.full(shape, -1)}, InvalidInput, "successes: expected bools"),
    ):
        with pytest.raises(kind, match=message):
            curriculum.update(**{**block, **wrong})
        assert frozen(curriculum) == before
    if strategy in {"maxmc", "alt_advantage_abs", "grounded_positive_value_loss"}:
        with pytest.raises(MissingField, match="values"):
            curriculum.update(**{**block, "values": None})
        assert frozen(curriculum) == before


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_running_server_scores_as_the_curriculum(strategy):
    config = Config(levels=range(NUM_LEVELS), strategy=strategy, window=3)
    curriculum = Curriculum(config)
    rng = np.random.default_rng(6)
    with launch(config) as server, Trainer(server.address, timeout_s=faults.DEADLINE_S) as trainer:
        for block in model.stream(rng, num_blocks=10, num_columns=3, num_levels=NUM_LEVELS, done=0.3):
            block["successes"] = rng.random(block["dones"].shape) < 0.5
            assert trainer.push(**block) == curriculum.update(**block, source="trainer")
        step = {name: x if name == "next_values" else x[0] for name, x in block.items()}
        assert trainer.push_step(**step) == 0
        assert trainer.scores()[1].tolist() == curriculum.scores()[1].tolist()
        assert trainer.stats()["strategy"] == strategy

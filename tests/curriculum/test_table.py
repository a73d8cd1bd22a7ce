"""table.py: scores applied in order, who is told of first scores, and what was played, beside plain dicts."""

from __future__ import annotations

import pickle

import model
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plr_client import InvalidInput
from plr_server import Config, Curriculum
from plr_server.curriculum.sampling.sampler import Sampler
from plr_server.curriculum.spaces.level_space import RangeSpace
from plr_server.curriculum.spaces.open_space import UnboundedSpace
from plr_server.curriculum.table import LevelTable

SAMPLING = {
    "transform": "rank",
    "temperature": 0.5,
    "staleness_coef": 0.0,
    "staleness_temperature": 1.0,
    "eps": 0.0,
}


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_scores_apply_in_order_and_each_level_is_first_seen_once(alpha):
    rng, told, plain = np.random.default_rng(0), [], {}
    sampler = Sampler(20, **SAMPLING)
    table = LevelTable(RangeSpace(range(100, 120)), sampler, lambda indices: told.extend(indices.tolist()))
    for _ in range(30):
        levels, scores = rng.integers(100, 120, 7), rng.normal(size=7)
        table.apply(levels.tolist(), scores, alpha, replace_past=lambda *_: None)
        for level, score in zip(levels.tolist(), scores.tolist(), strict=True):
            plain[level] = score if level not in plain else (1 - alpha) * plain[level] + alpha * score
        assert {100 + i: sampler.scores[i] for i in np.flatnonzero(sampler.seen)} == pytest.approx(plain, rel=1e-12)
    assert sorted(told) == [level - 100 for level in sorted(plain)]
    assert table.counts() == {"scores": 210, "entered": 0, "evicted": 0, "rejected": 0}
    assert table.plays.sum() == 0  # that is for `played`


def test_the_past_of_a_level_moves_with_it_into_the_table():
    moved = []
    space, sampler = UnboundedSpace(2), Sampler(2, **SAMPLING, evicts=True)
    table = LevelTable(space, sampler, lambda _indices: None)
    for level, score in ((7, 1.0), (8, 2.0), (9, 0.5), (10, 3.0), (10, 4.0)):
        table.apply(
            [level], np.array([score]), 1.0, replace_past=lambda index, by: moved.append((index, by)), past={10: 5}
        )
    assert moved == [(0, None), (1, None), (0, 5)]  # 7 went, for 10
    assert table.counts() == {"scores": 4, "entered": 3, "evicted": 1, "rejected": 1}
    assert sorted(space.ids(np.arange(2)).tolist()) == [8, 10]


# ---- what was played


class Played:
    """A level's plays, last return and when it was last played, by a loop over every step."""

    def __init__(self):
        self.levels, self.under_way = {}, {}

    def block(self, block, draws, *, blind=False):
        ended = []
        for n in range(3):
            level, earned = self.under_way.get(n, (None, 0.0))
            fresh = True
            for t in range(len(block["levels"])):
                if not block["valid"][t][n]:
                    continue
                if fresh and level != block["levels"][t][n]:
                    level, earned = block["levels"][t][n], 0.0
                fresh = False
                earned += np.nan if blind else block["rewards"][t][n]
                if block["dones"][t][n]:
                    ended.append((t, n, int(level), earned))
                    level, earned, fresh = None, 0.0, True
            self.under_way[n] = level, earned
        for _, _, level, earned in sorted(ended, key=lambda episode: episode[:2]):
            self.one(level, earned, draws)

    def one(self, level, earned, draws):
        plays, last_return, _ = self.levels.get(level, (0, np.nan, 0))
        self.levels[level] = plays + 1, last_return if np.isnan(earned) else earned, draws


def shown(curriculum):
    """{level: (plays, last return, draws when it was last played)} of the levels that were played."""
    rows, draws = curriculum.table(), curriculum.counters()["draws"]
    told = {
        level: (plays, returned, draws - since)
        for level, plays, returned, since in zip(
            *(each.tolist() for each in (rows.ids, rows.plays, rows.last_returns, rows.since_played)), strict=True
        )
    }
    assert all(since == draws + 1 and np.isnan(back) for plays, back, since in told.values() if not plays)
    return {level: values for level, values in told.items() if values[0]}


KINDS = ("draw", "block", "scores", "blind")


@pytest.mark.parametrize("partial", ["commit", "stitch"])
@pytest.mark.parametrize("strategy", ["value_l1", "uniform", "maxmc", "learnability"])
@given(seed=st.integers(0, 2**32 - 1), kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=12))
@settings(max_examples=15)
def test_plays_and_returns_are_those_of_plain_loops(strategy, partial, seed, kinds):
    rng = np.random.default_rng(seed)
    curriculum, plain = Curriculum(Config(levels=range(5), strategy=strategy, partial=partial)), Played()
    blocks = model.stream(rng, num_blocks=len(kinds), num_columns=3, num_levels=5, done=0.4)
    for kind, block in zip(kinds, blocks, strict=True):
        draws, is_blind = curriculum.counters()["draws"], kind == "blind" and strategy == "uniform"
        if kind == "draw":
            curriculum.sample(3)
        elif kind == "scores":
            levels = rng.integers(0, 5, 4)
            curriculum.update_scores(levels, levels / 8)
            for level in levels.tolist():
                plain.one(level, np.nan, draws)
        else:
            curriculum.update(**(block | {"rewards": None} if is_blind else block))
            plain.block(block, draws, blind=is_blind)
        np.testing.assert_equal(shown(curriculum), plain.levels)
        again = Curriculum.from_state(curriculum.state())
        assert pickle.dumps(again.state()) == pickle.dumps(curriculum.state())
        curriculum = again


def one_episode(level, earned):
    """Its score is the magnitude of what it earned."""
    return {"values": [[0.0]], "rewards": [[earned]], "dones": [[1]], "levels": [[level]], "next_values": [0.0]}


def test_a_level_that_leaves_takes_its_plays_along():
    """One episode a push, so that who enters and who leaves is seen between two of them."""
    config = Config(levels="unbounded", capacity=3, strategy="one_step_td_error", replay_prob=0.5)
    curriculum, plain, rng = Curriculum(config), Played(), np.random.default_rng(2)
    inside, most = set(), 0
    for _ in range(300):
        level, earned = int(rng.integers(0, 9)), float(rng.integers(-4, 5))
        curriculum.update(**one_episode(level, earned))
        now = set(curriculum.scores()[0].tolist())
        plain.levels = {each: values for each, values in plain.levels.items() if each in inside & now}
        if level in now:
            plain.one(level, earned, 0)
        inside = now
        assert shown(curriculum) == plain.levels
        most = max(most, max((plays for plays, _, _ in plain.levels.values()), default=0))
    counters = curriculum.counters()
    assert counters["evicted"] > 10
    assert counters["rejected"] > 10
    assert most > 3


def test_a_level_that_is_inserted_with_a_score_has_not_been_played_here():
    curriculum = Curriculum(Config(levels="payloads", strategy="external"))
    (level,) = curriculum.insert(["a"], scores=[0.5])
    assert shown(curriculum) == {}
    curriculum.update_scores([level, level], [0.1, 0.2])
    np.testing.assert_equal(shown(curriculum), {level: (2, np.nan, 0)})


def test_agents_of_one_env_are_counted_one_by_one():
    curriculum = Curriculum(Config(levels=range(3), strategy="uniform"))
    block = {"dones": [[1, 1]], "levels": [[2, 2]], "rewards": [[1.0, 3.0]]}
    curriculum.update(**block, groups=[0, 0])
    assert shown(curriculum) == {2: (2, 3.0, 0)}


def test_rows_are_those_of_scores_in_stretches():
    curriculum, rng = Curriculum(Config(levels=range(40, 50), strategy="external")), np.random.default_rng(0)
    curriculum.update_scores(rng.integers(40, 50, 6), rng.random(6))
    curriculum.sample(5)
    whole = curriculum.table()
    for mine, theirs in zip(whole[:4], curriculum.scores(), strict=True):
        assert mine.tolist() == theirs.tolist()
    pieces = [curriculum.table(begin, begin + 4) for begin in (0, 4, 8, 12)]
    assert [len(piece.ids) for piece in pieces] == [4, 4, 2, 0]
    for name in whole._fields:
        joined = np.concatenate([getattr(piece, name) for piece in pieces])
        np.testing.assert_array_equal(joined, getattr(whole, name))
        assert joined.dtype == getattr(whole, name).dtype
    assert len(curriculum.table(6, 3).ids) == 0
    for begin, stop, field in ((-1, None, "begin"), (0, -1, "stop"), (1.0, None, "begin"), (0, True, "stop")):
        with pytest.raises(InvalidInput, match=f"{field}: expected a row, an integer from 0 on, got"):
            curriculum.table(begin, stop)

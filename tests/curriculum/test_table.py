"""table.py: scores applied in order, and who is told of first scores, beside a plain dict."""

from __future__ import annotations

import numpy as np
import pytest

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

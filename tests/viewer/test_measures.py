"""plr_server/viewer/measures.py: what it makes of the scores of a curriculum is what the curriculum itself says."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from plr_server import Config, Curriculum
from plr_server.curriculum.sampling.transforms import TRANSFORMS
from plr_server.viewer.measures import MASS_BINS, SCORE_BINS, SORT_KEYS, look, narrow, rows

CONFIGS = {
    "the paper's": Config(levels=range(100)),
    "by staleness alone": Config(levels=range(100), staleness_coef=1.0),
    "by score alone": Config(levels=range(100), staleness_coef=0.0, transform="softmax"),
    "another tau": Config(levels=range(100), staleness_temperature=0.5, transform="power", temperature=1.0),
    "uniform": Config(levels=range(100), strategy="uniform"),
    "random": Config(levels=range(100), strategy="random"),
    "sequential": Config(levels=range(100), strategy="sequential"),
    "ids": Config(levels=tuple(range(200, 0, -2)), transform="eps_greedy"),
    "unbounded": Config(levels="unbounded", capacity=30),
    **{transform: Config(levels=range(100), transform=transform, temperature=0.7) for transform in TRANSFORMS},
}


def played(config, num=300, *, share=1.0):
    """A curriculum that was played, with scores in (0, 1) for a share of what was played."""
    curriculum, rng = Curriculum(config), np.random.default_rng(5)
    for _ in range(num):
        level = curriculum.sample()[0].level
        if rng.random() < share:
            curriculum.update_scores([level], rng.random(1))
    return curriculum


def looked(curriculum):
    return look(curriculum.config, curriculum.counters()["draws"], narrow(curriculum.table()))


def unshade(packed):
    return (np.frombuffer(base64.b64decode(packed), np.uint8) / 255) ** 3


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("num", [0, 1, 300])
def test_weights_and_effective_levels_are_those_of_the_curriculum(name, num):
    curriculum = played(CONFIGS[name], num, share=0.9)
    it, summary = looked(curriculum)
    stats = curriculum.stats()
    np.testing.assert_allclose(it.by_score + it.by_staleness, curriculum.weights(), rtol=1e-5, atol=1e-9)
    assert summary["effective_levels"] == pytest.approx(stats["effective_levels"], rel=1e-5)
    if stats["levels_seen"]:
        assert summary["table_score"] == pytest.approx(stats["mean_score"], rel=1e-5)
        assert summary["score_max"] == pytest.approx(stats["max_score"], rel=1e-5)


def test_the_mean_score_of_what_is_drawn_is_that_of_many_draws():
    curriculum = played(Config(levels=range(50), temperature=0.7, staleness_coef=0.3))
    _, summary = looked(curriculum)
    scores = curriculum.scores()[1]
    drawn = [
        scores[Curriculum.from_state(curriculum.state() | {"generator": seeded(seed)}).sample()[0].level]
        for seed in range(400)
    ]
    error = 4 * np.std(drawn) / np.sqrt(len(drawn))
    assert abs(np.mean(drawn) - summary["drawn_score"]) < error < abs(summary["table_score"] - summary["drawn_score"])


def seeded(seed):
    return np.random.PCG64(seed).state


def test_quantiles_of_scores_and_staleness_are_those_of_the_seen_levels():
    curriculum = played(CONFIGS["the paper's"], 60)
    _, summary = looked(curriculum)
    _, scores, staleness, seen = curriculum.scores()
    assert 0 < seen.sum() < 100
    for name, share in (("min", 0), ("q10", 0.1), ("q50", 0.5), ("q90", 0.9), ("max", 1)):
        assert summary[f"score_{name}"] == pytest.approx(np.quantile(scores[seen], share), rel=1e-5)
    for name, share in (("q50", 0.5), ("q90", 0.9), ("max", 1)):
        assert summary[f"staleness_{name}"] == pytest.approx(np.quantile(staleness[seen], share), rel=1e-5)


def test_while_nothing_is_seen_nothing_is_said_of_seen_levels():
    _, summary = looked(Curriculum(Config(levels=range(5))))
    assert (summary["effective_levels"], summary["most_mass_levels"]) == (0.0, 0)
    assert {summary[name] for name in ("drawn_score", "table_score", "score_q50", "staleness_max", "score_shares")} == {
        None
    }


def test_the_smallest_number_of_levels_that_take_90_percent():
    curriculum = Curriculum(Config(levels=range(10), transform="power", temperature=1.0, staleness_coef=0.0))
    curriculum.update_scores(range(10), [50, 30, 11, 9, 0, 0, 0, 0, 0, 0])
    assert looked(curriculum)[1]["most_mass_levels"] == 3


def test_the_histogram_of_the_scores():
    curriculum = Curriculum(Config(levels=range(64), staleness_coef=0.0))
    curriculum.update_scores(range(40), np.repeat([1.0, 2.0, 3.0], [10, 10, 20]))
    shares = unshade(looked(curriculum)[1]["score_shares"])
    assert len(shares) == SCORE_BINS
    np.testing.assert_allclose(shares[[0, SCORE_BINS // 2, -1]], [0.25, 0.25, 0.5], atol=0.01)
    assert np.count_nonzero(shares) == 3


@pytest.mark.parametrize("num_levels", [1, 5, 64, 65, 1000])
def test_the_sampling_mass_along_the_level_space(num_levels):
    curriculum = Curriculum(Config(levels=range(num_levels), strategy="sequential"))
    following = num_levels * 2 // 3
    if following:
        curriculum.sample(following)
    shares = unshade(looked(curriculum)[1]["mass_shares"])
    assert len(shares) == min(num_levels, MASS_BINS)
    assert shares.sum() == pytest.approx(1.0)
    assert shares.argmax() == pytest.approx(following * len(shares) // num_levels, abs=1)


# ---- the level table


def test_rows_are_the_levels_of_the_curriculum():
    curriculum = played(Config(levels=range(300, 200, -1), temperature=0.5), 80)
    ids, scores, staleness, seen = curriculum.scores()
    weights = curriculum.weights()
    best_first = sorted(np.flatnonzero(seen).tolist(), key=lambda index: (-scores[index], index))
    answer = rows(looked(curriculum)[0], "score", descending=True, limit=1000)
    assert answer["total"] == len(answer["rows"]) == seen.sum()
    for rank, (row, index) in enumerate(zip(answer["rows"], best_first, strict=True), 1):
        assert (row["id"], row["score"], row["staleness"]) == (ids[index], scores[index], staleness[index])
        assert row["rank"] == rank
        assert row["weight"] == pytest.approx(weights[index], rel=1e-5)
        assert row["by_score"] + row["by_staleness"] == row["weight"]


@pytest.mark.parametrize("sort", SORT_KEYS)
@pytest.mark.parametrize("descending", [True, False])
def test_the_first_rows_are_those_of_all_rows(sort, descending):
    it, _ = looked(played(Config(levels=range(100), staleness_coef=0.5)))
    every = rows(it, sort, descending=descending, limit=1000)["rows"]
    values = [row[sort] for row in every if row[sort] is not None]  # a level without a return is the last one
    assert None not in [row[sort] for row in every[: len(values)]]
    assert values == sorted(values, reverse=descending)
    for limit in (1, 7, 99, 100):
        assert rows(it, sort, descending=descending, limit=limit)["rows"] == every[:limit]


def test_equal_values_keep_the_order_of_the_level_space():
    curriculum = Curriculum(Config(levels=range(20, 0, -1)))
    curriculum.update_scores(range(1, 21), np.ones(20))
    answer = rows(looked(curriculum)[0], "score", descending=True, limit=5)["rows"]
    assert [(row["id"], row["rank"]) for row in answer] == [(20, 1), (19, 2), (18, 3), (17, 4), (16, 5)]


def test_one_level_is_found_by_its_id_or_not_at_all():
    curriculum = Curriculum(Config(levels=(5, 7, 9)))
    curriculum.update_scores([5, 9], [0.25, 0.5])
    it, _ = looked(curriculum)
    found = [rows(it, "weight", descending=True, limit=9, find=level) for level in (9, 7, 4)]
    assert [(answer["total"], [row["id"] for row in answer["rows"]]) for answer in found] == [
        (2, [9]),
        (2, []),
        (2, []),
    ]

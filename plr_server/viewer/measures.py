"""What the arrays of a curriculum say: where the sampling mass is, which scores there are, how old they are.

Used by collect. Pure functions of arrays: the weights come from the sampler of the curriculum itself, so that the page
shows what the server draws by, and the server does none of this work.
"""

from __future__ import annotations

import base64
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from plr_server.curriculum.arrays import Bools, Floats, Ints
from plr_server.curriculum.assigner import sampling_options
from plr_server.curriculum.config import Config
from plr_server.curriculum.sampling.sampler import Sampler

SCORE_BINS = 32
MASS_BINS = 64
MOST_MASS = 0.9  # "so many levels take 90 % of the replays"
DIGITS = 6  # of a number in the history: more than a chart shows
SORT_KEYS = ("weight", "score", "staleness", "id")


@dataclasses.dataclass(frozen=True, slots=True)
class Look:
    """One look at all levels of a curriculum, in the order of `Trainer.scores`.

    Attributes:
        ids: (N,) int64.
        scores: (N,) float64, 0 where unseen.
        staleness: (N,) int64, draws since the level was last drawn.
        seen: (N,) bool.
        by_score: (N,) float32, (1 - ρ) P_S.
        by_staleness: (N,) float32, ρ P_C; with `by_score` it adds up to P_replay.
        ranks: (N,) int32, by score among the seen levels: 1 is the highest, equal scores by the lower index; 0 unseen.
    """

    ids: Ints
    scores: Floats
    staleness: Ints
    seen: Bools
    by_score: Any
    by_staleness: Any
    ranks: Any


def look(config: Config, draws: int, levels: tuple[Ints, Floats, Ints, Bools]) -> tuple[Look, dict[str, Any]]:
    """Returns the levels with their chances, and the summary of them that the history keeps.

    Args:
        config: of the curriculum.
        draws: levels drawn so far, which says what `sequential` draws next.
        levels: ids, scores, staleness and seen, (N,) each, as `Trainer.scores` gives them.

    Returns:
        The look, and a summary of plain values. effective_levels: exp of the entropy of P_replay; most_mass_levels:
        the smallest number of levels that take 90 % of the replays; drawn_score: the mean score of what a replay draws;
        table_score, score_std, score_min, score_q10, score_q50, score_q90, score_max: of the seen levels, each counted
        once, which is what a uniform replay draws; staleness_q50, staleness_q90, staleness_max: of the seen levels.
        score_shares: how the seen levels spread over 32 equal bins from score_min to score_max, mass_shares: how
        P_replay spreads over up to 64 equal stretches of the level space, both as `shade` packs them. What is said of
        seen levels is None while there is none.
    """
    ids, scores, staleness, seen = levels
    by_score, by_staleness = _parts(config, draws, scores, staleness, seen)
    weights = by_score + by_staleness
    where = np.flatnonzero(seen)
    of_seen, ages = scores[where], staleness[where]
    best_first = where[np.argsort(-of_seen, kind="stable")]
    ranks = np.zeros(len(ids), dtype=np.int32)
    ranks[best_first] = np.arange(1, len(where) + 1)
    mass = weights[weights > 0]
    summary: dict[str, Any] = {
        "effective_levels": math.exp(-float((mass * np.log(mass)).sum())) if len(mass) else 0.0,
        "most_mass_levels": _most_mass_levels(mass),
        "mass_shares": shade(_stretches(weights)),
    }
    summary |= dict.fromkeys(
        ("drawn_score", "table_score", "score_std", *(f"score_{name}" for name in ("min", "q10", "q50", "q90", "max")))
    )
    summary |= dict.fromkeys(("staleness_q50", "staleness_q90", "staleness_max", "score_shares"))
    if len(where):
        low, q10, q50, q90, high = np.quantile(of_seen, (0.0, 0.1, 0.5, 0.9, 1.0)).tolist()
        in_bins = ((of_seen - low) / ((high - low) or 1.0) * SCORE_BINS).astype(np.int64).clip(0, SCORE_BINS - 1)
        age_q50, age_q90, oldest = np.quantile(ages, (0.5, 0.9, 1.0)).tolist()
        summary |= {
            "drawn_score": float(weights @ scores),
            "table_score": float(of_seen.mean()),
            "score_std": float(of_seen.std()),
            "score_min": low,
            "score_q10": q10,
            "score_q50": q50,
            "score_q90": q90,
            "score_max": high,
            "score_shares": shade(np.bincount(in_bins, minlength=SCORE_BINS) / len(where)),
            "staleness_q50": age_q50,
            "staleness_q90": age_q90,
            "staleness_max": oldest,
        }
    rounded = {name: float(f"{x:.{DIGITS}g}") if isinstance(x, float) else x for name, x in summary.items()}
    return Look(*levels, by_score.astype(np.float32), by_staleness.astype(np.float32), ranks), rounded


def _parts(config: Config, draws: int, scores: Floats, staleness: Ints, seen: Bools) -> tuple[Floats, Floats]:
    """Returns the two parts of `Curriculum.weights`, (N,) each."""
    num, nothing = len(scores), np.zeros(len(scores))
    if not num:
        return nothing, nothing
    if config.strategy == "random":
        return np.full(num, 1.0 / num), nothing
    if config.strategy == "sequential":
        return np.eye(1, num, draws % num)[0], nothing
    latest = int(staleness.max())  # P_C knows differences only
    state = {"scores": scores, "seen": seen, "last_drawn": latest - staleness, "draws": latest}
    return Sampler.from_state(state, **sampling_options(config) | {"evicts": False, "caps": False}).parts()


def _most_mass_levels(mass: Floats) -> int:
    """Returns how many of the heaviest weights it takes to reach 90 % of their sum."""
    if not len(mass):
        return 0
    heaviest_first = np.sort(mass)[::-1].cumsum()
    return int(heaviest_first.searchsorted(MOST_MASS * heaviest_first[-1])) + 1


def _stretches(weights: Floats) -> Floats:
    """Returns the sums over up to 64 equal stretches of the level space."""
    if not len(weights):
        return weights
    num = min(MASS_BINS, len(weights))
    sums: Floats = np.add.reduceat(weights, np.arange(num) * len(weights) // num)
    return sums


def shade(shares: Floats) -> str:
    """Packs shares, 0 to 1, into one byte each, base64: 255 times the cube root, so that a small share stays visible.

    >>> [round((byte / 255) ** 3, 4) for byte in base64.b64decode(shade(np.array([0.0, 0.001, 0.5, 1.0])))]
    [0.0, 0.0011, 0.4971, 1.0]
    """
    return base64.b64encode(np.rint(255.0 * np.cbrt(shares.clip(0.0, 1.0))).astype(np.uint8).tobytes()).decode()


def rows(seen_levels: Look, sort: str, *, descending: bool, limit: int, find: int | None = None) -> dict[str, Any]:
    """Returns some rows of the level table.

    Args:
        seen_levels: where they come from; levels that are not seen have no row.
        sort: one of `SORT_KEYS`; equal values keep the order of the level space.
        descending: largest first.
        limit: how many rows at most.
        find: the id of the one level that is asked for.

    Returns:
        total: how many levels could have a row; rows: a mapping each of id, score, weight, by_score, by_staleness,
        rank, staleness.
    """
    it = seen_levels
    where = np.flatnonzero(it.seen if find is None else it.seen & (it.ids == find))
    keys: Mapping[str, Any] = {
        "weight": it.by_score[where] + it.by_staleness[where],
        "score": it.scores[where],
        "staleness": it.staleness[where],
        "id": it.ids[where],
    }
    key = -keys[sort] if descending else keys[sort]
    if len(where) > limit:  # only the first ones are worth sorting
        limit_key = np.partition(key, limit - 1)[limit - 1]
        first = np.flatnonzero(key <= limit_key)
        where, key = where[first], key[first]
    chosen = where[np.argsort(key, kind="stable")][:limit]
    by_score, by_staleness = it.by_score[chosen].astype(np.float64), it.by_staleness[chosen].astype(np.float64)
    columns = {
        "id": it.ids[chosen],
        "score": it.scores[chosen],
        "weight": by_score + by_staleness,
        "by_score": by_score,
        "by_staleness": by_staleness,
        "rank": it.ranks[chosen],
        "staleness": it.staleness[chosen],
    }
    in_rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return {"total": int(it.seen.sum()), "rows": [dict(zip(columns, row, strict=True)) for row in in_rows]}

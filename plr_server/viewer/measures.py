"""What the rows of a level table say: where the sampling mass is, which scores there are, how old they are.

Used by collect. Pure functions of arrays, narrow ones, for a million levels are to fit: the page shows what the server
draws by, and the server does none of this work.
"""

from __future__ import annotations

import base64
import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plr_client.levels import TableRows
from plr_server.curriculum.arrays import Floats, Ints
from plr_server.curriculum.assigner import BASELINES as DRAW_FROM_ALL
from plr_server.curriculum.config import Config

SCORE_BINS = 32
MASS_BINS = 64
AT_ONCE = 2**16  # levels, where all at once would take too much memory
MOST_MASS = 0.9  # "so many levels take 90 % of the replays"
DIGITS = 6  # of a number in the history: more than a chart shows
QUANTILES_OF_TIMES = (("p50_s", 0.5), ("p99_s", 0.99))
SORT_KEYS = ("weight", "score", "staleness", "id", "plays", "last_return")

Singles = NDArray[np.float32]


@dataclasses.dataclass(frozen=True, slots=True)
class Look:
    """One look at all levels of a curriculum, in the order of `Trainer.table`.

    Attributes:
        levels: their rows, (N,) each, as `narrow` leaves them.
        by_score: (N,) float32, (1 - ρ) P_S.
        by_staleness: (N,) float32, ρ P_C; with `by_score` it adds up to P_replay.
        ranks: (N,) int32, by score among the seen levels: 1 is the highest, equal scores by the lower index; 0 unseen.
    """

    levels: TableRows
    by_score: Singles
    by_staleness: Singles
    ranks: NDArray[np.int32]


def narrow(rows: TableRows) -> TableRows:
    """Returns rows in the narrowest dtypes that show the same: int32 where the values fit, float32 returns."""
    fits = np.iinfo(np.int32)
    narrowed = {}
    for name in ("ids", "staleness", "plays", "since_played"):
        column = getattr(rows, name)
        if fits.min <= column.min(initial=0) and column.max(initial=0) <= fits.max:
            narrowed[name] = column.astype(np.int32)
    with np.errstate(over="ignore"):
        return rows._replace(**narrowed, last_returns=rows.last_returns.astype(np.float32))


def joined(pieces: list[TableRows]) -> TableRows:
    """Returns rows that came in pieces as one, and lets go of the pieces on the way: `pieces` is empty then."""
    columns: list[Any] = [list(column) for column in zip(*pieces, strict=True)]
    pieces.clear()
    for at, column in enumerate(columns):
        columns[at] = np.concatenate(column)
        column.clear()
    return TableRows(*columns)


def look(config: Config, draws: int, levels: TableRows) -> tuple[Look, dict[str, Any]]:
    """Returns the levels with their chances, and the summary of them that the history keeps.

    Args:
        config: of the curriculum.
        draws: levels drawn so far, which says what `sequential` draws next.
        levels: rows of all N levels.

    Returns:
        The look, and a summary of plain values. effective_levels: exp of the entropy of P_replay; most_mass_levels:
        the smallest number of levels that take 90 % of the replays; drawn_score: the mean score of what a replay draws;
        table_score, score_std, score_min, score_q10, score_q50, score_q90, score_max: of the seen levels, each counted
        once, which is what a uniform replay draws; staleness_q50, staleness_q90, staleness_max: of the seen levels.
        score_age: how many draws old the score of what a replay draws is, on average; mean_return: of the last returns
        that are known, each level counted once. score_shares: how the seen levels spread over 32 equal bins from
        score_min to score_max, mass_shares: how P_replay spreads over up to 64 equal stretches of the level space, both
        as `shade` packs them. What is said of seen levels is None while there is none.
    """
    where = np.flatnonzero(levels.seen).astype(np.int32)
    of_seen = levels.scores if len(where) == len(levels.ids) else levels.scores[where]
    best_first = _best_first(of_seen)
    ranks = np.zeros(len(levels.ids), dtype=np.int32)
    ranks[where[best_first]] = np.arange(1, len(where) + 1)
    by_score, by_staleness = np.zeros(len(levels.ids), dtype=np.float32), np.zeros(len(levels.ids), dtype=np.float32)
    if config.strategy in DRAW_FROM_ALL:
        by_score += _p_of_baseline(config, draws, len(levels.ids))
    elif len(where):
        coef = config.staleness_coef
        by_score[where] = _p_score(config, of_seen, best_first)
        by_score *= np.float32(1.0 - coef)
        if coef:
            ages = levels.staleness[where].astype(np.float64)
            by_staleness[where] = _normalised(_powers(ages, 1.0 / config.staleness_temperature))
            by_staleness *= np.float32(coef)
    weights = by_score + by_staleness
    summary: dict[str, Any] = {
        "effective_levels": _effective_levels(weights),
        "most_mass_levels": _most_mass_levels(weights),
        "mass_shares": shade(_stretches(weights)),
    }
    summary |= dict.fromkeys(
        ("drawn_score", "table_score", "score_std", *(f"score_{name}" for name in ("min", "q10", "q50", "q90", "max")))
    )
    summary |= dict.fromkeys(("staleness_q50", "staleness_q90", "staleness_max", "score_shares"))
    summary |= dict.fromkeys(("score_age", "mean_return"))
    if len(where):
        worst_first = of_seen[best_first[::-1]]
        del best_first
        low, q10, q50, q90, high = _quantiles(worst_first, (0.0, 0.1, 0.5, 0.9, 1.0))
        edges = np.linspace(low, high, SCORE_BINS + 1)[1:-1]
        counts = np.diff(worst_first.searchsorted(edges), prepend=0, append=len(where))
        del worst_first
        ages = np.sort(levels.staleness[where])
        age_q50, age_q90, oldest = _quantiles(ages, (0.5, 0.9, 1.0))
        del ages
        played = levels.since_played >= 0
        mass_played = float(weights.sum(dtype=np.float64, where=played))
        waited = weights * levels.since_played.clip(min=0)
        returned = levels.last_returns[~np.isnan(levels.last_returns)]
        summary |= {
            "drawn_score": float(np.dot(weights, levels.scores)),
            "table_score": float(of_seen.mean()),
            "score_std": float(of_seen.std()),
            "score_min": low,
            "score_q10": q10,
            "score_q50": q50,
            "score_q90": q90,
            "score_max": high,
            "score_shares": shade(counts / len(where)),
            "staleness_q50": age_q50,
            "staleness_q90": age_q90,
            "staleness_max": oldest,
            "score_age": float(waited.sum(dtype=np.float64)) / mass_played if mass_played else None,
            "mean_return": float(returned.mean(dtype=np.float64)) if len(returned) else None,
        }
    rounded = {name: rounded_to(DIGITS, x) if isinstance(x, float) else x for name, x in summary.items()}
    return Look(levels, by_score, by_staleness, ranks), rounded


def rounded_to(digits: int, number: float) -> float:
    """Returns a number with so many significant digits."""
    return float(f"{number:.{digits}g}")


def _p_of_baseline(config: Config, draws: int, num: int) -> Singles:
    """Returns (N,) the chances under a strategy that draws from all levels, seen or not."""
    chances = np.zeros(num, dtype=np.float32)
    if num and config.strategy == "random":
        chances += np.float32(1.0 / num)
    elif num:
        chances[draws % num] = 1.0
    return chances


def _best_first(values: Floats) -> NDArray[np.int32]:
    """Returns (n,) the order of values, the highest first, equal ones as they are."""
    return np.argsort(-values, kind="stable").astype(np.int32)


def _p_score(config: Config, scores: Floats, best_first: NDArray[np.int32]) -> Floats | Singles:
    """Returns (n,) P_S of n seen levels: the equations of `sampling.transforms`, of all levels at once."""
    transform, exponent, num = config.transform, 1.0 / config.temperature, len(scores)
    if config.strategy == "uniform" or transform == "constant":
        return np.full(num, 1.0 / num)
    if transform in ("match", "match_rank"):
        scores = (1.0 - scores) * scores
        best_first = _best_first(scores)
    if transform in ("power", "match"):
        return _normalised(_powers(np.maximum(scores, 0.0), exponent))
    if transform == "softmax":
        powers = scores - scores.max()
        powers *= exponent
        return _normalised(np.exp(powers, out=powers))
    p_score = np.empty(num, dtype=np.float32)
    if transform in ("rank", "match_rank"):
        by_rank = np.arange(1.0, num + 1.0)
        p_score[best_first] = _normalised(np.power(by_rank, -exponent, out=by_rank))
        return p_score
    eps = config.eps if transform == "eps_greedy" else 0.0
    p_score[:] = eps / num
    p_score[best_first[0]] += 1.0 - eps
    return p_score


def _powers(values: Floats, exponent: float) -> Floats:
    """Returns values, 0 or more, to a power, as multiples of the largest one's, in place."""
    values /= values.max() or 1.0
    return np.power(values, exponent, out=values)


def _normalised(weights: Floats) -> Floats:
    """Returns weights divided by their sum, in place; equal ones where all are 0."""
    total = weights.sum()
    if not total:
        weights += 1.0 / len(weights)
        return weights
    weights /= total
    return weights


def _quantiles(in_order: NDArray[Any], shares: Sequence[float]) -> list[float]:
    """Returns quantiles of what is sorted already, as `np.quantile` does, without a copy of it."""
    found = []
    for share in shares:
        place = share * (len(in_order) - 1)
        below, above = in_order[math.floor(place)], in_order[math.ceil(place)]
        found.append(float(below + (float(above) - float(below)) * (place - math.floor(place))))
    return found


def _effective_levels(weights: Singles) -> float:
    mass = weights[weights > 0]
    return math.exp(-float((mass * np.log(mass)).sum(dtype=np.float64))) if len(mass) else 0.0


def _most_mass_levels(weights: Singles) -> int:
    """Returns how many of the heaviest weights it takes to reach 90 % of their sum."""
    wanted = MOST_MASS * float(weights.sum(dtype=np.float64))
    heaviest_first = np.sort(weights)[::-1]
    before = 0.0
    for begin in range(0, len(weights) if wanted else 0, AT_ONCE):
        up_to = before + np.cumsum(heaviest_first[begin : begin + AT_ONCE], dtype=np.float64)
        if up_to[-1] >= wanted:
            return begin + int(up_to.searchsorted(wanted)) + 1
        before = float(up_to[-1])
    return 0 if not wanted else len(weights)


def _stretches(weights: Singles) -> Floats:
    """Returns the sums over up to 64 equal stretches of the level space."""
    num = min(MASS_BINS, len(weights))
    begin = [at * len(weights) // num for at in range(num)]
    ends = [*begin[1:], len(weights)]
    return np.array([weights[at:end].sum(dtype=np.float64) for at, end in zip(begin, ends, strict=False)])


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
        rank, staleness, plays, last_return (None where it is not known), since_played (draws; None where it never was).
    """
    it, levels = seen_levels, seen_levels.levels
    where = np.flatnonzero(levels.seen if find is None else levels.seen & (levels.ids == find))
    keys: Mapping[str, Callable[[], Any]] = {
        "weight": lambda: it.by_score[where] + it.by_staleness[where],
        "score": lambda: levels.scores[where],
        "staleness": lambda: levels.staleness[where],
        "id": lambda: levels.ids[where],
        "plays": lambda: levels.plays[where],
        "last_return": lambda: np.nan_to_num(levels.last_returns[where], nan=-np.inf if descending else np.inf),
    }
    key = -keys[sort]() if descending else keys[sort]()
    if len(where) > limit:  # only the first ones are worth sorting
        limit_key = np.partition(key, limit - 1)[limit - 1]
        first = np.flatnonzero(key <= limit_key)
        where, key = where[first], key[first]
    chosen = where[np.argsort(key, kind="stable")][:limit]
    return {"total": int(np.count_nonzero(levels.seen)), "rows": _rows_at(it, chosen)}


def rows_of(seen_levels: Look, ids: Collection[int]) -> list[dict[str, Any]]:
    """Returns the rows, as in `rows`, of those of some levels that are seen, in the order of the level space."""
    levels = seen_levels.levels
    return _rows_at(seen_levels, np.flatnonzero(levels.seen & np.isin(levels.ids, list(ids))))


def _rows_at(it: Look, chosen: Ints) -> list[dict[str, Any]]:
    by_score, by_staleness = it.by_score[chosen].astype(np.float64), it.by_staleness[chosen].astype(np.float64)
    columns = {
        "id": it.levels.ids[chosen].tolist(),
        "score": it.levels.scores[chosen].tolist(),
        "weight": (by_score + by_staleness).tolist(),
        "by_score": by_score.tolist(),
        "by_staleness": by_staleness.tolist(),
        "rank": it.ranks[chosen].tolist(),
        "staleness": it.levels.staleness[chosen].tolist(),
        "plays": it.levels.plays[chosen].tolist(),
        "last_return": [
            rounded_to(DIGITS, each) if math.isfinite(each) else None
            for each in it.levels.last_returns[chosen].tolist()
        ],
        "since_played": [None if each < 0 else each for each in it.levels.since_played[chosen].tolist()],
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def num_requests(timings: Mapping[str, Mapping[str, Any]]) -> int:
    """Returns how many requests are in timings, as `Trainer.timings` gives them."""
    return sum(sum(of["counts"]) for of in timings.values())


def requests_between(
    from_s: float, before: Mapping[str, Mapping[str, Any]], to_s: float, now: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Returns what a server was asked for between two readings of its timings, the most frequent first.

    Returns:
        For each operation op, per_s (requests a second), p50_s and p99_s (what half of them, and 99 %, took less than;
        powers of two microseconds; None without any) and errors, of all since the server started.
    """
    found = []
    for op, of in now.items():
        earlier = before.get(op, {"counts": [0] * len(of["counts"])})["counts"]
        up_to = np.cumsum(np.array(of["counts"]) - np.array(earlier))
        num, took = int(up_to[-1]), dict.fromkeys(("p50_s", "p99_s"))
        if num:
            took = {name: 2.0 ** int(up_to.searchsorted(share * num)) / 1e6 for name, share in QUANTILES_OF_TIMES}
        per_s = num / (to_s - from_s) if to_s > from_s else 0.0
        found.append({"op": op, "per_s": per_s, **took, "errors": of["errors"]})
    return sorted(found, key=lambda each: -each["per_s"])

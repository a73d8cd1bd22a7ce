"""The statistics of the study: interquartile mean, stratified bootstrap, probability of improvement, Welch with Holm.

The first three as rliable defines them (Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical
Precipice, arXiv 2108.13264). Plain numpy; knows nothing of tasks or files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

BOOTSTRAPS = 10_000
LEVEL = 0.95

Scores = Sequence[np.ndarray]  # for each task (..., n), the scores of its n runs


def interquartile_mean(scores: Scores) -> np.ndarray:
    """Returns (...,) the mean of the middle half of all runs of all tasks: a quarter is cut off at either end.

    As scipy's `trim_mean(..., 0.25)`, which rliable uses: the number cut off is rounded down.
    """
    pooled = np.sort(np.concatenate(scores, axis=-1), axis=-1)
    cut = pooled.shape[-1] // 4
    return pooled[..., cut : pooled.shape[-1] - cut].mean(-1)


def probability_of_improvement(scores: Scores, others: Scores) -> np.ndarray:
    """Returns (...,) the mean over tasks of P(a run of `scores` > a run of `others`), a tie counting one half."""
    by_task = [
        (np.sign(ours[..., :, np.newaxis] - theirs[..., np.newaxis, :]) / 2 + 0.5).mean((-2, -1))
        for ours, theirs in zip(scores, others, strict=True)
    ]
    return np.mean(by_task, axis=0)


def ratio_of_means(scores: Scores, others: Scores) -> np.ndarray:
    """Returns (...,) the interquartile mean of `scores` over that of `others`."""
    return interquartile_mean(scores) / interquartile_mean(others)


def interval(statistic: Callable[..., np.ndarray], *groups: Scores, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ends (...,) of the 95 % percentile interval of a statistic under a stratified bootstrap.

    Args:
        statistic: of as many groups as are given.
        groups: each the scores of runs by task; every task of every group is resampled by itself, with replacement.
        seed: of the resampling.
    """
    rng = np.random.default_rng(seed)
    resampled = [
        [runs[..., rng.integers(runs.shape[-1], size=(BOOTSTRAPS, runs.shape[-1]))] for runs in group]
        for group in groups
    ]
    low, high = np.quantile(statistic(*resampled), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=-1)
    return low, high


def welch(scores: np.ndarray, others: np.ndarray) -> float:
    """Returns the two-sided p of Welch's t-test, that two groups of runs have the same mean; of 2 runs each or more."""
    shares = np.array([scores.var(ddof=1) / len(scores), others.var(ddof=1) / len(others)])
    difference = scores.mean() - others.mean()
    if shares.sum() == 0:
        return 1.0 if difference == 0 else 0.0
    t2 = difference**2 / shares.sum()
    freedom = shares.sum() ** 2 / (shares**2 / (np.array([len(scores), len(others)]) - 1)).sum()
    return _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t2))


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p values adjusted for how many there are (Holm 1979): below 0.05 means rejected at 0.05."""
    order = np.argsort(p_values)
    adjusted = np.array(p_values)[order] * np.arange(len(p_values), 0, -1)
    result = np.empty(len(p_values))
    result[order] = np.minimum(np.maximum.accumulate(adjusted), 1.0)
    return result.tolist()


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Returns the regularised incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22)."""
    if x == 0:
        return 0.0
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly
        return 1.0 - _incomplete_beta(b, a, 1.0 - x)
    fraction = 1.0
    for m in range(200, 0, -1):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m - 1) * (a + b + m - 1) * x / ((a + 2 * m - 2) * (a + 2 * m - 1))
        fraction = 1.0 + odd / (1.0 + even / fraction)
    front = math.exp(a * math.log(x) + b * math.log1p(-x) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b))
    return front / (a * fraction)

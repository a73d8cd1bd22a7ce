"""Strategies: what a step or an episode scores, by name. The rules alone; who remembers what is history's business.

Used by the scorer and, for their names, by the configuration. Pure functions of arrays: no state, no IO.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plr_server.curriculum.arrays import Floats
from plr_server.curriculum.elementary import exp, log
from plr_server.curriculum.scoring.episodes import Episodes, advantages


@dataclasses.dataclass(frozen=True, slots=True)
class Strategy:
    """How an episode is scored: by one of the three rules; with none of them by a function, or with 1.

    Attributes:
        per_step: E episodes of R steps, gamma and gae_lambda to scores (R,).
        per_best: R_max(level) - V_t, one per step, to scores of the same shape.
        per_window: the level's last W returns or successes after each of m finished episodes (m, W), the newest at the
            end, and how many of them there are (m,), to scores (m,). Parts of episodes are not scored.
        needs: the rollout fields that it reads.
        takes: those that it reads where they were pushed.
        remembers: what is kept of each level for it: its "best" return, its last "returns" or its last "successes".
    """

    per_step: Callable[[Episodes, float, float], Floats] | None = None
    per_best: Callable[[Floats], Floats] | None = None
    per_window: Callable[[NDArray[Any], NDArray[Any]], Floats] | None = None
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    remembers: str | None = None


def _probabilities(episodes: Episodes) -> Floats:
    logits = episodes.logits
    assert logits is not None  # noqa: S101  the rollout was checked against the strategy's needs
    powers = exp(logits - logits.max(axis=-1, keepdims=True))
    powers /= powers.sum(axis=-1, keepdims=True)
    return powers


def _value_l1(episodes: Episodes, gamma: float, gae_lambda: float) -> Floats:
    return np.abs(advantages(episodes, gamma, gae_lambda)[0])


def _gae(episodes: Episodes, gamma: float, gae_lambda: float) -> Floats:
    return advantages(episodes, gamma, gae_lambda)[0]


def _positive_value_loss(episodes: Episodes, gamma: float, gae_lambda: float) -> Floats:
    return np.maximum(advantages(episodes, gamma, gae_lambda)[0], 0.0)


def _one_step_td_error(episodes: Episodes, gamma: float, gae_lambda: float) -> Floats:
    return np.abs(advantages(episodes, gamma, gae_lambda)[1])


def _alt_advantage_abs(episodes: Episodes, gamma: float, _gae_lambda: float) -> Floats:
    """|G_t - V_t| with G_t = r_t + gamma G_{t+1}, cut at the block's end by its bootstrap: A_t with lambda = 1.

    Source: level-replay's and dcd's "alternative advantages", which average the same over the steps.
    """
    return np.abs(advantages(episodes, gamma, 1.0)[0])


def _policy_entropy(episodes: Episodes, _gamma: float, _gae_lambda: float) -> Floats:
    p = _probabilities(episodes)
    log_p = log(np.where(p > 0, p, 1.0))
    entropy: Floats = -(p * log_p).sum(axis=-1)
    entropy /= log(np.array([p.shape[-1]], dtype=np.float64))
    return entropy


def _least_confidence(episodes: Episodes, _gamma: float, _gae_lambda: float) -> Floats:
    best: Floats = _probabilities(episodes).max(axis=-1)
    return 1.0 - best


def _min_margin(episodes: Episodes, _gamma: float, _gae_lambda: float) -> Floats:
    top = np.partition(_probabilities(episodes), -2, axis=-1)[..., -2:]
    return 1.0 - (top[..., 1] - top[..., 0])


def _grounded_signed(gaps: Floats) -> Floats:
    """R_max(level) - V_t as it is: "maximum Monte Carlo".

    Source: arXiv 2110.02439 (maximum Monte Carlo, MaxMC). dcd scores finished episodes only, with their rewards in
    the block; here a part is scored too, and a return counts from the episode's first step.
    """
    return gaps


def _grounded_positive(gaps: Floats) -> Floats:
    """The positive part of R_max(level) - V_t. Source: as `_grounded_signed`; dcd's `grounded_positive_value_loss`."""
    return np.maximum(gaps, 0.0)


def _learnability(window: NDArray[Any], filled: NDArray[Any]) -> Floats:
    """The level's p (1 - p), p the share of successes among its last finished episodes.

    Source: Rutherford et al., No Regrets, arXiv 2408.15099 (learnability). There p comes from fresh rollouts of the
    current policy on each level; here from the window, which trails the policy.
    """
    p: Floats = window.sum(axis=1) / filled  # what is not filled is 0
    return p * (1.0 - p)


def _tscl(window: NDArray[Any], filled: NDArray[Any]) -> Floats:
    """Absolute slope, per episode, of the least-squares line through the level's last returns; 0 with fewer than two.

    Source: Matiisen et al., arXiv 1707.00183 (the algorithm Window). It regresses on the time of each return; here on
    the count of the level's episodes, so that a level is not taken to learn slowly because it was seldom played.
    """
    last = window.shape[1] - 1
    count = np.maximum(filled, 2.0)[:, np.newaxis]  # (E, 1); of one return alone the slope comes out as 0
    x = np.arange(last + 1.0) - (last - (count - 1) / 2)  # (E, W), 0 at the middle of the returns that are there
    y = np.where(np.arange(last + 1) > last - filled[:, np.newaxis], window - window[:, -1:], 0.0)
    slope: Floats = 12.0 * (x * y).sum(axis=1) / (count * (count**2 - 1.0))[:, 0]
    return np.abs(slope)


_VALUES = ("values", "rewards", "next_values")
_RETURNS = ("values", "rewards")
_MAXMC = Strategy(per_best=_grounded_signed, needs=_RETURNS, remembers="best")

STRATEGIES: dict[str, Strategy] = {
    "value_l1": Strategy(_value_l1, needs=_VALUES),
    "gae": Strategy(_gae, needs=_VALUES),
    "signed_value_loss": Strategy(_gae, needs=_VALUES),
    "positive_value_loss": Strategy(_positive_value_loss, needs=_VALUES),
    "one_step_td_error": Strategy(_one_step_td_error, needs=_VALUES),
    "policy_entropy": Strategy(_policy_entropy, needs=("logits",)),
    "least_confidence": Strategy(_least_confidence, needs=("logits",)),
    "min_margin": Strategy(_min_margin, needs=("logits",)),
    "alt_advantage_abs": Strategy(_alt_advantage_abs, needs=_VALUES),
    "grounded_signed_value_loss": _MAXMC,
    "maxmc": _MAXMC,
    "grounded_positive_value_loss": Strategy(per_best=_grounded_positive, needs=_RETURNS, remembers="best"),
    "learnability": Strategy(per_window=_learnability, needs=("rewards",), takes=("successes",), remembers="successes"),
    "tscl": Strategy(per_window=_tscl, needs=("rewards",), remembers="returns"),
    "uniform": Strategy(),
    "random": Strategy(),
    "sequential": Strategy(),
    "external": Strategy(),
}
FUNCTION = Strategy(takes=(*_VALUES, "logits", "successes"), remembers="best")  # a function of the user's scores


def strategy_named(name: str) -> Strategy:
    """Returns the strategy of that name: one of `STRATEGIES`, or `FUNCTION` where it is `module:function`."""
    return FUNCTION if ":" in name else STRATEGIES[name]

"""The scoring mathematics: advantages, episodes and their scores, over one rollout block, by array operations.

Used by the curriculum (and by whoever wants the numbers alone). Pure functions of arrays: no state, no checks of input,
no IO. All arrays are float64, int64 or bool; (T, N) is T steps, step-major, of N env columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from plr_client.errors import InvalidInput

if TYPE_CHECKING:
    from plr_server.curriculum.scoring.history import Past
    from plr_server.curriculum.scoring.rollouts import Rollout

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Scalar = TypeVar("Scalar", bound=np.generic)
Known = TypeVar("Known")


@dataclasses.dataclass(frozen=True, slots=True)
class Strategy:
    """How an episode is scored: by one of the three rules; with none of them by a function, or with 1.

    Attributes:
        per_step: a rollout, gamma and gae_lambda to scores (T, N).
        per_best: R_max(level) - V_t, one per step, to scores of the same shape.
        per_window: the level's last W returns or successes after each of m finished episodes (m, W), the newest at the
            end, and how many of them there are (m,), to scores (m,). Parts of episodes are not scored.
        needs: the rollout fields that it reads.
        takes: those that it reads where they were pushed.
        remembers: what is kept of each level for it: its "best" return, its last "returns" or its last "successes".
    """

    per_step: Callable[[Rollout, float, float], Floats] | None = None
    per_best: Callable[[Floats], Floats] | None = None
    per_window: Callable[[NDArray[Any], NDArray[Any]], Floats] | None = None
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    remembers: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Episodes:
    """E episodes, or parts of episodes cut by the block's end, in column-major time order.

    Attributes:
        level: (E,) the level each was played on.
        column: (E,) its env column, 0 to N - 1.
        start: (E,) its first row.
        stop: (E,) its last row + 1.
        finished: (E,) False where the block's end cut it.
        steps: (E,) its valid rows.
        mean: (E,) mean of its step scores.
        max: (E,) maximum of its step scores.
    """

    level: Ints
    column: Ints
    start: Ints
    stop: Ints
    finished: Bools
    steps: Ints
    mean: Floats
    max: Floats

    @property
    def begin(self) -> Ints:
        """(E,) where each begins among the valid rows, column-major."""
        begin: Ints = np.cumsum(self.steps) - self.steps
        return begin


def advantages(rollout: Rollout, gamma: float, gae_lambda: float) -> tuple[Floats, Floats]:
    """Generalised advantage estimates and one-step errors of a block.

    delta_t = r_t + gamma V(s_{t+1}) (1 - d_t) - V(s_t);  A_t = delta_t + gamma lambda (1 - d_t) A_{t+1}. Where
    truncated, delta_t bootstraps with `final_values`; nothing propagates back over a done. Rows that are not valid are
    as if
    absent: the row before one looks at the next valid row of its column.

    Returns:
        A (T, N) and delta (T, N); meaningless in rows that are not valid.

    Source: arXiv 2010.03934, section 3.1; arXiv 1506.02438, equations 11 and 16. Unlike level-replay and DI-engine,
    delta discounts and the last step of an episode counts.
    """
    values = _given(rollout.values)
    following = np.concatenate([values[1:], _given(rollout.next_values)[np.newaxis]])
    if rollout.valid is not None:
        valid_steps = np.where(rollout.valid, np.arange(len(values))[:, np.newaxis], len(values))
        next_valid = np.minimum.accumulate(valid_steps[::-1])[::-1]  # (T, N): the first valid row at or after t
        extended = np.concatenate([values, following[-1:]])
        after = np.concatenate([next_valid[1:], np.full((1, values.shape[1]), len(values))])
        following = np.take_along_axis(extended, after, axis=0)
    going_on = ~rollout.dones
    bootstrap = gamma * np.where(going_on, following, 0.0)
    if rollout.truncated is not None:
        bootstrap = np.where(rollout.truncated, gamma * _given(rollout.final_values), bootstrap)
    delta = _given(rollout.rewards) + bootstrap - values
    decay = gamma * gae_lambda * going_on
    gae = delta.copy()
    if rollout.valid is not None:
        gae[~rollout.valid] = 0.0  # an absent row hands A_{t+1} on as it is
        decay[~rollout.valid] = 1.0
    carried = np.zeros(values.shape[1])
    for t in range(len(values) - 1, -1, -1):
        carried *= decay[t]
        carried += gae[t]
        gae[t] = carried
    return gae, delta


def find_episodes(rollout: Rollout) -> tuple[Ints, Episodes]:
    """Cuts a block into episodes.

    Returns:
        The valid rows as flat indices into a (N, T) array, column-major; and the episodes, with mean and max still 0.

    Raises:
        InvalidInput: the level changes inside an episode.
    """
    num_steps, num_columns = rollout.dones.shape
    rows = np.arange(num_steps * num_columns) if rollout.valid is None else np.flatnonzero(rollout.valid.T)
    done, level = rollout.dones.T.ravel()[rows], rollout.levels.T.ravel()[rows]
    column, step = np.divmod(rows, num_steps)
    first = np.ones(len(rows), dtype=bool)
    first[1:] = done[:-1] | (column[1:] != column[:-1])
    torn = ~first[1:] & (level[1:] != level[:-1])
    if torn.any():
        i = int(np.flatnonzero(torn)[0])
        raise InvalidInput(
            "levels",
            "one level from an episode's first step to its last (the level active when obs_t was produced)",
            f"level {level[i + 1]} after {level[i]} in column {column[i + 1]} at step {step[i + 1]} "
            "without a done between",
        )
    start = np.flatnonzero(first)
    last = np.append(start[1:], len(rows))[: len(start)] - 1
    return rows, Episodes(
        level=level[start],
        column=column[start],
        start=step[start],
        stop=step[last] + 1,
        finished=done[last],
        steps=last - start + 1,
        mean=np.zeros(len(start)),
        max=np.zeros(len(start)),
    )


def score_episodes(rollout: Rollout, strategy: str, gamma: float, gae_lambda: float) -> Episodes:
    """Scores every episode of a block: mean and maximum of its step scores.

    Args:
        rollout: the block, with the fields that the strategy needs.
        strategy: a name in `STRATEGIES` that looks at the block alone.
        gamma: discount, 0 to 1.
        gae_lambda: lambda of the advantages, 0 to 1.

    Returns:
        The episodes, in column-major time order.

    Raises:
        InvalidInput: the level changes inside an episode.

    Source: arXiv 2010.03934, section 3.1 and table 1. Unlike the peers, parts cut by the block's end average over
    exactly their own rows, and an episode of one step has a score.
    """
    rows, episodes = find_episodes(rollout)
    return score_found(rollout, rows, episodes, STRATEGIES[strategy], gamma=gamma, gae_lambda=gae_lambda, past=None)


def score_found(
    rollout: Rollout,
    rows: Ints,
    episodes: Episodes,
    strategy: Strategy,
    *,
    gamma: float,
    gae_lambda: float,
    past: Past | None,
) -> Episodes:
    """Scores the episodes that `find_episodes` found, as `score_episodes` does.

    Args:
        rollout: the block, with the fields that the strategy needs.
        rows: its valid rows, as from `find_episodes`.
        episodes: its episodes, as from `find_episodes`.
        strategy: the rule.
        gamma: discount, 0 to 1.
        gae_lambda: lambda of the advantages, 0 to 1.
        past: what `History.look_back` found, for a strategy that remembers something.

    Returns:
        The episodes with their mean and max. Under a strategy that looks at a window both are its value, and 0 where
        the episode is not finished.
    """
    if strategy.per_window is not None:
        windows = _known(_known(past).windows)
        scores = np.zeros(len(episodes.level))
        scores[_known(past).order] = strategy.per_window(windows.values, windows.filled)
        return dataclasses.replace(episodes, mean=scores, max=scores)
    if strategy.per_best is not None:
        best = _known(_known(past).best)
        grounded = np.where(np.isneginf(best), _known(past).returns, best)
        scores = strategy.per_best(np.repeat(grounded, episodes.steps) - flatten(_given(rollout.values), rows))
    elif strategy.per_step is not None:
        scores = flatten(strategy.per_step(rollout, gamma, gae_lambda), rows)
    else:
        ones = np.ones(len(episodes.level))
        return dataclasses.replace(episodes, mean=ones, max=ones)
    if not len(rows):
        return episodes
    return dataclasses.replace(
        episodes,
        mean=np.add.reduceat(scores, episodes.begin) / episodes.steps,
        max=np.maximum.reduceat(scores, episodes.begin),
    )


def flatten(array: NDArray[Scalar], rows: Ints) -> NDArray[Scalar]:
    """Returns the valid rows of a (T, N, ...) array in column-major time order, (R, ...)."""
    return np.ascontiguousarray(array.swapaxes(0, 1)).reshape(-1, *array.shape[2:])[rows]


def _known(given: Known | None) -> Known:
    assert given is not None, "the history was made for the strategy"  # noqa: S101  narrows the type
    return given


def _given(array: Floats | None) -> Floats:
    assert array is not None, "the rollout was checked against the strategy's needs"  # noqa: S101  narrows the type
    return array


def _probabilities(rollout: Rollout) -> Floats:
    logits = _given(rollout.logits)
    powers: Floats = np.exp(logits - logits.max(axis=-1, keepdims=True))
    powers /= powers.sum(axis=-1, keepdims=True)
    return powers


def _value_l1(rollout: Rollout, gamma: float, gae_lambda: float) -> Floats:
    return np.abs(advantages(rollout, gamma, gae_lambda)[0])


def _gae(rollout: Rollout, gamma: float, gae_lambda: float) -> Floats:
    return advantages(rollout, gamma, gae_lambda)[0]


def _positive_value_loss(rollout: Rollout, gamma: float, gae_lambda: float) -> Floats:
    return np.maximum(advantages(rollout, gamma, gae_lambda)[0], 0.0)


def _one_step_td_error(rollout: Rollout, gamma: float, gae_lambda: float) -> Floats:
    return np.abs(advantages(rollout, gamma, gae_lambda)[1])


def _alt_advantage_abs(rollout: Rollout, gamma: float, _gae_lambda: float) -> Floats:
    """|G_t - V_t| with G_t = r_t + gamma G_{t+1}, cut at the block's end by its bootstrap: A_t with lambda = 1.

    Source: level-replay's and dcd's "alternative advantages", which average the same over the steps.
    """
    return np.abs(advantages(rollout, gamma, 1.0)[0])


def _policy_entropy(rollout: Rollout, _gamma: float, _gae_lambda: float) -> Floats:
    p = _probabilities(rollout)
    log_p = np.log(p, out=np.zeros_like(p), where=p > 0)
    entropy: Floats = -(p * log_p).sum(axis=-1)
    entropy /= np.log(p.shape[-1])
    return entropy


def _least_confidence(rollout: Rollout, _gamma: float, _gae_lambda: float) -> Floats:
    best: Floats = _probabilities(rollout).max(axis=-1)
    return 1.0 - best


def _min_margin(rollout: Rollout, _gamma: float, _gae_lambda: float) -> Floats:
    top = np.partition(_probabilities(rollout), -2, axis=-1)[..., -2:]
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

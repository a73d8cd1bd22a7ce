"""The scoring mathematics: advantages, episodes and their scores, over one rollout block, by array operations.

Used by the curriculum (and by whoever wants the numbers alone). Pure functions of arrays: no state, no checks of input,
no IO. All arrays are float64, int64 or bool; (T, N) is T steps, step-major, of N env columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from plr_client.errors import InvalidInput

if TYPE_CHECKING:
    from plr_server.rollouts import Rollout

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, slots=True)
class Strategy:
    """How the steps of an episode are scored.

    Attributes:
        per_step: a rollout, gamma and gae_lambda to scores (T, N); None where every episode scores 1.
        needs: the rollout fields that it reads.
    """

    per_step: Callable[[Rollout, float, float], Floats] | None
    needs: tuple[str, ...] = ()


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
        strategy: a name in `STRATEGIES`.
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
    per_step = STRATEGIES[strategy].per_step
    if per_step is None:
        ones = np.ones(len(episodes.level))
        return dataclasses.replace(episodes, mean=ones, max=ones)
    if not len(rows):
        return episodes
    scores = per_step(rollout, gamma, gae_lambda).T.ravel()[rows]
    begin = np.cumsum(episodes.steps) - episodes.steps
    return dataclasses.replace(
        episodes,
        mean=np.add.reduceat(scores, begin) / episodes.steps,
        max=np.maximum.reduceat(scores, begin),
    )


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


_VALUES = ("values", "rewards", "next_values")

STRATEGIES: dict[str, Strategy] = {
    "value_l1": Strategy(_value_l1, _VALUES),
    "gae": Strategy(_gae, _VALUES),
    "signed_value_loss": Strategy(_gae, _VALUES),
    "positive_value_loss": Strategy(_positive_value_loss, _VALUES),
    "one_step_td_error": Strategy(_one_step_td_error, _VALUES),
    "policy_entropy": Strategy(_policy_entropy, ("logits",)),
    "least_confidence": Strategy(_least_confidence, ("logits",)),
    "min_margin": Strategy(_min_margin, ("logits",)),
    "uniform": Strategy(None),
    "random": Strategy(None),
    "sequential": Strategy(None),
    "external": Strategy(None),
}

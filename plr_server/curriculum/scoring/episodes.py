"""Episodes: a rollout block cut into what was played, one episode after the other, and their advantages.

Used by the scorer, the strategies and the history. Pure functions of arrays: no state, no checks but that a level does
not change inside an episode. E is the number of episodes, R that of their steps in all.
"""

from __future__ import annotations

import dataclasses
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from plr_client.errors import InvalidInput
from plr_server.curriculum.arrays import Bools, Flags, Floats, Ints
from plr_server.curriculum.scoring.rollouts import UNSAID, Rollout

PER_STEP = ("values", "rewards", "logits")
GOES_ON = -1  # `start` of an episode that began before the block
NARROW = 16  # so few episodes are gone through one by one: an array operation costs as much as so many numbers

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclasses.dataclass(frozen=True, slots=True)
class Episodes:
    """E episodes, or parts of episodes cut by the block's end, in column-major time order.

    Attributes:
        level: (E,) the level each was played on.
        column: (E,) its env column, 0 to N - 1.
        start: (E,) its first row in the block; GOES_ON where it began before.
        stop: (E,) its last row + 1.
        finished: (E,) False where the block's end cut it.
        truncated: (E,) True where a time limit finished it, as far as that was told.
        success: (E,) of a finished one, what the trainer says of it: 1, 0 or UNSAID.
        steps: (E,) how many of the R rows are its own; rows that were not valid are not among them.
        next_value: (E,) V of the observation after its last step, 0 where it truly ended; None where nothing
            bootstraps.
        values: (R,) V(s_t), the steps of one episode after those of the other; None where not pushed or not read.
        rewards: (R,) r_t, or None.
        logits: (R, A) action logits, or None.
    """

    level: Ints
    column: Ints
    start: Ints
    stop: Ints
    finished: Bools
    truncated: Bools
    success: Flags
    steps: Ints
    next_value: Floats | None
    values: Floats | None
    rewards: Floats | None
    logits: Floats | None

    @property
    def begin(self) -> Ints:
        """(E,) where each begins among the R steps."""
        begin: Ints = np.cumsum(self.steps) - self.steps
        return begin

    def __len__(self) -> int:
        return len(self.level)


def find_episodes(rollout: Rollout) -> Episodes:
    """Cuts a block into episodes.

    Raises:
        InvalidInput: the level changes inside an episode.
    """
    num_steps = rollout.dones.shape[1]
    rows = None if rollout.valid is None else np.flatnonzero(rollout.valid)
    done, level = _flat(rollout.dones, rows), _flat(rollout.levels, rows)
    first = np.empty(len(done), dtype=bool)
    first[:1] = True
    first[1:] = done[:-1]
    if rows is None:
        first[::num_steps] = True
    else:
        first[1:] |= rows[1:] // num_steps != rows[:-1] // num_steps
    torn = ~first[1:] & (level[1:] != level[:-1])
    if torn.any():
        i = int(torn.argmax()) + 1
        n, t = divmod(int(i if rows is None else rows[i]), num_steps)
        raise InvalidInput(
            "levels",
            "one level from an episode's first step to its last (the level active when obs_t was produced)",
            f"level {level[i]} after {level[i - 1]} in column {rollout.columns[n]} at step {t} without a done between",
        )
    start = np.flatnonzero(first)
    last = np.append(start[1:], len(done))[: len(start)] - 1
    first_row, last_row = (start, last) if rows is None else (rows[start], rows[last])
    column = first_row // num_steps
    finished = done[last]
    truncated = np.zeros(len(start), dtype=bool)
    if rollout.truncated is not None:
        truncated = rollout.truncated.reshape(-1)[last_row]
    success = np.full(len(start), UNSAID, dtype=np.int8)
    if rollout.successes is not None:
        success = np.where(finished, rollout.successes.reshape(-1)[last_row], success)
    next_value = None
    if rollout.values is not None and rollout.rewards is not None and rollout.next_values is not None:
        next_value = np.where(finished, 0.0, rollout.next_values[column])
        if rollout.final_values is not None:
            next_value = np.where(truncated, rollout.final_values.reshape(-1)[last_row], next_value)
    return Episodes(
        level=level[start],
        column=column,
        start=first_row - column * num_steps,
        stop=last_row - column * num_steps + 1,
        finished=finished,
        truncated=truncated,
        success=success,
        steps=last - start + 1,
        next_value=next_value,
        **{name: None if (array := getattr(rollout, name)) is None else _flat(array, rows) for name in PER_STEP},
    )


def advantages(episodes: Episodes, gamma: float, gae_lambda: float) -> tuple[Floats, Floats]:
    """Generalised advantage estimates and one-step errors of every step.

    delta_t = r_t + gamma V(s_{t+1}) (1 - d_t) - V(s_t);  A_t = delta_t + gamma lambda (1 - d_t) A_{t+1}. The last step
    of an episode bootstraps with its `next_value`; nothing propagates from one episode into another.

    Returns:
        A (R,) and delta (R,).

    Source: arXiv 2010.03934, section 3.1; arXiv 1506.02438, equations 11 and 16. Unlike level-replay and DI-engine,
    delta discounts and the last step of an episode counts.
    """
    values, rewards, next_value = episodes.values, episodes.rewards, episodes.next_value
    assert values is not None  # noqa: S101  the rollout was checked against the strategy's needs
    assert rewards is not None  # noqa: S101
    assert next_value is not None  # noqa: S101
    last = np.cumsum(episodes.steps) - 1
    bootstrap = np.empty_like(values)
    bootstrap[:-1] = values[1:]
    bootstrap[last] = next_value
    bootstrap *= gamma
    delta = rewards + bootstrap
    delta -= values
    return _discounted(delta, episodes.steps, last, gamma * gae_lambda), delta


def _discounted(terms: Floats, steps: Ints, last: Ints, decay: float) -> Floats:
    """Returns x_t + decay x_{t+1} + decay^2 x_{t+2} + ... to each episode's end, (R,), added up from that end on.

    All episodes at once, the k-th steps from their ends side by side, the longest episodes first: so many array
    operations as the longest has steps. Where only a few are that long, each goes on by itself.
    """
    if not len(terms) or not decay:
        return terms.copy()
    longest_first = np.argsort(-steps, kind="stable")
    lengths = steps[longest_first]
    wide = int(lengths[NARROW - 1]) if len(lengths) >= NARROW else 0  # up to here at least NARROW are that long
    widths = len(lengths) - np.searchsorted(lengths[::-1], np.arange(wide), "right")  # of those longer than k
    begin = np.cumsum(widths) - widths
    from_end = np.repeat(np.arange(wide), widths)
    ends = last[longest_first]
    rows = ends[np.arange(len(from_end)) - np.repeat(begin, widths)] - from_end
    side_by_side = terms[rows]
    before = side_by_side[:0]
    for at, width in zip(begin.tolist(), widths.tolist(), strict=True):
        now = side_by_side[at : at + width]
        if at:
            now += decay * before[:width]
        before = now
    sums = np.empty_like(terms)
    sums[rows] = side_by_side
    for length, end in zip(lengths.tolist(), ends.tolist(), strict=True):
        if length <= wide:
            break
        stop = end + 1 - wide  # the steps before it are left
        carried = float(sums[stop]) if wide else None
        earlier = terms[end + 1 - length : stop][::-1].tolist()
        summed = accumulate(earlier, lambda x, term: term + decay * x, initial=carried)
        backwards = np.fromiter(summed, np.float64, length - wide + (1 if wide else 0))
        sums[end + 1 - length : stop] = backwards[::-1][: length - wide]
    return sums


def _flat(array: NDArray[Scalar], rows: Ints | None) -> NDArray[Scalar]:
    """Returns (R, ...) of (N, T, ...)."""
    flat: NDArray[Any] = array.reshape(-1, *array.shape[2:])
    return flat if rows is None else flat[rows]

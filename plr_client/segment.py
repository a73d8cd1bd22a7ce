"""Segment: what a score function of your own is given, one episode or the part of one that is being scored.

May be imported by users, plr_server and examples; it imports numpy alone. It holds values and computes nothing.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """The L steps of one episode that are scored together. The arrays are read-only.

    What was not pushed is None. Under `partial="stitch"` it is a whole episode; under `"commit"` it may be a part: it
    starts late where a block's end cut the episode before (`steps_before` above 0), and stops early where this block's
    end does (`finished` False).

    Attributes:
        level: the level's id.
        steps: L, 1 or more. Rows that were not valid are not among them.
        steps_before: how many steps of the episode were scored before, in earlier parts.
        finished: the last step ended the episode.
        truncated: it was ended by a time limit, as far as the trainer said so; only where finished.
        rewards: (L,) float64, r_t.
        values: (L,) float64, V(s_t).
        next_value: V of the observation after the last step, to bootstrap with: 0 where the episode truly ended, V of
            the terminal observation where truncated. None unless rewards, values and next_values were pushed.
        td_errors: (L,) float64, one-step errors delta_t = r_t + gamma V(s_{t+1}) - V(s_t), with the configured gamma.
            None as `next_value`.
        advantages: (L,) float64, generalised advantage estimates with the configured gamma and gae_lambda. None as
            `next_value`.
        logits: (L, A) float64, action logits.
        episode_return: undiscounted sum of the episode's rewards, from its first step on, earlier parts included. None
            where some of them were not pushed.
        best_return: the highest `episode_return` of an episode finished on this level, this one included where it is
            finished. None before there is one.
        success: what the trainer's `successes` says of the episode; None where it says nothing, or not finished.
    """

    level: int
    steps: int
    steps_before: int = 0
    finished: bool = True
    truncated: bool = False
    rewards: NDArray[np.float64] | None = None
    values: NDArray[np.float64] | None = None
    next_value: float | None = None
    td_errors: NDArray[np.float64] | None = None
    advantages: NDArray[np.float64] | None = None
    logits: NDArray[np.float64] | None = None
    episode_return: float | None = None
    best_return: float | None = None
    success: bool | None = None

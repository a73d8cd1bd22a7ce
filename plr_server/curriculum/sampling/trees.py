"""What the trees of the sampler share: their shape, and weights as ratios, which neither overflow nor vanish.

Used by transforms, staleness and the sampler. Pure functions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from plr_server.curriculum.elementary import exp, power

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def layer_sizes(num_leaves: int, fan_out_bits: int) -> list[int]:
    """Returns the entries of each layer of a tree, leaves first: multiples of the fan-out, the last one just that."""
    sizes: list[int] = []
    num_nodes = num_leaves
    while not sizes or num_nodes > 1:
        num_nodes = -(-num_nodes >> fan_out_bits)
        sizes.append(num_nodes << fan_out_bits)
    return sizes


def power_ratio(exponent: float) -> Callable[[Floats, Floats], Floats]:
    """Returns (value / top)^exponent, 0 where the value is 0; for 0 <= value <= top of any size."""

    def ratio(values: Floats, top: Floats) -> Floats:
        with np.errstate(all="ignore"):
            return power(values / np.where(top > 0.0, top, 1.0), exponent)

    return ratio


def exp_ratio(temperature: float) -> Callable[[Floats, Floats], Floats]:
    """Returns exp((value - top) / temperature), 0 where the value is -inf; for value <= top of any size."""

    def ratio(values: Floats, top: Floats) -> Floats:
        with np.errstate(all="ignore"):
            return exp((values - np.where(top > -np.inf, top, 0.0)) / temperature)

    return ratio


def normalised(weights: Floats) -> Floats:
    """Returns the weights divided by their sum, which is not 0."""
    probabilities: Floats = weights / weights.sum()
    return probabilities

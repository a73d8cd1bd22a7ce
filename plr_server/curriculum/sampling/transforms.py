"""P_S: from scores to the probability of each level of a set, and draws from it.

Used by the sampler. Pure: no IO, no generator. Sums of floats are made anew from their parts, never adjusted by
differences: what is drawn is a function of the scores alone.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable
from typing import Protocol

import numpy as np

from plr_server.curriculum.elementary import power
from plr_server.curriculum.sampling.order import KeyOrder
from plr_server.curriculum.sampling.trees import (
    Floats,
    Ints,
    exp_ratio,
    layer_sizes,
    normalised,
    power_ratio,
)

TRANSFORMS = ("rank", "power", "softmax", "constant", "max", "eps_greedy", "match", "match_rank")

FAN_OUT_BITS = 4
FAN_OUT = 1 << FAN_OUT_BITS  # children of a tree node: few layers to go through, and little memory above the leaves
BELOW_ONE = 1.0 - 2.0**-53  # the largest float64 below 1


class Transform(Protocol):
    """P_S of one transform over a set of levels."""

    def replace(self, old: Ints, old_scores: Floats, new: Ints, new_scores: Floats) -> None:
        """Takes levels out (with the scores they were put in with) and puts levels in."""

    def value(self, scores: Floats) -> Floats:
        """Returns what P_S grows with, (m,)."""

    def of(self, ranks: Ints, values: Floats) -> Floats:
        """Returns P_S of m levels of the set, given their ranks by value (0 is the first) and their values."""

    @property
    def is_flat(self) -> bool:
        """Whether every weight is 0, so that P_S is uniform and `draw` and `weights` do not apply."""

    def draw(self, uniform: float) -> int:
        """Returns the level that a uniform number, 0 <= uniform < 1, falls on."""

    def draw_all(self, uniforms: Floats) -> Ints:
        """Returns (m,) what `draw` returns for each of the (m,) numbers."""

    def weights(self) -> Floats:
        """Returns (N,) P_S."""


def make_transform(num_levels: int, transform: str, temperature: float, eps: float) -> Transform | None:
    """Returns the transform of that name over no level yet; None for `constant`, which needs no structure."""
    if transform == "constant":
        return None
    exponent = 1.0 / temperature
    value = _match if transform in ("match", "match_rank") else _itself
    if transform in ("power", "match"):
        return _ByWeight(num_levels, value, power_ratio(exponent), 0.0)
    if transform == "softmax":
        return _ByWeight(num_levels, value, exp_ratio(temperature), -np.inf)
    if transform in ("rank", "match_rank"):
        return _ByRank(num_levels, value, _PowerOfRank(num_levels, exponent))
    return _ByRank(num_levels, value, _TopRank(eps if transform == "eps_greedy" else 0.0))


def _itself(scores: Floats) -> Floats:
    return scores


def _match(scores: Floats) -> Floats:
    return (1.0 - scores) * scores


# ---- by rank


class _ByRank:
    """P_S of the transforms that look at the order of a value only."""

    is_flat = False

    def __init__(self, num_levels: int, value: Callable[[Floats], Floats], ranks: _PowerOfRank | _TopRank) -> None:
        self._num_levels, self.value, self._ranks = num_levels, value, ranks
        self._order = KeyOrder()

    def replace(self, old: Ints, old_scores: Floats, new: Ints, new_scores: Floats) -> None:
        self._order.replace(old, -self.value(old_scores), new, -self.value(new_scores))

    def of(self, ranks: Ints, values: Floats) -> Floats:  # noqa: ARG002
        return self._ranks.of(ranks, self._order.size)

    def draw(self, uniform: float) -> int:
        return self._order.select(self._ranks.draw(uniform, self._order.size))

    def draw_all(self, uniforms: Floats) -> Ints:
        ranks, which = np.unique(self._ranks.draw_all(uniforms, self._order.size), return_inverse=True)
        drawn: Ints = np.array([self._order.select(rank) for rank in ranks.tolist()], dtype=np.int64)[which]
        return drawn

    def weights(self) -> Floats:
        weights = np.zeros(self._num_levels)
        weights[self._order.indices()] = self._ranks.weights(self._order.size)
        return weights


class _PowerOfRank:
    """Rank 0..n-1 with weight (1 / (rank + 1))^exponent, from tables of them and of their sums that grow with n."""

    def __init__(self, num_levels: int, exponent: float) -> None:
        self._num_levels, self._exponent = num_levels, exponent
        self._weights = np.zeros(0)  # those of hopeless ranks may be 0
        self._sums = array("d")

    def draw(self, uniform: float, n: int) -> int:
        if n > len(self._sums):
            self._grow(n)
        return bisect_right(self._sums, uniform * self._sums[n - 1], 0, n)

    def draw_all(self, uniforms: Floats, n: int) -> Ints:
        if n > len(self._sums):
            self._grow(n)
        ranks: Ints = np.frombuffer(self._sums)[:n].searchsorted(uniforms * self._sums[n - 1], "right")
        return ranks

    def of(self, ranks: Ints, n: int) -> Floats:
        if n > len(self._sums):
            self._grow(n)
        probabilities: Floats = self._weights[ranks] / self._sums[n - 1]
        return probabilities

    def weights(self, n: int) -> Floats:
        if n > len(self._sums):
            self._grow(n)
        return normalised(self._weights[:n])

    def _grow(self, n: int) -> None:
        begin = len(self._sums)
        stop = min(1 << (n - 1).bit_length(), self._num_levels)
        weights = power(np.arange(begin + 1.0, stop + 1.0), -self._exponent)
        self._weights = np.concatenate([self._weights, weights])
        if begin:
            weights[0] += self._sums[-1]
        self._sums.frombytes(np.cumsum(weights).view(np.uint8).data)


class _TopRank:
    """Rank 0, but with probability eps a uniform one."""

    def __init__(self, eps: float) -> None:
        self._eps = eps

    def draw(self, uniform: float, n: int) -> int:
        return 0 if uniform >= self._eps else min(int(uniform / self._eps * n), n - 1)

    def draw_all(self, uniforms: Floats, n: int) -> Ints:
        return np.array([self.draw(uniform, n) for uniform in uniforms.tolist()], dtype=np.int64)

    def of(self, ranks: Ints, n: int) -> Floats:
        probabilities: Floats = np.where(ranks == 0, 1.0 - self._eps, 0.0) + self._eps / n
        return probabilities

    def weights(self, n: int) -> Floats:
        weights = np.full(n, self._eps / n)
        weights[0] += 1.0 - self._eps
        return weights


# ---- by weight


class _ByWeight:
    """P_S of the transforms that give every level a weight of its own: a tree of sums, for weights of any size.

    A node knows the largest value below it, and its mass: the sum of the weights below it as a multiple of the weight
    of that value. So nothing overflows, and no weight that matters underflows. Both are made from its children alone.

    Args:
        num_levels: N.
        value: what a score becomes before it is weighed.
        ratio: values and a larger value, broadcast, to the ratio of their weights, 0 to 1.
        none: the value of weight 0; so is the weight of every value below it.
    """

    def __init__(
        self, num_levels: int, value: Callable[[Floats], Floats], ratio: Callable[[Floats, Floats], Floats], none: float
    ) -> None:
        self._num_levels, self.value, self._ratio, self._none = num_levels, value, ratio, none
        sizes = layer_sizes(num_levels, FAN_OUT_BITS)
        self._values = [np.full((size // FAN_OUT, FAN_OUT), none) for size in sizes]  # per layer, leaves first
        self._sums = [np.zeros((size // FAN_OUT, FAN_OUT)) for size in sizes]
        self._masses = [np.zeros((size // FAN_OUT, FAN_OUT)) for size in sizes[1:]]  # 1 for every leaf
        self._sums_top_down = [sums.reshape(-1).data for sums in reversed(self._sums)]

    def replace(self, old: Ints, old_scores: Floats, new: Ints, new_scores: Floats) -> None:  # noqa: ARG002
        self._values[0].reshape(-1)[old] = self._none
        self._values[0].reshape(-1)[new] = np.maximum(self.value(new_scores), self._none)
        nodes = np.concatenate([old, new])
        for layer, (values, sums) in enumerate(zip(self._values, self._sums, strict=True)):
            nodes = np.unique(nodes >> FAN_OUT_BITS)
            children = values[nodes]
            top = children.max(axis=1)
            weights = self._ratio(children, top[:, np.newaxis])
            if layer:
                weights *= self._masses[layer - 1][nodes]
            sums[nodes] = up_to = weights.cumsum(axis=1)
            if layer < len(self._masses):
                self._values[layer + 1].reshape(-1)[nodes] = top
                self._masses[layer].reshape(-1)[nodes] = up_to[:, -1]

    @property
    def is_flat(self) -> bool:
        return not self._sums[-1][0, -1]

    def of(self, ranks: Ints, values: Floats) -> Floats:  # noqa: ARG002
        weights = self._ratio(np.maximum(values, self._none), self._values[-1].max(axis=1))
        probabilities: Floats = weights / self._sums[-1][0, -1]
        return probabilities

    def draw(self, uniform: float) -> int:
        child = 0
        for sums in self._sums_top_down:
            begin = child << FAN_OUT_BITS
            target = uniform * sums[begin + FAN_OUT - 1]
            child = bisect_right(sums, target, begin, begin + FAN_OUT)
            below = sums[child - 1] if child > begin else 0.0
            uniform = min((target - below) / (sums[child] - below), BELOW_ONE)  # inside the child
        return child

    def draw_all(self, uniforms: Floats) -> Ints:
        children = np.zeros(len(uniforms), dtype=np.int64)
        for sums in reversed(self._sums):  # as `draw`, a layer at a time
            of_node = sums[children]
            targets = uniforms * of_node[:, -1]
            place = (of_node <= targets[:, np.newaxis]).sum(axis=1)
            rows = np.arange(len(uniforms))
            below = np.where(place > 0, of_node[rows, place - 1], 0.0)
            uniforms = np.minimum((targets - below) / (of_node[rows, place] - below), BELOW_ONE)
            children = (children << FAN_OUT_BITS) + place
        return children

    def weights(self) -> Floats:
        values = self._values[0].reshape(-1)[: self._num_levels]
        return normalised(self._ratio(values, self._values[-1].max(axis=1)))

"""P_C: draws from a set of levels by how long ago each was last drawn, and uniform ones.

Used by the sampler, which counts the draws and keeps what is told here. Pure: no IO, no generator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from plr_server.curriculum.sampling.trees import Floats, Ints, layer_sizes, normalised, power_ratio

FAN_OUT_BITS = 3  # 8 children to a tree node, of which a draw looks at four: the fastest for draws and changes together


def new_last_drawn(num_levels: int) -> Ints:
    """Returns the C_i of N levels, none drawn yet, in an array that fills the leaves of a tree: (N or more,) int64."""
    return np.zeros(layer_sizes(num_levels, FAN_OUT_BITS)[0], dtype=np.int64)


class Staleness:
    """A set of levels out of 0..N-1, to be drawn by staleness.

    Trees of whole numbers, exact: how many of the set there are below a node and what the sum of their C_i is, so that
    the staleness below it is c · count - sum for whatever c, the number of levels drawn so far.

    Args:
        num_levels: N.
        last_drawn: int64, C_i, as `new_last_drawn` made it; the sampler's own.
        staleness_coef: 0 where there is no staleness to draw by.
        staleness_temperature: τ.

    Attributes:
        inside: (N or more) bool, the set.
        size: how many are in it.
    """

    def __init__(self, num_levels: int, last_drawn: Ints, staleness_coef: float, staleness_temperature: float) -> None:
        self._num_levels = num_levels
        self._exponent = 1.0 / staleness_temperature
        sizes = layer_sizes(num_levels, FAN_OUT_BITS)
        self.inside: NDArray[np.bool_] = np.zeros(sizes[0], dtype=np.bool_)
        self.size = 0
        self._counts = [np.zeros(size, dtype=np.int64) for size in sizes[1:]]
        self._has_sums = staleness_coef > 0.0 and staleness_temperature == 1.0
        self._sums = [np.zeros(size, dtype=np.int64) for size in sizes[1:] if self._has_sums]
        self._sum = 0
        self._last_drawn_array = last_drawn
        # memoryviews are faster to index one by one than arrays
        self._inside, self._last_drawn = self.inside.data, last_drawn.data
        self._counts_bottom_up = [counts.data for counts in self._counts]
        self._sums_bottom_up = [sums.data for sums in self._sums]
        self._counts_top_down = self._counts_bottom_up[::-1]
        self._layers_top_down = list(zip(self._counts_top_down, self._sums_bottom_up[::-1], strict=False))

    def add(self, indices: Ints) -> None:
        """Puts levels into the set; (m,) unique, not in it."""
        self.inside[indices] = True
        self._change(indices, 1)

    def remove(self, indices: Ints) -> None:
        """Takes levels out of the set; (m,) unique, in it."""
        self.inside[indices] = False
        self._change(indices, -1)

    def _change(self, indices: Ints, sign: int) -> None:
        if len(indices) == 1:
            self._change_one(int(indices[0]), sign)
            return
        self.size += sign * len(indices)
        nodes = indices
        for counts in self._counts:
            nodes = nodes >> FAN_OUT_BITS
            np.add.at(counts, nodes, sign)
        if self._has_sums:
            last_drawn = sign * self._last_drawn_array[indices]
            self._sum += int(last_drawn.sum())
            nodes = indices
            for sums in self._sums:
                nodes = nodes >> FAN_OUT_BITS
                np.add.at(sums, nodes, last_drawn)

    def _change_one(self, index: int, sign: int) -> None:
        self.size += sign
        node = index
        for counts in self._counts_bottom_up:
            node >>= FAN_OUT_BITS
            counts[node] += sign
        if self._has_sums:
            last_drawn = sign * self._last_drawn[index]
            self._sum += last_drawn
            for sums in self._sums_bottom_up:
                index >>= FAN_OUT_BITS
                sums[index] += last_drawn

    def drawn(self, last: Iterable[tuple[int, int]]) -> None:
        """Notes that the C_i of levels, in the set or not, grow to what stands beside them; each once, and before."""
        if not self._has_sums:
            return
        inside, last_drawn, sums_bottom_up = self._inside, self._last_drawn, self._sums_bottom_up
        for index, at in last:
            if inside[index]:
                by = at - last_drawn[index]
                self._sum += by
                node = index
                for sums in sums_bottom_up:
                    node >>= FAN_OUT_BITS
                    sums[node] += by

    def draw_uniform(self, uniform: float) -> int:
        """Returns the level that a uniform number, 0 <= uniform < 1, falls on where all are alike."""
        rank = int(uniform * self.size)
        child = 0
        for counts in self._counts_top_down:
            child <<= FAN_OUT_BITS
            while (count := counts[child]) <= rank:
                rank -= count
                child += 1
        child <<= FAN_OUT_BITS
        while (is_inside := self._inside[child]) <= rank:
            rank -= is_inside
            child += 1
        return child

    def draw(self, uniform: float, draws: int) -> int:
        """Returns the level that a uniform number, 0 <= uniform < 1, falls on under P_C, `draws` being c."""
        if not self._has_sums:
            up_to = np.cumsum(self.weights(draws))
            return int(up_to.searchsorted(uniform * up_to[-1], "right"))
        total = draws * self.size - self._sum
        if not total:
            return self.draw_uniform(uniform)
        target = min(int(uniform * total), total - 1)
        child = 0
        for counts, sums in self._layers_top_down:
            child <<= FAN_OUT_BITS
            while (staleness := draws * counts[child] - sums[child]) <= target:
                target -= staleness
                child += 1
        child <<= FAN_OUT_BITS
        inside, last_drawn = self._inside, self._last_drawn
        while (staleness := inside[child] * (draws - last_drawn[child])) <= target:
            target -= staleness
            child += 1
        return child

    def p_stale(self, draws: int) -> Callable[[Ints], Floats]:
        """Returns P_C of levels of the set as a function of their C_i, (m,) to (m,), `draws` being c."""
        if self._has_sums:
            largest, total = 1.0, float(draws * self.size - self._sum)
        else:
            staleness = (draws - self._last_drawn_array[self.inside]).astype(np.float64)
            largest = float(staleness.max())
            total = float(self._power(staleness, largest).sum()) if largest else 0.0
        if not total:
            return lambda last_drawn: np.full(len(last_drawn), 1.0 / self.size)
        return lambda last_drawn: self._power((draws - last_drawn).astype(np.float64), largest) / total

    def _power(self, staleness: Floats, largest: float) -> Floats:
        return staleness if self._has_sums else power_ratio(self._exponent)(staleness, np.array([largest]))

    def weights(self, draws: int) -> Floats:
        """Returns (N,) P_C, `draws` being c."""
        inside = self.inside[: self._num_levels]
        staleness = np.where(inside, draws - self._last_drawn_array[: self._num_levels], 0).astype(np.float64)
        if not staleness.any():
            return normalised(inside.astype(np.float64))
        return normalised(power_ratio(self._exponent)(staleness, staleness.max(keepdims=True)))

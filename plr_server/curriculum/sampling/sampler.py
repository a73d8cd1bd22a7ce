"""The sampler: which seen level is replayed next, by score and staleness.

Used by the curriculum only, which maps level ids to the indices 0..N-1 meant here. Pure: it reads no clock, does no IO
and draws from the generator it is given. What it draws is a function of scores, seen, last_drawn and draws alone: sums
of floats are made anew from their parts, never adjusted by differences, so that nothing drifts and a restored sampler
draws bit for bit what the original would have drawn.
"""

from __future__ import annotations

import contextlib
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from plr_client.errors import InvalidInput
from plr_server.curriculum.sampling.eviction import EvictionOrder
from plr_server.curriculum.sampling.order import KeyOrder

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Array = TypeVar("Array", NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_])

TRANSFORMS = ("rank", "power", "softmax", "constant", "max", "eps_greedy", "match", "match_rank")
REPLAY = -1
OUTSIDE = -2

FAN_OUT_BITS = 4
FAN_OUT = 1 << FAN_OUT_BITS  # children of a tree node: few layers to go through, and little memory above the leaves
BELOW_ONE = 1.0 - 2.0**-53  # the largest float64 below 1


class Sampler:
    """Draws levels from P_replay = (1 - ρ) P_S + ρ P_C, exactly, in O(log N) a draw and an update.

    Over the n seen levels, with S the scores, r the rank by score (1 = highest; equal scores: the lower index first), β
    the temperature, c the number of levels drawn so far and C_i its value when level i was last drawn:

    =============  ======================================================
    transform      P_S proportional to (uniform where every weight is 0)
    =============  ======================================================
    rank           (1 / r)^(1/β)
    power          max(S, 0)^(1/β)
    softmax        exp(S / β)
    constant       1
    max            [r == 1]
    eps_greedy     (1 - eps) [r == 1] + eps / n
    match          max((1 - S) S, 0)^(1/β)
    match_rank     (1 / r)^(1/β), r the rank by (1 - S) S
    =============  ======================================================

    P_C is proportional to (c - C_i)^(1/τ), uniform where all are 0. With τ other than 1 a draw from P_C costs O(N).

    Args:
        num_levels: N, 1 or more.
        transform: one of `TRANSFORMS`.
        temperature: β, above 0.
        staleness_coef: ρ, 0 to 1.
        staleness_temperature: τ, above 0.
        eps: share of uniform draws under eps_greedy, 0 to 1.
        evicts: keep what `lowest` needs: 20 bytes a seen level, and a few microseconds a change.

    Attributes:
        scores: (N,) float64, read-only; 0 where unseen.
        seen: (N,) bool, read-only.
        last_drawn: (N,) int64, read-only; C_i, 0 where never drawn.
        num_seen: n.
        hidden: seen levels that `draw` leaves out for now, as if they were not seen.

    Source: arXiv 2010.03934, section 3 (P_S, P_C, P_replay). Peers build the whole vector for every draw, let unseen
    levels take ranks, and differ in ties, in clipping and in the all-zero cases.
    """

    def __init__(
        self,
        num_levels: int,
        *,
        transform: str,
        temperature: float,
        staleness_coef: float,
        staleness_temperature: float,
        eps: float,
        evicts: bool = False,
    ) -> None:
        self._staleness_coef = staleness_coef
        self._history = _History(num_levels, staleness_coef, staleness_temperature)
        self._transform = _transform(num_levels, transform, temperature, eps)
        # What P_replay does not depend on is alike for all, so that it breaks no ties.
        last_drawn = self._history.last_drawn if staleness_coef else np.broadcast_to(np.int64(0), num_levels)
        self._evictions = EvictionOrder(last_drawn) if evicts else None
        self._scores = np.zeros(num_levels)
        self._seen = np.zeros(num_levels, dtype=np.bool_)
        self.scores = _read_only(self._scores)
        self.seen = _read_only(self._seen)
        self.num_seen = 0
        self.hidden: set[int] = set()
        self.last_drawn = _read_only(self._history.last_drawn[:num_levels])

    @property
    def draws(self) -> int:
        """Levels drawn so far: c."""
        return self._history.draws

    def set_scores(self, indices: Ints, scores: Floats) -> None:
        """Gives levels their scores; they are seen from now on.

        Args:
            indices: (m,) unique, 0..N-1.
            scores: (m,) finite, up to 1e30 in magnitude.
        """
        hidden = self.hidden.intersection(indices.tolist()) if self.hidden else ()
        for index in hidden:
            self.show(index)
        seen = self.seen[indices]
        if self._transform is not None:
            self._transform.replace(indices[seen], self._scores[indices[seen]], indices, scores)
        if self._evictions is not None:
            old, new = self._keys(self._scores[indices[seen]]), self._keys(scores)
            self._evictions.replace(indices[seen], old, indices, new)
        self._scores[indices] = scores
        self._seen[indices] = True
        self.num_seen += int(len(seen) - seen.sum())
        self._history.add(indices[~seen])
        for index in hidden:
            self.hide(index)

    def forget(self, indices: Ints) -> None:
        """Makes levels unseen and never drawn, as they were at first.

        Args:
            indices: (m,) unique, 0..N-1, seen or not.
        """
        for index in self.hidden.intersection(indices.tolist()):
            self.show(index)
        seen = indices[self.seen[indices]]
        if self._transform is not None:
            self._transform.replace(seen, self._scores[seen], indices[:0], self._scores[:0])
        if self._evictions is not None:
            self._evictions.replace(seen, self._keys(self._scores[seen]), indices[:0], self._scores[:0])
        self._scores[seen] = 0.0
        self._seen[seen] = False
        self.num_seen -= len(seen)
        self._history.remove(seen)
        self._history.last_drawn[indices] = 0

    def place(self, index: int, last_drawn: int) -> None:
        """Puts a level that was last drawn at `last_drawn`, at most `draws`, in the place of an unseen one."""
        self._history.last_drawn[index] = last_drawn

    def lowest(self) -> int:
        """Returns the index that P_replay values least, out of those seen, hidden or not, of which there must be one.

        Where float64 does not tell two apart, that of the lower P_S; then the less stale; then the lower index. Only a
        sampler that `evicts` knows. Costs O(sqrt N) as a rule; O(N) where the staleness temperature is not 1.
        """
        with self.all_shown():
            return self._visible_lowest()

    def _visible_lowest(self) -> int:
        assert self._evictions is not None  # noqa: S101  the caller asked for it
        staleness_coef, by_score, num_seen = self._staleness_coef, self._by_score(), self.num_seen
        p_stale = self._history.p_stale() if staleness_coef else None

        def p_replay(ranks: Ints, keys: Floats, last_drawn: Ints) -> tuple[Floats, Floats]:
            if staleness_coef == 1.0:
                p_score: Floats = np.zeros(len(ranks))
            else:
                p_score = by_score.of(ranks, -keys) if by_score else np.full(len(ranks), 1.0 / num_seen)
            if p_stale is None:
                return p_score, p_score
            return (1.0 - staleness_coef) * p_score + staleness_coef * p_stale(last_drawn), p_score

        return self._evictions.lowest(p_replay)

    def hide(self, index: int) -> None:
        """Leaves a seen level out of the draws until `show`; its score, staleness and weight stay."""
        self.hidden.add(index)
        self._history.remove(np.array([index]))
        if self._transform is not None:
            self._transform.replace(*self._entry(index), *self._entry(None))

    def show(self, index: int) -> None:
        """Lets `draw` find a hidden level again."""
        self.hidden.remove(index)
        self._history.add(np.array([index]))
        if self._transform is not None:
            self._transform.replace(*self._entry(None), *self._entry(index))

    @contextlib.contextmanager
    def all_shown(self) -> Iterator[None]:
        """Shows every hidden level while the context lasts."""
        hidden = list(self.hidden)
        for index in hidden:
            self.show(index)
        yield
        for index in hidden:
            self.hide(index)

    def _entry(self, index: int | None) -> tuple[Ints, Floats]:
        indices = np.array([] if index is None else [index], dtype=np.int64)
        return indices, self._scores[indices]

    def draw(self, rng: np.random.Generator, picks: list[int]) -> list[int]:
        """Draws levels one after the other: each counts as drawn before the next, whose staleness sees it.

        Args:
            rng: gives two doubles for each REPLAY, and is not touched otherwise.
            picks: REPLAY for a seen level drawn from P_replay, the index of a level that the caller chose, or OUTSIDE
                for a level without an index, which only counts.

        Returns:
            The indices, in the order of `picks`, OUTSIDE for OUTSIDE.

        Raises:
            InvalidInput: a REPLAY while no level is seen (hidden ones do not count); nothing has changed.
        """
        num_replays = picks.count(REPLAY)
        if num_replays and not self._history.num_seen:
            raise InvalidInput("picks", "a seen level to replay", "none seen")
        history, staleness_coef = self._history, self._staleness_coef
        by_score = self._by_score()
        draw_by_score = by_score.draw if by_score else history.draw_uniform
        evictions = self._evictions if staleness_coef else None
        uniforms = iter(rng.random(2 * num_replays).tolist() if num_replays else ())
        drawn = []
        for pick in picks:
            index = pick
            if pick == REPLAY:
                by_staleness = next(uniforms) < staleness_coef
                index = (history.draw_stale if by_staleness else draw_by_score)(next(uniforms))
            if index == OUTSIDE:
                history.draws += 1
            else:
                history.touch(index)
            drawn.append(index)
            if evictions is not None and index >= 0 and self.seen[index]:
                evictions.touch(self._keys(self._scores[index : index + 1]).item(), index)
        return drawn

    def weights(self) -> Floats:
        """Returns (N,) P_replay, hidden levels included: 0 where unseen, 0 everywhere while nothing is seen."""
        by_score, by_staleness = self.parts()
        return by_score + by_staleness if self._staleness_coef else by_score

    def parts(self) -> tuple[Floats, Floats]:
        """Returns (1 - ρ) P_S and ρ P_C, (N,) each, which add up to `weights`."""
        with self.all_shown():
            return self._visible_parts()

    def _visible_parts(self) -> tuple[Floats, Floats]:
        nothing: Floats = np.zeros(len(self.scores))
        if not self.num_seen:
            return nothing, nothing
        by_score = self._by_score()
        p_score: Floats = by_score.weights() if by_score else self.seen / self.num_seen
        if not self._staleness_coef:
            return p_score, nothing
        return (1.0 - self._staleness_coef) * p_score, self._staleness_coef * self._history.weights()

    def state(self) -> dict[str, Any]:
        """Returns a copy of the state: scores, seen, last_drawn (N,) and draws."""
        return {
            "scores": self.scores.copy(),
            "seen": self.seen.copy(),
            "last_drawn": self.last_drawn.copy(),
            "draws": self.draws,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], **config: Any) -> Sampler:
        """Returns a sampler that goes on bit for bit as the one whose `state()` is given.

        Args:
            state: what `state()` returned.
            **config: the keyword arguments of `Sampler`, as that one had them.
        """
        sampler = cls(len(state["scores"]), **config)
        sampler._history.draws = int(state["draws"])
        sampler._history.last_drawn[: len(sampler.scores)] = state["last_drawn"]
        seen = np.flatnonzero(state["seen"])
        sampler.set_scores(seen, np.asarray(state["scores"])[seen])
        return sampler

    def _keys(self, scores: Floats) -> Floats:
        """Returns by what levels are ordered for `lowest`, best first: minus the value that P_S grows with."""
        if self._transform is None or self._staleness_coef == 1.0:
            return np.zeros(len(scores))
        return -self._transform.value(scores)

    def _by_score(self) -> _Transform | None:
        """Returns P_S; None where it is uniform."""
        return None if self._transform is None or self._transform.is_flat() else self._transform


class _Transform(Protocol):
    """P_S of one transform over the seen levels."""

    def replace(self, old: Ints, old_scores: Floats, new: Ints, new_scores: Floats) -> None:
        """Takes levels out (with the scores they were put in with) and puts levels in."""

    def value(self, scores: Floats) -> Floats:
        """Returns what P_S grows with, (m,)."""

    def of(self, ranks: Ints, values: Floats) -> Floats:
        """Returns P_S of m seen levels, given their ranks by value (0 is the first) and their values."""

    def is_flat(self) -> bool:
        """Tells whether every weight is 0, so that P_S is uniform and `draw` and `weights` do not apply."""

    def draw(self, uniform: float) -> int:
        """Returns the level that a uniform number, 0 <= uniform < 1, falls on."""

    def weights(self) -> Floats:
        """Returns (N,) P_S."""


def _transform(num_levels: int, transform: str, temperature: float, eps: float) -> _Transform | None:
    """Returns the transform of that name; None for `constant`, which needs no structure."""
    if transform == "constant":
        return None
    exponent = 1.0 / temperature
    value = _match if transform in ("match", "match_rank") else _itself
    if transform in ("power", "match"):
        return _ByWeight(num_levels, lambda scores: np.maximum(value(scores), 0.0), _power_ratio(exponent), 0.0)
    if transform == "softmax":
        return _ByWeight(num_levels, value, _exp_ratio(temperature), -np.inf)
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

    def __init__(self, num_levels: int, value: Callable[[Floats], Floats], ranks: _PowerOfRank | _TopRank) -> None:
        self._num_levels, self.value, self._ranks = num_levels, value, ranks
        self._order = KeyOrder()

    def replace(self, old: Ints, old_scores: Floats, new: Ints, new_scores: Floats) -> None:
        self._order.replace(old, -self.value(old_scores), new, -self.value(new_scores))

    def of(self, ranks: Ints, values: Floats) -> Floats:  # noqa: ARG002
        return self._ranks.of(ranks, len(self._order))

    def is_flat(self) -> bool:
        return False

    def draw(self, uniform: float) -> int:
        return self._order.select(self._ranks.draw(uniform, self._order.size))

    def weights(self) -> Floats:
        weights = np.zeros(self._num_levels)
        weights[self._order.indices()] = self._ranks.weights(len(self._order))
        return weights


class _PowerOfRank:
    """Rank 0..n-1 with weight (1 / (rank + 1))^exponent, from a table of their sums that grows as levels are seen."""

    def __init__(self, num_levels: int, exponent: float) -> None:
        self._num_levels, self._exponent = num_levels, exponent
        self._sums = array("d")

    def draw(self, uniform: float, n: int) -> int:
        if n > len(self._sums):
            self._grow(n)
        return bisect_right(self._sums, uniform * self._sums[n - 1], 0, n)

    def of(self, ranks: Ints, n: int) -> Floats:
        if n > len(self._sums):
            self._grow(n)
        probabilities: Floats = self._of_ranks(ranks) / self._sums[n - 1]
        return probabilities

    def weights(self, n: int) -> Floats:
        return _normalised(self._of_ranks(np.arange(n)))

    def _of_ranks(self, ranks: Ints) -> Floats:
        with np.errstate(all="ignore"):  # the weights of hopeless ranks may underflow to 0
            weights: Floats = ranks.astype(np.float64) + 1.0
            weights **= -self._exponent
        return weights

    def _grow(self, n: int) -> None:
        begin = len(self._sums)
        stop = min(1 << (n - 1).bit_length(), self._num_levels)
        terms = self._of_ranks(np.arange(begin, stop))
        if begin:
            terms[0] += self._sums[-1]
        self._sums.frombytes(np.cumsum(terms).view(np.uint8).data)


class _TopRank:
    """Rank 0, but with probability eps a uniform one."""

    def __init__(self, eps: float) -> None:
        self._eps = eps

    def draw(self, uniform: float, n: int) -> int:
        return 0 if uniform >= self._eps else min(int(uniform / self._eps * n), n - 1)

    def of(self, ranks: Ints, n: int) -> Floats:
        probabilities: Floats = np.where(ranks == 0, 1.0 - self._eps, 0.0) + self._eps / n
        return probabilities

    def weights(self, n: int) -> Floats:
        weights = np.full(n, self._eps / n)
        weights[0] += 1.0 - self._eps
        return weights


# ---- by weight


def _power_ratio(exponent: float) -> Callable[[Floats, Floats], Floats]:
    """Returns (value / top)^exponent, 0 where the value is 0; for 0 <= value <= top of any size."""

    def ratio(values: Floats, top: Floats) -> Floats:
        with np.errstate(all="ignore"):
            ratios: Floats = (values / np.where(top > 0.0, top, 1.0)) ** exponent
        return ratios

    return ratio


def _exp_ratio(temperature: float) -> Callable[[Floats, Floats], Floats]:
    """Returns exp((value - top) / temperature), 0 where the value is -inf; for value <= top of any size."""

    def ratio(values: Floats, top: Floats) -> Floats:
        with np.errstate(all="ignore"):
            ratios: Floats = np.exp((values - np.where(top > -np.inf, top, 0.0)) / temperature)
        return ratios

    return ratio


class _ByWeight:
    """P_S of the transforms that give every level a weight of its own: a tree of sums, for weights of any size.

    A node knows the largest value below it, and its mass: the sum of the weights below it as a multiple of the weight
    of that value. So nothing overflows, and no weight that matters underflows. Both are made from its children alone.

    Args:
        num_levels: N.
        value: what a score becomes before it is weighed.
        ratio: values and a larger value, broadcast, to the ratio of their weights, 0 to 1.
        none: the value of weight 0.
    """

    def __init__(
        self, num_levels: int, value: Callable[[Floats], Floats], ratio: Callable[[Floats, Floats], Floats], none: float
    ) -> None:
        self._num_levels, self.value, self._ratio, self._none = num_levels, value, ratio, none
        sizes = _layer_sizes(num_levels)
        self._values = [np.full((size // FAN_OUT, FAN_OUT), none) for size in sizes]  # per layer, leaves first
        self._sums = [np.zeros((size // FAN_OUT, FAN_OUT)) for size in sizes]
        self._masses = [np.zeros((size // FAN_OUT, FAN_OUT)) for size in sizes[1:]]  # 1 for every leaf
        self._sums_top_down = [sums.reshape(-1).data for sums in reversed(self._sums)]

    def replace(self, old: Ints, old_scores: Floats, new: Ints, new_scores: Floats) -> None:  # noqa: ARG002
        self._values[0].reshape(-1)[old] = self._none
        self._values[0].reshape(-1)[new] = self.value(new_scores)
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

    def is_flat(self) -> bool:
        return not self._sums[-1][0, -1]

    def of(self, ranks: Ints, values: Floats) -> Floats:  # noqa: ARG002
        ratios: Floats = self._ratio(values, self._values[-1].max(axis=1)) / self._sums[-1][0, -1]
        return ratios

    def draw(self, uniform: float) -> int:
        child = 0
        for sums in self._sums_top_down:
            begin = child << FAN_OUT_BITS
            target = uniform * sums[begin + FAN_OUT - 1]
            child = bisect_right(sums, target, begin, begin + FAN_OUT)
            below = sums[child - 1] if child > begin else 0.0
            uniform = min((target - below) / (sums[child] - below), BELOW_ONE)  # inside the child
        return child

    def weights(self) -> Floats:
        values = self._values[0].reshape(-1)[: self._num_levels]
        return _normalised(self._ratio(values, self._values[-1].max(axis=1)))


# ---- by staleness


class _History:
    """Which levels may be drawn (seen, not hidden) and when each was last drawn: draws by staleness, and uniform ones.

    Trees of whole numbers, exact: how many seen levels there are below a node and what the sum of their C_i is, so that
    the staleness below it is c · count - sum for whatever c.

    Args:
        num_levels: N.
        staleness_coef: 0 where there is no staleness to draw by.
        staleness_temperature: τ.

    Attributes:
        seen: (N or more,) bool.
        last_drawn: (N or more,) int64.
        draws: c.
        num_seen: n.
    """

    def __init__(self, num_levels: int, staleness_coef: float, staleness_temperature: float) -> None:
        self._num_levels = num_levels
        self._exponent = 1.0 / staleness_temperature
        sizes = _layer_sizes(num_levels)
        self.seen = np.zeros(sizes[0], dtype=np.bool_)
        self.last_drawn = np.zeros(sizes[0], dtype=np.int64)
        self.draws = self.num_seen = 0
        self._counts = [np.zeros(size, dtype=np.int64) for size in sizes[1:]]
        self._has_sums = staleness_coef > 0.0 and staleness_temperature == 1.0
        self._sums = [np.zeros(size, dtype=np.int64) for size in sizes[1:] if self._has_sums]
        self._sum = 0
        # memoryviews are faster to index one by one than arrays
        self._seen, self._last_drawn = self.seen.data, self.last_drawn.data
        self._sums_bottom_up = [sums.data for sums in self._sums]
        self._counts_top_down = [counts.data for counts in reversed(self._counts)]
        self._sums_top_down = self._sums_bottom_up[::-1]

    def add(self, indices: Ints) -> None:
        """Makes unseen levels seen; (m,) unique."""
        self.seen[indices] = True
        self._change(indices, 1)

    def remove(self, indices: Ints) -> None:
        """Makes seen levels unseen; (m,) unique."""
        self.seen[indices] = False
        self._change(indices, -1)

    def _change(self, indices: Ints, sign: int) -> None:
        if not len(indices):
            return
        self.num_seen += sign * len(indices)
        nodes = indices
        for counts in self._counts:
            nodes = nodes >> FAN_OUT_BITS
            np.add.at(counts, nodes, sign)
        if self._has_sums:
            last_drawn = sign * self.last_drawn[indices]
            self._sum += int(last_drawn.sum())
            nodes = indices
            for sums in self._sums:
                nodes = nodes >> FAN_OUT_BITS
                np.add.at(sums, nodes, last_drawn)

    def touch(self, index: int) -> None:
        """Counts a level, seen or not, as drawn."""
        self.draws += 1
        if self._has_sums and self._seen[index]:
            later = self.draws - self._last_drawn[index]
            self._sum += later
            node = index
            for sums in self._sums_bottom_up:
                node >>= FAN_OUT_BITS
                sums[node] += later
        self._last_drawn[index] = self.draws

    def draw_uniform(self, uniform: float) -> int:
        """Returns the seen level that a uniform number, 0 <= uniform < 1, falls on."""
        rank = int(uniform * self.num_seen)
        child = 0
        for counts in self._counts_top_down:
            child <<= FAN_OUT_BITS
            while (count := counts[child]) <= rank:
                rank -= count
                child += 1
        child <<= FAN_OUT_BITS
        while (is_seen := self._seen[child]) <= rank:
            rank -= is_seen
            child += 1
        return child

    def draw_stale(self, uniform: float) -> int:
        """Returns the level that a uniform number, 0 <= uniform < 1, falls on under P_C."""
        if not self._has_sums:
            up_to = np.cumsum(self.weights())
            return int(up_to.searchsorted(uniform * up_to[-1], "right"))
        draws, seen, last_drawn = self.draws, self._seen, self._last_drawn
        total = draws * self.num_seen - self._sum
        if not total:
            return self.draw_uniform(uniform)
        target = min(int(uniform * total), total - 1)
        child = 0
        for counts, sums in zip(self._counts_top_down, self._sums_top_down, strict=True):
            child <<= FAN_OUT_BITS
            while (staleness := draws * counts[child] - sums[child]) <= target:
                target -= staleness
                child += 1
        child <<= FAN_OUT_BITS
        while (staleness := seen[child] * (draws - last_drawn[child])) <= target:
            target -= staleness
            child += 1
        return child

    def p_stale(self) -> Callable[[Ints], Floats]:
        """Returns P_C of seen levels as a function of their C_i, (m,) to (m,)."""
        if self._has_sums:
            largest, total = 1.0, float(self.draws * self.num_seen - self._sum)
        else:
            staleness = (self.draws - self.last_drawn[self.seen]).astype(np.float64)
            largest = float(staleness.max())
            total = float(self._power(staleness, largest).sum()) if largest else 0.0
        if not total:
            return lambda last_drawn: np.full(len(last_drawn), 1.0 / self.num_seen)
        return lambda last_drawn: self._power((self.draws - last_drawn).astype(np.float64), largest) / total

    def _power(self, staleness: Floats, largest: float) -> Floats:
        return staleness if self._has_sums else _power_ratio(self._exponent)(staleness, np.array([largest]))

    def weights(self) -> Floats:
        """Returns (N,) P_C."""
        seen = self.seen[: self._num_levels]
        staleness = np.where(seen, self.draws - self.last_drawn[: self._num_levels], 0).astype(np.float64)
        if not staleness.any():
            return _normalised(seen.astype(np.float64))
        return _normalised(_power_ratio(self._exponent)(staleness, staleness.max(keepdims=True)))


def _layer_sizes(num_leaves: int) -> list[int]:
    """Returns the entries of each layer of a tree, leaves first: multiples of FAN_OUT, the last one FAN_OUT itself."""
    sizes: list[int] = []
    num_nodes = num_leaves
    while not sizes or num_nodes > 1:
        num_nodes = -(-num_nodes // FAN_OUT)
        sizes.append(num_nodes * FAN_OUT)
    return sizes


def _normalised(weights: Floats) -> Floats:
    probabilities: Floats = weights / weights.sum()
    return probabilities


def _read_only(values: Array) -> Array:
    view = values[:]
    view.flags.writeable = False
    return view

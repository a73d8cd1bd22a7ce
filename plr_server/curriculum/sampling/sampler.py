"""The sampler: which seen level is replayed next, by score and staleness.

Used by the curriculum only, which maps level ids to the indices 0..N-1 meant here. Pure: it reads no clock, does no IO
and draws from the generator it is given. What it draws is a function of scores, seen, last_drawn, draws and of which
levels are drawable alone: sums of floats are made anew from their parts, never adjusted by differences, so that nothing
drifts and a restored sampler draws bit for bit what the original would have drawn.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import count
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from plr_client.errors import InvalidInput
from plr_server.curriculum.sampling.eviction import EvictionOrder
from plr_server.curriculum.sampling.staleness import Staleness, new_last_drawn
from plr_server.curriculum.sampling.transforms import Transform, make_transform
from plr_server.curriculum.sampling.trees import Floats, Ints

Array = TypeVar("Array", NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_])

REPLAY = -1
OUTSIDE = -2

FEW = 8  # draws at once from which on arrays are faster than one after the other
NONE = np.empty(0, dtype=np.int64)


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
        caps: keep what `set_drawable` needs: all that draws are made from a second time, over the drawable levels.

    Attributes:
        scores: (N,) float64, read-only; 0 where unseen.
        seen: (N,) bool, read-only.
        last_drawn: (N,) int64, read-only; C_i, 0 where never drawn.
        draws: levels drawn so far: c.

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
        caps: bool = False,
    ) -> None:
        self._staleness_coef = staleness_coef
        self._scores = np.zeros(num_levels)
        self._last_drawn = new_last_drawn(num_levels)
        self._last_drawn_view = self._last_drawn.data  # faster to index one by one
        self.draws = 0

        def candidates() -> _Candidates:
            by_score = make_transform(num_levels, transform, temperature, eps)
            return _Candidates(by_score, Staleness(num_levels, self._last_drawn, staleness_coef, staleness_temperature))

        self._all = candidates()
        self._drawable = candidates() if caps else self._all
        self._evictions = EvictionOrder(self._last_drawn) if evicts else None
        self.scores = _read_only(self._scores)
        self.seen = _read_only(self._all.by_staleness.inside[:num_levels])
        self.last_drawn = _read_only(self._last_drawn[:num_levels])

    @property
    def num_seen(self) -> int:
        """How many levels are seen: n."""
        return self._all.by_staleness.size

    @property
    def num_drawable(self) -> int:
        """How many seen levels are drawable."""
        return self._drawable.by_staleness.size

    def set_scores(self, indices: Ints, scores: Floats) -> None:
        """Gives levels their scores; those that were unseen are seen, and drawable, from now on.

        Args:
            indices: (m,) unique, 0..N-1.
            scores: (m,) finite, up to 1e30 in magnitude.
        """
        seen, before = self.seen[indices], self._scores[indices]
        if self._drawable is not self._all:
            drawable = ~seen | self._drawable.by_staleness.inside[indices]
            self._drawable.put(indices[drawable], before[drawable], scores[drawable])
        if self._evictions is not None:
            self._evictions.replace(indices[seen], self._keys(before[seen]), indices, self._keys(scores))
        self._all.put(indices, before, scores)
        self._scores[indices] = scores

    def forget(self, indices: Ints) -> None:
        """Makes levels unseen and never drawn, as they were at first.

        Args:
            indices: (m,) unique, 0..N-1, seen or not.
        """
        seen = indices[self.seen[indices]]
        if self._drawable is not self._all:
            drawable = seen[self._drawable.by_staleness.inside[seen]]
            self._drawable.take(drawable, self._scores[drawable])
        if self._evictions is not None:
            self._evictions.replace(seen, self._keys(self._scores[seen]), NONE, self._scores[:0])
        self._all.take(seen, self._scores[seen])
        self._scores[seen] = 0.0
        self._last_drawn[indices] = 0

    def place(self, index: int, last_drawn: int) -> None:
        """Puts a level that was last drawn at `last_drawn`, at most `draws`, in the place of an unseen one."""
        self._last_drawn[index] = last_drawn

    def set_drawable(self, index: int, drawable: bool) -> None:
        """Says whether `draw` may draw a seen level; score, staleness and weight stay. Only a sampler that `caps`."""
        if self._drawable.by_staleness.inside[index] != drawable:
            one = np.array([index], dtype=np.int64)
            if drawable:
                self._drawable.put(one, self._scores[one], self._scores[one])
            else:
                self._drawable.take(one, self._scores[one])

    def lowest(self) -> int:
        """Returns the index that P_replay values least, out of those seen, of which there must be one.

        The rule where float64 does not tell the P_replay of two apart: the one of the lower P_S goes; where it does not
        tell these apart either, as where both underflow, the one of the lower value, which is what P_S grows with: the
        score, or (1 - score) score for the transforms that match; the score, too, where P_S does not count (constant,
        ρ = 1). Then the one drawn later; then the lower index.

        Only a sampler that `evicts` knows. Costs O(sqrt N) as a rule; O(N) where the staleness temperature is not 1.
        """
        assert self._evictions is not None  # noqa: S101  the caller asked for it
        staleness_coef, by_score, num_seen = self._staleness_coef, self._all.p_score(), self.num_seen
        p_stale = self._all.by_staleness.p_stale(self.draws) if staleness_coef else None

        def p_replay(ranks: Ints, keys: Floats, last_drawn: Ints) -> tuple[Floats, Floats]:
            if staleness_coef == 1.0:
                p_score: Floats = np.zeros(len(ranks))
            else:
                p_score = by_score.of(ranks, -keys) if by_score else np.full(len(ranks), 1.0 / num_seen)
            if p_stale is None:
                return p_score, p_score
            return (1.0 - staleness_coef) * p_score + staleness_coef * p_stale(last_drawn), p_score

        return self._evictions.lowest(p_replay)

    def draw(self, rng: np.random.Generator, picks: Sequence[int], *, only_drawable: bool = True) -> list[int]:
        """Draws levels one after the other: each counts as drawn before the next, whose staleness sees it.

        Args:
            rng: gives two doubles for each REPLAY, and is not touched otherwise.
            picks: REPLAY for a seen level drawn from P_replay, the index of a level that the caller chose, or OUTSIDE
                for a level without an index, which only counts.
            only_drawable: draw as if the levels that are not drawable were not seen.

        Returns:
            The indices, in the order of `picks`, OUTSIDE for OUTSIDE.

        Raises:
            InvalidInput: a REPLAY while there is no level to draw; nothing has changed.
        """
        candidates = self._drawable if only_drawable else self._all
        num_replays = picks.count(REPLAY)
        if num_replays and not candidates.by_staleness.size:
            raise InvalidInput("picks", "a seen level to replay", "none seen")
        if not num_replays:
            self._count(picks)
            return list(picks)
        if num_replays > FEW:
            drawn_of_many: list[int] = self._draw_many(rng, np.array(picks, dtype=np.int64), candidates).tolist()
            return drawn_of_many
        drawn = []
        for pick in picks:
            if pick == REPLAY:
                drawn.append(self._draw_one(rng, candidates))
            else:
                self._count((pick,))
                drawn.append(pick)
        return drawn

    def replay(self, rng: np.random.Generator) -> int:
        """Does as `draw` for one REPLAY, which there must be a level for; returns its index."""
        return self._draw_one(rng, self._drawable)

    def replay_many(self, rng: np.random.Generator, k: int) -> Ints:
        """Does as `replay` k times; returns (k,) the indices."""
        return self._draw_many(rng, np.full(k, REPLAY, dtype=np.int64), self._drawable)

    def _draw_one(self, rng: np.random.Generator, candidates: _Candidates) -> int:
        by_staleness = rng.random() < self._staleness_coef
        uniform = rng.random()
        draws = self.draws
        index = candidates.by_staleness.draw(uniform, draws) if by_staleness else candidates.draw_by_score(uniform)
        self.draws += 1
        self._set_last_drawn(((index, self.draws),))
        return index

    def _draw_many(self, rng: np.random.Generator, picks: Ints, candidates: _Candidates) -> Ints:
        """Does as `draw`, in place. Scores do not change in between, so that all draws by score are made at once."""
        replays = np.flatnonzero(picks == REPLAY)
        uniforms = rng.random(2 * len(replays))
        by_staleness, uniforms = uniforms[::2] < self._staleness_coef, uniforms[1::2]
        picks[replays[~by_staleness]] = candidates.draw_all_by_score(uniforms[~by_staleness])
        counts = picks == REPLAY
        counts[:-1] |= picks[1:] != picks[:-1]  # of one level several times in a row, the last
        counts[-1] = True
        to_count = np.flatnonzero(counts & (picks != OUTSIDE))
        uniform = iter(uniforms[by_staleness].tolist())
        for place, pick in zip(to_count.tolist(), picks[to_count].tolist(), strict=True):
            index = pick
            if pick == REPLAY:
                index = picks[place] = candidates.by_staleness.draw(next(uniform), self.draws + place)
            self._set_last_drawn(((index, self.draws + place + 1),))
        self.draws += len(picks)
        return picks

    def _count(self, drawn: Sequence[int]) -> None:
        """Counts levels as drawn one after the other."""
        last = dict(zip(drawn, count(self.draws + 1)))
        self.draws += len(drawn)
        last.pop(OUTSIDE, None)
        self._set_last_drawn(last.items())

    def _set_last_drawn(self, last: Collection[tuple[int, int]]) -> None:
        """Sets the C_i of levels, each once, to what stands beside them."""
        self._all.by_staleness.drawn(last)
        if self._drawable is not self._all:
            self._drawable.by_staleness.drawn(last)
        last_drawn = self._last_drawn_view
        for index, at in last:
            last_drawn[index] = at
        if self._evictions is not None:
            for index, _ in last:
                if self.seen[index]:
                    self._evictions.touch(self._keys(self._scores[index : index + 1]).item(), index)

    def weights(self) -> Floats:
        """Returns (N,) P_replay, drawable or not: 0 where unseen, 0 everywhere while nothing is seen."""
        by_score, by_staleness = self.parts()
        return by_score + by_staleness if self._staleness_coef else by_score

    def parts(self) -> tuple[Floats, Floats]:
        """Returns (1 - ρ) P_S and ρ P_C, (N,) each, which add up to `weights`."""
        nothing: Floats = np.zeros(len(self.scores))
        if not self.num_seen:
            return nothing, nothing
        by_score = self._all.p_score()
        p_score: Floats = by_score.weights() if by_score else self.seen / self.num_seen
        if not self._staleness_coef:
            return p_score, nothing
        p_stale = self._all.by_staleness.weights(self.draws)
        return (1.0 - self._staleness_coef) * p_score, self._staleness_coef * p_stale

    def state(self) -> dict[str, Any]:
        """Returns the state: scores, seen, last_drawn (N,) and draws; the caller copies it.

        Which levels are drawable is the caller's to say again.
        """
        return {
            "scores": self.scores,
            "seen": self.seen,
            "last_drawn": self.last_drawn,
            "draws": self.draws,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], **config: Any) -> Sampler:
        """Returns a sampler that goes on bit for bit as the one whose `state()` is given; every seen level is drawable.

        Args:
            state: what `state()` returned.
            **config: the keyword arguments of `Sampler`, as that one had them.
        """
        sampler = cls(len(state["scores"]), **config)
        sampler.draws = int(state["draws"])
        sampler._last_drawn[: len(sampler.scores)] = state["last_drawn"]
        seen = np.flatnonzero(state["seen"])
        sampler.set_scores(seen, np.asarray(state["scores"])[seen])
        return sampler

    def _keys(self, scores: Floats) -> Floats:
        """Returns by what levels are ordered for `lowest`, best first: minus their values."""
        by_score = self._all.by_score
        return -scores if by_score is None or self._staleness_coef == 1.0 else -by_score.value(scores)


class _Candidates:
    """A set of levels that draws are made from.

    Args:
        by_score: P_S, over no level yet; None where it is uniform.
        by_staleness: P_C, over no level yet.
    """

    def __init__(self, by_score: Transform | None, by_staleness: Staleness) -> None:
        self.by_score, self.by_staleness = by_score, by_staleness

    def put(self, indices: Ints, before: Floats, scores: Floats) -> None:
        """Puts levels into the set, or gives those that are in it another score than the one before; each (m,)."""
        inside = self.by_staleness.inside[indices]
        if self.by_score is not None:
            self.by_score.replace(indices[inside], before[inside], indices, scores)
        if not inside.all():
            self.by_staleness.add(indices[~inside])

    def take(self, indices: Ints, scores: Floats) -> None:
        """Takes levels, which have these scores, out of the set; each (m,)."""
        if self.by_score is not None:
            self.by_score.replace(indices, scores, NONE, scores[:0])
        self.by_staleness.remove(indices)

    def p_score(self) -> Transform | None:
        """Returns P_S; None where it is uniform."""
        return None if self.by_score is None or self.by_score.is_flat else self.by_score

    def draw_by_score(self, uniform: float) -> int:
        """Returns the level that a uniform number, 0 <= uniform < 1, falls on under P_S."""
        by_score = self.by_score
        if by_score is None or by_score.is_flat:
            return self.by_staleness.draw_uniform(uniform)
        return by_score.draw(uniform)

    def draw_all_by_score(self, uniforms: Floats) -> Ints:
        """Returns (m,) the levels that (m,) such numbers fall on."""
        by_score = self.p_score()
        if by_score is None:
            return np.array([self.by_staleness.draw_uniform(each) for each in uniforms.tolist()], dtype=np.int64)
        return by_score.draw_all(uniforms)


def _read_only(values: Array) -> Array:
    view = values[:]
    view.flags.writeable = False
    return view

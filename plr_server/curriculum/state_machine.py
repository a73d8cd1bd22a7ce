"""The curriculum: a deterministic state machine that owns the level table and decides what is played next.

Commands in, results out; the same commands give the same state, bit for bit. It reads no clock, opens no file or socket
and draws only from the generator in its state. Every command checks all of its input before it changes anything: one
that raises has changed nothing. May be imported by the server around it, and by users who want it in their own process.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plr_client.errors import InvalidInput, LevelOutsideSpace, NoLevels
from plr_client.levels import NO_PARENT, Assignment, Assignments, Level, check_k
from plr_client.protocol import MAX_PAYLOADS, pack_payloads, unpack_payload
from plr_server.curriculum.assigner import Assigner, cap_of
from plr_server.curriculum.config import Config
from plr_server.curriculum.sampling.sampler import Sampler
from plr_server.curriculum.scoring.functions import ScoreFunction, import_function, score_with, unpickle_function
from plr_server.curriculum.scoring.groups import NO_PARTS, pool
from plr_server.curriculum.scoring.history import History
from plr_server.curriculum.scoring.rollouts import (
    MAX_MAGNITUDE,
    OpenEpisode,
    Rollout,
    StepPool,
    add_step,
    as_array,
    check,
    join_steps,
    keep_open,
    prepend,
)
from plr_server.curriculum.scoring.scores import FUNCTION, Episodes, find_episodes, score_found, strategy_named
from plr_server.curriculum.spaces.level_space import LevelSpace, level_space
from plr_server.curriculum.spaces.open_space import NOT_IN_TABLE, OpenSpace, PayloadSpace, UnboundedSpace


@dataclasses.dataclass
class Counts:
    """What has happened so far; every number only grows."""

    replays: int = 0
    pushes: int = 0
    steps: int = 0
    episodes: int = 0
    scores: int = 0
    entered: int = 0  # the table of an open level space
    evicted: int = 0
    rejected: int = 0


class Curriculum:
    """Prioritized Level Replay over one level space.

    Args:
        config: what decides how it behaves.

    Raises:
        ConfigError: the strategy names a function that cannot be imported in this process.

    >>> curriculum = Curriculum(Config(levels=range(4), strategy="external"))
    >>> curriculum.update_scores([0, 2], [0.5, 2.0])
    2
    >>> int(curriculum.weights().argmax())
    2
    >>> [assignment.is_replay for assignment in curriculum.sample(2)]
    [False, True]

    Source: arXiv 2010.03934 (algorithms 1 and 2), arXiv 2110.02439 (`robust`).
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._space = _space(config)
        # What every draw would otherwise ask for anew.
        self._open_space = self._space if isinstance(self._space, OpenSpace) else None
        self._payloads = self._space if isinstance(self._space, PayloadSpace) else None
        self._num_levels = len(self._space)
        self._sampler = Sampler(self._num_levels, **_sampling(config))
        self._rng = np.random.Generator(np.random.PCG64(config.seed))
        self._assigner = Assigner(config, self._space, self._sampler, self._rng)
        self._open: dict[str, dict[int, OpenEpisode]] = {}  # source -> column -> steps in hand, under "stitch"
        self._ended: dict[str, Episodes] = {}  # source -> parts of agents whose groups go on, under "stitch"
        self._pools: dict[str, StepPool] = {}  # source -> steps that wait to become a block
        self._counts = Counts()
        self._scoring = config.strategy  # or the name of a function that was sent
        self._function: ScoreFunction | None = import_function(config.strategy) if ":" in config.strategy else None
        self._pickled: bytes | None = None  # the function that was sent
        self._history = self._new_history()

    def _new_history(self) -> History | None:
        remembers = strategy_named(self._scoring).remembers
        if remembers is None:
            return None
        return History(self._num_levels, remembers, window=self.config.window, carries=self.config.partial == "commit")

    # ---- what is played next

    def sample(
        self, k: int = 1, *, slots: ArrayLike | None = None, holder: str = "", packed: bool = False
    ) -> list[Assignment]:
        """Hands out the levels that k env slots play next.

        Args:
            k: how many, 1 to 65 536; 1 to 4096 of payloads.
            slots: which env slots of the holder they are for, k distinct ints; by default 0 to k - 1. The level that a
                slot held before is over and no longer in flight.
            holder: who asks; slots are counted for each holder apart.
            packed: leave payloads as their msgpack bytes, for the wire.

        Returns:
            k assignments in the order of `slots`. Draws happen in that order, so the staleness each draw sees counts
            the draws before it.

            With `max_in_flight`, a level that so many slots play is left out, as if it were not there: replay or new is
            decided as without a cap while there is a level of either kind below it; where there is one kind only, that
            one is handed out; where there is neither, the cap yields. New levels are drawn uniformly from the unseen
            ones that nobody plays; where there is none, from those below the cap; where there is none, from all.

        Raises:
            InvalidInput: k or slots are not what they must be.
            NoLevels: the levels are payloads, and there is none.

        Source: arXiv 2010.03934, algorithm 2 and equations for P_replay.
        """
        levels, is_replay = self._assigner.assign(holder, self._slots(k, slots))
        self._counts.replays += is_replay.count(True)
        trains = is_replay if self.config.robust else repeat(True)
        payloads = repeat(None) if self._payloads is None else self._payloads_of(self._payloads, levels, packed=packed)
        return list(map(Assignment._make, zip(levels, is_replay, trains, payloads)))  # noqa: B905  repeat has no end

    def sample_arrays(
        self, k: int, *, slots: ArrayLike | None = None, holder: str = "", packed: bool = False
    ) -> Assignments:
        """Does as `sample`, and returns the same levels as arrays: for thousands at once."""
        levels, is_replay = self._assigner.assign(holder, self._slots(k, slots))
        self._counts.replays += is_replay.count(True)
        replayed = np.array(is_replay)
        return Assignments(
            np.array(levels, dtype=np.int64),
            replayed,
            replayed.copy() if self.config.robust else np.ones(len(levels), dtype=np.bool_),
            None if self._payloads is None else self._payloads_of(self._payloads, levels, packed=packed),
        )

    def _slots(self, k: int, slots: ArrayLike | None) -> Sequence[int]:
        """Returns the slots, checked, and that there are levels for them."""
        check_k(k)
        chosen, space = range(k) if slots is None else _slots(k, slots), self._payloads
        if space is not None:
            if k > MAX_PAYLOADS:
                raise InvalidInput("k", f"an integer from 1 to {MAX_PAYLOADS}", repr(k))
            if not (space.num_entered or space.num_waiting):
                raise NoLevels
        return chosen

    @staticmethod
    def _payloads_of(space: PayloadSpace, levels: Iterable[int], *, packed: bool) -> list[Any]:
        return [space.packed(level) if packed else unpack_payload(space.packed(level)) for level in levels]

    @property
    def pushes(self) -> int:
        """How many pushes have changed the scores so far."""
        return self._counts.pushes

    def holds(self, holder: str) -> bool:
        """Returns whether one of the holder's slots plays a level."""
        return self._assigner.in_flight.holds(holder)

    def release(self, holder: str) -> None:
        """Takes back every level that the holder's slots play: it is gone."""
        self._assigner.release(holder)

    # ---- what was learnt from it

    def update(
        self,
        values: ArrayLike | None = None,
        rewards: ArrayLike | None = None,
        dones: ArrayLike | None = None,
        levels: ArrayLike | None = None,
        next_values: ArrayLike | None = None,
        *,
        truncated: ArrayLike | None = None,
        final_values: ArrayLike | None = None,
        valid: ArrayLike | None = None,
        logits: ArrayLike | None = None,
        successes: ArrayLike | None = None,
        columns: ArrayLike | None = None,
        groups: ArrayLike | None = None,
        source: str = "",
    ) -> int:
        """Scores the episodes of one rollout block, (T, N) step-major, and updates the table.

        The fields are those of `plr_client.Trainer.push`. Several episodes of one level in a block are applied one
        after the other, in the order in which they ended (by column where that is the same step).

        Args:
            values: (T, N) V(s_t).
            rewards: (T, N) r_t.
            dones: (T, N) the action of step t ended the episode.
            levels: (T, N) the level that was active when obs_t was produced.
            next_values: (N,) V(s_T).
            truncated: (T, N) True only where done: bootstrap with `final_values`.
            final_values: (T, N) V of the terminal observation.
            valid: (T, N) False for rows to be dropped.
            logits: (T, N, A) action logits.
            successes: (T, N) where done, whether the episode was a success.
            columns: (N,) distinct ints naming the env columns; by default 0 to N - 1.
            groups: (N,) ints: columns of the same number are the agents of one env, whose episodes get one score
                (`plr_server.curriculum.scoring.groups.pool`).
            source: who pushes; columns and groups are counted for each source apart.

        Returns:
            The number of episodes, or parts of episodes, scored.

        Raises:
            InvalidInput: a field has a wrong shape, dtype or value, or a level changes inside an episode.
            MissingField: the strategy needs a field that is not there.
            LevelOutsideSpace: a level is not in the level space.
            ScoreFunctionError: the score function raised, or returned what is no score.

        Source: arXiv 2010.03934, section 3.1; the mean over the steps, as table 1. Parts cut by the block's end are
        scored as they are (`partial="commit"`), or kept until the episode ends (`"stitch"`, appendix C). `learnability`
        and `tscl` score finished episodes only; their score takes the old one's place whatever alpha is, because their
        window is already a memory. With `groups` each agent's return is one of the window, and one that may be the
        level's best.
        """
        fields = {
            "values": values,
            "rewards": rewards,
            "dones": dones,
            "levels": levels,
            "next_values": next_values,
            "truncated": truncated,
            "final_values": final_values,
            "valid": valid,
            "logits": logits,
            "successes": successes,
            "columns": columns,
            "groups": groups,
        }
        return self._update(*self._check(fields), source)

    def update_step(self, *, source: str = "", **fields: ArrayLike | None) -> int:
        """Pools one step of N env columns; the step that makes `num_steps` of them scores the block as `update` does.

        Args:
            source: who pushes.
            **fields: those of `update` without the axis T: (N,), logits (N, A).

        Returns:
            The number of episodes or parts scored: 0 until the block is full.

        Raises:
            InvalidInput: as `update`; or the columns differ from those of the block's first step.
            MissingField, LevelOutsideSpace, ScoreFunctionError: as `update`.
        """
        per_column = ("columns", "groups", "next_values")
        block = {
            name: value if value is None or name in per_column else as_array(name, value)[np.newaxis]
            for name, value in fields.items()
        }
        step, columns = self._check(block)
        valid_levels = step.levels if step.valid is None else step.levels[step.valid]
        self._space.indices(valid_levels.ravel())
        pool = add_step(self._pools.get(source), step, columns)
        if len(pool.steps) < self.config.num_steps:
            self._pools[source] = pool
            return 0
        scored = self._update(join_steps(pool.steps), columns, source)
        self._pools.pop(source, None)
        return scored

    def update_scores(self, levels: ArrayLike, scores: ArrayLike) -> int:
        """Applies scores of the trainer's own making, in order.

        Args:
            levels: (m,) ids; one may occur more than once.
            scores: (m,) finite floats, up to 1e30 in magnitude.

        Returns:
            m.

        Raises:
            InvalidInput: a shape, dtype or value is wrong.
            LevelOutsideSpace: a level is not in the level space.
        """
        ids = as_array("levels", levels)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise InvalidInput("levels", "shape (m,) of integers", f"shape {ids.shape} of {ids.dtype}")
        given = _scores(scores, ids.shape)
        levels = ids.astype(np.int64)
        self._score(levels, self._space.indices(levels), given, self.config.alpha)
        self._counts.pushes += 1
        return len(levels)

    def insert(
        self, payloads: Sequence[Any], scores: ArrayLike | None = None, parents: ArrayLike | None = None
    ) -> NDArray[np.int64]:
        """Inserts levels that are more than a number; for levels="payloads".

        The payloads are interned one after the other: the same canonical msgpack bytes are the same level. With scores,
        each is then scored as by `update_scores`, before the next is interned.

        Args:
            payloads: m of them, as `plr_client.Trainer.insert` takes them.
            scores: (m,) finite floats; without them, new levels wait to be handed out as new.
            parents: (m,) ids of the levels they were made from, -1 for none.

        Returns:
            (m,) ids; -1 for a level that is not kept at the end.

        Raises:
            InvalidInput: as `plr_client.Trainer.insert`.

        Source: arXiv 2203.01302, algorithm 1: levels edited from those of the highest scores enter with scores of their
        own.
        """
        return self.insert_packed(pack_payloads(payloads), scores, parents)

    def insert_packed(
        self, packed: Sequence[bytes], scores: ArrayLike | None = None, parents: ArrayLike | None = None
    ) -> NDArray[np.int64]:
        """Does as `insert`, with payloads as canonical msgpack bytes; up to 4096."""
        space, num = self._payload_space("insert"), len(packed)
        if num > MAX_PAYLOADS:
            raise InvalidInput("payloads", f"at most {MAX_PAYLOADS} in one call", str(num))
        of = as_array("parents", np.full(num, NO_PARENT) if parents is None else parents)
        if of.shape != (num,) or (num and of.dtype.kind not in "iu"):
            raise InvalidInput("parents", f"shape {(num,)} of integers", f"shape {of.shape} of {of.dtype}")
        given = None if scores is None else _scores(scores, (num,))
        space.check(packed, of.tolist(), wait=given is None)
        levels = []

        def interned() -> Iterable[int]:
            for payload, parent in zip(packed, of.tolist(), strict=True):
                levels.append(space.intern(payload, parent))
                yield levels[-1]

        if given is None:
            list(interned())
        else:
            self._score_open(space, interned(), given, self.config.alpha, {})
        return np.array([level if space.is_kept(level) else NO_PARENT for level in levels], dtype=np.int64)

    def _payload_space(self, what: str) -> PayloadSpace:
        if self._payloads is None:
            raise InvalidInput(what, 'a curriculum with levels="payloads"', "one of levels that are ids")
        return self._payloads

    def forget(self, source: str) -> None:
        """Drops the steps pooled for a source that will not push again."""
        self._open.pop(source, None)
        self._ended.pop(source, None)
        self._pools.pop(source, None)
        if self._history is not None:
            self._history.forget(source)

    def set_score_function(self, pickled: bytes) -> None:
        """Scores episodes with a function from now on, in place of the configured strategy.

        Scores given so far stay, and so do the levels' best returns where they were kept. Steps that wait to be scored
        are dropped unless they wait for another function, since a strategy keeps only what it reads: their episodes
        count from the next step on.

        Args:
            pickled: the function, a `plr_client.Segment` to (mean, max), as `cloudpickle.dumps` gave it. Unpickling it
                runs code of the sender's choice.

        Raises:
            ScoreFunctionError: it cannot be unpickled here.
            InvalidInput: it is no function.
        """
        before = strategy_named(self._scoring)
        self._scoring, self._function = unpickle_function(pickled)
        self._pickled = pickled
        if before.remembers != FUNCTION.remembers:
            self._history = self._new_history()
        if before is not FUNCTION:
            self._open.clear()
            self._ended.clear()
            self._pools.clear()

    def _check(self, fields: Mapping[str, ArrayLike | None]) -> tuple[Rollout, NDArray[np.int64]]:
        if self._scoring == "external":
            raise InvalidInput("push", "push_scores under the strategy external", "a rollout")
        return check(self._scoring, fields)

    def _update(self, rollout: Rollout, columns: NDArray[np.int64], source: str) -> int:
        config, strategy = self.config, strategy_named(self._scoring)
        stitch = config.partial == "stitch"
        num_steps, prepended = len(rollout.dones), 0
        num_valid = rollout.levels.size if rollout.valid is None else int(rollout.valid.sum())
        if stitch:
            still_open = self._open.get(source, {})
            rollout = prepend(still_open, rollout, columns)
            prepended = len(rollout.dones) - num_steps
        rows, episodes = find_episodes(rollout)
        indices = self._space.indices(episodes.level)
        finished_only = stitch or strategy.per_window is not None
        in_order = _in_order(episodes, finished_only=finished_only)
        past, reserved = None, np.unique(episodes.level[indices == NOT_IN_TABLE])
        if self._history is not None:
            self._history.reserve(len(reserved))
            places = np.where(
                indices == NOT_IN_TABLE, self._num_levels + reserved.searchsorted(episodes.level), indices
            )
            past = self._history.look_back(
                rollout, rows, episodes, order=in_order, indices=places[in_order], columns=columns, source=source
            )
        known: dict[str, Any] = {"gamma": config.gamma, "gae_lambda": config.gae_lambda, "past": past}
        if self._function is None:
            episodes = score_found(rollout, rows, episodes, strategy, **known)
        else:
            episodes = score_with(self._function, self._scoring, rollout, rows, episodes, **known)
        parts = episodes  # one column's each
        if rollout.groups is not None and strategy.per_window is None:
            episodes, ended = pool(parts, rollout.groups, self._ended.get(source, NO_PARTS), prepended)
            indices = self._space.indices(episodes.level)
            in_order = _in_order(episodes, finished_only=finished_only)
        # from here on nothing can fail
        if self._history is not None and past is not None:
            self._history.remember(past, source)
        if stitch:
            touched = set(columns.tolist())
            kept = {column: episode for column, episode in still_open.items() if column not in touched}
            self._open[source] = kept | keep_open(rollout, parts, columns)
            if parts is not episodes:
                self._ended[source] = ended
        scores = (1.0 - config.max_score_coef) * episodes.mean + config.max_score_coef * episodes.max
        alpha = config.alpha if strategy.per_window is None else 1.0
        self._score(episodes.level[in_order], indices[in_order], scores[in_order], alpha, reserved)
        if self._history is not None:
            self._history.clear_reserved()
        self._counts.pushes += 1
        self._counts.steps += num_valid
        self._counts.episodes += int(episodes.finished.sum())
        return len(in_order)

    def _score(
        self,
        levels: NDArray[np.int64],
        indices: NDArray[np.int64],
        scores: NDArray[np.float64],
        alpha: float,
        reserved: Sequence[int] | NDArray[np.int64] = (),
    ) -> None:
        """Applies scores in order.

        Args:
            levels: (m,) ids.
            indices: (m,) theirs, before the first.
            scores: (m,).
            alpha: the weight of a new score.
            reserved: of an open level space, the levels outside the table whose past stands in the history's places
                beyond the table, in that order.
        """
        if self._open_space is not None:
            past = {int(level): self._num_levels + place for place, level in enumerate(reserved)}
            self._score_open(self._open_space, levels.tolist(), scores, alpha, past)
        else:
            self._apply(indices, scores, alpha)

    def _score_open(
        self,
        space: OpenSpace,
        levels: Iterable[int],
        scores: NDArray[np.float64],
        alpha: float,
        past: Mapping[int, int],
    ) -> None:
        """Applies scores in order, to levels that are in the table or enter it.

        The score of a level that is not in the table is a first score, whether it never was or has left: the level
        enters while there is room, and later in the place of the one of the lowest P_replay if the score is above that
        one's. Otherwise, and where its payload is no longer kept, the score is dropped.
        """
        indices: list[int] = []  # of the scores that wait to be applied: all up to the next eviction, at once
        waiting: list[float] = []

        def apply() -> None:
            self._apply(np.array(indices, dtype=np.int64), np.array(waiting), alpha)
            indices.clear()
            waiting.clear()

        for level, score in zip(levels, scores.tolist(), strict=True):
            index = space.index_of(level)
            if index == NOT_IN_TABLE:
                if space.num_entered < len(space) and space.is_kept(level):
                    index = self._enter(space, level, space.num_entered, past.get(level))
                elif space.is_kept(level):
                    apply()
                    lowest = self._sampler.lowest()
                    if score > self._sampler.scores[lowest]:
                        self._sampler.forget(np.array([lowest]))
                        index = self._enter(space, level, lowest, past.get(level))
                        self._counts.evicted += 1
                    else:
                        space.leave(level)
            if index == NOT_IN_TABLE:
                self._counts.rejected += 1
            else:
                indices.append(index)
                waiting.append(score)
        apply()

    def _enter(self, space: OpenSpace, level: int, index: int, past: int | None) -> int:
        """Puts an unseen level into the table; its staleness counts from its last draw, or from now if it has none."""
        if self._history is not None:
            self._history.replace(index, past)
        self._sampler.place(index, space.drawn_at(level, self._sampler.draws))
        space.enter(level, index)
        self._counts.entered += 1
        return index

    def _apply(self, indices: NDArray[np.int64], scores: NDArray[np.float64], alpha: float) -> None:
        """Sets score <- (1 - alpha) old + alpha new for each in order; a level's first score is taken as it is."""
        if not len(indices):
            return
        order = np.argsort(indices, kind="stable")  # groups a level's scores, in order
        unique, begin, count = np.unique(indices[order], return_index=True, return_counts=True)
        place = np.arange(len(order)) - np.repeat(begin, count)  # 0 for a level's first score here
        seen = self._sampler.seen[unique]
        left = np.repeat(count, count) - 1 - place  # how many come after it
        keep = 1.0 - alpha
        weight = keep**left * np.where((place == 0) & ~np.repeat(seen, count), 1.0, alpha)
        new = np.add.reduceat(weight * scores[order], begin) + np.where(
            seen, keep**count * self._sampler.scores[unique], 0.0
        )
        self._sampler.set_scores(unique, new)
        self._assigner.became_seen(unique[~seen])
        self._counts.scores += len(indices)

    # ---- what there is to know

    def weights(self) -> NDArray[np.float64]:
        """Returns (N,) the probability of each level to be drawn by the next replay: P_replay, zero where unseen.

        Under the baselines that replay nothing it is the probability of the next draw: `random` 1/N each, `sequential`
        1 for the level that comes next. Of an open level space: of the levels in the table, in the order of `scores`.
        """
        if self.config.strategy == "random":
            return np.full(self._num_levels, 1.0 / self._num_levels)
        if self.config.strategy == "sequential":
            following: NDArray[np.float64] = np.eye(1, self._num_levels, self._sampler.draws % self._num_levels)[0]
            return following
        return self._sampler.weights()[: self._num_indices()]

    def _num_indices(self) -> int:
        """Returns how many indices have a level."""
        return self._num_levels if self._open_space is None else self._open_space.num_entered

    def scores(self) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
        """Returns ids (N,), scores (N,) (0 where unseen), staleness (N,) in draws since last drawn, seen (N,).

        Of an open level space: of the levels in the table, all seen.
        """
        sampler, num = self._sampler, self._num_indices()
        ids = self._space.ids(np.arange(num))
        return ids, sampler.scores[:num].copy(), sampler.draws - sampler.last_drawn[:num], sampler.seen[:num].copy()

    def levels(self, levels: ArrayLike) -> list[Level]:
        """Returns what levels are, and what they were made from; for levels="payloads".

        Args:
            levels: (m,) ids of levels that are in the table or wait, up to 4096.

        Raises:
            InvalidInput: the shape or dtype is wrong, or the levels are no payloads.
            LevelOutsideSpace: a level is not kept.
        """
        return [
            Level(level, unpack_payload(packed), None if parent == NO_PARENT else parent)
            for level, packed, parent in self.levels_packed(levels)
        ]

    def levels_packed(self, levels: ArrayLike) -> list[tuple[int, bytes, int]]:
        """Does as `levels`, with (id, payload as msgpack bytes, parent or -1) for each."""
        space, ids = self._payload_space("levels"), as_array("levels", levels)
        if ids.ndim != 1 or len(ids) > MAX_PAYLOADS or (ids.size and ids.dtype.kind not in "iu"):
            expected = f"shape (m,) of integers, m up to {MAX_PAYLOADS}"
            raise InvalidInput("levels", expected, f"shape {ids.shape} of {ids.dtype}")
        for level in ids.tolist():
            if not space.is_kept(level):
                raise LevelOutsideSpace("levels", "ids of levels in the table or waiting", f"level {level}")
        return [(level, space.packed(level), space.parent(level)) for level in ids.tolist()]

    def stats(self) -> dict[str, Any]:
        """Returns what has happened so far and where the sampling mass is.

        Returns:
            strategy (`module:function` for a score function); levels, levels_seen, seen_share; draws, replays,
            replay_share (0 before the first draw); in_flight (env slots that play a level now); pushes, steps (valid
            rows), episodes (finished), scores (applied); mean_score, max_score over seen levels (0 without any);
            effective_levels: exp of the entropy of `weights()`, the number of equally likely levels that would be as
            spread out (0 while nothing is seen). Of an open level space (0 for others): entered, evicted and rejected
            (scores of levels that did not enter), waiting (new levels kept until they have a score); levels is its
            capacity.
        """
        sampler, total = self._sampler, self._num_levels
        weights = self.weights()
        mass = weights[weights > 0]
        seen_scores = sampler.scores[sampler.seen]
        return {
            "strategy": self._scoring,
            "levels": total,
            "levels_seen": sampler.num_seen,
            "seen_share": sampler.num_seen / total,
            "draws": sampler.draws,
            "replay_share": self._counts.replays / max(sampler.draws, 1),
            "in_flight": self._assigner.in_flight.total(),
            **dataclasses.asdict(self._counts),
            "waiting": 0 if self._open_space is None else self._open_space.num_waiting,
            "mean_score": float(seen_scores.mean()) if len(seen_scores) else 0.0,
            "max_score": float(seen_scores.max()) if len(seen_scores) else 0.0,
            "effective_levels": math.exp(-float((mass * np.log(mass)).sum())) if len(mass) else 0.0,
        }

    # ---- the state as a value

    def state(self) -> dict[str, Any]:
        """Returns a copy of the whole state: plain values, numpy arrays and dataclasses of them.

        `Curriculum.from_state` gives a curriculum that goes on bit for bit as this one. Keys: config, sampler (scores,
        seen, last_drawn (N,) and draws), space (of an open one: its table and what waits), generator, held (holder ->
        slot -> level), open, ended, pools, counts, history (None unless the strategy looks back), score_function
        (pickled, None unless one was sent).
        """
        return copy.deepcopy(
            {
                "config": self.config.to_dict(),
                "sampler": self._sampler.state(),
                "space": {} if self._open_space is None else self._open_space.state(),
                "generator": self._rng.bit_generator.state,
                "held": self._assigner.in_flight.state(),
                "open": self._open,
                "ended": self._ended,
                "pools": self._pools,
                "counts": self._counts,
                "history": None if self._history is None else self._history.state(),
                "score_function": self._pickled,
            }
        )

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Curriculum:
        """Returns a curriculum in the state that `state()` gave.

        A score function in it is unpickled or imported, so that a state is to be trusted as code is.

        Raises:
            ConfigError: the configuration in it is not valid, or its score function cannot be imported.
            ScoreFunctionError: a function that was sent cannot be unpickled here.
        """
        state = copy.deepcopy(dict(state))
        curriculum = cls(Config.from_dict(state["config"]))
        if state["score_function"] is not None:
            curriculum.set_score_function(state["score_function"])
        if curriculum._history is not None:
            curriculum._history.restore(state["history"])
        curriculum._sampler = Sampler.from_state(state["sampler"], **_sampling(curriculum.config))
        curriculum._rng.bit_generator.state = state["generator"]
        if curriculum._open_space is not None:
            curriculum._open_space.restore(state["space"])
        curriculum._assigner = Assigner(
            curriculum.config, curriculum._space, curriculum._sampler, curriculum._rng, state["held"]
        )
        curriculum._open, curriculum._ended = state["open"], state["ended"]
        curriculum._pools, curriculum._counts = state["pools"], state["counts"]
        return curriculum


def _sampling(config: Config) -> dict[str, Any]:
    return {
        "transform": "constant" if config.strategy == "uniform" else config.transform,
        "temperature": config.temperature,
        "staleness_coef": config.staleness_coef,
        "staleness_temperature": config.staleness_temperature,
        "eps": config.eps,
        "evicts": isinstance(config.levels, str),
        "caps": cap_of(config) > 0,
    }


def _space(config: Config) -> LevelSpace:
    if config.levels == "unbounded":
        return UnboundedSpace(config.capacity)
    if isinstance(config.levels, str):
        return PayloadSpace(config.capacity, cap_of(config))
    return level_space(config.levels)


def _scores(scores: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float64]:
    given = as_array("scores", scores)
    if given.shape != shape or given.dtype.kind not in "fiu":
        raise InvalidInput("scores", f"shape {shape} of numbers", f"shape {given.shape} of {given.dtype}")
    if not (np.abs(given) <= MAX_MAGNITUDE).all():
        raise InvalidInput("scores", f"finite numbers up to {MAX_MAGNITUDE:g} in magnitude", f"{given!s:.80}")
    numbers: NDArray[np.float64] = given.astype(np.float64)
    return numbers


def _in_order(episodes: Episodes, *, finished_only: bool) -> NDArray[np.int64]:
    """Returns (m,) the episodes to be scored, in the order in which they ended (by column where that is the same)."""
    in_order: NDArray[np.int64] = np.lexsort((episodes.column, episodes.stop))
    return in_order[episodes.finished[in_order]] if finished_only else in_order


def _slots(k: int, slots: ArrayLike) -> list[int]:
    chosen = as_array("slots", slots)
    if chosen.ndim != 1 or chosen.dtype.kind not in "iu" or len(chosen) != k:
        raise InvalidInput("slots", f"{k} distinct ints", f"{slots!s:.80}")
    listed: list[int] = chosen.tolist()
    if len(set(listed)) != k:
        raise InvalidInput("slots", f"{k} distinct ints", f"{slots!s:.80}")
    return listed

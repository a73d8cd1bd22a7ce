"""The curriculum: a deterministic state machine that owns the level table and decides what is played next.

Commands in, results out; the same commands give the same state, bit for bit. It reads no clock, opens no file or socket
and draws only from the generator in its state. Every command checks all of its input before it changes anything: one
that raises has changed nothing. May be imported by the server around it, and by users who want it in their own process.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plr_client.errors import ConfigError, InvalidInput, NoLevels
from plr_client.levels import NEVER, NO_PARENT, Assignment, Assignments, Level, TableRows, check_k
from plr_client.protocol import MAX_PAYLOADS, pack_payloads, shown, unpack_payload
from plr_server.curriculum.arrays import as_array, ids_of, scores_of, slots_of
from plr_server.curriculum.assigner import Assigner, cap_of, sampling_options
from plr_server.curriculum.config import Config
from plr_server.curriculum.copying import copied
from plr_server.curriculum.sampling.sampler import Sampler
from plr_server.curriculum.scoring.rollouts import FIELDS, Rollout
from plr_server.curriculum.scoring.scorer import Scorer
from plr_server.curriculum.spaces import space_of
from plr_server.curriculum.spaces.open_space import OpenSpace, PayloadSpace
from plr_server.curriculum.table import NOBODY, LevelTable

STATE_FORMAT = 3
_FIELDS = frozenset(FIELDS)


class Curriculum:
    """Prioritized Level Replay over one level space.

    Args:
        config: what decides how it behaves.

    Raises:
        ConfigError: it is no `Config`, or its strategy names a function that cannot be imported in this process.

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
        if not isinstance(config, Config):
            raise ConfigError("config", "a Config", f"{config!r:.80}")
        self.config = config
        self._space = space_of(config.levels, config.capacity, cap_of(config))
        # What every draw would otherwise ask for anew.
        self._open_space = self._space if isinstance(self._space, OpenSpace) else None
        self._payloads = self._space if isinstance(self._space, PayloadSpace) else None
        self._num_levels = len(self._space)
        self._sampler = Sampler(self._num_levels, **sampling_options(config))
        self._rng = np.random.Generator(np.random.PCG64(config.seed))
        self._assigner = Assigner(config, self._space, self._sampler, self._rng)
        self._scorer = Scorer(config, self._num_levels)
        self._table = LevelTable(self._space, self._sampler, self._assigner.became_seen)
        self._counts = {"replays": 0, "pushes": 0, "steps": 0, "episodes": 0}  # so far

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
            InvalidInput: k or slots are not what they must be, or too many slots would play at once: 131 072 of a
                holder, 4 194 304 of all.
            NoLevels: the levels are payloads, and there is none.

        Source: arXiv 2010.03934, algorithm 2 and equations for P_replay.
        """
        levels, is_replay = self._assigner.assign(holder, self._slots(k, slots, holder))
        self._counts["replays"] += is_replay.count(True)
        if k == 1 and self._payloads is None:  # the fast way for one
            return [Assignment(levels[0], is_replay[0], is_replay[0] or not self.config.robust)]
        trains = is_replay if self.config.robust else repeat(True)
        payloads = repeat(None) if self._payloads is None else self._payloads_of(self._payloads, levels, packed=packed)
        return list(map(Assignment._make, zip(levels, is_replay, trains, payloads)))  # noqa: B905  repeat has no end

    def sample_arrays(
        self, k: int, *, slots: ArrayLike | None = None, holder: str = "", packed: bool = False
    ) -> Assignments:
        """Does as `sample`, and returns the same levels as arrays: for thousands at once."""
        levels, is_replay = self._assigner.assign_arrays(holder, self._slots(k, slots, holder))
        self._counts["replays"] += int(np.count_nonzero(is_replay))
        return Assignments(
            levels,
            is_replay,
            is_replay.copy() if self.config.robust else np.ones(len(levels), dtype=np.bool_),
            None if self._payloads is None else self._payloads_of(self._payloads, levels.tolist(), packed=packed),
        )

    def _slots(self, k: int, slots: ArrayLike | None, holder: str) -> Sequence[int]:
        """Returns the slots, checked, and that there are levels for them."""
        check_k(k)
        chosen, space = range(k) if slots is None else slots_of(slots, k), self._payloads
        if space is not None:
            if k > MAX_PAYLOADS:
                raise InvalidInput("k", f"an integer from 1 to {MAX_PAYLOADS}", repr(k))
            if not (space.num_entered or space.num_waiting):
                raise NoLevels
        self._assigner.in_flight.check(holder, chosen)
        return chosen

    @staticmethod
    def _payloads_of(space: PayloadSpace, levels: Iterable[int], *, packed: bool) -> list[Any]:
        return [space.packed(level) if packed else unpack_payload(space.packed(level)) for level in levels]

    @property
    def pushes(self) -> int:
        """How many pushes have changed the scores so far."""
        return self._counts["pushes"]

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

        Several episodes of one level in a block are applied one after the other, in the order in which they ended (by
        the id of the column where that is the same step).

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
        return self._apply(self._scorer.check(fields), source)

    def update_step(self, *, source: str = "", **fields: ArrayLike | None) -> int:
        """Pools one step of N env columns; the step that makes `num_steps` of them scores the block as `update` does.

        Args:
            source: who pushes.
            **fields: those of `update` without the axis T: (N,), logits (N, A).

        Returns:
            The number of episodes or parts scored: 0 until the block is full.

        Raises:
            InvalidInput: as `update`; a field has another name; or the columns, groups or fields differ from those of
                the block's first step.
            MissingField, LevelOutsideSpace: as `update`.
            StepsDropped: the block is full and cannot be scored, as where a score function raised; its steps, and what
                was under way in its columns, are dropped.
        """
        if not fields.keys() <= _FIELDS:
            unknown = next(name for name in fields if name not in _FIELDS)
            raise InvalidInput(unknown, f"a field among {', '.join(FIELDS)}", "an unknown one")
        step = self._scorer.check(fields, step=True)
        self._space.indices(step.levels if step.valid is None else step.levels[step.valid])
        block = self._scorer.pool(step, source)
        if block is None:
            return 0
        try:
            return self._apply(block, source)
        except Exception as error:  # whatever it is, these steps are out of the pool
            raise self._scorer.dropped(block, source, error) from error

    def _apply(self, rollout: Rollout, source: str) -> int:
        scored = self._scorer.look(rollout, source, self._space.indices)
        self._table.check(len(scored.levels), scored.num_outside)
        self._scorer.keep(scored, rollout.columns, source)  # from here on nothing can fail
        past = {level: self._num_levels + place for place, level in enumerate(scored.reserved.tolist())}
        self._score(scored.levels.tolist(), scored.scores, self._scorer.alpha, past)
        self._scorer.forget_reserved()
        self._table.played(scored.ended_levels, scored.returns)
        self._counts["pushes"] += 1
        self._counts["steps"] += scored.num_steps
        self._counts["episodes"] += scored.num_finished
        return len(scored.levels)

    def _score(
        self, levels: Iterable[int], scores: NDArray[np.float64], alpha: float, past: Mapping[int, int] = NOBODY
    ) -> None:
        self._table.apply(levels, scores, alpha, replace_past=self._scorer.replace_past, past=past)

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
        ids = ids_of("levels", levels)
        given = scores_of(scores, ids.shape)
        self._space.indices(ids)
        self._score(ids.tolist(), given, self.config.alpha)
        self._table.played(ids, np.full(len(ids), np.nan))
        self._counts["pushes"] += 1
        return len(ids)

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
        given = None if scores is None else scores_of(scores, (num,))
        space.check(packed, of.tolist(), wait=given is None)
        levels = []

        def interned() -> Iterable[int]:
            for payload, parent in zip(packed, of.tolist(), strict=True):
                levels.append(space.intern(payload, parent))
                yield levels[-1]

        if given is None:
            list(interned())
        else:
            self._score(interned(), given, self.config.alpha)
        return np.array([level if space.is_kept(level) else NO_PARENT for level in levels], dtype=np.int64)

    def _payload_space(self, what: str) -> PayloadSpace:
        if self._payloads is None:
            raise InvalidInput(what, 'a curriculum with levels="payloads"', "one of levels that are ids")
        return self._payloads

    def forget(self, source: str) -> None:
        """Drops the steps pooled for a source that will not push again."""
        self._scorer.forget(source)

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
            InvalidInput: it is no function, or the strategy is one that does not draw by score: uniform, random,
                sequential.
        """
        self._scorer.set_function(pickled)

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

    def table(self, begin: int = 0, stop: int | None = None) -> TableRows:
        """Returns rows of the level table, in the order of `scores`; for people to look at.

        Args:
            begin: the first row, 0 or more.
            stop: the row before which to stop, 0 or more; None for all. Rows that are not there are left out.

        Raises:
            InvalidInput: one of them is no such integer.
        """
        for name, row in (("begin", begin), ("stop", 0 if stop is None else stop)):
            if type(row) is not int or row < 0:
                raise InvalidInput(name, "a row, an integer from 0 on", shown(row))
        num = self._num_indices()
        at = slice(min(begin, num), num if stop is None else min(max(begin, stop), num))
        sampler, table = self._sampler, self._table
        plays, last_played = table.plays[at].copy(), table.last_played[at]
        return TableRows(
            ids=self._space.ids(np.arange(at.start, at.stop)),
            scores=sampler.scores[at].copy(),
            staleness=sampler.draws - sampler.last_drawn[at],
            seen=sampler.seen[at].copy(),
            plays=plays,
            last_returns=table.last_returns(at),
            since_played=np.where(plays > 0, sampler.draws - last_played, NEVER),
        )

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
        space, ids = self._payload_space("levels"), ids_of("levels", levels)
        if len(ids) > MAX_PAYLOADS:
            raise InvalidInput("levels", f"at most {MAX_PAYLOADS}", str(len(ids)))
        return space.described(ids.tolist())

    def counters(self) -> dict[str, int]:
        """Returns what can be told without a look at every level: those of `stats` that count.

        Returns:
            levels, levels_seen, draws, in_flight, levels_in_flight, most_in_flight, replays, pushes, steps, episodes,
            scores, entered, evicted, rejected, forgotten, waiting; each as in `stats`.
        """
        return {
            "levels": self._num_levels,
            "levels_seen": self._sampler.num_seen,
            "draws": self._sampler.draws,
            "in_flight": self._assigner.in_flight.total(),
            "levels_in_flight": len(self._assigner.in_flight.num_slots),
            "most_in_flight": max(self._assigner.in_flight.num_slots.values(), default=0),
            **self._counts,
            **self._table.counts(),
            "forgotten": self._scorer.forgotten,
            "waiting": 0 if self._open_space is None else self._open_space.num_waiting,
        }

    def stats(self) -> dict[str, Any]:
        """Returns what has happened so far and where the sampling mass is.

        Returns:
            strategy (`module:function` for a score function); levels, levels_seen, seen_share; draws, replays,
            replay_share (0 before the first draw); in_flight (env slots that play a level now), levels_in_flight (how
            many different levels they play), most_in_flight (how many of them play the same one, at most); pushes,
            steps (valid rows), episodes (finished), scores (applied); mean_score, max_score over seen levels (0 without
            any); effective_levels: exp of the entropy of `weights()`, the number of equally likely levels that would be
            as spread out (0 while nothing is seen); forgotten: under partial="stitch", episodes whose steps were given
            up before they ended, because their column was silent for 1 000 pushes or half a GiB was open. Of an open
            level space (0 for others): entered, evicted and rejected (scores of levels that did not enter), waiting
            (new levels kept until they have a score); levels is its capacity.
        """
        sampler = self._sampler
        weights = self.weights()
        mass = weights[weights > 0]
        seen_scores = sampler.scores[sampler.seen]
        return {
            "strategy": self._scorer.scoring,
            **self.counters(),
            "seen_share": sampler.num_seen / self._num_levels,
            "replay_share": self._counts["replays"] / max(sampler.draws, 1),
            "mean_score": float(seen_scores.mean()) if len(seen_scores) else 0.0,
            "max_score": float(seen_scores.max()) if len(seen_scores) else 0.0,
            "effective_levels": math.exp(-float((mass * np.log(mass)).sum())) if len(mass) else 0.0,
        }

    # ---- the state as a value

    def state(self, reuse: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Returns a copy of the whole state, plain values and numpy arrays; `from_state` goes on from it bit for bit.

        Args:
            reuse: a state that this returned before, and that nobody looks at any more. Its arrays are filled anew: to
                copy ten million levels takes some 30 ms, to be given the memory for them may take a second.

        Returns:
            * format (2), the version of this layout.
            * config: the fields of the configuration, as `Config.to_dict` gives them.
            * generator: of the draws, as numpy gives it.
            * sampler: scores float64, seen bool, last_drawn int64, each (N,) by index, and draws, so far.
            * space: of an open one, its table, what waits to be handed out, and when new levels were drawn; else empty.
            * held: holder -> slot -> level, what is in flight.
            * scorer: under_way (what the episodes that a block's end cut have earned, by source), open (their steps, by
              source, under "stitch"), pools (steps that wait to be a block, by source), history (best returns or
              windows by index; None unless the strategy looks back), function (pickled; None unless one was sent),
              forgotten.
            * counts: replays, pushes, steps, episodes, scores, entered, evicted, rejected, so far.
            * table: plays int32, last_played int64 and last_return float64, each (N,) by index.

            Of a closed space an index is a level's position in `levels`; of an open one its place in the table.
        """
        state: dict[str, Any] = copied(
            {
                "format": STATE_FORMAT,
                "config": self.config.to_dict(),
                "generator": self._rng.bit_generator.state,
                "sampler": self._sampler.state(),
                "space": {} if self._open_space is None else self._open_space.state(),
                "held": self._assigner.in_flight.state(),
                "scorer": self._scorer.state(),
                "counts": self._counts | self._table.counts(),
                "table": self._table.state(),
            },
            reuse,
        )
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Curriculum:
        """Returns a curriculum in the state that `state()` gave.

        A score function in it is unpickled or imported, so that a state is to be trusted as code is.

        Raises:
            InvalidInput: the state has another format.
            ConfigError: the configuration in it is not valid, or its score function cannot be imported.
            ScoreFunctionError: a function that was sent cannot be unpickled here.
        """
        if state.get("format") != STATE_FORMAT:
            expected = f"format {STATE_FORMAT}, this version's (go on with the version that wrote it, or begin anew)"
            raise InvalidInput("state", expected, f"format {state.get('format')!s:.20}")
        state = copied(state)
        curriculum = cls(Config.from_dict(state["config"]))
        curriculum._scorer.restore(state["scorer"])
        curriculum._sampler = Sampler.from_state(state["sampler"], **sampling_options(curriculum.config))
        curriculum._rng.bit_generator.state = state["generator"]
        if curriculum._open_space is not None:
            curriculum._open_space.restore(state["space"])
        curriculum._assigner = Assigner(
            curriculum.config, curriculum._space, curriculum._sampler, curriculum._rng, state["held"]
        )
        curriculum._table = LevelTable(curriculum._space, curriculum._sampler, curriculum._assigner.became_seen)
        curriculum._table.restore(state["counts"], state["table"])
        curriculum._counts = {name: state["counts"][name] for name in curriculum._counts}
        return curriculum

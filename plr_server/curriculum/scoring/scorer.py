"""The scorer: how what a trainer pushes becomes scores. It owns all that waits to be scored and all that is remembered.

Used by the state machine. A push is taken in two steps: `look` computes everything and may raise, having changed
nothing; `keep` takes over what is to be kept and cannot fail. No IO, no generator.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from plr_client.errors import InvalidInput, PlrError, StepsDropped
from plr_server.curriculum.arrays import Bools, Floats, Ints
from plr_server.curriculum.config import Config
from plr_server.curriculum.scoring.episodes import Episodes, find_episodes
from plr_server.curriculum.scoring.functions import ScoreFunction, import_function, score_with, unpickle_function
from plr_server.curriculum.scoring.groups import NO_PARTS, ScoredEpisodes, joined, pool
from plr_server.curriculum.scoring.history import History, Past
from plr_server.curriculum.scoring.pools import StepPool, bytes_of
from plr_server.curriculum.scoring.pools import joined as joined_steps
from plr_server.curriculum.scoring.rollouts import MAX_LOGITS, MAX_STEPS, Rollout, check
from plr_server.curriculum.scoring.stitching import OpenEpisodes, Stitched
from plr_server.curriculum.scoring.strategies import FUNCTION, Strategy, strategy_named
from plr_server.curriculum.scoring.under_way import Carried, UnderWay
from plr_server.curriculum.spaces.open_space import NOT_IN_TABLE

MAX_OPEN_BYTES = 2**29  # of open episodes, of all sources
MAX_POOLED_BYTES = 2**31  # of the blocks that steps pushed one by one will make, of all sources
MAX_UNDER_WAY = 2**22  # env columns, of all sources; those of the source that has most go first

NOBODY = np.zeros(0, dtype=np.int64)

IndicesOf = Callable[[Ints], Ints]  # ids (m,) to indices (m,), NOT_IN_TABLE for none; raises LevelOutsideSpace


@dataclasses.dataclass(frozen=True, slots=True)
class ScoredBlock:
    """What a block comes to: scores to be applied, and what is to be kept once they are.

    Attributes:
        levels: (m,) the ids of the levels, in the order in which the scores apply.
        scores: (m,).
        reserved: (k,) the ids of the levels whose past has a place beyond the table in the history, in that order.
        num_outside: how many of them are not in the table.
        num_steps: valid steps of the block.
        ended_levels: (e,) the ids of the levels of the episodes that ended, in that order, those of agents one by one.
        returns: (e,) what each returned, undiscounted; NaN where rewards were not pushed.
        num_finished: episodes that ended, agents of one env counted once.
        stitched: its episodes.
        carried: what they earned.
        past: what came before them; None where the strategy does not look back.
        ended: parts of agents whose groups play on.
    """

    levels: Ints
    scores: Floats
    reserved: Ints
    num_outside: int
    num_steps: int
    ended_levels: Ints
    returns: Floats
    num_finished: int
    stitched: Stitched
    carried: Carried
    past: Past | None
    ended: ScoredEpisodes


class Scorer:
    """Scores rollouts by the configured strategy, or by a function that was sent in its place.

    Args:
        config: what decides how.
        num_levels: how many levels have an index.

    Attributes:
        scoring: the name of the strategy, or of the function that was sent.
        history: what the strategy remembers of levels; None where it does not look back.
        forgotten: how many open episodes were given up so far, because too much was open or their column was silent
            for too long.

    Raises:
        ConfigError: the strategy names a function that cannot be imported in this process.
    """

    def __init__(self, config: Config, num_levels: int) -> None:
        self._config, self._num_levels = config, num_levels
        self._stitches = config.partial == "stitch"
        self.scoring = config.strategy
        self._strategy = strategy_named(config.strategy)
        self._function: ScoreFunction | None = import_function(config.strategy) if ":" in config.strategy else None
        self._pickled: bytes | None = None  # the function that was sent
        self.history = self._new_history()
        self.forgotten = 0
        self._under_way: dict[str, UnderWay] = {}  # by source
        self._num_under_way = 0  # columns, of all sources
        self._open: dict[str, OpenEpisodes] = {}  # by source, under "stitch"
        self._pools: dict[str, StepPool] = {}  # by source

    def _new_history(self) -> History | None:
        remembers = self._strategy.remembers
        if remembers is None:
            return None
        return History(self._num_levels, remembers, window=self._config.window)

    @property
    def alpha(self) -> float:
        """The weight of a new score against the old one; 1 for a strategy whose window is its memory."""
        return self._config.alpha if self._strategy.per_window is None else 1.0

    def check(self, fields: Mapping[str, ArrayLike | None], *, step: bool = False) -> Rollout:
        """Turns what was pushed into a rollout; `step`: of one step, (N,).

        Raises:
            InvalidInput, MissingField: as `plr_server.Curriculum.update`.
        """
        if self.scoring == "external":
            raise InvalidInput("push", "push_scores under the strategy external", "a rollout")
        return check(fields, self.scoring, needs=self._strategy.needs, takes=self._strategy.takes, step=step)

    def look(self, rollout: Rollout, source: str, indices_of: IndicesOf) -> ScoredBlock:
        """Scores the episodes of a block; changes nothing.

        Raises:
            InvalidInput, LevelOutsideSpace, ScoreFunctionError: as `plr_server.Curriculum.update`.
        """
        config, strategy = self._config, self._strategy
        block, opened = find_episodes(rollout), self._open.get(source)
        carried = (self._under_way.get(source) or UnderWay()).look(block, rollout.columns)
        if "rewards" not in (*strategy.needs, *strategy.takes):
            block = dataclasses.replace(block, rewards=None)  # of no use to what follows
        stitched = Stitched(block, block, {}) if opened is None else opened.stitch(block, rollout.columns)
        episodes = stitched.whole
        indices = indices_of(episodes.level)
        finished_only = self._stitches or strategy.per_window is not None
        in_order = _in_order(rollout.columns[episodes.column], episodes.stop, episodes.finished, only=finished_only)
        outside = indices == NOT_IN_TABLE
        # Where levels enter, others leave, and those may come back with a later episode of the same block.
        reserved = np.unique(episodes.level) if outside.any() else NOBODY
        past = None
        if self.history is not None:
            self.history.reserve(len(reserved))
            places = np.where(outside, self._num_levels + reserved.searchsorted(episodes.level), indices)
            past = self.history.look_back(
                episodes,
                order=in_order,
                indices=places[in_order],
                returns=carried.returns,
                steps_before=np.zeros_like(carried.steps_before) if self._stitches else carried.steps_before,
            )
        mean, highest = self._score(episodes, past)
        that_ended = in_order[episodes.finished[in_order]]
        level, ended = episodes.level, NO_PARTS
        num_finished = int(episodes.finished.sum())
        if rollout.groups is not None and strategy.per_window is None:
            parts = _parts(episodes, mean, highest)
            if opened is not None:
                parts = joined(parts, _absent(opened, block, rollout.columns))
            pooled, ended = pool(parts, rollout.groups, NO_PARTS if opened is None else opened.ended)
            in_order = _in_order(pooled.column, pooled.stop, pooled.finished, only=finished_only)
            level, mean, highest = pooled.level, pooled.mean, pooled.max
            num_finished = int(pooled.finished.sum())
        elif opened is not None:
            ended = opened.ended
        scores = (1.0 - config.max_score_coef) * mean + config.max_score_coef * highest
        return ScoredBlock(
            levels=level[in_order],
            scores=scores[in_order],
            reserved=reserved,
            num_outside=len(np.unique(episodes.level[outside])),
            num_steps=int(block.steps.sum()),
            ended_levels=episodes.level[that_ended],
            returns=carried.returns[that_ended],
            num_finished=num_finished,
            stitched=stitched,
            carried=carried,
            past=past,
            ended=ended,
        )

    def _score(self, episodes: Episodes, past: Past | None) -> tuple[Floats, Floats]:
        gamma, gae_lambda = self._config.gamma, self._config.gae_lambda
        if self._function is None:
            return scores_of(self._strategy, episodes, gamma=gamma, gae_lambda=gae_lambda, past=past)
        assert past is not None  # noqa: S101  the history was made for the function
        return score_with(self._function, self.scoring, episodes, past=past, gamma=gamma, gae_lambda=gae_lambda)

    def keep(self, scored: ScoredBlock, columns: Ints, source: str) -> None:
        """Takes over what `look` found; `forget_reserved` has to follow once the scores are applied."""
        under_way = self._under_way.setdefault(source, UnderWay())
        self._num_under_way -= len(under_way)
        under_way.keep(scored.carried)
        self._num_under_way += len(under_way)
        while self._num_under_way > MAX_UNDER_WAY:
            self._forget_under_way(max(self._under_way, key=lambda each: len(self._under_way[each])))
        if self.history is not None and scored.past is not None:
            self.history.remember(scored.past)
        if self._stitches:
            opened = self._open.setdefault(source, OpenEpisodes())
            self.forgotten += opened.keep(scored.stitched, columns, scored.ended)
            while sum(each.num_bytes for each in self._open.values()) > MAX_OPEN_BYTES:
                max(self._open.values(), key=lambda each: each.num_bytes).give_up_first()
                self.forgotten += 1

    def _forget_under_way(self, source: str) -> None:
        self._num_under_way -= len(self._under_way.pop(source, ()))

    def replace_past(self, index: int, by: int | None) -> None:
        """Gives a level's place to another one, whose past stands at the index `by`, or nowhere."""
        if self.history is not None:
            self.history.replace(index, by)

    def forget_reserved(self) -> None:
        """Drops what is remembered of levels that did not enter the table."""
        if self.history is not None:
            self.history.clear_reserved()

    def pool(self, step: Rollout, source: str) -> Rollout | None:
        """Adds a step to those that wait; returns the block once there are `num_steps` of them, and begins anew.

        Raises:
            InvalidInput: it does not fit the steps before it, so many columns make too large a block, or too much waits
                already.
        """
        num_steps, (num_columns, _) = self._config.num_steps, step.dones.shape
        num_numbers = 0 if step.logits is None else step.logits.size * num_steps
        if num_columns * num_steps > MAX_STEPS or num_numbers > MAX_LOGITS:
            expected = f"at most {MAX_STEPS} steps and {MAX_LOGITS} logits in a block of num_steps = {num_steps}"
            raise InvalidInput("levels", expected, f"{num_columns} columns")
        waiting = self._pools.get(source)
        if waiting is None:
            waiting, num_bytes = StepPool(), num_steps * bytes_of(step)
            pooled = num_steps * sum(bytes_of(each.steps[0]) for each in self._pools.values())
            if pooled and pooled + num_bytes > MAX_POOLED_BYTES:
                expected = f"{MAX_POOLED_BYTES} bytes at most of blocks that wait for steps, of all clients"
                raise InvalidInput("levels", expected, f"one of {num_bytes} more, beside {pooled}")
        waiting.check(step)
        waiting.append(step)
        if len(waiting.steps) < num_steps:
            self._pools[source] = waiting
            return None
        self._pools.pop(source, None)
        return joined_steps(waiting.steps)

    def dropped(self, block: Rollout, source: str, reason: Exception) -> StepsDropped:
        """Returns the error of a pooled block that cannot be scored: it is gone, with the episodes of its columns."""
        if source in self._open:
            self._open[source].drop(block.columns)
        if (under_way := self._under_way.get(source)) is not None:
            self._num_under_way -= len(under_way)
            under_way.drop(block.columns)
            self._num_under_way += len(under_way)
        told = str(reason) if isinstance(reason, PlrError) else type(reason).__name__
        return StepsDropped(block.dones.shape[1], told)

    def forget(self, source: str) -> None:
        """Drops what waits for a source that will not push again."""
        self._open.pop(source, None)
        self._pools.pop(source, None)
        self._forget_under_way(source)

    def set_function(self, pickled: bytes) -> None:
        """Scores with a function from now on: see `plr_server.Curriculum.set_score_function`.

        Raises:
            InvalidInput: it is no function, or the configured strategy does not draw by score.
            ScoreFunctionError: it cannot be unpickled here.
        """
        if self.scoring in ("random", "sequential", "uniform"):
            expected = "a curriculum that draws by score (start it with another strategy)"
            raise InvalidInput("function", expected, f"one of the strategy {self.scoring}")
        before = self._strategy
        self.scoring, self._function = unpickle_function(pickled)
        self._strategy, self._pickled = FUNCTION, pickled
        if before.remembers != FUNCTION.remembers:
            self.history = self._new_history()
            self._under_way.clear()
            self._num_under_way = 0
        if before is not FUNCTION:
            self._open.clear()
            self._pools.clear()

    def state(self) -> dict[str, Any]:
        """Returns what waits and what is remembered; the caller copies it.

        under_way, open, pools: by source; history: None unless the strategy looks back; function: pickled, None unless
        one was sent; forgotten.
        """
        return {
            "under_way": {source: each.state() for source, each in self._under_way.items()},
            "open": {source: each.state() for source, each in self._open.items()},
            "pools": {source: each.state() for source, each in self._pools.items()},
            "history": None if self.history is None else self.history.state(),
            "function": self._pickled,
            "forgotten": self.forgotten,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to what `state` gave; the arrays become its own.

        Raises:
            ScoreFunctionError: a function that was sent cannot be unpickled here.
        """
        if state["function"] is not None:
            self.set_function(state["function"])
        if self.history is not None:
            self.history.restore(state["history"])
        self._under_way = {source: UnderWay.from_state(each) for source, each in state["under_way"].items()}
        self._num_under_way = sum(map(len, self._under_way.values()))
        self._open = {source: OpenEpisodes.from_state(each) for source, each in state["open"].items()}
        self._pools = {source: StepPool.from_state(each) for source, each in state["pools"].items()}
        self.forgotten = state["forgotten"]


def scores_of(
    strategy: Strategy, episodes: Episodes, *, gamma: float, gae_lambda: float, past: Past | None = None
) -> tuple[Floats, Floats]:
    """Scores episodes by a strategy's rule.

    Args:
        strategy: the rule.
        episodes: E of them, with the fields that the strategy needs.
        gamma: discount, 0 to 1.
        gae_lambda: lambda of the advantages, 0 to 1.
        past: what `History.look_back` found, for a strategy that remembers something.

    Returns:
        Mean (E,) and maximum (E,) of each episode's step scores. Under a strategy that looks at a window both are its
        value, and 0 where the episode is not finished.

    Source: arXiv 2010.03934, section 3.1 and table 1. Unlike the peers, parts cut by the block's end average over
    exactly their own rows, and an episode of one step has a score.
    """
    if strategy.per_window is not None:
        assert past is not None and past.windows is not None, "the history was made for it"  # noqa: S101, PT018
        values = np.zeros(len(episodes))
        values[past.order] = strategy.per_window(past.windows.values, past.windows.filled)
        return values, values
    if strategy.per_best is not None:
        assert past is not None and past.best is not None, "the history was made for it"  # noqa: S101, PT018
        assert episodes.values is not None, "the rollout was checked against its needs"  # noqa: S101
        grounded = np.where(np.isneginf(past.best), past.returns, past.best)
        scores = strategy.per_best(np.repeat(grounded, episodes.steps) - episodes.values)
    elif strategy.per_step is not None:
        scores = strategy.per_step(episodes, gamma, gae_lambda)
    else:
        ones = np.ones(len(episodes))
        return ones, ones
    if not len(scores):
        return scores, scores
    begin = episodes.begin
    return np.add.reduceat(scores, begin) / episodes.steps, np.maximum.reduceat(scores, begin)


def _in_order(column: Ints, stop: Ints, finished: Bools, *, only: bool) -> Ints:
    """Returns (m,) the episodes to be scored, in the order in which they ended, by column where that is the same."""
    in_order: Ints = np.lexsort((column, stop))
    return in_order[finished[in_order]] if only else in_order


def _parts(episodes: Episodes, mean: Floats, highest: Floats) -> ScoredEpisodes:
    return ScoredEpisodes(
        level=episodes.level,
        column=episodes.column,
        start=episodes.start,
        stop=episodes.stop,
        finished=episodes.finished,
        steps=episodes.steps,
        mean=mean,
        max=highest,
    )


def _absent(opened: OpenEpisodes, block: Episodes, columns: Ints) -> ScoredEpisodes:
    """Returns parts without a step for the open episodes whose columns have no valid row in this block.

    Their agents play on: their groups are not finished.
    """
    present, levels, at = set(block.column.tolist()), [], []
    for n, column in enumerate(columns.tolist()):
        if n not in present and (level := opened.level_of(column)) is not None:
            levels.append(level)
            at.append(n)
    count = len(at)
    return ScoredEpisodes(
        level=np.array(levels, dtype=np.int64),
        column=np.array(at, dtype=np.int64),
        start=np.full(count, -1),
        stop=np.zeros(count, dtype=np.int64),
        finished=np.zeros(count, dtype=bool),
        steps=np.zeros(count, dtype=np.int64),
        mean=np.zeros(count),
        max=np.full(count, -np.inf),
    )

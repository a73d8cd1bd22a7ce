"""Which level each env slot plays next: replay or new, and which one; by scores, by what is unseen and by the cap.

Used by the state machine, which checks what it is asked. No IO; draws from the generator it is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plr_server.curriculum.arrays import Bools, Ints
from plr_server.curriculum.config import Config
from plr_server.curriculum.in_flight import InFlight
from plr_server.curriculum.sampling.sampler import OUTSIDE, REPLAY, Sampler
from plr_server.curriculum.sampling.unseen import Bag, IndexSet, UnseenLevels
from plr_server.curriculum.spaces.level_space import LevelSpace
from plr_server.curriculum.spaces.open_space import NOT_IN_TABLE, OpenSpace, PayloadSpace, UnboundedSpace

BASELINES = ("random", "sequential")  # strategies that draw from all levels, seen or not, and know no cap


class Assigner:
    """Assigns levels to slots, and keeps who plays what.

    Replay or new: what the configured schedule says, while there are both a seen and an unseen level that fewer slots
    play than `max_in_flight` allows; where there is only one kind, that one; where there is neither, the cap yields and
    the schedule decides as if there were none. A replay is drawn by the sampler, out of the seen levels below the cap.
    A new one is drawn uniformly, from the unseen levels that nobody plays; where there is none, from those below the
    cap; where there is none, from all. The baselines draw from all levels.

    Args:
        config: of the curriculum.
        space: its levels; told when it is asked for new ones.
        sampler: made with `caps` where `cap_of` is not 0; what is drawn counts there.
        rng: the generator of every draw.
        held: holder -> slot -> level, what is in flight at first.
    """

    def __init__(
        self,
        config: Config,
        space: LevelSpace,
        sampler: Sampler,
        rng: np.random.Generator,
        held: Mapping[str, Mapping[int, int]] | None = None,
    ) -> None:
        self._config, self._space, self._sampler, self._rng = config, space, sampler, rng
        self._num_levels, self._cap = len(space), cap_of(config)
        self._baseline = config.strategy if config.strategy in BASELINES else None
        self._open_space = space if isinstance(space, OpenSpace) else None
        self._seeds = space if isinstance(space, UnboundedSpace) else None  # of which there is always an unseen one
        if isinstance(space, PayloadSpace):
            self._unseen = space.unseen  # by id
        elif self._seeds is not None:
            self._unseen = UnseenLevels(Bag, self._cap)  # none that is kept
        else:
            self._unseen = UnseenLevels(lambda: IndexSet(len(space)), self._cap)  # by index
            self._unseen.remove_all(np.flatnonzero(sampler.seen))
        self.in_flight = InFlight(held)
        self._update(self.in_flight.num_slots)
        self._only_replays = self._has_only_replays()

    def _has_only_replays(self) -> bool:
        """Returns whether every level is a replay from now on, and who plays what decides nothing."""
        is_closed = self._baseline is None and self._open_space is None
        return is_closed and not self._cap and not self._unseen.every

    def assign(self, holder: str, slots: Sequence[int]) -> tuple[list[int], list[bool]]:
        """Returns the level that each slot of a holder plays next, and whether it is a replay.

        What the slots played before is over first. There must be a level.
        """
        ended = self.in_flight.end(holder, slots)
        if self._only_replays and len(slots) == 1:  # the fast way for one
            levels = [self._space.id_of(self._sampler.replay(self._rng))]
            self.in_flight.begin(holder, slots, levels)
            return levels, [True]
        self._update(ended)
        if not self._cap:
            return self._assign(holder, slots)
        levels, is_replay = [], []
        for slot in slots:  # what is drawn decides what can be drawn next
            some, some_replayed = self._assign(holder, (slot,))
            self._update(some)
            levels += some
            is_replay += some_replayed
        return levels, is_replay

    def assign_arrays(self, holder: str, slots: Sequence[int]) -> tuple[Ints, Bools]:
        """Does as `assign`, and returns the same as arrays."""
        if not self._only_replays:
            levels, is_replay = self.assign(holder, slots)
            return np.array(levels, dtype=np.int64), np.array(is_replay)
        ids = self._space.ids(self._sampler.replay_many(self._rng, len(slots)))
        self.in_flight.end(holder, slots)
        self.in_flight.begin(holder, slots, ids.tolist())
        return ids, np.ones(len(ids), dtype=np.bool_)

    def release(self, holder: str) -> None:
        """Takes back every level that the holder's slots play: it is gone."""
        self._update(self.in_flight.release(holder))

    def became_seen(self, indices: NDArray[np.int64]) -> None:
        """Says that levels, (m,) indices, which were unseen, are seen now."""
        if self._open_space is None:
            self._unseen.remove_all(indices)
            self._only_replays = self._has_only_replays()
        if self._cap:
            self._update(self._space.ids(indices).tolist())

    def _update(self, levels: Iterable[int]) -> None:
        """Sees to it that levels are drawn as suits how many slots play them now."""
        if not (self._cap or self._unseen.every):
            return
        num_slots = self.in_flight.num_slots
        for level in levels:
            index = self._space.index_of(level)
            if index == NOT_IN_TABLE or not self._sampler.seen[index]:
                self._unseen.played_by(index if self._open_space is None else level, num_slots[level])
            elif self._cap:
                self._sampler.set_drawable(index, num_slots[level] < self._cap)

    def _assign(self, holder: str, slots: Sequence[int]) -> tuple[list[int], list[bool]]:
        """Does as `assign`, once the slots play nothing; with a cap, for one slot."""
        picks, new_levels = self._picks(len(slots))
        only_drawable = not self._cap or self._sampler.num_drawable > 0
        indices = self._sampler.draw(self._rng, picks, only_drawable=only_drawable)
        if new_levels:
            new = iter(new_levels)
            levels = [next(new) if index == OUTSIDE else self._space.id_of(index) for index in indices]
        elif len(indices) == 1:
            levels = [self._space.id_of(indices[0])]
        else:
            levels = self._space.ids(np.array(indices, dtype=np.int64)).tolist()
        self.in_flight.begin(holder, slots, levels)
        if self._baseline is not None:
            return levels, [bool(self._sampler.seen[index]) for index in indices]
        return levels, [pick == REPLAY for pick in picks]

    def _picks(self, k: int) -> tuple[list[int], list[int]]:
        """Decides for k levels what the sampler is to do.

        Returns:
            What `Sampler.draw` takes, and the ids of the new levels of an open space, which are OUTSIDE to the sampler.
        """
        if self._baseline is not None:
            return self._baseline_picks(k), []
        replay_prob = self._replay_prob()
        if replay_prob >= 1.0:
            return [REPLAY] * k, []
        rng, draws = self._rng, self._sampler.draws
        picks: list[int] = []
        new_levels: list[int] = []
        new_seeds: set[int] = set()  # of these k
        for place in range(k):
            if replay_prob > 0.0 and rng.random() < replay_prob:
                picks.append(REPLAY)
            elif self._open_space is None:
                picks.append(self._unseen.take(rng.random()))
            else:
                level = (
                    self._unseen.take(rng.random()) if self._seeds is None else self._new_seed(self._seeds, new_seeds)
                )
                picks.append(OUTSIDE)
                new_levels.append(level)
                self._open_space.drawn(level, draws + place + 1)
        return picks, new_levels

    def _baseline_picks(self, k: int) -> list[int]:
        total, draws = self._num_levels, self._sampler.draws
        if self._baseline == "random":
            return [int(self._rng.random() * total) for _ in range(k)]
        return [place % total for place in range(draws, draws + k)]

    def _new_seed(self, seeds: UnboundedSpace, new_seeds: set[int]) -> int:
        """Returns a seed that is not in the table, not in flight, and none of `new_seeds`, where it is put."""
        level = seeds.new_level(self._rng)
        while level in self.in_flight.num_slots or level in new_seeds:
            level = seeds.new_level(self._rng)
        new_seeds.add(level)
        return level

    def _replay_prob(self) -> float:
        """Returns the probability that the next level is a seen one."""
        unseen, sampler, config = self._unseen, self._sampler, self._config
        if self._seeds is None and not unseen.every:
            return 1.0
        can_replay, can_be_new = sampler.num_drawable > 0, self._seeds is not None or len(unseen.below_cap) > 0
        if not (can_replay or can_be_new):  # the cap yields
            can_replay, can_be_new = sampler.num_seen > 0, True
        if not can_be_new:
            return 1.0
        if not can_replay:
            return 0.0
        seen_share = sampler.num_seen / self._num_levels
        if config.replay_schedule == "proportionate":
            return min(seen_share, config.replay_prob)
        return config.replay_prob if seen_share >= config.min_fill_ratio else 0.0


def cap_of(config: Config) -> int:
    """Returns how many slots may play one level, 0 for any number."""
    return 0 if config.strategy in BASELINES else config.max_in_flight


def sampling_options(config: Config) -> dict[str, Any]:
    """Returns the keyword arguments of the `Sampler` that a curriculum of this configuration draws with."""
    return {
        "transform": "constant" if config.strategy == "uniform" else config.transform,
        "temperature": config.temperature,
        "staleness_coef": config.staleness_coef,
        "staleness_temperature": config.staleness_temperature,
        "eps": config.eps,
        "evicts": isinstance(config.levels, str),
        "caps": cap_of(config) > 0,
    }

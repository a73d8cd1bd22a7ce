"""Our level table as levels.py measures it; see contender.py. Not run by hand."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from contender import BATCH, GAMMA, Block, rollout_block, serve, time_of

from plr_client import LevelClient
from plr_server import Config, Curriculum, launch
from plr_server.curriculum.sampling.sampler import REPLAY, Sampler
from plr_server.curriculum.scoring.scorer import Scorer

SEEN_AT_ONCE = 100_000  # levels that become seen in one command


class Ours:
    """The curriculum, in this process."""

    def __init__(self, num_levels: int) -> None:
        self._num_levels = num_levels
        self._curriculum = Curriculum(config(num_levels))

    def see_all(self, rng: np.random.Generator) -> None:
        for begin in range(0, self._num_levels, SEEN_AT_ONCE):
            levels = np.arange(begin, min(begin + SEEN_AT_ONCE, self._num_levels))
            self._curriculum.update_scores(levels, rng.random(len(levels)))

    def draw(self, k: int) -> None:
        self._curriculum.sample(k)

    def prepared(self, block: Block) -> Callable[[], object]:
        return lambda: self._curriculum.update(**block)


class BareSamplers:
    """The sampler alone, without the curriculum's assignments and bookkeeping; one for each number of levels."""

    def __init__(self) -> None:
        self._samplers: dict[int, Sampler] = {}
        self._rng = np.random.default_rng(0)

    def draw(self, num_levels: int) -> float:
        return self._time_of(num_levels, 1)

    def batch(self, num_levels: int) -> float:
        return self._time_of(num_levels, BATCH)

    def _time_of(self, num_levels: int, k: int) -> float:
        if num_levels not in self._samplers:
            self._samplers[num_levels] = self._make(num_levels)
        sampler, picks = self._samplers[num_levels], [REPLAY] * k
        return time_of(lambda: sampler.draw(self._rng, picks)) / k

    def _make(self, num_levels: int) -> Sampler:
        sampler = Sampler(
            num_levels,
            transform="rank",
            temperature=0.1,
            staleness_coef=0.1,
            staleness_temperature=1.0,
            eps=0.05,
        )
        sampler.set_scores(np.arange(num_levels), self._rng.random(num_levels))
        sampler.draw(self._rng, [REPLAY] * BATCH)
        return sampler


def config(num_levels: int) -> Config:
    return Config(levels=range(num_levels), strategy="value_l1", transform="rank", temperature=0.1, staleness_coef=0.1)


def scoring(num_levels: int) -> float:
    """Returns seconds of a block's advantages, episodes and their means."""
    scorer = Scorer(config(num_levels), num_levels)
    rollout = scorer.check(rollout_block(num_levels, np.random.default_rng(0)))
    return time_of(lambda: scorer.look(rollout, "", lambda levels: levels))


def numpy_pass(num_levels: int) -> float:
    """Returns seconds of one pass over the same arrays: a one-step error of each step, nothing else."""
    block = rollout_block(num_levels, np.random.default_rng(0))
    values, rewards = block["values"].astype(np.float64), block["rewards"].astype(np.float64)
    going_on = ~block["dones"]
    return time_of(lambda: rewards + GAMMA * values * going_on - values)


def server(num_levels: int) -> float:
    """Returns wall seconds from nothing to the first level that a server process hands out."""
    started = time.perf_counter()
    with launch(config(num_levels)) as running, LevelClient(running.address) as client:
        client.next()
        return time.perf_counter() - started


if __name__ == "__main__":
    bare = BareSamplers()
    serve(
        Ours,
        {
            "sampler draw": bare.draw,
            "sampler batch": bare.batch,
            "scoring": scoring,
            "numpy pass": numpy_pass,
            "server": server,
        },
    )

"""What levels.py runs in a process of its own: one level table, measured on request. Used by ours and by the peers.

Needs only numpy and the standard library, so that it runs in every peer's environment. Requests are JSON lines on
standard input, [measure, number of levels]; each answer is one number on a line, on the pipe named by the first
argument (standard output belongs to the libraries). Imports nothing of this project.

Times are CPU times of the process: nothing measured here waits for anything, so that on an idle machine they are the
wall times, and on a busy one still nearly those.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

NUM_STEPS, NUM_COLUMNS = 256, 64
GAMMA, GAE_LAMBDA = 0.999, 0.95
BATCH = 64
AT_LEAST_S = 0.03  # one measurement goes on for this long, and for one call at least

Block = dict[str, "np.ndarray[Any, Any]"]


class Contender(Protocol):
    """A level table under rank, temperature 0.1, staleness_coef 0.1, strategy value_l1, for 64 env columns."""

    def see_all(self, rng: np.random.Generator) -> None:
        """Gives every level a score, uniform in 0..1."""

    def draw(self, k: int) -> None:
        """Draws the next k levels."""

    def prepared(self, block: Block) -> Callable[[], object]:
        """Gives a block the library's own form; returns what scores it."""


def serve(make: Callable[[int], Contender], more: Mapping[str, Callable[[int], float]] | None = None) -> None:
    """Answers requests until standard input ends.

    Args:
        make: number of levels to a table of them, none seen.
        more: further measures, by name.
    """
    rng = np.random.default_rng(0)
    tables: dict[int, Contender] = {}

    def table(num_levels: int) -> Contender:
        if num_levels not in tables:
            tables[num_levels] = seen_and_warm(make, num_levels, rng)
        return tables[num_levels]

    def draw(num_levels: int, k: int) -> float:
        drawn_from = table(num_levels)
        return time_of(lambda: drawn_from.draw(k)) / k

    measures: dict[str, Callable[[int], float]] = {
        "draw": lambda num_levels: draw(num_levels, 1),
        "batch": lambda num_levels: draw(num_levels, BATCH),
        "update": lambda num_levels: time_of_update(table(num_levels), num_levels, rng),
        "start": lambda num_levels: time_of_calls(lambda: make(num_levels), 1),
        "memory": lambda num_levels: growth_of(make, num_levels, rng),
        **(more or {}),
    }
    with os.fdopen(int(sys.argv[1]), "w") as answers:
        for line in sys.stdin:
            measure, num_levels = json.loads(line)
            print(measures[measure](num_levels), file=answers, flush=True)


def seen_and_warm(make: Callable[[int], Contender], num_levels: int, rng: np.random.Generator) -> Contender:
    contender = make(num_levels)
    contender.see_all(rng)
    contender.draw(BATCH)  # so that levels differ in staleness, and tables that grow on first use have grown
    return contender


def time_of(call: Callable[[], object]) -> float:
    """Returns the mean seconds of one call: a draw by staleness costs more than one by score."""
    calls = 1
    while (elapsed := time_of_calls(call, calls)) < AT_LEAST_S:
        calls *= 2
    return elapsed / calls


def time_of_calls(call: Callable[[], object], calls: int) -> float:
    started = time.process_time()
    for _ in range(calls):
        call()
    return time.process_time() - started


def time_of_update(contender: Contender, num_levels: int, rng: np.random.Generator) -> float:
    calls, elapsed = 0, 0.0
    while elapsed < AT_LEAST_S:
        elapsed += time_of_calls(contender.prepared(rollout_block(num_levels, rng)), 1)
        calls += 1
    return elapsed / calls


def growth_of(make: Callable[[int], Contender], num_levels: int, rng: np.random.Generator) -> float:
    """Returns by how many bytes the process outgrew what it was: a table made, seen, drawn from and updated."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    contender = seen_and_warm(make, num_levels, rng)
    contender.prepared(rollout_block(num_levels, rng))()
    return float(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - pages * resource.getpagesize())


def rollout_block(num_levels: int, rng: np.random.Generator) -> Block:
    """Returns values, rewards, dones, levels (T, N) and next_values (N,): about 220 episodes that end in the block."""
    shape = (NUM_STEPS, NUM_COLUMNS)
    dones = rng.random(shape) < 1 / 75
    episode: np.ndarray[Any, Any] = np.cumsum(dones, axis=0) - dones  # of its column
    level_of = rng.integers(num_levels, size=shape)
    return {
        "values": rng.random(shape, dtype=np.float32),
        "rewards": rng.random(shape, dtype=np.float32),
        "dones": dones,
        "levels": np.take_along_axis(level_of, episode, axis=0),
        "next_values": rng.random(NUM_COLUMNS, dtype=np.float32),
    }

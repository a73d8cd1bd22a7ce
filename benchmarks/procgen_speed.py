"""Procgen under a curriculum beside plain Procgen: steps/s of 64 envs, in interleaved rounds of one run.

  plain   the gym3 env of the package as it comes, levels 0 to 199, act and observe and nothing more
  PLR     LevelReplayVector(ProcgenVector(...)) with a launched server: assigned levels, infos, and a push of values
          every 256 steps
  ahead   the same with prefetch=64: levels are asked for before they are needed

All play 64 envs of the same 200 levels, drawn uniformly (a curriculum with a taste would play levels that cost more or
less to draw), in easy mode, on the engine's 4 threads, with the same random actions. A round is 256 steps of each, in
alternating order. The ratio of a PLR row is of the medians; the row below it has each round's own ratio, which a
machine whose speed drifts distorts less. 0.80 is asked for.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence

import numpy as np
from procgen import ProcgenGym3Env
from report import Row, arguments, show

from plr_server import Config, launch
from wrappers import LevelReplayVector
from wrappers.procgen import ProcgenVector

GAMES = ("coinrun", "bigfish")
NUM_ENVS, NUM_LEVELS, NUM_STEPS, NUM_THREADS = 64, 200, 256, 4
WARM_UP_ROUNDS = 8  # until most levels were played, and the envs are in different places of their episodes


def main() -> None:
    options = arguments(__doc__, rounds=21)
    rows = []
    for game in GAMES:
        plain, *ours = measured(game, options.rounds)
        plain_row = Row(f"{game}: plain", "steps/s", plain)
        rows.append(plain_row)
        for name, speeds in zip(("PLR", "ahead"), ours, strict=True):
            ratios = [speed / floor for speed, floor in zip(speeds, plain, strict=True)]
            rows += [
                Row(f"{game}: {name}", "steps/s", speeds, plain_row.median),
                Row(f"{game}: {name} / plain, by round", "", ratios),
            ]
    show(rows, options)


def measured(game: str, rounds: int) -> list[list[float]]:
    """Returns steps/s of plain Procgen, of Procgen under a curriculum, and of that asking ahead, for every round."""
    rng = np.random.default_rng(0)
    actions = rng.integers(15, size=(NUM_STEPS, NUM_ENVS))
    values = rng.normal(size=(NUM_STEPS, NUM_ENVS)).astype(np.float32)
    config = Config(levels=range(NUM_LEVELS), transform="constant")
    with launch(config) as server:
        wrapped = [
            LevelReplayVector(ProcgenVector(game, NUM_ENVS, num_threads=NUM_THREADS), server.address, prefetch=prefetch)
            for prefetch in (0, NUM_ENVS)
        ]
        engine = ProcgenGym3Env(
            NUM_ENVS, game, distribution_mode="easy", num_levels=NUM_LEVELS, start_level=0, num_threads=NUM_THREADS
        )
        for envs in wrapped:
            envs.reset()

        def plain() -> None:
            for action in actions:
                engine.act(action)
                engine.observe()

        def plr(envs: LevelReplayVector) -> None:
            for action in actions:
                envs.step(action)
            envs.push(values, values[0])

        sides = [plain, *(functools.partial(plr, envs) for envs in wrapped)]
        for _ in range(WARM_UP_ROUNDS):
            for side in sides:
                side()
        speeds = interleaved(sides, rounds)
        for envs in wrapped:
            envs.close()
        engine.close()
    return speeds


def interleaved(sides: Sequence[Callable[[], None]], rounds: int) -> list[list[float]]:
    """Returns steps/s of each side for every round, each round beginning with another side."""
    speeds: list[list[float]] = [[] for _ in sides]
    for number in range(rounds):
        for i in range(len(sides)):
            which = (i + number) % len(sides)
            started = time.perf_counter()
            sides[which]()
            speeds[which].append(NUM_STEPS * NUM_ENVS / (time.perf_counter() - started))
    return speeds


if __name__ == "__main__":
    main()

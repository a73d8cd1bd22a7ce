"""Procgen under a curriculum beside plain Procgen: steps/s of 64 envs, in interleaved rounds of one run.

  plain   the gym3 env of the package as it comes, levels 0 to 199, act and observe and nothing more
  PLR     LevelReplayVector(ProcgenVector(...)) with a launched server: assigned levels, infos, and a push of values
          every 256 steps

Both play 64 envs of the same 200 levels, drawn uniformly (a curriculum with a taste would play levels that cost more or
less to draw), in easy mode, on the engine's 4 threads, with the same random actions. A round is 256 steps of each, in
alternating order. The ratio of a PLR row is of the medians; the row below it has each round's own ratio, which a
machine whose speed drifts distorts less. 0.80 is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable

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
        plain, plr = measured(game, options.rounds)
        plain_row = Row(f"{game}: plain", "steps/s", plain)
        rows += [
            plain_row,
            Row(f"{game}: PLR", "steps/s", plr, plain_row.median),
            Row(f"{game}: PLR / plain, by round", "", [ours / theirs for ours, theirs in zip(plr, plain, strict=True)]),
        ]
    show(rows, options)


def measured(game: str, rounds: int) -> tuple[list[float], list[float]]:
    """Returns steps/s of plain Procgen and of Procgen under a curriculum, one of each for every round."""
    rng = np.random.default_rng(0)
    actions = rng.integers(15, size=(NUM_STEPS, NUM_ENVS))
    values = rng.normal(size=(NUM_STEPS, NUM_ENVS)).astype(np.float32)
    config = Config(levels=range(NUM_LEVELS), transform="constant")
    with launch(config) as server:
        envs = LevelReplayVector(ProcgenVector(game, NUM_ENVS, num_threads=NUM_THREADS), server.address)
        engine = ProcgenGym3Env(
            NUM_ENVS, game, distribution_mode="easy", num_levels=NUM_LEVELS, start_level=0, num_threads=NUM_THREADS
        )
        envs.reset()

        def plain() -> None:
            for action in actions:
                engine.act(action)
                engine.observe()

        def plr() -> None:
            for action in actions:
                envs.step(action)
            envs.push(values, values[0])

        for _ in range(WARM_UP_ROUNDS):
            plain()
            plr()
        speeds: dict[Callable[[], None], list[float]] = {plain: [], plr: []}
        for number in range(rounds):
            for side in (plain, plr) if number % 2 else (plr, plain):
                started = time.perf_counter()
                side()
                speeds[side].append(NUM_STEPS * NUM_ENVS / (time.perf_counter() - started))
        envs.close()
        engine.close()
    return speeds[plain], speeds[plr]


if __name__ == "__main__":
    main()

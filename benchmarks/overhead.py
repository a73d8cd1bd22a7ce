"""What a curriculum costs a training loop: the time of its updates with it and without, in pairs of one run.

  CleanRL  examples/cleanrl_ppo.py beside examples/cleanrl_ppo_uniform.py
  SB3      Stable-Baselines3's PPO with LevelReplay and LevelReplayCallback, beside the same with neither

Both on MiniGrid, 16 envs in the trainer's process, rollouts of 128 steps, 4 epochs in minibatches of 512, torch on one
thread. The yardstick plays uniformly drawn levels of the same 200 seeds, and there is no server. The curriculum draws
uniformly too (transform `constant`, no staleness), and neither agent learns (learning rate 0): otherwise the two would
play episodes of different lengths. The server is a process of its own on the same machine. An episode ends after 40
steps at most.

The two loops take turns, an update each (a rollout, and what is learnt from it), so that a machine whose speed drifts
hits both; each round is one pair. A ratio by pair is of the two updates of one round: of wall time, and of CPU time,
the server's included. At most 1.03 of the wall time is asked for.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # more threads would only disturb the server

import gymnasium as gym
import numpy as np
import torch
from minigrid.wrappers import ImgObsWrapper, ReseedWrapper
from report import Row, arguments, show
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from plr_server import Config, launch
from wrappers import LevelReplay
from wrappers.sb3 import LevelReplayCallback

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import cleanrl_ppo
import cleanrl_ppo_uniform

ENV_ID, NUM_LEVELS, NUM_ENVS, NUM_STEPS = "MiniGrid-MultiRoom-N2-S4-v0", 200, 16, 128
WARM_UP_ROUNDS = 2

Loop = Callable[[str, int, Callable[[], None]], None]  # of an address, a number of updates, what to call after each


def cleanrl_uniform(_: str, num_updates: int, after_update: Callable[[], None]) -> None:
    cleanrl_ppo_uniform.print = lambda _: after_update()
    cleanrl_ppo_uniform.train(cleanrl_ppo_uniform.Args(**cleanrl_settings(num_updates)))


def cleanrl_plr(address: str, num_updates: int, after_update: Callable[[], None]) -> None:
    cleanrl_ppo.print = lambda _: after_update()
    cleanrl_ppo.train(cleanrl_ppo.Args(**cleanrl_settings(num_updates)), address)


def cleanrl_settings(num_updates: int) -> dict[str, Any]:
    return {
        "env_id": ENV_ID,
        "num_levels": NUM_LEVELS,
        "num_envs": NUM_ENVS,
        "num_steps": NUM_STEPS,
        "total_timesteps": num_updates * NUM_ENVS * NUM_STEPS,
        "learning_rate": 0.0,
        "log_dir": str(Path(tempfile.gettempdir(), "plr-overhead")),
    }


def sb3_uniform(_: str, num_updates: int, after_update: Callable[[], None]) -> None:
    tapes = np.random.default_rng(0).integers(NUM_LEVELS, size=(NUM_ENVS, 10_000)).tolist()
    sb3_train([lambda tape=tape: ReseedWrapper(make_env(), tape) for tape in tapes], num_updates, after_update)


def sb3_plr(address: str, num_updates: int, after_update: Callable[[], None]) -> None:
    envs = [lambda: LevelReplay(make_env(), address, prefetch=4)] * NUM_ENVS
    sb3_train(envs, num_updates, after_update, LevelReplayCallback(address))


def make_env() -> gym.Env:
    return gym.wrappers.FlattenObservation(ImgObsWrapper(gym.make(ENV_ID)))


def sb3_train(
    envs: list[Callable[[], gym.Env]], num_updates: int, after_update: Callable[[], None], *callbacks: BaseCallback
) -> None:
    class AfterUpdate(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:  # SB3 tells when an update begins
            if self.num_timesteps:
                after_update()

        _on_training_end = _on_rollout_start

    vector = DummyVecEnv(envs)
    ppo = PPO("MlpPolicy", vector, learning_rate=0.0, n_steps=NUM_STEPS, batch_size=512, n_epochs=4, device="cpu")
    ppo.learn(num_updates * NUM_ENVS * NUM_STEPS, callback=[AfterUpdate(), *callbacks])
    vector.close()


def main() -> None:
    options = arguments(__doc__, rounds=40)
    torch.set_num_threads(1)
    rows = []
    for name, loops in (("CleanRL", (cleanrl_uniform, cleanrl_plr)), ("SB3", (sb3_uniform, sb3_plr))):
        (uniform, uniform_cpu), (plr, plr_cpu) = measured(loops, options.rounds)
        uniform_row = Row(f"{name}: an update, uniform levels", "s", uniform)
        rows += [
            uniform_row,
            Row(f"{name}: an update, curriculum", "s", plr, uniform_row.median),
            Row(f"{name}: curriculum / uniform, by pair", "", ratios(plr, uniform)),
            Row(f"{name}: the same of CPU time", "", ratios(plr_cpu, uniform_cpu)),
        ]
    show(rows, options)


def measured(loops: tuple[Loop, Loop], rounds: int) -> list[tuple[list[float], list[float]]]:
    """Returns for each loop the seconds of wall and of CPU time that its updates took."""
    num_updates = WARM_UP_ROUNDS + rounds
    clocks: list[list[tuple[float, float]]] = [[], []]  # at begin and end of each update in turn
    turns = [threading.Semaphore(1), threading.Semaphore(0)]
    config = Config(levels=range(NUM_LEVELS), transform="constant", staleness_coef=0.0, gamma=0.99)
    with launch(config) as server:

        def clock() -> tuple[float, float]:
            tasks = Path(f"/proc/{server.process.pid}/task").glob("*/schedstat")
            served_ns = sum(int(task.read_text().split()[0]) for task in tasks)
            return time.perf_counter(), time.process_time() + 1e-9 * served_ns

        def run(number: int) -> None:
            def after_update() -> None:
                clocks[number].append(clock())
                turns[1 - number].release()
                turns[number].acquire()
                clocks[number].append(clock())

            turns[number].acquire()
            clocks[number].append(clock())
            loops[number](server.address, num_updates, after_update)
            turns[1 - number].release()

        threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = []
    for clocked in clocks:
        spent = np.array(clocked[: 2 * num_updates]).reshape(num_updates, 2, 2)
        wall, cpu = (spent[WARM_UP_ROUNDS:, 1] - spent[WARM_UP_ROUNDS:, 0]).T.tolist()
        found.append((wall, cpu))
    return found


def ratios(ours: list[float], theirs: list[float]) -> list[float]:
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]


if __name__ == "__main__":
    main()

"""What resets.py runs in a process of its own: 16 envs in 16 processes under a curriculum. For ours and Syllabus.

Needs only numpy, gymnasium and the standard library, so that it runs in the peer's environment. Arguments: the pipe for
the answer, what to measure (rate or wait), the number of levels, seconds, and how many levels to hold ready. The answer
is one JSON line. Imports nothing of this project.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv

NUM_ENVS, EPISODE_STEPS, BLOCK_STEPS = 16, 10, 256
PUSH_EVERY_S = 1.0
OBSERVATION = np.zeros(1, np.float32)

Block = dict[str, "np.ndarray[Any, Any]"]


class Contender(Protocol):
    """A curriculum under rank, temperature 0.1, staleness_coef 0.1, strategy value_l1, all of whose levels are seen."""

    def make_env(self) -> gym.Env:
        """Returns a trivial env that plays its levels; called in a worker."""

    def push(self, block: Block) -> None:
        """Learns from 256 steps of 16 envs."""

    def close(self) -> None:
        """Ends it."""


class Trivial(gym.Env):
    """Ten steps of nothing."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:  # noqa: ARG002
        self._step = 0
        return OBSERVATION, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:  # noqa: ARG002
        self._step += 1
        return OBSERVATION, 0.0, self._step == EPISODE_STEPS, False, {}


class Timed(gym.Wrapper):
    """Remembers how long each reset took, in seconds."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.waits: list[float] = []

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        started = time.perf_counter()
        result = self.env.reset(**kwargs)
        self.waits.append(time.perf_counter() - started)
        return result


def main(make: Callable[[int, int], Contender]) -> None:
    """Answers once.

    Args:
        make: number of levels, and how many to hold ready, to a contender.
    """
    pipe, measure, num_levels, seconds, ready = sys.argv[1:]
    contender = make(int(num_levels), int(ready))
    rng = np.random.default_rng(0)
    contender.push(rollout_block(int(num_levels), rng))  # so that what grows on first use has grown
    answer = {"rate": rate, "wait": wait}[measure](contender, int(num_levels), float(seconds), rng)
    with os.fdopen(int(pipe), "w") as answers:
        print(json.dumps(answer), file=answers)
    contender.close()


def rate(contender: Contender, num_levels: int, seconds: float, rng: np.random.Generator) -> dict[str, float]:
    """Returns resets/s of free-running workers, and the quantiles of their waits."""
    begin = multiprocessing.Barrier(NUM_ENVS + 1)
    results: multiprocessing.Queue[list[float]] = multiprocessing.Queue()
    workers = [multiprocessing.Process(target=play, args=(contender, begin, results, seconds)) for _ in range(NUM_ENVS)]
    for worker in workers:
        worker.start()
    begin.wait()
    push_now_and_then(contender, num_levels, seconds, rng, lambda: time.sleep(0.01))
    waits = [results.get() for _ in workers]
    for worker in workers:
        worker.kill()  # Syllabus' would wait for ever: nobody reads the queue of waits that it keeps for its log
    return {"rate": sum(map(len, waits)) / seconds} | quantiles(np.concatenate(waits))


def play(contender: Contender, begin: Any, results: Any, seconds: float) -> None:
    env = Timed(contender.make_env())
    env.reset()
    begin.wait()
    deadline = time.perf_counter() + seconds
    env.waits.clear()
    while time.perf_counter() < deadline:
        ended = False
        while not ended:
            ended = env.step(0)[2]
        env.reset()
    results.put(env.waits)


def wait(contender: Contender, num_levels: int, seconds: float, rng: np.random.Generator) -> dict[str, float]:
    """Returns the quantiles of the waits at reset in the workers of an AsyncVectorEnv."""
    envs = AsyncVectorEnv([lambda: Timed(contender.make_env())] * NUM_ENVS)
    envs.reset()
    actions = np.zeros(NUM_ENVS, np.int64)
    push_now_and_then(contender, num_levels, seconds, rng, lambda: envs.step(actions))
    waits = np.concatenate([waits[1:] for waits in envs.get_attr("waits")])  # the first one connects
    envs.close(terminate=True)
    return quantiles(waits)


def push_now_and_then(
    contender: Contender, num_levels: int, seconds: float, rng: np.random.Generator, meanwhile: Callable[[], object]
) -> None:
    started = pushed = time.perf_counter()
    while (now := time.perf_counter()) < started + seconds:
        if now > pushed + PUSH_EVERY_S:
            contender.push(rollout_block(num_levels, rng))
            pushed = now
        meanwhile()


def quantiles(waits: np.ndarray[Any, Any]) -> dict[str, float]:
    return {"p50": float(np.quantile(waits, 0.5)), "p99": float(np.quantile(waits, 0.99)), "waits": len(waits)}


def rollout_block(num_levels: int, rng: np.random.Generator) -> Block:
    """Returns values, rewards, dones, levels (T, N) and next_values (N,), episodes of ten steps."""
    shape = (BLOCK_STEPS, NUM_ENVS)
    dones = np.zeros(shape, bool)
    dones[EPISODE_STEPS - 1 :: EPISODE_STEPS] = True
    levels = rng.integers(num_levels, size=(BLOCK_STEPS // EPISODE_STEPS + 1, NUM_ENVS))
    return {
        "values": rng.random(shape, dtype=np.float32),
        "rewards": rng.random(shape, dtype=np.float32),
        "dones": dones,
        "levels": np.repeat(levels, EPISODE_STEPS, axis=0)[:BLOCK_STEPS],
        "next_values": rng.random(NUM_ENVS, dtype=np.float32),
    }

"""An env for tests that says which level it plays: in its observation, reward, info and the length of its episodes.

Used by the tests of the wrappers. It knows nothing of the curriculum.
"""

from __future__ import annotations

import functools
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

NOT_ASSIGNED = 1_000_000  # levels from here on are of the env's own choosing, as after a reset without a seed
VALUE_DISCOUNT = 0.5


@functools.cache
def episode_of(level: int) -> tuple[int, bool]:
    """Returns how many steps the level's episode has, 1 to 9, and whether a time limit ends it."""
    rng = np.random.default_rng(level)
    return int(rng.integers(1, 10)), bool(rng.integers(2))


def reward_of(level: Any, step: Any) -> Any:
    """Returns what the level's step (from 0) pays; never 0, so that 0 tells a row in which no step was taken."""
    return level + 1 + (step + 1) ** 2 / 64


def value_of(level: Any, step: Any) -> Any:
    """Returns the value that the tests give to the observation after `step` steps; it tells levels and steps apart."""
    return level / 8 + step**2


def td_error_of(level: int, *, bootstraps: bool, steps: int | None = None) -> float:
    """Returns the mean one-step TD error, in magnitude, of the level's whole episode, or of its first `steps`.

    Args:
        level: the level.
        bootstraps: whether a time limit bootstraps with the value of the terminal observation.
        steps: after how many steps the episode was cut, as a true end.
    """
    length, truncated = episode_of(level)
    total = 0.0
    for step in range(steps or length):
        ends = step + 1 == (steps or length)
        continues = not ends or (truncated and bootstraps and steps is None)
        total += abs(
            reward_of(level, step) + VALUE_DISCOUNT * value_of(level, step + 1) * continues - value_of(level, step)
        )
    return total / (steps or length)


class LevelEnv(gym.Env):
    """Plays the level it is seeded with (or `next_level`, once) for `episode_of` steps, whatever the action.

    Args:
        nested: the observation is a Dict of a Tuple instead of one array.
        buffers: observations are written in turn into this many arrays; 0 makes a new one each time.
        mute: the same info dict is returned from every call.
    """

    def __init__(self, *, nested: bool = False, buffers: int = 0, mute: bool = False) -> None:
        box = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.observation_space: spaces.Space[Any] = (
            spaces.Dict(
                {"pair": spaces.Tuple([box, spaces.Discrete(2 * NOT_ASSIGNED)]), "bits": spaces.MultiBinary(21)}
            )
            if nested
            else box
        )
        self.action_space = spaces.Discrete(2)
        self.level = -1
        self.step_index = 0
        self.steps_taken = 0
        self.seeds: list[int | None] = []
        self.options: list[dict[str, Any] | None] = []
        self.next_level: int | None = None
        self._nested = nested
        self._buffers = [np.zeros(2) for _ in range(buffers)]
        self._info: dict[str, Any] | None = {} if mute else None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.options.append(options)
        self.level = NOT_ASSIGNED + int(self.np_random.integers(NOT_ASSIGNED)) if seed is None else seed
        if self.next_level is not None:
            self.level, self.next_level = self.next_level, None
        self.step_index = 0
        info: dict[str, Any] = {"level": self.level, "begin": {"of": self.level}}
        if self.level >= NOT_ASSIGNED:
            info["own_choice"] = {"level": self.level}
        return self._observe(), info if self._info is None else self._info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:  # noqa: ARG002
        length, truncated = episode_of(self.level)
        reward = reward_of(self.level, self.step_index)
        self.step_index += 1
        self.steps_taken += 1
        ended = self.step_index == length
        info = {"level": self.level, "step": self.step_index} if self._info is None else self._info
        return self._observe(), reward, ended and not truncated, ended and truncated, info

    def _observe(self) -> Any:
        if self._buffers:
            self._buffers.append(self._buffers.pop(0))
        array = self._buffers[-1] if self._buffers else np.zeros(2)
        array[:] = self.level, self.step_index
        if not self._nested:
            return array
        bits = np.array([self.level >> bit & 1 for bit in range(21)], np.int8)
        return {"pair": (array, self.level), "bits": bits}


def told(observations: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the levels (N,) and steps (N,) that a batch of observations carries; it must agree with itself."""
    if isinstance(observations, dict):
        pairs, levels = observations["pair"]
        assert (levels == pairs[:, 0]).all()
        assert (observations["bits"] @ (1 << np.arange(21)) == levels).all()
        observations = pairs
    return observations[:, 0].astype(np.int64), observations[:, 1].astype(np.int64)


class NativeLevelEnvs(VectorEnv):
    """A native vector env: one object without sub-envs, whose `reset` takes a list of seeds and a `reset_mask`.

    It hands out its own observation buffer, and `final_obs` as a view of another one that every reset overwrites.
    """

    def __init__(self, num_envs: int, autoreset_mode: AutoresetMode) -> None:
        self._envs = SyncVectorEnv([LevelEnv] * num_envs, copy=False, autoreset_mode=autoreset_mode)
        self.metadata = self._envs.metadata
        self.num_envs = num_envs
        self.observation_space, self.single_observation_space = (
            self._envs.observation_space,
            self._envs.single_observation_space,
        )
        self.action_space, self.single_action_space = self._envs.action_space, self._envs.single_action_space
        self._final_obs = np.zeros((num_envs, 2))

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observations, infos = self._envs.reset(seed=seed, options=options)
        self._final_obs[:] = observations
        return observations, infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        observations, rewards, terminations, truncations, infos = self._envs.step(actions)
        if "final_obs" in infos:
            for n in np.flatnonzero(infos["_final_obs"]):
                self._final_obs[n] = infos["final_obs"][n]
            infos["final_obs"] = self._final_obs
        return observations, rewards, terminations, truncations, infos

    def steps_taken(self) -> int:
        """Returns how many steps the envs have taken."""
        return sum(self._envs.get_attr("steps_taken"))

    def close_extras(self, **kwargs: Any) -> None:
        """Closes the envs."""
        self._envs.close(**kwargs)

"""A Procgen env of DI-engine that draws what Procgen says it plays into its observations; for tests/integrations."""

from __future__ import annotations

import warnings

import numpy as np

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from ding.envs import BaseEnvTimestep
    from dizoo.procgen.envs.procgen_env import ProcgenEnv


class TellingProcgen(ProcgenEnv):
    """Has in its `cfg` beside ProcgenEnv's keys `number`, and `max_steps`, after which an episode ends."""

    def __init__(self, cfg):
        super().__init__(cfg)
        self._episode = -1

    def reset(self):
        self._episode, self._step = self._episode + 1, 0
        return self._telling(super().reset())

    def step(self, action):
        obs, reward, done, info = super().step(action)
        self._step += 1
        if self._step == self._cfg.max_steps:
            done, info["eval_episode_return"] = True, self._eval_episode_return
        return BaseEnvTimestep(self._telling(obs), reward, done, info)

    def _telling(self, obs):
        level = self._env.unwrapped.env.get_info()[0]["level_seed"]
        for place, number in enumerate((self._cfg.number, level, self._episode, self._step)):
            obs[:2, 0, place] = number % 256, number // 256
        return obs


def told(observations):
    """Returns (B, 4) ints: the env, level, episode and step that observations (B, 3, 64, 64) are of."""
    return observations[:, :2, 0, :4].astype(np.int64).transpose(0, 2, 1) @ [1, 256]

"""Syllabus 0.7 as resets.py measures it; see resets_contender.py. Runs in an environment that has Syllabus."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from resets_contender import BLOCK_STEPS, NUM_ENVS, Block, Trivial, main
from syllabus.core import GymnasiumSyncWrapper, TaskWrapper, make_multiprocessing_curriculum
from syllabus.curricula import CentralPrioritizedLevelReplay
from syllabus.task_space import DiscreteTaskSpace

torch.set_num_threads(1)


class Tasks(TaskWrapper):
    """The task is known, and nothing else depends on it."""

    def reset(self, new_task: int | None = None, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.task = new_task
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.env.step(action)


class Syllabus:
    """Its curriculum and update thread, in this process."""

    def __init__(self, num_levels: int, ready: int) -> None:
        self._buffer_size = 1 + ready
        self._task_space = DiscreteTaskSpace(num_levels)
        curriculum = CentralPrioritizedLevelReplay(
            self._task_space,
            num_steps=BLOCK_STEPS,
            num_processes=NUM_ENVS,
            task_sampler_kwargs_dict={"rho": 0.0, "replay_prob": 1.0},  # below 1 its draw fails once all is seen
        )
        sampler = curriculum._task_sampler  # noqa: SLF001  its levels cannot be seen from outside
        sampler.task_scores[:] = np.random.default_rng(0).random(num_levels)
        sampler.task_staleness[:] = 1.0
        sampler.unseen_task_weights[:] = 0.0
        self._curriculum = make_multiprocessing_curriculum(curriculum)

    def make_env(self) -> gym.Env:
        return GymnasiumSyncWrapper(
            Tasks(Trivial()), self._task_space, self._curriculum.components, buffer_size=self._buffer_size
        )

    def push(self, block: Block) -> None:
        after = np.vstack([block["values"][1:], block["next_values"]])
        for t in range(BLOCK_STEPS):
            self._curriculum.update(
                {
                    "value": torch.from_numpy(block["values"][t]),
                    "next_value": torch.from_numpy(after[t]),
                    "rew": block["rewards"][t],
                    "dones": block["dones"][t],
                    "tasks": block["levels"][t].tolist(),
                }
            )

    def close(self) -> None:
        self._curriculum.stop()


if __name__ == "__main__":
    main(Syllabus)

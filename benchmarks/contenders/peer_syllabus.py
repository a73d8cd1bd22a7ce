"""Syllabus 0.7's level table as levels.py measures it; see contender.py. Runs in an environment that has Syllabus.

What is timed of an update is what `CentralPrioritizedLevelReplay.update` does once its storage holds a block: returns,
scores, table. That it fills the storage step by step, from Python, is not counted. Its sampler has no batched draw.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from contender import GAE_LAMBDA, GAMMA, NUM_COLUMNS, NUM_STEPS, Block, serve
from syllabus.curricula.plr.central_plr_wrapper import RolloutStorage
from syllabus.curricula.plr.task_sampler import TaskSampler


class Syllabus:
    """Its sampler and its rollout storage."""

    def __init__(self, num_levels: int) -> None:
        self._sampler = TaskSampler(
            list(range(num_levels)),
            NUM_STEPS,
            num_actors=NUM_COLUMNS,
            strategy="value_l1",
            score_transform="rank",
            temperature=0.1,
            staleness_coef=0.1,
            replay_schedule="proportionate",
            replay_prob=1.0,  # below 1 its draw fails once all is seen
            rho=0.0,
            gamma=GAMMA,
            gae_lambda=GAE_LAMBDA,
        )
        self._storage = RolloutStorage(NUM_STEPS, NUM_COLUMNS, requires_value_buffers=True)

    def see_all(self, rng: np.random.Generator) -> None:
        sampler = self._sampler
        sampler.task_scores[:] = rng.random(sampler.num_tasks)
        sampler.task_staleness[:] = 1.0
        sampler.unseen_task_weights[:] = 0.0

    def draw(self, k: int) -> None:
        for _ in range(k):
            self._sampler.sample()

    def prepared(self, block: Block) -> Callable[[], object]:
        storage = self._storage
        storage.tasks[..., 0] = torch.from_numpy(block["levels"])
        storage.masks[1:, :, 0] = torch.from_numpy(~block["dones"])
        storage.rewards[..., 0] = torch.from_numpy(block["rewards"])
        storage.value_preds[:-1, :, 0] = torch.from_numpy(block["values"])
        storage.value_preds[-1, :, 0] = torch.from_numpy(block["next_values"])
        storage.env_steps[:] = NUM_STEPS
        return self._update

    def _update(self) -> None:
        self._storage.compute_returns(GAMMA, GAE_LAMBDA)
        for column in range(NUM_COLUMNS):
            self._sampler.update_with_rollouts(self._storage, column)
        self._storage.after_update()
        self._sampler.after_update()


if __name__ == "__main__":
    serve(Syllabus)

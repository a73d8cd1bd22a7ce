"""The train loop of level-replay on torch tensors, as its RolloutStorage has them, some of them with a gradient."""

from __future__ import annotations

import pytest
import torch
from level_replay_loop import ENVS, SEEDS, SPACES, STEPS, Rollouts, train_and_check

from wrappers.level_replay import LevelSampler


@pytest.mark.parametrize("strategy", ["value_l1", "min_margin"])
def test_its_train_loop_on_tensors(strategy):
    rollouts = Rollouts(lambda shape: torch.zeros(shape, dtype=torch.float64))
    rollouts.level_seeds = torch.zeros((STEPS, ENVS, 1), dtype=torch.int)
    train_and_check(strategy, rollouts, tells_next=True)


def test_a_tensor_with_a_gradient_is_read():
    sampler = LevelSampler(SEEDS, *SPACES, num_actors=ENVS, strategy="value_l1")
    rollouts = Rollouts(torch.zeros)
    rollouts.level_seeds += 103
    rollouts.value_preds = torch.full((STEPS + 1, ENVS, 1), -0.5, requires_grad=True)
    sampler.update_with_rollouts(rollouts)
    assert sampler.seed_scores[3] == 0.5
    sampler.close()

"""DI-engine 0.5.3's level table as levels.py measures it; see contender.py. Runs in an environment that has DI-engine.

Its `update_with_rollouts` is given the advantages, so that making them is not counted. It has no batched draw. Its loop
over columns x levels compares a float32 of numpy with an int, which the numpy it needs (below 2) takes 1.6 µs for.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from contender import NUM_COLUMNS, NUM_STEPS, Block, serve
from ding.data.level_replay.level_sampler import LevelSampler
from easydict import EasyDict

NUM_ACTIONS = 15  # Procgen's


class DIEngine:
    """Its sampler."""

    def __init__(self, num_levels: int) -> None:
        config = EasyDict(
            strategy="value_l1",
            score_transform="rank",
            temperature=0.1,
            staleness_coef=0.1,
            replay_schedule="proportionate",
            rho=0.0,
        )
        self._sampler = LevelSampler(list(range(num_levels)), [3, 64, 64], NUM_ACTIONS, NUM_COLUMNS, config)
        self._logits = torch.zeros(NUM_COLUMNS * NUM_STEPS, NUM_ACTIONS)

    def see_all(self, rng: np.random.Generator) -> None:
        sampler = self._sampler
        sampler.seed_scores[:] = rng.random(len(sampler.seeds))
        sampler.seed_staleness[:] = 1.0  # its draw fails where all are 0
        sampler.unseen_seed_weights[:] = 0.0

    def draw(self, k: int) -> None:
        for _ in range(k):
            self._sampler.sample()

    def prepared(self, block: Block) -> Callable[[], object]:
        train_data = {
            "seed": flat(block["levels"]),
            "done": flat(block["dones"]),
            "reward": flat(block["rewards"]),
            "value": flat(block["values"]),
            "adv": flat(block["rewards"] - block["values"]),
            "logit": self._logits,
        }
        return lambda: self._sampler.update_with_rollouts(train_data, NUM_COLUMNS)


def flat(array: np.ndarray) -> torch.Tensor:
    """Returns (T, N) as it takes it: column after column, float32."""
    return torch.from_numpy(array.T.astype(np.float32).reshape(-1))


if __name__ == "__main__":
    serve(DIEngine)

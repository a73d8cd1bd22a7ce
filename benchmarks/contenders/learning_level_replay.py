"""What learning/peer.py runs in a process of its own: level-replay's LevelSampler and RolloutStorage, from a clone.

Needs numpy, torch and the clone; imports nothing of this project, and has no code of level-replay. Requests come on
standard input and answers go to the pipe named by the second argument, as numpy's npz, each after its length.
"""

from __future__ import annotations

import io
import os
import sys
import types
from typing import Any, BinaryIO

import numpy as np


def send(pipe: BinaryIO, **fields: Any) -> None:
    """Writes one message: arrays, or what becomes one, by name."""
    buffer = io.BytesIO()
    np.savez(buffer, **fields)
    pipe.write(len(buffer.getvalue()).to_bytes(8, "big") + buffer.getvalue())
    pipe.flush()


def received(pipe: BinaryIO) -> dict[str, Any] | None:
    """Returns one message; None once there are no more."""
    head = pipe.read(8)
    if not head:
        return None
    with np.load(io.BytesIO(pipe.read(int.from_bytes(head, "big")))) as fields:
        return dict(fields)


class Sampler:
    """The sampler, asked as its train loop asks it.

    Args:
        seeds: (n,) ids. num_actors: how many envs. gamma, gae_lambda: of the returns.
        options: arguments of the LevelSampler.
    """

    def __init__(
        self, seeds: np.ndarray, num_actors: int, gamma: float, gae_lambda: float, seed: int, **options: Any
    ) -> None:
        np.random.seed(seed)  # noqa: NPY002  what it draws from
        self._gamma, self._gae_lambda = gamma, gae_lambda
        self._sampler = LevelSampler(seeds.tolist(), None, None, num_actors=num_actors, **options)
        self._first_masks = torch.ones(num_actors, 1)

    def sample(self, k: int) -> dict[str, Any]:
        return {"levels": [self._sampler.sample() for _ in range(k)]}

    def update(self, block: dict[str, np.ndarray]) -> dict[str, Any]:
        """Scores a rollout (T, N); with `valid`, each column is an episode of as many rows as are valid."""
        if "valid" not in block:
            self._first_masks = self._score(block, self._first_masks)
            return {}
        lengths = block.pop("valid").sum(0).tolist()
        for n, length in enumerate(lengths):
            column = {name: x[n : n + 1] if x.ndim == 1 else x[:length, n : n + 1] for name, x in block.items()}
            self._score(column, torch.ones(1, 1))
        return {}

    def _score(self, block: dict[str, np.ndarray], first_masks: Any) -> Any:
        steps, envs = block["rewards"].shape
        rollouts = RolloutStorage(steps, envs, (1,), types.SimpleNamespace(n=2, shape=(1,)), 1)
        rollouts.rewards.copy_(torch.from_numpy(block["rewards"])[..., None])
        rollouts.value_preds[:-1].copy_(torch.from_numpy(block["values"])[..., None])
        rollouts.masks[0].copy_(first_masks)
        rollouts.masks[1:].copy_(torch.from_numpy(~block["dones"])[..., None])
        rollouts.level_seeds.copy_(torch.from_numpy(block["levels"])[..., None])
        rollouts.compute_returns(torch.from_numpy(block["next_values"])[..., None], self._gamma, self._gae_lambda)
        self._sampler.update_with_rollouts(rollouts)
        rollouts.after_update()
        self._sampler.after_update()
        return rollouts.masks[0].clone()

    def state(self) -> dict[str, Any]:
        sampler = self._sampler
        return {
            "scores": sampler.seed_scores,
            "seen": sampler.unseen_seed_weights == 0,
            "staleness": sampler.seed_staleness,
            "weights": sampler.sample_weights(),
        }


def main() -> None:
    sampler: Any = None
    with os.fdopen(int(sys.argv[2]), "wb") as answers:
        while (request := received(sys.stdin.buffer)) is not None:
            op = str(request.pop("op"))
            if op == "make":
                arguments = {name: x if x.ndim else x.item() for name, x in request.items()}
                sampler = Sampler(**arguments)
                send(answers)
            elif op == "sample":
                send(answers, **sampler.sample(int(request["k"])))
            elif op == "update":
                send(answers, **sampler.update(request))
            else:
                send(answers, **sampler.state())


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    setattr(np, "float", float)  # noqa: B010  it was written for numpy below 1.24
    import torch
    from level_replay.level_sampler import LevelSampler
    from level_replay.storage import RolloutStorage

    torch.set_num_threads(1)
    main()

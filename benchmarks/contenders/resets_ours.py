"""Our server and wrapper as resets.py measures them; see resets_contender.py. Not run by hand."""

from __future__ import annotations

import contextlib

import gymnasium as gym
import numpy as np
from resets_contender import Block, Trivial, main

from plr_client import Trainer
from plr_server import Config, launch
from wrappers import LevelReplay

PIECE_LEVELS = 2**17  # scored in one request


class Ours:
    """A server process; the trainer in this one.

    Attributes:
        address: of the server.
    """

    def __init__(self, num_levels: int, ready: int) -> None:
        self._ready = ready
        self._stack = contextlib.ExitStack()
        config = Config(
            levels=range(num_levels), strategy="value_l1", transform="rank", temperature=0.1, staleness_coef=0.1
        )
        self.address = self._stack.enter_context(launch(config)).address
        self._trainer = self._stack.enter_context(Trainer(self.address))
        rng = np.random.default_rng(0)
        for begin in range(0, num_levels, PIECE_LEVELS):
            levels = np.arange(begin, min(begin + PIECE_LEVELS, num_levels))
            self._trainer.push_scores(levels, rng.random(len(levels)))

    def make_env(self) -> gym.Env:
        return LevelReplay(Trivial(), self.address, prefetch=self._ready)

    def push(self, block: Block) -> None:
        self._trainer.push(**block)

    def close(self) -> None:
        self._stack.close()


if __name__ == "__main__":
    main(Ours)

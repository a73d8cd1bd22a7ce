"""The trivial env without any curriculum, the floor of the waits that resets.py measures. Not run by hand."""

from __future__ import annotations

import gymnasium as gym
from resets_contender import Block, Trivial, main


class Bare:
    """No curriculum: the cost of a reset itself, in workers as busy as the others."""

    def __init__(self, num_levels: int, ready: int) -> None:
        pass

    def make_env(self) -> gym.Env:
        return Trivial()

    def push(self, block: Block) -> None:
        pass

    def close(self) -> None:
        pass


if __name__ == "__main__":
    main(Bare)

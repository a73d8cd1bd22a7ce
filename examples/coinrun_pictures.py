"""What the levels of Procgen's coinrun look like, for the live page of a server whose levels are its seeds.

Nothing to run by itself: `plr-server view ADDRESS --render examples.coinrun_pictures:picture_of` calls it. Needs the
extra `procgen`.
"""

from __future__ import annotations

import functools

import numpy as np

from wrappers.procgen import ProcgenVector


@functools.cache
def _envs() -> ProcgenVector:
    return ProcgenVector("coinrun", 1, num_threads=0)


def picture_of(level: int) -> np.ndarray:
    """Returns the first frame of a level, (64, 64, 3) uint8."""
    frames, _ = _envs().reset(seed=[level])
    return frames[0]

"""The tasks: which stock MiniGrid envs, which actions, how a level's difficulty is called.

A level is a seed; the seed picks the env (seed modulo their number) and is what that env is reset with. Used by the
study. Sizes and lengths are in `study.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import gymnasium as gym
import minigrid  # noqa: F401  registers the envs
from fastgrid import DROP, FORWARD, LEFT, PICKUP, RIGHT, TOGGLE, Levels
from minigrid.envs import MultiRoomEnv
from minigrid.envs.obstructedmaze import (
    ObstructedMaze_1Dlhb,
    ObstructedMaze_2Dl,
    ObstructedMaze_2Dlh,
    ObstructedMaze_2Dlhb,
)
from minigrid.minigrid_env import MiniGridEnv

WALK = (LEFT, RIGHT, FORWARD)
WALK_AND_OPEN = (*WALK, TOGGLE)
ALL_BUT_DONE = (*WALK, PICKUP, DROP, TOGGLE)

DOOR_KEY = tuple(f"MiniGrid-DoorKey-{size}-v0" for size in ("5x5", "6x6", "8x8", "16x16"))
KEY_CORRIDOR = tuple(f"MiniGrid-KeyCorridor{size}-v0" for size in ("S3R1", "S3R2", "S3R3", "S4R3", "S5R3", "S6R3"))
LAVA_CROSSING = tuple(f"MiniGrid-LavaCrossing{size}-v0" for size in ("S9N1", "S9N2", "S9N3", "S11N5"))
UNLOCK = ("MiniGrid-Unlock-v0", "MiniGrid-UnlockPickup-v0", "MiniGrid-BlockedUnlockPickup-v0")

MakeEnv = Callable[[], MiniGridEnv]
OBSTRUCTED: tuple[tuple[str, MakeEnv], ...] = (  # easy to hard, as the stock ids are ordered
    ("1Dl", lambda: ObstructedMaze_1Dlhb(key_in_box=False, blocked=False)),
    ("1Dlh", lambda: ObstructedMaze_1Dlhb(key_in_box=True, blocked=False)),
    ("1Dlhb", lambda: ObstructedMaze_1Dlhb(key_in_box=True, blocked=True)),
    ("2Dl", ObstructedMaze_2Dl),
    ("2Dlh", ObstructedMaze_2Dlh),
    ("2Dlhb", ObstructedMaze_2Dlhb),
)
MULTI_ROOM = range(2, 9)  # rooms


@dataclasses.dataclass(frozen=True)
class Task:
    """What is played.

    Attributes:
        name: of the task.
        actions: those of MiniGrid's that the agent has.
        difficulties: what the levels' difficulties are called, from 0 on.
        envs: one for each difficulty; for `multiroom` a single one.
    """

    name: str
    actions: tuple[int, ...]
    difficulties: tuple[str, ...]
    envs: tuple[MakeEnv, ...]

    def levels(self, seeds: range) -> Levels:
        """Returns the levels of these seeds."""
        return Levels.stock(self.name, self.maker(), seeds)

    def maker(self) -> Callable[[int], tuple[MiniGridEnv, Callable[[MiniGridEnv], int]]]:
        """Returns what gives the env of a seed, not yet reset, and reads the difficulty off it once it is."""
        envs = [make() for make in self.envs]

        def make_level(seed: int) -> tuple[MiniGridEnv, Callable[[MiniGridEnv], int]]:
            which = seed % len(envs)
            if len(envs) == len(self.difficulties):
                return envs[which], lambda _: which
            return envs[which], lambda env: len(env.rooms) - MULTI_ROOM.start

        return make_level


def _stock(name: str, actions: tuple[int, ...], ids: Sequence[str], more: Sequence[tuple[str, MakeEnv]] = ()) -> Task:
    names = tuple(each.removeprefix("MiniGrid-").removesuffix("-v0") for each in ids)
    makers = tuple(lambda each=each: gym.make(each) for each in ids)
    return Task(name, actions, names + tuple(each for each, _ in more), makers + tuple(make for _, make in more))


TASKS = {
    task.name: task
    for task in (
        _stock("keys16", ALL_BUT_DONE, DOOR_KEY + KEY_CORRIDOR, OBSTRUCTED),
        _stock("omg-easy", ALL_BUT_DONE, (), OBSTRUCTED[:3]),
        _stock("keycorridor", ALL_BUT_DONE, KEY_CORRIDOR),
        Task(
            "multiroom",
            WALK_AND_OPEN,
            tuple(f"{rooms} rooms" for rooms in MULTI_ROOM),
            (lambda: MultiRoomEnv(MULTI_ROOM.start, MULTI_ROOM.stop - 1, maxRoomSize=6),),
        ),
        _stock("lava", WALK, LAVA_CROSSING),
        _stock("unlock", ALL_BUT_DONE, UNLOCK),
    )
}

"""Level spaces: which levels there are, and the way between a level's id and its place in the table.

level_space has the closed ones (a range, a list), open_space those that keep the best of many (seeds, payloads).
"""

from __future__ import annotations

from plr_server.curriculum.spaces.level_space import LevelSpace, level_space
from plr_server.curriculum.spaces.open_space import PayloadSpace, UnboundedSpace


def space_of(levels: range | tuple[int, ...] | str, capacity: int, cap: int) -> LevelSpace:
    """Returns the space of a configuration: its levels, the capacity of an open one, the cap on slots of one level."""
    if levels == "unbounded":
        return UnboundedSpace(capacity)
    if isinstance(levels, str):
        return PayloadSpace(capacity, cap)
    return level_space(levels)

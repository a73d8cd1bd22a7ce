"""Groups: the agents of one env, each in a column of its own, whose episodes get one score.

Used by the scorer. Pure functions of arrays: no state, no IO. What one agent does in an episode, its part, was found
and scored as if its column were an env of its own; here the parts become one episode.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from plr_client.errors import InvalidInput
from plr_server.curriculum.arrays import Bools, Floats, Ints

_NO_INTS = np.zeros(0, dtype=np.int64)


@dataclasses.dataclass(frozen=True, slots=True)
class ScoredEpisodes:
    """E episodes, or parts of episodes, and their scores.

    Attributes:
        level: (E,) the level each was played on.
        column: (E,) its env column, 0 to N - 1; or its group.
        start: (E,) its first row in the block; -1 where it began before.
        stop: (E,) its last row + 1.
        finished: (E,) False where the block's end cut it.
        steps: (E,) its valid steps.
        mean: (E,) mean of its step scores.
        max: (E,) maximum of its step scores.
    """

    level: Ints
    column: Ints
    start: Ints
    stop: Ints
    finished: Bools
    steps: Ints
    mean: Floats
    max: Floats


_FIELDS = tuple(field.name for field in dataclasses.fields(ScoredEpisodes))
NO_PARTS = ScoredEpisodes(
    *(_NO_INTS, _NO_INTS, _NO_INTS, _NO_INTS), np.zeros(0, dtype=bool), _NO_INTS, *(np.zeros(0), np.zeros(0))
)


def pool(
    parts: ScoredEpisodes, groups: Ints, before: ScoredEpisodes = NO_PARTS
) -> tuple[ScoredEpisodes, ScoredEpisodes]:
    """Makes one episode of what the columns of a group play at the same time.

    Its score is the mean over all steps of all agents: an agent that ends early weighs as much as it has played. It is
    finished when all of them are. Parts of a group that overlap in time, if only through others, are one episode,
    because an env begins the next one for all of its agents together.

    Args:
        parts: scored, one column's each.
        groups: (N,) the group of each column.
        before: the parts that ended in earlier blocks, of episodes that were going on, as this function returned them.

    Returns:
        The episodes, with the group in the place of the column; and the parts that have ended of those that go on,
        groups outside this block included.

    Raises:
        InvalidInput: agents of a group play different levels at the same time.
    """
    parts = dataclasses.replace(parts, column=groups[parts.column])
    is_here = np.isin(before.column, parts.column)
    elsewhere, here = taken(before, ~is_here), taken(before, is_here)
    block_begin = np.zeros(len(here.level), dtype=np.int64)
    parts = joined(dataclasses.replace(here, start=block_begin - 1, stop=block_begin), parts)
    if not len(parts.level):
        return parts, elsewhere
    parts = taken(parts, np.lexsort((parts.start, parts.column)))
    offset = np.cumsum(np.diff(parts.column, prepend=parts.column[0]) != 0) * (parts.stop.max() + 1)
    first = np.ones(len(offset), dtype=bool)  # of its episode; the offset keeps the running maximum within a group
    first[1:] = (offset + parts.start)[1:] >= np.maximum.accumulate(offset + parts.stop)[:-1]
    torn = ~first[1:] & (parts.level[1:] != parts.level[:-1])
    if torn.any():
        i = int(torn.argmax())
        expected = "one level for the agents of a group at a time (an agent that has left ends with a done)"
        got = f"levels {parts.level[i]} and {parts.level[i + 1]} in group {parts.column[i]}"
        raise InvalidInput("levels", expected, got)
    begin = np.flatnonzero(first)
    steps = np.add.reduceat(parts.steps, begin)
    episodes = ScoredEpisodes(
        level=parts.level[begin],
        column=parts.column[begin],
        start=parts.start[begin],
        stop=np.maximum.reduceat(parts.stop, begin),
        finished=np.logical_and.reduceat(parts.finished, begin),
        steps=steps,
        mean=np.add.reduceat(parts.mean * parts.steps, begin) / np.maximum(steps, 1),  # 0 of a group that is absent
        max=np.maximum.reduceat(parts.max, begin),
    )
    goes_on = np.repeat(~episodes.finished, np.diff(begin, append=len(first)))
    abandoned = episodes.finished & (episodes.stop <= 0)  # none of them is in this block
    return taken(episodes, ~abandoned), joined(elsewhere, taken(parts, goes_on & parts.finished))


def taken(episodes: ScoredEpisodes, which: Ints | Bools | slice) -> ScoredEpisodes:
    """Returns some of the episodes."""
    return ScoredEpisodes(*(getattr(episodes, name)[which] for name in _FIELDS))


def joined(first: ScoredEpisodes, second: ScoredEpisodes) -> ScoredEpisodes:
    """Returns the ones, then the others."""
    return ScoredEpisodes(*(np.concatenate([getattr(first, name), getattr(second, name)]) for name in _FIELDS))

"""Groups: the agents of one env, each in a column of its own, whose episodes get one score.

Used by the curriculum. Pure functions of arrays: no state, no IO. What one agent does in an episode, its part, was
found and scored as if its column were an env of its own; here the parts become one episode.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from plr_client.errors import InvalidInput
from plr_server.curriculum.scoring.scores import Bools, Episodes, Ints

_NO_INTS = np.zeros(0, dtype=np.int64)
NO_PARTS = Episodes(
    *(_NO_INTS, _NO_INTS, _NO_INTS, _NO_INTS), np.zeros(0, dtype=bool), _NO_INTS, *(np.zeros(0), np.zeros(0))
)


def pool(parts: Episodes, groups: Ints, before: Episodes = NO_PARTS, first_row: int = 0) -> tuple[Episodes, Episodes]:
    """Makes one episode of what the columns of a group play at the same time.

    Its score is the mean over all steps of all agents: an agent that ends early weighs as much as it has played. It is
    finished when all of them are. Parts of a group that overlap in time, if only through others, are one episode,
    because an env begins the next one for all of its agents together.

    Args:
        parts: scored, one column's each.
        groups: (N,) the group of each column.
        before: the parts that ended in earlier blocks, of episodes that were going on, as this function returned them.
        first_row: the block's first; the rows above it were prepended.

    Returns:
        The episodes, with the group in the place of the column; and the parts that have ended of those that go on,
        groups outside this block included.

    Raises:
        InvalidInput: agents of a group play different levels at the same time.
    """
    parts = dataclasses.replace(parts, column=groups[parts.column])
    is_here = np.isin(before.column, groups)
    elsewhere, here = _taken(before, ~is_here), _taken(before, is_here)
    then = np.full(len(here.level), first_row)
    parts = _joined(dataclasses.replace(here, start=then - 1, stop=then), parts)
    if not len(parts.level):
        return parts, elsewhere
    parts = _taken(parts, np.lexsort((parts.start, parts.column)))
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
    episodes = Episodes(
        level=parts.level[begin],
        column=parts.column[begin],
        start=parts.start[begin],
        stop=np.maximum.reduceat(parts.stop, begin),
        finished=np.logical_and.reduceat(parts.finished, begin),
        steps=steps,
        mean=np.add.reduceat(parts.mean * parts.steps, begin) / steps,
        max=np.maximum.reduceat(parts.max, begin),
    )
    goes_on = np.repeat(~episodes.finished, np.diff(begin, append=len(first)))
    abandoned = episodes.finished & (episodes.stop <= first_row)  # none of them is in this block
    return _taken(episodes, ~abandoned), _joined(elsewhere, _taken(parts, goes_on & parts.finished))


def _taken(episodes: Episodes, which: Ints | Bools) -> Episodes:
    return Episodes(**{field.name: getattr(episodes, field.name)[which] for field in dataclasses.fields(Episodes)})


def _joined(first: Episodes, second: Episodes) -> Episodes:
    return Episodes(
        **{
            field.name: np.concatenate([getattr(first, field.name), getattr(second, field.name)])
            for field in dataclasses.fields(Episodes)
        }
    )

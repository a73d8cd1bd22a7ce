"""Rollouts: what a trainer pushed, checked, and how steps and parts of episodes are pooled until they can be scored.

Used by the curriculum. `check` is the only door for rollout data: behind it every array has the promised shape, dtype
and values. Pooling is pure: it gives a longer rollout and the new pool, and leaves what it was given as it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plr_client.errors import InvalidInput, MissingField
from plr_server.curriculum.scoring.scores import Bools, Episodes, Floats, Ints, strategy_named

MAX_MAGNITUDE = 1e30  # beyond it sums of products overflow
UNSAID = -1  # of a success that the trainer says nothing about

Flags = NDArray[np.int8]


@dataclasses.dataclass(frozen=True, slots=True)
class Rollout:
    """One checked rollout block: T steps, step-major, of N env columns.

    Fields that the strategy does not read are None.

    Attributes:
        dones: (T, N) the action of step t ended the episode.
        levels: (T, N) the level that was active when obs_t was produced.
        values: (T, N) V(s_t).
        rewards: (T, N) r_t.
        next_values: (N,) V(s_T).
        truncated: (T, N) True only where done; None where nowhere.
        final_values: (T, N) V of the terminal observation where truncated, else 0.
        valid: (T, N) False for rows to be dropped; None where nowhere.
        logits: (T, N, A) action logits.
        successes: (T, N) where done, whether the episode was a success: 1, 0, or UNSAID.
        groups: (N,) columns of the same number are the agents of one env; None where every column is an env.
    """

    dones: Bools
    levels: Ints
    values: Floats | None = None
    rewards: Floats | None = None
    next_values: Floats | None = None
    truncated: Bools | None = None
    final_values: Floats | None = None
    valid: Bools | None = None
    logits: Floats | None = None
    successes: Flags | None = None
    groups: Ints | None = None


def check(strategy: str, fields: Mapping[str, ArrayLike | None]) -> tuple[Rollout, Ints]:
    """Turns what was pushed into a rollout.

    Args:
        strategy: the name of the configured strategy, which decides what is needed.
        fields: by name as in `plr_client.Trainer.push`, (T, N); numbers of any dtype.

    Returns:
        The rollout, and the ids of its columns (N,).

    Raises:
        InvalidInput: a field has a wrong shape, dtype or value.
        MissingField: a needed field is not there.
    """
    needs, takes = strategy_named(strategy).needs, strategy_named(strategy).takes
    for name in ("levels", "dones", *needs):
        if fields.get(name) is None:
            raise MissingField(name, f"an array: the strategy {strategy} needs it", "none")
    levels = _array("levels", fields["levels"], "iu")
    if levels.ndim != 2 or 0 in levels.shape:  # noqa: PLR2004  (T, N)
        raise InvalidInput("levels", "shape (T, N), T and N at least 1", f"shape {levels.shape}")
    shape = levels.shape
    dones = _bools("dones", fields["dones"], shape)
    valid = _optional_bools("valid", fields.get("valid"), shape)
    if valid is not None and valid.all():
        valid = None
    floats = {
        name: _floats(name, fields[name], shape, valid)
        for name in ("values", "rewards")
        if fields.get(name) is not None
    }
    if fields.get("next_values") is not None:
        floats["next_values"] = _floats("next_values", fields["next_values"], shape[1:], None)
    if fields.get("logits") is not None:
        logits = _array("logits", fields["logits"], "fiu")
        if logits.ndim != 3 or logits.shape[:2] != shape or logits.shape[2] < 2:  # noqa: PLR2004  (T, N, A), A >= 2
            raise InvalidInput("logits", f"shape ({shape[0]}, {shape[1]}, A), A at least 2", f"shape {logits.shape}")
        floats["logits"] = _floats("logits", logits, logits.shape, valid)
    successes = _optional_bools("successes", fields.get("successes"), shape)
    groups = fields.get("groups")
    if groups is not None:
        groups = _shaped("groups", _array("groups", groups, "iu"), shape[1:]).astype(np.int64)
    kept = {name: array for name, array in floats.items() if name in (*needs, *takes)}
    bootstraps = {"values", "rewards", "next_values"} <= kept.keys()
    truncated, final_values = _truncation(fields, dones, valid, bootstraps=bootstraps, told="values" in takes)
    return Rollout(
        dones=dones,
        levels=levels.astype(np.int64),
        truncated=truncated,
        final_values=final_values,
        valid=valid,
        successes=None if successes is None or "successes" not in takes else successes.astype(np.int8),
        groups=groups,
        **kept,
    ), _columns(fields.get("columns"), shape[1])


def _truncation(
    fields: Mapping[str, ArrayLike | None], dones: Bools, valid: Bools | None, *, bootstraps: bool, told: bool
) -> tuple[Bools | None, Floats | None]:
    """Returns truncated, where it is to bootstrap or a score function is told, and final_values, to bootstrap with."""
    truncated = _optional_bools("truncated", fields.get("truncated"), dones.shape)
    final_values: Floats | None = None
    if fields.get("final_values") is not None:
        read = np.zeros(dones.shape, dtype=bool) if truncated is None else truncated.copy()
        if valid is not None:
            read &= valid
        final_values = _floats("final_values", fields["final_values"], dones.shape, read)
    if truncated is None:
        return None, None
    if valid is not None:
        truncated &= valid
    if (truncated & ~dones).any():
        t, n = np.argwhere(truncated & ~dones)[0]
        raise InvalidInput(
            "truncated", "True only where dones is", f"True at step {t} of column {n}, which is not done"
        )
    if not truncated.any():
        return None, None
    if not bootstraps:
        return truncated if told else None, None
    if final_values is None:
        raise MissingField(
            "final_values",
            "an array (T, N) beside truncated, with V of the terminal observations (or leave truncated out: a time-out "
            "then counts as a true end)",
            "none",
        )
    return truncated, final_values


def as_array(name: str, given: Any) -> NDArray[Any]:
    """Returns what was given as an array.

    Raises:
        InvalidInput: numpy cannot make one of it, or it holds integers beyond int64.
    """
    try:
        array = np.asarray(given)
    except Exception as exc:  # whatever a foreign object raises when it cannot become an array
        raise InvalidInput(name, "something numpy can turn into an array", str(exc)) from exc
    if array.dtype == np.uint64 and (array > np.iinfo(np.int64).max).any():
        raise InvalidInput(name, "integers within int64", f"{array.max()}")
    return array


def _array(name: str, given: Any, kinds: str) -> NDArray[Any]:
    array = as_array(name, given)
    if array.dtype.kind not in kinds:
        expected = "integers" if kinds == "iu" else "numbers"
        raise InvalidInput(name, f"an array of {expected}", f"dtype {array.dtype}")
    return array


def _shaped(name: str, array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if array.shape != shape:
        raise InvalidInput(name, f"shape {shape}, by the shape of levels", f"shape {array.shape}")
    return array


def _floats(name: str, given: Any, shape: tuple[int, ...], read: Bools | None) -> Floats:
    """Returns float64 of the shape; where `read` is False the contents do not matter and become 0."""
    array = _shaped(name, _array(name, given, "fiub"), shape).astype(np.float64)
    if read is not None:
        array[~read] = 0.0
    if not (np.abs(array) <= MAX_MAGNITUDE).all():  # False for NaN too
        worst = array[~(np.abs(array) <= MAX_MAGNITUDE)][0]
        hint = "; a masked action's logit may be -1e8" if name == "logits" else ""
        raise InvalidInput(name, f"finite numbers up to {MAX_MAGNITUDE:g} in magnitude{hint}", f"{worst}")
    return array


def _bools(name: str, given: Any, shape: tuple[int, ...]) -> Bools:
    array = _shaped(name, _array(name, given, "fiub"), shape)
    if array.dtype != np.bool_ and not ((array == 0) | (array == 1)).all():
        raise InvalidInput(name, "bools, or numbers that are 0 or 1", f"{array[(array != 0) & (array != 1)][0]}")
    return array.astype(bool)


def _optional_bools(name: str, given: Any, shape: tuple[int, ...]) -> Bools | None:
    return None if given is None else _bools(name, given, shape)


def _columns(given: ArrayLike | None, num_columns: int) -> Ints:
    if given is None:
        return np.arange(num_columns)
    columns = _shaped("columns", _array("columns", given, "iu"), (num_columns,))
    if len(np.unique(columns)) != num_columns:
        raise InvalidInput("columns", f"{num_columns} distinct ints", f"{columns.tolist()!s:.80}")
    return columns.astype(np.int64)


_KEPT = ("values", "rewards", "logits")  # of an open episode


@dataclasses.dataclass(frozen=True, slots=True)
class OpenEpisode:
    """The L steps in hand of an episode that has not ended: values (L,), rewards (L,), logits (L, A).

    Fields that the strategy does not read are None.
    """

    level: int
    steps: int
    values: Floats | None
    rewards: Floats | None
    logits: Floats | None


def prepend(open_episodes: Mapping[int, OpenEpisode], rollout: Rollout, columns: Ints) -> Rollout:
    """Puts the open episodes of the columns in front of a block, so that they are scored whole.

    Args:
        open_episodes: by column id. One whose level the block does not go on with was abandoned, and is left out.
        rollout: the block.
        columns: (N,) its column ids.

    Returns:
        A rollout of more steps, (P + T, N), whose rows that no open episode fills are not valid; `rollout` itself where
        there is nothing to prepend.

    Raises:
        InvalidInput: inside an episode, the number of actions in the logits changed, or a field came or went.

    Source: arXiv 2010.03934, appendix C.
    """
    going_on = {
        n: episode
        for n, column in enumerate(columns.tolist())
        if (episode := open_episodes.get(column)) is not None and _goes_on(episode, rollout, n)
    }
    if not going_on:
        return rollout
    first = next(iter(going_on.values()))
    steps = max(episode.steps for episode in going_on.values())
    num_columns = len(columns)
    valid = np.zeros((steps, num_columns), dtype=bool)
    front: dict[str, NDArray[Any]] = {
        "dones": np.zeros((steps, num_columns), dtype=bool),
        "levels": np.zeros((steps, num_columns), dtype=np.int64),
    }
    for name in ("values", "rewards"):
        if getattr(first, name) is not None:
            front[name] = np.zeros((steps, num_columns))
    if first.logits is not None:
        front["logits"] = np.zeros((steps, num_columns, first.logits.shape[1]))
    for n, episode in going_on.items():
        filled = slice(steps - episode.steps, steps)
        valid[filled, n] = True
        front["levels"][filled, n] = episode.level
        for name in _KEPT:
            if name in front:
                front[name][filled, n] = getattr(episode, name)
    for name, absent in (("truncated", False), ("final_values", 0.0), ("successes", UNSAID)):
        if (array := getattr(rollout, name)) is not None:
            front[name] = np.full((steps, num_columns), absent, dtype=array.dtype)
    block_valid = np.ones_like(rollout.dones) if rollout.valid is None else rollout.valid
    return dataclasses.replace(
        rollout,
        valid=np.concatenate([valid, block_valid]),
        **{name: np.concatenate([array, getattr(rollout, name)]) for name, array in front.items()},
    )


def _goes_on(episode: OpenEpisode, rollout: Rollout, n: int) -> bool:
    for name in _KEPT:
        if (getattr(episode, name) is None) != (getattr(rollout, name) is None):
            came = getattr(episode, name) is None
            raise InvalidInput(
                name, "all through an episode or not at all", f"{'some' if came else 'none'}, unlike the block before"
            )
    if episode.logits is not None and rollout.logits is not None and episode.logits.shape[1] != rollout.logits.shape[2]:
        expected = f"{episode.logits.shape[1]} actions, as in the block before"
        raise InvalidInput("logits", expected, f"{rollout.logits.shape[2]}")
    first = 0 if rollout.valid is None else int(rollout.valid[:, n].argmax())
    absent = rollout.valid is not None and not rollout.valid[first, n]
    return absent or int(rollout.levels[first, n]) == episode.level


def keep_open(rollout: Rollout, episodes: Episodes, columns: Ints) -> dict[int, OpenEpisode]:
    """Returns the episodes that the block's end cut, by column id, with their valid rows."""
    kept = {}
    for e in np.flatnonzero(~episodes.finished):
        n = int(episodes.column[e])
        rows = np.arange(episodes.start[e], len(rollout.dones))
        if rollout.valid is not None:
            rows = rows[rollout.valid[rows, n]]
        kept[int(columns[n])] = OpenEpisode(
            level=int(episodes.level[e]),
            steps=len(rows),
            **{name: None if (array := getattr(rollout, name)) is None else array[rows, n] for name in _KEPT},
        )
    return kept


@dataclasses.dataclass(frozen=True, slots=True)
class StepPool:
    """Steps of N env columns that wait to become a block.

    Attributes:
        columns: (N,) the column ids.
        steps: the steps, each a rollout of T = 1.
        going_on: (N,) whether the column's last valid row left its episode open.
        level: (N,) the level of that row.
    """

    columns: Ints
    steps: tuple[Rollout, ...]
    going_on: Bools
    level: Ints


def add_step(pool: StepPool | None, step: Rollout, columns: Ints) -> StepPool:
    """Returns the pool with one more step.

    Raises:
        InvalidInput: the columns, the fields or the number of actions differ from the pool's, or a level changes inside
            an episode.
    """
    if pool is None:
        pool = StepPool(columns, (), np.zeros(len(columns), dtype=bool), np.zeros(len(columns), dtype=np.int64))
    if not np.array_equal(pool.columns, columns):
        expected = f"the columns of the block's first step, {pool.columns.tolist()!s:.80} (mask absent ones with valid)"
        raise InvalidInput("columns", expected, f"{columns.tolist()!s:.80}")
    for name in ("next_values", *_KEPT) if pool.steps else ():
        if (getattr(step, name) is None) != (getattr(pool.steps[0], name) is None):
            got = "none" if getattr(step, name) is None else "some, unlike the block's first step"
            raise InvalidInput(name, "in every step of a block or in none", got)
    if pool.steps and _listed(step.groups) != _listed(pool.steps[0].groups):
        expected = f"the groups of the block's first step, {_listed(pool.steps[0].groups)!s:.80}"
        raise InvalidInput("groups", expected, f"{_listed(step.groups)!s:.80}")
    if pool.steps and step.logits is not None and step.logits.shape != _given_shape(pool.steps[0].logits):
        raise InvalidInput("logits", f"shape {_given_shape(pool.steps[0].logits)[1:]}", f"{step.logits.shape[1:]}")
    valid = np.ones(len(columns), dtype=bool) if step.valid is None else step.valid[0]
    torn = valid & pool.going_on & (step.levels[0] != pool.level)
    if torn.any():
        n = int(torn.argmax())
        expected = (
            f"level {pool.level[n]} until a done in column {columns[n]} (an episode cut off without one: end it with a "
            "done, or close() the trainer, which drops the steps pooled so far)"
        )
        raise InvalidInput("levels", expected, f"level {step.levels[0, n]}")
    return StepPool(
        columns,
        (*pool.steps, step),
        np.where(valid, ~step.dones[0], pool.going_on),
        np.where(valid, step.levels[0], pool.level),
    )


def _given_shape(array: Floats | None) -> tuple[int, ...]:
    return () if array is None else array.shape


def _listed(groups: Ints | None) -> list[int] | None:
    return None if groups is None else groups.tolist()


def join_steps(steps: Sequence[Rollout]) -> Rollout:
    """Joins steps of the same columns, in time order, into one block; the last one's `next_values` count."""
    joined: dict[str, Any] = {"next_values": steps[-1].next_values, "groups": steps[-1].groups}
    for field in dataclasses.fields(Rollout):
        parts = [getattr(step, field.name) for step in steps]
        like = next((part for part in parts if part is not None), None)
        if like is None or field.name in joined:
            continue
        absent = {"valid": True, "successes": UNSAID}.get(field.name, 0)
        joined[field.name] = np.concatenate(
            [np.full(like.shape, absent, like.dtype) if part is None else part for part in parts]
        )
    return Rollout(**joined)

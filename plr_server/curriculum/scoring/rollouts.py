"""Rollouts: what a trainer pushed, checked. The only door for rollout data.

Used by the scorer. Behind `check` every array has the promised shape, dtype and values, and is the curriculum's own.
Pure: no state.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plr_client.errors import InvalidInput, MissingField
from plr_server.curriculum.arrays import Bools, Flags, Floats, Ints, bools, finite, numbers

MAX_STEPS = 2**21  # T x N of one push: at 0.05 to 0.3 us a step it holds the server for half a second at most
MAX_LOGITS = 2**24  # T x N x A
MAX_COLUMNS = 2**16  # N, at up to 7 us a column
UNSAID = -1  # of a success that the trainer says nothing about
FIELDS = (
    "values",
    "rewards",
    "dones",
    "levels",
    "next_values",
    "truncated",
    "final_values",
    "valid",
    "logits",
    "successes",
    "columns",
    "groups",
)


Turn = Callable[[NDArray[Any]], NDArray[Any]]


class Rollout(NamedTuple):
    """One checked rollout block: N env columns of T steps, column-major, so that an episode's steps lie side by side.

    Fields that the strategy does not read are None, but for rewards.

    Attributes:
        columns: (N,) the ids of the columns, distinct.
        dones: (N, T) the action of step t ended the episode.
        levels: (N, T) the level that was active when obs_t was produced.
        values: (N, T) V(s_t).
        rewards: (N, T) r_t.
        next_values: (N,) V(s_T).
        truncated: (N, T) True only where done; None where nowhere.
        final_values: (N, T) V of the terminal observation where truncated, else 0.
        valid: (N, T) False for rows to be dropped; None where nowhere.
        logits: (N, T, A) action logits.
        successes: (N, T) where done, whether the episode was a success: 1, 0, or UNSAID.
        groups: (N,) columns of the same number are the agents of one env; None where every column is an env.
    """

    columns: Ints
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


def check(
    fields: Mapping[str, ArrayLike | None],
    strategy: str,
    *,
    needs: Collection[str],
    takes: Collection[str],
    step: bool = False,
) -> Rollout:
    """Turns what was pushed into a rollout.

    Args:
        fields: by name as in `plr_client.Trainer.push`, (T, N); numbers of any dtype.
        strategy: the name of the strategy, for errors.
        needs: the fields that it reads.
        takes: those that it reads where they were pushed.
        step: the fields are those of one step, (N,), as in `plr_client.Trainer.push_step`.

    Raises:
        InvalidInput: a field has a wrong shape, dtype or value.
        MissingField: a needed field is not there.
    """
    for name in ("levels", "dones", *needs):
        if fields.get(name) is None:
            raise MissingField(name, f"an array: the strategy {strategy} needs it", "none")
    levels = numbers("levels", fields["levels"], "iu")
    if levels.ndim != (1 if step else 2) or 0 in levels.shape:
        expected = "shape (N,), N at least 1" if step else "shape (T, N), T and N at least 1"
        raise InvalidInput("levels", expected, f"shape {levels.shape}")
    if levels.shape[-1] > MAX_COLUMNS:
        raise InvalidInput("levels", f"at most {MAX_COLUMNS} columns in one push", f"shape {levels.shape}")
    if levels.size > MAX_STEPS:
        raise InvalidInput("levels", f"at most {MAX_STEPS} steps (T x N) in one push", f"shape {levels.shape}")
    shape = levels.shape
    turn = _of_step if step else _of_block
    dones = _bools("dones", fields["dones"], shape, turn)
    valid = None if fields.get("valid") is None else _bools("valid", fields["valid"], shape, turn)
    if valid is not None and np.count_nonzero(valid) == valid.size:
        valid = None
    read = (*needs, *takes, "rewards")  # whatever the strategy reads, the table keeps what a level last returned
    kept = {name: array for name, array in _floats(fields, shape, turn, valid).items() if name in read}
    bootstraps = {"values", "rewards", "next_values"} <= kept.keys()
    truncated, final_values = _truncation(
        fields, shape, turn, dones, valid, bootstraps=bootstraps, told="values" in takes
    )
    successes = None
    if fields.get("successes") is not None:
        successes = _bools("successes", fields["successes"], shape, turn).astype(np.int8)
    groups = fields.get("groups")
    return Rollout(
        columns=_columns(fields.get("columns"), shape[-1]),
        dones=dones,
        levels=np.array(turn(levels), dtype=np.int64, order="C"),
        truncated=truncated,
        final_values=final_values,
        valid=valid,
        successes=successes if "successes" in read else None,
        groups=None if groups is None else numbers("groups", groups, "iu", shape[-1:]).astype(np.int64),
        **kept,
    )


def _floats(
    fields: Mapping[str, ArrayLike | None], shape: tuple[int, ...], turn: Turn, valid: Bools | None
) -> dict[str, Floats]:
    """Returns values, rewards, next_values and logits, those that were pushed."""
    found: dict[str, Floats] = {}
    for name in ("values", "rewards"):
        if fields.get(name) is not None:
            found[name] = finite(name, _read(turn(numbers(name, fields[name], "fiub", shape)), valid))
    if fields.get("next_values") is not None:
        found["next_values"] = finite("next_values", numbers("next_values", fields["next_values"], "fiub", shape[-1:]))
    if fields.get("logits") is not None:
        hint = "; a masked action's logit may be -1e8"
        found["logits"] = finite("logits", _read(turn(_logits(fields["logits"], shape)), valid), hint)
    return found


def _truncation(
    fields: Mapping[str, ArrayLike | None],
    shape: tuple[int, ...],
    turn: Turn,
    dones: Bools,
    valid: Bools | None,
    *,
    bootstraps: bool,
    told: bool,
) -> tuple[Bools | None, Floats | None]:
    """Returns truncated, where it is to bootstrap or a score function is told, and final_values, to bootstrap with."""
    truncated: Bools | None = None
    if fields.get("truncated") is not None:
        truncated = _bools("truncated", fields["truncated"], shape, turn)
        if valid is not None:
            truncated &= valid
    final_values: Floats | None = None
    if fields.get("final_values") is not None:
        given = turn(numbers("final_values", fields["final_values"], "fiub", shape))
        final_values = finite("final_values", _read(given, np.zeros_like(dones) if truncated is None else truncated))
    if truncated is None:
        return None, None
    if (truncated & ~dones).any():
        n, t = np.argwhere(truncated & ~dones)[0]
        at = f"True in column {n}" if len(shape) == 1 else f"True at step {t} of column {n}"
        raise InvalidInput("truncated", "True only where dones is", f"{at}, which is not done")
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


def _logits(given: ArrayLike | None, shape: tuple[int, ...]) -> NDArray[Any]:
    logits = numbers("logits", given, "fiu")
    if logits.shape[:-1] != shape or logits.shape[-1] < 2:  # noqa: PLR2004  A >= 2
        expected = f"shape ({', '.join(map(str, shape))}, A), A at least 2"
        raise InvalidInput("logits", expected, f"shape {logits.shape}")
    if logits.size > MAX_LOGITS:
        raise InvalidInput("logits", f"at most {MAX_LOGITS} (T x N x A) in one push", f"shape {logits.shape}")
    return logits


def _of_block(array: NDArray[Any]) -> NDArray[Any]:
    """Returns (N, T, ...) of what came as (T, N, ...)."""
    return array.swapaxes(0, 1)


def _of_step(array: NDArray[Any]) -> NDArray[Any]:
    """Returns (N, 1, ...) of what came as (N, ...)."""
    return array[:, np.newaxis]


def _bools(name: str, given: Any, shape: tuple[int, ...], turn: Turn) -> Bools:
    return np.array(turn(bools(name, given, shape)), order="C")


def _read(array: NDArray[Any], where: Bools | None) -> NDArray[Any]:
    """Returns (N, T, ...) with 0 where (N, T) is False: what stands there does not matter."""
    if where is None:
        return array
    return np.where(where[..., np.newaxis] if array.ndim > where.ndim else where, array, array.dtype.type(0))


def _columns(given: ArrayLike | None, num_columns: int) -> Ints:
    if given is None:
        return np.arange(num_columns)
    columns = numbers("columns", given, "iu", (num_columns,))
    if len(set(columns.tolist())) != num_columns:
        raise InvalidInput("columns", f"{num_columns} distinct ints", f"{columns.tolist()!s:.80}")
    return columns.astype(np.int64)

"""StepPool: steps that were pushed one by one and wait to become a block.

Used by the scorer. Looking is pure; only `append` changes anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plr_client.errors import InvalidInput
from plr_server.curriculum.arrays import Floats, Ints
from plr_server.curriculum.scoring.rollouts import UNSAID, Rollout

STEP_BYTES = 1024  # of a step, beside its numbers
COLUMN_BYTES = 64  # of one column's, beside its logits
_IN_ALL_OR_NONE = ("next_values", "values", "rewards", "logits")


class StepPool:
    """The steps of N env columns since the last block; the first of them says which columns and fields there are.

    Attributes:
        steps: the steps, each a rollout of T = 1.
    """

    def __init__(self) -> None:
        self.steps: list[Rollout] = []
        self._going_on = np.zeros(0, dtype=bool)  # (N,) whether the column's last valid row left its episode open
        self._level = np.zeros(0, dtype=np.int64)  # (N,) the level of that row

    def check(self, step: Rollout) -> None:
        """Tells whether a step can be the next one.

        Raises:
            InvalidInput: the columns, the fields or the number of actions differ from the pool's, or a level changes
                inside an episode.
        """
        if not self.steps:
            return
        first = self.steps[0]
        if _bytes(step.columns) != _bytes(first.columns):
            expected = (
                f"the columns of the block's first step, {first.columns.tolist()!s:.80} (mask absent ones with valid)"
            )
            raise InvalidInput("columns", expected, f"{step.columns.tolist()!s:.80}")
        for name in _IN_ALL_OR_NONE:
            if (getattr(step, name) is None) != (getattr(first, name) is None):
                got = "none" if getattr(step, name) is None else "some, unlike the block's first step"
                raise InvalidInput(name, "in every step of a block or in none", got)
        if _bytes(step.groups) != _bytes(first.groups):
            expected = f"the groups of the block's first step, {_listed(first.groups)!s:.80}"
            raise InvalidInput("groups", expected, f"{_listed(step.groups)!s:.80}")
        if step.logits is not None and _num_actions(step.logits) != _num_actions(first.logits):
            shape = (len(step.columns), _num_actions(first.logits))
            raise InvalidInput("logits", f"shape {shape}, as in the block's first step", f"{step.logits[:, 0].shape}")
        torn = self._going_on & (step.levels[:, 0] != self._level)
        if step.valid is not None:
            torn &= step.valid[:, 0]
        if np.count_nonzero(torn):  # faster than any
            n = int(torn.argmax())
            expected = (
                f"level {self._level[n]} until a done in column {step.columns[n]} (an episode cut off without one: end "
                "it with a done, or close() the trainer, which drops the steps pooled so far)"
            )
            raise InvalidInput("levels", expected, f"level {step.levels[n, 0]}")

    def append(self, step: Rollout) -> None:
        """Adds a step that `check` let through."""
        going_on, level = ~step.dones[:, 0], step.levels[:, 0]
        if step.valid is not None:
            before = (self._going_on, self._level) if self.steps else (np.zeros_like(going_on), np.zeros_like(level))
            valid = step.valid[:, 0]
            going_on, level = np.where(valid, going_on, before[0]), np.where(valid, level, before[1])
        self._going_on, self._level = going_on, level
        self.steps.append(step)

    def state(self) -> dict[str, Any]:
        """Returns the steps as one block, arrays by name (None where a field is absent), and which columns go on."""
        block = joined(self.steps)
        fields = {name: getattr(block, name) for name in Rollout._fields}
        return {"block": fields, "going_on": self._going_on, "level": self._level}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> StepPool:
        """Returns what `state` was taken of."""
        pool = cls()
        block = Rollout(**state["block"])
        pool.steps = [_step(block, t) for t in range(block.dones.shape[1])]
        pool._going_on, pool._level = state["going_on"], state["level"]
        return pool


def bytes_of(step: Rollout) -> int:
    """Returns what a step takes in memory at most, whichever fields it has."""
    return STEP_BYTES + len(step.columns) * (COLUMN_BYTES + 8 * _num_actions(step.logits))


def joined(steps: list[Rollout]) -> Rollout:
    """Joins steps of the same columns, in time order, into one block; the last one's `next_values` count."""
    last = steps[-1]
    fields: dict[str, Any] = {"columns": last.columns, "next_values": last.next_values, "groups": last.groups}
    for name in Rollout._fields:
        parts: list[NDArray[Any] | None] = [getattr(step, name) for step in steps]
        like = next((part for part in parts if part is not None), None)
        if like is None or name in fields:
            continue
        absent = {"valid": True, "successes": UNSAID}.get(name, 0)
        fields[name] = np.concatenate(
            [np.full(like.shape, absent, like.dtype) if part is None else part for part in parts], axis=1
        )
    return Rollout(**fields)


def _step(block: Rollout, t: int) -> Rollout:
    per_column = ("columns", "next_values", "groups")
    fields = {
        name: array if array is None or name in per_column else array[:, t : t + 1]
        for name in Rollout._fields
        if (array := getattr(block, name)) is not None
    }
    return Rollout(**fields)


def _num_actions(logits: Floats | None) -> int:
    return 0 if logits is None else logits.shape[2]


def _bytes(ints: Ints | None) -> bytes | None:
    """Returns what two arrays have in common if they are equal: by far the fastest to compare."""
    return None if ints is None else ints.tobytes()


def _listed(groups: Ints | None) -> list[int] | None:
    return None if groups is None else groups.tolist()

"""LevelClient: asks the server which levels to play next. Used by env workers and wrappers; knows nothing of training.

May be imported by wrappers and users. It imports numpy and the connection, and nothing heavier: a worker pays for no
more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np

from plr_client.connection import Connection
from plr_client.errors import InvalidInput
from plr_client.protocol import DEFAULT_CURRICULUM, MAX_LEVELS_AT_ONCE, split_payloads, unpack_payload

NO_PARENT = -1


@dataclasses.dataclass(frozen=True, slots=True)
class Assignment:
    """One level handed to one env slot.

    Attributes:
        level: the level's id; for seeds the id is the seed.
        is_replay: True where the level was drawn from the seen ones, False where it is new.
        train: whether the trainer should learn from this episode; False only under robust PLR for new levels.
        payload: what the level is, for levels that are more than a number; None for ids.
    """

    level: int
    is_replay: bool
    train: bool
    payload: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class Level:
    """A level that is more than a number.

    Attributes:
        level: its id.
        payload: what it is.
        parent: the id of the level it was made from, which may be gone; None for none.
    """

    level: int
    payload: Any
    parent: int | None


class LevelClient:
    """Asks for levels. The connection opens with the first request, in the process that makes it.

    Args:
        address: where the server listens.
        curriculum: the name of the curriculum, where the server has several.
        timeout_s: seconds without a reply after which a request raises; above 0.

    Raises:
        InvalidInput: the address, the name or the timeout is not what it must be.
    """

    def __init__(self, address: str, *, curriculum: str = DEFAULT_CURRICULUM, timeout_s: float = 30.0) -> None:
        self._connection = Connection(address, curriculum=curriculum, timeout_s=timeout_s)

    @property
    def address(self) -> str:
        """Where the server listens."""
        return self._connection.address

    def next(self, k: int = 1, *, slots: Sequence[int] | None = None) -> list[Assignment]:
        """Returns the levels that k env slots play next.

        Args:
            k: how many levels, 1 to 65 536; 1 to 4096 of payloads.
            slots: which of this client's env slots they are for, k distinct ints; by default 0 to k - 1. The level that
                a slot held before is over: it is no longer in flight.

        Returns:
            k assignments, in the order of `slots`.

        Raises:
            InvalidInput: k or slots are not what they must be.
            NoLevels: the levels are payloads, and none has been inserted yet.
            ServerUnreachable: no reply within the timeout.
        """
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= MAX_LEVELS_AT_ONCE:
            raise InvalidInput("k", f"an integer from 1 to {MAX_LEVELS_AT_ONCE}", repr(k))
        chosen = np.arange(k) if slots is None else np.asarray(slots)
        if chosen.shape != (k,):
            raise InvalidInput("slots", f"{k} slots, one for each level asked for", f"shape {chosen.shape}")
        reply = self._connection.request("next", arrays={"slots": chosen})
        columns = [reply.arrays[name].tolist() for name in ("levels", "is_replay", "train")]
        if "payloads" in reply.arrays:
            columns.append([unpack_payload(packed) for packed in split_payloads(reply.arrays)])
        return [Assignment(*row) for row in zip(*columns, strict=True)]

    def close(self) -> None:
        """Gives back the levels in flight and closes the connection; a later request opens it anew."""
        self._connection.close()

    def __enter__(self) -> LevelClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

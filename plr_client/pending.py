"""Pending: one request of a client, and all that is known of what has become of it.

Used by the exchange, which alone changes it, and by those that wait for an outcome.
"""

from __future__ import annotations

import dataclasses

from plr_client.errors import PlrError
from plr_client.protocol import Frames, Reply

PENDING_BYTES = 512  # of memory, beside its frames


@dataclasses.dataclass(slots=True, eq=False)
class Pending:
    """A request, from when it is asked until nothing can make it be sent again.

    Attributes:
        number: its sequence number.
        op: what is asked for.
        frames: what is sent.
        connection: that the frames are addressed to.
        waited: somebody waits for its outcome; otherwise its error goes to `Exchange.errors`.
        attempts: how often it was sent, less the copies that are known to be lost.
        sent_s: when it was sent last.
        outcome: its reply, or the error that it raises; None before.
        position: how many commands the server's state had seen with it; 0 where it is not known.
        exact: the position is not only one that is not exceeded.
        num_bytes: of it that count in `Exchange.kept_bytes`.
    """

    number: int
    op: str
    frames: Frames
    connection: int
    waited: bool
    attempts: int = 0
    sent_s: float = 0.0
    outcome: Reply | PlrError | None = None
    position: int = 0
    exact: bool = True
    num_bytes: int = 0

    def own(self) -> None:
        """Makes the frames its own, and counts them: after the outcome, who asked may change the arrays."""
        if len(self.frames) > 1:
            self.frames = [self.frames[0], *map(bytes, self.frames[1:])]
        self.num_bytes = PENDING_BYTES + sum(map(len, self.frames))

"""Turns: whose large request is answered next, so that nobody's small one waits for all of them.

Used by the loop alone. Without IO and without a clock; it never reads a frame, only counts its bytes.

libzmq hands over one message of each connection in turn. But a push of two million steps takes a thousand times as long
as a request for a level, and a few trainers that push all the time would have every worker wait for all of theirs. So
the loop answers small requests as they come and puts large ones off; of these it takes a few milliseconds' worth
before it looks again, one of each peer in turn. What a peer says stays in order.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import NamedTuple

from plr_client.errors import PlrError
from plr_client.protocol import Frames

LARGE_BYTES = 64 * 1024  # of a request: 4 000 steps, or 40 us of scoring
MAX_PUT_OFF = 256  # requests
MAX_PUT_OFF_BYTES = 256 * 1024 * 1024


class Received(NamedTuple):
    """A request as it came: who sent it, with which key, its frames, and why it is to be refused unread, if it is."""

    peer: bytes
    key: str | None
    frames: Frames
    refusal: PlrError | None


class Turns:
    """The requests that are put off."""

    def __init__(self) -> None:
        self._of: OrderedDict[bytes, deque[Received]] = OrderedDict()  # peer -> its requests; whose turn it is first
        self._num = self._num_bytes = 0

    def __len__(self) -> int:
        return self._num

    @property
    def full(self) -> bool:
        """Whether no more should be received before some are answered."""
        return self._num >= MAX_PUT_OFF or self._num_bytes >= MAX_PUT_OFF_BYTES

    def put_off(self, received: Received) -> bool:
        """Puts a request off where it is large, or another of its peer is; returns whether it has."""
        peer, _, frames, _ = received
        before = self._of.get(peer) if self._num else None
        if before is None:
            if len(frames) == 1 or sum(map(len, frames)) < LARGE_BYTES:  # a header is small
                return False
            before = self._of[peer] = deque()
        before.append(received)
        self._num += 1
        self._num_bytes += sum(map(len, frames))
        return True

    def next(self) -> Received:
        """Takes out the request whose turn it is; there must be one."""
        peer, requests = self._of.popitem(last=False)
        received = requests.popleft()
        if requests:
            self._of[peer] = requests  # behind the others
        self._num -= 1
        self._num_bytes -= sum(map(len, received.frames))
        return received

"""Journal: one segment that grows, record after record, and what of it is on the disk.

Used by the state folder. A write that fails leaves nothing behind. A sync that fails is never tried again: the system
then forgets what it could not write, and a second one would say that all is well; the journal is over, and a snapshot
in new files takes its place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

from plr_server.durability import files
from plr_server.durability.records import Kind, Link, Origin, encode, encode_origin
from plr_server.durability.values import num_bytes

JOINED_BYTES = 16 * 1024  # of a payload: less costs least in one piece


class Journal:
    """A new segment, which is on the disk when this returns.

    Args:
        path: its file.
        origin: what it belongs to.
        after: the last record of the segment before.
        synced: up to which command all are on the disk.
        syncer: syncs in the background.
        check: called after each sync, before anything counts as synced by it, in the background too; what it raises is
            raised by `sync` and `look`.

    Attributes:
        link: the last record.
        synced: up to which command all are on the disk.
        num_bytes: how long the segment is.
        failed: what ended this journal, a sync or what could not be taken back of a write; None while nothing did.

    Raises:
        OSError: it cannot be made; FileExistsError, where there is one of that name.
    """

    def __init__(
        self,
        path: Path,
        origin: Origin,
        after: Link,
        synced: int,
        *,
        syncer: Executor,
        check: Callable[[], None],
    ) -> None:
        first, self.link = encode_origin(origin, after, synced)
        self.path, self.synced, self.num_bytes = path, synced, len(first)
        self.failed: OSError | None = None
        self._salt = origin.salt
        self._said = synced  # up to which command a record says so
        self._syncer, self._check = syncer, check
        self._syncing: tuple[int, Future[None]] | None = None  # up to which command
        self._file = files.create(path, [first], replace=False)

    def append(self, kind: Kind, payload: Sequence[Any]) -> None:
        """Writes a record after the last one.

        Raises:
            OSError: it cannot be written, and nothing of it was.
        """
        if self.failed is not None:
            raise self.failed
        length, said = num_bytes(payload), self.synced
        if length < JOINED_BYTES:
            payload = [b"".join(payload)]
        header, link = encode(kind, self.link, said, payload, self._salt)
        try:
            files.write_all(self._file, [header, *payload])
        except OSError:
            self._cut()
            raise
        self.link, self._said = link, said
        self.num_bytes += len(header) + length

    def _cut(self) -> None:
        """Takes back what a failed write has left."""
        try:
            files.truncate(self._file, self.num_bytes)
        except OSError as exc:
            self.failed = exc

    def sync(self) -> None:
        """Has everything written so far on the disk.

        Raises:
            OSError: it may not be there, and this journal is over.
        """
        if self._syncing is not None:
            self._syncing[1].exception()  # the system tells of a failure once: one of two would not hear of it
        self.look()
        sequence = self.link.sequence
        try:
            self._sync()
        except OSError as exc:
            self.failed = exc
            raise
        self.synced = sequence

    def _sync(self) -> None:
        files.sync_data(self._file)
        self._check()

    def sync_behind(self) -> None:
        """Begins to sync in the background, unless that goes on already; `look` sees when it is done."""
        if self._syncing is None and self.failed is None and self.link.sequence > self.synced:
            self._syncing = self.link.sequence, self._syncer.submit(self._sync)

    def look(self) -> bool:
        """Takes note of a sync in the background that is done; returns whether none goes on.

        Raises:
            OSError: it failed, or what a failed write had left could not be taken back: this journal is over.
        """
        if self.failed is not None:
            raise self.failed
        if self._syncing is None:
            return True
        sequence, syncing = self._syncing
        if not syncing.done():
            return False
        self._syncing = None
        try:
            syncing.result()
        except OSError as exc:
            self.failed = exc
            raise
        self.synced = max(self.synced, sequence)
        return True

    def say_synced(self) -> None:
        """Writes down what is known to be on the disk, so that damage to it will be told from a tear.

        Raises:
            OSError: as `append`.
        """
        if self.synced > self._said:
            self.append(Kind.SYNCED, [])

    def close(self) -> None:
        """Closes the file, once nothing is done to it in the background."""
        if self._syncing is not None:
            self._syncing[1].exception()
        with contextlib.suppress(OSError):  # of a write that failed, which has been told
            files.close(self._file)

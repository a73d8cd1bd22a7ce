"""What the journal and the snapshots do to files: whole writes, and files that are there whole or not at all.

Used by them alone. Every function raises OSError where the disk does not do its part.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plr_server.durability.values import num_bytes

TEMPORARY = ".tmp"
_MODE = 0o600
_MAX_BUFFERS = 512  # of one call of writev; the system takes at least 1 024


def write_all(file: int, buffers: Sequence[Any]) -> None:
    """Writes buffers to a descriptor, however many calls that takes."""
    left = num_bytes(buffers)
    written = os.writev(file, buffers[:_MAX_BUFFERS])
    if written == left:
        return
    views = [memoryview(buffer).cast("B") for buffer in buffers if memoryview(buffer).nbytes]
    while True:
        while views and written >= views[0].nbytes:
            written -= views.pop(0).nbytes
        if not views:
            return
        views[0] = views[0][written:]
        written = os.writev(file, views[:_MAX_BUFFERS])


def create(path: Path, buffers: Sequence[Any]) -> int:
    """Makes a file that after a crash is there whole, or not at all; replaces one of that name.

    Returns:
        Its descriptor, open for writing at its end.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _MODE)
    try:
        write_all(file, buffers)
        os.fsync(file)
        temporary.rename(path)
        temporary = path
        sync_folder(path.parent)
    except BaseException:
        os.close(file)
        temporary.unlink(missing_ok=True)
        raise
    return file


def sync_folder(folder: Path) -> None:
    """Has the names in a folder on the disk."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)

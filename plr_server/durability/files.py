"""All that a state folder asks of the system: single calls on files, and files that are there whole or not at all.

Used by plr_server.durability alone, which touches no file but through here: the first part is single calls, which the
tests put a simulated disk in the place of; the second is made of them. Every function raises OSError where the disk
does not do its part.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plr_client.errors import StateDirTaken
from plr_server.durability.values import num_bytes

TEMPORARY = ".tmp"
LOCK = "lock"
_MODE = 0o600
_MAX_BUFFERS = 512  # of one call of writev; the system takes at least 1 024

# ---- single calls


def make_folder(folder: Path) -> None:
    """Makes a folder that only its owner may read, unless it is there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def lock(folder: Path, owner: str, *, take_over: bool) -> int:
    """Makes somebody a folder's owner; returns the descriptor that holds its lock, as long as it is open.

    Args:
        folder: it.
        owner: whom `owner_of` names from now on; on the disk when this returns.
        take_over: even where another server holds the lock: a new one comes in its place.

    Raises:
        StateDirTaken: another server holds it.
    """
    path = folder / LOCK
    if take_over:
        file = create(path, [owner.encode()])
        _flock(file, folder)
        return file
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE)
        _flock(file, folder)
        if path.exists() and os.fstat(file).st_ino == path.stat().st_ino:
            break
        os.close(file)  # a new one came in its place just then
    os.ftruncate(file, 0)
    os.write(file, owner.encode())
    os.fsync(file)
    return file


def _flock(file: int, folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(file)
        raise StateDirTaken(str(folder), owner_of(folder)) from exc


def owner_of(folder: Path) -> str:
    """Returns who locked a folder last: asks the file by its name, as another machine may have put it there."""
    file = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(file, 256).decode(errors="replace")
    finally:
        os.close(file)


def names(folder: Path) -> list[str]:
    """Returns the names in a folder."""
    return [path.name for path in folder.iterdir()]


def read(path: Path) -> bytes:
    """Returns what is in a file."""
    return path.read_bytes()


def open_new(path: Path) -> int:
    """Returns the descriptor of an empty file, in the place of one of that name."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _MODE)


def write(file: int, buffers: Sequence[Any]) -> int:
    """Writes buffers at the end of a file, or the first part of them; returns how many bytes."""
    return os.writev(file, buffers[:_MAX_BUFFERS])


def sync(file: int) -> None:
    """Has a file on the disk."""
    os.fsync(file)


def sync_data(file: int) -> None:
    """Has the bytes of a file on the disk, and its length."""
    os.fdatasync(file)


def sync_folder(folder: Path) -> None:
    """Has the names in a folder on the disk."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def truncate(file: int, length: int) -> None:
    """Takes back what a file has beyond so many bytes, and goes on writing there."""
    os.ftruncate(file, length)
    os.lseek(file, length, os.SEEK_SET)


def rename(old: Path, new: Path) -> None:
    """Gives a file another name, in the place of one that has it."""
    old.rename(new)


def link(old: Path, new: Path) -> None:
    """Gives a file a second name, which nothing may have (FileExistsError), also where several servers try at once."""
    os.link(old, new)


def unlink(path: Path) -> None:
    """Removes a file."""
    path.unlink()


def close(file: int) -> None:
    """Closes a descriptor."""
    os.close(file)


# ---- made of them


def write_all(file: int, buffers: Sequence[Any]) -> None:
    """Writes buffers at the end of a file, however many calls that takes."""
    left = num_bytes(buffers)
    written = write(file, buffers)
    if written == left:
        return
    views = [memoryview(buffer).cast("B") for buffer in buffers if memoryview(buffer).nbytes]
    while True:
        while views and written >= views[0].nbytes:
            written -= views.pop(0).nbytes
        if not views:
            return
        views[0] = views[0][written:]
        written = write(file, views)


def create(path: Path, buffers: Sequence[Any], *, replace: bool = True) -> int:
    """Makes a file that after a crash is there whole, or not at all.

    Args:
        path: its name.
        buffers: what is in it.
        replace: it may come in the place of one of that name; otherwise that is a FileExistsError.

    Returns:
        Its descriptor, open for writing at its end.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{TEMPORARY}")  # nobody else's, on no machine
    file = open_new(temporary)
    there = temporary
    try:
        write_all(file, buffers)
        sync(file)
        if replace:
            rename(temporary, path)
            there = path
        else:
            link(temporary, path)
            there = path
            unlink(temporary)
        sync_folder(path.parent)
    except BaseException:
        close(file)
        unlink(there)
        raise
    return file

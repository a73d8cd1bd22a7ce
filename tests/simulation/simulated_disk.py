"""A disk that keeps what it has to keep, and of the rest what chance leaves; and the server's crash at any call to it.

It takes the place of the single calls of plr_server.durability.files. One folder, for a state folder has no other.
"""

from __future__ import annotations

import errno
import os
import random

from plr_server.durability import files
from plr_server.durability.records import MAGIC, read_origin, read_records

CALLS = (
    "make_folder",
    "lock",
    "owner_of",
    "names",
    "read",
    "open_new",
    "write",
    "sync",
    "sync_data",
    "sync_folder",
    "truncate",
    "rename",
    "link",
    "unlink",
    "close",
)
SECTOR_BYTES = 64  # what is written whole or not at all; smaller than a real one, as the files here are


class Crash(KeyboardInterrupt):
    """The server's process ends here. The dispatcher takes every other exception for a bug, and goes on."""


class Inode:
    """A file, as it is for who reads it now, and as it is on the disk."""

    def __init__(self, content=b""):
        self.data = bytearray(content)
        self.synced = bytes(content)
        self.clean = len(content)  # up to this byte nothing has changed since it was last synced
        self.given_up = []  # (begin, end) of what a failed sync has left unwritten, and the system takes for written

    def written(self):
        """What is on the disk once all is, but for what was given up."""
        content = self.data[:]
        for begin, end in self.given_up:
            content[begin:end] = self.synced[begin:end].ljust(len(content[begin:end]), b"\0")
        return bytes(content)


class SimulatedDisk:
    """A disk with one folder.

    Attributes:
        crash_in: after how many calls the server's process ends; None for never.
        full: there is no space: writes end early, new files cannot be made.
        failing: calls that fail, each with this probability.
        failing_once: calls that fail the next time.
        lies: a sync says that it was done, and does nothing.
        may_look_damaged: a loss of power has left what no tear explains: a hole with whole records after it, or less
            than a sync had said.
        rotten: the file that a bit has turned over in, and what was in it before; None for none.
    """

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.crash_in = None
        self.full = self.lies = self.may_look_damaged = False
        self.failing, self.failing_once = {}, set()
        self._dead = False
        self._entries, self._synced_entries, self._changes = {}, {}, []
        self._open, self._num_opened = {}, 0
        self.rotten = None
        self._stale = b""  # what was in a file that is gone: its sectors may turn up in another one

    def __enter__(self):
        self._real = {name: getattr(files, name) for name in CALLS if hasattr(files, name)}
        for name in self._real:
            setattr(files, name, getattr(self, name))
        return self

    def __exit__(self, *_):
        for name, call in self._real.items():
            setattr(files, name, call)

    # ---- what happens to it

    def process_ends(self):
        """What was written stays."""
        self._open, self._dead, self.crash_in = {}, False, None

    def power_fails(self):
        """What was not synced stays, or does not, or is something else."""
        self.process_ends()
        self.is_restored()
        rng, kept = self.rng, self._synced_entries
        changes = self._changes
        if rng.random() < 0.5:
            changes = changes[: rng.randrange(len(changes) + 1)]
        else:
            changes = [change for change in changes if rng.random() < 0.5]
        for change in changes:
            for name, inode in change.items():
                if inode is None:
                    kept.pop(name, None)
                else:
                    kept[name] = inode
        self._entries = {name: Inode(self._left_of(inode)) for name, inode in kept.items()}
        self._synced_entries, self._changes = dict(self._entries), []
        self.may_look_damaged |= self.lies

    def _left_of(self, inode):
        rng, old, new, begin = self.rng, inode.synced, inode.written(), inode.clean
        if bytes(new) == old:
            return old
        self.may_look_damaged |= bool(inode.given_up)
        kind = rng.randrange(6)
        if kind == 0:
            return old
        if kind == 1:
            return new
        cut = rng.randrange(begin, len(new) + 1)
        if kind == 2:
            return new[:cut]
        if kind == 3:  # as long as it was, the end something else
            return new[:cut] + self._filling(len(new) - cut)
        left = bytearray(new)
        for at in range(begin - begin % SECTOR_BYTES, len(new), SECTOR_BYTES):
            if rng.random() < 0.4:
                hole = slice(max(begin, at), min(at + SECTOR_BYTES, len(new)))
                left[hole] = self._filling(hole.stop - hole.start)
                self.may_look_damaged = True
        return bytes(left)

    def _filling(self, length):
        kind = self.rng.randrange(3)
        if kind == 0 or length == 0:
            return bytes(length)
        if kind == 1 or len(self._stale) < length:
            return self.rng.randbytes(length)
        last = len(self._stale) - length
        record = self._stale.rfind(MAGIC, 0, self.rng.randrange(last + 1) + 1)
        begin = max(record, 0)
        return self._stale[begin : begin + length]

    def rots(self):
        """A bit of what was synced turns over, in a snapshot, or in a journal where a whole record follows."""
        self.is_restored()
        places = []
        for name, inode in self._entries.items():
            end = len(inode.data) if name.startswith("snapshot") else _last_record(memoryview(bytes(inode.data)))
            if name.endswith(".plr") and end:
                places.append((inode, end))
        if places:
            inode, end = self.rng.choice(places)
            self.rotten = inode, inode.data[:], inode.synced
            place, bit = self.rng.randrange(end), 1 << self.rng.randrange(8)
            inode.data[place] ^= bit
            inode.synced = bytes(inode.data)
            inode.clean = len(inode.data)

    def is_restored(self):
        """The rotten file is as it was, from a copy; returns whether there was one."""
        if self.rotten is None:
            return False
        (inode, inode.data, inode.synced), self.rotten = self.rotten, None
        return True

    # ---- the calls

    def _call(self, name):
        if self._dead:
            raise Crash
        if self.crash_in is not None:
            self.crash_in -= 1
            if self.crash_in < 0:
                self._dead = True
                raise Crash
        fails = name in self.failing_once or (self.failing and self.rng.random() < self.failing.get(name, 0.0))
        self.failing_once.discard(name)
        if fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _change(self, entries):
        """Notes what names mean now; all of it is on the disk at once, or nothing is."""
        for name, inode in entries.items():
            gone = self._entries.pop(name, None)
            if inode is not None:
                self._entries[name] = inode
            elif len(entries) == 1 and name.startswith("journal"):
                self._stale = bytes(gone.data)
        self._changes.append(entries)

    def _inode(self, path):
        if path.name not in self._entries:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return self._entries[path.name]

    def _opened(self, inode):
        self._num_opened += 1
        self._open[self._num_opened] = inode
        return self._num_opened

    def make_folder(self, _folder):
        pass

    def lock(self, _folder, owner="", **_):
        self._owner = owner
        return self._opened(None)

    def owner_of(self, _folder):
        return self._owner

    def names(self, _folder):
        self._call("names")
        return list(self._entries)

    def read(self, path):
        self._call("read")
        return bytes(self._inode(path).data)

    def open_new(self, path):
        self._call("open_new")
        if self.full and self.rng.random() < 0.5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        inode = Inode()
        self._change({path.name: inode})
        return self._opened(inode)

    def write(self, file, buffers):
        inode, joined = self._open[file], b"".join(buffers)
        if self.crash_in == 0:  # in the middle of it
            inode.data += joined[: self.rng.randrange(len(joined) + 1)]
        self._call("write")
        if self.full:
            room = self.rng.randrange(len(joined)) if self.rng.random() < 0.5 else 0
            if not room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            joined = joined[:room]
        inode.data += joined
        return len(joined)

    def sync(self, file):
        inode = self._open[file]
        try:
            self._call("sync")
        except OSError:
            inode.given_up.append((inode.clean, len(inode.data)))
            inode.clean = len(inode.data)
            raise
        if not self.lies:
            inode.synced, inode.clean = inode.written(), len(inode.data)

    sync_data = sync

    def sync_folder(self, _folder):
        self._call("sync_folder")
        if not self.lies:
            self._synced_entries, self._changes = dict(self._entries), []

    def truncate(self, file, length):
        self._call("truncate")
        inode = self._open[file]
        del inode.data[length:]
        inode.clean = min(inode.clean, length)
        inode.given_up = [(begin, min(end, length)) for begin, end in inode.given_up if begin < length]

    def rename(self, old, new):
        self._call("rename")
        self._change({old.name: None, new.name: self._inode(old)})

    def link(self, old, new):
        self._call("link")
        if new.name in self._entries:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(new))
        self._change({new.name: self._inode(old)})

    def unlink(self, path):
        self._call("unlink")
        self._inode(path)
        self._change({path.name: None})

    def close(self, file):
        if self._dead:
            raise Crash
        del self._open[file]


def _last_record(data):
    """Where the last whole record of a journal begins; 0 for nowhere."""
    begun = read_origin(data)
    if begun is None:
        return 0
    ends = [0, begun[1].end, *(record.end for record in read_records(data, begun[1], begun[0].salt))]
    return ends[-2]


class Background:
    """The thread of the disk: does what it was given, one thing after the other, when it is told to."""

    def __init__(self):
        self._jobs = []

    def submit(self, do, *arguments):
        self._jobs.append(Job(self, do, arguments))
        return self._jobs[-1]

    @property
    def busy(self):
        return bool(self._jobs)

    def step(self):
        """Does the first of what waits, if anything does."""
        if self._jobs:
            self._jobs.pop(0).do_it()

    def until(self, job):
        while not job.done():
            self.step()

    def shutdown(self):
        while self._jobs:
            self.step()


class Job:
    """A future of `Background`; who needs the result has it done."""

    def __init__(self, background, do, arguments):
        self._background, self._do, self._arguments = background, do, arguments
        self._done, self._exception, self._result = False, None, None

    def do_it(self):
        try:
            self._result = self._do(*self._arguments)
        except OSError as exc:
            self._exception = exc
        self._done = True

    def done(self):
        return self._done

    def exception(self):
        self._background.until(self)
        return self._exception

    def result(self):
        if (exception := self.exception()) is not None:
            raise exception
        return self._result

"""StateDir: the folder that a server's state outlives it in. One server at a time; one folder for all its curricula.

Used by plr_server.serving: it hands over every command before it applies it, and asks after each batch whether replies
may go out. The folder decides when to sync, when to take a snapshot, and what to remove. It reads the clock for that
alone: nothing that is written depends on it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from plr_client.errors import ConfigError, ServerStartError, StateDirTaken, StateNotWritten, counted
from plr_server.durability import files
from plr_server.durability.journal import Journal
from plr_server.durability.owner import Owner
from plr_server.durability.records import Kind, Link, Origin, encode_digest
from plr_server.durability.recovery import (
    BROKEN,
    Run,
    config_digest,
    generations,
    journal_path,
    read_history,
    snapshot_path,
)
from plr_server.durability.snapshot import write_snapshot
from plr_server.durability.values import digest, pack

logger = logging.getLogger("plr_server")

FSYNC = ("never", "interval", "always")
SYNC_EVERY_S = 1.0  # under "interval"
MAX_RUNS = 1_000  # that are remembered
RETRY_AFTER_S = 1.0  # where the folder could not be written
SNAPSHOT_AFTER_BYTES = 256 * 1024 * 1024  # of journal: both bound how long a recovery takes
SNAPSHOT_AFTER_COMMANDS = 50_000
DIGEST_AFTER_COMMANDS = 10_000


class StateDir:
    """A state folder that this process alone writes to: where another one takes it over, StateDirTaken ends this one.

    No file is ever replaced by another server's: each journal has a number of its own, and so does its snapshot.

    Args:
        path: the folder; made where there is none.
        fsync: when a command is on the disk: "always" before its reply, "interval" within about a second, "never" when
            the system sees fit. Snapshots always are.
        accept_loss: go on from what can be trusted, where something is damaged.
        take_over: even where another server has the folder, which then ends.

    Attributes:
        history: what the folder held; without its contents once the server has begun.
        epoch: names the state; it stays as long as nothing is lost.
        runs: those of servers on this folder, this one's the last.
        sequence: how many commands the state has seen.
        accept_loss: as given.
        holds_replies: replies have to wait for `commit`.

    Raises:
        ConfigError: there is no such way to sync.
        StateDirTaken: another server has the folder.
        StateDamaged: something is missing that was in it, and that is not accepted.
        ServerStartError: it cannot be read or written.
    """

    def __init__(
        self, path: Path, *, fsync: str = "interval", accept_loss: bool = False, take_over: bool = False
    ) -> None:
        if fsync not in FSYNC:
            raise ConfigError("fsync", f"one of {', '.join(FSYNC)}", repr(fsync))
        self._path, self._fsync = path, fsync
        self.accept_loss = accept_loss
        self.holds_replies = fsync == "always"
        try:
            files.make_folder(path)
            self._owner = Owner(path, take_over=take_over)
            self.history = read_history(path)
        except OSError as exc:
            raise ServerStartError(f"state_dir: expected a folder to read and write, got {path} ({exc})") from exc
        damaged = self.history.damaged
        if damaged and not accept_loss:
            self._owner.leave()
            raise next(iter(damaged.values()))
        for error in damaged.values():
            what = f"{error.file}: {error.record}: {error.reason}"
            logger.error("accepting a loss: %s: %s. What is there is kept as %s", what, error.at_stake, BROKEN)
        for segment in self.history.segments if not damaged else ():
            if segment.tail is not None and segment.tail.num_bytes:
                torn, last = segment.tail.num_bytes, segment.last.sequence
                logger.warning(
                    "%s: the last %s are dropped, a record that was not written whole; all %s before it are there",
                    segment.path,
                    counted(torn, "byte"),
                    counted(last, "command"),
                )
        lasts = self.history.epoch and not damaged
        self.epoch = self.history.epoch if lasts else secrets.randbits(63)
        self.sequence = self.history.end.sequence
        self.runs = [*self.history.runs, Run(secrets.randbits(63), self.sequence)][-MAX_RUNS:]
        self._generation = self.history.generation
        self._link = self.history.end
        self._synced = max([self.history.begin.sequence, *(segment.synced for segment in self.history.segments)])
        self._background = ThreadPoolExecutor(1, "plr-disk")
        self._state_of: Callable[[Any], Any]
        self._spare: Any = None  # a state that is done with: the next one takes its memory
        self._config = ""
        self._journal: Journal | None = None
        self._since = self._digested = self.sequence  # the newest snapshot, the newest digest
        self._snapshot: tuple[Any, Future[None]] | None = None  # of which state
        self._digest: tuple[int, Any, Future[bytes]] | None = None  # after which command, of which state
        self._wanted = False  # a snapshot
        self._closed = self._complained = False  # about a write that failed
        self._behind: str | None = None  # why the newest state is in memory alone
        self._sync_s = self._retry_s = self._snapshot_s = time.monotonic()

    # ---- what the server does

    def begin(self, state_of: Callable[[Any], Any], config: str) -> None:
        """Writes the state that the server begins with, and is ready for commands from then on.

        Args:
            state_of: returns the server's state at any time, a plain value that nobody changes afterwards; it is given
                one that it returned before, or None, whose memory it may use.
            config: the configuration of its curricula, as text.

        Raises:
            ServerStartError: it cannot be written.
        """
        self._state_of, self._config = state_of, config_digest(config)
        try:
            for name in files.names(self._path):
                if name.endswith(files.TEMPORARY):
                    files.unlink(self._path / name)
            self._start_over()
        except OSError as exc:
            raise ServerStartError(f"state_dir: expected to write to {self._path}, got: {exc}") from exc
        self.history = dataclasses.replace(self.history, state=None, segments=[])  # as large as it is

    def write(self, kind: Kind, payload: Sequence[Any], *, op: str, needed: bool) -> None:
        """Writes down a command that is about to be applied.

        Args:
            kind: REQUEST or DECISION.
            payload: buffers with all that it takes to apply it again.
            op: what it is, for the error.
            needed: do not apply it where it cannot be written. Otherwise it goes ahead, in memory alone until the
                folder can be written again.

        Raises:
            StateNotWritten: it is needed, and cannot be written.
        """
        if self._behind is None:
            assert self._journal is not None  # noqa: S101  `begin` comes first
            try:
                self._journal.append(kind, payload)
            except OSError as exc:
                if not self._complained:
                    logger.error("%s could not be written to %s: %s", op, self._path, exc)  # noqa: TRY400
                self._complained = True
                if not needed or self._journal.failed is not None:
                    self._fall_behind(exc)
                if needed:
                    raise StateNotWritten(op, f"{exc}") from exc
            self.sequence += 1
            if self._complained and self._behind is None:
                self._say_written()
        elif needed:
            raise StateNotWritten(op, self._behind)
        else:
            self.sequence += 1

    @property
    def durable(self) -> int:
        """Up to which command all are as durable as `fsync` promises, once `commit` has let replies go."""
        if self._behind is not None or self._fsync == "interval":
            return self._synced
        return self.sequence

    def survived(self, run: int | None) -> int:
        """Returns how many commands the state has seen of those that it had seen at the end of a run; -1 if not known.

        Args:
            run: its name.
        """
        ends = [*(later.begin for later in self.runs[1:]), self.sequence]
        return next((end for each, end in zip(self.runs, ends, strict=True) if each.name == run), -1)

    def hurry(self) -> None:
        """Begins to sync in the background what is not as durable as `fsync` promises; call it again to see it done."""
        self._sync_s = 0.0
        with contextlib.suppress(StateDirTaken):  # that will end the server at its next look
            self.look_after()

    def commit(self) -> bool:
        """Ends a batch of commands; returns whether their replies may go out, which always is so but under "always".

        Raises:
            StateDirTaken: another server has taken the folder over: no reply may go out.
        """
        if not self.holds_replies:
            self._take_digest()
            return True
        journal = self._journal
        assert journal is not None  # noqa: S101  `begin` comes first
        if journal.link.sequence > journal.synced and journal.failed is None:
            try:
                journal.sync()
                self._synced = journal.synced
            except OSError as exc:
                self._sync_failed(exc)
        self._take_digest()
        return self._journal is not None and self._journal.failed is None

    def look_after(self) -> None:
        """Does what has come due: background syncs, snapshots, another try where writing failed. Call it often.

        Raises:
            StateDirTaken: another server has taken the folder over.
        """
        now_s = time.monotonic()
        if self._behind is not None:
            if self._retry_s <= now_s:
                self._catch_up()
            return
        self._look_at_snapshot()
        self._look_at_digest()
        journal = self._journal
        assert journal is not None  # noqa: S101  `begin` comes first
        try:
            second_over = self._sync_s <= now_s
            if second_over:
                self._sync_s = now_s + SYNC_EVERY_S
                self._owner.check()
            idle = journal.look()
            self._synced = max(self._synced, journal.synced)
            if self._wants_snapshot():
                if not idle:
                    return
                if journal.synced < journal.link.sequence and not self._wanted:
                    self._wanted = True  # first what has piled up, in the background; then the rest of it is little
                    journal.sync_behind()
                    return
                self._cut()
            elif second_over and self._fsync == "interval":
                journal.sync_behind()
        except OSError as exc:
            self._sync_failed(exc)
            return
        with contextlib.suppress(OSError):  # the next command will tell
            journal = self._journal
            if journal is not None and self._fsync != "never":
                journal.say_synced()

    def health(self) -> dict[str, Any]:
        """Returns how the folder does, for people: the keys of `plr_client.Trainer.counters` that are about it."""
        return {
            "commands": self.sequence,
            "durable_commands": self.durable,
            "journal_bytes": 0 if self._journal is None else self._journal.num_bytes,
            "snapshot_age_s": round(time.monotonic() - self._snapshot_s, 1),
            "disk_error": self._behind or "",
        }

    def save(self) -> None:
        """Takes a snapshot, which is on the disk when this returns.

        Raises:
            StateNotWritten: it cannot be written; the journal goes on.
        """
        try:
            self._start_over()
        except OSError as exc:
            raise StateNotWritten("save", f"{exc}") from exc

    def close(self) -> None:
        """Takes a last snapshot, so that the next start has nothing to replay, and lets the folder go; once."""
        if self._closed:
            return
        self._closed = True
        if self._journal is not None:
            with contextlib.suppress(StateDirTaken):
                self._write_last()
            self._journal.close()
        self._background.shutdown()
        self._owner.leave()

    # ---- what comes of it

    def _write_last(self) -> None:
        assert self._journal is not None  # noqa: S101
        try:
            self._start_over()
        except OSError as exc:
            logger.error("no last snapshot could be written, the journal has it: %s", exc)  # noqa: TRY400
            with contextlib.suppress(OSError):
                self._journal.sync()

    def _wants_snapshot(self) -> bool:
        assert self._journal is not None  # noqa: S101
        due = (
            self._wanted
            or self._journal.num_bytes > SNAPSHOT_AFTER_BYTES
            or self.sequence - self._since > SNAPSHOT_AFTER_COMMANDS
        )
        return due and not self._holds_state()

    def _holds_state(self) -> bool:
        """Returns whether something is done with a state in the background: at most one is kept beside the spare."""
        return self._snapshot is not None or self._digest is not None

    def _state(self) -> Any:
        state, self._spare = self._state_of(self._spare), None
        return state

    def _take_digest(self) -> None:
        due = self.sequence - self._digested >= DIGEST_AFTER_COMMANDS
        if due and self._behind is None and not self._holds_state():
            self._digested, state = self.sequence, self._state()
            self._digest = self.sequence, state, self._background.submit(lambda: digest(pack(state)))

    def _look_at_digest(self) -> None:
        if self._digest is None or not self._digest[2].done():
            return
        (sequence, self._spare, digested), self._digest = self._digest, None
        assert self._journal is not None  # noqa: S101
        with contextlib.suppress(OSError):  # the next command will tell
            self._journal.append(Kind.DIGEST, [encode_digest(sequence, digested.result())])

    def _cut(self) -> None:
        """Begins a generation; its snapshot is written in the background.

        Raises:
            OSError: a sync failed, or the new journal cannot be made.
        """
        self._wanted = False
        old = self._journal
        assert old is not None  # noqa: S101
        old.sync()
        self._synced = self.sequence
        state = self._state()
        body = self._body(old.link, state)
        self._journal = self._new_journal(old.link)
        old.close()
        self._since = self.sequence
        self._snapshot = state, self._background.submit(self._write_snapshot, self._generation, body)

    def _write_snapshot(self, generation: int, body: list[Any]) -> None:
        write_snapshot(snapshot_path(self._path, generation), body)
        self._owner.check()
        self._remove_before(generation)

    def _look_at_snapshot(self) -> None:
        if self._snapshot is None or not self._snapshot[1].done():
            return
        (self._spare, written), self._snapshot = self._snapshot, None
        try:
            written.result()
            self._snapshot_s = time.monotonic()
        except OSError as exc:
            logger.error("a snapshot could not be written, the journal goes on: %s", exc)  # noqa: TRY400

    def _start_over(self) -> None:
        """Begins a generation, journal and snapshot, from what is in memory.

        Raises:
            OSError: it cannot be written; what was there is there still.
            StateDirTaken: another server has taken the folder over.
        """
        self._owner.check()
        for held in (self._snapshot, self._digest):
            if held is not None:
                held[-1].exception()
                self._spare = held[-2]
        self._snapshot = self._digest = None
        state = self._state()
        old = self._journal
        link = Link(self.sequence, self._link.crc if old is None else old.link.crc)
        journal = self._new_journal(link)
        try:
            write_snapshot(snapshot_path(self._path, self._generation), self._body(link, state))
            self._owner.check()
        except StateDirTaken:  # from now on nothing in it is ours
            journal.close()
            raise
        except BaseException:
            journal.close()
            self._withdraw()
            raise
        self._journal, self._synced, self._since = journal, self.sequence, self.sequence
        was_behind, self._behind = self._behind is not None, None
        self._wanted, self._spare = False, state
        self._snapshot_s = time.monotonic()
        if old is not None:
            old.close()
        self._remove_before(self._generation)
        if was_behind:
            self._say_written()

    def _withdraw(self) -> None:
        """Takes back a generation that could not be begun, for the older journal may go on.

        A snapshot of it that came back after a loss of power would hide what that journal takes from now on, and one
        that came back without its journal would look like damage: so the snapshot goes first, for good. Where it is not
        known to be gone, the older journal is over.
        """
        snapshot = snapshot_path(self._path, self._generation)
        try:
            if snapshot.name in files.names(self._path):
                files.unlink(snapshot)
            files.sync_folder(self._path)
        except OSError as exc:
            self._fall_behind(exc)
            return
        with contextlib.suppress(OSError):  # an empty journal is passed over
            files.unlink(journal_path(self._path, self._generation))
            self._generation -= 1

    def _new_journal(self, after: Link) -> Journal:
        """Begins a journal of the next number that is free.

        Who takes the folder over counts on from all files that it finds, so that a number which is taken although the
        folder is this server's can only be left over.
        """
        while True:
            self._generation += 1
            try:
                return self._journal_of(self._generation, after)
            except FileExistsError:
                self._owner.check()
            except OSError:
                self._generation -= 1
                raise

    def _journal_of(self, generation: int, after: Link) -> Journal:
        origin = Origin(
            generation=generation,
            epoch=self.epoch,
            config=self._config,
            numpy=np.__version__,
            cpu=cpu_features(),
            salt=secrets.randbits(32),
        )
        path = journal_path(self._path, generation)
        return Journal(path, origin, after, self._synced, syncer=self._background, check=self._owner.check)

    def _body(self, link: Link, state: Any) -> list[Any]:
        return pack({"epoch": self.epoch, "runs": self.runs, "link": link, "state": state})

    def _remove_before(self, generation: int) -> None:
        """Removes what an older generation has left; what could not be trusted is kept under another name.

        What cannot be removed is in nobody's way: the next generation tries again.

        Raises:
            OSError: what could not be trusted cannot be kept.
        """
        damaged = self.history.damaged
        try:
            for what in ("journal", "snapshot"):
                for number, path in generations(self._path, what).items():
                    if number >= generation:
                        break
                    if damaged and number <= self.history.generation:
                        files.rename(path, path.with_name(path.name + BROKEN))
                    else:
                        files.unlink(path)
            files.sync_folder(self._path)
        except OSError as exc:
            if damaged:
                raise
            logger.warning("older files in %s could not be removed, the next snapshot tries again: %s", self._path, exc)

    def _sync_failed(self, exc: OSError) -> None:
        logger.error("the journal in %s is over, a snapshot is written to new files: %s", self._path, exc)
        self._fall_behind(exc)
        self._catch_up()

    def _fall_behind(self, exc: OSError) -> None:
        self._behind = f"{exc}"
        self._retry_s = time.monotonic() + RETRY_AFTER_S

    def _catch_up(self) -> None:
        try:
            self._start_over()
        except OSError as exc:
            logger.error("the state could not be written to %s, to be tried again: %s", self._path, exc)  # noqa: TRY400
            self._fall_behind(exc)

    def _say_written(self) -> None:
        """Says that what could not be written can be, once a write has shown it."""
        self._complained, journal = False, self._journal
        assert journal is not None  # noqa: S101  `begin` comes first
        size, commands = counted(journal.num_bytes, "byte"), counted(self.sequence, "command")
        logger.warning("%s can be written again: %s, after %s", journal.path, size, commands)


def cpu_features() -> tuple[str, ...]:
    """Returns the CPU features that numpy uses here: with its version, what decides the last bits of its results."""
    try:
        found = importlib.import_module("numpy._core._multiarray_umath").__cpu_features__
    except ImportError:  # numpy 1
        found = importlib.import_module("numpy.core._multiarray_umath").__cpu_features__
    return tuple(sorted(name for name, there in found.items() if there))

"""plr_server/durability: real files, crashed, torn, damaged and full. The state here is the list of all commands."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import resource
import shutil
import stat
import time
from pathlib import Path

import faults
import pytest

from plr_client import ConfigError, ServerStartError, StateDamaged, StateDirTaken, StateNotWritten
from plr_server.durability import state_dir as module
from plr_server.durability.records import HEADER_BYTES, Kind, read_digest
from plr_server.durability.recovery import generations, journal_path, read_history, snapshot_path
from plr_server.durability.state_dir import StateDir
from plr_server.durability.values import digest, pack


class Server:
    """What a server does with a state folder, with commands that are their own state."""

    def __init__(self, path, **options):
        self.dir = StateDir(path, **options)
        history = self.dir.history
        self.commands = list(history.state or [])
        for record in history.records():
            if record.kind is Kind.REQUEST:
                self.commands.append(bytes(record.payload).decode())
            elif record.kind is Kind.DIGEST:
                sequence, digested = read_digest(record)
                assert digested == digest(pack(self.commands[:sequence]))
        assert self.dir.sequence == len(self.commands)
        self.dir.begin(lambda _: list(self.commands), "configuration")

    def do(self, command, *, needed=True):
        self.dir.write(Kind.REQUEST, [command.encode()], op="push", needed=needed)
        self.commands.append(command)

    def eventually(self, holds):
        deadline = time.monotonic() + 30
        while not holds():
            self.dir.look_after()
            assert time.monotonic() < deadline


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "state"


@pytest.fixture
def open_server(folder):
    """Opens servers, which are let go at the end."""
    with contextlib.ExitStack() as stack:

        def opened(path=folder, **options):
            server = Server(path, **options)
            stack.callback(server.dir.close)
            return server

        yield opened


def crashed(folder, name="crashed"):
    """The folder as a killed process leaves it."""
    copy = folder.with_name(name)
    while True:
        shutil.rmtree(copy, ignore_errors=True)
        with contextlib.suppress(shutil.Error):  # the background has removed old files meanwhile
            return Path(shutil.copytree(folder, copy))


def recovered(folder, **options):
    """What a server started on a folder knows; the folder is left as it was."""
    copy = crashed(folder, "recovered")
    server = Server(copy, **options)
    server.dir.close()
    return server.commands


def readable(folder):
    """What is written down in a folder, which need not be writable."""
    history = read_history(folder)
    assert not history.damaged
    return history.state + [
        bytes(record.payload).decode() for record in history.records() if record.kind is Kind.REQUEST
    ]


@pytest.fixture
def at_once(monkeypatch):
    """What is done in the background is done at once, so that a folder can be copied at a known moment."""
    monkeypatch.setattr(module, "ThreadPoolExecutor", faults.AtOnce)


@contextlib.contextmanager
def files_no_longer_than(num_bytes):
    """The kernel refuses to make a file longer, as a full disk would: first a part of a write, then an error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("fsync", ["never", "interval", "always"])
def test_a_killed_server_comes_back_with_every_command(folder, open_server, fsync):
    server = open_server(fsync=fsync)
    said = [f"command {number}" for number in range(100)]
    for command in said:
        server.do(command)
        assert server.dir.commit()
    assert recovered(folder) == said


def test_a_stopped_server_leaves_a_snapshot_and_nothing_to_replay(folder):
    for start in range(3):
        server = Server(folder)
        assert len(server.commands) == start
        server.do("x")
        server.dir.close()
        assert not list(read_history(folder).records())
        assert len(list(folder.iterdir())) == 3  # the lock, one journal, one snapshot


def test_only_its_owner_may_read_a_state_folder(folder, open_server):
    open_server()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_two_servers_never_share_a_folder(folder, open_server):
    open_server()
    with pytest.raises(StateDirTaken, match=f"process {os.getpid()}"):
        StateDir(folder)


@pytest.mark.parametrize("fsync", ["never", "interval", "always"])
def test_a_server_whose_folder_is_taken_over_ends_and_touches_it_no_more(folder, open_server, monkeypatch, fsync):
    monkeypatch.setattr(module, "SYNC_EVERY_S", 0.0)
    old = open_server(fsync=fsync)
    old.do("before")
    assert old.dir.commit()
    new = open_server(take_over=True)
    assert new.commands == ["before"]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    old.do("too late")
    with pytest.raises(StateDirTaken, match=f"used by process {os.getpid()} on .*, which has taken it over"):
        old.eventually(lambda: not old.dir.commit())
    if fsync == "interval":  # whose replies wait for nothing
        assert old.dir.durable < 2
    with pytest.raises(StateDirTaken):
        old.dir.save()
    old.dir.close()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(StateDirTaken):  # the lock is the new one's
        StateDir(folder)
    new.do("after")
    assert recovered(folder) == ["before", "after"]


@pytest.mark.parametrize("fsync", ["interval", "always"])
def test_taken_over_before_and_after_every_change_of_a_file(tmp_path, monkeypatch, at_once, fsync):  # noqa: ARG001
    """What the old server told to be durable the new one knows, and what the new one wrote the old one never spoils."""
    monkeypatch.setattr(module, "SNAPSHOT_AFTER_COMMANDS", 2)
    monkeypatch.setattr(module, "SYNC_EVERY_S", 0.0)
    for name in ("fsync", "fdatasync"):  # no power is lost here, and there are thousands
        monkeypatch.setattr(os, name, lambda _: None)
    num_taken_over, at = 0, 0
    while num_taken_over == at:
        at += 1
        num_taken_over += _taken_over_at(at, tmp_path / f"{at}", monkeypatch, fsync)
    assert num_taken_over > 50


def _taken_over_at(at, folder, monkeypatch, fsync):
    """Runs a server, and at some change of a file another one on its folder, which goes on; returns whether it came."""
    said, durable, new, num_changes = [], 0, None, 0

    def take_over():
        nonlocal new, num_changes
        num_changes += folder.exists()
        if num_changes == at and new is None:
            new = Server(folder, fsync="always", take_over=True)
            new.do("new")
            assert new.dir.commit()

    with monkeypatch.context() as patch, contextlib.suppress(ServerStartError):  # of which StateDirTaken is one
        checking_around(patch, take_over)
        old = Server(folder, fsync=fsync)
        with contextlib.closing(old.dir):
            for number in range(5):
                said.append(f"old {number}")
                old.do(said[-1])
                assert old.dir.commit()
                durable = old.dir.durable
                old.dir.look_after()
                if number == 2:
                    with contextlib.suppress(StateNotWritten):  # the new server has cleaned up
                        old.dir.save()
    if new is None:
        return False
    assert recovered(folder) == new.commands
    for number in range(5):
        new.do(f"newer {number}")
        assert new.dir.commit()
        new.dir.look_after()
    assert new.commands[:durable] == said[:durable]
    assert recovered(folder) == new.commands
    new.dir.close()
    return True


def test_one_that_goes_on_before_and_after_every_change_of_a_file_by_who_takes_over(tmp_path, monkeypatch):
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda _: None)
    at, num_changes = 0, 1
    while at < num_changes:
        at, num_changes = at + 1, 0
        old, num_acknowledged = Server(tmp_path / f"{at}", fsync="always"), 0

        def go_on(old=old, at=at):
            nonlocal num_changes, num_acknowledged
            num_changes += 1
            if num_changes == at:
                old.do("x")
                with contextlib.suppress(StateDirTaken):
                    num_acknowledged += old.dir.commit()

        with monkeypatch.context() as patch:
            checking_around(patch, go_on)
            new = Server(tmp_path / f"{at}", take_over=True)
        assert len(new.commands) >= num_acknowledged
        new.dir.close()
        old.dir.close()
    assert num_changes > 20


def test_the_epoch_stays_as_long_as_nothing_is_lost(folder):
    epochs = []
    for _ in range(3):
        server = Server(folder)
        epochs.append(server.dir.epoch)
        server.dir.close()
    assert len(set(epochs)) == 1
    flip(snapshot_path(folder, 6), 60)
    server = Server(folder, accept_loss=True)
    server.dir.close()
    assert server.dir.epoch not in epochs


def test_what_may_be_said_to_be_durable(open_server, tmp_path):
    for fsync, before in (("never", 1), ("interval", 0), ("always", 1)):
        server = open_server(tmp_path / fsync, fsync=fsync)
        server.do("x")
        assert server.dir.commit()
        assert server.dir.durable == before
    interval = open_server(tmp_path / "again", fsync="interval")
    interval.do("x")
    interval.eventually(lambda: interval.dir.durable == 1)


def test_an_unknown_way_to_sync_is_refused(folder):
    with pytest.raises(ConfigError, match="expected one of never, interval, always, got 'sometimes'"):
        StateDir(folder, fsync="sometimes")
    assert not folder.exists()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ServerStartError, match="expected a folder to read and write"):
        StateDir(tmp_path / "file" / "state")


# ---- snapshots


def test_snapshots_bound_the_journal_and_the_old_files_go(folder, open_server, monkeypatch, at_once):  # noqa: ARG001
    monkeypatch.setattr(module, "SNAPSHOT_AFTER_COMMANDS", 10)
    monkeypatch.setattr(module, "DIGEST_AFTER_COMMANDS", 3)
    server = open_server()
    for number in range(60):
        server.do(f"{number}")
        server.dir.commit()
        server.dir.look_after()
        assert recovered(folder) == server.commands
    server.eventually(lambda: len(list(folder.iterdir())) == 3 and read_history(folder).begin.sequence > 40)
    assert len(list(read_history(folder).records())) < 20


def test_a_snapshot_is_due_by_bytes_too(folder, open_server, monkeypatch, at_once):  # noqa: ARG001
    monkeypatch.setattr(module, "SNAPSHOT_AFTER_BYTES", 10_000)
    server = open_server()
    server.do("x" * 20_000)
    server.eventually(lambda: read_history(folder).begin.sequence == 1)


def test_save_takes_a_snapshot_now(folder, open_server):
    server = open_server()
    server.do("x")
    server.dir.save()
    assert read_history(folder).state == ["x"]


@pytest.mark.parametrize("fails", ["fsync", "fdatasync"])
def test_a_save_that_fails_leaves_the_journal_going_on(folder, open_server, monkeypatch, fails):
    """Whichever it is that cannot be synced: the new journal, the snapshot, the folder after either."""
    monkeypatch.setattr(module, "SNAPSHOT_AFTER_COMMANDS", 12)
    server = open_server()
    for after in range(4):
        server.do(f"{after}")
        with monkeypatch.context() as patch:
            patch.setattr(os, fails, refuse(getattr(os, fails), after=after, times=1))
            with contextlib.suppress(StateNotWritten):
                server.dir.save()
        server.do(f"{after} and on")
        assert recovered(folder) == server.commands
    for number in range(30):
        server.do(f"{number}")
        server.dir.look_after()
    assert recovered(folder) == server.commands


@pytest.mark.parametrize("fails_again", [False, True])
def test_what_a_failed_save_took_away_may_come_back_in_part(folder, open_server, monkeypatch, fails_again):
    """The folder cannot be synced after the snapshot's rename, and then power is lost, and with it what was removed."""
    server = open_server(fsync="always")
    server.do("before")
    removed, num_syncs, unlink, fsync = {}, 0, Path.unlink, os.fsync

    def then_may_come_back(path, **named):
        removed[path.name] = path.read_bytes()
        unlink(path, **named)

    def second_fails(file):
        nonlocal num_syncs
        if stat.S_ISDIR(os.fstat(file).st_mode):
            num_syncs += 1
            if num_syncs == 2 or (num_syncs > 2 and fails_again):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            removed.clear()
        fsync(file)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", then_may_come_back)
        patch.setattr(os, "fsync", second_fails)
        with pytest.raises(StateNotWritten):
            server.dir.save()
        if fails_again:  # nobody knows whether the snapshot is there: the journal before it must not go on
            with pytest.raises(StateNotWritten):
                server.do("after")
        else:
            server.do("after")
            assert server.dir.commit()
        for number in range(2 ** len(removed)):
            left = crashed(folder)
            for bit, (name, content) in enumerate(removed.items()):
                if number >> bit & 1:
                    (left / name).write_bytes(content)
            assert readable(left) == server.commands


def test_a_removal_that_fails_refuses_nothing_and_is_tried_again(folder, open_server, monkeypatch):
    server = open_server()
    server.do("before")

    unlink = Path.unlink

    def refused(path, **named):
        if path.suffix == ".plr":
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        unlink(path, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refused)
        server.dir.save()  # its new files are good
    assert len(generations(folder, "journal")) == len(generations(folder, "snapshot")) == 2
    server.do("after")
    assert readable(crashed(folder)) == server.commands
    server.dir.save()
    assert len(generations(folder, "journal")) == len(generations(folder, "snapshot")) == 1
    assert readable(crashed(folder, "again")) == server.commands


def test_a_journal_that_was_begun_and_never_used_is_passed_over(folder, open_server, monkeypatch, at_once):  # noqa: ARG001
    """The system's crash has brought back what a cut that failed had taken away again."""
    monkeypatch.setattr(module, "SNAPSHOT_AFTER_COMMANDS", 3)
    monkeypatch.setattr(module, "write_snapshot", refuse(module.write_snapshot, after=1))
    server = open_server()
    server.do("before")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(StateNotWritten):
            server.dir.save()
    for number in range(8):
        server.do(f"{number}")
        server.dir.look_after()
    assert len(generations(folder, "journal")) > 2
    assert readable(folder) == server.commands


def test_a_snapshot_that_fails_leaves_the_journal_going_on(folder, open_server, monkeypatch, at_once):  # noqa: ARG001
    monkeypatch.setattr(module, "SNAPSHOT_AFTER_COMMANDS", 10)
    failed = []

    def write_snapshot(path, _body):
        failed.append(path)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    server = open_server()
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_snapshot", write_snapshot)
        for number in range(50):
            server.do(f"{number}")
            server.dir.look_after()
            assert readable(folder) == server.commands
        server.eventually(lambda: failed)
    for number in range(20):
        server.do(f"{number} more")
    server.eventually(lambda: len(generations(folder, "snapshot")) == 1 and read_history(folder).begin.sequence >= 50)
    assert recovered(folder) == server.commands


def test_killed_before_and_after_every_change_of_a_file(folder, monkeypatch, at_once):  # noqa: ARG001
    """Starting, writing, syncing, cutting, snapshots, cleaning up, stopping: all that was acknowledged is there."""
    monkeypatch.setattr(module, "SNAPSHOT_AFTER_COMMANDS", 5)
    acknowledged, num_checked = [], 0

    def check():
        nonlocal num_checked
        if folder.exists():
            known = recovered(folder)
            assert known[: len(acknowledged)] == acknowledged
            assert len(known) <= len(acknowledged) + 1
            num_checked += 1

    checking_around(monkeypatch, check)
    for start in range(2):
        server = Server(folder, fsync="always")
        for number in range(8):
            server.do(f"{start} {number}")
            assert server.dir.commit()
            acknowledged.append(f"{start} {number}")
            server.dir.look_after()
        server.dir.close()
    assert num_checked > 100


class Disk:
    """What a loss of power leaves of a folder: names as they were when it was last synced, and files likewise."""

    def __init__(self, folder):
        self.folder, self.names, self.synced = folder, {}, {}  # name -> inode, inode -> bytes

    def sync(self, file):
        opened = Path(f"/proc/self/fd/{file}")
        path = opened.readlink()
        if path == self.folder:
            self.names = {each.name: each.stat().st_ino for each in path.iterdir()}
        elif path.parent == self.folder:
            self.synced[os.fstat(file).st_ino] = opened.read_bytes()

    def left(self):
        copy = self.folder.with_name("left")
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        for name, inode in self.names.items():
            (copy / name).write_bytes(self.synced.get(inode, b""))
        return copy


@pytest.mark.parametrize("fsync", ["interval", "always"])
def test_power_lost_before_and_after_every_change_of_a_file(folder, monkeypatch, at_once, fsync):  # noqa: ARG001
    """The least that a disk has to keep is enough for all that was said to be durable, and is never damage."""
    monkeypatch.setattr(module, "SNAPSHOT_AFTER_COMMANDS", 5)
    disk, said, num_durable, num_checked = Disk(folder), [], 0, 0

    def then_on_disk(do):
        def synced(file):
            do(file)
            disk.sync(file)

        return synced

    def check():
        nonlocal num_checked
        known = recovered(disk.left())
        assert known == said[: len(known)]
        assert len(known) >= num_durable
        num_checked += 1

    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, then_on_disk(getattr(os, name)))
    checking_around(monkeypatch, check)
    for start in range(2):
        server = Server(folder, fsync=fsync)
        for number in range(14):
            said.append(f"{start} {number}")
            server.do(said[-1])
            assert server.dir.commit()
            num_durable = server.dir.durable
            server.dir.look_after()
        server.dir.close()
    assert num_checked > 100
    assert num_durable > 20


def checking_around(monkeypatch, check):
    """Has `check` called before and after every change of a file, but not within itself."""
    checking = False

    def checked(do):
        def done(*arguments, **named):
            nonlocal checking
            if checking:
                return do(*arguments, **named)
            checking = True
            check()
            result = do(*arguments, **named)
            check()
            checking = False
            return result

        return done

    changes = {os: ("writev", "fsync", "fdatasync", "ftruncate", "link"), Path: ("rename", "unlink", "mkdir")}
    for owner, names in changes.items():
        for name in names:
            monkeypatch.setattr(owner, name, checked(getattr(owner, name)))


# ---- tear and damage


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


def only_journal(folder):
    (path,) = generations(folder, "journal").values()
    return path


@pytest.fixture
def torn(folder, open_server):
    """A crashed folder of ten commands, and where in its journal each ends."""
    server, ends = open_server(), []
    for number in range(10):
        ends.append(only_journal(folder).stat().st_size)
        server.do(f"command {number}")
    copy = crashed(folder, "torn")
    return copy, server.commands, [*ends, only_journal(folder).stat().st_size]


def test_every_torn_tail_is_cut_by_itself(torn):
    folder, commands, ends = torn
    data = only_journal(folder).read_bytes()
    for length in range(ends[0], ends[-1], 5):
        for tail in (b"", bytes(700), os.urandom(700)):
            only_journal(folder).write_bytes(data[:length] + tail)
            assert recovered(folder) == commands[: sum(end <= length for end in ends) - 1]


def test_what_is_dropped_of_a_torn_tail_is_told_once(torn, caplog):
    folder, _, ends = torn
    path = only_journal(folder)
    path.write_bytes(path.read_bytes()[: ends[4] + 7])
    for server in Server(folder), Server(folder, take_over=True):
        server.dir.close()
    assert caplog.messages == [
        f"{path}: the last 7 bytes are dropped, a record that was not written whole; all 4 commands before it are there"
    ]


def test_damage_is_refused_and_nothing_is_changed(torn, caplog):
    folder, commands, ends = torn
    path = only_journal(folder)
    flip(path, ends[3] + HEADER_BYTES + 2)
    before = {each.name: each.read_bytes() for each in folder.iterdir() if each.name != "lock"}
    with pytest.raises(StateDamaged, match="at least 7 commands") as caught:
        StateDir(folder)
    assert (caught.value.file, caught.value.record) == (str(path), "the record after command 3")
    assert {each.name: each.read_bytes() for each in folder.iterdir() if each.name != "lock"} == before
    server = Server(folder, accept_loss=True)
    server.do("and on")
    server.dir.close()
    (told,) = caplog.messages  # which does not advise what has been said already
    assert told.startswith(f"accepting a loss: {path}: the record after command 3: it does not read on at byte ")
    assert told.endswith(": at least 7 commands. What is there is kept as .broken")
    assert server.commands == [*commands[:3], "and on"]
    assert path.with_name(path.name + ".broken").read_bytes() == before[path.name]
    assert recovered(folder) == server.commands


def test_a_damaged_or_missing_snapshot_is_refused(torn):
    folder, commands, _ = torn
    path = snapshot_path(folder, 1)
    before = path.read_bytes()
    for place in range(0, len(before), 3):
        path.write_bytes(before)
        flip(path, place)
        with pytest.raises(StateDamaged, match=r"snapshot-0000000001\.plr"):
            StateDir(folder)
    path.unlink()
    with pytest.raises(StateDamaged, match="its snapshot is missing"):
        StateDir(folder)
    path.write_bytes(before)
    assert recovered(folder) == commands


def test_a_missing_journal_is_refused(torn):
    folder, _, _ = torn
    only_journal(folder).unlink()
    with pytest.raises(StateDamaged, match="it is missing"):
        StateDir(folder)


def test_a_journal_that_does_not_follow_is_refused(folder, open_server, monkeypatch):
    """Two generations since the snapshot: the first is cut short, or goes missing, or is another state's."""
    monkeypatch.setattr(module, "SNAPSHOT_AFTER_COMMANDS", 3)
    monkeypatch.setattr(module, "SYNC_EVERY_S", 0.0)
    monkeypatch.setattr(module, "write_snapshot", refuse(module.write_snapshot, after=1))
    server = open_server()
    for number in range(8):
        server.do(f"{number}")
        server.eventually(lambda: server.dir.durable == len(server.commands))
    journals = list(generations(folder, "journal").values())
    assert len(journals) > 1
    assert readable(folder) == server.commands
    copy = crashed(folder)
    first = copy / journals[0].name
    whole = first.read_bytes()
    first.write_bytes(whole[:-1])
    with pytest.raises(StateDamaged, match="were on the disk"):
        StateDir(copy)
    first.write_bytes(whole)
    (copy / journals[1].name).write_bytes(journals[0].read_bytes())
    with pytest.raises(StateDamaged, match="does not follow"):
        StateDir(copy)


def refuse(do, *, after, times=math.inf, code=errno.ENOSPC):
    """Does as told some times, and then fails, for good or some times."""
    calls = []

    def done(*arguments):
        calls.append(arguments)
        if after < len(calls) <= after + times:
            raise OSError(code, os.strerror(code))
        return do(*arguments)

    return done


# ---- a disk that does not do its part


def test_a_write_that_fails_is_taken_back_and_refused_until_there_is_space(folder, open_server, caplog):
    server = open_server(fsync="always")
    server.do("before")
    length = only_journal(folder).stat().st_size
    with files_no_longer_than(length + HEADER_BYTES + 3):
        for _ in range(3):
            with pytest.raises(StateNotWritten, match=f"push: .*{os.strerror(errno.EFBIG)}"):
                server.do("too long for what is left")
            assert only_journal(folder).stat().st_size == length
            assert server.dir.commit()
    assert recovered(folder) == server.commands == ["before"]
    for command in ("after", "and on"):
        server.do(command)
        assert server.dir.commit()
    failed, again = caplog.messages  # each once
    assert failed.startswith(f"push could not be written to {folder}: ")
    assert re.fullmatch(rf"{only_journal(folder)} can be written again: \d+ bytes, after 2 commands", again)
    assert recovered(folder) == ["before", "after", "and on"]


def test_what_need_not_be_written_goes_on_in_memory_until_there_is_space(folder, open_server, monkeypatch, caplog):
    monkeypatch.setattr(module, "RETRY_AFTER_S", 0.0)
    server = open_server(fsync="always")
    server.do("before")
    assert server.dir.commit()
    server.do("written")
    with files_no_longer_than(10):
        server.do("levels", needed=False)
        assert server.dir.commit()
        assert server.dir.durable == 2  # "written" was, before the disk was full
        with pytest.raises(StateNotWritten):
            server.do("push")
        server.do("more levels", needed=False)
        server.dir.look_after()
        assert (server.dir.sequence, server.dir.durable) == (4, 2)
        assert readable(folder) == ["before", "written"]
    server.eventually(lambda: server.dir.durable == 4)
    server.do("after")
    assert server.dir.commit()
    (again,) = (message for message in caplog.messages if "can be written again" in message)
    assert again.endswith("after 4 commands")
    assert recovered(folder) == ["before", "written", "levels", "more levels", "after"]


def test_a_write_that_cannot_be_taken_back_ends_the_journal_though_no_command_comes(folder, open_server, monkeypatch):
    """Where it is of what the server notes by itself, too: else no reply would go out any more."""
    server = open_server(fsync="always")
    server.do("first")
    assert server.dir.commit()
    with monkeypatch.context() as patch, files_no_longer_than(only_journal(folder).stat().st_size + 10):
        patch.setattr(os, "ftruncate", refuse(os.ftruncate, after=0, code=errno.EIO))
        server.dir.look_after()  # says what is synced
    assert not server.dir.commit()
    server.dir.look_after()
    assert server.dir.commit()
    server.do("second")
    assert server.dir.commit()
    assert recovered(folder) == ["first", "second"]


@pytest.mark.parametrize("fsync", ["interval", "always"])
def test_a_sync_that_failed_is_never_tried_again_on_that_file(folder, open_server, monkeypatch, fsync):
    server = open_server(fsync=fsync)
    server.do("first")
    old, synced = only_journal(folder).stat().st_ino, []

    def fdatasync(file):
        synced.append(os.fstat(file).st_ino)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fdatasync)
        patch.setattr(module, "SYNC_EVERY_S", 0.0)
        assert server.dir.commit()
        server.eventually(lambda: server.dir.durable == 1)
    assert synced == [old]
    assert read_history(folder).state == ["first"]
    server.do("second")
    assert server.dir.commit()
    assert recovered(folder) == ["first", "second"]


def test_a_sync_that_failed_in_the_background_is_not_made_good_by_one_in_the_foreground(
    folder, open_server, monkeypatch
):
    """The system tells of a failure once: the next sync of that file says that all is well."""
    monkeypatch.setattr(module, "SNAPSHOT_AFTER_COMMANDS", 0)
    server = open_server(fsync="always")
    server.do("first")
    old, synced = only_journal(folder).stat().st_ino, []

    def fails_once(file):
        synced.append(os.fstat(file).st_ino)
        if len(synced) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fails_once)
    server.dir.look_after()  # a snapshot is due: what has piled up is synced in the background first
    assert server.dir.commit()
    assert synced == [old]
    assert read_history(folder).state == ["first"]


def test_replies_wait_while_neither_the_old_file_nor_a_new_one_can_be_synced(folder, open_server, monkeypatch):
    monkeypatch.setattr(module, "RETRY_AFTER_S", 0.0)
    server = open_server(fsync="always")
    server.do("x")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", refuse(os.fdatasync, after=0, code=errno.EIO))
        patch.setattr(os, "fsync", refuse(os.fsync, after=0, code=errno.EIO))
        for _ in range(3):
            assert not server.dir.commit()
            server.dir.look_after()
        with pytest.raises(StateNotWritten):
            server.do("push")
    server.eventually(server.dir.commit)
    assert server.dir.durable == 1
    assert recovered(folder) == ["x"]
    assert journal_path(folder, server.dir._generation) == only_journal(folder)

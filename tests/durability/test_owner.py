"""plr_server/durability/owner.py on real files; what comes of it for a state folder is in test_state_dir.py."""

from __future__ import annotations

import contextlib
import os

import pytest

from plr_client import StateDirTaken
from plr_server.durability import files
from plr_server.durability.owner import Owner


@pytest.fixture
def own(tmp_path):
    """Makes owners of a folder, which leave at the end."""
    with contextlib.ExitStack() as stack:

        def owned(*, take_over=False):
            owner = Owner(tmp_path, take_over=take_over)
            stack.callback(owner.leave)
            return owner

        yield owned


def test_the_second_one_is_refused_and_told_who_has_it(own, tmp_path):
    own().check()
    with pytest.raises(StateDirTaken, match=rf"used by process {os.getpid()} on \S+ \(start \w+\); stop it"):
        Owner(tmp_path, take_over=False)


def test_who_takes_over_is_the_owner_from_then_on(own, tmp_path):
    first, second = own(), own(take_over=True)
    second.check()
    with pytest.raises(StateDirTaken, match="which has taken it over"):
        first.check()
    with pytest.raises(StateDirTaken):
        Owner(tmp_path, take_over=False)
    third = own(take_over=True)
    third.check()
    with pytest.raises(StateDirTaken, match="which has taken it over"):
        second.check()


def test_the_next_one_comes_in_after_the_last_has_left(tmp_path):
    for take_over in (False, True, False):
        owner = Owner(tmp_path, take_over=take_over)
        owner.check()
        owner.leave()
    assert [path.name for path in tmp_path.iterdir()] == [files.LOCK]


def test_where_locks_do_not_see_each_other_the_newer_one_is_the_owner(own, monkeypatch):
    """As on two machines, over some network file systems."""
    first = own()
    monkeypatch.setattr(files.fcntl, "flock", lambda *_: None)
    second = own()
    second.check()
    with pytest.raises(StateDirTaken):
        first.check()


def test_a_lock_that_was_replaced_while_it_was_taken_is_not_the_lock(own, tmp_path, monkeypatch):
    real, taken_over = files.fcntl.flock, []

    def flock(file, how):
        if not taken_over:
            taken_over.append(None)
            taken_over[0] = own(take_over=True)
        real(file, how)

    monkeypatch.setattr(files.fcntl, "flock", flock)
    with pytest.raises(StateDirTaken):
        Owner(tmp_path, take_over=False)
    taken_over[0].check()


def test_without_the_lock_nobody_can_tell(own, tmp_path):
    owner = own()
    (tmp_path / files.LOCK).unlink()
    with pytest.raises(FileNotFoundError):
        owner.check()

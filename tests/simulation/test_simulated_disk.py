"""The simulated disk keeps what a disk has to keep, and of the rest loses all that a disk may lose."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest
from simulated_disk import Crash, SimulatedDisk

PATH, OTHER = Path("state/a"), Path("state/b")
BEFORE, AFTER = b"synced before", bytes(range(1, 201))
SEEDS = range(300)


def written(seed=0):
    """A disk with a file whose first bytes and name are synced, and whose last bytes are not."""
    disk = SimulatedDisk(random.Random(seed))
    file = disk.open_new(PATH)
    disk.write(file, [BEFORE])
    disk.sync(file)
    disk.sync_folder(PATH.parent)
    disk.write(file, [AFTER[:90], AFTER[90:]])
    return disk, file


def test_a_process_that_ends_loses_nothing_that_was_written():
    disk, _ = written()
    disk.process_ends()
    assert disk.read(PATH) == BEFORE + AFTER


def test_what_was_synced_outlives_a_loss_of_power_and_the_rest_is_anything():
    left = set()
    for seed in SEEDS:
        disk, _ = written(seed)
        disk.power_fails()
        content = disk.read(PATH)
        assert content.startswith(BEFORE)
        left.add(content)
    lengths = {len(content) for content in left}
    assert {len(BEFORE), len(BEFORE + AFTER)} <= lengths  # nothing of it, and all of it
    assert len(lengths) > 10  # torn anywhere
    assert BEFORE + AFTER in left
    whole = [content for content in left if len(content) == len(BEFORE + AFTER)]
    assert any(content.endswith(bytes(20)) for content in whole)  # zeros at the end
    assert any(content[-9:] == AFTER[-9:] and content != BEFORE + AFTER for content in whole)  # a hole before the end


def test_a_name_that_was_not_synced_may_be_gone_or_be_another_files():
    left = set()
    for seed in SEEDS:
        disk, _ = written(seed)
        file = disk.open_new(OTHER)
        disk.write(file, [b"new"])
        disk.sync(file)
        disk.rename(OTHER, PATH)
        disk.power_fails()
        left.add((disk.read(PATH)[:3], OTHER.name in disk.names(PATH.parent)))
    assert left == {(BEFORE[:3], False), (BEFORE[:3], True), (b"new", False)}


def test_what_a_failed_sync_gave_up_is_not_saved_by_the_next():
    """The system then says that all is well: fsyncgate."""
    disk, file = written()
    disk.failing = {"sync": 1.0}
    with pytest.raises(OSError, match="Input/output error"):
        disk.sync(file)
    disk.failing = {}
    disk.sync(file)
    assert disk.read(PATH) == BEFORE + AFTER
    disk.power_fails()
    assert disk.read(PATH) == BEFORE + bytes(len(AFTER))


def test_a_disk_that_lies_keeps_nothing_new():
    disk, file = written()
    disk.lies = True
    disk.sync(file)
    disk.power_fails()
    assert disk.may_look_damaged


def test_a_full_disk_takes_a_part_at_most():
    for seed in SEEDS:
        disk, file = written(seed)
        disk.full = True
        for _ in range(20):
            with contextlib.suppress(OSError):
                assert disk.write(file, [b"much"]) < len(b"much")


def test_the_process_ends_at_the_call_it_is_told_to_and_makes_no_other():
    disk, file = written()
    disk.crash_in = 1
    disk.sync(file)
    for _ in range(2):
        with pytest.raises(Crash):
            disk.sync_folder(PATH.parent)
    disk.process_ends()
    assert disk.names(PATH.parent) == [PATH.name]

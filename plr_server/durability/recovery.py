"""What a state folder holds: the newest snapshot, the commands after it, and whether that is all there ever was.

Used by the state folder, which writes, and by the command line, which looks. It only reads.

Generation g of a folder is `journal-g.plr`, the commands after some moment, and `snapshot-g.plr`, the state at that
moment. A new generation begins with its journal; the snapshot follows, and only then do the older files go. So the
commands since the newest snapshot are those of its own journal and of all later ones, which are a chain.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from plr_client.errors import StateDamaged, counted
from plr_server.durability import files
from plr_server.durability.records import Link, Origin, Record, Tail, read_origin, read_records, tail_of
from plr_server.durability.snapshot import read_snapshot
from plr_server.durability.values import digest

_NAME = re.compile(r"(journal|snapshot)-(\d{10})\.plr")
BROKEN = ".broken"


def journal_path(folder: Path, generation: int) -> Path:
    """Returns where the journal of a generation lies."""
    return folder / f"journal-{generation:010d}.plr"


def snapshot_path(folder: Path, generation: int) -> Path:
    """Returns where the snapshot of a generation lies."""
    return folder / f"snapshot-{generation:010d}.plr"


def generations(folder: Path, what: str) -> dict[int, Path]:
    """Returns the files of one kind, "journal" or "snapshot", by generation, in order."""
    found = ((_NAME.fullmatch(name), folder / name) for name in files.names(folder))
    return dict(sorted((int(name[2]), path) for name, path in found if name is not None and name[1] == what))


@dataclasses.dataclass(slots=True)
class Segment:
    """A segment, read as far as it can be trusted.

    Attributes:
        path: its file.
        data: what is in it.
        origin: what it belongs to.
        first: its first record.
        last: its last one that follows from the first.
        synced: up to which command its records say that all are on the disk.
        tail: what follows the last; set once the segments around it are known.
    """

    path: Path
    data: memoryview
    origin: Origin
    first: Record
    last: Record
    synced: int
    tail: Tail | None = None

    @property
    def num_commands(self) -> int:
        return self.last.sequence - self.first.sequence

    def records(self) -> Iterator[Record]:
        """Yields the records that can be trusted, after the first."""
        return read_records(self.data[: self.last.end], self.first, self.origin.salt)


class Run(NamedTuple):
    """One run of a server on the folder.

    Attributes:
        name: a random number.
        begin: how many commands the state had seen when it began.
    """

    name: int
    begin: int


@dataclasses.dataclass(frozen=True, slots=True)
class History:
    """All that a state folder tells.

    Attributes:
        generation: the highest number that a file of it has; 0 for a folder without any.
        epoch: of the state; 0 where there is none.
        runs: those that the state has seen, the oldest first.
        state: the newest snapshot; None where there is none.
        begin: the command that it was taken after.
        segments: those with the commands since.
        end: the last of them.
        damaged: what can be trusted no more, by file, and why, for people. Empty where nothing that was ever on the
            disk is missing.
    """

    generation: int
    epoch: int
    runs: list[Run]
    state: Any
    begin: Link
    segments: list[Segment]
    end: Link
    damaged: dict[Path, StateDamaged]

    def records(self) -> Iterator[Record]:
        """Yields the records since the snapshot that can be trusted: commands and digests, in order."""
        for segment in self.segments:
            yield from segment.records()

    def report(self) -> dict[str, Any]:
        """Returns what is there, for people and for JSON."""
        after = f"of the state after {counted(self.begin.sequence, 'command')}"
        return {
            "epoch": self.epoch,
            "snapshot": "none" if self.state is None else after,
            "commands": self.end.sequence,
            "journals": [
                {
                    "file": segment.path.name,
                    "after": segment.first.sequence,
                    "commands": segment.num_commands,
                    "known_on_disk": segment.synced,
                    "bytes": len(segment.data),
                    "torn_bytes": 0 if segment.tail is None else segment.tail.num_bytes,
                    "config": segment.origin.config,
                    "numpy": segment.origin.numpy,
                    "cpu": ",".join(segment.origin.cpu),
                }
                for segment in self.segments
            ],
            "damage": [str(error) for error in self.damaged.values()],
        }


def read_history(folder: Path) -> History:
    """Reads a state folder, whether whole, torn or damaged.

    Raises:
        OSError: a file of it cannot be read.
    """
    journals, snapshots = generations(folder, "journal"), generations(folder, "snapshot")
    damaged: dict[Path, StateDamaged] = {}
    highest = max([0, *journals, *snapshots])
    for generation in sorted(snapshots, reverse=True):
        path = snapshots[generation]
        try:
            snapshot = read_snapshot(path)
            epoch, state, begin = snapshot["epoch"], snapshot["state"], Link(*snapshot["link"])
            runs = [Run(*run) for run in snapshot["runs"]]
        except (ValueError, KeyError, TypeError) as exc:
            damaged[path] = StateDamaged(str(path), "the snapshot", str(exc), "all commands before it")
            continue
        later = [path for number, path in journals.items() if number >= generation]
        if generation not in journals:
            path = journal_path(folder, generation)
            damaged[path] = StateDamaged(str(path), "its beginning", "it is missing", "all commands after the snapshot")
            later = []
        segments, end = _chain(later, epoch, begin, damaged)
        return History(highest, epoch, runs, state, begin, segments, end, damaged)
    for path in journals.values():  # a folder whose first snapshot was never finished has no commands
        segment = _read_segment(path)
        if segment is None or segment.num_commands:
            damaged[path] = StateDamaged(str(path), "its beginning", "its snapshot is missing", "all commands in it")
    return History(highest, 0, [], None, Link(0, 0), [], Link(0, 0), damaged)


def _chain(paths: list[Path], epoch: int, begin: Link, damaged: dict[Path, StateDamaged]) -> tuple[list[Segment], Link]:
    """Reads segments that follow one another from a link on, up to the first damage."""
    read = [(path, _read_segment(path)) for path in paths]
    synced = max([begin.sequence, *(segment.synced for _, segment in read if segment is not None)])
    while len(read) > 1 and (last := read[-1][1]) is not None and not last.num_commands:  # begun, and no more
        _judge(last, synced=last.synced, is_last=True, damaged=damaged)
        read.pop()
    segments: list[Segment] = []
    end = begin
    for number, (path, segment) in enumerate(read):
        at_stake = _at_least(synced - end.sequence)
        if segment is None:
            damaged[path] = StateDamaged(str(path), "its first record", "it cannot be read", at_stake)
            break
        follows = segment.origin.epoch == epoch and Link(segment.first.sequence, segment.first.previous) == end
        if not (follows or segment.num_commands):
            continue  # begun, but the one before went on
        if not follows:
            reason = f"it does not follow from command {end.sequence}, the last before it"
            damaged[path] = StateDamaged(str(path), "its first record", reason, at_stake)
            break
        segments.append(segment)
        end = segment.last.link
        after = read[number + 1][1] if number + 1 < len(read) else None  # begun once this one was on the disk
        upto = synced if after is None else after.first.sequence
        if _judge(segment, synced=upto, is_last=number == len(read) - 1, damaged=damaged):
            break
    return segments, end


def _judge(segment: Segment, *, synced: int, is_last: bool, damaged: dict[Path, StateDamaged]) -> bool:
    """Judges what follows the last trusted record of a segment; returns whether it is damaged."""
    tail = segment.tail = tail_of(segment.data, segment.last, segment.origin.salt, synced=synced, is_last=is_last)
    if tail.damage is not None:
        record, at_stake = f"the record after command {tail.link.sequence}", _at_least(tail.at_stake)
        damaged[segment.path] = StateDamaged(str(segment.path), record, tail.damage, at_stake)
    return tail.damage is not None


def _read_segment(path: Path) -> Segment | None:
    """Reads a segment as far as it follows from its first record; None where there is no such."""
    data = memoryview(files.read(path))
    begun = read_origin(data)
    if begun is None:
        return None
    origin, first = begun
    last, synced = first, first.synced
    for record in read_records(data, first, origin.salt):
        last, synced = record, max(synced, record.synced)
    return Segment(path, data, origin, first, last, synced)


def config_digest(config: str) -> str:
    """Returns the digest of a configuration, hex."""
    return digest([config.encode()]).hex()


def _at_least(commands: int) -> str:
    return f"at least {counted(max(commands, 1), 'command')}"

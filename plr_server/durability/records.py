"""The journal's format, and what is wrong with a segment that does not read to its end: torn, or damaged?

A segment is a series of records. A record is a header of HEADER_BYTES and a payload, little-endian:

    magic 4s  format u8  kind u8  0 u16  length u64  sequence u64  synced u64  previous u32  crc u32

sequence: the number of commands up to and with this record. synced: up to which command all were known to be on the
disk when it was written. previous: the crc of the record before, in the segment before where this one is the first: a
chain in which no record can be missing. crc: CRC-32 of the header before it and the payload, begun with the segment's
salt.

The first record of a segment (kind SEGMENT, salt 0) is a msgpack map that says what it belongs to (`Origin`). The
others are a REQUEST of a client, the same with the NAMED client before it, or a DECISION of the server, which count as
commands; a DIGEST of the state after a command before it, which it names; and a SYNCED, which only carries `synced`.

Used by the journal and the state folder. Pure: bytes in, verdicts out. A file that ends early, in garbage or in zeros
is what a crash leaves of bytes that were never synced. Anything else never happens by itself, and is damage.
"""

from __future__ import annotations

import dataclasses
import enum
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgpack

from plr_server.durability.values import num_bytes

MAGIC = b"PLRj"
FORMAT = 1

_HEADER = struct.Struct("<4sBBHQQQI")
_CRC = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _CRC.size
SEARCHES = 16  # times its length is what a tail may cost to search; records that were written cost it about once


class Kind(enum.IntEnum):
    """What a record is."""

    SEGMENT = 1
    REQUEST = 2
    DECISION = 3
    DIGEST = 4
    SYNCED = 5
    NAMED = 6


_KINDS = frozenset(map(int, Kind))
COMMANDS = frozenset((Kind.REQUEST, Kind.NAMED, Kind.DECISION))


class Link(NamedTuple):
    """Where a chain has got to: all that the next record needs to know of those before it."""

    sequence: int
    crc: int


@dataclasses.dataclass(frozen=True, slots=True)
class Origin:
    """What a segment belongs to.

    Attributes:
        generation: 1, 2, ...: the how-manieth segment of the state folder. It goes with the snapshot of that number.
        epoch: names the state; another one never has the same commands.
        config: digest of the configuration, hex.
        numpy: its version: with the CPU, what decides bits.
        cpu: the CPU features that numpy found.
        salt: what the CRCs begin with, so that no payload can hold a valid record.
    """

    generation: int
    epoch: int
    config: str
    numpy: str
    cpu: tuple[str, ...]
    salt: int


class Record(NamedTuple):
    """A record that was read, its checksum right."""

    kind: Kind
    sequence: int
    synced: int
    previous: int
    crc: int
    payload: memoryview
    end: int  # where in the segment the next one begins

    @property
    def link(self) -> Link:
        return Link(self.sequence, self.crc)


class Tail(NamedTuple):
    """What follows the last record of a segment that can be trusted.

    Attributes:
        end: where the trusted records end.
        link: the last of them.
        synced: up to which command all are known to have been on the disk.
        num_bytes: how many follow.
        damage: what is wrong with them, for people; None where they are what a crash leaves of bytes never synced.
        at_stake: how many commands are known to be lost with them; more may be.
    """

    end: int
    link: Link
    synced: int
    num_bytes: int
    damage: str | None
    at_stake: int


def encode(kind: Kind, after: Link, synced: int, payload: Sequence[Any], salt: int) -> tuple[bytes, Link]:
    """Returns the header of a record that comes after another one, and the link that it makes.

    Args:
        kind: what it is.
        after: the record before.
        synced: up to which command all are known to be on the disk.
        payload: buffers, to be written after the header.
        salt: the segment's.
    """
    sequence = after.sequence + (kind in COMMANDS)
    length = num_bytes(payload)
    header = _HEADER.pack(MAGIC, FORMAT, kind, 0, length, sequence, synced, after.crc)
    crc = zlib.crc32(header, salt)
    for buffer in payload:
        crc = zlib.crc32(buffer, crc)
    return header + _CRC.pack(crc), Link(sequence, crc)


def encode_origin(origin: Origin, after: Link, synced: int) -> tuple[bytes, Link]:
    """Returns the record that begins a segment, and the link that it makes."""
    payload = msgpack.packb(dataclasses.asdict(origin))
    header, link = encode(Kind.SEGMENT, after, synced, [payload], 0)
    return header + payload, link


def encode_digest(sequence: int, digested: bytes) -> bytes:
    """Returns the payload of a DIGEST of the state after so many commands."""
    return sequence.to_bytes(8, "little") + digested


def read_digest(record: Record) -> tuple[int, bytes]:
    """Returns what `encode_digest` was given."""
    return int.from_bytes(record.payload[:8], "little"), bytes(record.payload[8:])


def read_origin(data: Any) -> tuple[Origin, Record] | None:
    """Reads the first record of a segment; None where it is not whole."""
    record = read_record(memoryview(data), 0, 0)
    if record is None or record.kind is not Kind.SEGMENT:
        return None
    fields = msgpack.unpackb(record.payload)
    known = {field.name: fields[field.name] for field in dataclasses.fields(Origin)}
    return Origin(**known | {"cpu": tuple(known["cpu"])}), record


def read_record(data: memoryview, at: int, salt: int) -> Record | None:
    """Reads the record that begins at a place; None where none does, or its checksum is wrong."""
    header = _header_at(data, at)
    return None if header is None else _record(data, at, salt, header)


class _Header(NamedTuple):
    """What a record says of itself, before its checksum is looked at."""

    kind: int
    sequence: int
    synced: int
    previous: int
    end: int


def _header_at(data: memoryview, at: int) -> _Header | None:
    """Reads the header that begins at a place; None where none does."""
    begin = at + HEADER_BYTES
    if begin > len(data):
        return None
    magic, version, kind, zero, length, sequence, synced, previous = _HEADER.unpack_from(data, at)
    if magic != MAGIC or version != FORMAT or kind not in _KINDS or zero or begin + length > len(data):
        return None
    return _Header(kind, sequence, synced, previous, begin + length)


def _record(data: memoryview, at: int, salt: int, header: _Header) -> Record | None:
    """Returns the record of a header; None where its checksum is wrong."""
    kind, sequence, synced, previous, end = header
    (crc,) = _CRC.unpack_from(data, at + _HEADER.size)
    payload = data[at + HEADER_BYTES : end]
    if zlib.crc32(payload, zlib.crc32(data[at : at + _HEADER.size], salt)) != crc:
        return None
    return Record(Kind(kind), sequence, synced, previous, crc, payload, end)


def read_records(data: memoryview, first: Record, salt: int) -> Iterator[Record]:
    """Yields the records of a segment after its first, as long as each is whole and follows the one before."""
    before = first
    while (record := read_record(data, before.end, salt)) is not None and _follows(record, before.link):
        yield record
        before = record


def _follows(record: Record, link: Link) -> bool:
    sequence = link.sequence + (record.kind in COMMANDS)
    return record.previous == link.crc and record.sequence == sequence and record.kind is not Kind.SEGMENT


def tail_of(data: memoryview, last: Record, salt: int, *, synced: int, is_last: bool) -> Tail:
    """Judges what follows the last trusted record of a segment.

    It is torn only in the last segment, where no valid record follows and what is missing was never known to be synced.
    A payload can hold headers without end, each of which would have to be followed through the rest of the file. No
    server writes such by itself; where they are too many, nobody can tell, and that counts as damage.

    Args:
        data: the segment.
        last: its last record that follows from the first.
        salt: the segment's.
        synced: up to which command all are known to have been on the disk, from all that was read elsewhere.
        is_last: no commands follow in another segment.
    """
    link, rest = last.link, len(data) - last.end
    highest, stray, end, left = link.sequence, None, last.end, SEARCHES * rest
    for at in _places(data, MAGIC, last.end):
        header = _header_at(data, at) if at >= end else None  # what is within a record is no other
        if header is None:
            continue
        left -= header.end - at
        if left < 0:
            break
        record = _record(data, at, salt, header)
        if record is not None:
            stray = at if stray is None else stray
            highest, synced, end = max(highest, record.sequence), max(synced, record.synced), record.end
    at_stake = max(highest, synced) - link.sequence
    damage = None
    if stray is not None:
        damage = f"it does not read on at byte {last.end}, yet valid records follow at byte {stray}"
    elif left < 0:
        damage = f"it does not read on at byte {last.end}, and too much of what follows looks like records to check it"
    elif synced > link.sequence:
        damage = f"it ends at command {link.sequence}, yet all up to command {synced} were on the disk"
    elif rest and not is_last:
        damage = f"it does not read on at byte {last.end}, yet commands follow in another segment"
    return Tail(last.end, link, synced, rest, damage, at_stake)


def _places(data: memoryview, what: bytes, begin: int) -> Iterator[int]:
    """Yields where `what` is at or after `begin`; copies each piece of the data once, and one piece at a time."""
    piece = 1 << 20
    for first in range(begin, len(data), piece):
        copied = bytes(data[first : first + piece + len(what) - 1])
        at = copied.find(what)
        while at >= 0:
            yield first + at
            at = copied.find(what, at + 1)

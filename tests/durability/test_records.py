"""plr_server/durability/records.py: every way in which a segment can end, and which of them are damage."""

from __future__ import annotations

import random
import zlib

import pytest

from plr_server.durability import records as module
from plr_server.durability.records import (
    HEADER_BYTES,
    MAGIC,
    Kind,
    Link,
    Origin,
    encode,
    encode_origin,
    read_origin,
    read_record,
    read_records,
    tail_of,
)

ORIGIN = Origin(generation=3, epoch=77, config="ab", numpy="2.0", cpu=("AVX2", "SSE"), salt=0xDEADBEEF)
BEFORE = Link(40, 123)
PAYLOADS = [b"first", b"", bytes(599) + b"!", MAGIC * 3, b"\xff" * 20, b"the last one"]


class Segment:
    """A segment of six commands, the first three of which are known to be synced by its sixth record."""

    def __init__(self):
        data, link = encode_origin(ORIGIN, BEFORE, 40)
        self.ends, self.links, self.commands = [len(data)], [link], [40]
        for number, payload in enumerate(PAYLOADS):
            kind = Kind.REQUEST if number % 2 else Kind.DECISION
            header, link = encode(kind, link, 43 if number > 3 else 40, [payload[:2], payload[2:]], ORIGIN.salt)
            data += header + payload
            self._note(data, link)
            if number == 3:
                header, link = encode(Kind.SYNCED, link, 43, [], ORIGIN.salt)
                data += header
                self._note(data, link)
        self.data = data

    def _note(self, data, link):
        self.ends.append(len(data))
        self.links.append(link)
        self.commands.append(link.sequence)

    def whole(self, length):
        """How many records end within so many bytes."""
        return sum(end <= length for end in self.ends)


SEGMENT = Segment()


def read(data, *, synced=0, is_last=True):
    """Reads a segment: its records that can be trusted, and what is to be thought of the rest."""
    data = memoryview(data)
    origin, first = read_origin(data)
    records = [first, *read_records(data, first, origin.salt)]
    return records, tail_of(data, records[-1], origin.salt, synced=synced, is_last=is_last)


def test_a_whole_segment_reads_as_it_was_written():
    records, tail = read(SEGMENT.data)
    assert [record.link for record in records] == SEGMENT.links
    assert [bytes(record.payload) for record in records if record.kind in (Kind.REQUEST, Kind.DECISION)] == PAYLOADS
    assert read_origin(SEGMENT.data)[0] == ORIGIN
    assert records[0].previous == BEFORE.crc
    assert tail == (len(SEGMENT.data), SEGMENT.links[-1], 0, 0, None, 0)


def test_every_truncation_is_a_tear_after_the_records_that_are_whole():
    for length in range(SEGMENT.ends[0], len(SEGMENT.data)):
        records, tail = read(SEGMENT.data[:length])
        whole = SEGMENT.whole(length)
        assert [record.link for record in records] == SEGMENT.links[:whole]
        assert (tail.damage, tail.at_stake, tail.end) == (None, 0, SEGMENT.ends[whole - 1])
        assert tail.num_bytes == length - tail.end


@pytest.mark.parametrize("seed", range(200))
def test_a_tail_of_garbage_or_zeros_is_a_tear(seed):
    rng = random.Random(seed)
    length = rng.randrange(SEGMENT.ends[0], len(SEGMENT.data) + 1)
    data = SEGMENT.data[:length] + (
        rng.randbytes(rng.randrange(1, 2000)) if seed % 2 else bytes(rng.randrange(1, 2000))
    )
    records, tail = read(data)
    assert [record.link for record in records] == SEGMENT.links[: SEGMENT.whole(length)]
    assert tail.damage is None


def test_a_flipped_bit_anywhere_is_never_read_over():
    last = SEGMENT.ends[-2]
    for place in range(len(SEGMENT.data)):
        for bit in range(8):
            data = bytearray(SEGMENT.data)
            data[place] ^= 1 << bit
            if place < SEGMENT.ends[0]:
                assert read_origin(data) is None
                continue
            records, tail = read(data)
            trusted = SEGMENT.whole(place)
            assert [record.link for record in records] == SEGMENT.links[:trusted]
            assert (tail.damage is None) == (place >= last), (place, bit)  # in the last record nothing can tell
            if tail.damage is not None:
                assert tail.at_stake == SEGMENT.commands[-1] - SEGMENT.commands[trusted - 1]


def test_a_hole_in_a_record_of_full_length_is_found_and_a_tear_only_in_the_last():
    for number in range(1, len(SEGMENT.ends)):
        begin, end = SEGMENT.ends[number - 1], SEGMENT.ends[number]
        for hole in range(begin, end, 7):
            data = SEGMENT.data[:hole] + bytes(min(16, end - hole)) + SEGMENT.data[min(hole + 16, end) :]
            if data == SEGMENT.data:
                continue
            records, tail = read(data)
            assert [record.link for record in records] == SEGMENT.links[:number]
            assert (tail.damage is None) == (number == len(SEGMENT.ends) - 1)


def test_a_tail_that_was_known_to_be_synced_is_damage():
    for length in range(SEGMENT.ends[0], len(SEGMENT.data)):
        commands = SEGMENT.commands[SEGMENT.whole(length) - 1]
        assert read(SEGMENT.data[:length], synced=commands)[1].damage is None
        tail = read(SEGMENT.data[:length], synced=commands + 1)[1]
        assert "were on the disk" in tail.damage
        assert tail.at_stake == 1


def test_bytes_after_the_last_record_are_damage_where_commands_follow_in_another_segment():
    assert read(SEGMENT.data, is_last=False)[1].damage is None
    assert "another segment" in read(SEGMENT.data + b"\0", is_last=False)[1].damage


def test_a_record_that_is_missing_repeated_or_of_another_segment_breaks_the_chain():
    begin, end = SEGMENT.ends[1], SEGMENT.ends[2]
    without = SEGMENT.data[:begin] + SEGMENT.data[end:]
    twice = SEGMENT.data[:end] + SEGMENT.data[begin:]
    for data, trusted in ((without, 2), (twice, 3)):
        records, tail = read(data)
        assert [record.link for record in records] == SEGMENT.links[:trusted]
        assert "valid records follow" in tail.damage


def test_a_valid_record_in_a_payload_of_another_salt_is_none():
    """Who knows the format but not the salt cannot make a tear look like damage."""
    header, _ = encode(Kind.REQUEST, SEGMENT.links[-1], 40, [b"forged"], salt=1)
    torn, _ = encode(Kind.REQUEST, SEGMENT.links[-1], 40, [header + b"forged", b"rest"], ORIGIN.salt)
    _, tail = read(SEGMENT.data + torn + header + b"forged")
    assert tail.damage is None
    assert read_record(memoryview(header + b"forged"), 0, 1) is not None


@pytest.fixture
def work(monkeypatch):
    """How many bytes are copied, and how many go into a checksum."""
    done = {"copied": 0, "summed": 0}

    def counted(what, do):
        def counting(data, *more):
            done[what] += len(data)
            return do(data, *more)

        return counting

    monkeypatch.setattr(module, "bytes", counted("copied", bytes), raising=False)
    monkeypatch.setattr(module.zlib, "crc32", counted("summed", zlib.crc32))
    return done


@pytest.mark.parametrize("forged", [MAGIC, encode(Kind.REQUEST, BEFORE, 40, [bytes(200_000)], salt=1)[0]])
def test_a_tail_of_headers_is_searched_in_time_that_grows_with_its_length(work, forged):
    """A client may have pushed them, just before power was lost."""
    payload = forged * (300_000 // len(forged)) + bytes(200_000)
    header, _ = encode(Kind.REQUEST, SEGMENT.links[-1], 40, [payload], ORIGIN.salt)
    work.update(copied=0, summed=0)
    _, tail = read(SEGMENT.data + header + payload[:-1])
    assert work["copied"] < 2 * len(payload)
    assert work["summed"] < 17 * len(payload)
    assert (tail.damage is None) == (forged == MAGIC)
    assert forged == MAGIC or tail.damage.endswith("too much of what follows looks like records to check it")
    assert tail.at_stake == 0


def test_many_records_after_a_damaged_one_are_not_too_many_to_check(work):
    """Each of them damaged, too, but for the last."""
    data, link = SEGMENT.data, SEGMENT.links[-1]
    for number in range(2_000):
        header, link = encode(Kind.REQUEST, link, 43, [b"payload"], ORIGIN.salt)
        data += header + (b"payload" if number == 1_999 else b"damaged")
    work.update(copied=0, summed=0)
    _, tail = read(data)
    assert work["summed"] < 3 * len(data)
    assert "valid records follow" in tail.damage
    assert tail.at_stake == 2_000


@pytest.mark.parametrize("garbage", [b"", b"x", bytes(HEADER_BYTES), MAGIC * 20])
def test_what_is_no_segment_has_no_origin(garbage):
    assert read_origin(garbage) is None

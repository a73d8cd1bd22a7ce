"""Snapshots: a state in one file, all of it or none.

    magic 8s  format u64  length u64  digest 16s (BLAKE2b of all that is not the digest)  body (`values.pack`)

Used by the state folder. To read one runs no code: a score function in it stays bytes.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from plr_server.durability import files
from plr_server.durability.values import DIGEST_BYTES, Buffers, digest, num_bytes, unpack

MAGIC = b"PLRstate"
FORMAT = 1

_HEADER = struct.Struct("<8sQQ")


def write_snapshot(path: Path, body: Buffers) -> None:
    """Writes a snapshot, which is on the disk when this returns, in the place of one of that name.

    Args:
        path: its file.
        body: what `values.pack` gave.

    Raises:
        OSError: it cannot be written; what was there is there still.
    """
    header = _HEADER.pack(MAGIC, FORMAT, num_bytes(body))
    files.close(files.create(path, [header, digest([header, *body]), *body]))


def read_snapshot(path: Path) -> Any:
    """Returns the value of a snapshot.

    Raises:
        ValueError: what is there is no whole snapshot; says what is wrong.
        OSError: it cannot be read.
    """
    data = memoryview(files.read(path))
    begin = _HEADER.size + DIGEST_BYTES
    if len(data) < begin:
        raise ValueError(f"expected a header of {begin} bytes, got {len(data)}")
    header, digested, body = data[: _HEADER.size], data[_HEADER.size : begin], data[begin:]
    magic, version, length = _HEADER.unpack(header)
    if magic != MAGIC or version != FORMAT:
        raise ValueError(f"expected a snapshot of format {FORMAT}, got another file")
    if len(body) != length:
        raise ValueError(f"expected {length} bytes after the header, got {len(body)}")
    if digest([header, body]) != digested:
        raise ValueError("expected the bytes that were written, got others: the checksum is wrong")
    return unpack(body)

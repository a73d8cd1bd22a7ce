"""Snapshots: a state in one file, all of it or none.

    magic 8s  format u32  0 u32  length u64  digest 16s (BLAKE2b of the body)  body (`values.pack`)

Used by the state folder. To read one runs no code: a score function in it stays bytes.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

from plr_server.durability.files import create
from plr_server.durability.values import DIGEST_BYTES, Buffers, digest, num_bytes, unpack

MAGIC = b"PLRstate"
FORMAT = 1

_HEADER = struct.Struct(f"<8sIIQ{DIGEST_BYTES}s")


def write_snapshot(path: Path, body: Buffers) -> None:
    """Writes a snapshot, which is on the disk when this returns, in the place of one of that name.

    Args:
        path: its file.
        body: what `values.pack` gave.

    Raises:
        OSError: it cannot be written; what was there is there still.
    """
    os.close(create(path, [_HEADER.pack(MAGIC, FORMAT, 0, num_bytes(body), digest(body)), *body]))


def read_snapshot(path: Path) -> Any:
    """Returns the value of a snapshot.

    Raises:
        ValueError: what is there is no whole snapshot; says what is wrong.
        OSError: it cannot be read.
    """
    data = memoryview(path.read_bytes())
    if len(data) < _HEADER.size:
        raise ValueError(f"expected a header of {_HEADER.size} bytes, got {len(data)}")
    magic, version, _, length, digested = _HEADER.unpack_from(data)
    if magic != MAGIC or version != FORMAT:
        raise ValueError(f"expected a snapshot of format {FORMAT}, got another file")
    body = data[_HEADER.size :]
    if len(body) != length:
        raise ValueError(f"expected {length} bytes after the header, got {len(body)}")
    if digest([body]) != digested:
        raise ValueError("expected the bytes that were written, got others: the checksum is wrong")
    return unpack(body)

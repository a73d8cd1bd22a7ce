"""Plain values as bytes and back: None, bools, ints of any size, floats, strings, bytes, lists, maps, numpy arrays.

Used by the snapshots and for digests of a state. Pure. It never pickles: to read what it wrote runs no code.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

DIGEST_BYTES = 16

Buffers = list[Any]  # bytes or anything with the buffer protocol

_ARRAY, _INTEGER = 1, 2  # extension types of msgpack
_TREE_BYTES = 8  # how long the msgpack tree is comes first
_KINDS = "biuf"


def pack(value: Any) -> Buffers:
    """Returns the bytes of a value, in pieces: a msgpack tree, then the data of its arrays, as they lie in memory.

    Equal values have equal bytes where their maps are in the same order.

    Raises:
        TypeError: there is something else in it than plain values and arrays of numbers.
    """
    arrays: list[NDArray[Any]] = []

    def other(part: Any) -> msgpack.ExtType:
        if type(part) is int:  # beyond 64 bits
            return msgpack.ExtType(_INTEGER, part.to_bytes(part.bit_length() // 8 + 1, "little", signed=True))
        if not (isinstance(part, np.ndarray) and part.dtype.kind in _KINDS):
            raise TypeError(f"expected plain values and arrays of numbers, got {type(part).__name__}")
        arrays.append(np.ascontiguousarray(part, part.dtype.newbyteorder("<")))
        return msgpack.ExtType(_ARRAY, msgpack.packb([arrays[-1].dtype.str, part.shape]))

    tree = msgpack.packb(value, default=other)
    return [len(tree).to_bytes(_TREE_BYTES, "little"), tree, *(array.reshape(-1).view(np.uint8) for array in arrays)]


def unpack(data: Any) -> Any:
    """Returns the value of the joined bytes that `pack` gave; tuples come back as lists, arrays as views of `data`.

    Raises:
        ValueError: the bytes are not such.
    """
    data = memoryview(data)
    begin = _TREE_BYTES
    end = begin + int.from_bytes(data[:begin], "little")
    at = end

    def other(code: int, packed: bytes) -> Any:
        nonlocal at
        if code == _INTEGER:
            return int.from_bytes(packed, "little", signed=True)
        if code != _ARRAY:
            raise ValueError(f"expected extension types {_ARRAY} and {_INTEGER}, got {code}")
        dtype, shape = msgpack.unpackb(packed)
        if np.dtype(dtype).kind not in _KINDS:
            raise ValueError(f"expected arrays of numbers, got {dtype}")
        array = np.frombuffer(data, dtype, math.prod(shape), at) if 0 not in shape else np.empty(0, dtype)
        at += array.nbytes
        return array.reshape(shape)

    try:
        value = msgpack.unpackb(data[begin:end], ext_hook=other, strict_map_key=False)
    except (TypeError, ValueError, msgpack.UnpackException) as exc:
        raise ValueError(f"expected a packed value, got bytes that do not unpack ({exc!s:.120})") from exc
    if at != len(data):
        raise ValueError(f"expected {at} bytes, got {len(data)}")
    return value


def digest(buffers: Iterable[Any]) -> bytes:
    """Returns a digest of joined bytes: two that differ have different ones, for all that chance can do."""
    digested = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for buffer in buffers:
        digested.update(buffer)
    return digested.digest()


def num_bytes(buffers: Sequence[Any]) -> int:
    """Returns how many bytes buffers have together."""
    return sum([len(buffer) if type(buffer) is bytes else memoryview(buffer).nbytes for buffer in buffers])

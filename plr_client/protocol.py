"""The wire: what a message is made of, and its limits. The only module that uses msgpack; it does no IO.

Rules
  * A message is frame 1, a msgpack header, then one raw little-endian C-order frame for each array the header lists.
  * A request's header: `v` protocol version, `id` request id, `session` (the client's uuid, hex), `seq` sequence number
    within the session (1, 2, ...), `curriculum` (a name; absent: "default"), `op`, `args` (a map), `arrays` ([name,
    dtype, shape] each). Unknown keys are ignored.
  * Every request gets one reply with its `id`: either `result` (a map) and `arrays`, or `error` {code, fields}.
    `durable` is the highest sequence number of the session up to which a client need not send again: with the state in
    memory only, the last one applied.
  * A request that is sent again carries the same `session` and `seq`; the server applies it once and repeats the reply.
  * Payloads travel as two arrays, because the header is too small for them: `payloads`, uint8, the msgpack bytes of all
    of them one after the other, and `payload_bytes`, (m,) int64, how many belong to each.
  * The server may send a notice at any time: a header with `id` nil and `notice` ("ping": to be ignored, it asks the
    transport whether the peer is there; "closing": the server is stopping).

May be imported by plr_client and plr_server. It never opens a socket, reads a clock or keeps state.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from plr_client.errors import InvalidInput, MessageTooLarge, PlrError, ProtocolError, VersionMismatch, from_wire

PROTOCOL_VERSION = 1
MAX_HEADER_BYTES = 64 * 1024  # msgpack can grow 70-fold when unpacked: this bounds it
MAX_FRAMES = 16  # the header and at most 15 arrays
MAX_FRAME_BYTES = 256 * 1024 * 1024  # the server's default; it tells its own in the hello
MAX_DIMENSIONS = 4
MAX_LEVELS_AT_ONCE = 65_536  # in one "next"
MAX_PAYLOAD_BYTES = 64 * 1024  # of one payload, packed
MAX_PAYLOAD_DEPTH = 64  # lists and maps within each other
MAX_PAYLOADS = 4096  # in one request or reply: together they fit in one frame
DEFAULT_CURRICULUM = "default"

_DTYPES = {
    f"{order}{kind}{size}": np.dtype(f"<{kind}{size}")
    for kind, sizes in {"f": (2, 4, 8), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "b": (1,)}.items()
    for size in sizes
    for order in ("|" if size == 1 else "<",)
}

Frames = list[Any]  # bytes or anything with the buffer protocol


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """One request, as the client builds and the server reads it."""

    id: int
    session: str
    sequence: int
    op: str
    args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    arrays: Mapping[str, NDArray[Any]] = dataclasses.field(default_factory=dict)
    curriculum: str = DEFAULT_CURRICULUM


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """One reply: a result with arrays, or an error. `id` is None where the request could not be read."""

    id: int | None
    result: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    arrays: Mapping[str, NDArray[Any]] = dataclasses.field(default_factory=dict)
    durable: int = 0
    error: PlrError | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Notice:
    """Something the server says unasked: "ping" or "closing"."""

    notice: str


def encode_request(request: Request) -> Frames:
    """Returns the frames of a request.

    Raises:
        InvalidInput: an array's dtype is not a bool, an integer or a float, or an argument cannot be packed.
    """
    header = {
        "v": PROTOCOL_VERSION,
        "id": request.id,
        "session": request.session,
        "seq": request.sequence,
        "curriculum": request.curriculum,
        "op": request.op,
        "args": request.args,
    }
    return _encode(header, request.arrays)


def decode_request(frames: Sequence[Any]) -> Request:
    """Reads the frames of a request.

    Raises:
        ProtocolError: they are not a request of this protocol.
        VersionMismatch: they are of another protocol version.
        MessageTooLarge: more frames or a longer header than allowed.
    """
    header = {"curriculum": DEFAULT_CURRICULUM} | _decode_header(frames)
    _check_version(header)
    arrays = _decode_arrays(header, frames)
    return Request(
        id=_get(header, "id", int),
        session=_get(header, "session", str),
        sequence=_get(header, "seq", int),
        op=_get(header, "op", str),
        args=_get(header, "args", dict),
        arrays=arrays,
        curriculum=_get(header, "curriculum", str),
    )


def encode_reply(reply: Reply) -> Frames:
    """Returns the frames of a reply."""
    header: dict[str, Any] = {"v": PROTOCOL_VERSION, "id": reply.id, "durable": reply.durable}
    if reply.error is not None:
        return _encode(header | {"error": reply.error.to_wire()}, {})
    return _encode(header | {"result": reply.result}, reply.arrays)


def encode_notice(notice: str) -> Frames:
    """Returns the frames of a notice."""
    return _encode({"v": PROTOCOL_VERSION, "id": None, "notice": notice}, {})


def decode_reply(frames: Sequence[Any]) -> Reply | Notice:
    """Reads the frames of a reply or a notice.

    Raises:
        ProtocolError: they are neither.
    """
    header = _decode_header(frames)
    if "notice" in header:
        return Notice(_get(header, "notice", str))
    arrays = _decode_arrays(header, frames)
    request_id = header.get("id")
    if request_id is not None and type(request_id) is not int:
        raise ProtocolError(f"id: expected an int or nil, got {request_id!r:.80}")
    durable = _get(header, "durable", int)
    if "error" in header:
        error = _get(header, "error", dict)
        return Reply(
            request_id, durable=durable, error=from_wire(_get(error, "code", str), _get(error, "fields", list))
        )
    return Reply(request_id, _get(header, "result", dict), arrays, durable)


def request_id(frames: Sequence[Any]) -> int | None:
    """Returns the id of a request that may be malformed, so that the error reply can carry it; None if unreadable."""
    try:
        found = _decode_header(frames[:1]).get("id")
    except PlrError:
        return None
    return found if type(found) is int else None


def pack_payload(payload: Any) -> bytes:
    """Returns the canonical msgpack bytes of a payload: what tells whether two payloads are the same level.

    Maps are packed in the order of their keys' bytes, tuples as lists, integers as short as they go, floats as 64 bits.
    1, 1.0 and True are three different payloads.

    Raises:
        InvalidInput: it is no msgpack value, nested too deeply, or too large.
    """
    if payload is None:
        raise InvalidInput("payloads", "values other than None, which stands for no payload", "None")
    try:
        packed: bytes = msgpack.packb(_canonical(payload, 0))
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        expected = "bools, ints, floats, str, bytes, and lists and maps of them (an array: .tolist() or .tobytes())"
        raise InvalidInput("payloads", expected, f"{exc!s:.200}") from exc
    if len(packed) > MAX_PAYLOAD_BYTES:
        raise InvalidInput("payloads", f"at most {MAX_PAYLOAD_BYTES} bytes each, packed", f"{len(packed)}")
    return packed


def pack_payloads(payloads: Any) -> list[bytes]:
    """Returns the canonical msgpack bytes of each of some payloads.

    Raises:
        InvalidInput: it is no list of payloads, or as `pack_payload`.
    """
    if isinstance(payloads, str | bytes | Mapping) or not isinstance(payloads, Iterable):
        raise InvalidInput("payloads", "a list of payloads", f"{payloads!r:.80}")
    return [pack_payload(payload) for payload in payloads]


def unpack_payload(packed: Any) -> Any:
    """Returns the payload of msgpack bytes: lists for arrays, maps with keys of any kind.

    Raises:
        InvalidInput: the bytes are not one msgpack value.
    """
    try:
        return msgpack.unpackb(packed, strict_map_key=False)
    except (TypeError, ValueError, msgpack.UnpackException) as exc:  # TypeError: a list as a map's key
        raise InvalidInput("payloads", "one msgpack value each", f"bytes that do not unpack ({exc!r:.120})") from exc


def join_payloads(packed: Sequence[bytes]) -> dict[str, NDArray[Any]]:
    """Returns the arrays `payloads` and `payload_bytes` that carry packed payloads."""
    return {
        "payloads": np.frombuffer(b"".join(packed), np.uint8),
        "payload_bytes": np.array([len(each) for each in packed], dtype=np.int64),
    }


def split_payloads(arrays: Mapping[str, NDArray[Any]]) -> list[bytes]:
    """Returns the packed payloads that `join_payloads` joined.

    Raises:
        InvalidInput: the arrays are not such.
    """
    joined, lengths = arrays.get("payloads"), arrays.get("payload_bytes")
    if joined is None or joined.ndim != 1 or joined.dtype != np.uint8:
        raise InvalidInput("payloads", "a uint8 array of one axis", "none" if joined is None else str(joined.dtype))
    if lengths is None or lengths.ndim != 1 or lengths.dtype.kind != "i":
        raise InvalidInput("payload_bytes", "an integer array (m,)", "none" if lengths is None else str(lengths.dtype))
    if len(lengths) > MAX_PAYLOADS:
        raise InvalidInput("payloads", f"at most {MAX_PAYLOADS} in one request", str(len(lengths)))
    if (lengths < 1).any() or (lengths > len(joined)).any() or lengths.sum() != len(joined):
        raise InvalidInput("payload_bytes", f"lengths above 0 that add up to {len(joined)}", f"{lengths!s:.80}")
    data, stops = joined.tobytes(), np.cumsum(lengths).tolist()
    return [data[begin:stop] for begin, stop in zip([0, *stops], stops, strict=False)]


def _canonical(value: Any, depth: int) -> Any:
    if not isinstance(value, dict | list | tuple):
        return value
    if depth == MAX_PAYLOAD_DEPTH:
        raise ValueError(f"lists and maps nested more than {MAX_PAYLOAD_DEPTH} deep")
    if isinstance(value, dict):
        if any(isinstance(key, dict | list | tuple) for key in value):
            raise TypeError("a list or map as the key of a map")
        return {key: _canonical(value[key], depth + 1) for key in sorted(value, key=msgpack.packb)}
    return [_canonical(below, depth + 1) for below in value]


def _encode(header: dict[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Frames:
    described, frames = [], []
    for name, array in arrays.items():
        little = array
        if array.dtype.str not in _DTYPES or not array.flags.c_contiguous:
            little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        if little.dtype.str not in _DTYPES:
            raise InvalidInput(name, "an array of bool, integers or floats", f"dtype {array.dtype}")
        described.append([name, little.dtype.str, array.shape])  # ascontiguousarray makes 0-d arrays 1-d
        frames.append(little.data.cast("B") if little.size else b"")
    try:
        packed = msgpack.packb(header | {"arrays": described})
    except (TypeError, ValueError, OverflowError) as exc:
        raise InvalidInput("args", "values that msgpack can carry", str(exc)) from exc
    return [packed, *frames]


def _decode_header(frames: Sequence[Any]) -> dict[str, Any]:
    if not frames:
        raise ProtocolError("frames: expected a header frame, got none")
    if len(frames) > MAX_FRAMES:
        raise MessageTooLarge("frames", MAX_FRAMES, len(frames))
    if len(frames[0]) > MAX_HEADER_BYTES:
        raise MessageTooLarge("header bytes", MAX_HEADER_BYTES, len(frames[0]))
    try:
        header = msgpack.unpackb(frames[0])
    except (ValueError, msgpack.UnpackException) as exc:  # every decoding failure, bad utf-8 and nesting included
        raise ProtocolError(f"header: expected a msgpack map, got bytes that do not unpack ({exc!r:.120})") from exc
    if not isinstance(header, dict):
        raise ProtocolError(f"header: expected a msgpack map, got {type(header).__name__}")
    return header


def _check_version(header: dict[str, Any]) -> None:
    version = _get(header, "v", int)
    if version != PROTOCOL_VERSION:
        raise VersionMismatch(PROTOCOL_VERSION, version)


def _get(header: dict[str, Any], key: str, kind: type) -> Any:
    value = header.get(key)
    if type(value) is not kind:  # exact: a bool is no int here
        raise ProtocolError(f"{key}: expected {kind.__name__}, got {value!r:.80}")
    return value


def _decode_arrays(header: dict[str, Any], frames: Sequence[Any]) -> dict[str, NDArray[Any]]:
    described = _get(header, "arrays", list)
    if len(described) != len(frames) - 1:
        raise ProtocolError(f"frames: expected {len(described)} array frames, got {len(frames) - 1}")
    arrays: dict[str, NDArray[Any]] = {}
    for description, frame in zip(described, frames[1:], strict=True):
        if not (isinstance(description, list) and len(description) == 3):  # noqa: PLR2004  [name, dtype, shape]
            raise ProtocolError(f"arrays: expected [name, dtype, shape], got {description!r:.80}")
        name, dtype, shape = description
        if not isinstance(name, str) or name in arrays:
            raise ProtocolError(f"arrays: expected distinct names, got {name!r:.80}")
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise ProtocolError(f"{name}: expected a dtype among {sorted(_DTYPES)}, got {dtype!r:.80}")
        if not (
            isinstance(shape, list) and len(shape) <= MAX_DIMENSIONS and all(type(n) is int and n >= 0 for n in shape)
        ):
            raise ProtocolError(f"{name}: expected a shape of at most {MAX_DIMENSIONS} axes, got {shape!r:.80}")
        size = math.prod(shape) * _DTYPES[dtype].itemsize
        if size != len(frame):
            raise ProtocolError(f"{name}: expected {size} bytes for {dtype} {shape}, got {len(frame)}")
        if dtype == "|b1" and np.frombuffer(frame, dtype=np.uint8).max(initial=0) > 1:
            raise ProtocolError(f"{name}: expected bools of one byte, 0 or 1, got others")
        try:
            arrays[name] = np.frombuffer(frame, dtype=_DTYPES[dtype]).reshape(shape)
        except (ValueError, OverflowError) as exc:  # beside an axis of 0, the others can claim any length
            raise ProtocolError(f"{name}: expected a shape that an array can have, got {shape!r:.80}") from exc
    return arrays

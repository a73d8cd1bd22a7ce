"""The wire: what a message is made of, and its limits. The only module that uses msgpack; it does no IO.

Layout
  * A message is frame 1, a msgpack list called the header, then one raw frame for each array that is not in the header.
    Further elements of a list are ignored, so that a later release may add some.
  * A request's header: `[v, session, connection, seq, after, run, curriculum, op, args, arrays]`.
      v           PROTOCOL_VERSION
      session     whom the server takes the client for: its uuid, hex
      connection  1, 2, ...: the how-manieth connection of the session this is; a client speaks on its latest alone
      seq         1, 2, ...: the how-manieth request of the session; its reply carries it as `id`
      after       the `seq` of the request before, where that one's reply has not come; else 0
      run         what the hello's reply called it: a server that was started since refuses the request; 0 for any run
      curriculum  the name of the curriculum it is for
      op, args    the operation and its plain arguments, a map
  * A reply's header: `[v, id, epoch, position, durable, error, result, arrays]`.
      id          the `seq` of the request; nil where that could not be read
      epoch       names the server's state: another epoch, another state
      position    of a request that may have changed the state: how many commands the state has seen with it; else 0,
                  as with a state that lives in memory alone
      durable     how many of those commands cannot get lost any more, by what the server's operator chose
      error       nil, or `[code, fields]` of an error class; `result`, a map, and `arrays` are empty then
  * A notice's header: `[v, notice]`, which the server may send at any time: "closing", it is stopping; "ping", to be
    ignored, it asks the transport whether the peer is there.
  * `arrays` lists `[name, dtype, shape, data]` for an array of at most MAX_INLINE_BYTES, and `[name, dtype, shape]` for
    a larger one, whose data is the next frame. Data is little-endian and in C order.

Rules
  * A session begins with the op "hello" and ends with "goodbye". Anything else in a session that the server does not
    know is refused as `SessionExpired`, and not applied.
  * So does every connection of a session, and every run of the server. Before it, after a gap (`after` has not come),
    or out of turn, a request is refused as `OutOfStep`, and not applied: the client says hello on a fresh connection.
  * A hello's args may name the `run` of the server that the client spoke to last. Its reply tells the `run` it speaks
    to now, how many commands of the run it named have `survived` (-1 where its state has not seen that run), the
    session's number among all that were `begun`, and the highest `applied` seq of it that may have changed the state.
    What the client sent and is neither applied nor has survived it sends again, in order, before anything new.
  * Every request gets one reply. One that is sent again carries the same `session` and `seq`, and the `connection` it
    is sent on; the server applies it once and repeats the reply.
  * Few levels travel as ints in `args` and `result`, many as arrays.
  * Payloads travel as two arrays: `payloads`, uint8, the msgpack bytes of all of them one after the other, and
    `payload_bytes`, (m,) int64, how many belong to each.

May be imported by plr_client and plr_server. It never opens a socket, reads a clock or keeps state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgpack
import numpy as np
from numpy.typing import NDArray

from plr_client.errors import InvalidInput, MessageTooLarge, PlrError, ProtocolError, VersionMismatch, from_wire

PROTOCOL_VERSION = 2
MAX_HEADER_BYTES = 64 * 1024  # msgpack can grow 70-fold when unpacked: this bounds it
MAX_INLINE_BYTES = 2 * 1024  # of an array in the header; a frame of its own costs more than copying that
MAX_FRAMES = 16  # the header and at most 15 arrays
MAX_FRAME_BYTES = 256 * 1024 * 1024  # of an array, the server's default; it tells its own in the hello
MAX_REQUEST_FRAMES = 4  # all frames of a request have at most so many times the bytes of the largest allowed
MAX_DIMENSIONS = 4
MAX_LEVELS_AT_ONCE = 65_536  # in one "next"
MAX_LEVELS_IN_HEADER = 64  # of a "next"; more travel as arrays
MAX_PAYLOAD_BYTES = 64 * 1024  # of one payload, packed
MAX_PAYLOAD_DEPTH = 64  # lists and maps within each other
MAX_PAYLOADS = 4096  # in one request or reply
MAX_INSERT_BYTES = (
    4 * 1024 * 1024
)  # of all payloads of one insert: the server unpacks them, and nobody is served meanwhile
MAX_SESSION_CHARS = 64
DEFAULT_CURRICULUM = "default"

_DTYPES = {
    f"{order}{kind}{size}": np.dtype(f"<{kind}{size}")
    for kind, sizes in {"f": (2, 4, 8), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "b": (1,)}.items()
    for size in sizes
    for order in ("|" if size == 1 else "<",)
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_NONE: Mapping[str, Any] = {}
_REQUEST = {
    "v": int,
    "session": str,
    "connection": int,
    "seq": int,
    "after": int,
    "run": int,
    "curriculum": str,
    "op": str,
    "args": dict,
    "arrays": list,
}
_REQUEST_KINDS = tuple(_REQUEST.values())
_REPLY_KINDS = (int, int, int, dict, list)  # of epoch, position, durable, result, arrays
_SHOWN_CHARS = 80
_LISTS = bytes([*range(0x90, 0xA0), 0xDC, 0xDD])  # what a list begins with
_NOT_MAPS = bytes(sorted({*range(256)} - {*range(0x80, 0x90), 0xC7, 0xC8, 0xC9, *range(0xD4, 0xD9), 0xDE, 0xDF}))
_SCALARS = frozenset((int, float, str, bytes, bool, type(None)))
_PAYLOADS = "bools, ints, floats, str, bytes, and lists and maps of them (an array: .tolist() or .tobytes())"
_CANONICAL = "canonical msgpack: map keys once, in the order of their bytes; ints and lengths as short as they go"

Frames = list[Any]  # bytes or anything with the buffer protocol


class Request(NamedTuple):
    """One request, as the client builds and the server reads it; the layout above says what the fields are."""

    session: str
    connection: int
    sequence: int
    curriculum: str
    op: str
    args: Mapping[str, Any] = _NONE
    arrays: Mapping[str, NDArray[Any]] = _NONE
    after: int = 0
    run: int = 0


class Reply(NamedTuple):
    """One reply: a result with arrays, or an error. `id` is None where the request could not be read.

    `payloads`, packed, are for the way out: they arrive as arrays.
    """

    id: int | None
    epoch: int
    durable: int
    error: PlrError | None = None
    result: Mapping[str, Any] = _NONE
    arrays: Mapping[str, NDArray[Any]] = _NONE
    payloads: Sequence[bytes] | None = None
    position: int = 0


class Notice(NamedTuple):
    """Something the server says unasked: "ping" or "closing"."""

    notice: str


def encode_request(request: Request) -> Frames:
    """Returns the frames of a request.

    Raises:
        InvalidInput: an array's dtype is not a bool, an integer or a float, or an argument cannot be packed.
    """
    session, connection, sequence, curriculum, op, args, arrays, after, run = request
    return _encode([PROTOCOL_VERSION, session, connection, sequence, after, run, curriculum, op, args], arrays)


def readdressed(frames: Frames, connection: int, after: int, run: int) -> Frames:
    """Returns the frames of a request as they are sent on another connection, or after another request."""
    header = msgpack.unpackb(frames[0])
    header[2], header[4], header[5] = connection, after, run
    return [msgpack.packb(header), *frames[1:]]


def oversized(frames: Frames, max_frame_bytes: int) -> MessageTooLarge | None:
    """Returns the error that a request is to a server that takes frames of so many bytes; None for none."""
    sizes, limit = list(map(len, frames)), max_frame_bytes * MAX_REQUEST_FRAMES
    if (largest := max(sizes)) > max_frame_bytes:
        names = [about[0] for about in msgpack.unpackb(frames[0])[-1] if len(about) == 3]  # noqa: PLR2004
        return MessageTooLarge(names[sizes.index(largest) - 1], max_frame_bytes, largest)
    return MessageTooLarge("all arrays", limit, sum(sizes)) if sum(sizes) > limit else None


def decode_request(frames: Sequence[Any]) -> Request:
    """Reads the frames of a request.

    Raises:
        ProtocolError: they are not a request of this protocol.
        VersionMismatch: they are of another protocol version.
        MessageTooLarge: more frames or a longer header than allowed.
    """
    header = _decode_header(frames)
    if len(header) < len(_REQUEST):
        raise ProtocolError(f"header: expected {len(_REQUEST)} elements, got {len(header)}")
    fields = header[: len(_REQUEST)]
    if tuple(map(type, fields)) != _REQUEST_KINDS:  # exact: a bool is no int here
        name, kind, value = next(
            (name, kind, value)
            for (name, kind), value in zip(_REQUEST.items(), fields, strict=True)
            if type(value) is not kind
        )
        raise ProtocolError(f"{name}: expected {kind.__name__}, got {shown(value)}")
    _, session, connection, sequence, after, run, curriculum, op, args, described = fields
    if not 0 < len(session) <= MAX_SESSION_CHARS:
        raise ProtocolError(f"session: expected 1 to {MAX_SESSION_CHARS} characters, got {len(session)}")
    if connection < 1:
        raise ProtocolError(f"connection: expected 1 or more, got {connection}")
    if sequence < 1:
        raise ProtocolError(f"seq: expected 1 or more, got {sequence}")
    if after < 0:
        raise ProtocolError(f"after: expected 0 or more, got {after}")
    arrays = _decode_arrays(described, frames) if described or len(frames) > 1 else _NONE
    return Request(session, connection, sequence, curriculum, op, args, arrays, after, run)


def encode_reply(reply: Reply) -> Frames:
    """Returns the frames of a reply."""
    number, epoch, durable, error, result, arrays, payloads, position = reply
    if error is not None:
        return _encode([PROTOCOL_VERSION, number, epoch, position, durable, error.to_wire(), _NONE], _NONE)
    if payloads is not None:
        arrays = {**arrays, **join_payloads(payloads)}
    return _encode([PROTOCOL_VERSION, number, epoch, position, durable, None, result], arrays)


def encode_notice(notice: str) -> Frames:
    """Returns the frames of a notice."""
    return [msgpack.packb([PROTOCOL_VERSION, notice])]


def decode_reply(frames: Sequence[Any]) -> Reply | Notice:
    """Reads the frames of a reply or a notice.

    Raises:
        ProtocolError: they are neither.
    """
    header = _decode_header(frames)
    if len(header) > 1 and type(header[1]) is str:
        return Notice(header[1])
    if len(header) < 8:  # noqa: PLR2004
        raise ProtocolError(f"header: expected 8 elements, got {len(header)}")
    _, number, epoch, position, durable, error, result, described = header[:8]
    kinds = type(epoch), type(position), type(durable), type(result), type(described)
    if kinds != _REPLY_KINDS or not (number is None or type(number) is int):
        got = ", ".join(type(value).__name__ for value in header[1:8])
        raise ProtocolError(f"header: expected id, epoch, position, durable, error, result and arrays, got {got}")
    if error is not None:
        if not (type(error) is list and list(map(type, error)) == [str, list]):
            raise ProtocolError(f"error: expected [code, fields], got {shown(error)}")
        return Reply(number, epoch, durable, from_wire(*error), position=position)
    arrays = _decode_arrays(described, frames) if described or len(frames) > 1 else _NONE
    return Reply(number, epoch, durable, None, result, arrays, None, position)


def request_id(frames: Sequence[Any]) -> int | None:
    """Returns the `seq` of a request that may be malformed, so that the reply can carry it; None if unreadable."""
    try:
        found = _decode_header(frames[:1])[3]
    except (PlrError, IndexError):
        return None
    return found if type(found) is int else None


def shown(value: Any) -> str:
    """Returns how an error names what a client sent: a scalar, cut short, or else its type, for it may be nested."""
    if isinstance(value, str):
        return repr(value[:_SHOWN_CHARS])
    return repr(value) if value is None or isinstance(value, bool | int | float) else type(value).__name__


def pack_payload(payload: Any) -> bytes:
    """Returns the canonical msgpack bytes of a payload: what tells whether two payloads are the same level.

    Maps are packed in the order of their keys' bytes, tuples as lists, integers as short as they go, floats as 64 bits.
    1, 1.0 and True are three different payloads. The extension types of msgpack are none.

    Raises:
        InvalidInput: it is no msgpack value, nested too deeply, or too large.
    """
    if payload is None:
        raise InvalidInput("payloads", "values other than None, which stands for no payload", "None")
    try:
        packed: bytes = msgpack.packb(_canonical(payload, 0))
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise InvalidInput("payloads", _PAYLOADS, f"{exc!s:.200}") from exc
    if len(packed) > MAX_PAYLOAD_BYTES:
        raise InvalidInput("payloads", f"at most {MAX_PAYLOAD_BYTES} bytes each, packed", f"{len(packed)}")
    return packed


def check_packed(packed: bytes) -> None:
    """Checks that bytes are what `pack_payload` gives, in a fraction of the time that packing takes.

    A client that packs in another way is refused, because the same payload would be two levels.

    Raises:
        InvalidInput: they are too many, no payload, or not its canonical bytes.
    """
    if len(packed) > MAX_PAYLOAD_BYTES:
        raise InvalidInput("payloads", f"at most {MAX_PAYLOAD_BYTES} bytes each, packed", f"{len(packed)}")
    payload = unpack_payload(packed)
    if payload is None:
        raise InvalidInput("payloads", "values other than None, which stands for no payload", "None")
    # Few bytes that may begin a list or a map cannot nest deep, and those of most levels are few.
    if len(packed) - len(packed.translate(None, _LISTS)) > MAX_PAYLOAD_DEPTH or packed.translate(None, _NOT_MAPS):
        _check_nesting(payload)
    if msgpack.packb(payload) != packed:
        raise InvalidInput("payloads", _CANONICAL, "other bytes for the same values")


def pack_payloads(payloads: Any) -> list[bytes]:
    """Returns the canonical msgpack bytes of each of some payloads.

    Raises:
        InvalidInput: it is no list of payloads, or as `pack_payload`.
    """
    try:
        each = None if isinstance(payloads, str | bytes | Mapping) else iter(payloads)
    except TypeError:  # an array without an axis too
        each = None
    if each is None:
        raise InvalidInput("payloads", "a list of payloads", shown(payloads))
    return [pack_payload(payload) for payload in each]


def unpack_payload(packed: Any) -> Any:
    """Returns the payload of msgpack bytes: lists for arrays, maps with keys of any kind.

    Raises:
        InvalidInput: the bytes are not one msgpack value.
    """
    try:
        return msgpack.unpackb(packed, strict_map_key=False)
    except (TypeError, ValueError, msgpack.UnpackException) as exc:  # TypeError: a list as a map's key
        raise InvalidInput(
            "payloads", "one msgpack value each", f"bytes that do not unpack ({_unpacking(exc)})"
        ) from exc


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


def _check_nesting(payload: Any) -> None:
    """Checks depth, order of keys and kinds of an unpacked payload, a level of nesting at a time."""
    level = [payload]
    for _ in range(MAX_PAYLOAD_DEPTH):
        below: list[Any] = []
        for each in level:
            if type(each) is dict:
                keys = list(map(msgpack.packb, each)) if len(each) > 1 else []
                if keys != sorted(keys):
                    raise InvalidInput("payloads", _CANONICAL, "a map in another order")
                below += [value for value in each.values() if type(value) not in _SCALARS]
            elif type(each) is list:
                below += [value for value in each if type(value) not in _SCALARS]
            elif type(each) not in _SCALARS:
                raise InvalidInput("payloads", _PAYLOADS, type(each).__name__)
        if not below:
            return
        level = below
    raise InvalidInput("payloads", _PAYLOADS, f"lists and maps nested more than {MAX_PAYLOAD_DEPTH} deep")


def _canonical(value: Any, depth: int) -> Any:
    if isinstance(value, msgpack.ExtType | msgpack.Timestamp):
        raise TypeError(f"{type(value).__name__}")
    if not isinstance(value, dict | list | tuple):
        return value
    if depth == MAX_PAYLOAD_DEPTH:
        raise ValueError(f"lists and maps nested more than {MAX_PAYLOAD_DEPTH} deep")
    if isinstance(value, dict):
        if any(isinstance(key, dict | list | tuple) for key in value):
            raise TypeError("a list or map as the key of a map")
        return {key: _canonical(value[key], depth + 1) for key in sorted(value, key=msgpack.packb)}
    return [_canonical(below, depth + 1) for below in value]


def _encode(header: list[Any], arrays: Mapping[str, NDArray[Any]]) -> Frames:
    """Returns the frames of a message; the header lacks its arrays yet."""
    described: list[Any] = []
    frames: Frames = [b""]
    for name, array in arrays.items():
        little, dtype = array, _NAMES.get(array.dtype)
        if dtype is None:
            little = array.astype(array.dtype.newbyteorder("<"))
            dtype = _NAMES.get(little.dtype)
            if dtype is None:
                raise InvalidInput(name, "an array of bool, integers or floats", f"dtype {array.dtype}")
        if little.nbytes <= MAX_INLINE_BYTES:
            described.append((name, dtype, array.shape, little.tobytes()))  # in C order, however it lies
        else:
            described.append((name, dtype, array.shape))
            frames.append(np.ascontiguousarray(little).data.cast("B"))
    header.append(described)
    try:
        frames[0] = msgpack.packb(header)
    except (TypeError, ValueError, OverflowError) as exc:
        raise InvalidInput("args", "values that msgpack can carry", str(exc)) from exc
    return frames


def _unpacking(exc: Exception) -> str:
    return f"{type(exc).__name__}: {exc!s:.120}"  # never its repr: ExtraData holds what was sent


def _decode_header(frames: Sequence[Any]) -> list[Any]:
    if not frames:
        raise ProtocolError("frames: expected a header frame, got none")
    if len(frames) > MAX_FRAMES:
        raise MessageTooLarge("frames", MAX_FRAMES, len(frames))
    if len(frames[0]) > MAX_HEADER_BYTES:
        raise MessageTooLarge("header bytes", MAX_HEADER_BYTES, len(frames[0]))
    try:
        header = msgpack.unpackb(frames[0])
    except (ValueError, msgpack.UnpackException) as exc:  # every decoding failure, bad utf-8 and nesting included
        raise ProtocolError(
            f"header: expected a msgpack list, got bytes that do not unpack ({_unpacking(exc)})"
        ) from exc
    if type(header) is dict and type(header.get("v")) is int:  # what version 1 was made of
        raise VersionMismatch(PROTOCOL_VERSION, header["v"])
    if type(header) is not list:
        raise ProtocolError(f"header: expected a msgpack list, got {type(header).__name__}")
    version = header[0] if header else None
    if type(version) is not int:
        raise ProtocolError(f"v: expected int, got {shown(version)}")
    if version != PROTOCOL_VERSION:
        raise VersionMismatch(PROTOCOL_VERSION, version)
    return header


def _decode_arrays(described: list[Any], frames: Sequence[Any]) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    rest = iter(frames[1:])
    num_inline = 0
    for about in described:
        if type(about) is not list or len(about) not in (3, 4):
            raise ProtocolError(f"arrays: expected [name, dtype, shape] or that and data, got {type(about).__name__}")
        name, dtype, shape = about[:3]
        if type(name) is not str or name in arrays:
            raise ProtocolError(f"arrays: expected distinct names, got {shown(name)}")
        if len(about) == 3:  # noqa: PLR2004
            frame = next(rest, None)
        else:
            num_inline += 1
            frame = about[3] if type(about[3]) is bytes else None
        if frame is None:
            raise ProtocolError(f"frames: expected one for {name:.80}, got {len(frames) - 1} for all arrays")
        arrays[name] = _decode_array(name[:_SHOWN_CHARS], dtype, shape, frame)
    if num_inline + len(frames) - 1 != len(described):
        raise ProtocolError(f"frames: expected {len(described) - num_inline} for arrays, got {len(frames) - 1}")
    return arrays


def _decode_array(name: str, dtype: Any, shape: Any, frame: Any) -> NDArray[Any]:
    kind = _DTYPES.get(dtype) if type(dtype) is str else None
    if kind is None:
        raise ProtocolError(f"{name}: expected a dtype among {sorted(_DTYPES)}, got {shown(dtype)}")
    if type(shape) is not list or len(shape) > MAX_DIMENSIONS or any(type(n) is not int or n < 0 for n in shape):
        axes = shape[: MAX_DIMENSIONS + 1] if type(shape) is list else [shape]
        raise ProtocolError(f"{name}: expected a shape of at most {MAX_DIMENSIONS} axes, got {list(map(shown, axes))}")
    size = math.prod(shape) * kind.itemsize
    if size != len(frame):
        raise ProtocolError(f"{name}: expected {size} bytes for {dtype} {shape}, got {len(frame)}")
    if dtype == "|b1" and _any_above_1(frame):
        raise ProtocolError(f"{name}: expected bools of one byte, 0 or 1, got others")
    try:
        return np.ndarray(shape, kind, frame)
    except (ValueError, OverflowError) as exc:  # beside an axis of 0, the others can claim any length
        raise ProtocolError(f"{name}: expected a shape that an array can have, got {shape}") from exc


def _any_above_1(data: Any) -> bool:
    if type(data) is bytes:  # few: an array to look at them costs ten times as much
        return bool(data.translate(None, b"\0\1"))
    return bool(np.frombuffer(data, dtype=np.uint8).max(initial=0) > 1)

"""plr_client/protocol.py: messages come back as they were sent, and nothing else is taken for one."""

from __future__ import annotations

import tracemalloc

import faults
import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from plr_client import InvalidInput, LevelOutsideSpace, MessageTooLarge, PlrError, ProtocolError, VersionMismatch
from plr_client.protocol import (
    MAX_FRAMES,
    MAX_HEADER_BYTES,
    MAX_INLINE_BYTES,
    MAX_PAYLOAD_BYTES,
    MAX_PAYLOAD_DEPTH,
    PROTOCOL_VERSION,
    Notice,
    Reply,
    Request,
    check_packed,
    decode_reply,
    decode_request,
    encode_notice,
    encode_reply,
    encode_request,
    join_payloads,
    pack_payload,
    readdressed,
    request_id,
    split_payloads,
    unpack_payload,
)

DTYPES = [*"?bBhHiIlLefd"]
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)
NAMED_ARRAYS = st.dictionaries(st.text(max_size=8), ARRAYS, max_size=15)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
MAPS = st.dictionaries(st.text(max_size=8), PLAIN, max_size=3)
INT64 = st.integers(-(2**63), 2**63 - 1)
COUNT = st.integers(1, 2**63 - 1)


def identical(left, right):
    return all(faults.same(left[name], right[name]) for name in [*left, *right])


def push(args=None, **arrays):
    return Request("s", 1, 1, "default", "push", args or {}, arrays)


def through_the_wire(frames):
    return [bytes(frame) for frame in frames]


@given(
    st.text(min_size=1, max_size=64), COUNT, COUNT, st.text(max_size=9), st.text(max_size=9), MAPS, NAMED_ARRAYS, COUNT
)
def test_a_request_comes_back_as_it_was(session, connection, sequence, curriculum, op, args, arrays, after):
    request = Request(session, connection, sequence, curriculum, op, args, arrays, after, 3 * after)
    frames = encode_request(request)
    for expected, sent in (
        (request, frames),
        (request._replace(connection=7, after=9, run=11), readdressed(frames, 7, 9, 11)),
    ):
        again = decode_request(through_the_wire(sent))
        assert again._replace(arrays={}) == expected._replace(arrays={})
        assert identical(again.arrays, arrays)


@given(st.none() | INT64, COUNT, INT64, INT64, MAPS, NAMED_ARRAYS)
def test_a_reply_comes_back_as_it_was(number, epoch, position, durable, result, arrays):
    reply = Reply(number, epoch, durable, None, result, arrays, position=position)
    again = decode_reply(through_the_wire(encode_reply(reply)))
    assert again[:4] == (number, epoch, durable, None)
    assert again.position == position
    assert again.result == result
    assert identical(again.arrays, arrays)


def test_payloads_of_a_reply_arrive_as_arrays():
    again = decode_reply(through_the_wire(encode_reply(Reply(1, 2, 1, payloads=[b"\x01", b"\xa1a"]))))
    assert split_payloads(again.arrays) == [b"\x01", b"\xa1a"]


def test_an_error_reply_carries_the_error():
    frames = encode_reply(Reply(3, 9, 2, LevelOutsideSpace("levels", "one of 3", "level 4"), position=4))
    again = decode_reply(through_the_wire(frames))
    assert (again.id, again.epoch, again.durable, again.position) == (3, 9, 2, 4)
    assert type(again.error) is LevelOutsideSpace
    assert again.error.args == ("levels", "one of 3", "level 4")


def test_a_notice_comes_back():
    assert decode_reply(through_the_wire(encode_notice("closing"))) == Notice("closing")


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3).T,
        np.arange(10)[::3],
        np.arange(4, dtype=">i4"),
        np.array(2.5),
        np.zeros((0, 3)),
        np.arange(6000.0).reshape(2, 3000).T,
        np.arange(3000, dtype=">i4"),
    ],
    ids=["transposed", "strided", "big-endian", "0-d", "empty", "large and transposed", "large and big-endian"],
)
def test_any_layout_arrives_little_endian_and_contiguous(array):
    arrived = decode_request(through_the_wire(encode_request(push(x=array)))).arrays["x"]
    assert arrived.shape == array.shape
    assert np.array_equal(arrived, array)
    assert arrived.dtype.newbyteorder("=") == array.dtype.newbyteorder("=")
    assert arrived.dtype.str[0] in "<|"


def test_a_large_array_goes_as_one_raw_frame_without_a_copy_and_a_small_one_in_the_header():
    large, small = np.arange(4.0 * MAX_INLINE_BYTES).reshape(4, -1), np.arange(MAX_INLINE_BYTES // 8)
    packed, frame = encode_request(push(large=large, small=small))
    assert bytes(frame) == large.tobytes()
    assert np.shares_memory(np.frombuffer(frame), large)
    assert msgpack.unpackb(packed)[-1] == [
        ["large", "<f8", [4, MAX_INLINE_BYTES]],
        ["small", "<i8", [MAX_INLINE_BYTES // 8], small.tobytes()],
    ]


@pytest.mark.parametrize("in_a_frame", [False, True])
def test_bytes_above_1_are_no_bools(in_a_frame):
    array = np.zeros(4096 if in_a_frame else 64, np.uint8)
    array[-1] = 1
    frames = encode_request(push(x=array.view(bool)))
    assert len(frames) == 1 + in_a_frame
    assert decode_request(frames).arrays["x"].sum() == 1
    array[-1] = 2
    with pytest.raises(ProtocolError) as raised:
        decode_request(encode_request(push(x=array.view(bool))))
    assert str(raised.value) == "x: expected bools of one byte, 0 or 1, got others"


def test_a_frame_is_read_without_a_copy():
    frames = encode_request(push(x=np.arange(1000.0)))
    assert np.shares_memory(decode_request(frames).arrays["x"], np.frombuffer(frames[1]))


def test_a_small_request_is_one_frame():
    for op in ("next", "push_step"):
        step = {
            name: np.zeros(64, dtype=np.float64) for name in ("values", "rewards", "dones", "levels", "next_values")
        }
        assert len(encode_request(Request("s", 1, 1, "default", op, {"k": 1}, step))) == 1


def test_a_header_that_small_arrays_make_too_long_cannot_be():
    arrays = {f"{i:08}": np.zeros(MAX_INLINE_BYTES, dtype=bool) for i in range(MAX_FRAMES - 1)}
    assert len(encode_request(push(**arrays))[0]) < MAX_HEADER_BYTES // 2


@pytest.mark.parametrize(
    "array",
    [np.array(["a"]), np.array([None]), np.array([1j]), np.zeros(2, dtype="M8[s]"), np.zeros(1, dtype=np.longdouble)],
    ids=["text", "objects", "complex", "dates", "longdouble"],
)
def test_other_dtypes_are_refused_before_anything_is_sent(array):
    with pytest.raises(InvalidInput, match=r"^x: expected an array of bool, integers or floats, got dtype "):
        encode_request(push(x=array))


@pytest.mark.parametrize("value", [object(), 2**64, np.float64(1) * 1j], ids=["object", "too large", "numpy complex"])
def test_arguments_that_msgpack_cannot_carry_are_refused(value):
    with pytest.raises(InvalidInput, match=r"^args: expected values that msgpack can carry, got "):
        encode_request(push({"x": value}))


# What only the dispatcher refuses: they are well-formed requests.
WELL_FORMED = {"an unknown session", "an unknown op", "an unknown field"}


@pytest.mark.parametrize("name", sorted(set(faults.BAD_FRAMES) - WELL_FORMED))
def test_bad_frames_are_one_typed_error(name):
    frames, code, text = faults.BAD_FRAMES[name]
    with pytest.raises(PlrError) as raised:
        decode_request(frames)
    assert raised.value.code == code
    assert text in str(raised.value)


@given(st.lists(st.binary(max_size=40), max_size=4))
def test_random_bytes_raise_nothing_but_our_errors(frames):
    for decode in (decode_request, decode_reply):
        with pytest.raises(ProtocolError):
            decode(frames)
    assert request_id(frames) is None


@given(st.data())
def test_a_mutated_request_raises_nothing_but_our_errors(data):
    frames = through_the_wire(faults.request("push", faults.block()))
    which = data.draw(st.integers(0, len(frames) - 1))
    frame = bytearray(frames[which])
    frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    frames[which] = bytes(frame)
    try:
        decode_request(frames)
    except ProtocolError:
        pass
    else:
        assert msgpack.unpackb(frames[0])[0] == PROTOCOL_VERSION


def test_every_truncation_is_noticed():
    frames = through_the_wire(faults.request("push", faults.block()))
    for which, frame in enumerate(frames):
        for length in range(len(frame)):
            with pytest.raises(ProtocolError):
                decode_request([*frames[:which], frame[:length], *frames[which + 1 :]])
    for count in range(len(frames)):
        with pytest.raises(ProtocolError):
            decode_request(frames[:count])


def test_further_header_elements_are_left_to_the_future():
    assert decode_request([faults.header(trace="abc", priority=[1])]).op == "push"
    reply = [*msgpack.unpackb(encode_reply(Reply(1, 2, 3))[0]), "more"]
    assert decode_reply([msgpack.packb(reply)]) == Reply(1, 2, 3)


def test_a_header_may_be_as_long_as_the_limit_and_no_longer():
    room = MAX_HEADER_BYTES - len(faults.header(note="")) - 2  # a long text has 3 bytes in front, a short one 1
    assert decode_request([faults.header(note="x" * room)]).op == "push"
    with pytest.raises(MessageTooLarge) as raised:
        decode_request([faults.header(note="x" * (room + 1))])
    assert raised.value.args == ("header bytes", MAX_HEADER_BYTES, MAX_HEADER_BYTES + 1)


def test_another_version_is_named_at_both_ends():
    with pytest.raises(VersionMismatch) as raised:
        decode_request([faults.header(v=9)])
    assert (raised.value.expected, raised.value.got) == (PROTOCOL_VERSION, 9)


@pytest.mark.parametrize(
    ("frames", "number"),
    [
        ([faults.header(seq=5, op=None)], 5),
        ([faults.header(seq=5), b"", b""], 5),
        ([faults.header(seq="5")], None),
        ([faults.header(seq=None)], None),
        ([msgpack.packb([PROTOCOL_VERSION])], None),
        ([b"garbage"], None),
        ([], None),
    ],
    ids=["no op", "frames that do not fit", "text", "no number", "a list too short", "garbage", "no frame"],
)
def test_the_id_of_a_malformed_request_is_read_where_it_can_be(frames, number):
    assert request_id(frames) == number


@pytest.mark.parametrize(
    "reply",
    [
        [1, 0, 0, 0, None, {}],
        [1, 0, 0, None, None, {}, []],
        [1, 0, None, 0, None, {}, []],
        [1, "0", 0, 0, None, {}, []],
        [1.0, 0, 0, 0, None, {}, []],
        [1, 0, 0, 0, None, [], []],
        [1, 0, 0, 0, "no", {}, []],
        [1, 0, 0, 0, [3, []], {}, []],
        [1, 0, 0, 0, ["config"], {}, []],
    ],
    ids=[
        *(
            "too short",
            "no durable",
            "no position",
            "text as the epoch",
            "a float as the id",
            "a list as the result",
            "error as text",
        ),
        *("error without code", "error without fields"),
    ],
)
def test_bad_replies_are_a_protocol_error(reply):
    with pytest.raises(ProtocolError, match="expected"):
        decode_reply([msgpack.packb([PROTOCOL_VERSION, *reply])])


# ---- payloads

PAYLOADS = st.recursive(
    st.none() | st.booleans() | INT64 | st.floats(allow_nan=False) | st.text(max_size=5) | st.binary(max_size=5),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(max_size=3) | INT64, below, max_size=4),
    max_leaves=20,
).filter(lambda payload: payload is not None)


def shuffled(payload, rng):
    """The same payload, its maps in another order and some of its lists as tuples."""
    if isinstance(payload, dict):
        keys = [list(payload)[i] for i in rng.permutation(len(payload))]
        return {key: shuffled(payload[key], rng) for key in keys}
    if isinstance(payload, list):
        return (list, tuple)[rng.integers(2)](shuffled(below, rng) for below in payload)
    return payload


@given(PAYLOADS, st.integers(0, 9))
def test_a_payload_has_one_packing_and_comes_back(payload, seed):
    packed = pack_payload(payload)
    assert unpack_payload(packed) == payload
    assert pack_payload(shuffled(payload, np.random.default_rng(seed))) == packed
    assert pack_payload(unpack_payload(packed)) == packed


def test_payloads_that_differ_in_kind_alone_differ():
    kinds = [1, 1.0, True, "1", b"1", [1], {1: 1}, {"1": 1}, 0, 0.0, -0.0, False, "", b"", [], {}, [None]]
    assert len({pack_payload(payload) for payload in kinds}) == len(kinds)


@given(st.lists(PAYLOADS, max_size=5))
def test_payloads_go_through_the_wire(payloads):
    packed = [pack_payload(payload) for payload in payloads]
    request = push(**join_payloads(packed))
    again = decode_request(through_the_wire(encode_request(request)))
    assert split_payloads(again.arrays) == packed


def nested_lists(depth):
    payload = []
    for _ in range(depth - 1):
        payload = [payload]
    return payload


def test_the_limits_of_a_payload():
    assert len(pack_payload(b"x" * (MAX_PAYLOAD_BYTES - 3))) == MAX_PAYLOAD_BYTES
    assert unpack_payload(pack_payload(nested_lists(MAX_PAYLOAD_DEPTH))) == nested_lists(MAX_PAYLOAD_DEPTH)
    for bad, got in (
        (b"x" * (MAX_PAYLOAD_BYTES - 2), "65537"),
        (nested_lists(MAX_PAYLOAD_DEPTH + 1), "nested more than 64 deep"),
        (nested_lists(100_000), "nested more than 64 deep"),
        (None, "None"),
        (np.zeros(2), "ndarray"),
        ({"a": np.int64(1)}, "int64"),
        ({"a": {(1, 2): 3}}, "a list or map as the key"),
        (2**64, "out of range"),
        ({1, 2}, "set"),
        (msgpack.ExtType(5, b"x"), "ExtType"),
        ([msgpack.Timestamp(1)], "Timestamp"),
    ):
        with pytest.raises(InvalidInput, match=rf"^payloads: expected .* got .*({got})"):
            pack_payload(bad)


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"payloads": np.zeros(3, np.uint8)},
        {"payload_bytes": np.array([3])},
        {"payloads": np.zeros(3), "payload_bytes": np.array([3])},
        {"payloads": np.zeros((1, 3), np.uint8), "payload_bytes": np.array([3])},
        {"payloads": np.zeros(3, np.uint8), "payload_bytes": np.array([3.0])},
        {"payloads": np.zeros(3, np.uint8), "payload_bytes": np.array([2])},
        {"payloads": np.zeros(3, np.uint8), "payload_bytes": np.array([4, -1])},
        {"payloads": np.zeros(3, np.uint8), "payload_bytes": np.array([3, 0])},
        {"payloads": np.zeros(3, np.uint8), "payload_bytes": np.array([2**62, 2**62, 2**62, 2**62, 3])},
        {"payloads": np.zeros(4097, np.uint8), "payload_bytes": np.ones(4097, int)},
    ],
)
def test_arrays_that_are_no_payloads_are_refused(arrays):
    with pytest.raises(InvalidInput, match=r"^payload"):
        split_payloads(arrays)


@pytest.mark.parametrize("packed", [b"", b"\xc1", b"\x92\x01", b"\x01\x01", b"\x81\x90\x01", b"\xa1\xff"])
def test_bytes_that_are_no_payload_are_refused(packed):
    with pytest.raises(InvalidInput, match=r"^payloads: expected one msgpack value each"):
        unpack_payload(packed)


@given(PAYLOADS)
def test_the_server_takes_what_a_client_packs(payload):
    check_packed(pack_payload(payload))


@given(PAYLOADS, st.integers(0, 9))
def test_the_server_takes_no_other_order_for_the_same_payload(payload, seed):
    packed = msgpack.packb(shuffled(payload, np.random.default_rng(seed)))
    if packed == pack_payload(payload):
        check_packed(packed)
    else:
        with pytest.raises(InvalidInput, match=r"^payloads: expected canonical msgpack"):
            check_packed(packed)


@pytest.mark.parametrize(
    ("packed", "got"),
    [
        (b"\xc0", "None"),
        (b"\xc1", "do not unpack"),
        (b"\x82\x01\xa1a\xc3\xa1b", "other bytes"),  # {1: "a", True: "b"}: one key to Python
        (b"\x82\x01\xa1a\xcb\x3f\xf0" + bytes(6) + b"\xa1b", "other bytes"),  # {1: "a", 1.0: "b"}
        (b"\x82\xa1b\x02\xa1a\x01", "a map in another order"),
        (b"\xcd\x00\x02", "other bytes"),  # 2, longer than it must be
        (b"\xd4\x05\x00", "ExtType"),
        (b"\x91\xd6\xff" + bytes(4), "Timestamp"),
        (b"\x91" * MAX_PAYLOAD_DEPTH + b"\x90", "nested more than 64 deep"),
        (b"\x91" * 1000 + b"\x90", "nested more than 64 deep"),
        (b"\x81\x01" * MAX_PAYLOAD_DEPTH + b"\x90", "nested more than 64 deep"),
        (b"\xdd\x00\x1e\x84\x80" + b"\x80" * 2_000_000, "2000005"),  # 140 MB when unpacked
    ],
)
def test_packed_payloads_that_are_refused(packed, got):
    with pytest.raises(InvalidInput, match=rf"^payloads: expected .* got .*{got}"):
        check_packed(packed)


def test_bytes_too_many_are_refused_before_they_are_unpacked():
    packed = b"\xdd\x00\x1e\x84\x80" + b"\x80" * 2_000_000
    tracemalloc.start()
    with pytest.raises(InvalidInput, match="at most 65536 bytes each"):
        check_packed(packed)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000

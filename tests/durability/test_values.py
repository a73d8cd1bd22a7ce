"""plr_server/durability/values.py: plain values as bytes and back."""

from __future__ import annotations

import faults
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from plr_server.durability.values import digest, num_bytes, pack, unpack

scalars = (
    st.none() | st.booleans() | st.integers(-(2**200), 2**200) | st.floats(allow_nan=False) | st.text() | st.binary()
)
arrays = hnp.arrays(
    st.sampled_from([np.float64, np.float32, np.int64, np.uint8, np.bool_]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0),
)
plain = st.recursive(
    scalars | arrays,
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(-(2**62), 2**62), inner),
    max_leaves=20,
)


def joined(value):
    return b"".join(bytes(buffer) for buffer in pack(value))


@given(plain)
def test_a_value_comes_back_as_it_was(value):
    data = joined(value)
    assert faults.same(unpack(data), value)
    assert num_bytes(pack(value)) == len(data)
    assert joined(unpack(data)) == data


def test_the_state_of_a_generator_comes_back():
    generator = np.random.Generator(np.random.PCG64(3))
    state = generator.bit_generator.state
    assert state["state"]["state"] > 2**64
    assert unpack(joined(state)) == state


def test_arrays_that_are_not_contiguous_or_of_the_other_byte_order_come_back():
    for array in (np.arange(12.0).reshape(3, 4)[:, ::2], np.arange(3, dtype=">i8"), np.array(2.5)):
        assert np.array_equal(unpack(joined([array]))[0], array)


@pytest.mark.parametrize("value", [object(), {1, 2}, np.float32(1), np.array([None]), np.array(["a"]), len])
def test_what_is_not_plain_is_refused(value):
    with pytest.raises(TypeError, match="expected plain values"):
        pack([value])


@pytest.mark.parametrize("data", [b"", bytes(8), bytes(7), joined([1.5, np.arange(3)])[:-1], joined([1]) + b"x"])
def test_bytes_that_are_no_value_are_refused(data):
    with pytest.raises(ValueError, match="expected"):
        unpack(data)


def test_a_digest_is_of_the_joined_bytes():
    assert digest([b"ab", b"c"]) == digest([b"abc"]) != digest([b"abd"])

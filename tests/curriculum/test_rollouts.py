from __future__ import annotations

import golden
import numpy as np
import pytest

from plr_client import InvalidInput
from plr_server.curriculum.arrays import FEW, MAX_MAGNITUDE, as_array, finite
from plr_server.curriculum.scoring.rollouts import MAX_COLUMNS, MAX_LOGITS, MAX_STEPS, check
from plr_server.curriculum.scoring.strategies import strategy_named


def checked(strategy, fields, **how):
    """The rollout of what was pushed, as the scorer makes it for a strategy."""
    rule = strategy_named(strategy)
    return check(fields, strategy, needs=rule.needs, takes=rule.takes, **how)


def test_what_comes_out_has_the_promised_dtypes_and_only_what_the_strategy_reads():
    fields = golden.block("truncation")
    rollout = checked("value_l1", {**fields, "dones": fields["dones"].astype(np.float32)})
    assert (rollout.dones.dtype, rollout.levels.dtype, rollout.values.dtype) == (bool, np.int64, np.float64)
    assert rollout.logits is None
    assert rollout.valid is None
    assert rollout.columns.tolist() == list(range(6))
    rollout = checked("min_margin", fields)
    assert rollout.values is rollout.next_values is rollout.truncated is None


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.int64, np.uint8, bool])
def test_numbers_of_any_dtype_are_taken(dtype):
    fields = {"dones": [[1]], "levels": [[3]], "values": [[0]], "next_values": [0]}
    rollout = checked("value_l1", {**fields, "rewards": np.ones((1, 1), dtype)})
    assert rollout.rewards.tolist() == [[1.0]]


def test_the_pushed_arrays_are_not_changed_and_not_kept():
    fields = golden.block("mixed")
    fields["valid"] = np.arange(48 * 6).reshape(48, 6) % 7 > 0
    before = {name: array.copy() for name, array in fields.items()}
    rollout = checked("value_l1", fields)
    for name, array in fields.items():
        np.testing.assert_array_equal(array, before[name])
        kept = getattr(rollout, name)
        assert kept is None or not np.shares_memory(kept, array)


def test_final_values_matter_only_where_truncated():
    fields = {"dones": [[1], [1]], "levels": [[0], [0]], "values": [[0.0], [0.0]], "rewards": [[0, 0], [0, 0]]}
    fields |= {
        "rewards": [[0.0], [0.0]],
        "next_values": [0.0],
        "truncated": [[1], [0]],
        "final_values": [[2.0], [np.nan]],
    }
    rollout = checked("value_l1", fields)
    assert rollout.final_values.tolist() == [[2.0, 0.0]]  # column-major


def test_whatever_numpy_cannot_take_is_ours_to_refuse():
    class Foreign:
        def __array__(self, *_args, **_kwargs):
            raise RuntimeError("can't convert cuda:0 device type tensor")

    with pytest.raises(
        InvalidInput, match="values: expected something numpy can turn into an array, got can't convert cuda"
    ):
        as_array("values", Foreign())


def test_a_block_comes_out_column_major():
    rollout = checked("value_l1", golden.block("mixed"))
    assert rollout.values.shape == (6, 48)
    np.testing.assert_array_equal(rollout.values, golden.block("mixed")["values"].T.astype(np.float64))
    assert rollout.values.flags.c_contiguous
    assert rollout.levels.flags.c_contiguous


def test_a_step_is_a_block_of_one_and_its_errors_are_in_its_own_shapes():
    fields = {"dones": [1, 0], "levels": [3, 4], "values": [0, 1], "rewards": [0, 1], "next_values": [0, 1]}
    rollout = checked("value_l1", fields, step=True)
    assert (rollout.values.tolist(), rollout.dones.tolist()) == ([[0.0], [1.0]], [[True], [False]])
    rollout = checked("min_margin", {**fields, "logits": [[0, 1, 2], [3, 4, 5]]}, step=True)
    assert rollout.logits.tolist() == [[[0.0, 1.0, 2.0]], [[3.0, 4.0, 5.0]]]
    for wrong, message in (
        ({"values": [0, 1, 2]}, r"^values: expected shape \(2,\), by the shape of levels, got shape \(3,\)$"),
        ({"levels": [[3, 4]]}, r"^levels: expected shape \(N,\), N at least 1, got shape \(1, 2\)$"),
        ({"logits": [[0], [1]]}, r"^logits: expected shape \(2, A\), A at least 2, got shape \(2, 1\)$"),
        ({"truncated": [0, 1]}, r"^truncated: expected True only where dones is, got True in column 1, which is not"),
    ):
        with pytest.raises(InvalidInput, match=message):
            checked("value_l1", {**fields, **wrong}, step=True)


def test_a_block_has_a_largest_size():
    columns = np.broadcast_to(np.int8(0), (1, MAX_COLUMNS + 1))
    with pytest.raises(InvalidInput, match=f"levels: expected at most {MAX_COLUMNS} columns in one push"):
        checked("uniform", {"levels": columns, "dones": columns})
    shape = (MAX_STEPS // 4 + 1, 4)
    levels = np.broadcast_to(np.int8(0), shape)
    with pytest.raises(InvalidInput, match=rf"levels: expected at most {MAX_STEPS} steps \(T x N\) in one push"):
        checked("uniform", {"levels": levels, "dones": levels})
    logits = np.broadcast_to(np.int8(0), (2, 2, MAX_LOGITS // 4 + 1))
    with pytest.raises(InvalidInput, match=rf"logits: expected at most {MAX_LOGITS} \(T x N x A\) in one push"):
        checked("min_margin", {"levels": np.zeros((2, 2), int), "dones": np.zeros((2, 2)), "logits": logits})


@pytest.mark.parametrize("order", "<>")
def test_unsigned_numbers_beyond_int64_are_refused_in_any_byte_order(order):
    with pytest.raises(InvalidInput, match="levels: expected integers within int64, got 18446744073709551615"):
        as_array("levels", np.array([2**64 - 1], f"{order}u8"))


@pytest.mark.parametrize("num", [1, 64, FEW, FEW + 1])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_what_is_not_finite_or_too_large_is_found_among_few_and_many(num, dtype):
    largest = np.inf if dtype is np.longdouble else float(np.finfo(dtype).max)
    with np.errstate(all="raise"):
        for large in (65504.0, 1e15, 0.999e30):
            numbers = np.full(num, large if large <= largest else 1.0, dtype)
            assert finite("values", numbers).tolist() == numbers.astype(np.float64).tolist()
    for wrong in (np.nan, np.inf, -np.inf, *((1.001e30, -1.001e30) if largest > MAX_MAGNITUDE else ())):
        numbers = np.zeros(num, dtype)
        numbers[-1] = wrong
        with pytest.raises(InvalidInput, match=r"^values: expected finite numbers up to 1e\+30 in magnitude, got "):
            finite("values", numbers)

from __future__ import annotations

import golden
import numpy as np
import pytest

from plr_client import InvalidInput
from plr_server.curriculum.scoring.rollouts import add_step, as_array, check, join_steps, keep_open, prepend
from plr_server.curriculum.scoring.scores import score_episodes


def test_what_comes_out_has_the_promised_dtypes_and_only_what_the_strategy_reads():
    fields = golden.block("truncation")
    rollout, columns = check("value_l1", {**fields, "dones": fields["dones"].astype(np.float32)})
    assert (rollout.dones.dtype, rollout.levels.dtype, rollout.values.dtype) == (bool, np.int64, np.float64)
    assert rollout.logits is None
    assert rollout.valid is None
    assert columns.tolist() == list(range(6))
    rollout, _ = check("min_margin", fields)
    assert rollout.values is rollout.rewards is rollout.next_values is rollout.truncated is None


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.int64, np.uint8, bool])
def test_numbers_of_any_dtype_are_taken(dtype):
    fields = {"dones": [[1]], "levels": [[3]], "values": [[0]], "next_values": [0]}
    rollout, _ = check("value_l1", {**fields, "rewards": np.ones((1, 1), dtype)})
    assert rollout.rewards.tolist() == [[1.0]]


def test_the_pushed_arrays_are_not_changed_and_not_kept():
    fields = golden.block("mixed")
    fields["valid"] = np.arange(48 * 6).reshape(48, 6) % 7 > 0
    before = {name: array.copy() for name, array in fields.items()}
    rollout, _ = check("value_l1", fields)
    score_episodes(check("gae", golden.block("mixed"))[0], "gae", 0.9, 0.9)
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
    rollout, _ = check("value_l1", fields)
    assert rollout.final_values.tolist() == [[2.0], [0.0]]


def test_whatever_numpy_cannot_take_is_ours_to_refuse():
    class Foreign:
        def __array__(self, *_args, **_kwargs):
            raise RuntimeError("can't convert cuda:0 device type tensor")

    with pytest.raises(
        InvalidInput, match="values: expected something numpy can turn into an array, got can't convert cuda"
    ):
        as_array("values", Foreign())


def one_column(levels, dones, values):
    fields = {
        "levels": np.array(levels)[:, None],
        "dones": np.array(dones)[:, None],
        "values": np.array(values)[:, None],
    }
    fields["rewards"] = fields["values"]
    return check("value_l1", {**fields, "next_values": [0.0]})


def test_an_open_episode_comes_back_in_front_of_its_column():
    first, columns = one_column([4, 4, 5], [False, True, False], [1.0, 2.0, 3.0])
    kept = keep_open(first, score_episodes(first, "value_l1", 0.9, 0.9), columns)
    assert list(kept) == [0]
    assert (kept[0].level, kept[0].steps, kept[0].values.tolist()) == (5, 1, [3.0])
    second, _ = one_column([5, 6], [True, False], [4.0, 5.0])
    joined = prepend(kept, second, columns)
    assert joined.values[:, 0].tolist() == [3.0, 4.0, 5.0]
    assert joined.levels[:, 0].tolist() == [5, 5, 6]
    assert prepend({7: kept[0]}, second, columns) is second
    assert prepend(kept, one_column([9], [True], [0.0])[0], columns).levels.tolist() == [[9]]


def test_joined_steps_are_the_block():
    fields = golden.block("truncation")
    whole, columns = check("value_l1", fields)
    pool = None
    for t in range(48):
        step = {name: x if name == "next_values" else x[t : t + 1] for name, x in fields.items()}
        pool = add_step(pool, check("value_l1", step)[0], columns)
    joined = join_steps(pool.steps)
    for name in ("values", "rewards", "dones", "levels", "next_values", "truncated"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))

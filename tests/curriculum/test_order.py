from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plr_server.curriculum.sampling import order
from plr_server.curriculum.sampling.order import KeyOrder

KEYS = st.sampled_from([-1e30, -1.0, -0.0, 0.0, 5e-324, 1.0, 1.5, 1e30]) | st.floats(-1e30, 1e30)


def pairs(keys):
    """What replace takes, from {index: key}."""
    return np.array(list(keys), dtype=np.int64), np.array(list(keys.values()), dtype=np.float64)


def expected(keys):
    return sorted(keys, key=lambda index: (keys[index], index))


@pytest.mark.parametrize("merge_overhead", [0, 1000], ids=["merges", "single changes"])
@given(
    st.lists(
        st.tuples(st.dictionaries(st.integers(0, 60), KEYS, max_size=30), st.sets(st.integers(0, 60))),
        max_size=8,
    )
)
def test_it_is_the_sorted_list_whatever_goes_in_and_out(merge_overhead, changes):
    # blocks of 4, so that a few dozen pairs are cut, joined and emptied
    with mock.patch.multiple(order, BLOCK=4, MERGE_OVERHEAD=merge_overhead):
        key_order, keys = KeyOrder(), {}
        for new, gone in changes:
            old = {index: key for index, key in keys.items() if index in new or index in gone}
            key_order.replace(*pairs(old), *pairs(new))
            keys = {index: key for index, key in keys.items() if index not in old} | new
            assert len(key_order) == len(keys)
            assert key_order.indices().tolist() == expected(keys)
            assert [key_order.select(rank) for rank in range(len(keys))] == expected(keys)


def test_blocks_stay_bounded_while_all_keys_wander():
    rng = np.random.default_rng(0)
    num = 3000
    keys = dict(enumerate(rng.random(num).tolist()))
    with mock.patch.object(order, "BLOCK", 32):
        key_order = KeyOrder()
        key_order.replace(*pairs({}), *pairs(keys))
        for center in range(5):  # all pairs move to one place, a few at a time, and leave the old blocks nearly empty
            for some in np.split(rng.permutation(num), 300):
                old = {index: keys[index] for index in some.tolist()}
                new = {index: center + key / 1000 for index, key in old.items()}
                key_order.replace(*pairs(old), *pairs(new))
                keys |= new
                sizes = [len(block) for block in key_order._keys]
                assert min(sizes) >= 16
                assert max(sizes) <= 64
        assert key_order.indices().tolist() == expected(keys)

"""pools.py: steps pushed one by one are the block that they make, and what does not fit is refused."""

from __future__ import annotations

import faults
import golden
import pytest
from test_rollouts import checked

from plr_client import InvalidInput
from plr_server import Config, Curriculum
from plr_server.curriculum.scoring.pools import StepPool, joined
from plr_server.curriculum.scoring.rollouts import MAX_STEPS


def step_of(fields, t):
    return {name: x if name == "next_values" else x[t] for name, x in fields.items()}


def test_joined_steps_are_the_block_also_after_a_pause():
    fields = golden.block("truncation")
    whole, pool = checked("value_l1", fields), StepPool()
    for t in range(48):
        step = step_of(fields, t)
        if not step["truncated"].any():
            del step["truncated"]  # an optional field may come and go from step to step
        rollout = checked("value_l1", step, step=True)
        pool.check(rollout)
        pool.append(rollout)
        if t == 20:
            again = StepPool.from_state(pool.state())
            assert faults.same(again.state(), pool.state())
            pool = again
    block = joined(pool.steps)
    for name in whole._fields:
        assert faults.same(getattr(block, name), getattr(whole, name)), name


def test_a_block_of_steps_has_a_largest_size():
    curriculum = Curriculum(Config(levels=range(4), strategy="uniform", num_steps=MAX_STEPS))
    curriculum.update_step(dones=[False], levels=[0])
    with pytest.raises(InvalidInput, match=rf"at most {MAX_STEPS} steps .* num_steps = {MAX_STEPS}, got 2 columns"):
        curriculum.update_step(dones=[False] * 2, levels=[0] * 2, source="b")


def test_a_field_of_another_name_is_refused():
    curriculum = Curriculum(Config(levels=range(4), strategy="uniform"))
    with pytest.raises(
        InvalidInput, match=r"^truncatd: expected a field among values, rewards, .* got an unknown one$"
    ):
        curriculum.update_step(dones=[True], levels=[0], truncatd=[False])

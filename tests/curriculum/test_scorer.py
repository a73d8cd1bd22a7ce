"""scorer.py: looking changes nothing, and what is refused or dropped leaves what it should."""

from __future__ import annotations

import cloudpickle
import faults
import golden
import numpy as np
import pytest

from plr_client import InvalidInput, StepsDropped
from plr_server import Config, Curriculum
from plr_server.curriculum.scoring import scorer as module
from plr_server.curriculum.scoring.history import MAX_WINDOW_NUMBERS
from plr_server.curriculum.scoring.scorer import Scorer
from plr_server.curriculum.table import MAX_ENTERING


@pytest.mark.parametrize("partial", ["commit", "stitch"])
@pytest.mark.parametrize("strategy", ["value_l1", "maxmc", "learnability"])
def test_looking_changes_nothing_and_looking_again_finds_the_same(strategy, partial):
    scorer, fields = (
        Scorer(Config(levels=range(60), strategy=strategy, partial=partial), 60),
        golden.block("truncation"),
    )
    for begin in range(0, 48, 16):
        part = {name: x if name == "next_values" else x[begin : begin + 16] for name, x in fields.items()}
        rollout = scorer.check(part)
        before = scorer.state()
        looks = [scorer.look(rollout, "", lambda ids: ids) for _ in range(2)]
        assert faults.same(scorer.state(), before)
        assert faults.same(looks[0].levels, looks[1].levels)
        assert faults.same(looks[0].scores, looks[1].scores)
        scorer.keep(looks[0], rollout.columns, "")


def test_agents_of_a_group_on_two_levels_cost_the_block_of_steps_and_not_the_next():
    curriculum = Curriculum(Config(levels=range(10), num_steps=4))

    def step(levels):
        flat = np.ones(2)
        return curriculum.update_step(
            values=flat, rewards=flat, dones=[True, True], levels=levels, next_values=flat, groups=[0, 0]
        )

    for _ in range(2):
        assert [step([3, 3]), step([3, 5]), step([3, 3])] == [0, 0, 0]
        with pytest.raises(StepsDropped, match=r"4 steps .*: levels: expected one level for the agents of a group"):
            step([3, 3])
    assert [step([7, 7]) for _ in range(4)] == [0, 0, 0, 4]


def flat_step(num_columns, columns=None):
    """A step of columns that all play level 3 on."""
    ones = np.ones(num_columns)
    return {
        "values": ones,
        "rewards": ones,
        "dones": np.zeros(num_columns, dtype=bool),
        "levels": np.full(num_columns, 3),
        "next_values": ones,
        "columns": columns,
    }


def test_blocks_that_wait_for_steps_are_bounded_in_all(monkeypatch):
    monkeypatch.setattr(module, "MAX_POOLED_BYTES", 2 * 4 * (1024 + 2 * 64))
    curriculum = Curriculum(Config(levels=range(10), num_steps=4))
    for source in ("a", "b"):
        curriculum.update_step(**flat_step(2), source=source)
    before = curriculum.state()
    expected = "levels: expected 9216 bytes at most of blocks that wait for steps, of all clients"
    with pytest.raises(InvalidInput, match=expected):
        curriculum.update_step(**flat_step(2), source="c")
    assert faults.same(curriculum.state(), before)
    assert [curriculum.update_step(**flat_step(2), source="a") for _ in range(3)] == [0, 0, 2]
    curriculum.update_step(**flat_step(2), source="c")  # there is room again


def test_episodes_under_way_are_bounded_in_all(monkeypatch):
    monkeypatch.setattr(module, "MAX_UNDER_WAY", 6)
    curriculum = Curriculum(Config(levels=range(10)))

    def push(source, columns):
        step = flat_step(len(columns), columns)
        block = {name: x if name in ("next_values", "columns") else x[np.newaxis] for name, x in step.items()}
        curriculum.update(**block, source=source)

    def under_way():
        return {source: len(each["columns"]) for source, each in curriculum.state()["scorer"]["under_way"].items()}

    push("a", [0, 1, 2])
    push("b", [0, 1])
    push("b", [0, 1])
    assert under_way() == {"a": 3, "b": 2}
    curriculum = Curriculum.from_state(curriculum.state())
    push("c", [5, 6])
    assert under_way() == {"b": 2, "c": 2}
    curriculum.forget("b")
    push("a", [0, 1, 2, 3])
    assert under_way() == {"c": 2, "a": 4}


@pytest.mark.parametrize("strategy", ["uniform", "random", "sequential"])
def test_a_strategy_that_does_not_draw_by_score_takes_no_function(strategy):
    curriculum = Curriculum(Config(levels=range(4), strategy=strategy))
    expected = "function: expected a curriculum that draws by score (start it with another strategy), got one of the "
    with pytest.raises(InvalidInput) as raised:
        curriculum.set_score_function(cloudpickle.dumps(lambda segment: (segment.level, segment.level)))
    assert str(raised.value) == f"{expected}strategy {strategy}"
    assert curriculum.stats()["strategy"] == strategy


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.longdouble])
def test_scores_that_only_a_wider_dtype_shows_to_be_infinite_are_refused(dtype):
    curriculum = Curriculum(Config(levels=range(4), strategy="external"))
    for wrong in (np.inf, -np.inf, np.nan):
        with pytest.raises(InvalidInput, match="scores: expected finite numbers up to"):
            curriculum.update_scores([0, 1], np.array([1.0, wrong], dtype))
    assert not curriculum.scores()[3].any()
    payloads = Curriculum(Config(levels="payloads", strategy="external"))
    with pytest.raises(InvalidInput, match="scores: expected finite numbers up to"):
        payloads.insert(["a"], scores=np.array([np.inf], dtype))


def test_ends_at_the_same_step_apply_in_the_order_of_the_column_ids():
    rewards = {0: 1.0, 1: 5.0}  # of the column of that id
    for columns in ([0, 1], [1, 0]):
        curriculum = Curriculum(Config(levels=range(2), strategy="one_step_td_error"))
        flat = np.zeros((1, 2))
        curriculum.update(
            values=flat,
            rewards=[[rewards[column] for column in columns]],
            dones=flat == 0,
            levels=flat.astype(int),
            next_values=flat[0],
            columns=columns,
        )
        assert curriculum.scores()[1].tolist() == [5.0, 0.0]


def test_a_state_of_another_format_is_refused():
    state = Curriculum(Config(levels=range(4))).state()
    with pytest.raises(InvalidInput, match=r"state: expected format 3, .*, got format 1"):
        Curriculum.from_state({**state, "format": 1})


def is_plain(value):
    """Whether a value is made of what any format can carry."""
    if isinstance(value, dict):
        return all(isinstance(key, str | int) and is_plain(below) for key, below in value.items())
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or type(value) in {bool, int, float, str, bytes, np.ndarray}


@pytest.mark.parametrize("levels", ["0:60", "unbounded"])
@pytest.mark.parametrize("partial", ["commit", "stitch"])
@pytest.mark.parametrize("strategy", ["value_l1", "maxmc", "learnability", "min_margin"])
def test_the_state_is_plain_and_goes_on_bit_for_bit(strategy, partial, levels):
    config = Config(levels=levels, capacity=8, strategy=strategy, partial=partial, num_steps=3, replay_prob=0.5)
    first, fields = Curriculum(config), golden.block("truncation")
    for begin in range(0, 40, 8):
        part = {name: x if name == "next_values" else x[begin : begin + 8] for name, x in fields.items()}
        first.update(**part, groups=np.arange(6, 0, -1) if begin == 16 else None, source="a")
        step = {name: x if name == "next_values" else x[begin] for name, x in fields.items()}
        step["dones"] = np.ones(6, bool)  # whatever comes next, each step is an episode
        del step["truncated"], step["final_values"]
        first.update_step(**step, source=f"b{begin % 3}")
        first.sample(3)
        second = Curriculum.from_state(first.state())
        assert is_plain(first.state())
        assert faults.same(second.state(), first.state())
        first = second


def test_one_push_has_so_many_episodes_where_levels_enter_a_full_table():
    curriculum = Curriculum(Config(levels="unbounded", capacity=4, strategy="uniform"))
    levels = np.arange(MAX_ENTERING + 1)[:, None] % 5  # one of them is always outside
    before = curriculum.state()
    with pytest.raises(InvalidInput, match=f"at most {MAX_ENTERING} episodes in one push, with levels outside a full"):
        curriculum.update(dones=np.ones_like(levels), levels=levels)
    assert faults.same(curriculum.state(), before)
    assert curriculum.update(dones=np.ones_like(levels[1:]), levels=levels[1:]) == MAX_ENTERING
    inside = curriculum.scores()[0][np.arange(MAX_ENTERING + 1) % 4][:, None]
    assert curriculum.update(dones=np.ones_like(inside), levels=inside) == MAX_ENTERING + 1


def test_a_level_that_leaves_and_comes_back_in_one_push_keeps_its_past():
    episodes = [(7, 10.0, 9.0), (8, 20.0, 10.0), (7, 50.0, 30.0), (7, 0.0, 0.0)]
    config = Config(levels="unbounded", capacity=1, strategy="maxmc", replay_prob=0.5)

    def push(curriculum, *some):
        level, reward, value = (np.array(column)[:, None] for column in zip(*some, strict=True))
        curriculum.update(levels=level, rewards=reward, values=value, dones=np.ones(level.shape, bool))

    curriculum = Curriculum(config)
    push(curriculum, episodes[0])
    push(curriculum, *episodes[1:3])  # 8 takes the place of 7, and 7 that of 8
    assert (curriculum.scores()[0].tolist(), curriculum.stats()["evicted"]) == ([7], 2)
    push(curriculum, episodes[3])
    assert curriculum.scores()[1].tolist() == [50.0]  # its best return less its value


def test_windows_of_one_push_have_a_largest_number():
    curriculum = Curriculum(Config(levels=range(4), strategy="learnability", window=1000))
    levels = np.zeros((MAX_WINDOW_NUMBERS // 1000 + 1, 1), int)
    with pytest.raises(InvalidInput, match=r"at most 4194 finished episodes in one push \(window\), got 4195"):
        curriculum.update(rewards=levels, dones=np.ones_like(levels), levels=levels)


def test_whatever_goes_wrong_with_a_block_of_steps_it_is_told_that_they_are_gone(monkeypatch):
    curriculum = Curriculum(Config(levels=range(4), strategy="uniform", num_steps=2))

    def look(*_):
        raise MemoryError

    monkeypatch.setattr(curriculum._scorer, "look", look)
    curriculum.update_step(dones=[True], levels=[0])
    with pytest.raises(StepsDropped, match="got: MemoryError; they are dropped"):
        curriculum.update_step(dones=[True], levels=[0])
    assert curriculum.update_step(dones=[True], levels=[0]) == 0

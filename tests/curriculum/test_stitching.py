"""stitching.py, through the curriculum: long columns at the cost of their steps, and nothing kept for ever."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from plr_client import InvalidInput
from plr_server import Config, Curriculum
from plr_server.curriculum.scoring import columns, scorer, stitching
from plr_server.curriculum.scoring.stitching import OBJECT_BYTES, STEP_BYTES


def scored(curriculum):
    ids, scores, _, seen = curriculum.scores()
    return dict(zip(ids[seen].tolist(), scores[seen].tolist(), strict=True))


def block(num_steps, num_columns, *, done=False, level=0, **fields):
    shape = (num_steps, num_columns)
    values = np.arange(num_steps * num_columns, dtype=float).reshape(shape) % 7
    dones = np.zeros(shape, bool)
    dones[-1] = done
    levels = np.full(shape, level)
    return {"values": values, "rewards": values, "dones": dones, "levels": levels, "next_values": values[-1], **fields}


def steps_kept(curriculum):
    return sum(episode.steps for each in curriculum._scorer._open.values() for episode in each._columns)


def bytes_of(steps):
    """What an open episode of so many steps counts, with values and rewards."""
    return OBJECT_BYTES + 2 * STEP_BYTES * steps


def test_one_long_column_beside_short_ones_keeps_its_own_steps_and_no_more():
    curriculum = Curriculum(Config(levels=range(4), partial="stitch"))
    num_columns, num_blocks, num_steps = 16, 50, 32
    for _ in range(num_blocks):
        fields = block(num_steps, num_columns, done=True)
        fields["dones"][:, 0] = False
        fields["levels"][:, 0] = 1
        curriculum.update(**fields)
    assert steps_kept(curriculum) == num_blocks * num_steps
    fields["dones"][-1, 0] = True
    one, whole = Curriculum(Config(levels=range(4))), {}
    long = block(num_steps, num_columns)
    for name in ("values", "rewards"):
        whole[name] = np.tile(long[name][:, :1], (num_blocks + 1, 1))
    shape = whole["values"].shape
    ends = np.zeros(shape, bool)
    ends[-1] = True
    one.update(**whole, dones=ends, levels=np.ones(shape, int), next_values=[0.0])
    curriculum.update(**fields)
    assert scored(curriculum)[1] == pytest.approx(scored(one)[1], rel=1e-12)
    assert steps_kept(curriculum) == 0


def test_columns_that_never_return_are_given_up_and_counted(monkeypatch):
    monkeypatch.setattr(columns, "SILENT_PUSHES", 10)
    for strategy, partial in (("value_l1", "stitch"), ("maxmc", "commit"), ("maxmc", "stitch")):
        curriculum = Curriculum(Config(levels=range(4), partial=partial, strategy=strategy))
        for push in range(30):
            curriculum.update(**block(3, 2), columns=[2 * push, 2 * push + 1])
        state = curriculum.state()["scorer"]
        assert partial == "commit" or len(state["open"][""]["open"]["columns"]) == 20
        assert len(state["under_way"][""]["columns"]) == 20
        assert curriculum.stats()["forgotten"] == (40 if partial == "stitch" else 0)


def test_too_many_open_steps_of_all_sources_are_given_up_from_where_most_is_open(monkeypatch):
    monkeypatch.setattr(scorer, "MAX_OPEN_BYTES", 10 * bytes_of(3))
    curriculum = Curriculum(Config(levels=range(4), partial="stitch"))
    curriculum.update(**block(5, 1), source="small")
    for push in range(20):
        curriculum.update(**block(3, 4), columns=np.arange(4) + 4 * push, source="large")
        opened = curriculum._scorer._open
        assert sum(each.num_bytes for each in opened.values()) <= 10 * bytes_of(3)
        assert opened["large"].num_bytes == bytes_of(3) * len(opened["large"])
        curriculum = Curriculum.from_state(curriculum.state())
    assert curriculum._scorer._open["small"].num_bytes == bytes_of(5)
    curriculum.update(**block(600, 1, level=3), source="endless")  # alone too much
    assert len(curriculum._scorer._open["endless"]) == 0
    assert len(curriculum._scorer._open["small"]) == 1
    assert curriculum.stats()["forgotten"] > 60


def test_an_episode_without_end_is_given_up_and_what_follows_is_another(monkeypatch):
    monkeypatch.setattr(stitching, "MAX_STEPS", 8)
    curriculum = Curriculum(Config(levels=range(4), partial="stitch", strategy="one_step_td_error", gamma=0.0))
    one = {"values": [[0.0]], "next_values": [0.0], "levels": [[1]]}
    for step in range(9):
        curriculum.update(**one, rewards=[[float(step)]], dones=[[False]])
    assert (steps_kept(curriculum), curriculum.stats()["forgotten"]) == (0, 1)
    curriculum.update(**one, rewards=[[5.0]], dones=[[False]])
    curriculum.update(**one, rewards=[[7.0]], dones=[[True]])
    assert scored(curriculum) == {1: 6.0}


@pytest.mark.parametrize("strategy", ["value_l1", "uniform"])
def test_an_episode_of_many_short_blocks_takes_what_its_steps_take(strategy):
    curriculum = Curriculum(Config(levels=range(4), partial="stitch", strategy=strategy))
    for _ in range(300):
        curriculum.update(**block(1, 1))
    (episode,) = curriculum._scorer._open[""]._columns
    buffers = episode._buffers
    assert episode.steps == 300
    assert sorted(buffers) == (["rewards", "values"] if strategy == "value_l1" else [])
    assert sum(buffer.nbytes for buffer in buffers.values()) + OBJECT_BYTES <= episode.num_bytes


def test_an_agent_that_is_absent_from_a_block_holds_up_its_group():
    curriculum = Curriculum(Config(levels=range(4), partial="stitch", strategy="one_step_td_error", gamma=0.0))
    flat = {"values": np.zeros((1, 2)), "next_values": np.zeros(2), "levels": np.ones((1, 2), int), "groups": [8, 8]}

    def push(rewards, dones, valid):
        return curriculum.update(**flat, rewards=[rewards], dones=[dones], valid=[valid])

    assert push([1.0, 2.0], [0, 0], [1, 1]) == 0
    assert push([9.0, 3.0], [0, 1], [0, 1]) == 0  # the first agent has no row here, and plays on
    curriculum = Curriculum.from_state(curriculum.state())
    assert push([9.0, 9.0], [0, 0], [0, 0]) == 0
    assert push([4.0, 9.0], [1, 0], [1, 0]) == 1
    assert scored(curriculum) == {1: (1.0 + 2.0 + 3.0 + 4.0) / 4}


def test_a_block_that_is_refused_leaves_every_open_episode_as_it_was():
    curriculum = Curriculum(Config(levels=range(4), partial="stitch", strategy="min_margin"))
    fields = {"dones": np.zeros((2, 1), bool), "levels": np.zeros((2, 1), int)}
    curriculum.update(**fields, logits=np.zeros((2, 1, 3)))
    before = pickle.dumps(curriculum.state())
    with pytest.raises(InvalidInput, match="logits: expected 3 actions, as in the block before, got 4"):
        curriculum.update(**fields, logits=np.zeros((2, 1, 4)))
    assert pickle.dumps(curriculum.state()) == before

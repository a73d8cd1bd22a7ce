"""plr_client/levels.py against a real server."""

from __future__ import annotations

import pickle

import faults
import numpy as np
import pytest

from plr_client import Assignment, InvalidInput, LevelClient, Trainer
from plr_server import Config, Curriculum, launch


@pytest.fixture
def client(server):
    with LevelClient(server.address, timeout_s=20.0) as connected:
        yield connected


def in_flight(trainer):
    return trainer.stats()["in_flight"]


def test_one_level_is_asked_for_by_default(client):
    (assignment,) = client.next()
    assert type(assignment) is Assignment
    assert type(assignment.level) is int
    assert assignment.level in range(10)
    assert (type(assignment.is_replay), type(assignment.train), assignment.payload) == (bool, bool, None)


def test_the_levels_are_those_of_the_curriculum_draw_for_draw():
    config = Config(levels=range(50, 90), robust=True, seed=5)
    with launch(config) as server, LevelClient(server.address) as client, Trainer(server.address) as trainer:
        curriculum = Curriculum(config)
        for k in (1, 8, 3):
            assert client.next(k) == curriculum.sample(k, holder="the client")
        scored = np.arange(50, 60), np.linspace(0.0, 1.0, 10)
        trainer.push_scores(*scored)
        curriculum.update_scores(*scored)
        drawn = client.next(64, slots=range(100, 164))
        assert drawn == curriculum.sample(64, slots=range(100, 164), holder="the client")
        assert {(assignment.is_replay, assignment.train) for assignment in drawn} == {(True, True), (False, False)}


def test_a_slots_earlier_level_is_over_when_it_asks_again(client, trainer):
    before = in_flight(trainer)
    client.next(4)
    assert in_flight(trainer) == before + 4
    client.next(2)  # slots 0 and 1 again
    assert in_flight(trainer) == before + 4
    client.next(2, slots=[7, 3])
    assert in_flight(trainer) == before + 5


def test_clients_count_their_slots_apart(client, server, trainer):
    before = in_flight(trainer)
    with LevelClient(server.address) as other:
        client.next(2)
        other.next(2)
        assert in_flight(trainer) == before + 4
    faults.eventually(lambda: in_flight(trainer) == before + 2, "the other's levels are back")


def test_closing_gives_the_levels_back_and_the_client_can_go_on(server, trainer):
    before = trainer.stats()["in_flight"], trainer.stats()["sessions"]
    client = LevelClient(server.address)
    client.next(5)
    client.close()
    client.close()
    faults.eventually(
        lambda: (trainer.stats()["in_flight"], trainer.stats()["sessions"]) == before, "levels and session are back"
    )
    assert len(client.next(2)) == 2
    client.close()
    faults.eventually(lambda: in_flight(trainer) == before[0], "the levels are back again")


@pytest.mark.parametrize(
    "slots", [(4, 2), np.array([4, 2], dtype=np.uint8), range(4, 0, -2)], ids=["tuple", "uint8", "range"]
)
def test_slots_may_be_any_sequence(client, slots):
    assert len(client.next(2, slots=slots)) == 2


BAD = {
    "none": ({"k": 0}, "k: expected an integer from 1 to 65536, got 0"),
    "fewer than none": ({"k": -1}, "k: expected an integer from 1 to 65536, got -1"),
    "a float": ({"k": 1.0}, "k: expected an integer from 1 to 65536, got 1.0"),
    "a bool": ({"k": True}, "k: expected an integer from 1 to 65536, got True"),
    "too many": ({"k": 65_537}, "k: expected an integer from 1 to 65536, got 65537"),
    "fewer slots": ({"k": 3, "slots": [1, 2]}, "slots: expected 3 slots, one for each level asked for, got shape (2,)"),
    "one slot bare": ({"slots": 3}, "slots: expected 1 slots, one for each level asked for, got shape ()"),
    "a slot twice": ({"k": 2, "slots": [1, 1]}, "slots: expected 2 distinct ints, got [1 1]"),
    "slots of floats": ({"slots": [0.5]}, "slots: expected 1 distinct ints, got [0.5]"),
    "slots of text": ({"slots": ["a"]}, "slots: expected an array of bool, integers or floats, got dtype <U1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_change_nothing(client, trainer, name):
    arguments, message = BAD[name]
    client.next(2)
    before = faults.seen_from_outside(trainer)
    with pytest.raises(InvalidInput) as raised:
        client.next(**arguments)
    assert str(raised.value) == message
    assert faults.same(faults.seen_from_outside(trainer), before)
    assert len(client.next()) == 1


def test_assignments_are_values():
    assignment = Assignment(3, is_replay=True, train=False)
    assert pickle.loads(pickle.dumps(assignment)) == assignment  # noqa: S301  our own bytes
    with pytest.raises(AttributeError):
        assignment.level = 4


def test_the_address_is_told(client, server):
    assert client.address == server.address

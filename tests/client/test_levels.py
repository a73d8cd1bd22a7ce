"""plr_client/levels.py against a real server."""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import pickle
import signal
import warnings

import faults
import numpy as np
import pytest

from plr_client import Assignment, InvalidInput, LevelClient, MessageTooLarge, NoLevels, ServerUnreachable, Trainer
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
    "slots of text": ({"slots": ["a"]}, "slots: expected 1 distinct ints, got ['a']"),
    "ragged slots": (
        {"k": 2, "slots": [[1], [1, 2]]},
        "slots: expected 2 distinct ints, got lists of different lengths",
    ),
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


@pytest.mark.parametrize("k", [1, 5, 8, 9, 64, 65, 1000])
@pytest.mark.parametrize("prefetch", [0, 4])
def test_arrays_are_what_next_gives_draw_for_draw(k, prefetch):
    config = Config(levels=range(50, 90), robust=True, seed=5, replay_schedule="fixed", replay_prob=0.5)
    curriculum = Curriculum(config)
    with launch(config) as server, Trainer(server.address) as trainer:
        scored = np.arange(50, 60), np.linspace(0.0, 1.0, 10)
        trainer.push_scores(*scored)
        curriculum.update_scores(*scored)
        with LevelClient(server.address, prefetch=prefetch) as client:
            given = client.next_arrays(k, slots=np.arange(k) + 3)
        assert [array.dtype for array in given[:3]] == [np.int64, np.bool_, np.bool_]
        drawn = curriculum.sample(k, slots=range(3, 3 + k))
        assert list(zip(*(array.tolist() for array in given[:3]), strict=True)) == [one[:3] for one in drawn]
        assert given.payloads is None


def test_arrays_come_with_payloads():
    with launch(Config(levels="payloads", capacity=200)) as server, Trainer(server.address) as trainer:
        trainer.insert([{"n": n} for n in range(100)])
        with LevelClient(server.address) as client:
            for k in (1, 100):
                given = client.next_arrays(k)
                assert given.payloads == [level.payload for level in trainer.levels(given.levels)]


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_of_arrays_change_nothing(client, trainer, name):
    arguments, message = BAD[name]
    before = faults.seen_from_outside(trainer)
    with pytest.raises(InvalidInput) as raised:
        client.next_arrays(**{"k": 1} | arguments)
    assert str(raised.value) == message
    assert faults.same(faults.seen_from_outside(trainer), before)


def test_assignments_are_values():
    assignment = Assignment(3, is_replay=True, train=False)
    assert pickle.loads(pickle.dumps(assignment)) == assignment  # noqa: S301  our own bytes
    with pytest.raises(AttributeError):
        assignment.level = 4


def test_the_address_is_told(client, server):
    assert client.address == server.address


# ---- asking ahead


SEQUENTIAL = Config(levels=range(1000), strategy="sequential")


def levels(assignments):
    return [assignment.level for assignment in assignments]


def drawn(trainer, number):
    """Waits until the server has drawn so many levels: what was asked for ahead is not waited for."""
    faults.eventually(lambda: trainer.stats()["draws"] == number, f"{number} levels are drawn")


@pytest.mark.parametrize("prefetch", [1, 2, 5, 8, 64])
def test_what_was_drawn_first_is_played_first_and_nothing_is_skipped(prefetch):
    with launch(SEQUENTIAL) as server, LevelClient(server.address, prefetch=prefetch) as client:
        played = []
        for slots in itertools.islice(itertools.cycle([[0], [1, 2], [0], [3, 0, 1], list(range(9))]), 60):
            played += levels(client.next(len(slots), slots=slots))
        assert played == list(range(len(played)))
        assert len(played) == 192


@pytest.mark.parametrize("prefetch", [1, 4, 7])
def test_slots_and_waiting_levels_are_all_that_is_ever_in_flight(prefetch):
    with launch(SEQUENTIAL) as server, Trainer(server.address) as trainer:
        with LevelClient(server.address, prefetch=prefetch) as client:
            for _ in range(40):
                client.next(2)
                stats = trainer.stats()
                assert 2 <= stats["in_flight"] <= 2 + prefetch
                assert stats["prefetched"] <= prefetch
            assert stats["draws"] <= 80 + prefetch
        faults.eventually(lambda: trainer.stats()["in_flight"] == trainer.stats()["prefetched"] == 0, "all are back")


def test_levels_that_wait_are_handed_to_nobody_else():
    with launch(Config(levels=range(40))) as server:
        clients = [LevelClient(server.address, prefetch=8) for _ in range(4)]
        played = [level for client in clients for level in levels(client.next(2))]
        with Trainer(server.address) as trainer:
            faults.eventually(lambda: trainer.stats()["in_flight"] == 40, "every level is played or waits")
        assert len(set(played)) == 8
        for client in clients:
            client.close()


def test_what_is_ready_needs_no_server():
    with launch(SEQUENTIAL) as server, LevelClient(server.address, prefetch=8) as client, Trainer(server.address) as t:
        client.next()
        drawn(t, 9)
        os.kill(server.process.pid, signal.SIGSTOP)
        assert [levels(client.next())[0] for _ in range(8)] == list(range(1, 9))
        os.kill(server.process.pid, signal.SIGCONT)
        assert levels(client.next()) == [9]


def test_a_reply_that_has_come_is_taken_before_the_last_level_is_gone():
    with launch(SEQUENTIAL) as server, LevelClient(server.address, prefetch=8) as client, Trainer(server.address) as t:
        client.next()
        drawn(t, 9)
        played = []
        for number in (13, 17, 21, 25):  # so that half of them are there whenever more are asked for
            assert client._connection._socket.poll(1000 * faults.DEADLINE_S)
            played += [levels(client.next())[0] for _ in range(4)]
            drawn(t, number)
        assert played == list(range(1, 17))


def test_the_cost_in_freshness_is_counted():
    with launch(Config(levels=range(50), strategy="external")) as server, Trainer(server.address) as trainer:
        client = LevelClient(server.address, prefetch=2)
        client.next()  # asked for now; two are drawn ahead, and the next two when the first of them is begun
        drawn(trainer, 3)
        for _ in range(3):
            trainer.push_scores([1], [0.5])
        assert (trainer.stats()["prefetched"], trainer.stats()["prefetch_lag_pushes"]) == (2, 0.0)
        client.next()
        drawn(trainer, 4)
        assert trainer.stats()["prefetch_lag_pushes"] == 3.0
        trainer.push_scores([1], [0.5])
        client.next()
        trainer.push_scores([1], [0.5])
        client.next()
        drawn(trainer, 6)
        # The second was drawn before all five and told of one level late, the third was drawn after three of them.
        assert trainer.stats()["prefetch_lag_pushes"] == pytest.approx((3 + 5 + 2) / 3)
        client.close()
        assert trainer.stats()["prefetch_lag_pushes"] == pytest.approx((3 + 5 + 2) / 3)


def test_a_client_that_asks_ahead_goes_on_with_a_restarted_server(bind):
    with faults.daemon(bind, "--strategy", "sequential") as first:
        client = LevelClient(first.address, prefetch=4, timeout_s=faults.DEADLINE_S)
        client.next()
        with Trainer(first.address) as trainer:
            drawn(trainer, 5)
        first.process.send_signal(signal.SIGSTOP)
        assert levels(client.next(2, slots=[1, 2])) == [1, 2]  # and more are asked for, in vain
        first.kill()
    with faults.daemon(first.address, "--strategy", "sequential"), Trainer(first.address) as trainer:
        assert levels(client.next(2)) == [3, 4]
        assert levels(client.next(2)) == [0, 1]
        assert trainer.stats()["in_flight"] <= 3 + 4
    client.close()


def test_when_nobody_answers_it_says_so_and_goes_on_later(ipc):
    with faults.daemon(ipc, "--strategy", "sequential") as first:
        client = LevelClient(ipc, prefetch=2)
        client.next()
        client.next()
        first.kill()
    client._connection.timeout_s = 0.3
    with pytest.raises(ServerUnreachable):
        client.next(8)
    client._connection.timeout_s = faults.DEADLINE_S
    with faults.daemon(ipc, "--strategy", "sequential"):
        assert len(client.next(8)) == 8
    client.close()


def test_a_forked_child_does_not_play_what_waits_for_its_parent():
    with launch(SEQUENTIAL) as server, LevelClient(server.address, prefetch=4) as client:
        assert levels(client.next()) == [0]
        read, write = os.pipe()
        with warnings.catch_warnings():  # Python 3.12 and newer warn where threads run
            warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            os.write(write, bytes(levels(client.next())))
            os._exit(0)
        assert os.read(read, 1) == bytes([5])
        os.waitpid(pid, 0)
        assert levels(client.next()) == [1]
        os.close(read)
        os.close(write)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda client: pickle.loads(pickle.dumps(client))])  # noqa: S301
def test_a_copy_asks_for_its_own(copied):
    with launch(SEQUENTIAL) as server, LevelClient(server.address, prefetch=4) as client:
        client.next()
        with copied(client) as other:
            assert levels(other.next()) == [5]
        assert levels(client.next()) == [1]


def test_closing_gives_back_what_waits_and_the_client_can_go_on():
    with launch(SEQUENTIAL) as server, Trainer(server.address) as trainer:
        client = LevelClient(server.address, prefetch=4)
        client.next()
        client.close()
        faults.eventually(lambda: trainer.stats()["in_flight"] == 0, "the levels are back")
        assert levels(client.next()) == [5]
        client.close()


def test_a_refusal_of_what_was_asked_for_ahead_is_asked_again():
    config = Config(levels="payloads", capacity=8, replay_prob=0.5)
    with (
        launch(config) as server,
        LevelClient(server.address, prefetch=2) as client,
        Trainer(server.address) as trainer,
    ):
        with pytest.raises(NoLevels):
            client.next()
        trainer.insert([{"walls": 3}, "b"])
        assert client.next()[0].payload in ({"walls": 3}, "b")


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_change_nothing_where_levels_wait(server, trainer, name):
    arguments, message = BAD[name]
    with LevelClient(server.address, prefetch=2) as client:
        client.next(2)
        faults.eventually(lambda: trainer.stats()["prefetched"] == 2, "two wait")
        before = faults.seen_from_outside(trainer)
        with pytest.raises(InvalidInput) as raised:
            client.next(**arguments)
        assert str(raised.value) == message
        assert faults.same(faults.seen_from_outside(trainer), before)
    faults.eventually(lambda: trainer.stats()["prefetched"] == 0, "they are back")


@pytest.mark.parametrize("prefetch", [-1, 4097, 1.0, True, "4", None])
def test_prefetch_is_a_number_of_levels(prefetch):
    with pytest.raises(InvalidInput) as raised:
        LevelClient("tcp://127.0.0.1:1", prefetch=prefetch)
    assert str(raised.value) == f"prefetch: expected an integer from 0 to 4096, got {prefetch!r}"


def test_tickets_of_a_request_that_could_not_be_sent_are_used_again(ipc):
    """A client whose requests fail on the way out holds no more levels than before."""
    with faults.daemon(ipc, "--levels", "0:40000", "--max-frame-bytes", "65536"), Trainer(ipc) as trainer:
        client = LevelClient(ipc, prefetch=4)
        client.next(8000)
        client.next(8000)
        for _ in range(5):
            with pytest.raises(MessageTooLarge):
                client.next(9000)
        client.next(8000)
        assert trainer.stats()["in_flight"] <= 8000 + 4
        client.close()


def test_an_interrupt_after_sending_leaves_nothing_behind():
    with launch(SEQUENTIAL) as server, LevelClient(server.address, prefetch=4) as client, Trainer(server.address) as t:
        send = client._connection.send

        def interrupted(*args):
            send(*args)
            raise KeyboardInterrupt

        for _ in range(10):
            client.next()
            client._connection.send = interrupted
            with contextlib.suppress(KeyboardInterrupt):
                for _ in range(4):
                    client.next()
            client._connection.send = send
        client.next()
        assert t.stats()["in_flight"] <= 1 + 2 * 4

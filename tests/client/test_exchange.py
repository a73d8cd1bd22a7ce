"""plr_client/exchange.py: what a client sends, and when again, without a socket and without a clock."""

from __future__ import annotations

import heapq
import itertools
import shutil

import faults
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plr_client import (
    InvalidInput,
    MessageTooLarge,
    OutOfStep,
    ServerUnreachable,
    SessionExpired,
    StateRolledBack,
    TooManySessions,
)
from plr_client.exchange import HANG_UP, MAX_UNDER_WAY, REMEMBERED_S, Exchange
from plr_client.protocol import MAX_INLINE_BYTES, Notice, Reply, decode_reply, decode_request
from plr_server import Config, Curriculum
from plr_server.durability import state_dir
from plr_server.durability.state_dir import StateDir
from plr_server.serving.dispatch import Dispatcher
from plr_server.serving.loop import RETURN_WITHIN_S
from plr_server.serving.restart import restart

EPOCH, RUN = 70, 7


class Client:
    """An exchange, a clock that is set by hand, and all that it sends."""

    def __init__(self):
        self.exchange = Exchange("me", address="ipc:///plr", curriculum="default", pid=1)
        self.now_s = 0.0

    def __getattr__(self, name):
        return getattr(self.exchange, name)

    def act(self, now_s=None):
        """What it does now: "hang up", or (op, number, connection, after) of what it sends."""
        self.now_s = self.now_s if now_s is None else now_s
        done = []
        while (todo := self.exchange.act(self.now_s)) is not None:
            if todo is HANG_UP:
                done.append("hang up")
            else:
                request = decode_request([bytes(frame) for frame in todo])
                self.last = request
                done.append((request.op, request.sequence, request.connection, request.after))
        return done

    def hear(self, number, error=None, *, epoch=EPOCH, position=0, durable=0, **result):
        self.exchange.heard(Reply(number, epoch, durable, error, result, position=position), self.now_s)

    def hear_hello(self, *, applied=0, survived=0, begun=1, run=RUN, max_frame_bytes=1 << 20, **told):
        result = {"applied": applied, "survived": survived, "begun": begun, "run": run}
        self.hear(self.last.sequence, max_frame_bytes=max_frame_bytes, **result, **told)

    def push(self, *, waited=True, size=1):
        return self.exchange.ask("push", arrays={"values": np.zeros(size)}, waited=waited)


@pytest.fixture
def client():
    return Client()


@pytest.fixture
def greeted(client):
    """A client that has said hello, number 2, and been answered; the state had seen 5 commands with that."""
    pending = client.exchange.ask("stats")
    client.act()
    client.hear_hello(position=5, durable=5)
    client.act()
    client.hear(pending.number)
    return client


def refused(op="push"):
    return OutOfStep(op, "a hello first", "none")


# ---- one request


def test_the_first_request_of_a_session_comes_after_a_hello(client):
    pending = client.exchange.ask("stats", {"a": 1})
    client.expect(pending, 0.0, 30.0)
    assert client.act() == [("hello", 2, 1, 0)]
    assert (client.last.args, client.last.session) == ({"pid": 1, "run": 0}, "me")
    assert client.wake_s == 2.0
    client.hear_hello()
    assert client.act() == [("stats", 1, 1, 0)]
    assert client.last.args == {"a": 1}
    client.hear(1, draws=3)
    assert pending.outcome.result == {"draws": 3}
    assert client.wake_s == float("inf")
    client.exchange.ask("stats")
    assert client.act() == [("stats", 3, 1, 0)]


def test_an_error_is_the_outcome(greeted):
    pending = greeted.push()
    greeted.act()
    greeted.hear(3, InvalidInput("values", "1", "2"))
    assert isinstance(pending.outcome, InvalidInput)
    assert not greeted.errors


def test_after_silence_it_says_hello_on_a_fresh_connection_and_sends_again(greeted):
    pending = greeted.push()
    greeted.expect(pending, 0.0, 100.0)
    assert greeted.act() == [("push", 3, 1, 0)]
    assert greeted.act(1.99) == []
    assert greeted.act(greeted.wake_s) == ["hang up", ("hello", 4, 2, 0)]
    assert greeted.wake_s == 6.0  # twice as long
    assert greeted.act(6.0) == ["hang up", ("hello", 5, 3, 0)]
    assert greeted.wake_s == 14.0
    greeted.hear(3, scored=9)  # of no connection that it has now
    assert pending.outcome is None
    greeted.hear_hello(applied=3, survived=5)  # it was applied, and its reply is wanted
    assert greeted.act() == [("push", 3, 3, 0)]
    assert greeted.wake_s == 14.0  # as patient as with the hello: its reply may take as long
    greeted.hear(3, scored=1)
    assert pending.outcome.result == {"scored": 1}
    greeted.push()
    greeted.act()
    assert greeted.wake_s == 8.0  # a request was answered: it begins anew


def test_where_each_answer_takes_long_a_request_is_answered_in_the_end(greeted):
    """Longer than the first patience, a hello's too: on a slow network, or by a server that has much to do."""
    pending = greeted.push()
    greeted.expect(pending, 0.0, 100.0)
    answers = []  # when they come, on which connection
    while pending.outcome is None:
        answers += [(greeted.now_s + 3.0, done) for done in greeted.act() if done != "hang up"]
        greeted.now_s = min([greeted.wake_s, *(at_s for at_s, _ in answers)])
        assert greeted.now_s < 60.0
        for at_s, (op, number, connection, _) in list(answers):
            if at_s <= greeted.now_s:
                answers.remove((at_s, (op, number, connection, _)))
                if connection == greeted.num_connections:
                    greeted.hear_hello(applied=3, survived=5) if op == "hello" else greeted.hear(number, scored=1)
    assert pending.outcome.result == {"scored": 1}


@pytest.mark.parametrize(("closing", "hint"), [(False, "is plr-server running"), (True, "said it was stopping")])
def test_who_waits_is_told_when_the_time_is_over(greeted, closing, hint):
    pending = greeted.push()
    greeted.expect(pending, 0.0, 7.0)
    greeted.act()
    if closing:
        greeted.heard(Notice("closing"), 0.0)
    for now_s in (2.0, 6.0):
        assert greeted.act(now_s)[0] == "hang up"
    assert greeted.act(7.0) == ["hang up"]
    assert isinstance(pending.outcome, ServerUnreachable)
    assert pending.outcome.args[:3] == ("ipc:///plr", 3, 7.0)
    assert hint in pending.outcome.hint
    assert (greeted.unanswered, greeted.wake_s) == (0, float("inf"))


def test_a_request_that_was_given_up_is_not_sent_again(greeted):
    greeted.give_up(greeted.push())
    assert greeted.act() == []
    pending = greeted.push()
    greeted.act()
    greeted.give_up(pending)
    assert greeted.act(100.0) == []
    later = greeted.push()
    greeted.act()
    greeted.hear(pending.number, scored=1)  # late
    assert (pending.outcome, later.outcome) == (None, None)


def test_when_nobody_waits_any_more_what_is_left_is_what_nobody_waited_for(greeted):
    for waited in (True, False, True, False):
        greeted.push(waited=waited)
    assert len(greeted.act()) == 4
    greeted.push()
    greeted.give_up_waiting()
    assert (greeted.unanswered, greeted.oldest.number) == (2, 4)
    assert greeted.act(2.0)[0] == "hang up"
    greeted.hear_hello(survived=5)
    assert greeted.act() == [("push", 4, 2, 0), ("push", 6, 2, 4)]


def test_what_cannot_be_sent_takes_no_number(greeted):
    for arrays in ({"values": np.array(["a"])}, {"values": np.zeros(1 << 18)}):
        with pytest.raises(InvalidInput if arrays["values"].dtype.kind == "U" else MessageTooLarge, match="values"):
            greeted.exchange.ask("push", arrays=arrays)
    greeted.push()
    assert greeted.act() == [("push", 3, 1, 0)]


def test_what_the_server_turns_out_not_to_take_is_not_sent(client):
    too_large, small = client.push(size=2000), client.push()
    client.act()
    client.hear_hello(max_frame_bytes=MAX_INLINE_BYTES)
    assert isinstance(too_large.outcome, MessageTooLarge)
    assert client.act() == [("push", small.number, 1, 0)]


def test_a_server_that_does_not_take_the_client_says_so_once_for_each_request(client):
    for attempt in (1, 2):
        pending = client.push()
        client.expect(pending, 0.0, 30.0)
        assert client.act()[-1][0] == "hello"
        client.hear(client.last.sequence, TooManySessions("in all", 3))
        assert isinstance(pending.outcome, TooManySessions)
        assert (client.act(), client.num_connections) == (["hang up"], attempt)
    client.push(waited=False)
    client.act()
    client.hear(client.last.sequence, TooManySessions("in all", 3))
    assert client.act() == ["hang up"]
    assert isinstance(client.errors.popleft(), TooManySessions)
    assert client.unanswered == 1  # nobody has said that it is not wanted any more


# ---- requests that nobody waits for


def test_requests_go_out_one_after_the_other_and_only_so_many_at_once(greeted):
    asked = [greeted.push(waited=False) for _ in range(MAX_UNDER_WAY + 2)]
    numbers = [pending.number for pending in asked]
    sent = [("push", number, 1, after) for number, after in zip(numbers, [0, *numbers], strict=False)]
    assert greeted.act() == sent[:MAX_UNDER_WAY]
    greeted.hear(numbers[0], scored=1)
    assert greeted.act() == sent[MAX_UNDER_WAY : MAX_UNDER_WAY + 1]
    for number in numbers[1:]:
        greeted.hear(number, scored=1)
        greeted.act()
    assert (greeted.unanswered, greeted.kept_bytes, [*greeted.errors]) == (0, 0, [])


def test_a_reply_that_does_not_come_is_asked_for_though_later_ones_do(greeted):
    """Such as of a server under `always` that could not have a batch on its disk: it answers none of it."""
    first = greeted.push(waited=False)
    greeted.act()
    for at_s in (0.5, 1.0, 1.5):
        later = greeted.push(waited=False)
        greeted.act(at_s)
        greeted.hear(later.number, scored=1)
        assert (greeted.unanswered, greeted.wake_s) == (1, 2.0)
    assert greeted.act(2.0) == ["hang up", ("hello", 7, 2, 0)]
    greeted.hear_hello(applied=6, survived=5)
    assert (first.outcome.error, greeted.unanswered) == (None, 0)


def test_who_is_overtaken_again_and_again_is_waited_for_longer_each_time(greeted):
    slow = greeted.push(waited=False)
    for now_s, wake_s in ((0.0, 2.0), (2.0, 6.0), (6.0, 14.0)):
        greeted.act(now_s)
        if greeted.last.op == "hello":
            greeted.hear_hello(survived=5)
            assert greeted.act()[0][:2] == ("push", slow.number)
        quick = greeted.push(waited=False)
        greeted.act()
        greeted.hear(quick.number, scored=1)
        assert greeted.wake_s == wake_s


def test_their_arrays_may_change_at_once(greeted):
    values = np.zeros(2000)
    greeted.exchange.ask("push", arrays={"values": values}, waited=False)
    values[:] = 1.0
    greeted.act()
    assert not greeted.last.arrays["values"].any()
    assert greeted.kept_bytes > values.nbytes


def test_their_errors_wait_for_who_comes_next(greeted):
    greeted.push(waited=False)
    greeted.push(waited=False)
    greeted.act()
    greeted.hear(3, InvalidInput("values", "1", "2"))
    greeted.hear(4, scored=1)
    assert [type(error) for error in greeted.errors] == [InvalidInput]


def test_when_the_time_is_over_they_still_wait_to_be_sent(greeted):
    pending = greeted.push(waited=False)
    greeted.act()
    greeted.expect(pending, 0.0, 1.0)
    assert greeted.act(1.0)[0] == "hang up"
    assert isinstance(greeted.errors.popleft(), ServerUnreachable)
    greeted.hear_hello(survived=5)
    assert greeted.act() == [("push", 3, 2, 0)]


def test_a_gap_is_closed(greeted):
    """The transport lost the first of three: the server took neither of the others."""
    for _ in range(3):
        greeted.push(waited=False)
    greeted.act()
    greeted.hear(4, refused())
    assert greeted.act() == ["hang up", ("hello", 6, 2, 0)]
    greeted.hear(5, refused())  # on the connection before
    greeted.hear_hello(applied=0, survived=5)
    assert greeted.act() == [("push", 3, 2, 0), ("push", 4, 2, 3), ("push", 5, 2, 4)]


def test_what_was_applied_and_nobody_waits_for_is_not_sent_again(greeted):
    for _ in range(3):
        greeted.push(waited=False)
    greeted.act()
    greeted.hear(5, refused())
    greeted.act()
    greeted.hear_hello(applied=4, survived=5)
    assert greeted.act() == [("push", 5, 2, 0)]


# ---- what may get lost


def test_a_request_is_kept_until_it_is_durable(greeted):
    values = np.zeros(2000)
    pending = greeted.exchange.ask("push", arrays={"values": values})
    greeted.act()
    greeted.hear(3, position=6, durable=5, scored=1)
    assert (pending.outcome.result, greeted.undurable) == ({"scored": 1}, 1)
    assert greeted.kept_bytes > values.nbytes
    greeted.push()
    greeted.act()
    greeted.hear(4, position=7, durable=6, scored=1)
    assert greeted.undurable == 1
    greeted.exchange.ask("stats")
    greeted.act()
    greeted.hear(5, durable=7)
    assert (greeted.undurable, greeted.kept_bytes) == (0, 0)


@pytest.mark.parametrize("position", [0, 6])
def test_what_is_durable_at_once_is_neither_kept_nor_copied(greeted, position):
    pending = greeted.push(size=2000)
    frames = pending.frames
    greeted.act()
    greeted.hear(3, position=position, durable=position, scored=1)
    assert (greeted.undurable, greeted.kept_bytes) == (0, 0)
    assert pending.frames is frames


@pytest.mark.parametrize("known", [True, False])
def test_what_was_lost_is_sent_again_before_anything_new(greeted, known):
    """The server comes back without its last two commands; where the session began in them, without the session."""
    values = np.zeros(2000)
    for number, position in ((3, 6), (4, 7), (5, 8)):
        pending = greeted.exchange.ask("push", arrays={"values": values})
        greeted.act()
        greeted.hear(number, position=position, durable=5, scored=number)
        values += 1.0
    refused_one = greeted.push()
    greeted.act()
    greeted.hear(6, refused() if known else SessionExpired("push", "not applied"))
    assert greeted.act() == ["hang up", ("hello", 7, 2, 0)]
    assert greeted.last.args["run"] == RUN
    told = {"applied": 3, "begun": 1} if known else {"applied": 0, "begun": 9}
    greeted.hear_hello(survived=6, run=8, position=6, durable=6, **told)
    first, second, third = greeted.act()
    assert greeted.last.run == 8
    assert (first, second, third) == (("push", 4, 2, 0), ("push", 5, 2, 4), ("push", 6, 2, 5))
    greeted.hear(4, position=7, durable=6, scored=1)
    greeted.hear(5, position=8, durable=6, scored=1)
    greeted.hear(6, position=9, durable=6, scored=7)
    assert (refused_one.outcome.result, pending.outcome.result) == ({"scored": 7}, {"scored": 5})
    assert greeted.undurable == 3


def test_of_what_is_sent_again_a_new_error_is_told_and_an_old_one_is_not(greeted):
    for number in (3, 4):
        greeted.push()
        greeted.act()
        error = InvalidInput("values", "1", "2") if number == 3 else None
        greeted.hear(number, error, position=number + 3, durable=5)
    greeted.exchange.ask("stats")
    greeted.act()
    greeted.hear(5, refused())
    greeted.act()
    greeted.hear_hello(survived=5, run=8, durable=5)
    assert [number for _, number, _, _ in greeted.act()] == [3, 4, 5]
    for number in (3, 4):
        greeted.hear(number, InvalidInput("levels", "1", "2"), position=number + 3, durable=5)
    assert len(greeted.errors) == 1


def test_levels_drawn_are_not_kept_beyond_the_limit(greeted, monkeypatch):
    monkeypatch.setattr("plr_client.exchange.MAX_KEPT_BYTES", 1)
    for number, op in ((3, "next"), (4, "next"), (5, "push_scores")):
        greeted.exchange.ask(op)
        greeted.act()
        greeted.hear(number, position=number + 3, durable=5)
    assert greeted.undurable == 2


def test_a_state_that_lacks_what_was_durable_was_rolled_back(greeted):
    pending = greeted.push()
    greeted.expect(pending, 0.0, 30.0)
    greeted.act()
    greeted.hear(3, refused())
    for run in (8, 9):  # it stays so
        greeted.act()
        survived = 4 if run == 8 else -1  # then of a run that it does not know
        greeted.hear_hello(survived=survived, run=run)
        assert isinstance(pending.outcome, StateRolledBack)
        assert pending.outcome.args == (5, survived)
        assert greeted.act() == ["hang up"]
        pending = greeted.push()
        greeted.expect(pending, 0.0, 30.0)


@pytest.mark.parametrize(("after_s", "sent_again"), [(29.0, True), (31.0, False)])
def test_a_refusal_that_comes_late_may_be_of_a_copy(greeted, after_s, sent_again):
    """So late that the server may have applied the request, forgotten the session, and been sent the copy."""
    pending = greeted.push()
    greeted.act(10.0)
    greeted.now_s = 10.0 + after_s
    greeted.hear(3, SessionExpired("push", "not applied"))
    assert greeted.act() == ["hang up", ("hello", 4, 2, 0)]
    greeted.hear_hello(survived=9, begun=2, position=10, durable=5)
    assert [number for _, number, _, _ in greeted.act()] == ([3] if sent_again else [])
    assert isinstance(pending.outcome, SessionExpired) is not sent_again


def test_the_server_remembers_for_as_long_as_clients_think():
    assert RETURN_WITHIN_S > REMEMBERED_S


def test_another_epoch_is_another_state_and_no_rollback(greeted):
    greeted.push()
    greeted.act()
    greeted.hear(3, position=6, durable=5)
    greeted.push()
    greeted.act()
    greeted.hear(4, SessionExpired("push", "not applied"), epoch=EPOCH + 1)
    greeted.act()
    greeted.hear_hello(survived=2, begun=4, epoch=EPOCH + 1, position=3, durable=3)
    assert [number for _, number, _, _ in greeted.act()] == [3, 4]
    assert greeted.durable == 3


def test_a_state_that_lost_its_end_may_still_have_what_was_sent(greeted):
    """Its epoch is another one then; but it has seen the session, and more."""
    pending = greeted.push()
    greeted.act()
    greeted.act(2.0)
    greeted.hear_hello(survived=7, begun=4, epoch=EPOCH + 1, position=9)
    assert greeted.act() == []
    assert isinstance(pending.outcome, SessionExpired)


@pytest.mark.parametrize("op", ["push", "next", "stats"])
@pytest.mark.parametrize("sent", [1, 2])
@pytest.mark.parametrize("waited", [True, False])
def test_a_session_that_was_forgotten_is_begun_anew_where_nothing_is_applied_twice(greeted, op, sent, waited):
    pending = greeted.exchange.ask(op, waited=waited)
    greeted.act()
    if sent == 2:
        greeted.act(2.0)
        greeted.hear_hello(survived=5)
        greeted.act()
    greeted.hear(3, SessionExpired(op, "not applied"))
    greeted.act()
    greeted.hear_hello(survived=9, begun=2, position=10, durable=5)
    if sent == 2 and op == "push":
        assert greeted.act() == []
        error = pending.outcome if waited else greeted.errors.popleft()
        assert str(error).endswith("push: sent 2 times and applied once or not at all, which is not known")
        assert greeted.kept_bytes == 0
    else:
        assert greeted.act()[-1][:2] == (op, 3)


def test_goodbye_is_said_on_the_connection_there_is_or_on_another(greeted):
    number, frames = greeted.farewell()
    goodbye = decode_request(frames)
    assert (goodbye.op, goodbye.sequence, goodbye.connection) == ("goodbye", number, 1)
    greeted.lost()
    assert decode_request(greeted.farewell()[1]).connection == 2


# ---- over a bad network, to a real dispatcher that loses its memory and its unsynced journal


class World:
    """Two trainers and a server that is started again and again, and a network that loses, delays and doubles."""

    def __init__(self, path, seed, loss):
        self.rng, self.path, self.loss, self.generations = np.random.default_rng(seed), path, loss, itertools.count()
        self.config = Config(levels=range(4), strategy="external", alpha=0.5)
        self.now_s, self.events, self.numbers = 0.0, [], itertools.count()
        self.clients = [Exchange(name, address=name, curriculum="default", pid=n) for n, name in enumerate("ab")]
        self.latest = [0, 0]  # the connection of each
        self.server = self.start(path / "0")

    def start(self, folder):
        self.log = StateDir(folder)
        dispatcher = Dispatcher({"default": Curriculum(self.config)}, max_frame_bytes=1 << 20)
        restart(dispatcher, self.log)
        return dispatcher

    def crash(self):
        folder = self.path / f"{next(self.generations) + 1}"
        shutil.copytree(self.log._path, folder)
        self.log.close()
        if self.rng.random() < 0.7:
            faults.lose_what_was_not_synced(folder)
        self.server = self.start(folder)

    def carry(self, do, *args):
        """Loses, doubles and delays, so that what is said later may come earlier."""
        for _ in range(1 + (self.rng.random() < self.loss)):
            if self.rng.random() >= self.loss:
                late_s = self.rng.exponential(1.0) if self.rng.random() < self.loss else 0.0
                heapq.heappush(self.events, (self.now_s + 0.01 + late_s, next(self.numbers), do, args))

    def act(self, n):
        while (todo := self.clients[n].act(self.now_s)) is not None:
            if todo is HANG_UP:
                self.latest[n] += 1
            else:
                self.carry(self.arrive, n, self.latest[n], [bytes(frame) for frame in todo])

    def arrive(self, n, connection, frames):
        reply = self.server.answer(b"%d %d" % (n, connection), frames)
        self.log.commit()
        self.carry(self.reply, n, connection, decode_reply([bytes(frame) for frame in reply]))

    def reply(self, n, connection, message):
        if connection == self.latest[n]:
            self.clients[n].heard(message, self.now_s)
            self.act(n)

    def until(self, holds):
        for _ in range(100_000):
            if holds():
                return
            wake_s = min(client.wake_s for client in self.clients)
            if self.events and self.events[0][0] <= wake_s:
                self.now_s, _, do, args = heapq.heappop(self.events)
                do(*args)
            else:
                assert wake_s < float("inf"), "nothing will ever happen"
                self.now_s = max(wake_s, self.now_s)
                for n in range(2):
                    self.act(n)
        raise AssertionError("waited in vain")


@given(seed=st.integers(0, 2**32), loss=st.sampled_from([0.0, 0.1, 0.3]))
@settings(max_examples=8)
def test_each_push_is_applied_once_and_in_order_whatever_happens(tmp_path_factory, seed, loss):
    path = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state_dir, "ThreadPoolExecutor", faults.AtOnce)
        patch.setattr(state_dir, "SNAPSHOT_AFTER_COMMANDS", 15)
        world = World(path, seed, loss)
        rng, pushed, expected = world.rng, [0, 0], [0.0] * 4
        for _ in range(30):
            n = int(rng.integers(2))
            client, level = world.clients[n], 2 * n + int(rng.integers(2))
            pushed[n] += 1
            arrays = {"levels": np.array([level]), "scores": np.array([float(pushed[n])])}
            pending = client.ask("push_scores", arrays=arrays, waited=bool(rng.random() < 0.5))
            expected[level] = pushed[n] if not expected[level] else 0.5 * expected[level] + 0.5 * pushed[n]
            world.act(n)
            if rng.random() < 0.1:
                world.crash()
            if rng.random() < 0.1:
                world.log._sync_s = 0.0
                world.log.look_after()
            if pending.waited:
                client.expect(pending, world.now_s, 1e9)
                world.until(lambda: pending.outcome is not None)  # noqa: B023
                assert pending.outcome.result["scored"] == 1
        while any(client.unanswered or client.undurable for client in world.clients):
            for n, client in enumerate(world.clients):
                pending = client.ask("sync")
                world.act(n)
                client.expect(pending, world.now_s, 1e9)
                world.until(lambda: pending.outcome is not None)  # noqa: B023
        assert not any(client.errors for client in world.clients)
        curriculum = world.server.curricula["default"]
        assert curriculum.stats()["scores"] == sum(pushed)
        assert curriculum.scores()[1].tolist() == expected
        world.log.close()
    shutil.rmtree(path)

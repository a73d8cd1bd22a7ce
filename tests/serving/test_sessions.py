"""sessions.py: who is who, on which connection each speaks, and which copies come too late."""

from __future__ import annotations

import pytest

from plr_client import OutOfStep, SessionExpired, TooManySessions
from plr_client.protocol import Reply, Request, encode_reply
from plr_server.durability.values import pack, unpack
from plr_server.serving.sessions import MAX_ENDED, MAX_SESSIONS_PER_CONNECTION, Sessions

FIRST, SECOND, THIRD = b"\x01first", b"\x01second", b"\x01third"


def request(op, sequence, *, connection=1, session="s", after=0):
    return Request(session, connection, sequence, "default", op, after=after)


@pytest.fixture
def sessions():
    """The session s, begun on its first connection."""
    made = Sessions()
    made.admit(FIRST, request("hello", 1)).sequence = 1
    return made


def test_a_hello_begins_a_session(sessions):
    assert list(sessions) == ["s"]
    assert (sessions["s"].peer, sessions["s"].sequence) == (FIRST, 1)
    assert sessions.of(FIRST) == ["s"]
    assert (sessions["s"].begun, sessions.admit(SECOND, request("hello", 7, session="later")).begun) == (1, 2)


@pytest.mark.parametrize("op", ["next", "push", "goodbye", "fly"])
def test_nothing_else_does(sessions, op):
    with pytest.raises(SessionExpired):
        sessions.admit(FIRST, request(op, 1, session="who"))
    assert list(sessions) == ["s"]


@pytest.mark.parametrize("op", ["hello", "goodbye"])
def test_a_later_connection_moves_the_session(sessions, op):
    sessions.admit(SECOND, request(op, 2, connection=2))
    assert sessions["s"].peer == SECOND
    assert (sessions.of(FIRST), sessions.of(SECOND)) == ([], ["s"])


def test_only_where_it_says_hello_there(sessions):
    with pytest.raises(OutOfStep, match="next: expected a hello first, on connection 2, got none"):
        sessions.admit(SECOND, request("next", 2, connection=2))
    assert (sessions["s"].peer, sessions.of(SECOND)) == (FIRST, [])


def test_the_copy_of_a_dead_connection_does_not_move_it_back(sessions):
    """Nor is it applied: what the fresh connection sends again may have to come before it."""
    sessions.admit(SECOND, request("hello", 3, connection=2))
    for op in ("hello", "next", "goodbye"):
        with pytest.raises(OutOfStep, match="expected connection 2 or a later one, got connection 1"):
            sessions.admit(FIRST, request(op, 2))
    sessions.admit(SECOND, request("next", 2, connection=2))
    assert (sessions["s"].peer, sessions.of(FIRST)) == (SECOND, [])


def test_a_session_of_the_run_before_has_to_say_hello(sessions):
    sessions.admit(FIRST, request("next", 2)).sequence = 2
    restored = Sessions()
    restored.restore(sessions.state())
    with pytest.raises(OutOfStep, match="hello first"):
        restored.admit(FIRST, request("next", 3))
    restored.admit(FIRST, request("hello", 4))
    restored.admit(FIRST, request("next", 3))
    assert restored.admit(FIRST, request("hello", 1, session="new")).begun == 2


def test_a_request_waits_for_the_one_that_it_comes_after(sessions):
    with pytest.raises(OutOfStep, match="next: expected seq 2 first, got seq 1 as the last"):
        sessions.admit(FIRST, request("next", 3, after=2))
    sessions.admit(FIRST, request("next", 2)).sequence = 2
    sessions.admit(FIRST, request("next", 3, after=2))


def test_another_peer_that_names_the_same_connection_does_not_move_it(sessions):
    sessions.admit(SECOND, request("next", 2))
    assert sessions["s"].peer == FIRST


def test_a_late_copy_of_an_earlier_request_is_refused_and_moves_nothing(sessions):
    sessions.admit(FIRST, request("next", 5)).sequence = 5
    with pytest.raises(OutOfStep, match="next: expected seq 5 or more, got seq 4"):
        sessions.admit(THIRD, request("next", 4))
    assert sessions["s"].peer == FIRST


def test_a_session_that_said_goodbye_is_never_begun_again(sessions):
    sessions.end("s", said_goodbye=True)
    assert (list(sessions), sessions.of(FIRST)) == ([], [])
    with pytest.raises(SessionExpired):
        sessions.admit(FIRST, request("hello", 9))


def test_a_session_that_was_given_up_is(sessions):
    sessions.end("s", said_goodbye=False)
    session = sessions.admit(SECOND, request("hello", 9, connection=4))
    assert (session.begun, session.connection, session.sequence) == (2, 4, 0)


def test_those_that_said_goodbye_are_remembered_within_bounds(sessions):
    for i in range(MAX_ENDED + 5):
        sessions.admit(SECOND, request("hello", 1, session=f"{i}"))
        sessions.end(f"{i}", said_goodbye=True)
    assert len(sessions._ended) == MAX_ENDED
    with pytest.raises(SessionExpired):
        sessions.admit(SECOND, request("hello", 2, session=f"{MAX_ENDED}"))
    sessions.admit(SECOND, request("hello", 2, session="0"))


def test_sessions_are_bounded_in_all(sessions):
    sessions.max_open = 3
    for name in ("b", "c"):
        sessions.admit(SECOND, request("hello", 1, session=name))
    with pytest.raises(TooManySessions) as raised:
        sessions.admit(THIRD, request("hello", 1, session="d"))
    assert raised.value.args == ("in all", 3)
    sessions.admit(FIRST, request("next", 2))  # those that are there go on
    sessions.end("b", said_goodbye=True)
    sessions.admit(THIRD, request("hello", 1, session="d"))
    assert len(sessions) == 3


def test_sessions_are_bounded_on_one_connection(sessions):
    for i in range(MAX_SESSIONS_PER_CONNECTION):
        sessions.admit(SECOND, request("hello", 1, session=f"{i}"))
    with pytest.raises(TooManySessions) as raised:
        sessions.admit(SECOND, request("hello", 1, session="one more"))
    assert raised.value.args == ("on one connection", MAX_SESSIONS_PER_CONNECTION)
    sessions.admit(THIRD, request("hello", 1, session="one more"))
    assert len(sessions) == MAX_SESSIONS_PER_CONNECTION + 2


def test_payloads_that_many_replies_hold_are_in_the_state_once(sessions):
    """Or twenty sessions with the same levels would take twenty times their memory, in each snapshot."""
    levels = [bytes([level]) * 60_000 for level in range(8)]
    replies = {}
    for begun in range(20):
        name = f"worker {begun}"
        shared = [levels[(begun + slot) % 8] for slot in range(4)]
        replies[name] = Reply(2, 0, 0, None, {"levels": [0, 1, 2, 3]}, {}, shared)
        sessions.admit(FIRST, request("hello", 1, session=name)).reply = replies[name]
    state = sessions.state()
    assert sum(map(len, pack(state))) < 1.1 * sum(map(len, levels))
    restored = Sessions()
    restored.restore(unpack(b"".join(pack(state))))
    for name, reply in replies.items():
        assert list(map(bytes, encode_reply(restored[name].reply))) == list(map(bytes, encode_reply(reply)))
    held = {id(payload) for name in replies for payload in restored[name].reply.payloads}
    assert len(held) == len(levels)
    assert pack(restored.state()) == pack(state)

"""sessions.py: who is who, on which connection each speaks, and which copies come too late."""

from __future__ import annotations

import pytest

from plr_client import ProtocolError, SessionExpired, TooManySessions
from plr_client.protocol import Request
from plr_server.serving.sessions import MAX_ENDED, MAX_SESSIONS_PER_CONNECTION, Sessions

FIRST, SECOND, THIRD = b"\x01first", b"\x01second", b"\x01third"


def request(op, sequence, *, connection=1, session="s"):
    return Request(session, connection, sequence, "default", op)


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
    assert sessions.admit(SECOND, request("hello", 7, session="later")).sequence == 6  # 7 is to be applied


@pytest.mark.parametrize("op", ["next", "push", "goodbye", "fly"])
def test_nothing_else_does(sessions, op):
    with pytest.raises(SessionExpired):
        sessions.admit(FIRST, request(op, 1, session="who"))
    assert list(sessions) == ["s"]


def test_a_later_connection_moves_the_session(sessions):
    sessions.admit(SECOND, request("next", 2, connection=2))
    assert sessions["s"].peer == SECOND
    assert (sessions.of(FIRST), sessions.of(SECOND)) == ([], ["s"])


def test_the_copy_of_a_dead_connection_does_not_move_it_back(sessions):
    """A request sent again on a fresh connection: whichever copy comes first, the session ends on the fresh one."""
    for order in ([(FIRST, 1), (SECOND, 2)], [(SECOND, 2), (FIRST, 1)]):
        for peer, connection in order:
            sessions.admit(peer, request("next", 2, connection=connection))
        assert sessions["s"].peer == SECOND
        assert sessions.of(FIRST) == []


def test_another_peer_that_names_the_same_connection_does_not_move_it(sessions):
    sessions.admit(SECOND, request("next", 2))
    assert sessions["s"].peer == FIRST


def test_a_late_copy_of_an_earlier_request_is_refused_and_moves_nothing(sessions):
    sessions.admit(FIRST, request("next", 5)).sequence = 5
    with pytest.raises(ProtocolError, match="seq: expected 5 or more, got 4"):
        sessions.admit(THIRD, request("next", 4, connection=9))
    assert sessions["s"].peer == FIRST


def test_a_session_that_said_goodbye_is_never_begun_again(sessions):
    sessions.end("s", said_goodbye=True)
    assert (list(sessions), sessions.of(FIRST)) == ([], [])
    with pytest.raises(SessionExpired):
        sessions.admit(FIRST, request("hello", 9))


def test_a_session_that_was_given_up_is(sessions):
    sessions.end("s", said_goodbye=False)
    assert sessions.admit(SECOND, request("hello", 9, connection=4)).sequence == 8


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

"""Exchange: one session of a client with its server, as a state machine without IO and without a clock.

It is told what is to be asked, which replies came, and what time it is; it says what to send and when to hang up, and
it settles each request with a reply or an error. What has to be sent again, after silence, a restart of the server or
the loss of what was not on its disk, it sends again, so that each request is applied once and in order.

    pending = exchange.ask("push", arrays=...)         to be sent
    exchange.expect(pending, now_s, timeout_s)         somebody waits for it
    while (todo := exchange.act(now_s)) is not None:   carry out: HANG_UP, or frames to send
    exchange.heard(decode_reply(frames), now_s)        a message came: on the latest connection, no earlier one
    exchange.lost()                                    the socket was closed, by whomever
    exchange.wake_s                                    when to call `act` again at the latest, if nothing came
    pending.outcome                                    a reply or an error; None as long as it is under way

Hand in what has come before you call `act`: to it, silence means that the server is away. After HANG_UP the next
frames go out on a fresh connection. Used by plr_client.connection, and by tests over networks that only they have.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from numpy.typing import NDArray

from plr_client.errors import OutOfStep, PlrError, ServerUnreachable, SessionExpired, StateRolledBack
from plr_client.pending import Pending
from plr_client.protocol import (
    MAX_FRAME_BYTES,
    Frames,
    Notice,
    Reply,
    Request,
    encode_request,
    oversized,
    readdressed,
)

FIRST_ATTEMPT_S = 2.0  # of silence, then 4 s, 8 s, ...: what was sent is sent again on a fresh connection
REMEMBERED_S = 30.0  # so long, and longer, a server knows a session that has gone
MAX_UNDER_WAY = 16  # requests sent and not answered; the server holds so many replies
MAX_KEPT_BYTES = 256 * 1024 * 1024  # of requests that may have to be sent again
ONCE = frozenset(("push", "push_step", "push_scores", "insert", "set_score_function"))  # else twice does no harm

_NONE: Mapping[str, Any] = {}
_NEVER = math.inf


class HangUp(enum.Enum):
    """To drop the connection: whatever comes on it comes too late."""

    NOW = 0


HANG_UP: Final = HangUp.NOW


class Exchange:
    """A session, from its first hello on.

    Args:
        session: whom the server is to take this client for: nobody else's name.
        address: where the server listens, for the errors.
        curriculum: the name of the curriculum that the requests are for.
        pid: told to the server.

    Attributes:
        errors: of requests that nobody waited for, the oldest first; who raises one takes it out.
        durable: how many commands of the server's state are known to be durable.
        kept_bytes: of the requests that may have to be sent again, but for those that somebody waits for.
        num_connections: how many there were, the latest included.
        begun: which of all sessions that the server began this one is; 0 before it has said so.
    """

    def __init__(self, session: str, *, address: str, curriculum: str, pid: int) -> None:
        self.errors: deque[PlrError] = deque()
        self.durable = self.kept_bytes = self.num_connections = self.begun = 0
        self._session, self._address, self._curriculum, self._pid = session, address, curriculum, pid
        self._number = 0  # the highest that was given
        self._max_frame_bytes = MAX_FRAME_BYTES
        # Each request is in one of these, or done with: all in the order of their numbers.
        self._kept: deque[Pending] = deque()  # answered, and not durable yet
        self._under_way: deque[Pending] = deque()  # sent on this connection, and not answered
        self._to_send: deque[Pending] = deque()
        # The connection.
        self._greeted = self._hang_up = self._closing_seen = False
        self._blocked = False  # the server does not take this client: until something is asked again
        self._hello = 0  # the number of one under way
        self._refused = 0  # from which number on nothing was applied, where the server knew no session
        # What the last hello told.
        self._epoch: int | None = None
        self._run = self._begun_at = 0
        # Time.
        self._awaited: Pending | None = None
        self._started_s, self._deadline_s = 0.0, _NEVER
        self._patience_s = _NEVER  # when silence has lasted too long
        self._silences = 0  # so many that lasted too long since a request was answered

    @property
    def wake_s(self) -> float:
        """When `act` has something to do, if nothing is heard before."""
        if self._to_send and self._may_send():
            return 0.0
        return min(self._patience_s, self._deadline_s)

    @property
    def greeted(self) -> bool:
        """The server has answered the hello on this connection: what is asked is sent at once."""
        return self._greeted

    @property
    def unanswered(self) -> int:
        """How many requests have no reply yet."""
        return len(self._under_way) + len(self._to_send)

    @property
    def oldest(self) -> Pending:
        """The oldest of those."""
        return self._under_way[0] if self._under_way else self._to_send[0]

    @property
    def refused(self) -> bool:
        """The server has not taken this client the last time, such as for a state that was rolled back."""
        return self._blocked

    @property
    def undurable(self) -> int:
        """How many requests are answered, and may have to be sent again."""
        return len(self._kept)

    # ---- what happened

    def ask(
        self,
        op: str,
        args: Mapping[str, Any] = _NONE,
        arrays: Mapping[str, NDArray[Any]] = _NONE,
        waited: bool = True,
    ) -> Pending:
        """A request is to be sent, after all that were asked before.

        Args:
            op: the operation.
            args: its plain arguments.
            arrays: its arrays, by name. They are copied where nobody waits; otherwise they must not change before the
                outcome.
            waited: somebody waits for the outcome.

        Raises:
            InvalidInput: the request cannot be encoded.
            MessageTooLarge: the server does not take so much.
        """
        self._blocked = False
        last = self._to_send or self._under_way
        number = self._number + 1
        after = last[-1].number if last else 0
        where = self._session, self.num_connections, number, self._curriculum
        request = Request(*where, op, args, arrays, after, self._run)
        frames = encode_request(request)
        if len(frames) > 1 and (error := oversized(frames, self._max_frame_bytes)) is not None:
            raise error
        self._number = number  # taken only by what can be sent
        pending = Pending(number, op, frames, self.num_connections, waited)
        if not waited:
            self._own(pending)
        self._to_send.append(pending)
        return pending

    def expect(self, pending: Pending, now_s: float, timeout_s: float) -> None:
        """Somebody waits for a request, and for so long; afterwards it is given up, unless it is not `waited`."""
        if pending.outcome is None:
            self._blocked = False
            self._awaited, self._started_s, self._deadline_s = pending, now_s, now_s + timeout_s

    def give_up(self, pending: Pending) -> None:
        """Nobody waits for a request any more, whatever has become of it."""
        self._awaited, self._deadline_s = None, _NEVER
        for requests in (self._under_way, self._to_send):
            if pending in requests:
                requests.remove(pending)
        if not (self._under_way or self._hello):
            self._patience_s = _NEVER
        self._release(pending)

    def give_up_waiting(self) -> None:
        """Nobody waits for any request any more."""
        for pending in [each for each in (*self._under_way, *self._to_send) if each.waited and each.outcome is None]:
            self.give_up(pending)

    def lost(self) -> None:
        """The socket is closed, or is to be: what has no reply is sent again on another, after a hello."""
        self._to_send.extendleft(reversed(self._under_way))
        self._under_way.clear()
        self._greeted, self._hello, self._hang_up, self._patience_s = False, 0, True, _NEVER

    def heard(self, message: Reply | Notice, now_s: float) -> None:
        """A message came."""
        if type(message) is Notice:
            self._closing_seen |= message.notice == "closing"
            return
        assert type(message) is Reply  # noqa: S101  narrows the type
        number, under_way = message.id, self._under_way
        if self._hello:
            if number is None or number == self._hello:
                self._hear_hello(message)
            return
        if not under_way:
            return
        pending = under_way[0]
        if number != pending.number and number is not None:  # None: the server could not even read the number
            found = [each for each in under_way if each.number == number]
            if not found:
                return
            pending = found[0]
        self._closing_seen = False
        error = message.error
        if error is not None and isinstance(error, SessionExpired | OutOfStep):
            if isinstance(error, SessionExpired) and pending.attempts == 1 and now_s < pending.sent_s + REMEMBERED_S:
                self._refused = pending.number
            self._silences = 0
            self.lost()
            return
        if pending is under_way[0]:  # another one overtook the oldest, whose reply may never come
            self._silences = 0
            self._patience_s = now_s + FIRST_ATTEMPT_S if len(under_way) > 1 else _NEVER
        under_way.remove(pending)
        self._settle(pending, message)

    # ---- what to do

    def act(self, now_s: float) -> Frames | HangUp | None:
        """Returns what to do next: HANG_UP, or frames to send; None where there is nothing to do before `wake_s`."""
        if now_s >= self._deadline_s:
            self._run_out_of_time(now_s)
        elif now_s >= self._patience_s:
            self._silences += 1
            self.lost()
        if self._hang_up:
            self._hang_up = False
            return HANG_UP
        if not (self._to_send and self._may_send()):
            return None
        if not self._greeted:
            return self._say_hello(now_s)
        pending = self._to_send.popleft()
        if pending.connection != self.num_connections:
            after = self._under_way[-1].number if self._under_way else 0
            pending.frames = readdressed(pending.frames, self.num_connections, after, self._run)
            pending.connection = self.num_connections
        pending.attempts += 1
        pending.sent_s = now_s
        if not self._under_way:
            self._patience_s = now_s + FIRST_ATTEMPT_S * 2.0**self._silences
        self._under_way.append(pending)
        return pending.frames

    def farewell(self) -> tuple[int, Frames]:
        """Returns the number and the frames of a goodbye, which may be sent at any time, once, and then nothing."""
        self._number += 1
        connection = self.num_connections + (not (self._greeted or self._hello))
        goodbye = Request(self._session, connection, self._number, self._curriculum, "goodbye")
        return self._number, encode_request(goodbye)

    def _may_send(self) -> bool:
        return not (self._blocked or self._hello or len(self._under_way) >= MAX_UNDER_WAY)

    # ---- time

    def _run_out_of_time(self, now_s: float) -> None:
        hint = (
            "the server said it was stopping: start it again, it is found by itself"
            if self._closing_seen
            else "is plr-server running there? (plr-server serve --bind ADDRESS)"
        )
        error = ServerUnreachable(self._address, self._silences + 1, now_s - self._started_s, hint)
        self._silences = 0
        self.lost()
        self._fail(error)

    # ---- hello

    def _say_hello(self, now_s: float) -> Frames:
        self.num_connections += 1
        self._number += 1
        self._hello = self._number
        self._patience_s = now_s + FIRST_ATTEMPT_S * 2.0**self._silences
        args = {"pid": self._pid, "run": self._run}
        hello = Request(self._session, self.num_connections, self._hello, self._curriculum, "hello", args)
        return encode_request(hello)

    def _hear_hello(self, reply: Reply) -> None:
        """Finds out what of all that was sent the server has, and sends the rest again."""
        self._closing_seen = False
        self._hello, self._patience_s = 0, _NEVER
        told, same_state, error = reply.result, reply.epoch == self._epoch, reply.error
        survived = max(told.get("survived", 0), 0)
        if error is None and same_state and survived < self.durable:
            error = StateRolledBack(self.durable, told["survived"])
        if error is not None:
            self.lost()
            self._blocked = True
            self._fail(error)
            return
        lost = [pending for pending in self._kept if pending.position > survived]
        self._kept = deque(pending for pending in self._kept if pending.position <= survived)
        for pending in lost:
            pending.attempts = 0 if pending.exact else 1  # as if it had never been sent
        unanswered = sorted([*lost, *self._to_send], key=lambda pending: pending.number)
        self._to_send.clear()
        if self.begun in (0, told["begun"]):
            self._go_on(unanswered, told["applied"], reply)
        else:
            self._begin_anew(unanswered, known=survived < self._begun_at or not (same_state or survived))
        if self.begun != told["begun"]:
            self.begun, self._begun_at = told["begun"], reply.position
        self._epoch, self._run, self._max_frame_bytes = reply.epoch, told["run"], told["max_frame_bytes"]
        self._note_durable(reply.durable)
        self._greeted, self._refused = True, 0
        for pending in [each for each in self._to_send if len(each.frames) > 1]:
            if (error := oversized(pending.frames, self._max_frame_bytes)) is not None:
                self._to_send.remove(pending)
                self._release(pending)
                self._settle_with(pending, error)

    def _go_on(self, unanswered: list[Pending], applied: int, reply: Reply) -> None:
        """The server knows the session: what is above `applied` is sent again, and what somebody waits for."""
        for pending in unanswered:
            if pending.number > applied or (pending.waited and pending.outcome is None):
                self._to_send.append(pending)
            else:
                answer = Reply(pending.number, reply.epoch, reply.durable, position=reply.position)
                self._settle(pending, answer, exact=False)

    def _begin_anew(self, unanswered: list[Pending], *, known: bool) -> None:
        """The server had forgotten the session: what it may have applied before that is not sent again.

        Args:
            unanswered: what would be.
            known: it was not applied, for the state has never seen the session, or is another one.
        """
        for pending in unanswered:
            refused = 0 < self._refused <= pending.number
            if known or refused or not pending.attempts or pending.op not in ONCE:
                self._to_send.append(pending)
            else:
                self._release(pending)
                outcome = f"sent {pending.attempts} times and applied once or not at all, which is not known"
                self._settle_with(pending, SessionExpired(pending.op, outcome))

    # ---- outcomes

    def _settle(self, pending: Pending, reply: Reply, *, exact: bool = True) -> None:
        """Notes a reply; keeps the request where it may have to be sent again.

        Args:
            pending: the request.
            reply: its reply.
            exact: the reply's position is that of the request, and not a later one.
        """
        _, _, durable, error, _, _, _, position = reply
        if durable > self.durable:
            self._note_durable(durable)
        if position > self.durable and (pending.op in ONCE or self.kept_bytes < MAX_KEPT_BYTES):
            self._own(pending)
            pending.position, pending.exact = position, exact
            self._kept.append(pending)
        elif pending.num_bytes:
            self._release(pending)
        if error is not None:
            self._settle_with(pending, error)
            return
        if pending.outcome is None:
            pending.outcome = reply
        if pending is self._awaited:
            self._awaited, self._deadline_s = None, _NEVER

    def _settle_with(self, pending: Pending, error: PlrError) -> None:
        """Notes an error; of what was told to be done before, too, unless that did not matter."""
        if pending.waited and pending.outcome is None:
            pending.outcome = error
        elif not isinstance(pending.outcome, PlrError) and pending.op in ONCE:
            pending.outcome = error
            self.errors.append(error)
        if pending is self._awaited:
            self._awaited, self._deadline_s = None, _NEVER

    def _fail(self, error: PlrError) -> None:
        """There is no way to the server: who waits is told, else who comes next."""
        pending = self._awaited
        if pending is not None and pending.waited:
            self.give_up(pending)
            pending.outcome = error
        else:
            self._awaited, self._deadline_s = None, _NEVER
            self.errors.append(error)

    def _note_durable(self, durable: int) -> None:
        self.durable = durable
        kept = self._kept
        while kept and kept[0].position <= durable:
            self._release(kept.popleft())

    def _own(self, pending: Pending) -> None:
        if not pending.num_bytes:
            pending.own()
            self.kept_bytes += pending.num_bytes

    def _release(self, pending: Pending) -> None:
        self.kept_bytes -= pending.num_bytes
        pending.num_bytes = 0

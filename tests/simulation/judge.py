"""What must hold of a simulated run, whatever went wrong in it: the one history, and what the clients were told of it.

The history is the series of commands that the server's state folder took, as an observer between the two saw it. What
a crash has taken away again leaves the history; it must not be anything that a reply had called durable, or that only
the loss of power can take.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from plr_client.errors import PlrError, ServerUnreachable, SessionExpired, StateNotWritten, StateRolledBack
from plr_client.protocol import Reply, decode_reply, readdressed
from plr_server import Curriculum
from plr_server.durability.records import Kind
from plr_server.durability.values import pack, unpack
from plr_server.serving.dispatch import Dispatcher, unframed

MAX_FRAME_BYTES = 1 << 20
WRITES = frozenset(("next", "push", "push_step", "push_scores", "insert"))
OUTCOME_UNKNOWN = (ServerUnreachable, SessionExpired, StateRolledBack)


class Failure(AssertionError):
    """Something that must hold does not. `check` names what."""

    def __init__(self, check, *details):
        super().__init__(" ".join([f"{check}:", *map(str, details)]))
        self.check = check


def require(holds, check, *details):
    if not holds:
        raise Failure(check, *details)


@dataclasses.dataclass(slots=True)
class Operation:
    """What a client wants done.

    Attributes:
        number: its own; the requests for it carry it.
        client, turn: whose it is, and the how-manieth of that client.
        issued_after: how many operations had been answered when it began.
        outcome: the reply that the client took, or the error that it raised; None before.
        times_lost: how often a crash has taken it out of the history.
    """

    number: int
    client: int
    turn: int
    op: str
    issued_after: int
    outcome: Any = None
    times_lost: int = 0


class Command:
    """One of the history: as it was written, and the request that it is, by whom.

    Attributes:
        begun: which of all sessions it came in; 0 for none yet.
    """

    __slots__ = ("begun", "kind", "number", "payload", "request")

    def __init__(self, kind, payload, request, begun):
        self.kind, self.payload, self.request, self.begun = kind, payload, request, begun
        self.number = None if request is None else request.args.get("n")


class Reference:
    """The state that commands make, one after the other, in a server that never stops."""

    def __init__(self, configs):
        self._configs = configs
        self._start()

    def _start(self):
        curricula = {name: Curriculum(config) for name, config in self._configs.items()}
        self.dispatcher = Dispatcher(curricula, max_frame_bytes=MAX_FRAME_BYTES)
        self.position, self.replies = 0, {}

    def advance(self, history, position):
        if position < self.position:
            self._start()
        for command in history[self.position : position]:
            if command.kind is Kind.DECISION:
                what, name = unpack(command.payload)
                (self.dispatcher.release if what == "release" else self.dispatcher.forget)(name)
                continue
            request, session = command.request, self.dispatcher.sessions.get(command.request.session)
            if session is not None:  # what it only asked is not in the history
                session.connection, session.sequence = request.connection, request.sequence - 1
            frames = readdressed(unframed(memoryview(command.payload)), request.connection, request.after, run=0)
            reply = self.dispatcher.answer(request.session.encode(), frames)
            self.replies[request.session, request.sequence] = decode_reply(list(map(bytes, reply)))
        self.position = position

    def state(self):
        return b"".join(pack(self.dispatcher.state()))


class Judge:
    """Hears everything, and objects.

    Args:
        configs: of the curricula, by name.

    Attributes:
        history: the commands that the present state is made of.
        attempt: the command that is being written.
        operations: by number.
        disk_lied: it may have forgotten anything.
    """

    def __init__(self, configs, *, replies_wait):
        self.history: list[Command] = []
        self.attempt: Command | None = None
        self.disk_lied = False
        self.operations: dict[int, Operation] = {}
        self._reference = Reference(configs)
        self._replies_wait = replies_wait  # fsync is "always"
        self._answered: list[Operation] = []
        self._kept = self._durable = 0  # commands that a killed process, a loss of power must leave
        self._reads: list[tuple[int, Any, Any]] = []  # after how many commands, what, the reply

    # ---- what is heard

    def begins(self, client, turn, op):
        number = len(self.operations)
        self.operations[number] = Operation(number, client, turn, op, len(self._answered))
        return self.operations[number]

    def writes(self, kind, payload, request, begun):
        self.attempt = Command(kind, payload, request, begun)

    def has_written(self, sequence):
        self.history.append(self.attempt)
        self.attempt = None
        require(sequence == len(self.history), "the folder's count of commands", sequence, "not", len(self.history))

    def has_not_written(self):
        self.attempt = None

    def answers_read(self, request, frames):
        reply = decode_reply(list(map(bytes, frames)))
        if reply.error is None:
            self._reads.append((len(self.history), request, reply))

    def tells(self, request, reply, position, *, memory_only):
        """The server has let a reply go that it gave after so many commands.

        Args:
            request: what it answers.
            reply: what it told.
            position: after how many commands.
            memory_only: the newest commands were in memory alone then, for the folder could not be written.
        """
        require(max(reply.durable, reply.position) <= position, "a reply's count of commands", position, reply)
        if reply.position and request.op != "hello":
            command = self.history[reply.position - 1].request
            same_request = (command.session, command.sequence) == (request.session, request.sequence)
            require(same_request, "a reply's position", reply, "there is", command)
        if not memory_only:
            self._kept = max(self._kept, position)
            if self._replies_wait or (request.op == "save" and reply.error is None):
                self._durable = max(self._durable, position)
        self._durable = max(self._durable, reply.durable)

    def ends(self, operation, outcome):
        """An operation is over for its client."""
        rolled_back = isinstance(outcome, StateRolledBack)
        require(self.disk_lied or not rolled_back, "the state was rolled back for a client", operation)
        if operation.outcome is None and not isinstance(outcome, OUTCOME_UNKNOWN):
            self._answered.append(operation)
        operation.outcome = outcome

    # ---- what must hold

    def restarted(self, sequence, state, *, power_failed):
        """A server has found so many commands, and made this state of them."""
        if self.attempt is not None:
            if sequence > len(self.history):  # it was written before the process ended
                self.history.append(self.attempt)
            self.attempt = None
        require(sequence <= len(self.history), "commands from nowhere", sequence, "of", len(self.history))
        if not self.disk_lied:
            require(sequence >= self._durable, "durable commands lost", sequence, "of", self._durable, "are there")
            if not power_failed:
                require(sequence >= self._kept, "answered commands lost", sequence, "of", self._kept, "are there")
        for command in self.history[sequence:]:
            if command.number is not None:
                self.operations[command.number].times_lost += 1
        del self.history[sequence:]
        self._kept, self._durable = min(self._kept, sequence), min(self._durable, sequence)
        self._reads = [read for read in self._reads if read[0] <= sequence]
        if self.history:
            self.agrees(state)

    def agrees(self, state):
        """The state is what the history makes of none, and so were the replies to reads."""
        history, reference = self.history, self._reference
        for position, request, reply in self._reads:
            reference.advance(history, position)
            expected = reference.dispatcher._apply(request)
            require(same(reply, expected), "a read's reply", request.op, reply, "not", expected)
        self._reads.clear()
        reference.advance(history, len(history))
        require(reference.state() == state, "the state", "after", len(history), "commands")

    def at_the_end(self):
        """Every operation that was answered is in the history once, in an order that respects time."""
        history, all_places = self.history, {}
        for place, command in enumerate(history):
            operation = self.operations.get(command.number)
            if operation is not None:
                earlier = all_places.setdefault(operation.number, [])
                # A session that was forgotten took its levels with it: whoever comes back to it draws again.
                is_drawn_again = operation.op == "next" and command.begun not in [history[at].begun for at in earlier]
                require(not earlier or is_drawn_again, "applied twice", operation)
                earlier.append(place)
        places = {number: at[0] for number, at in all_places.items()}
        last_of_client, latest = {}, [-1]
        for operation in self._answered:
            place = places.get(operation.number, -1)
            latest.append(max(latest[-1], place if not operation.times_lost else -1))
        for operation in sorted(self.operations.values(), key=lambda each: (each.client, each.turn)):
            place, outcome = places.get(operation.number), operation.outcome
            if operation.op not in WRITES:
                continue
            if place is None:
                require(self.disk_lied or not isinstance(outcome, Reply), "never applied", operation)
                continue
            require(place > last_of_client.get(operation.client, -1), "a client's order", operation)
            last_of_client[operation.client] = place
            if self.disk_lied or operation.times_lost:
                continue
            require(place > latest[operation.issued_after], "the order in time", operation)
            require(not isinstance(outcome, StateNotWritten), "applied and refused", operation)
            command = history[place]
            expected = self._reference.replies[command.request.session, command.request.sequence]
            require(same(outcome, expected), "a reply", operation, "not", expected)


def same(outcome, expected):
    """Whether a client got what the reference gave; where its reply was lost it may only hear that it was done."""
    if isinstance(outcome, OUTCOME_UNKNOWN) or outcome is None:
        return True
    error = outcome if isinstance(outcome, PlrError) else outcome.error
    if error is None and not outcome.result and not outcome.arrays:
        return True
    if error is not None or expected.error is not None:
        return str(error) == str(expected.error)
    told = {name: outcome.result.get(name) for name in expected.result}  # without what the state folder adds
    return told == expected.result and all(
        array.dtype == expected.arrays[name].dtype and array.tobytes() == expected.arrays[name].tobytes()
        for name, array in outcome.arrays.items()
    )

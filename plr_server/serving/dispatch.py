"""From the frames of a request to the frames of its reply: each request applied once, errors as replies.

The layer between the ZeroMQ loop and the curriculum, without a clock, and without IO but for the log, where there is
one: it is handed every command before that is applied. The loop tells which peer spoke and who is gone. Nothing a
client sends can raise out of `answer`, and nothing that its score function raises.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plr_client.errors import (
    InvalidInput,
    OutOfStep,
    PickleRefused,
    PlrError,
    ProtocolError,
    ScoreFunctionError,
    ServerError,
    StateNotWritten,
    UnknownCurriculum,
    UnknownOperation,
)
from plr_client.levels import check_k
from plr_client.protocol import (
    MAX_INSERT_BYTES,
    MAX_LEVELS_IN_HEADER,
    Frames,
    Reply,
    Request,
    check_packed,
    decode_request,
    encode_reply,
    request_id,
    shown,
    split_payloads,
)
from plr_server.curriculum.config import Config
from plr_server.curriculum.scoring.rollouts import FIELDS
from plr_server.curriculum.state_machine import Curriculum
from plr_server.durability.records import Kind
from plr_server.durability.state_dir import StateDir
from plr_server.durability.values import Buffers, pack, unpack
from plr_server.serving.roles import Client, allowed
from plr_server.serving.sessions import Session, Sessions
from plr_server.serving.timings import OTHER, Timings

logger = logging.getLogger("plr_server")

FEW_LEVELS = 8  # drawn one by one; more are drawn as arrays

MAX_SCORES = 2**18  # in one request: at 1 to 4 us each
MAX_SCORES_OF_OPEN = 2**12  # where the level space is open, and a score may have a level take another's place: 0.5 ms
_ROLLOUT = frozenset(FIELDS)
_NEEDED = frozenset(("push", "push_step", "push_scores", "insert", "set_score_function"))  # refused where not written
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_NONE: Mapping[str, Any] = {}
_SLOTS = frozenset(("slots", "begun"))
_NOTHING: frozenset[str] = frozenset()
_KNOWN = {  # operation -> its arguments and its arrays, of what is written down from anybody who may ask for levels
    "hello": (frozenset(("pid", "run")), _NOTHING),
    "next": (_SLOTS | {"k", "ahead"}, _SLOTS),
    "goodbye": (_NOTHING, _NOTHING),
}

Result = tuple[Mapping[str, Any], Mapping[str, NDArray[Any]], Sequence[bytes] | None]  # as the end of a `Reply`


@dataclasses.dataclass(slots=True)
class Lag:
    """By how many pushes the scores of one curriculum were behind when a level drawn ahead had its turn.

    Attributes:
        levels: that had their turn.
        pushes: over all of them.
    """

    levels: int = 0
    pushes: int = 0


class Dispatcher:
    """Answers requests out of named curricula, which know nothing of each other.

    Attributes:
        sessions: the clients.
        curricula: the state machines by name.
        clients: who may connect, by public key; None where there are no keys, and everybody may everything.
        answered: the operation of the request last answered, and whether with an error.
        timings: where the loop counts how long that took.

    Args:
        curricula: the state machines by name; the dispatcher is their only caller.
        max_frame_bytes: told to clients, which then refuse to send more.
        epoch: names the curricula's state, where it lives in memory alone; every reply carries it.
        allow_pickle: take score functions from clients: whoever can connect can then run code in this process.
    """

    def __init__(
        self, curricula: Mapping[str, Curriculum], *, max_frame_bytes: int, epoch: int = 0, allow_pickle: bool = False
    ) -> None:
        self.sessions = Sessions()
        self.curricula = curricula
        self.clients: Mapping[str, Client] | None = None
        self._lags = {name: Lag() for name in curricula}
        self._max_frame_bytes = max_frame_bytes
        self._epoch = self._run = epoch
        self._log: StateDir | None = None
        self._allow_pickle = allow_pickle
        self._reads: dict[str, Callable[[Curriculum, Request], Result]] = {
            "counters": self._counters,
            "stats": self._stats,
            "weights": _weights,
            "scores": _scores,
            "table": _table,
            "levels": _levels,
            "save": self._save,
            "timings": lambda *_: ({"timings": self.timings.to_dict()}, _NONE, None),
            "sync": self._sync,
        }
        self._writes: dict[str, Callable[[Curriculum, Request], Result]] = {
            "next": self._next,
            "push": _push,
            "push_step": _push_step,
            "push_scores": _push_scores,
            "insert": _insert,
            "set_score_function": self._set_score_function,
        }

        self.answered = OTHER, False
        self.timings = Timings((*self._reads, *self._writes, "hello", "goodbye", "describe"))

    def answer(self, peer: bytes, frames: Sequence[Any], key: str | None = None) -> Frames:
        """Applies one request.

        Args:
            peer: the connection it came on.
            frames: what came, without the peer.
            key: the public key of the connection; None where there are no keys.

        Returns:
            The frames of the reply.
        """
        number: int | None = None
        op = OTHER
        error: PlrError
        try:
            request = decode_request(frames)
            number, op = request.sequence, request.op
            client = None if self.clients is None else allowed(op, key, self.clients)
            reply = self._answer(peer, request, frames, client)
            self.answered = op, reply.error is not None
            return encode_reply(reply)
        except KeyboardInterrupt:
            raise
        except PlrError as refusal:
            error = refusal.with_traceback(None)  # a session may keep it, but not the request in its frames
        except BaseException as exc:  # noqa: BLE001  the last resort: the server goes on whatever this was
            error = _failed("a request", exc)
        self.answered = op, True
        return self.refusal(number if number is not None else request_id(frames), error)

    def refusal(self, number: int | None, error: PlrError) -> Frames:
        """Returns the frames of the reply that refuses a request, by its number where that is known."""
        return encode_reply(Reply(number, self._epoch, 0, error))

    def release(self, name: str) -> None:
        """Takes back the levels that a vanished client's slots hold; its pooled steps wait, it may come back."""
        self._decide("release", name)

    def forget(self, name: str) -> None:
        """Drops a client that will not come back, with all that was kept for it."""
        self._decide("forget", name)

    # ---- what outlives the process

    def write_to(self, log: StateDir) -> None:
        """Has every command written down before it is applied, from now on; the log has all that was before."""
        self._log, self._epoch, self._run = log, log.epoch, log.runs[-1].name

    def state(self, reuse: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Returns the state of curricula and clients, a plain value: what all commands so far have made of it.

        Args:
            reuse: as for `Curriculum.state`.
        """
        before = {} if reuse is None else reuse["curricula"]
        curricula = {name: curriculum.state(before.get(name)) for name, curriculum in self.curricula.items()}
        return {
            "curricula": curricula,
            "lags": {name: [lag.levels, lag.pushes] for name, lag in self._lags.items()},
            "sessions": self.sessions.state(),
            "pickled_by": _PYTHON if _functions(curricula) else None,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to what `state` gave, in a dispatcher that has answered nothing yet.

        Raises:
            PickleRefused, InvalidInput: a client's score function is in it, and functions of clients are not taken, or
                it was pickled by another Python.
            PlrError: as `Curriculum.from_state`.
        """
        if _functions(state["curricula"]):
            self._check_pickle("the state directory", state["pickled_by"])
        self.curricula = {name: Curriculum.from_state(each) for name, each in state["curricula"].items()}
        self._lags = {name: Lag(*lag) for name, lag in state["lags"].items()}
        self.sessions.restore(state["sessions"])

    def replay(self, kind: Kind, payload: memoryview) -> None:
        """Applies a command again that was written down, as it was applied then.

        Raises:
            PlrError: it needs what this server does not allow or have.
        """
        if kind is Kind.DECISION:
            self._carry_out(*unpack(payload))
            return
        frames, client = unframed(payload), None
        if kind is Kind.NAMED:
            client, *frames = frames
            client = client.decode()
        request = decode_request(frames)
        self._check(request)
        session = self.sessions.replayed(request, client)
        if request.op != "hello":
            self._do(session, request)

    def _decide(self, what: str, name: str) -> None:
        """Does what the loop has decided about a session, once it is written down."""
        if self._log is not None:
            self._log.write(Kind.DECISION, pack([what, name]), op=what, needed=False)
        self._carry_out(what, name)

    def _carry_out(self, what: str, name: str) -> None:
        session = self.sessions.get(name)
        if session is not None:
            session.waiting.clear()
        for curriculum in self.curricula.values():
            curriculum.release(name)
            if what != "release":
                curriculum.forget(name)
        if session is not None and what != "release":
            self.sessions.end(name, said_goodbye=what == "goodbye")

    # ---- one request

    def _answer(self, peer: bytes, request: Request, frames: Sequence[Any], client: str | None) -> Reply:
        number, op, log = request.sequence, request.op, self._log
        if op == "hello":
            return self._greet(peer, request, frames, client)
        session = self.sessions.admit(peer, request, client)
        if request.run not in (0, self._run):  # a late copy, or its sender does not know yet that the server is another
            raise OutOfStep(op[:80], "a hello to this run of the server first", "none")
        if number == session.written and session.reply is not None:
            durable = 0 if log is None else log.durable
            return session.reply._replace(epoch=self._epoch, durable=durable, position=session.position)
        if op not in self._writes and op != "goodbye":
            session.sequence = number
            return self._apply(request)
        if session.refused is not None and number <= session.refused[0]:
            raise session.refused[1]
        if number == session.sequence and op in self._writes:
            raise ProtocolError(f"seq: expected more than {number} for {op}, got {number} again")
        _refuse_unknown(request)
        self._check(request)
        if log is not None:
            try:
                log.write(Kind.REQUEST, framed(frames), op=op, needed=op in _NEEDED)
            except StateNotWritten as refusal:
                session.refused = number, StateNotWritten(refusal.op, refusal.reason)  # its cause holds the request
                raise
            session.position = log.sequence
        return self._do(session, request)

    def _greet(self, peer: bytes, request: Request, frames: Sequence[Any], client: str | None) -> Reply:
        """Begins a session, or goes on with one on another connection; tells what is known of it and of the state."""
        _refuse_unknown(request)
        for name, value in request.args.items():
            if type(value) not in (int, type(None)):
                raise InvalidInput(name, "an int or None", shown(value))
        is_known, log = self.sessions.get(request.session) is not None, self._log
        session = self.sessions.admit(peer, request, client)
        told = {
            "max_frame_bytes": self._max_frame_bytes,
            "run": self._run,
            "begun": session.begun,
            "applied": session.written,
        }
        if log is None:
            return Reply(request.sequence, self._epoch, 0, None, told | {"survived": 0})
        if not is_known:
            kind = Kind.REQUEST if client is None else Kind.NAMED
            log.write(kind, framed([*([] if client is None else [client.encode()]), *frames]), op="hello", needed=False)
            session.position = log.sequence
        told["survived"] = log.survived(request.args.get("run"))
        return Reply(request.sequence, self._epoch, log.durable, None, told, position=session.position)

    def _check(self, request: Request) -> None:
        """Refuses what does not depend on the state alone, and would turn out otherwise in another process.

        Raises:
            PickleRefused: functions of clients are not taken.
            InvalidInput: a function was pickled by another Python.
        """
        if request.op == "set_score_function":
            self._check_pickle(request.op, request.args.get("python"))

    def _check_pickle(self, what: str, pickled_by: Any) -> None:
        if not self._allow_pickle:
            raise PickleRefused(what)
        if pickled_by != _PYTHON:  # bytecode of another version can bring the interpreter down
            got = pickled_by if isinstance(pickled_by, str) else shown(pickled_by)
            raise InvalidInput("function", f"one pickled by Python {_PYTHON}, the server's", f"one by Python {got:.20}")

    def _do(self, session: Session, request: Request) -> Reply:
        """Applies a request that changes something, and notes that it was."""
        number, op = request.sequence, request.op
        if op == "goodbye":
            self._carry_out(op, request.session)
            return Reply(number, self._epoch, 0)
        reply = session.reply = self._apply(request, session.position)
        session.sequence = session.written = number
        return reply

    def _save(self, _curriculum: Curriculum, _request: Request) -> Result:
        if self._log is None:
            expected = "a server with a state directory (plr-server serve --state-dir DIR, launch(state_dir=DIR))"
            raise InvalidInput("save", expected, "one whose state lives in memory")
        self._log.save()
        return _NONE, _NONE, None

    def _sync(self, _curriculum: Curriculum, _request: Request) -> Result:
        """Has the disk hurry; how far it has got, the reply tells as every reply does."""
        if self._log is not None:
            self._log.hurry()
        return _NONE, _NONE, None

    def _apply(self, request: Request, position: int = 0) -> Reply:
        number, op, log = request.sequence, request.op, self._log
        error: PlrError
        try:
            if op == "describe":  # of all curricula
                configs = {name: _described(each.config) for name, each in self.curricula.items()}
                return Reply(number, self._epoch, 0, None, {"curricula": configs})
            curriculum = self.curricula.get(request.curriculum)
            if curriculum is None:
                raise UnknownCurriculum(request.curriculum[:80], ", ".join(sorted(self.curricula)))  # noqa: TRY301
            apply = self._writes.get(op) or self._reads.get(op)
            if apply is None:
                known = ", ".join(sorted([*self._reads, *self._writes, "describe", "hello", "goodbye"]))
                raise UnknownOperation(op[:80], known)  # noqa: TRY301
            result = apply(curriculum, request)
            return Reply(number, self._epoch, 0 if log is None else log.durable, None, *result, position)
        except KeyboardInterrupt:
            raise
        except ScoreFunctionError as refusal:
            where = refusal.__cause__  # the traceback of the function alone: how it was called helps nobody
            logger.error("%s, at %s of session %r", refusal, op, request.session, exc_info=where)  # noqa: TRY400
            error = refusal
        except PlrError as refusal:
            error = refusal
        except BaseException as exc:  # noqa: BLE001  of a score function, or a bug: the server goes on
            error = _failed(op, exc)
        return Reply(number, self._epoch, 0 if log is None else log.durable, error, position=position)

    @staticmethod
    def _set_score_function(curriculum: Curriculum, request: Request) -> Result:
        pickled = _fields(request, {"function"}).get("function")
        if pickled is None or pickled.dtype != np.uint8:
            got = "none" if pickled is None else f"{pickled.dtype}"
            raise InvalidInput("function", "an array of uint8, a pickled function", got)
        curriculum.set_score_function(pickled.tobytes())
        return _NONE, _NONE, None

    def _stats(self, curriculum: Curriculum, request: Request) -> Result:
        return curriculum.stats() | self._clients(request.curriculum), _NONE, None

    def _counters(self, curriculum: Curriculum, request: Request) -> Result:
        folder = {} if self._log is None else self._log.health()
        return curriculum.counters() | self._clients(request.curriculum) | folder, _NONE, None

    def _clients(self, name: str) -> dict[str, float]:
        """Returns what the clients of a curriculum do, for `stats` and `counters`."""
        lag, sessions = self._lags[name], self.sessions
        return {
            "sessions": len(sessions),
            "prefetched": sum(len(sessions[client].waiting.get(name, ())) for client in sessions),
            "prefetch_lag_pushes": lag.pushes / max(lag.levels, 1),
        }

    def _next(self, curriculum: Curriculum, request: Request) -> Result:
        slots, begun = _ints(request, "slots"), _ints(request, "begun")
        k: Any = request.args.get("k", 0) if slots is None else len(slots)
        check_k(k if type(k) in (int, bool, float) else 0)
        session = self.sessions[request.session]
        result: tuple[Mapping[str, Any], Mapping[str, NDArray[Any]]]
        handed: Sequence[bytes] | None
        if k <= FEW_LEVELS:
            few = curriculum.sample(k, slots=slots, holder=request.session, packed=True)
            levels, is_replay, train, payloads = map(list, zip(*few, strict=True))
            result = {"levels": levels, "is_replay": is_replay, "train": train}, _NONE
            handed = None if payloads[0] is None else payloads
        else:
            given = slots if slots is None else np.asarray(slots)
            many = curriculum.sample_arrays(k, slots=given, holder=request.session, packed=True)
            arrays = {"levels": many.levels, "is_replay": many.is_replay, "train": many.train}
            if len(many.levels) <= MAX_LEVELS_IN_HEADER:
                result = {name: array.tolist() for name, array in arrays.items()}, _NONE
            else:
                result = _NONE, arrays
            handed = many.payloads
        ahead = request.args.get("ahead")
        if ahead or session.waiting:
            held = range(k) if slots is None else slots
            self._note_lag(curriculum, request, session, _listed(() if begun is None else begun), _listed(held))
        return *result, handed

    def _note_lag(
        self, curriculum: Curriculum, request: Request, session: Session, begun: Sequence[int], slots: Sequence[int]
    ) -> None:
        """Counts the levels drawn ahead whose turn has come, and notes those drawn now."""
        waiting, lag = session.waiting[request.curriculum], self._lags[request.curriculum]
        for drawn_at in (waiting.pop(slot) for slot in begun if slot in waiting):
            lag.levels += 1
            lag.pushes += curriculum.pushes - drawn_at
        for slot in slots:
            waiting.pop(slot, None)  # the level that it held is over
        if request.args.get("ahead"):
            waiting.update(dict.fromkeys(slots, curriculum.pushes))


def framed(frames: Sequence[Any]) -> Buffers:
    """Returns the frames of a request as one payload, in pieces: how many, how long each is, and they themselves."""
    return [struct.pack(f"<B{len(frames)}Q", len(frames), *map(len, frames)), *frames]


def unframed(payload: memoryview) -> Frames:
    """Returns the frames that `framed` joined, as views of the payload."""
    num = payload[0]
    lengths = struct.unpack_from(f"<{num}Q", payload, 1)
    begins = list(itertools.accumulate(lengths, initial=1 + 8 * num))
    header, *arrays = (payload[begin : begin + length] for begin, length in zip(begins, lengths, strict=False))
    return [bytes(header), *arrays]


def _functions(curricula: Mapping[str, Any]) -> bool:
    """Returns whether a client's score function is in the state of one of them."""
    return any(state["scorer"]["function"] is not None for state in curricula.values())


def _failed(what: str, exc: BaseException) -> ServerError:
    """Logs what nobody expected, and returns the error that tells of it: by its type alone, for it may be anything."""
    logger.error("failed at %s", what, exc_info=exc)
    return ServerError(f"the server failed at {what} ({type(exc).__name__}); its log says more")


def _push(curriculum: Curriculum, request: Request) -> Result:
    return {"scored": curriculum.update(**_fields(request, _ROLLOUT), source=request.session)}, _NONE, None


def _push_step(curriculum: Curriculum, request: Request) -> Result:
    return {"scored": curriculum.update_step(**_fields(request, _ROLLOUT), source=request.session)}, _NONE, None


def _push_scores(curriculum: Curriculum, request: Request) -> Result:
    fields = {"levels": None, "scores": None, **_fields(request, {"levels", "scores"})}
    most = MAX_SCORES_OF_OPEN if isinstance(curriculum.config.levels, str) else MAX_SCORES
    if fields["levels"] is not None and fields["levels"].size > most:
        raise InvalidInput("levels", f"at most {most} in one request", str(fields["levels"].size))
    return {"scored": curriculum.update_scores(**fields)}, _NONE, None


def _insert(curriculum: Curriculum, request: Request) -> Result:
    fields = _fields(request, {"payloads", "payload_bytes", "scores", "parents"})
    packed = split_payloads(fields)
    num_bytes = sum(map(len, packed))
    if num_bytes > MAX_INSERT_BYTES:
        raise InvalidInput("payloads", f"at most {MAX_INSERT_BYTES} bytes in one insert, packed", str(num_bytes))
    for payload in packed:
        check_packed(payload)
    ids = curriculum.insert_packed(packed, fields.get("scores"), fields.get("parents"))
    return _NONE, {"ids": ids}, None


def _weights(curriculum: Curriculum, _request: Request) -> Result:
    return _NONE, {"weights": curriculum.weights()}, None


def _scores(curriculum: Curriculum, _request: Request) -> Result:
    return _NONE, dict(zip(("ids", "scores", "staleness", "seen"), curriculum.scores(), strict=True)), None


def _table(curriculum: Curriculum, request: Request) -> Result:
    begin, stop = request.args.get("begin", 0), request.args.get("stop")
    return _NONE, curriculum.table(begin, stop)._asdict(), None


def _levels(curriculum: Curriculum, request: Request) -> Result:
    fields = {"levels": None, **_fields(request, {"levels"})}
    levels = curriculum.levels_packed(**fields)
    arrays = {
        "levels": np.array([level for level, _, _ in levels], dtype=np.int64),
        "parents": np.array([parent for _, _, parent in levels], dtype=np.int64),
    }
    return _NONE, arrays, [packed for _, packed, _ in levels]


def _described(config: Config) -> dict[str, Any]:
    """Returns the fields of a configuration; of a list of levels, which may be long, only how many there are."""
    fields = config.to_dict()
    if isinstance(config.levels, tuple):
        fields["levels"] = f"{len(config.levels)} ids"
    return fields


def _fields(request: Request, known: frozenset[str] | set[str]) -> Mapping[str, Any]:
    for name in request.arrays:
        if name not in known:
            expected = f"a field among {', '.join(sorted(known))}" if known else f"no array of {request.op}"
            raise InvalidInput(f"{name:.80}", expected, "an unknown one")
    return request.arrays


def _refuse_unknown(request: Request) -> None:
    """Refuses what an operation does not know before it is written down, or any worker could fill the journal.

    Not when it is replayed: what was written down, was answered.

    Raises:
        InvalidInput: there is such an argument or array.
    """
    known = _KNOWN.get(request.op)
    if known is None:
        return
    args, arrays = known
    if request.arrays:
        _fields(request, arrays)
    if not request.args.keys() <= args:
        name = min(map(str, request.args.keys() - args))
        expected = f"an argument among {', '.join(sorted(args))}" if args else f"no argument of {request.op}"
        raise InvalidInput(f"{name:.80}", expected, "an unknown one")


def _ints(request: Request, name: str) -> NDArray[Any] | list[int] | None:
    """Returns ints that travel in the header or, where they are many, as an array; None where there are none."""
    if request.arrays:
        array: NDArray[Any] | None = _fields(request, _SLOTS).get(name)
        if array is not None:
            if array.ndim != 1 or array.dtype.kind not in "iu":
                raise InvalidInput(name, "shape (m,) of integers", f"shape {array.shape} of {array.dtype}")
            return array
    given: list[int] | None = request.args.get(name)
    if given is None or (type(given) is list and all(type(each) is int for each in given)):
        return given
    raise InvalidInput(name, "a list of ints", shown(given))


def _listed(ints: NDArray[Any] | Sequence[int]) -> Sequence[int]:
    return ints.tolist() if isinstance(ints, np.ndarray) else ints

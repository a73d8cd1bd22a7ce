"""From the frames of a request to the frames of its reply: sessions, each request applied once, errors as replies.

The layer between the ZeroMQ loop and the curriculum, without IO and without a clock: the loop tells it which peer
spoke and who is gone. Nothing a client sends can raise out of `answer`.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from plr_client.errors import (
    InvalidInput,
    PickleRefused,
    PlrError,
    ProtocolError,
    ScoreFunctionError,
    ServerError,
    UnknownCurriculum,
    UnknownOperation,
)
from plr_client.protocol import (
    Frames,
    Reply,
    Request,
    decode_request,
    encode_reply,
    join_payloads,
    pack_payload,
    request_id,
    split_payloads,
    unpack_payload,
)
from plr_server.curriculum.state_machine import Curriculum

logger = logging.getLogger("plr_server")

_ROLLOUT = (
    "values",
    "rewards",
    "dones",
    "levels",
    "next_values",
    "truncated",
    "final_values",
    "valid",
    "logits",
    "successes",
    "columns",
    "groups",
)
_MAX_SESSION_CHARS = 64


@dataclasses.dataclass(slots=True)
class Session:
    """One client, from its first request until it says goodbye or is given up.

    Attributes:
        peer: the transport's name for the connection it last spoke on.
        sequence: the highest sequence number applied.
        reply: the reply to it, repeated when the request comes again; None for a request that changes nothing.
        waiting: curriculum -> slot -> how many pushes there had been when its level was drawn, for levels drawn ahead
            whose turn has not come.
    """

    peer: bytes
    sequence: int = 0
    reply: Reply | None = None
    waiting: dict[str, dict[int, int]] = dataclasses.field(default_factory=lambda: defaultdict(dict))


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

    Args:
        curricula: the state machines by name; the dispatcher is their only caller.
        max_frame_bytes: told to clients, which then refuse to send more.
        allow_pickle: take score functions from clients: whoever can connect can then run code in this process.
    """

    def __init__(
        self, curricula: Mapping[str, Curriculum], *, max_frame_bytes: int, allow_pickle: bool = False
    ) -> None:
        self.sessions: dict[str, Session] = {}
        self._lags = {name: Lag() for name in curricula}
        self.curricula = curricula
        self._max_frame_bytes = max_frame_bytes
        self._allow_pickle = allow_pickle
        self._reads: dict[str, Callable[[Curriculum, Request], Reply]] = {
            "hello": self._hello,
            "stats": self._stats,
            "weights": _weights,
            "scores": _scores,
            "levels": _levels,
        }
        self._writes: dict[str, Callable[[Curriculum, Request], Reply]] = {
            "next": self._next,
            "push": _push,
            "push_step": _push_step,
            "push_scores": _push_scores,
            "insert": _insert,
            "set_score_function": self._set_score_function,
        }

    def answer(self, peer: bytes, frames: Sequence[Any]) -> Frames | None:
        """Applies one request.

        Args:
            peer: the connection it came on.
            frames: what came, without the peer.

        Returns:
            The frames of the reply; None for a goodbye, which nobody waits to see answered.
        """
        try:
            request = decode_request(frames)
            if not 0 < len(request.session) <= _MAX_SESSION_CHARS:
                raise ProtocolError(
                    f"session: expected 1 to {_MAX_SESSION_CHARS} characters, got {len(request.session)}"
                )
        except PlrError as error:
            return encode_reply(Reply(request_id(frames), error=error))
        if request.op == "goodbye":
            self.forget(request.session)
            return None
        session = self.sessions.setdefault(request.session, Session(peer))
        session.peer = peer
        if request.sequence == session.sequence and session.reply is not None:
            reply = session.reply
        elif request.sequence < session.sequence:
            reply = Reply(
                None, error=ProtocolError(f"seq: expected more than {session.sequence}, got {request.sequence}")
            )
        else:
            reply = self._apply(request)
            session.sequence = request.sequence
            session.reply = reply if request.op in self._writes else None
        return encode_reply(dataclasses.replace(reply, id=request.id, durable=session.sequence))

    def holds(self, session: str) -> bool:
        """Returns whether a slot of the client plays a level."""
        return any(curriculum.holds(session) for curriculum in self.curricula.values())

    def release(self, session: str) -> None:
        """Takes back the levels that a vanished client's slots hold; its pooled steps wait, it may come back."""
        if session in self.sessions:
            self.sessions[session].waiting.clear()
        for curriculum in self.curricula.values():
            curriculum.release(session)

    def forget(self, session: str) -> None:
        """Drops a client that said goodbye or will not come back, with all that was kept for it."""
        self.release(session)
        for curriculum in self.curricula.values():
            curriculum.forget(session)
        self.sessions.pop(session, None)

    def _apply(self, request: Request) -> Reply:
        curriculum = self.curricula.get(request.curriculum)
        try:
            if curriculum is None:
                raise UnknownCurriculum(f"{request.curriculum:.80}", ", ".join(sorted(self.curricula)))  # noqa: TRY301
            if request.op in self._writes:
                return self._writes[request.op](curriculum, request)
            if request.op in self._reads:
                return self._reads[request.op](curriculum, request)
        except ScoreFunctionError as error:
            logger.error("%s, at %s of session %s", error, request.op, request.session, exc_info=error)  # noqa: TRY400
            return Reply(None, error=error)
        except PlrError as error:
            return Reply(None, error=error)
        except Exception as exc:
            logger.exception("failed at %s of session %s", request.op, request.session)
            return Reply(
                None, error=ServerError(f"the server failed at {request.op} ({exc!r:.200}); its log says more")
            )
        known = ", ".join(sorted([*self._reads, *self._writes, "goodbye"]))
        return Reply(None, error=UnknownOperation(f"{request.op:.80}", known))

    def _set_score_function(self, curriculum: Curriculum, request: Request) -> Reply:
        if not self._allow_pickle:
            raise PickleRefused(request.op)
        pickled = _fields(request, {"function"}).get("function")
        if pickled is None or pickled.dtype != np.uint8:
            got = "none" if pickled is None else f"{pickled.dtype}"
            raise InvalidInput("function", "an array of uint8, a pickled function", got)
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        if request.args.get("python") != python:  # bytecode of another version can bring the interpreter down
            expected = f"one pickled by Python {python}, the server's"
            raise InvalidInput("function", expected, f"one by Python {request.args.get('python')!s:.20}")
        curriculum.set_score_function(pickled.tobytes())
        return Reply(None)

    def _hello(self, _curriculum: Curriculum, _request: Request) -> Reply:
        return Reply(None, {"max_frame_bytes": self._max_frame_bytes})

    def _stats(self, curriculum: Curriculum, request: Request) -> Reply:
        lag = self._lags[request.curriculum]
        clients = {
            "sessions": len(self.sessions),
            "prefetched": sum(len(session.waiting.get(request.curriculum, ())) for session in self.sessions.values()),
            "prefetch_lag_pushes": lag.pushes / max(lag.levels, 1),
        }
        return Reply(None, curriculum.stats() | clients)

    def _next(self, curriculum: Curriculum, request: Request) -> Reply:
        fields = _fields(request, {"slots", "begun"})
        slots = fields.get("slots", np.empty(0, dtype=np.int64))
        begun = fields.get("begun", np.empty(0, dtype=np.int64))
        if begun.ndim != 1 or begun.dtype.kind not in "iu":
            raise InvalidInput("begun", "shape (m,) of integers", f"shape {begun.shape} of {begun.dtype}")
        assignments = curriculum.sample(slots.size, slots=slots, holder=request.session, packed=True)
        self._note_lag(curriculum, request, begun.tolist(), slots.tolist())
        arrays = {
            "levels": np.array([assignment.level for assignment in assignments], dtype=np.int64),
            "is_replay": np.array([assignment.is_replay for assignment in assignments]),
            "train": np.array([assignment.train for assignment in assignments]),
        }
        if assignments[0].payload is not None:
            arrays |= join_payloads([assignment.payload for assignment in assignments])
        return Reply(None, arrays=arrays)

    def _note_lag(self, curriculum: Curriculum, request: Request, begun: list[int], slots: list[int]) -> None:
        """Counts the levels drawn ahead whose turn has come, and notes those drawn now."""
        waiting, lag = self.sessions[request.session].waiting[request.curriculum], self._lags[request.curriculum]
        for drawn_at in (waiting.pop(slot) for slot in begun if slot in waiting):
            lag.levels += 1
            lag.pushes += curriculum.pushes - drawn_at
        for slot in slots:
            waiting.pop(slot, None)  # the level that it held is over
        if request.args.get("ahead"):
            waiting.update(dict.fromkeys(slots, curriculum.pushes))


def _push(curriculum: Curriculum, request: Request) -> Reply:
    return Reply(None, {"scored": curriculum.update(**_fields(request, set(_ROLLOUT)), source=request.session)})


def _push_step(curriculum: Curriculum, request: Request) -> Reply:
    return Reply(None, {"scored": curriculum.update_step(**_fields(request, set(_ROLLOUT)), source=request.session)})


def _push_scores(curriculum: Curriculum, request: Request) -> Reply:
    fields = {"levels": None, "scores": None, **_fields(request, {"levels", "scores"})}
    return Reply(None, {"scored": curriculum.update_scores(**fields)})


def _insert(curriculum: Curriculum, request: Request) -> Reply:
    fields = _fields(request, {"payloads", "payload_bytes", "scores", "parents"})
    packed = [pack_payload(unpack_payload(payload)) for payload in split_payloads(fields)]  # made canonical here
    ids = curriculum.insert_packed(packed, fields.get("scores"), fields.get("parents"))
    return Reply(None, arrays={"ids": ids})


def _weights(curriculum: Curriculum, _request: Request) -> Reply:
    return Reply(None, arrays={"weights": curriculum.weights()})


def _scores(curriculum: Curriculum, _request: Request) -> Reply:
    return Reply(None, arrays=dict(zip(("ids", "scores", "staleness", "seen"), curriculum.scores(), strict=True)))


def _levels(curriculum: Curriculum, request: Request) -> Reply:
    fields = {"levels": None, **_fields(request, {"levels"})}
    levels = curriculum.levels_packed(**fields)
    return Reply(
        None,
        arrays={
            "levels": np.array([level for level, _, _ in levels], dtype=np.int64),
            "parents": np.array([parent for _, _, parent in levels], dtype=np.int64),
            **join_payloads([packed for _, packed, _ in levels]),
        },
    )


def _fields(request: Request, known: set[str]) -> Mapping[str, Any]:
    for name in request.arrays:
        if name not in known:
            raise InvalidInput(f"{name:.80}", f"a field among {', '.join(sorted(known))}", "an unknown one")
    return request.arrays

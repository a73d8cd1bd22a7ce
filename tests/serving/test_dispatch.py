"""dispatch.py in-process: sessions, each request applied once, and a state that bad input cannot touch."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time

import faults
import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plr_client import OutOfStep
from plr_client.protocol import decode_reply, join_payloads, pack_payload
from plr_server import Config, Curriculum
from plr_server.serving import dispatch
from plr_server.serving.dispatch import MAX_SCORES, MAX_SCORES_OF_OPEN, Dispatcher

MAX_FRAME_BYTES = 1 << 20
EPOCH = 77
PEER, ANOTHER_PEER = b"\x01peer", b"\x01another connection"


def dispatcher(**config):
    """A dispatcher with the sessions a, b and faults.SESSION."""
    curriculum = Curriculum(Config(**{"levels": range(10), "num_steps": 3} | config))
    made = Dispatcher({"default": curriculum}, max_frame_bytes=MAX_FRAME_BYTES, epoch=EPOCH)
    faults.begin(made, "a", "b", faults.SESSION)
    return made


@pytest.fixture
def busy():
    """A dispatcher in the middle of things: scored levels, levels in flight, pooled steps."""
    made = dispatcher(partial="stitch")
    ask(made, faults.request("push", faults.block(), session="a"))
    ask(made, faults.request("next", {"slots": np.arange(4)}, session="b"))
    ask(made, faults.request("push_step", step(), session="a", seq=3))
    return made


def ask(made, frames, peer=PEER):
    return decode_reply([bytes(frame) for frame in made.answer(peer, [bytes(frame) for frame in frames])])


def step(**changes):
    """The fields of one step of two columns."""
    fields = {
        "values": np.array([0.1, 0.2]),
        "rewards": np.array([0.0, 1.0]),
        "dones": np.array([False, False]),
        "levels": np.array([3, 4]),
        "next_values": np.array([0.3, 0.4]),
    }
    return {name: value for name, value in (fields | changes).items() if value is not None}


# ---- bad input


@pytest.mark.parametrize("name", faults.BAD_FRAMES)
def test_bad_frames_get_one_typed_error_and_change_nothing(busy, name):
    frames, code, text = faults.BAD_FRAMES[name]
    before = busy.curricula["default"].state()
    error = ask(busy, frames).error
    assert error.code == code
    assert text in str(error)
    assert faults.same(busy.curricula["default"].state(), before)


@pytest.mark.parametrize("name", faults.BAD_PUSHES)
def test_bad_pushes_get_one_typed_error_and_change_nothing(busy, name):
    changes, kind, field, text = faults.BAD_PUSHES[name]
    arrays = {name: np.asarray(value) for name, value in faults.block(**changes).items() if value is not None}
    before = busy.curricula["default"].state()
    error = ask(busy, faults.request("push", arrays, session="a", seq=4)).error
    assert (type(error), error.field) == (kind, field)
    assert f"{field}: expected {text}" in str(error)
    assert faults.same(busy.curricula["default"].state(), before)


BAD_STEPS = {
    "another level without a done": (
        {"levels": np.array([3, 6])},
        (
            "levels: expected level 4 until a done in column 1 (an episode cut off without one: end it with a done, or "
            "close() the trainer, which drops the steps pooled so far), got level 6"
        ),
    ),
    "other columns": ({"columns": np.array([0, 2])}, "columns: expected the columns of the block's first step, [0, 1]"),
    "a column more": ({name: np.zeros(3) for name in step()} | {"levels": np.zeros(3, dtype=int)}, "columns: expected"),
    "a block": (
        {name: array[np.newaxis] for name, array in step().items()},
        "levels: expected shape (N,), N at least 1",
    ),
    "NaN": ({"values": np.array([np.nan, 0.0])}, "values: expected finite numbers"),
    "a level outside": (
        {"levels": np.array([3, 99])},
        "levels: expected one of the 10 levels of range(0, 10), got level 99",
    ),
    "no rewards": ({"rewards": None}, "rewards: expected an array: the strategy value_l1 needs it, got none"),
}


@pytest.mark.parametrize("name", BAD_STEPS)
def test_bad_steps_change_nothing(busy, name):
    changes, text = BAD_STEPS[name]
    before = busy.curricula["default"].state()
    error = ask(busy, faults.request("push_step", step(**changes), session="a", seq=4)).error
    assert text in str(error)
    assert faults.same(busy.curricula["default"].state(), before)


BAD_SCORES = {
    "no scores": ({"levels": np.array([1])}, "scores: expected"),
    "no levels": ({"scores": np.array([1.0])}, "levels: expected"),
    "other lengths": ({"levels": np.array([1, 2]), "scores": np.ones(3)}, "scores: expected shape (2,) of numbers"),
    "a level outside": ({"levels": np.array([1, 10]), "scores": np.ones(2)}, "levels: expected one of the 10 levels"),
    "levels of floats": ({"levels": np.ones(1), "scores": np.ones(1)}, "levels: expected shape (m,) of integers"),
    "NaN": ({"levels": np.array([1, 2]), "scores": np.array([1.0, np.nan])}, "scores: expected finite numbers"),
    "inf": ({"levels": np.array([1]), "scores": np.array([np.inf])}, "scores: expected finite numbers"),
}


@pytest.mark.parametrize(("levels", "most"), [("0:4", MAX_SCORES), ("unbounded", MAX_SCORES_OF_OPEN)])
def test_one_request_takes_so_many_scores_and_no_more(levels, most):
    made = dispatcher(levels=levels, capacity=4)
    before = made.curricula["default"].state()
    scores = {"levels": np.zeros(most + 1, int), "scores": np.zeros(most + 1)}
    error = ask(made, faults.request("push_scores", scores)).error
    assert str(error) == f"levels: expected at most {most} in one request, got {most + 1}"
    assert faults.same(made.curricula["default"].state(), before)
    scores = {name: array[1:] for name, array in scores.items()}
    assert ask(made, faults.request("push_scores", scores, seq=3)).result["scored"] == most


@pytest.mark.parametrize("name", BAD_SCORES)
def test_bad_scores_change_nothing(busy, name):
    arrays, text = BAD_SCORES[name]
    before = busy.curricula["default"].state()
    assert text in str(ask(busy, faults.request("push_scores", arrays)).error)
    assert faults.same(busy.curricula["default"].state(), before)


def test_a_level_beyond_int64_does_not_wrap_around_to_a_negative_one():
    made = dispatcher(levels=range(-10, 0))
    wrapped = {"levels": np.array([2**64 - 5], dtype=np.uint64), "scores": np.ones(1)}
    error = ask(made, faults.request("push_scores", wrapped)).error
    assert str(error) == "levels: expected integers within int64, got 18446744073709551611"
    assert not made.curricula["default"].scores()[3].any()


NESTED = msgpack.unpackb(faults.nested(400))  # as deep as can be packed again

BAD_SLOTS = {
    "none": (None, "k: expected an integer from 1 to 65536, got 0"),
    "too many": (np.arange(65_537), "k: expected an integer from 1 to 65536, got 65537"),
    "one twice": (np.array([1, 1]), "slots: expected 2 distinct ints, got [1 1]"),
    "floats": (np.array([0.0]), "slots: expected shape (m,) of integers, got shape (1,) of float64"),
    "two axes": (np.zeros((1, 1), dtype=int), "slots: expected shape (m,) of integers, got shape (1, 1) of int64"),
}


@pytest.mark.parametrize("name", BAD_SLOTS)
def test_bad_slots_change_nothing(busy, name):
    slots, text = BAD_SLOTS[name]
    before = busy.curricula["default"].state()
    error = ask(busy, faults.request("next", {} if slots is None else {"slots": slots}, session="b", seq=3)).error
    assert str(error) == text
    assert faults.same(busy.curricula["default"].state(), before)


BAD_ARGS = {
    "no k": ({}, "k: expected an integer from 1 to 65536, got 0"),
    "a k that is a bool": ({"k": True}, "k: expected an integer from 1 to 65536, got True"),
    "a k nested deep": ({"k": NESTED}, "k: expected an integer from 1 to 65536, got 0"),
    "too many": ({"k": 65_537}, "k: expected an integer from 1 to 65536, got 65537"),
    "slots twice": ({"slots": [1, 1]}, "slots: expected 2 distinct ints, got [1, 1]"),
    "slots of floats": ({"slots": [0.5]}, "slots: expected a list of ints, got list"),
    "slots of bools": ({"slots": [True]}, "slots: expected a list of ints, got list"),
    "slots nested deep": ({"slots": [NESTED]}, "slots: expected a list of ints, got list"),
    "slots that are text": ({"slots": "abc"}, "slots: expected a list of ints, got 'abc'"),
    "begun nested deep": ({"k": 1, "begun": NESTED}, "begun: expected a list of ints, got list"),
}


@pytest.mark.parametrize("name", BAD_ARGS)
def test_bad_arguments_of_next_change_nothing(busy, name):
    args, text = BAD_ARGS[name]
    before = busy.curricula["default"].state()
    error = ask(busy, faults.request("next", session="b", seq=3, args=args)).error
    assert str(error) == text
    assert faults.same(busy.curricula["default"].state(), before)


@pytest.mark.parametrize("strategy", ["policy_entropy", "least_confidence", "min_margin"])
def test_logits_missing(strategy):
    made = dispatcher(strategy=strategy)
    error = ask(made, faults.request("push", faults.block())).error
    assert str(error) == f"logits: expected an array: the strategy {strategy} needs it, got none"
    assert error.code == "missing_field"


def test_a_rollout_under_the_strategy_external_is_refused():
    error = ask(dispatcher(strategy="external"), faults.request("push", faults.block())).error
    assert str(error) == "push: expected push_scores under the strategy external, got a rollout"


def test_a_bug_behind_a_valid_request_is_a_server_error_and_logged(busy, caplog):
    del busy.curricula["default"]._sampler  # nothing valid does this
    with caplog.at_level(logging.ERROR):
        error = ask(busy, faults.request("weights")).error
    assert error.code == "server_error"
    assert "the server failed at weights (AttributeError); its log says more" in str(error)
    assert "Traceback" in caplog.text


def cancelled(_segment):
    raise asyncio.CancelledError


def exits(_segment):
    sys.exit(3)


class Unshowable(Exception):
    def __repr__(self):
        raise ValueError

    __str__ = __repr__


class Surrogate(Exception):
    def __repr__(self):
        return "\udc80"

    __str__ = __repr__


def unshowable(_segment):
    raise Unshowable


def surrogate(_segment):
    raise Surrogate


@pytest.mark.parametrize("function", [cancelled, exits, unshowable, surrogate])
def test_nothing_that_a_score_function_raises_ends_the_loop(function):
    made = dispatcher(strategy=f"{__name__}:{function.__name__}")
    before = made.curricula["default"].state()
    reply = ask(made, faults.request("push", faults.block()))
    assert reply.id == 2
    assert reply.error.code in ("score_function", "server_error")
    assert faults.same(made.curricula["default"].state(), before)
    assert ask(made, faults.request("stats", seq=3)).error is None


@pytest.mark.parametrize("where", ["decode_request", "encode_reply"])
def test_a_bug_while_reading_or_answering_is_an_error_reply_and_logged(busy, monkeypatch, caplog, where):
    """No valid message does this any more: a nested one once raised RecursionError out of both."""
    calls = []

    def fails_once(argument):
        calls.append(argument)
        if len(calls) == 1:
            raise RecursionError
        return real(argument)

    real = getattr(dispatch, where)
    monkeypatch.setattr(dispatch, where, fails_once)
    with caplog.at_level(logging.ERROR):
        reply = ask(busy, faults.request("stats"))
    assert (reply.id, reply.error.code) == (2, "server_error")
    assert str(reply.error) == "the server failed at a request (RecursionError); its log says more"
    assert "Traceback" in caplog.text


def test_an_interrupt_leaves(busy, monkeypatch):
    monkeypatch.setattr(Curriculum, "stats", lambda _self: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        busy.answer(PEER, faults.request("stats"))


def test_an_insert_of_the_largest_size_holds_the_loop_for_a_short_time_only():
    made = dispatcher(levels="payloads", capacity=100)
    walls = [i % 2 for i in range(65_000)]
    packed = [pack_payload([*walls, n]) for n in range(64)]
    frames = faults.request("insert", join_payloads(packed))
    started_s = time.process_time()
    assert len(ask(made, frames).arrays["ids"]) == 64
    assert time.process_time() - started_s < 1.0  # 4 s, were each packed again


def test_a_larger_insert_is_refused_before_anything_is_unpacked():
    made = dispatcher(levels="payloads", capacity=100)
    before = made.curricula["default"].state()
    frames = faults.request("insert", join_payloads([b"\xc6\x00\x00\xff\xf0" + bytes(0xFFF0)] * 65))
    assert str(ask(made, frames).error) == "payloads: expected at most 4194304 bytes in one insert, packed, got 4259125"
    one = faults.request("insert", join_payloads([b"\xdd\x00\x1e\x84\x80" + b"\x80" * 2_000_000]), seq=3)
    assert str(ask(made, one).error) == "payloads: expected at most 65536 bytes each, packed, got 2000005"
    assert faults.same(made.curricula["default"].state(), before)


# ---- each request once


WRITES = {
    "next": {"slots": np.arange(3)},
    "push": faults.block(),
    "push_step": step(),
    "push_scores": {"levels": np.array([1, 2]), "scores": np.array([0.5, 0.25])},
}


@pytest.mark.parametrize("op", WRITES)
def test_a_request_sent_again_is_applied_once_and_gets_the_same_reply(op):
    made = dispatcher()
    frames = faults.request(op, WRITES[op])
    reply = made.answer(PEER, frames)
    after = made.curricula["default"].state()
    assert ask(made, faults.hello(seq=3, connection=2), ANOTHER_PEER).result["applied"] == 2
    again = made.answer(ANOTHER_PEER, faults.request(op, WRITES[op], connection=2))
    assert [bytes(frame) for frame in again] == [bytes(frame) for frame in reply]
    assert faults.same(made.curricula["default"].state(), after)


def test_an_error_sent_again_is_the_same_error():
    made = dispatcher()
    frames = faults.request("push_scores", {"levels": np.array([99]), "scores": np.ones(1)})
    first, second = ask(made, frames).error, ask(made, frames).error
    assert (type(first), first.args) == (type(second), second.args)


def test_an_older_request_is_refused_and_not_applied():
    made = dispatcher()
    for seq in (2, 3):
        ask(made, faults.request("next", WRITES["next"], session="a", seq=seq))
    before = made.curricula["default"].state()
    error = ask(made, faults.request("next", WRITES["next"], session="a", seq=2)).error
    assert str(error) == "next: expected seq 3 or more, got seq 2; it was not applied"
    assert faults.same(made.curricula["default"].state(), before)


def test_a_request_is_not_applied_before_the_one_that_it_comes_after():
    made = dispatcher()
    before = made.curricula["default"].state()
    error = ask(made, faults.request("next", WRITES["next"], seq=4, after=3)).error
    assert str(error) == "next: expected seq 3 first, got seq 0 as the last; it was not applied"
    assert faults.same(made.curricula["default"].state(), before)
    for seq, after in ((3, 0), (4, 3), (9, 4)):
        assert ask(made, faults.request("next", WRITES["next"], seq=seq, after=after)).error is None


def test_the_same_number_in_another_session_is_another_request():
    made = dispatcher()
    for session in ("a", "b"):
        ask(made, faults.request("next", WRITES["next"], session=session))
    assert made.curricula["default"].stats()["draws"] == 6


def test_reads_are_made_anew_and_writes_with_the_number_of_a_read_are_refused():
    made = dispatcher()
    frames = faults.request("stats", session="a")
    assert ask(made, frames).result["draws"] == 0
    ask(made, faults.request("next", WRITES["next"], session="b"))
    assert ask(made, frames).result["draws"] == 3
    error = ask(made, faults.request("next", WRITES["next"], session="a")).error
    assert str(error) == "seq: expected more than 2 for next, got 2 again"
    assert made.curricula["default"].stats()["draws"] == 3


def test_what_was_sent_to_another_run_of_the_server_is_refused_and_not_applied():
    made = dispatcher()
    for seq, run in ((2, EPOCH + 1), (3, EPOCH), (4, 0)):
        error = ask(made, faults.request("next", WRITES["next"], session="a", seq=seq, run=run)).error
        assert (type(error) is OutOfStep) is (run == EPOCH + 1)
    assert made.curricula["default"].stats()["draws"] == 2 * len(WRITES["next"]["slots"])
    assert ask(made, faults.request("goodbye", session="a", seq=5)).error is None


def test_replies_carry_the_epoch_and_a_state_in_memory_has_no_position():
    made = dispatcher()
    for seq, op in ((2, "stats"), (3, "next"), (5, "fly")):
        reply = ask(made, faults.request(op, WRITES.get(op), session="a", seq=seq))
        assert (reply.id, reply.epoch, reply.position, reply.durable) == (seq, EPOCH, 0, 0)
    assert ask(made, [b"garbage"]).epoch == EPOCH


# ---- what costs nothing to ask


def test_counters_are_the_part_of_the_stats_that_counts_and_look_at_no_level(monkeypatch):
    made = dispatcher()
    ask(made, faults.request("next", WRITES["next"], session="a"))
    ask(made, faults.request("push", WRITES["push"], session="a", seq=3))
    stats = ask(made, faults.request("stats", session="a", seq=4)).result
    sampler = made.curricula["default"]._sampler
    for every_level in ("scores", "seen", "last_drawn", "weights"):
        monkeypatch.delattr(sampler if every_level in vars(sampler) else type(sampler), every_level)
    counters = ask(made, faults.request("counters", session="a", seq=5)).result
    looked = {"strategy", "seen_share", "replay_share", "mean_score", "max_score", "effective_levels"}
    assert counters == {name: value for name, value in stats.items() if name not in looked}
    assert (counters["draws"], counters["pushes"], counters["levels_seen"], counters["sessions"]) == (3, 1, 3, 3)


def test_describe_tells_of_every_curriculum_whatever_the_name_asked_with():
    configs = {"train": Config(levels=(3, 14, 15), temperature=0.5), "eval": Config(strategy="sequential")}
    made = Dispatcher({name: Curriculum(config) for name, config in configs.items()}, max_frame_bytes=MAX_FRAME_BYTES)
    faults.begin(made, faults.SESSION)
    reply = ask(made, faults.request("describe"))  # asks for "default", which is not there
    assert reply.result["curricula"] == {
        "train": configs["train"].to_dict() | {"levels": "3 ids"},
        "eval": configs["eval"].to_dict(),
    }
    assert ask(made, faults.request("describe")).result == reply.result  # may be sent again


# ---- sessions


def test_hello_tells_the_limit_of_a_frame_which_session_it_is_and_what_of_it_was_applied():
    made = dispatcher()
    told = {"max_frame_bytes": MAX_FRAME_BYTES, "run": EPOCH, "begun": 4, "applied": 0, "survived": 0}
    assert ask(made, faults.hello("new", seq=5)).result == told
    ask(made, faults.request("next", WRITES["next"], session="new", seq=8))
    ask(made, faults.request("stats", session="new", seq=9))
    assert ask(made, faults.hello("new", seq=10)).result == told | {"applied": 8}
    made.forget("new")
    assert ask(made, faults.hello("new", seq=11)).result == told | {"begun": 5}


@pytest.mark.parametrize("op", [*WRITES, "stats", "goodbye", "fly"])
def test_only_a_hello_begins_a_session(op):
    made = dispatcher()
    before = made.curricula["default"].state()
    error = ask(made, faults.request(op, WRITES.get(op), session="who")).error
    assert (error.code, error.op, error.outcome) == ("session_expired", op, "not applied")
    assert "who" not in made.sessions
    assert faults.same(made.curricula["default"].state(), before)


@pytest.mark.parametrize("op", WRITES)
def test_a_late_copy_after_a_goodbye_is_not_applied_again(op):
    made = dispatcher()
    frames = faults.request(op, WRITES[op])
    assert ask(made, frames).error is None
    ask(made, faults.request("goodbye", seq=3))
    before = made.curricula["default"].state()
    for late in (frames, faults.hello(), frames):  # even after a late copy of the hello
        assert ask(made, late, ANOTHER_PEER).error.code == "session_expired"
    assert faults.same(made.curricula["default"].state(), before)


def test_a_session_begun_anew_takes_no_late_copy():
    made = dispatcher()
    push = faults.request("push", faults.block())
    ask(made, push)
    made.forget(faults.SESSION)  # it was gone for long
    assert ask(made, faults.hello(seq=3, connection=2)).error is None
    assert (
        str(ask(made, push).error) == "push: expected connection 2 or a later one, got connection 1; it was not applied"
    )
    assert made.curricula["default"].stats()["pushes"] == 1


def test_goodbye_gives_levels_and_memory_back(busy):
    assert busy.curricula["default"].stats()["in_flight"] == 4
    for session in ("a", "b"):
        assert ask(busy, faults.request("goodbye", session=session, seq=9)).error is None
    state = busy.curricula["default"].state()
    assert state["held"] == state["scorer"]["pools"] == state["scorer"]["open"] == {}
    assert list(busy.sessions) == [faults.SESSION]
    assert busy.curricula["default"].stats()["in_flight"] == 0


def test_release_gives_levels_back_but_waits_with_pooled_steps(busy):
    busy.release("a")
    busy.release("b")
    assert busy.curricula["default"].stats()["in_flight"] == 0
    assert list(busy.curricula["default"].state()["scorer"]["pools"]) == ["a"]
    assert list(busy.sessions) == ["a", "b", faults.SESSION]


def test_steps_of_two_sessions_are_pooled_apart():
    made = dispatcher()
    scored = [
        ask(made, faults.request("push_step", step(), session=session, seq=seq)).result["scored"]
        for seq in (2, 3, 4)
        for session in ("a", "b")
    ]
    assert scored == [0, 0, 0, 0, 2, 2]


# ---- anything at all

OPS = st.sampled_from(
    [
        "hello",
        "next",
        "push",
        "push_step",
        "push_scores",
        "set_score_function",
        "counters",
        "describe",
        "stats",
        "weights",
        "scores",
        "goodbye",
        "fly",
    ]
)
NAMES = st.sampled_from(
    [
        "levels",
        "scores",
        "slots",
        "values",
        "rewards",
        "dones",
        "next_values",
        "valid",
        "columns",
        "groups",
        "successes",
        "function",
        "x",
    ]
)
DTYPES = st.sampled_from(["<f8", "<f4", "<f2", "<i8", "<u8", "|b1", "|u1", "<U1", "|O", "", 3])
AXES = st.integers(-1, 3) | st.sampled_from([2**31, 2**62, 2**63, 2**64 - 1])
DESCRIBED = st.tuples(NAMES, DTYPES, st.lists(AXES, max_size=5)).map(list)
JUNK = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=3) | st.lists(st.none(), max_size=2)
)
HEADERS = st.fixed_dictionaries(
    {"op": OPS, "seq": st.integers(-1, 6), "session": st.sampled_from(["a", "b"])},
    optional={
        "v": JUNK | st.just(2),
        "connection": JUNK | st.integers(1, 3),
        "args": JUNK | st.just({}),
        "arrays": JUNK | st.lists(DESCRIBED | JUNK, max_size=3),
    },
).map(lambda fields: faults.header(**fields))
FRAMES = st.tuples(HEADERS | st.binary(max_size=30), st.lists(st.binary(max_size=24), max_size=4)).map(
    lambda parts: [parts[0], *parts[1]]
)


@st.composite
def well_shaped(draw):
    """A request whose frames fit its header, whatever they mean."""
    arrays = {}
    for name in draw(st.lists(NAMES, max_size=6, unique=True)):
        dtype = draw(st.sampled_from(["<f8", "<i8", "<u8", "|b1", "<f2"]))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        count = int(np.prod(shape, dtype=int)) * np.dtype(dtype).itemsize
        arrays[name] = np.frombuffer(draw(st.binary(min_size=count, max_size=count)), dtype=dtype).reshape(shape)
    return [bytes(frame) for frame in faults.request(draw(OPS), arrays, seq=draw(st.integers(1, 6)), session="a")]


@st.composite
def mutated(draw):
    """A good push with a byte changed, a frame lost, or two frames swapped."""
    frames = [
        bytes(frame) for frame in faults.request("push", faults.block(), session="a", seq=draw(st.integers(1, 6)))
    ]
    which, other = draw(st.integers(0, len(frames) - 1)), draw(st.integers(0, len(frames) - 1))
    kind = draw(st.sampled_from(["byte", "lost", "swapped"]))
    if kind == "lost":
        del frames[which]
    elif kind == "swapped":
        frames[which], frames[other] = frames[other], frames[which]
    else:
        frame = bytearray(frames[which])
        frame[draw(st.integers(0, len(frame) - 1))] = draw(st.integers(0, 255))
        frames[which] = bytes(frame)
    return frames


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(FRAMES | well_shaped() | mutated(), min_size=1, max_size=4))
def test_no_frames_raise_and_no_refused_request_changes_the_state(requests):
    made = dispatcher(partial="stitch")
    ask(made, faults.request("push", faults.block(), session="a"))
    ask(made, faults.request("next", {"slots": np.arange(2)}, session="b"))
    for frames in requests:
        before = made.curricula["default"].state()
        reply = decode_reply([bytes(frame) for frame in made.answer(PEER, frames)])
        assert reply.error is None or reply.error.code != "server_error", reply.error
        if reply.error is not None:
            assert faults.same(made.curricula["default"].state(), before)
    assert np.isfinite(made.curricula["default"].weights()).all()

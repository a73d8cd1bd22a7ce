"""functions.py: score functions by name and sent by clients, what they are given, and what they do wrong."""

from __future__ import annotations

import asyncio
import functools
import pickle
import sys

import cloudpickle
import faults
import model
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plr_client import ConfigError, InvalidInput, PickleRefused, ScoreFunctionError, Segment, StepsDropped, Trainer
from plr_client.protocol import decode_reply
from plr_server import Config, Curriculum, launch
from plr_server.serving.dispatch import Dispatcher

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
NUM_LEVELS = 5
seen: list[Segment] = []


def record(segment):
    seen.append(segment)
    return 1.0, 1.0


def value_l1(segment):
    return np.abs(segment.advantages).mean(), np.abs(segment.advantages).max()


def one_step_td_error(segment):
    return np.abs(segment.td_errors).mean(), np.abs(segment.td_errors).max()


def maxmc(segment):
    best = segment.episode_return if segment.best_return is None else segment.best_return
    return (best - segment.values).mean(), (best - segment.values).max()


def min_margin(segment):
    p = np.exp(segment.logits)
    top = np.sort(p / p.sum(axis=1, keepdims=True), axis=1)[:, -2:]
    return (1 - (top[:, 1] - top[:, 0])).mean(), (1 - (top[:, 1] - top[:, 0])).max()


class Scores:
    @staticmethod
    def steps(segment):
        return segment.steps, segment.steps


not_a_function = 3


def frozen(curriculum):
    return pickle.dumps(curriculum.state())


def scored(curriculum):
    """{level: score} of the seen levels."""
    ids, scores, _, is_seen = curriculum.scores()
    return dict(zip(ids[is_seen].tolist(), scores[is_seen].tolist(), strict=True))


def curriculum_of(function, **fields):
    return Curriculum(Config(**{"levels": range(NUM_LEVELS), "strategy": f"test_functions:{function}", **fields}))


def episode(rewards, dones, *, level=0, **fields):
    """A block of one column."""
    return {
        "rewards": np.array(rewards, dtype=float)[:, np.newaxis],
        "dones": np.array(dones, dtype=bool)[:, np.newaxis],
        "levels": np.full((len(rewards), 1), level),
        **{name: np.array(x)[:, np.newaxis] if name != "next_values" else x for name, x in fields.items()},
    }


def segments_of(curriculum, *blocks):
    seen.clear()
    for block in blocks:
        curriculum.update(**block)
    return list(seen)


# ---- what a function is given


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    function=st.sampled_from([value_l1, one_step_td_error, maxmc, min_margin]),
    partial=st.sampled_from(["commit", "stitch"]),
)
def test_built_in_strategies_written_as_functions_score_the_same(seed, function, partial):
    rng = np.random.default_rng(seed)
    name = function.__name__
    fields = {"partial": partial, "alpha": 0.5, "max_score_coef": 0.25, "gamma": 0.9}
    ours = curriculum_of(name, **fields)
    built_in = Curriculum(Config(levels=range(NUM_LEVELS), strategy=name, **fields))
    for block in model.stream(rng, num_blocks=6, num_columns=3, num_levels=NUM_LEVELS):
        block["logits"] = rng.normal(size=(*block["dones"].shape, 3))
        assert ours.update(**block) == built_in.update(**block)
        assert scored(ours) == pytest.approx(scored(built_in), rel=1e-9, abs=1e-12)


def test_a_segment_holds_what_was_pushed_and_none_for_what_was_not():
    (bare,) = segments_of(curriculum_of("record"), {"dones": [[True]], "levels": [[3]]})
    assert bare == Segment(level=3, steps=1)
    (paid,) = segments_of(curriculum_of("record"), episode([1.0, 2.0], [0, 1]))
    assert paid.rewards.tolist() == [1.0, 2.0]
    assert (paid.episode_return, paid.best_return) == (3.0, 3.0)
    assert paid.values is paid.next_value is paid.td_errors is paid.advantages is paid.logits is paid.success is None
    (valued,) = segments_of(curriculum_of("record"), {"dones": [[True]], "levels": [[3]], "values": [[0.5]]})
    assert valued.values.tolist() == [0.5]
    assert valued.rewards is valued.episode_return is valued.best_return is valued.td_errors is None


def test_a_segment_of_everything():
    curriculum = curriculum_of("record", gamma=0.5, gae_lambda=0.5)
    block = episode(
        [1.0, 9.0, 2.0],
        [0, 0, 1],
        level=2,
        values=[1.0, 9.0, 4.0],
        next_values=[7.0],
        truncated=[False, False, True],
        final_values=[0.0, 0.0, 6.0],
        valid=[True, False, True],
        logits=[[0.0, 1.0], [9.0, 9.0], [2.0, 3.0]],
        successes=[False, False, True],
    )
    (segment,) = segments_of(curriculum, block)
    assert (segment.level, segment.steps, segment.steps_before) == (2, 2, 0)
    assert (segment.finished, segment.truncated, segment.success) == (True, True, True)
    assert segment.rewards.tolist() == [1.0, 2.0]
    assert segment.values.tolist() == [1.0, 4.0]
    assert segment.logits.tolist() == [[0.0, 1.0], [2.0, 3.0]]
    assert segment.next_value == 6.0
    assert segment.td_errors.tolist() == [1.0 + 0.5 * 4.0 - 1.0, 2.0 + 0.5 * 6.0 - 4.0]
    assert segment.advantages.tolist() == [2.0 + 0.25 * 1.0, 1.0]
    assert (segment.episode_return, segment.best_return) == (3.0, 3.0)
    assert all(type(x) is float for x in (segment.next_value, segment.episode_return, segment.best_return))


def test_the_value_to_bootstrap_with():
    ends = {"true": ([1], {}, 0.0), "cut by the block": ([0], {}, 7.0)}
    ends["by a time limit"] = ([1], {"truncated": [True], "final_values": [5.0]}, 5.0)
    for dones, fields, expected in ends.values():
        block = episode([1.0], dones, values=[1.0], next_values=[7.0], **fields)
        assert segments_of(curriculum_of("record"), block)[0].next_value == expected
    (told,) = segments_of(curriculum_of("record"), episode([1.0], [1], truncated=[True]))
    assert told.truncated
    assert told.next_value is None


def test_parts_know_what_came_before_and_whole_episodes_come_in_one():
    blocks = [episode([1.0, 2.0], [0, 0]), episode([3.0], [0]), episode([4.0, 5.0], [1, 1])]
    parts = segments_of(curriculum_of("record"), *blocks)
    assert [
        (part.steps_before, part.steps, part.finished, part.episode_return, part.best_return) for part in parts
    ] == [(0, 2, False, 3.0, None), (2, 1, False, 6.0, None), (3, 1, True, 10.0, 10.0), (0, 1, True, 5.0, 10.0)]
    whole = segments_of(curriculum_of("record", partial="stitch"), *blocks)
    assert [(one.steps_before, one.steps, one.episode_return) for one in whole] == [(0, 4, 10.0), (0, 1, 5.0)]


def test_a_return_of_which_some_rewards_are_missing_is_none():
    blocks = [{"dones": [[0]], "levels": [[0]]}, episode([1.0], [0]), episode([1.0, 2.0], [1, 1])]
    parts = segments_of(curriculum_of("record"), *blocks)
    assert [part.episode_return for part in parts] == [None, None, None, 2.0]
    assert [part.best_return for part in parts] == [None, None, None, 2.0]


def test_arrays_are_read_only():
    for segment in segments_of(curriculum_of("record"), episode([1.0], [1], values=[0.0], next_values=[0.0])):
        for array in (segment.rewards, segment.values, segment.td_errors, segment.advantages):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 9.0


def test_segments_come_in_the_order_of_application():
    block = {"dones": np.array([[0, 1, 0], [1, 1, 1]]), "levels": np.array([[0, 1, 2], [0, 3, 2]])}
    assert [segment.level for segment in segments_of(curriculum_of("record"), block)] == [1, 0, 3, 2]


@pytest.mark.parametrize("partial", ["commit", "stitch"])
def test_steps_pushed_one_by_one_score_as_the_block(partial):
    blocks = list(model.stream(np.random.default_rng(3), num_blocks=8, num_columns=3, num_levels=NUM_LEVELS))
    for block in blocks:
        num_steps = len(block["dones"])
        by_block, by_step = (curriculum_of("maxmc", partial=partial, num_steps=num_steps) for _ in range(2))
        by_block.update(**block)
        for t in range(num_steps):
            by_step.update_step(**{name: x if name == "next_values" else x[t] for name, x in block.items()})
        assert frozen(by_step) == frozen(by_block)


def test_fields_do_not_come_and_go_within_an_episode_or_a_block():
    stitched = curriculum_of("record", partial="stitch")
    stitched.update(**episode([1.0], [0]))
    before = frozen(stitched)
    with pytest.raises(InvalidInput, match="rewards: expected all through an episode or not at all, got none"):
        stitched.update(dones=[[1]], levels=[[0]])
    with pytest.raises(InvalidInput, match="values: expected all through an episode or not at all, got some"):
        stitched.update(**episode([1.0], [1], values=[1.0]))
    assert frozen(stitched) == before
    pooled = curriculum_of("record", num_steps=3)
    pooled.update_step(dones=[1], levels=[0], rewards=[1.0])
    before = frozen(pooled)
    with pytest.raises(InvalidInput, match="rewards: expected in every step of a block or in none, got none"):
        pooled.update_step(dones=[1], levels=[0])
    with pytest.raises(InvalidInput, match="next_values: expected in every step of a block or in none, got some"):
        pooled.update_step(dones=[1], levels=[0], rewards=[1.0], next_values=[1.0])
    assert frozen(pooled) == before


# ---- by name


def test_functions_are_found_by_their_dotted_name():
    curriculum = curriculum_of("Scores.steps")
    curriculum.update(**episode([1.0, 1.0], [0, 1]))
    assert scored(curriculum) == {0: 2.0}
    assert curriculum.stats()["strategy"] == "test_functions:Scores.steps"


@pytest.mark.parametrize(
    ("name", "got"),
    [
        ("no_such_module:f", "no_such_module:f (ModuleNotFoundError"),
        ("test_functions:missing", "AttributeError"),
        ("test_functions:not_a_function", "test_functions:not_a_function, which is a int"),
    ],
)
def test_what_cannot_be_imported_is_refused_when_the_curriculum_is_made(name, got):
    with pytest.raises(ConfigError) as raised:
        Curriculum(Config(strategy=name))
    assert raised.value.field == "strategy"
    assert got in raised.value.got


def test_what_the_server_cannot_import_is_refused_when_it_is_launched():
    with (
        pytest.raises(ConfigError, match=r"module:function that the server can import .* got no_such_module:f"),
        launch(Config(strategy="no_such_module:f")),
    ):
        pass


def test_a_module_that_fails_or_exits_is_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for i, line in enumerate(("1 / 0", "raise SystemExit(3)")):
        (tmp_path / f"broken_{i}.py").write_text(line)
        with pytest.raises(ConfigError, match="strategy"):
            Curriculum(Config(strategy=f"broken_{i}:f"))


def test_the_command_finds_a_module_in_the_folder_it_is_started_in(tmp_path, monkeypatch, ipc):
    (tmp_path / "my_scores.py").write_text("def fitness(segment):\n    return segment.steps, segment.steps\n")
    monkeypatch.setenv("PYTHONPATH", str(faults.__file__).rpartition("/tests/")[0])
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # as for the installed command, the folder is not on the path by itself
    monkeypatch.chdir(tmp_path)
    with launch(Config(strategy="my_scores:fitness"), ipc) as server, Trainer(server.address) as trainer:
        assert trainer.push(None, None, [[0], [1]], [[7], [7]], None) == 1
        assert trainer.scores()[1][7] == 2.0


# ---- what a function does wrong


def outcome(do):
    """A function that ignores its segment."""
    return lambda _segment: do()


def fail(error):
    raise error


class Unsayable(Exception):
    def __init__(self, text):
        self.text = text

    def __repr__(self):
        return self.text if isinstance(self.text, str) else fail(self.text)


class Unlistable:
    def __iter__(self):
        raise RuntimeError("no such thing")


def nested(depth):
    found = ()
    for _ in range(depth):
        found = (found,)
    return found


WRONG = {
    "is cancelled": (lambda: fail(asyncio.CancelledError()), "CancelledError()"),
    "raises what cannot be shown": (lambda: fail(Unsayable(ValueError("x"))), "a Unsayable that cannot be shown"),
    "raises what cannot be sent": (lambda: fail(Unsayable("\udc80")), "\\udc80"),
    "returns what is too deep to show": (lambda: nested(100_000), "a tuple that cannot be shown"),
    "returns a text and two numbers": (lambda: ("a", 1.0, 2.0), "('a', 1.0, 2.0)"),
    "returns what cannot be gone through": (Unlistable, "RuntimeError('no such thing')"),
    "raises": (lambda: fail(ValueError("no values")), "ValueError('no values')"),
    "exits": (lambda: sys.exit(3), "SystemExit(3)"),
    "returns None": (lambda: None, "None"),
    "returns one number": (lambda: 1.0, "1.0"),
    "returns three": (lambda: (1.0, 1.0, 1.0), "(1.0, 1.0, 1.0)"),
    "returns NaN": (lambda: (float("nan"), 1.0), "(nan, 1.0)"),
    "returns inf": (lambda: (1.0, float("inf")), "(1.0, inf)"),
    "returns too much": (lambda: (1.0, 2e30), "(1.0, 2e+30)"),
    "returns an int beyond floats": (lambda: (10**400, 1.0), "(1000"),
    "returns texts": (lambda: ("1", "1"), "('1', '1')"),
    "returns a text": (lambda: "12", "'12'"),
    "returns complex numbers": (lambda: (1j, 1.0), "(1j, 1.0)"),
    "returns arrays": (lambda: (np.ones(2), np.ones(2)), "(array("),
}


@pytest.mark.parametrize("partial", ["commit", "stitch"])
@pytest.mark.parametrize("case", WRONG)
def test_a_function_gone_wrong_changes_nothing(case, partial):
    do, got = WRONG[case]
    curriculum = Curriculum(Config(levels=range(NUM_LEVELS), partial=partial, num_steps=2))
    curriculum.set_score_function(
        cloudpickle.dumps(lambda segment: do() if segment.level == 4 else (segment.steps, segment.steps))
    )
    curriculum.update(**episode([1.0, 1.0], [1, 0]))
    step = {"dones": [True], "levels": [4], "rewards": [1.0]}
    curriculum.update_step(**step, source="b")
    before = frozen(curriculum)
    mixed = {name: np.concatenate([x, x], axis=1) for name, x in episode([1.0, 1.0], [1, 1]).items()}
    mixed["levels"] = np.array([[0, 1], [2, 4]])  # the last one fails
    with pytest.raises(ScoreFunctionError) as raised:
        curriculum.update(**mixed)
    assert raised.value.function.startswith("test_functions:")
    assert got in raised.value.reason
    assert frozen(curriculum) == before
    raised.value.to_wire()[1][1].encode()


def test_a_block_of_steps_that_a_function_fails_at_is_dropped_and_the_next_one_begins_anew():
    curriculum = Curriculum(Config(levels=range(NUM_LEVELS), partial="stitch", num_steps=2))
    failing, seen = [True], []

    def function(segment):
        seen.append(segment.rewards.tolist())
        return fail(ValueError("transient")) if failing[0] else (1.0, 1.0)

    curriculum._scorer.set_function(cloudpickle.dumps(fail))
    curriculum._scorer._function = function

    def push(reward, *, done=False, **fields):
        return curriculum.update_step(rewards=[reward], dones=[done], levels=[4], **fields)

    assert [push(0.0), push(1.0)] == [0, 0]  # an episode is open now
    push(2.0)
    with pytest.raises(StepsDropped, match=r"2 steps .*: score function .*ValueError\('transient'\)") as raised:
        push(3.0, done=True)
    assert raised.value.steps == 2
    assert seen == [[0.0, 1.0, 2.0, 3.0]]
    failing[0] = False
    assert [push(4.0), push(5.0, done=True)] == [0, 1]
    assert seen[1:] == [[4.0, 5.0]]  # not the steps before those that are missing


def test_any_real_numbers_will_do():
    for pair in ((np.float32(0.5), 1), [np.int64(2), True], (np.float64(-1.0), -0.5)):
        curriculum = Curriculum(Config(levels=range(2)))
        curriculum.set_score_function(cloudpickle.dumps(outcome(lambda pair=pair: pair)))
        curriculum.update(**episode([1.0], [1]))
        assert scored(curriculum) == {0: float(pair[0])}


# ---- sent by a client


@pytest.fixture(scope="module")
def trusting():
    with launch(Config(levels=range(NUM_LEVELS), num_steps=2), allow_pickle=True) as server:
        yield server


def test_a_function_sent_scores_from_then_on(trusting):
    scale = 3.0

    def scaled(segment):
        return scale * segment.episode_return, scale

    with Trainer(trusting.address, timeout_s=faults.DEADLINE_S) as trainer:
        trainer.push(**episode([1.0], [1], level=1, values=[0.5]), next_values=[0.0])
        trainer.set_score_function(scaled)
        trainer.push(None, [[2.0]], [[True]], [[2]], None)
        assert trainer.scores()[1][1:3].tolist() == [0.5, 6.0]  # the old score stays
        assert trainer.stats()["strategy"] == f"test_functions:{scaled.__qualname__}"
        trainer.set_score_function(functools.partial(lambda x, _segment: (x, x), 9.0))
        trainer.push(None, None, [[True]], [[2]], None)
        assert trainer.scores()[1][2] == 9.0


def test_what_it_raises_reaches_the_pusher(trusting):
    def picky(segment):
        if segment.level == 4:
            raise LookupError("level 4 is not for me")
        return 1.0, 1.0

    with Trainer(trusting.address, timeout_s=faults.DEADLINE_S) as trainer:
        trainer.set_score_function(picky)
        before = faults.seen_from_outside(trainer)
        with pytest.raises(ScoreFunctionError) as raised:
            trainer.push(None, None, [[True, True]], [[3, 4]], None)
        assert raised.value.function == f"test_functions:{picky.__qualname__}"
        assert raised.value.reason == "LookupError('level 4 is not for me')"
        assert str(faults.seen_from_outside(trainer)) == str(before)
        assert trainer.push(None, None, [[True]], [[3]], None) == 1


def test_the_traceback_is_in_the_servers_log(capfd, ipc):
    def picky(segment):
        raise LookupError(segment.level)

    with launch(Config(), ipc, allow_pickle=True) as server, Trainer(server.address) as trainer:
        trainer.set_score_function(picky)
        with pytest.raises(ScoreFunctionError):
            trainer.push(None, None, [[True]], [[3]], None)
    said = capfd.readouterr().err
    assert "Traceback (most recent call last)" in said
    assert "in picky" in said
    assert "LookupError: 3" in said
    assert "dispatch.py" not in said  # of the function alone


def test_a_server_takes_no_function_unless_its_operator_says_so(ipc):
    with launch(Config(), ipc) as server, Trainer(server.address) as trainer:
        before = faults.seen_from_outside(trainer)
        with pytest.raises(
            PickleRefused, match=r"allows it with plr-server serve --allow-pickle or launch\("
        ) as raised:
            trainer.set_score_function(lambda _segment: (1.0, 1.0))
        assert raised.value.op == "set_score_function"
        assert str(faults.seen_from_outside(trainer)) == str(before)


@pytest.mark.parametrize("host", ["0.0.0.0", "*", "192.0.2.7"])  # noqa: S104
def test_no_server_takes_functions_from_beyond_this_machine(host):
    said = faults.refused("--allow-pickle", "--insecure", "--bind", f"tcp://{host}:0")
    assert said == (
        "plr-server: allow_pickle: expected an ipc or loopback address, or keys: whoever reaches the server could run "
        f"code in it, got tcp://{host}:0\n"
    )


def test_a_named_curriculum_has_a_function_of_its_own(ipc):
    with (
        launch({"train": Config(), "eval": Config()}, ipc, allow_pickle=True) as server,
        Trainer(server.address, curriculum="train") as train,
        Trainer(server.address, curriculum="eval") as evaluation,
    ):
        train.set_score_function(lambda _segment: (1.0, 1.0))
        assert train.stats()["strategy"].startswith("test_functions:")
        assert evaluation.stats()["strategy"] == "value_l1"


def test_loopback_is_this_machine():
    with launch(Config(), "tcp://127.0.0.1:0", allow_pickle=True) as server, Trainer(server.address) as trainer:
        trainer.set_score_function(lambda _segment: (1.0, 1.0))


def ask(dispatcher, arrays, **args):
    frames = faults.request("set_score_function", arrays, args=args)
    return decode_reply([bytes(frame) for frame in dispatcher.answer(b"\x01peer", [bytes(frame) for frame in frames])])


GOOD = np.frombuffer(cloudpickle.dumps(outcome(lambda: (1.0, 1.0))), dtype=np.uint8)
BAD_REQUESTS = {
    "none": ({}, PYTHON, InvalidInput, "function: expected an array of uint8, a pickled function, got none"),
    "floats": ({"function": np.ones(3)}, PYTHON, InvalidInput, "got float64"),
    "another field": ({"function": GOOD, "x": GOOD}, PYTHON, InvalidInput, "x: expected a field among function"),
    "another Python": (
        {"function": GOOD},
        "3.2",
        InvalidInput,
        f"one pickled by Python {PYTHON}, the server's, got",
    ),
    "no Python": ({"function": GOOD}, None, InvalidInput, "got one by Python None"),
    "garbage": ({"function": GOOD[:-5]}, PYTHON, ScoreFunctionError, "when it was unpickled"),
    "nothing": ({"function": GOOD[:0]}, PYTHON, ScoreFunctionError, "EOFError"),
    "a number": (
        {"function": np.frombuffer(pickle.dumps(3), dtype=np.uint8)},
        PYTHON,
        InvalidInput,
        "function: expected a function, got a int",
    ),
    "a module that is not there": (
        {"function": np.frombuffer(b"cno_such_module\nf\n.", dtype=np.uint8)},
        PYTHON,
        ScoreFunctionError,
        "ModuleNotFoundError",
    ),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_bad_functions_change_nothing(case):
    arrays, python, kind, message = BAD_REQUESTS[case]
    curriculum = curriculum_of("record", partial="stitch")
    curriculum.update(**episode([1.0, 1.0], [1, 0]))
    before = frozen(curriculum)
    made = Dispatcher({"default": curriculum}, max_frame_bytes=1 << 20, allow_pickle=True)
    faults.begin(made, faults.SESSION)
    error = ask(made, arrays, **({} if python is None else {"python": python})).error
    assert type(error) is kind
    assert message in str(error)
    assert frozen(curriculum) == before


def test_a_function_sent_again_is_set_once():
    curriculum = Curriculum(Config(levels=range(NUM_LEVELS)))
    made = Dispatcher({"default": curriculum}, max_frame_bytes=1 << 20, allow_pickle=True)
    faults.begin(made, faults.SESSION)
    frames = faults.request("set_score_function", {"function": GOOD}, args={"python": PYTHON})
    first = made.answer(b"\x01peer", [bytes(frame) for frame in frames])
    curriculum.update(**episode([1.0], [0]))  # under way
    before = frozen(curriculum)
    assert made.answer(b"\x01peer", [bytes(frame) for frame in frames]) == first
    assert decode_reply([bytes(frame) for frame in first]).error is None
    assert frozen(curriculum) == before


def test_what_cannot_be_pickled_is_refused_at_the_caller(trusting):
    with Trainer(trusting.address) as trainer:
        lock = __import__("threading").Lock()
        with pytest.raises(InvalidInput, match="function: expected something that cloudpickle can pickle"):
            trainer.set_score_function(lambda _segment: lock)


def test_a_function_may_be_set_in_the_middle_of_things():
    """What waited for the strategy before is dropped; the episode goes on from its next step."""
    curriculum = Curriculum(Config(levels=range(NUM_LEVELS), partial="stitch", num_steps=3))
    part = episode([1.0], [0], values=[0.0], next_values=[0.0])
    curriculum.update(**part)
    curriculum.update_step(**{name: x if name == "next_values" else x[0] for name, x in part.items()}, source="b")
    curriculum.set_score_function(cloudpickle.dumps(lambda segment: (segment.steps, segment.steps)))
    assert curriculum.update(**episode([1.0, 1.0], [0, 1])) == 1
    assert scored(curriculum) == {0: 2.0}
    for t in range(3):
        assert curriculum.update_step(dones=[1], levels=[1], source="b") == 3 * (t == 2)


@pytest.mark.parametrize("strategy", ["maxmc", "test_functions:record"])
def test_best_returns_and_what_waits_for_a_function_stay_with_the_next_function(strategy):
    curriculum = Curriculum(Config(levels=range(NUM_LEVELS), strategy=strategy))
    curriculum.update(**episode([5.0], [1], values=[0.0]))
    curriculum.update(**episode([2.0], [0], level=1, values=[0.0]))
    curriculum.set_score_function(cloudpickle.dumps(lambda segment: (segment.best_return, segment.steps_before)))
    curriculum.update(**episode([1.0], [1]), source="b")
    curriculum.update(**episode([1.0], [1], level=1))
    assert scored(curriculum) == {0: 5.0, 1: 3.0}
    stitched = Curriculum(Config(levels=range(NUM_LEVELS), strategy="test_functions:record", partial="stitch"))
    stitched.update(**episode([2.0], [0]))
    stitched.set_score_function(cloudpickle.dumps(lambda segment: (segment.episode_return, segment.steps)))
    stitched.update(**episode([1.0], [1]))
    assert scored(stitched) == {0: 3.0}


def test_a_resumed_curriculum_goes_on_with_the_function_bit_for_bit():
    blocks = list(model.stream(np.random.default_rng(8), num_blocks=12, num_columns=3, num_levels=NUM_LEVELS, done=0.1))
    first = Curriculum(Config(levels=range(NUM_LEVELS), alpha=0.5, strategy="external"))
    first.set_score_function(cloudpickle.dumps(lambda s: (s.best_return or 0.0, s.steps_before + s.episode_return)))
    for block in blocks[:6]:
        first.update(**block)
    second = Curriculum.from_state(first.state())
    assert frozen(second) == frozen(first)
    for block in blocks[6:]:
        assert first.update(**block) == second.update(**block)
        assert first.sample(3) == second.sample(3)
    assert frozen(second) == frozen(first)
    assert scored(first)


def test_a_client_does_not_pay_for_cloudpickle():
    code = "import sys, plr_client; print('cloudpickle' in sys.modules, plr_client.Segment(level=1, steps=2).finished)"
    assert faults.run_script(code) == "False True\n"

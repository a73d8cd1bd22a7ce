"""plr_client/trainer.py against a real server."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

import faults
import numpy as np
import pytest

from plr_client import (
    InvalidInput,
    LevelOutsideSpace,
    MessageTooLarge,
    MissingField,
    ServerUnreachable,
    StateNotWritten,
    Trainer,
    connection,
)
from plr_client.exchange import MAX_UNDER_WAY
from plr_server import Config, Curriculum, launch
from plr_server.durability.journal import Journal
from plr_server.durability.state_dir import StateDir
from plr_server.serving.dispatch import Dispatcher
from plr_server.serving.restart import restart

RNG = np.random.default_rng(7)


def random_block(num_steps=12, num_columns=3):
    """A block whose level changes exactly after a done."""
    dones = RNG.random((num_steps, num_columns)) < 0.3
    episodes = np.cumsum(np.vstack([np.zeros(num_columns), dones[:-1]]), axis=0).astype(int)
    return {
        "values": RNG.normal(size=dones.shape).astype(np.float32),
        "rewards": RNG.normal(size=dones.shape).astype(np.float32),
        "dones": dones,
        "levels": (episodes + np.arange(num_columns)) % 10,
        "next_values": RNG.normal(size=num_columns),
    }


def steps_of(block):
    """The same block, one step after the other, each with V of the next observation."""
    following = np.vstack([block["values"][1:], block["next_values"]])
    for t in range(len(block["dones"])):
        fields = {name: block[name][t] for name in ("values", "rewards", "dones", "levels")}
        yield fields | {"next_values": following[t]}


# ---- pushes that are not waited for


@pytest.mark.parametrize("wait", ["no", 0, 1, None, []])
def test_a_flag_that_is_no_bool_is_refused_before_anything_is_sent(trainer, wait):
    before = trainer.counters()
    for push in (
        lambda: trainer.push(**random_block(), wait=wait),
        lambda: trainer.push_step(**next(steps_of(random_block())), wait=wait),
        lambda: trainer.push_scores([1], [0.5], wait=wait),
    ):
        with pytest.raises(InvalidInput, match=r"^wait: expected True or False, got "):
            push()
    assert trainer.counters() == before


def test_pushes_that_are_not_waited_for_are_applied_in_order_before_what_is_asked_next():
    config = Config(levels=range(10), num_steps=3, alpha=0.5)
    curriculum = Curriculum(config)
    with launch(config) as server, Trainer(server.address) as trainer:
        for number in range(40):
            scores, block = np.full(3, float(number)), random_block()
            assert trainer.push_scores([1, 2, 3], scores, wait=False) == 0
            assert trainer.push(**block, wait=False) == 0
            curriculum.update_scores([1, 2, 3], scores.copy())
            curriculum.update(**block)
            for step in steps_of(block):
                assert trainer.push_step(**step, wait=False) == 0
                curriculum.update_step(**step)
            for array in (scores, *block.values()):
                array[:] = 0  # which nobody has to wait for
        assert trainer.scores()[1].tolist() == curriculum.scores()[1].tolist()
        trainer.flush()
        assert trainer.counters()["pushes"] == curriculum.counters()["pushes"]


def test_an_error_of_a_push_that_was_not_waited_for_is_raised_by_the_next_call(trainer):
    before, raised = trainer.counters()["pushes"], []

    def done(call, *args, **options):
        try:
            call(*args, **options)
        except LevelOutsideSpace as error:
            raised.append(error.got)
            return False
        return True

    for level in (1, 99, 2, 98):
        while not done(trainer.push_scores, [level], [0.5], wait=False):
            pass
    while not done(trainer.flush):
        pass
    assert raised == ["level 99", "level 98"]
    assert trainer.counters()["pushes"] == before + 2
    trainer.push_scores([97], [0.5], wait=False)
    trainer._connection._wait_for(trainer._connection._exchange.oldest)
    with pytest.raises(LevelOutsideSpace, match="got level 97"):
        trainer.push_scores([1], [0.5])
    assert trainer.counters()["pushes"] == before + 2  # that one was not sent
    trainer.push_scores([96], [0.5], wait=False)
    with pytest.raises(LevelOutsideSpace, match="got level 96"):
        trainer.close()
    assert trainer.push_scores([1], [0.5]) == 1


def test_a_push_on_a_fresh_connection_reaches_the_server_though_nothing_else_is_asked(trainer, server, monkeypatch):
    monkeypatch.setattr(connection, "HELLO_S", faults.DEADLINE_S)  # so long only where the machine is slow
    before = trainer.counters()["pushes"]
    with Trainer(server.address) as fresh:
        fresh.push_scores([1], [0.5], wait=False)
        faults.eventually(lambda: trainer.counters()["pushes"] == before + 1, "the push is applied")
        assert fresh._connection._exchange.unanswered == 1  # nobody has asked for the reply


def test_a_push_does_not_wait_for_a_server_that_is_not_there(ipc):
    with Trainer(ipc, timeout_s=faults.DEADLINE_S) as trainer:
        for _ in range(3):
            assert trainer.push_scores([1], [0.5], wait=False) == 0
        with faults.daemon(ipc):
            trainer.flush()
            assert trainer.counters()["pushes"] == 3


def test_so_many_pushes_are_under_way_and_the_next_one_waits(ipc):
    with faults.daemon(ipc) as server, Trainer(ipc, timeout_s=faults.DEADLINE_S) as trainer:
        before = trainer.counters()["pushes"]
        trainer._connection.timeout_s = 0.5
        server.process.send_signal(signal.SIGSTOP)
        for _ in range(MAX_UNDER_WAY):
            trainer.push_scores([1], [0.5], wait=False)
        for call in (lambda: trainer.push_scores([1], [0.5], wait=False), trainer.flush):
            with pytest.raises(ServerUnreachable):
                call()
        server.process.send_signal(signal.SIGCONT)
        trainer._connection.timeout_s = faults.DEADLINE_S
        trainer.flush()
        assert trainer.counters()["pushes"] == before + MAX_UNDER_WAY


def test_what_a_server_had_not_on_its_disk_when_the_power_was_lost_is_sent_again(ipc, tmp_path):
    options = ("--levels", "0:10", "--strategy", "external", "--alpha", "0.5", "--state-dir", str(tmp_path / "state"))
    expected = 0.0
    with Trainer(ipc, timeout_s=faults.DEADLINE_S) as trainer:
        for run in range(2):
            with faults.daemon(ipc, *options) as server:
                for number in range(30 * run, 30 * run + 30):
                    trainer.push_scores([1], [float(number)], wait=number % 3 == 0)
                    expected = 0.5 * expected + 0.5 * number
                assert trainer.scores()[1][1] == expected
                server.kill()
                faults.lose_what_was_not_synced(tmp_path / "state")
        with faults.daemon(ipc, *options):
            assert trainer.counters()["pushes"] == 60
            assert trainer.scores()[1][1] == expected
            trainer.flush()
            counters = trainer.counters()
            assert counters["durable_commands"] == counters["commands"]
            assert trainer._connection._exchange.kept_bytes == 0


def test_a_push_waits_while_too_much_is_not_on_the_disk_and_then_says_so(ipc, monkeypatch):
    """The server's disk never gets done with a sync."""
    monkeypatch.setattr(connection, "MAX_KEPT_BYTES", 3_000)
    dispatcher = Dispatcher({"default": Curriculum(Config(levels=range(10)))}, max_frame_bytes=1 << 20)
    block = {name: np.zeros((1000, 1)) for name in ("values", "rewards", "dones")}
    block |= {"levels": np.zeros((1000, 1), int), "next_values": np.zeros(1)}
    with contextlib.ExitStack() as stack:
        log = StateDir(Path(ipc.removeprefix("ipc://")).parent / "state")
        stack.callback(log.close)
        restart(dispatcher, log)
        stack.enter_context(faults.answering(dispatcher, ipc, log))
        stuck = stack.enter_context(pytest.MonkeyPatch.context())
        stuck.setattr(Journal, "sync_behind", lambda _: None)
        trainer = stack.enter_context(Trainer(ipc, timeout_s=faults.DEADLINE_S))
        trainer.push(**block)
        trainer._connection.timeout_s = 0.3
        with pytest.raises(
            StateNotWritten, match=r"push: .*bytes of earlier requests are not on its disk after 0\.3 s"
        ):
            trainer.push(**block)
        assert trainer.counters()["pushes"] == 1
        with pytest.raises(StateNotWritten, match="flush: "):
            trainer.flush()
        stuck.undo()
        trainer._connection.timeout_s = faults.DEADLINE_S
        trainer.push(**block)
        trainer.flush()
        assert trainer.counters()["durable_commands"] == 3


# ---- what costs the server nothing


def test_counters_and_the_description_of_every_curriculum():
    configs = {"train": Config(levels=(3, 1)), "eval": Config(levels=range(9), strategy="sequential")}
    with launch(configs) as server, Trainer(server.address, curriculum="train") as trainer:
        trainer.push_scores([1], [0.5])
        stats = trainer.stats()
        counters = trainer.counters()
        assert (counters["pushes"], counters["levels_seen"], counters["levels"]) == (1, 1, 2)
        assert counters == {name: stats[name] for name in counters}
        with Trainer(server.address) as of_none:  # there is no curriculum "default"
            described = of_none.describe()
    assert described == {"train": configs["train"].to_dict() | {"levels": "2 ids"}, "eval": configs["eval"].to_dict()}


# ---- what arrives is what was pushed


def test_the_server_does_exactly_what_the_curriculum_does():
    config = Config(levels=range(10), num_steps=12, alpha=0.5)
    curriculum = Curriculum(config)
    with launch(config) as server, Trainer(server.address) as trainer:
        block = random_block()
        assert trainer.push(**block) == curriculum.update(**block)
        truncated = random_block()
        truncated |= {"truncated": truncated["dones"], "final_values": RNG.normal(size=(12, 3)), "columns": [4, 0, 9]}
        truncated["valid"] = np.ones((12, 3), dtype=bool)
        truncated["valid"][-1] = False
        assert trainer.push(**truncated) == curriculum.update(**truncated)
        for step in steps_of(random_block()):
            assert trainer.push_step(**step) == curriculum.update_step(**step)
        assert (
            trainer.push_scores([1, 2, 1], [0.5, 1.5, -0.5])
            == curriculum.update_scores([1, 2, 1], [0.5, 1.5, -0.5])
            == 3
        )
        assert faults.same(trainer.scores(), curriculum.scores())
        assert faults.same(trainer.weights(), curriculum.weights())
        assert faults.same(trainer.table(), curriculum.table())
        assert faults.same(trainer.table(3, 5), curriculum.table(3, 5))
        with pytest.raises(InvalidInput, match="begin: expected a row, an integer from 0 on, got -1"):
            trainer.table(-1)
        stats = trainer.stats()
        assert (stats.pop("sessions"), stats.pop("prefetched"), stats.pop("prefetch_lag_pushes")) == (1, 0, 0.0)
        assert faults.same(stats, curriculum.stats())
        assert (stats["pushes"], stats["steps"]) == (4, 36 + 33 + 36)


def test_logits_arrive():
    config = Config(levels=range(10), strategy="min_margin")
    curriculum = Curriculum(config)
    block = {"dones": random_block()["dones"], "logits": RNG.normal(size=(12, 3, 5)).astype(np.float16)}
    block["levels"] = np.zeros((12, 3), dtype=int)
    with launch(config) as server, Trainer(server.address) as trainer:
        pushed = {"values": None, "rewards": None, "next_values": None} | block
        assert trainer.push(**pushed) == curriculum.update(**block)
        assert faults.same(trainer.scores(), curriculum.scores())
        with pytest.raises(MissingField) as raised:
            trainer.push(**pushed | {"logits": None})
        assert str(raised.value) == "logits: expected an array: the strategy min_margin needs it, got none"
        assert faults.same(trainer.scores(), curriculum.scores())


def test_episode_starts_stand_for_dones():
    block = random_block()
    starts = np.vstack([np.ones((1, 3), dtype=bool), block["dones"][:-1]])
    after = block["dones"][-1]
    config = Config(levels=range(10), num_steps=12)
    curriculum = Curriculum(config)
    with launch(config) as server, Trainer(server.address) as trainer:
        for dtype in (bool, np.float32):  # CleanRL keeps floats
            given = {"episode_starts": starts.astype(dtype), "next_episode_starts": after.astype(dtype)}
            assert trainer.push(**block | {"dones": None}, **given) == curriculum.update(**block)
        for step in steps_of(block):
            given = {"next_episode_starts": step["dones"]}
            assert trainer.push_step(**step | {"dones": None}, **given) == curriculum.update_step(**step)
        assert faults.same(trainer.scores(), curriculum.scores())


def test_dones_and_what_stands_for_them_are_not_given_both(trainer):
    block = faults.block()
    step = {name: value[0] for name, value in block.items()} | {"next_values": block["next_values"]}
    before = faults.seen_from_outside(trainer)
    with pytest.raises(InvalidInput, match="dones: expected None beside next_episode_starts, which stands for it, got"):
        trainer.push_step(**step, next_episode_starts=[True, True])
    with pytest.raises(InvalidInput, match="dones: expected None beside episode_starts, which stands for it, got both"):
        trainer.push(**block, episode_starts=block["dones"], next_episode_starts=[True, True])
    with pytest.raises(MissingField, match="episode_starts: expected an array"):
        trainer.push(**block, next_episode_starts=[True, True])
    assert faults.same(faults.seen_from_outside(trainer), before)


def test_plain_lists_will_do(trainer):
    fields = {name: value.tolist() for name, value in faults.block().items()}
    assert trainer.push(**fields) == 3


def test_arrays_have_the_promised_shapes_and_dtypes(trainer):
    ids, scores, staleness, seen = trainer.scores()
    assert [array.dtype for array in (ids, scores, staleness, seen)] == [np.int64, np.float64, np.int64, np.bool_]
    assert {array.shape for array in (ids, scores, staleness, seen, trainer.weights())} == {(10,)}
    assert ids.tolist() == list(range(10))


# ---- what is refused


@pytest.mark.parametrize("name", faults.BAD_PUSHES)
def test_bad_pushes_raise_one_clear_error_and_change_nothing(trainer, name):
    changes, kind, field, text = faults.BAD_PUSHES[name]
    trainer.push(**faults.block())
    before = faults.seen_from_outside(trainer)
    with pytest.raises(InvalidInput) as raised:
        trainer.push(**faults.block(**changes))
    assert (type(raised.value), raised.value.field) == (kind, field)
    assert str(raised.value).startswith(f"{field}: expected {text}")
    assert faults.same(faults.seen_from_outside(trainer), before)
    assert trainer.push(**faults.block()) == 3


NO_ARRAYS = {
    "text": (np.array([["a"]]), "values: expected numbers or bools in a full array, got dtype <U1"),
    "objects": (np.array([[None]]), "values: expected numbers or bools in a full array, got dtype object"),
    "complex": (np.array([[1j]]), "values: expected numbers or bools in a full array, got dtype complex128"),
    "ragged": (
        [[1.0], [1.0, 2.0]],
        "values: expected something numpy can turn into an array (a tensor: .detach().cpu())",
    ),
    "longdouble": (np.zeros((3, 2), np.longdouble), "values: expected an array of bool, integers or floats, got dtype"),
}


@pytest.mark.parametrize("name", NO_ARRAYS)
def test_what_is_no_array_of_numbers_is_refused_before_it_is_sent(trainer, name):
    values, text = NO_ARRAYS[name]
    with pytest.raises(InvalidInput) as raised:
        trainer.push(**faults.block(values=values))
    assert str(raised.value).startswith(text)
    assert trainer.push(**faults.block()) == 3


class GpuTensor:
    def __array__(self, dtype=None, copy=None):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


def test_a_tensor_that_refuses_to_become_an_array_tells_the_way_out(trainer):
    with pytest.raises(InvalidInput) as raised:
        trainer.push(**faults.block(rewards=GpuTensor()))
    assert str(raised.value) == (
        "rewards: expected something numpy can turn into an array (a tensor: .detach().cpu()), "
        "got can't convert cuda:0 device type tensor to numpy"
    )


STARTS = faults.block()["dones"]
BAD_STARTS = {
    "beside dones": (
        {"episode_starts": STARTS, "next_episode_starts": STARTS[0]},
        InvalidInput,
        "dones: expected None beside episode_starts, which stands for it, got both",
    ),
    "without the last": (
        {"dones": None, "episode_starts": STARTS},
        MissingField,
        "next_episode_starts: expected an array (N,) with episode_starts, got none",
    ),
    "of another N": (
        {"dones": None, "episode_starts": STARTS, "next_episode_starts": STARTS[0, :1]},
        InvalidInput,
        "next_episode_starts: expected shape (2,), got shape (1,)",
    ),
}


@pytest.mark.parametrize("name", BAD_STARTS)
def test_bad_episode_starts(trainer, name):
    changes, kind, message = BAD_STARTS[name]
    with pytest.raises(InvalidInput) as raised:
        trainer.push(**faults.block(**changes))
    assert (type(raised.value), str(raised.value)) == (kind, message)


BAD_SCORES = {
    "a level outside": (
        ([10], [1.0]),
        LevelOutsideSpace,
        "levels: expected one of the 10 levels of range(0, 10), got level 10",
    ),
    "other lengths": (
        ([1, 2], [1.0]),
        InvalidInput,
        "scores: expected shape (2,) of numbers, got shape (1,) of float64",
    ),
    "NaN": (([1], [np.nan]), InvalidInput, "scores: expected finite numbers up to 1e+30 in magnitude, got nan"),
    "levels of floats": (
        ([1.0], [1.0]),
        InvalidInput,
        "levels: expected shape (m,) of integers, got shape (1,) of float64",
    ),
}


@pytest.mark.parametrize("name", BAD_SCORES)
def test_bad_scores_raise_and_change_nothing(trainer, name):
    arguments, kind, message = BAD_SCORES[name]
    before = faults.seen_from_outside(trainer)
    with pytest.raises(InvalidInput) as raised:
        trainer.push_scores(*arguments)
    assert (type(raised.value), str(raised.value)) == (kind, message)
    assert faults.same(faults.seen_from_outside(trainer), before)


def test_a_refused_step_leaves_the_block_before_it_intact(trainer):
    fields = {name: value[0] for name, value in faults.block().items() if name != "next_values"}
    fields |= {"dones": [False, False], "next_values": [0.0, 0.0]}
    assert trainer.push_step(**fields) == 0
    with pytest.raises(
        InvalidInput,
        match=r"^levels: expected level 3 until a done in column 0 .*close\(\) the trainer.*, got level 5$",
    ):
        trainer.push_step(**fields | {"levels": [5, 4]})
    assert [trainer.push_step(**fields) for _ in range(2)] == [0, 2]  # num_steps=3


def test_more_bytes_than_the_server_takes_are_not_sent(ipc):
    with (
        faults.daemon(ipc, "--levels", "0:10", "--max-frame-bytes", "100000") as server,
        Trainer(server.address) as trainer,
    ):
        trainer.push(**faults.block())
        before = faults.seen_from_outside(trainer)
        block = {name: np.zeros((100, 126), dtype=value.dtype) for name, value in faults.block().items()}
        block["next_values"] = np.zeros(126)
        with pytest.raises(MessageTooLarge) as raised:
            trainer.push(**block)
        assert (raised.value.field, raised.value.limit, raised.value.got) == ("levels", 100_000, 100_800)
        assert str(raised.value) == (
            "levels: expected at most 100000, got 100800; push smaller blocks or raise the server's --max-frame-bytes"
        )
        assert faults.same(faults.seen_from_outside(trainer), before)
        assert trainer.push(**{name: value[..., :125] for name, value in block.items()}) == 125  # the limit itself

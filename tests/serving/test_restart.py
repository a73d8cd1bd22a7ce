"""A server that is killed and started again goes on as if nothing had been: in-process bit for bit, and real ones."""

from __future__ import annotations

import contextlib
import copy
import errno
import gc
import itertools
import os
import resource
import shutil
import signal
import threading
import weakref

import faults
import model
import numpy as np
import pytest

from plr_client import (
    ConfigError,
    InvalidInput,
    LevelClient,
    PickleRefused,
    StateDirTaken,
    StateDiverged,
    StateNotWritten,
    StateRolledBack,
    Trainer,
)
from plr_client.exchange import HANG_UP, Exchange
from plr_client.protocol import decode_reply, join_payloads, pack_payload
from plr_server import Config, Curriculum, launch
from plr_server.curriculum import state_machine
from plr_server.curriculum.scoring.strategies import STRATEGIES
from plr_server.durability import files, state_dir
from plr_server.durability.state_dir import StateDir
from plr_server.serving import loop as loop_module
from plr_server.serving.dispatch import Dispatcher, framed, unframed
from plr_server.serving.endpoint import listening
from plr_server.serving.loop import _Loop
from plr_server.serving.restart import restart
from plr_server.serving.wire import Wire

PEER = b"\x01peer"
LEVELS = {"range": "0:40", "unbounded": "unbounded", "payloads": "payloads"}
COMMANDS = ("next", "push", "push_step") * 3 + (
    "push_scores",
    "insert",
    "stats",
    "again",
    "hello",
    "release",
    "goodbye",
)


class Server:
    """A dispatcher on a state folder, in this process."""

    def __init__(self, path, config, *, allow_pickle=False, **options):
        self.path, self.config = path, config
        self.dispatcher = Dispatcher(
            {"default": Curriculum(config)}, max_frame_bytes=1 << 20, epoch=1, allow_pickle=allow_pickle
        )
        self.log = None
        if path is not None:
            self.log = StateDir(path, **options)
            try:
                restart(self.dispatcher, self.log)
            except BaseException:
                self.log.close()
                raise

    def ask(self, frames, peer=PEER):
        reply = decode_reply([bytes(frame) for frame in self.dispatcher.answer(peer, frames)])
        if self.log is not None:
            assert self.log.commit()
            self.log.look_after()
        return reply

    def killed(self):
        """Another server, started on what this one would leave if it were killed now; its clients say hello."""
        copy = self.path.with_name(f"{self.path.name}'")
        shutil.copytree(self.path, copy)
        self.log.close()
        server = Server(copy, self.config)
        for name in server.dispatcher.sessions:
            assert server.ask(faults.hello(name, seq=1_000_000)).error is None
        return server


@pytest.fixture
def servers(tmp_path):
    """Makes servers in this process; their folders are let go at the end."""
    made = []

    def server(config=None, path=None, **options):
        made.append(Server(path or tmp_path / "state", config or Config(levels=range(10), num_steps=3), **options))
        return made[-1]

    yield server
    for each in made:
        each.log.close()


def test_a_push_that_was_refused_for_want_of_space_stays_refused(servers, monkeypatch):
    """Its client was told that it was not applied, and may have pushed again: a late copy must not be."""
    server = servers()
    server.ask(faults.hello())
    push = faults.request("push", faults.block(), seq=2)

    def write(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files, "write", write)
        told = server.ask(push).error
        assert isinstance(told, StateNotWritten)
    before = server.dispatcher.state()
    assert str(server.ask(push).error) == str(told)
    assert faults.same(server.dispatcher.state(), before)
    assert server.ask(faults.request("push", faults.block(), seq=3)).result["scored"]
    assert server.ask(push).error.code == "out_of_step"


UNKNOWN = {
    "an array of next": ("next", {"args": {"k": 1}, "arrays": {"junk": np.zeros(50_000)}}, "junk: expected a field"),
    "an argument of next": ("next", {"args": {"k": 1, "junk": "x" * 50_000}}, "junk: expected an argument among"),
    "an array of hello": ("hello", {"arrays": {"junk": np.zeros(50_000)}}, "junk: expected no array of hello"),
    "an argument of hello": ("hello", {"args": {"junk": "x" * 50_000}}, "junk: expected an argument among pid, run"),
    "a long pid": ("hello", {"args": {"pid": "x" * 50_000}}, "pid: expected an int or None"),
    "an array of goodbye": ("goodbye", {"arrays": {"junk": np.zeros(50_000)}}, "junk: expected no array of goodbye"),
    "an argument of goodbye": ("goodbye", {"args": {"junk": "x" * 50_000}}, "junk: expected no argument of goodbye"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_a_workers_request_does_not_know_is_not_written_down(servers, name):
    """A worker may say these, and could fill the journal with what nobody reads."""
    op, fields, text = UNKNOWN[name]
    server = servers()
    server.ask(faults.hello())
    before, written = server.dispatcher.state(), server.log.sequence
    session = "new" if op == "hello" else faults.SESSION
    error = server.ask(faults.request(op, session=session, **fields)).error
    assert isinstance(error, InvalidInput)
    assert str(error).startswith(text)
    assert server.log.sequence == written
    assert faults.same(server.dispatcher.state(), before)
    assert server.ask(faults.request("next", args={"k": 1})).error is None


@pytest.mark.parametrize("when", ["its levels are held", "its levels are gone"])
def test_a_reply_of_payloads_is_repeated_after_a_restart(servers, when):
    """Also where the levels were taken back, and others have come in their place."""
    server = servers(Config(levels="payloads", capacity=4, num_steps=3))
    server.ask(faults.hello())
    server.ask(faults.hello("trainer"))

    def insert(seq, first):
        new = join_payloads([pack_payload([first + each] * 1000) for each in range(4)]) | {
            "scores": np.full(4, seq + 0.5)
        }
        assert server.ask(faults.request("insert", new, session="trainer", seq=seq)).error is None

    insert(2, 0)
    asked = faults.request("next", args={"k": 4})
    reply = server.ask(asked)
    assert reply.error is None
    if when == "its levels are gone":
        server.dispatcher.release(faults.SESSION)
        insert(3, 100)
        lost = faults.request("levels", {"levels": np.unique(reply.result["levels"])}, session="trainer", seq=4)
        assert server.ask(lost).error is not None
    server.log.save()
    again = server.killed().ask(faults.request("next", args={"k": 4}, connection=1))
    assert again.result == reply.result
    assert faults.same(again.arrays, reply.arrays)


# ---- bit for bit


class Clients:
    """Three clients that say what comes to their minds, the same for every server that hears them."""

    def __init__(self, config, seed):
        self.config, self.rng = config, np.random.default_rng(seed)
        levels = config.capacity if isinstance(config.levels, str) else len(config.levels)
        self.blocks = [model.stream(self.rng, num_blocks=1000, num_columns=2, num_levels=min(levels, 8)) for _ in "abc"]
        self.names, self.sequence, self.said, self.inserted = ["a", "b", "c"], [0, 0, 0], [None] * 3, 0

    def next(self):
        """Returns what the next one says; or, where the server is to decide about one, its name."""
        client = int(self.rng.integers(3))
        op = str(self.rng.choice(COMMANDS)) if self.sequence[client] else "hello"
        name = self.names[client]
        if op == "again":
            return self.said[client]
        if op == "release":
            return name
        self.sequence[client] += 1
        args, arrays = self._fields(op, client)
        frames = faults.request(op, arrays, seq=self.sequence[client], session=name, args=args)
        self.said[client] = [bytes(frame) for frame in frames]
        if op == "goodbye":
            self.names[client], self.sequence[client] = f"{name}+", 0
        return self.said[client]

    def _fields(self, op, client):
        if op == "next":
            k = int(self.rng.integers(1, 20))
            ahead = bool(self.rng.random() < 0.5)
            return {"k": k, "begun": self.rng.integers(0, 20, k).tolist(), "ahead": ahead}, {}
        if op in ("push", "push_step"):
            block = next(self.blocks[client])
            block["logits"] = self.rng.normal(size=(*block["dones"].shape, 3))
            strategy = STRATEGIES[self.config.strategy]
            wanted = {"dones", "levels", "valid", *strategy.needs}
            if op == "push_step":
                block = {key: x if key == "next_values" else x[0] for key, x in block.items()}
            return {}, {key: x for key, x in block.items() if key in wanted}
        if op == "push_scores":
            return {}, {"levels": self.rng.integers(0, 8, 5), "scores": self.rng.normal(size=5)}
        if op == "insert":
            self.inserted += 1
            packed = [bytes([0xCD, *divmod(256 + self.inserted * 4 + i, 256)]) for i in range(4)]
            joined = np.frombuffer(b"".join(packed), np.uint8)
            return {}, {"payloads": joined, "payload_bytes": np.full(4, 3)}
        return {}, {}


@pytest.mark.parametrize("space", LEVELS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_killed_at_any_time_a_server_is_bit_for_bit_the_one_that_never_was(tmp_path, monkeypatch, strategy, space):
    if space != "range" and strategy in ("random", "sequential"):
        with pytest.raises(ConfigError):
            Config(levels=LEVELS[space], strategy=strategy)
        return
    monkeypatch.setattr(state_dir, "DIGEST_AFTER_COMMANDS", 7)
    monkeypatch.setattr(state_dir, "SNAPSHOT_AFTER_COMMANDS", 23)
    monkeypatch.setattr(state_dir, "ThreadPoolExecutor", faults.AtOnce)
    config = Config(
        levels=LEVELS[space],
        capacity=12,
        strategy=strategy,
        transform=("rank", "softmax", "power")[len(strategy) % 3],
        temperature=0.3,
        partial=("commit", "stitch")[len(strategy) % 2],
        num_steps=3,
        replay_prob=0.7,
        max_in_flight=2 * (len(strategy) % 2),
        seed=5,
    )
    clients, never = Clients(config, seed=len(strategy)), Server(None, config)
    server, applied = Server(tmp_path / "state", config), 0
    for number in range(160):
        said = clients.next()
        if isinstance(said, str):
            never.dispatcher.release(said)
            server.dispatcher.release(said)
            continue
        expected, reply = never.ask(said), server.ask(said)
        assert (reply.id, str(reply.error)) == (expected.id, str(expected.error))
        if b"stats" not in said[0] and b"hello" not in said[0]:  # which tell of what was only asked, too
            assert faults.same(reply[4:6], expected[4:6])
        applied += reply.error is None
        if number % 20 == 19:
            server = server.killed()
            assert faults.same(server.dispatcher.state(), never.dispatcher.state())
    server.log.close()
    assert applied > 80


def test_a_request_is_the_same_after_it_was_written_down():
    frames = [b"header", np.arange(5.0), b""]
    payload = memoryview(b"".join(bytes(each) for each in framed([bytes(frame) for frame in frames])))
    assert [bytes(frame) for frame in unframed(payload)] == [bytes(frame) for frame in frames]


# ---- exactly once


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("op", ["next", "push", "push_scores"])
def test_a_request_that_comes_again_after_a_restart_is_applied_once_and_answered_the_same(servers, op, saved):
    arrays = {"push": faults.block(), "push_scores": {"levels": np.arange(3), "scores": np.ones(3)}}.get(op, {})
    frames = faults.request(op, arrays, args={"k": 2} if op == "next" else {})
    first = servers()
    first.ask(faults.hello())
    reply, state = first.ask(frames), first.dispatcher.state()
    assert reply.error is None
    if saved:
        first.log.save()
    second = first.killed()
    again = second.ask(frames)
    assert (again.id, again.error, again.result) == (reply.id, None, reply.result)
    assert again.durable == 2
    assert faults.same(second.dispatcher.state(), state)
    second.log.close()


def test_who_said_goodbye_or_was_forgotten_is_so_after_a_restart(servers):
    first = servers()
    for name in ("said goodbye", "forgotten", "stays"):
        first.ask(faults.hello(name))
    first.ask(faults.request("goodbye", session="said goodbye"))
    first.dispatcher.forget("forgotten")
    second = first.killed()
    assert list(second.dispatcher.sessions) == ["stays"]
    for name, expected in (("said goodbye", "session_expired"), ("forgotten", "session_expired"), ("stays", None)):
        error = second.ask(faults.request("push", faults.block(), session=name)).error
        assert (None if error is None else error.code) == expected
    assert second.ask(faults.hello("said goodbye")).error.code == "session_expired"  # a late copy
    second.log.close()


def test_replies_say_what_is_durable(servers):
    server = servers(fsync="interval")
    server.ask(faults.hello())
    assert server.ask(faults.request("push", faults.block())).durable < 2
    faults.eventually(lambda: server.log.look_after() or server.log.durable == 2, "it is on the disk")
    reply = server.ask(faults.request("stats", seq=3))
    assert (reply.position, reply.durable) == (0, 2)
    reply = server.ask(faults.request("push", faults.block(), seq=4))
    assert (reply.position, reply.durable, reply.epoch) == (3, 2, server.log.epoch)
    assert server.ask(faults.request("push", faults.block(), seq=4)).position == 3  # it comes again
    assert server.ask(faults.request("sync", seq=5)).error is None
    faults.eventually(lambda: server.ask(faults.request("sync", seq=6)).durable == 3, "it has hurried")


def test_sessions_of_the_run_before_that_do_not_come_back_are_forgotten(servers, ipc, monkeypatch):
    monkeypatch.setattr(loop_module, "AFTER_RESTART_S", 0.0)
    first = servers()
    first.ask(faults.hello("gone"))
    first.ask(faults.request("next", session="gone", args={"k": 2}))
    second = first.killed()
    assert second.dispatcher.curricula["default"].stats()["in_flight"] == 2

    wire = Wire(1 << 20)
    with contextlib.closing(wire), listening(wire.router, ipc):
        wire.take_files()
        wire.guards(ipc)
        _Loop(second.dispatcher, wire, None, second.log)._do_what_is_due()
        wire.close()
    assert not list(second.dispatcher.sessions)
    third = second.killed()
    assert third.dispatcher.curricula["default"].stats()["in_flight"] == 0
    third.log.close()


def test_large_replies_that_wait_for_the_disk_are_few(servers, ipc, monkeypatch):
    """Under `always` the replies of a batch wait for its sync together; but 64 of 5 MB would be 320 MB."""
    server, wire = servers(Config(levels=range(1000)), fsync="always"), Wire(1 << 20)
    with contextlib.closing(wire), listening(wire.router, ipc), faults.Raw(ipc) as raw:
        wire.take_files()
        loop = _Loop(server.dispatcher, wire, None, server.log)
        raw.send(faults.hello())
        for seq in range(2, 10):
            raw.send(faults.request("scores" if seq % 2 else "counters", seq=seq))
        came = []  # all of them, so that it does not matter how fast they come
        while len(came) < 9:
            assert wire.router.poll(int(1000 * faults.DEADLINE_S))
            while (received := wire.receive()) is not None:
                came.append(received)
        batches, answered = [], []
        monkeypatch.setattr(wire, "receive", lambda: came.pop(0) if came else None)
        monkeypatch.setattr(wire, "send_reply", lambda _, frames, __: answered.append(len(frames) > 1))
        while came:
            loop._answer_some()
            batches.append(answered[:])
            answered.clear()
        wire.close()
    assert batches == [[False, False, True], *[[False, True]] * 3]


class Asker:
    """A client without a socket that pushes and asks."""

    def __init__(self, name):
        self.exchange = Exchange(name, address="here", curriculum="default", pid=1)

    def ask(self, server, op="push_scores", **arrays):
        """What becomes of a request to a server: a reply or an error."""
        arrays = arrays or {"levels": np.array([1]), "scores": np.ones(1)}
        pending = self.exchange.ask(op, arrays=arrays if op == "push_scores" else {})
        self.exchange.expect(pending, 0.0, 1.0)
        peer = self.exchange.num_connections
        while pending.outcome is None:
            if (todo := self.exchange.act(0.0)) is not HANG_UP:
                self.exchange.heard(server.ask([bytes(frame) for frame in todo], b"\1%d" % peer), 0.0)
        return pending.outcome


@pytest.mark.parametrize("num_restored", [40, pytest.param(1_000, marks=pytest.mark.slow)])
def test_every_older_state_directory_in_place_of_the_one_there_was_is_noticed(tmp_path, monkeypatch, num_restored):
    """Whether the client's session is in it or not, whatever others have done since, and however often it restarted."""
    monkeypatch.setattr(state_dir, "ThreadPoolExecutor", faults.AtOnce)
    for sync in ("sync", "sync_data", "sync_folder"):
        monkeypatch.setattr(files, sync, lambda _: None)  # no power is lost here
    rng, config = np.random.default_rng(3), Config(levels=range(10), strategy="external")
    server, client = Server(tmp_path / "state", config, fsync="always"), Asker("late")
    copies, clients = [], []  # of the directory, of the client, each with the number of commands it knows to be durable
    for step in range(60):
        Asker(f"passer-by {step}").ask(server)
        if step > 20:
            assert client.ask(server).error is None
            clients.append((client.exchange.durable, copy.deepcopy(client)))
        if step % 7 == 6:
            server.log.close()
            server = Server(tmp_path / "state", config, fsync="always")
        copies.append((server.log.sequence, shutil.copytree(server.path, tmp_path / f"copy {step}")))
    server.log.close()
    noticed, numbers = 0, itertools.count()
    while noticed < num_restored:
        number = next(numbers)
        durable, one = clients[int(rng.integers(len(clients)))]
        there = [each for each in copies if each[0] <= durable]  # the last of them is not older
        sequence, older = there[-1] if rng.random() < 0.1 else there[int(rng.integers(len(there)))]
        restored = Server(shutil.copytree(older, tmp_path / f"restored {number}"), config, fsync="always")
        for other in range(int(rng.choice([0, 3, 30]))):
            Asker(f"other {other}").ask(restored)
        if rng.random() < 0.5 and "late" in list(restored.dispatcher.sessions):
            restored.dispatcher.forget("late")
        if rng.random() < 0.5:
            restored.log.close()
            restored = Server(restored.path, config, fsync="always")
        outcome = copy.deepcopy(one).ask(restored)
        assert isinstance(outcome, StateRolledBack) == (sequence < durable), (sequence, durable, outcome)
        noticed += sequence < durable
        restored.log.close()
        shutil.rmtree(restored.path)
    assert next(numbers) > num_restored


# ---- what a folder is refused for


def test_a_folder_of_another_configuration_is_refused(servers):
    first = servers(Config(levels=range(10)))
    copy = shutil.copytree(first.path, first.path.with_name("copy"))
    first.log.close()
    with pytest.raises(ConfigError, match=r"levels: expected range\(0, 10\) as in the state directory"):
        servers(Config(levels=range(11)), copy)
    with pytest.raises(ConfigError, match=r"seed: expected 0 as in the state directory .*, got 1"):
        servers(Config(levels=range(10), seed=1), copy)


def test_a_folder_of_another_version_is_refused_and_left_alone(servers, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(state_machine, "STATE_FORMAT", 1)
        first = servers()
    copy = shutil.copytree(first.path, first.path.with_name("copy"))
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    with pytest.raises(InvalidInput, match=r"state: expected format 3, .* the version that wrote it.*, got format 1"):
        servers(path=copy)
    after = {path.name: path.read_bytes() for path in copy.iterdir()}
    assert f"process {os.getpid()} on " in after.pop("lock").decode()
    assert after == {name: content for name, content in before.items() if name != "lock"}


def test_another_state_from_the_same_commands_is_refused(servers, monkeypatch, caplog):
    """As on another CPU: what was written down of the state is not what the commands lead to here."""
    monkeypatch.setattr(state_dir, "ThreadPoolExecutor", faults.AtOnce)
    monkeypatch.setattr(state_dir, "DIGEST_AFTER_COMMANDS", 2)
    first = servers()
    with monkeypatch.context() as patch:
        patch.setattr(state_dir, "digest", lambda _: bytes(16))
        first.ask(faults.hello())
        first.ask(faults.request("push", faults.block()))
    copy = shutil.copytree(first.path, first.path.with_name("copy"))
    state = first.dispatcher.state()
    first.log.close()
    with pytest.raises(StateDiverged, match=f"after command 2, .*numpy {np.__version__}"):
        servers(path=copy)
    accepted = servers(path=copy, accept_loss=True)
    assert faults.same(accepted.dispatcher.state(), state)
    assert caplog.messages[-1].startswith(
        "accepting another state than there was after command 2, which ran with numpy "
    )
    assert "--accept-loss" not in caplog.text  # it has been said


def test_a_function_that_a_client_sent_is_loaded_only_where_that_is_allowed_again(servers):
    import cloudpickle  # noqa: PLC0415

    python = ".".join(map(str, __import__("sys").version_info[:2]))
    pickled = np.frombuffer(cloudpickle.dumps(lambda segment: (segment.values.mean(), 1.0)), np.uint8)
    function = faults.request("set_score_function", {"function": pickled}, args={"python": python})
    first = servers(allow_pickle=True)
    first.ask(faults.hello())
    assert first.ask(function).error is None
    journalled = shutil.copytree(first.path, first.path.with_name("journalled"))
    first.log.save()
    saved = shutil.copytree(first.path, first.path.with_name("saved"))
    for folder in (journalled, saved):
        with pytest.raises(PickleRefused, match="--allow-pickle"):
            servers(path=folder)
        assert faults.same(servers(path=folder, allow_pickle=True).dispatcher.state(), first.dispatcher.state())
    state = first.dispatcher.state() | {"pickled_by": "2.7"}
    with pytest.raises(InvalidInput, match=r"one pickled by Python 3.*, got one by Python 2\.7"):
        servers(path=first.path.with_name("new"), allow_pickle=True).dispatcher.restore(state)


def test_a_function_that_was_refused_is_not_in_the_journal(servers):
    first = servers()
    first.ask(faults.hello())
    refused = faults.request("set_score_function", {"function": np.zeros(3, np.uint8)}, args={"python": "2.7"})
    assert first.ask(refused).error.code == "pickle_refused"
    assert first.log.sequence == 1


# ---- real servers


def test_a_start_says_whether_there_is_a_state_to_go_on_from(servers, caplog):
    """So that a directory whose name was mistyped is noticed."""
    caplog.set_level("INFO")
    first = servers()
    first.ask(faults.hello())
    servers(path=shutil.copytree(first.path, first.path.with_name("copy")))
    assert caplog.messages == ["the state directory is new", "the state directory goes on after 1 command"]


def test_a_launched_server_goes_on_where_the_last_one_ended(tmp_path):
    config, folder = Config(levels=range(5), strategy="sequential"), tmp_path / "state"
    played = []
    for _ in range(3):
        with launch(config, state_dir=folder) as server, LevelClient(server.address) as client:
            played += [given.level for given in client.next(2)]
            with pytest.raises(StateDirTaken), launch(config, state_dir=folder):
                pass
    assert played == [0, 1, 2, 3, 4, 0]


def test_a_server_whose_folder_another_one_takes_over_ends_and_its_clients_go_on_there(tmp_path):
    """As after a node was cut off: clients are told where the new one is, and lose nothing that was acknowledged."""
    folder, where = tmp_path / "state", [f"ipc://{tmp_path}/old", f"ipc://{tmp_path}/new"]
    options = ("--levels", "0:50", "--strategy", "external", "--state-dir", str(folder), "--fsync", "always")
    pushed, over = 0, threading.Event()

    def trains():
        nonlocal pushed
        with Trainer(lambda: where[0], timeout_s=60.0) as trainer:
            while not over.is_set():
                trainer.push_scores([0], [float(pushed)])
                pushed += 1

    thread = threading.Thread(target=trains)
    with faults.daemon(where[0], *options) as old:
        thread.start()
        faults.eventually(lambda: pushed > 50, "it serves")
        old.process.send_signal(signal.SIGSTOP)  # cut off, with requests on their way to it
        with faults.daemon(where[1], *options, "--take-over") as new:
            old.process.send_signal(signal.SIGCONT)
            assert old.process.wait(faults.DEADLINE_S) == 1
            known, where[0] = pushed, where[1]
            faults.eventually(lambda: pushed > known + 50, "it goes on")
            over.set()
            thread.join(faults.DEADLINE_S)
            with Trainer(new.address) as trainer:
                assert trainer.stats()["scores"] == pushed
                assert trainer.scores()[1][0] == pushed - 1.0


def test_save_needs_a_state_directory(server, tmp_path):
    with Trainer(server.address) as trainer, pytest.raises(InvalidInput, match="--state-dir"):
        trainer.save()
    with launch(Config(levels=range(5)), state_dir=tmp_path / "state") as kept, Trainer(kept.address) as trainer:
        trainer.save()


def test_the_counters_tell_of_the_state_directory(server, tmp_path):
    with Trainer(server.address) as trainer:
        assert "commands" not in trainer.counters()
    with launch(Config(levels=range(5)), state_dir=tmp_path / "state") as kept, Trainer(kept.address) as trainer:
        for _ in range(3):
            trainer.push_scores([1, 2], [0.5, 0.25])
        told = trainer.counters()
        assert told["commands"] == sum(
            sum(of["counts"]) for op, of in trainer.timings().items() if op in ("hello", "push_scores")
        )
        assert told["disk_error"] == ""
        faults.eventually(lambda: trainer.counters()["durable_commands"] == told["commands"], "a sync of the journal")
        trainer.save()
        saved = trainer.counters()
        assert saved["journal_bytes"] < told["journal_bytes"]
        assert saved["snapshot_age_s"] <= trainer.counters()["snapshot_age_s"]


@pytest.mark.parametrize(
    ("what", "kills", "num_workers"),
    [
        *((what, 3, 4) for what in ("always", "interval and the power is lost")),
        *(
            pytest.param(what, 100, 16, marks=pytest.mark.slow)
            for what in ("always", "interval", "interval and the power is lost")
        ),
    ],
)
def test_killed_under_load_nothing_that_was_acknowledged_is_lost_or_done_twice(tmp_path, kills, num_workers, what):  # noqa: C901
    """Workers and trainers go on over every kill -9 of the server, with no exception; each push is its own number.

    One trainer waits for its pushes, and has the server save now and then; the other does not wait.
    """
    config = Config(levels=range(50), strategy="external")
    address, folder = f"ipc://{tmp_path}/plr.sock", tmp_path / "state"
    over, raised = threading.Event(), []
    pushed, drawn = [0, 0], [0] * num_workers

    def trains(n):
        with Trainer(address, timeout_s=60.0) as trainer:
            while not over.is_set():
                assert trainer.push_scores([n], [float(pushed[n])], wait=n == 0) == (n == 0)
                pushed[n] += 1
                if n == 0 and pushed[n] % 40 == 0:
                    trainer.save()
            trainer.flush()

    def works(n):
        with LevelClient(address, timeout_s=60.0) as client:
            while not over.is_set():
                drawn[n] += len(client.next(1 + n % 4))
            drawn[n] += len(client.next())  # on the last server: what the one before had lost is there again then

    def guarded(do, n):
        try:
            do(n)
        except BaseException as exc:  # noqa: BLE001
            raised.append(exc)

    threads = [threading.Thread(target=guarded, args=(trains, n)) for n in range(2)]
    threads += [threading.Thread(target=guarded, args=(works, n)) for n in range(num_workers)]
    fsync, _, power_lost = what.partition(" ")
    options = ("--levels", "0:50", "--strategy", "external", "--state-dir", str(folder), "--fsync", fsync)
    for kill in range(kills + 1):
        with faults.daemon(address, *options) as server:
            if not kill:
                for thread in threads:
                    thread.start()
            before = sum(pushed), sum(drawn)
            faults.eventually(lambda: sum(pushed) > before[0] + 50 and sum(drawn) > before[1] + 50, "it serves")  # noqa: B023
            if kill == kills:
                over.set()
                for thread in threads:
                    thread.join(faults.DEADLINE_S)
                with Trainer(address) as trainer:
                    stats = trainer.stats()
                    last = trainer.scores()[1][:2].tolist()
                server.stop()
            else:
                server.kill()
                assert server.process.returncode == -signal.SIGKILL
                if power_lost:
                    faults.lose_what_was_not_synced(folder)
    assert not raised
    assert (stats["scores"], stats["draws"]) == (sum(pushed), sum(drawn))
    assert last == [pushed[0] - 1.0, pushed[1] - 1.0]
    replayed = Server(folder, config)
    assert replayed.dispatcher.curricula["default"].stats()["scores"] == stats["scores"]
    replayed.log.close()


def test_a_client_of_an_older_state_directory_is_told_and_may_go_on_from_there(tmp_path):
    folder, config = tmp_path / "state", Config(levels=range(10), strategy="external")
    address = f"ipc://{tmp_path}/plr.sock"
    with launch(config, address, state_dir=folder, fsync="always"), Trainer(address) as trainer:
        trainer.push_scores([1], [1.0])
    shutil.copytree(folder, tmp_path / "backup")
    trainer, client = Trainer(address), LevelClient(address)
    with trainer, client:
        with launch(config, address, state_dir=folder, fsync="always"):
            trainer.push_scores([2], [2.0])
            client.next()
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "backup", folder)
        with launch(config, address, state_dir=folder, fsync="always"):
            for _ in range(2):  # it stays so
                with pytest.raises(StateRolledBack, match=r"got a state from before that run.*close\(\) this client"):
                    trainer.stats()
            with pytest.raises(StateRolledBack):
                trainer.flush()
            with pytest.raises(StateRolledBack):
                client.next()
            trainer.close()
            client.close()
            assert trainer.stats()["scores"] == 1
            assert len(client.next(2)) == 2


def test_a_push_that_was_refused_is_not_kept_with_its_refusal(tmp_path, monkeypatch):
    dispatcher = Dispatcher({"default": Curriculum(Config(levels=range(10)))}, max_frame_bytes=1 << 20)
    log = StateDir(tmp_path / "state")
    restart(dispatcher, log)
    faults.begin(dispatcher, faults.SESSION)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for _ in range(2):  # the second time it is a copy
        frames = list(map(memoryview, faults.request("push", faults.block())))
        kept = weakref.ref(frames[0])
        with monkeypatch.context() as patch:
            patch.setattr(os, "writev", full)
            patch.setattr(state_dir.logger, "disabled", True)  # pytest keeps what is logged
            assert isinstance(decode_reply(dispatcher.answer(b"\x01peer", frames)).error, StateNotWritten)
        del frames
        gc.collect()
        assert kept() is None
    log.close()


def test_where_the_disk_is_full_pushes_are_refused_and_levels_still_handed_out(tmp_path):
    folder = tmp_path / "state"
    with (
        launch(Config(levels=range(10)), state_dir=folder, fsync="always") as server,
        Trainer(server.address) as trainer,
        LevelClient(server.address) as client,
    ):
        block = faults.block()
        assert trainer.push(**block) == 3
        before = trainer.stats()
        _, hard = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (16, hard))  # no file may grow beyond that
        with pytest.raises(StateNotWritten, match=r"push: .*File too large.*nothing was applied"):
            trainer.push(**block)
        assert trainer.stats() == before | {"sessions": before["sessions"]}
        assert len(client.next(3)) == 3
        with pytest.raises(StateNotWritten):
            trainer.push(**block)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (hard, hard))

        def pushes():
            with contextlib.suppress(StateNotWritten):
                return trainer.push(**block) == 3

        faults.eventually(pushes, "there is space again")
        stats = trainer.stats()
        assert (stats["pushes"], stats["draws"]) == (2, 3)
        server.process.kill()
        server.process.wait()
        with launch(Config(levels=range(10)), server.address, state_dir=folder):
            assert trainer.stats() == stats

"""plr_server/serving/keys.py, and what real servers make of it: nobody is let in, and nobody does more than may be."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import faults
import numpy as np
import pytest
import zmq

from plr_client import ConfigError, InvalidInput, LevelClient, NotAdmitted, NotAllowed, Trainer
from plr_client.keys import read_client_keys
from plr_server import Config, Curriculum, launch
from plr_server.durability.records import Kind
from plr_server.durability.recovery import read_history
from plr_server.serving.dispatch import Dispatcher
from plr_server.serving.keys import make_key, read_keys
from plr_server.serving.loop import _Loop
from plr_server.serving.roles import Client
from plr_server.serving.wire import Wire

CLIENTS = {"env": "worker", "learner": "trainer", "another": "trainer", "boss": "operator"}
FUNCTION = {"function": np.zeros(3, np.uint8)}
SCORES = {"levels": np.array([3]), "scores": np.array([0.5])}
TRAINERS = {
    "push": faults.block(),
    "push_step": {name: array[0] for name, array in faults.block().items()} | {"next_values": np.zeros(2)},
    "push_scores": SCORES,
    "insert": {},
    "stats": {},
    "counters": {},
    "timings": {},
    "table": {},
    "sync": {},
    "weights": {},
    "scores": {},
}
OPERATORS = {"save": {}, "set_score_function": FUNCTION}
REFUSED = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
FEW_OR_MANY = pytest.mark.parametrize("attempts", [10, pytest.param(1000, marks=pytest.mark.slow)])


def made(folder, clients=CLIENTS):
    for name, role in clients.items():
        make_key(folder, name=name, role=role)
    return folder


def withdraw(folder, name):
    """Takes a client's line out of the list, and returns it."""
    path = folder / "clients.txt"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith(f"{name} ")))
    return next(line for line in lines if line.startswith(f"{name} "))


# ---- the folder


def test_a_folder_of_keys(tmp_path):
    folder = made(tmp_path / "new" / "keys")
    keys = read_keys(folder)
    assert dict(keys.clients.values()) == CLIENTS
    for name in CLIENTS:
        server, public, _ = read_client_keys(str(folder / f"{name}.key"))
        assert server == keys.public
        assert keys.clients[public.decode()].name == name
    assert zmq.curve_public(keys.secret) == keys.public
    secrets = [path.read_text() for path in folder.glob("*.key")]
    assert len(set(secrets)) == len(CLIENTS) + 1


def test_nobody_else_can_read_a_secret_from_its_first_byte_on(tmp_path, monkeypatch):
    opened = []
    real = os.open

    def noted(path, flags, mode=0o777, **options):
        opened.append((os.fspath(path), flags, mode))
        return real(path, flags, mode, **options)

    monkeypatch.setattr(os, "open", noted)
    before = os.umask(0)
    try:
        made(tmp_path / "keys")
    finally:
        os.umask(before)
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
    for path in (tmp_path / "keys").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
        if path.suffix == ".key":
            ((flags, mode),) = [how for where, *how in opened if where == str(path)]
            assert (flags & (os.O_CREAT | os.O_EXCL), mode) == (os.O_CREAT | os.O_EXCL, 0o600)


@pytest.mark.parametrize("name", ["", "server", "../env", "a/b", "-x", ".x", "a b", "ä", "x" * 65])
def test_names_that_cannot_be(tmp_path, name):
    with pytest.raises(InvalidInput, match=r"name: expected 1 to 64 letters, digits, .*, got "):
        make_key(tmp_path / "keys", name=name, role="worker")
    assert not (tmp_path / "keys").exists()


def test_a_role_that_is_none(tmp_path):
    with pytest.raises(InvalidInput, match="role: expected one of worker, trainer, operator, got 'boss'"):
        make_key(tmp_path / "keys", name="env", role="boss")
    assert not (tmp_path / "keys").exists()


def test_a_name_is_taken_once(tmp_path):
    made(tmp_path, {"env": "worker"})
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    (tmp_path / "moved.key").write_text("")
    for name in ("env", "moved"):
        with pytest.raises(InvalidInput, match=f"name: expected a new one .*, got '{name}'"):
            make_key(tmp_path, name=name, role="operator")
    (tmp_path / "env.key").unlink()  # it was moved to where it is needed
    with pytest.raises(InvalidInput, match=r"name: expected a new one .*, got 'env'"):
        make_key(tmp_path, name="env", role="operator")
    assert (tmp_path / "clients.txt").read_text() == before["clients.txt"]
    assert (tmp_path / "server.key").read_text() == before["server.key"]
    withdraw(tmp_path, "env")
    make_key(tmp_path, name="env", role="operator")
    assert dict(read_keys(tmp_path).clients.values()) == {"env": "operator"}


def test_a_list_whose_last_line_was_left_without_its_end_takes_another_line(tmp_path):
    made(tmp_path, {"env": "worker"})
    path = tmp_path / "clients.txt"
    path.write_text(path.read_text().rstrip("\n"))
    make_key(tmp_path, name="learner", role="trainer")
    assert dict(read_keys(tmp_path).clients.values()) == {"env": "worker", "learner": "trainer"}
    assert path.read_text().count("\n") == 2


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"keys: expected a folder that can be written, got .*/file/keys \(Not a dir"):
        make_key(tmp_path / "file" / "keys", name="env", role="worker")


KEY, ANOTHER_KEY = (zmq.curve_keypair()[0].decode() for _ in range(2))
BAD_LISTS = {
    "a word": ("env\n", "line 1 of "),
    "a role that is none": (f"# mine\n\nenv boss {KEY}\n", "line 3 of "),
    "no key": ("env worker\n", "line 1 of "),
    "a key too short": (f"env worker {KEY[1:]}\n", "line 1 of "),
    "a word too many": (f"env worker {KEY} x\n", "line 1 of "),
    "a name that is none": (f"../env worker {KEY}\n", "line 1 of "),
    "a key twice": (f"env worker {KEY}\nother worker {KEY}\n", "line 2 of .*'other' again"),
    "a name twice": (f"env worker {KEY}\nenv worker {ANOTHER_KEY}\n", "line 2 of .*'env' again"),
}


@pytest.mark.parametrize("name", BAD_LISTS)
def test_a_list_that_is_none_is_refused_whole(tmp_path, name):
    content, text = BAD_LISTS[name]
    made(tmp_path, {"env": "worker"})
    (tmp_path / "clients.txt").write_text(content)
    with pytest.raises(ConfigError, match=f"keys: expected .*, got {text}"):
        read_keys(tmp_path)


def test_folders_that_others_may_change_or_read(tmp_path):
    made(tmp_path, {"env": "worker"})
    (tmp_path / "clients.txt").chmod(0o620)
    with pytest.raises(ConfigError, match=r"keys: expected a list of clients that no other user can write .* mode 620"):
        read_keys(tmp_path)
    (tmp_path / "clients.txt").chmod(0o600)
    (tmp_path / "server.key").chmod(0o640)
    with pytest.raises(ConfigError, match=r"keys: expected a key file that no other user can read .*server\.key of mo"):
        read_keys(tmp_path)


def test_what_is_no_folder_of_keys(tmp_path):
    with pytest.raises(ConfigError) as refusal:
        read_keys(tmp_path)
    assert str(refusal.value) == (
        "keys: expected a folder made by plr-server keygen DIR --role ROLE --name NAME, got "
        f"{tmp_path}, which has no server.key"
    )


# ---- who is let in


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A folder of keys, and beside it keys that it does not know: of another server, and of a client of this one."""
    folder = tmp_path_factory.mktemp("keys")
    made(folder / "keys", CLIENTS | {"unlisted": "operator"})
    withdraw(folder / "keys", "unlisted")
    make_key(folder / "other", name="boss", role="operator")
    return folder


class Closed:
    """A server with keys and a state directory."""

    def __init__(self, server, keys, state_dir):
        self.address, self.process = server.address, server.process
        self.keys, self.state_dir = keys, state_dir
        self.names = map("s{}".format, itertools.count())

    def key(self, name):
        return str(self.keys / f"keys/{name}.key")

    def num_requests(self):
        """How many requests of clients stand in the journal."""
        records = itertools.chain(*(segment.records() for segment in read_history(self.state_dir).segments))
        return sum(record.kind in (Kind.REQUEST, Kind.NAMED) for record in records)

    @contextlib.contextmanager
    def begun(self, name, session=None):
        """A raw connection of a client, in a session that it has begun."""
        session = next(self.names) if session is None else session
        with faults.Raw(self.address, self.key(name)) as raw:
            assert raw.ask(faults.hello(session)).error is None
            yield raw, session
            raw.ask(faults.request("goodbye", session=session, seq=1_000_000))

    @contextlib.contextmanager
    def untouched(self):
        """Nothing of what is done in this context changes the state, or is written to the journal."""
        with Trainer(self.address, keys=self.key("learner")) as trainer:
            before = faults.seen_from_outside(trainer), trainer.stats()["sessions"]
            commands = self.num_requests()
            yield
            assert self.num_requests() == commands
            assert faults.same((faults.seen_from_outside(trainer), trainer.stats()["sessions"]), before)


@pytest.fixture(scope="module")
def closed(keys, tmp_path_factory):
    state_dir = tmp_path_factory.mktemp("state")
    with launch(
        Config(levels=range(10), num_steps=3), "tcp://127.0.0.1:0", keys=keys / "keys", state_dir=state_dir
    ) as server:
        yield Closed(server, keys, state_dir)


def by_our_client(keys):
    def attempt(address):
        with pytest.raises(NotAdmitted):
            Trainer(address, keys=keys).push_scores([3], [0.5])

    return attempt


def by_hand(**options):
    """Sends requests without waiting to be let in."""

    def attempt(address):
        with zmq.Context() as context, context.socket(zmq.DEALER) as bare:
            for name, value in {"linger": 0, **options}.items():
                setattr(bare, name, value)
            monitor = bare.get_monitor_socket(REFUSED)
            bare.connect(address)
            with contextlib.suppress(zmq.Again):  # where it was refused already, libzmq takes no message any more
                bare.send_multipart(faults.hello("thief"), zmq.DONTWAIT)
                bare.send_multipart(faults.request("push_scores", SCORES, session="thief"), zmq.DONTWAIT)
            refused, answered = monitor.poll(1000 * faults.DEADLINE_S), bare.poll(0)
            bare.disable_monitor()
            monitor.close()
            assert refused
            assert not answered

    return attempt


INTRUDERS = {
    "no keys": lambda _: by_our_client(""),
    "a key that is not on the list": lambda keys: by_our_client(keys / "keys/unlisted.key"),
    "a key of another server": lambda keys: by_our_client(keys / "other/boss.key"),
    "NULL": lambda _: by_hand(),
    "PLAIN": lambda _: by_hand(plain_username=b"boss", plain_password=b"boss"),
    "CURVE with keys of its own": lambda keys: by_hand(
        **dict(
            zip(
                ("curve_serverkey", "curve_publickey", "curve_secretkey"),
                (read_keys(keys / "keys").public, *zmq.curve_keypair()),
                strict=True,
            )
        )
    ),
}


@FEW_OR_MANY
@pytest.mark.parametrize("name", INTRUDERS)
def test_nobody_without_a_right_key_is_let_in(closed, keys, name, attempts):
    attempt = INTRUDERS[name](keys)
    with closed.untouched(), ThreadPoolExecutor(10) as pool:
        for done in [pool.submit(attempt, closed.address) for _ in range(attempts)]:
            done.result()


@FEW_OR_MANY
@pytest.mark.parametrize(
    ("name", "op"),
    [("env", op) for op in (*TRAINERS, *OPERATORS)] + [("learner", op) for op in OPERATORS],
)
def test_nobody_does_more_than_its_role_may(closed, name, op, attempts):
    with closed.begun(name) as (raw, session), closed.untouched():
        for seq in range(2, 2 + attempts):
            error = raw.ask(faults.request(op, (TRAINERS | OPERATORS)[op], session=session, seq=seq)).error
            assert isinstance(error, NotAllowed)
            assert (error.op, error.got) == (op, f"that of the {CLIENTS[name]} {name!r}")
        assert raw.ask(faults.request("describe", session=session, seq=seq + 1)).error is None


@FEW_OR_MANY
@pytest.mark.parametrize("op", ["hello", "goodbye", "next", "push_scores", "stats"])
def test_nobody_speaks_in_the_session_of_another_key(closed, op, attempts):
    """Not resumed, not ended and not spoken in: where it was, it goes on."""
    with closed.begun("learner") as (raw, session):
        assert raw.ask(faults.request("next", session=session, args={"k": 2})).error is None
        with closed.begun("another") as (thief, _), closed.untouched():
            arrays, args = SCORES if op == "push_scores" else {}, {"k": 1} if op == "next" else {}
            for seq in range(3, 3 + attempts):
                frames = faults.request(op, arrays, session=session, seq=seq, connection=2, args=args)
                error = thief.ask(frames).error
                assert isinstance(error, NotAllowed)
                assert str(error).startswith(f"{op}: expected the key that began the session, got that of 'another'; ")
        reply = raw.ask(faults.request("push_scores", SCORES, session=session, seq=3))
        assert reply.result == {"scored": 1}


def test_each_role_does_what_it_may(closed):
    with LevelClient(closed.address, keys=closed.key("env")) as client:
        assert len(client.next(3)) == 3
    with Trainer(closed.address, keys=closed.key("learner")) as trainer:
        assert trainer.push_scores([1], [0.5]) == 1
    with Trainer(closed.address, keys=closed.key("boss")) as trainer:
        trainer.save()
        assert trainer.stats()["pushes"] >= 1
        trainer.save()


# ---- over time


@FEW_OR_MANY
def test_a_withdrawn_key_is_refused_at_once_and_everybody_else_goes_on(tmp_path, attempts):
    keys = made(tmp_path / "keys")
    with (
        launch(Config(levels=range(10)), keys=keys) as server,
        LevelClient(server.address, keys=keys / "env.key") as client,
        Trainer(server.address, keys=keys / "learner.key") as trainer,
    ):
        client.next(4)
        trainer.push_scores([1], [0.5])
        line = withdraw(keys, "env")
        server.process.send_signal(signal.SIGHUP)

        def in_flight():
            return trainer.stats()["in_flight"]

        faults.eventually(lambda: in_flight() == 0, "the levels of a withdrawn client are back")
        for _ in range(attempts):
            with pytest.raises(NotAdmitted, match=r"expected keys that the server knows .*, got some that have been"):
                client.next()
            with pytest.raises(NotAdmitted, match="which it does not know, or which was withdrawn"):
                LevelClient(server.address, keys=keys / "env.key").next()
        assert (trainer.push_scores([1], [0.5]), trainer.stats()["sessions"]) == (1, 1)

        with (keys / "clients.txt").open("a") as file:
            file.write(line)
        server.process.send_signal(signal.SIGHUP)

        def is_let_in():
            with contextlib.suppress(NotAdmitted):
                return len(client.next()) == 1

        faults.eventually(is_let_in, "its line is back")


def test_a_key_that_was_made_anew_goes_on_and_the_old_one_does_not(tmp_path):
    keys = made(tmp_path / "keys")
    old = (keys / "env.key").rename(tmp_path / "old.key")
    with launch(Config(levels=range(10)), keys=keys) as server, faults.Raw(server.address, old) as before:
        assert before.ask(faults.hello("mine")).error is None
        withdraw(keys, "env")
        new = make_key(keys, name="env", role="worker")
        server.process.send_signal(signal.SIGHUP)

        def refused():
            return isinstance(before.ask(faults.request("describe", session="mine")).error, NotAdmitted)

        faults.eventually(refused, "the old key is withdrawn")
        with faults.Raw(server.address, new) as after:
            assert after.ask(faults.hello("mine", connection=2, seq=3)).error is None
            assert after.ask(faults.request("next", session="mine", connection=2, args={"k": 1}, seq=4)).error is None


@pytest.mark.parametrize("end", ["killed", "stopped"])
def test_sessions_stay_bound_to_their_keys_across_a_restart(tmp_path, ipc, end):
    """From the journal alone, and from the snapshot that a server makes when it stops."""
    keys = made(tmp_path / "keys")
    options = ("--keys", str(keys), "--state-dir", str(tmp_path / "state"))
    with faults.daemon(ipc, *options) as server, faults.Raw(ipc, keys / "learner.key") as raw:
        raw.ask(faults.hello("mine"))
        assert raw.ask(faults.request("push_scores", SCORES, session="mine")).result == {"scored": 1}
        server.kill() if end == "killed" else server.stop()
    with faults.daemon(ipc, *options):
        with faults.Raw(ipc, keys / "another.key") as thief:
            for seq, op in enumerate(("hello", "push_scores", "goodbye"), start=3):
                arrays = SCORES if op == "push_scores" else {}
                error = thief.ask(faults.request(op, arrays, session="mine", seq=seq, connection=2)).error
                assert isinstance(error, NotAllowed)
        with faults.Raw(ipc, keys / "learner.key") as raw:
            assert raw.ask(faults.hello("mine", seq=3, connection=2)).result["applied"] == 2
            frames = faults.request("push_scores", SCORES, session="mine", seq=4, connection=2)
            assert raw.ask(frames).result == {"scored": 1}


def test_with_keys_a_server_listens_beyond_loopback_and_takes_functions_of_operators(tmp_path):
    keys = made(tmp_path / "keys")
    config = Config(levels=range(10), num_steps=3)
    with (
        launch(config, "tcp://0.0.0.0:0", keys=keys, allow_pickle=True) as server,
        Trainer(server.address, keys=keys / "learner.key") as trainer,
        Trainer(server.address, keys=keys / "boss.key") as operator,
    ):
        with pytest.raises(NotAllowed, match="set_score_function: expected the key of an operator"):
            trainer.set_score_function(lambda _: (7.0, 7.0))
        operator.set_score_function(lambda _: (7.0, 7.0))
        trainer.push(**faults.block())
        _, scores, _, seen = trainer.scores()
        assert set(scores[seen]) == {7.0}


def test_a_frame_of_the_largest_size_goes_through_encrypted(tmp_path):
    keys = made(tmp_path / "keys")
    with (
        faults.daemon(f"ipc://{tmp_path}/plr.sock", "--keys", str(keys), "--max-frame-bytes", "65536") as server,
        Trainer(server.address, keys=keys / "learner.key") as trainer,
    ):
        assert trainer.push_scores(np.zeros(8192, dtype=np.int64), np.ones(8192)) == 8192


# ---- the loop


@pytest.fixture
def loop(tmp_path):
    """The loop of a server with keys, and the other end of the socket that tells it of signals."""
    keys = made(tmp_path / "keys")
    read, write = socket.socketpair()
    wire = Wire(1 << 20, read_keys(keys).secret)
    dispatcher = Dispatcher({"default": Curriculum(Config())}, max_frame_bytes=1 << 20)
    with read, write, contextlib.closing(wire):
        made_loop = _Loop(dispatcher, wire, read, keys=keys)
        made_loop.admit(read_keys(keys).clients)
        yield made_loop, write, keys


def test_a_list_that_cannot_be_read_leaves_the_one_before(loop, caplog):
    turned, tell, keys = loop
    before = turned.dispatcher.clients
    (keys / "clients.txt").write_text("nonsense\n")
    tell.send(bytes([signal.SIGHUP]))
    with caplog.at_level(logging.ERROR):
        assert not turned._told_to_stop()
    assert "the list of clients stays as it was: keys: expected a client's name, its role" in caplog.text
    assert turned.dispatcher.clients == before
    withdraw(made(keys / "fresh"), "env")
    (keys / "clients.txt").write_text((keys / "fresh/clients.txt").read_text())
    tell.send(bytes([signal.SIGHUP, signal.SIGHUP]))
    assert not turned._told_to_stop()
    assert turned.dispatcher.clients == turned._wire.admitted != before
    assert {client.name for client in turned.dispatcher.clients.values()} == set(CLIENTS) - {"env"}


def test_a_signal_to_stop_is_not_lost_among_others(loop):
    turned, tell, _ = loop
    tell.send(bytes([signal.SIGHUP, signal.SIGTERM]))
    assert turned._told_to_stop()


def test_without_an_answer_at_the_door_nobody_is_let_in(ipc, tmp_path):
    """As where a server's loop hangs: libzmq by itself would admit every key."""
    keys = made(tmp_path / "keys")
    wire = Wire(1 << 20, read_keys(keys).secret)
    with contextlib.closing(wire):
        wire.router.bind(ipc)
        wire.zap.close(0)
        with faults.Raw(ipc, keys / "boss.key") as raw, raw.hung_up_on():
            raw.send(faults.hello())
        assert wire.receive() is None


def test_an_open_server_gives_no_names():
    dispatcher = Dispatcher({"default": Curriculum(Config())}, max_frame_bytes=1 << 20)
    faults.begin(dispatcher, "a")
    assert "client" not in dispatcher.state()["sessions"]["open"]["a"]  # so that older directories have the same digest
    dispatcher.clients = {"key": Client("env", "worker")}
    dispatcher.answer(b"\x01peer", faults.hello("b"), "key")
    assert dispatcher.state()["sessions"]["open"]["b"]["client"] == "env"

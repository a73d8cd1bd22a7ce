"""plr_client/handshake.py: who is not let in is told why at once, by real servers; who is only hung up on is not."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faults
import pytest

from plr_client import LevelClient, NotAdmitted, ServerUnreachable, Trainer
from plr_client import connection as connection_module
from plr_client import exchange as exchange_module
from plr_client import handshake as handshake_module
from plr_client.handshake import mechanism_of
from plr_server import Config, launch
from plr_server.serving.keys import make_key


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A folder of keys with a worker and a trainer, and another with a worker."""
    folder = tmp_path_factory.mktemp("keys")
    for name, role in (("env", "worker"), ("learner", "trainer")):
        make_key(folder / "here", name=name, role=role)
    make_key(folder / "there", name="env", role="worker")
    return folder


@pytest.fixture(scope="module", params=[None, "tcp://127.0.0.1:0"], ids=["ipc", "tcp"])
def servers(request, keys):
    """A server that asks for keys, and one that asks for none."""
    config = Config(levels=range(10))
    with launch(config, request.param, keys=keys / "here") as closed, launch(config, request.param) as opened:
        yield closed, opened


@pytest.fixture
def closed(servers):
    return servers[0]


@pytest.fixture
def opened(servers):
    return servers[1]


def refusal(client):
    with pytest.raises(NotAdmitted) as raised:
        client.next()
    assert client._connection._socket is None  # so that libzmq does not connect again, and again
    return str(raised.value)


def test_a_key_lets_in(closed, keys, monkeypatch):
    with LevelClient(closed.address, keys=keys / "here/env.key") as client:
        assert len(client.next(3)) == 3
    monkeypatch.setenv("PLR_KEYS", str(keys / "here/learner.key"))
    with Trainer(closed.address) as trainer:
        assert trainer.push_scores([1], [0.5]) == 1


def test_no_keys_where_a_server_asks_for_them(closed):
    assert refusal(LevelClient(closed.address)) == (
        f"keys: expected a key file, which the server at {closed.address} asks for (keys=FILE, PLR_KEYS or --keys "
        "FILE); who runs it makes one with plr-server keygen, got none"
    )


def test_keys_that_the_server_does_not_know(closed, keys, tmp_path):
    """Here the server's key is right, and the client's own is another."""
    own, other = (json.loads((keys / where / "env.key").read_text()) for where in ("here", "there"))
    path = tmp_path / "mixed.key"
    path.touch(0o600)
    path.write_text(json.dumps(own | {"secret": other["secret"]}))
    assert refusal(LevelClient(closed.address, keys=path)) == (
        f"keys: expected keys that the server at {closed.address} knows (it reads the list at its start and at "
        f"SIGHUP), got {path}, which it does not know, or which was withdrawn"
    )


def test_keys_of_another_server(closed, keys):
    path = keys / "there/env.key"
    assert refusal(LevelClient(closed.address, keys=path)) == (
        f"keys: expected keys made for the server at {closed.address}, whose own key is another, got {path}, made for "
        "another server or before it had this key"
    )


def test_keys_where_a_server_asks_for_none(opened, keys, monkeypatch):
    path = keys / "here/env.key"
    assert refusal(LevelClient(opened.address, keys=path)) == (
        f"keys: expected none, because the server at {opened.address} was started without keys (serve --keys DIR), got "
        f"{path}"
    )
    monkeypatch.setenv("PLR_KEYS", str(path))
    with LevelClient(opened.address, keys="") as client:  # none, whatever PLR_KEYS names
        assert len(client.next()) == 1


def test_who_was_refused_is_let_in_once_its_keys_are_right(closed, keys, monkeypatch):
    client = LevelClient(closed.address)
    refusal(client)
    monkeypatch.setenv("PLR_KEYS", str(keys / "here/env.key"))
    with client:
        assert len(client.next()) == 1


def test_refusals_leave_nothing_behind(closed):
    client = LevelClient(closed.address)
    for _ in range(3):
        refusal(client)
    before = num_files()
    for _ in range(20):
        refusal(client)
    faults.eventually(lambda: num_files() <= before, "libzmq has closed what the refused connections had open")


def num_files():
    return len(list(Path("/proc/self/fd").iterdir()))


CHANGES = {
    "a server of other keys": ("here", "there", "whose own key is another"),
    "a withdrawn key": ("here", "withdrawn", "or which was withdrawn"),
    "keys asked for": (None, "here", "asks for"),
    "keys no longer asked for": ("here", None, "was started without keys"),
}


@pytest.mark.parametrize(("before", "after", "said"), CHANGES.values(), ids=CHANGES)
def test_a_server_that_comes_back_with_other_keys_tells_whom_it_served_before(
    ipc, keys, tmp_path, monkeypatch, before, after, said
):
    """Whoever asks meanwhile, and whoever asks later; before silence makes a client connect again."""
    monkeypatch.setattr(exchange_module, "FIRST_ATTEMPT_S", 2 * faults.DEADLINE_S)
    folders = {None: (), "withdrawn": ("--keys", str(tmp_path / "withdrawn"))}
    folders |= {name: ("--keys", str(keys / name)) for name in ("here", "there")}
    make_key(tmp_path / "withdrawn", name="another", role="worker")
    shutil.copy(keys / "here/server.key", tmp_path / "withdrawn/server.key")
    path = "" if before is None else keys / "here/env.key"
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(faults.daemon(ipc, *folders[before]))
        asks, idle, other = (LevelClient(ipc, keys=path, timeout_s=faults.DEADLINE_S) for _ in range(3))
        for client in (asks, idle, other):
            client.next()
        first.kill()
        asking = stack.enter_context(ThreadPoolExecutor(1)).submit(refusal, asks)
        stack.enter_context(faults.daemon(ipc, *folders[after]))
        assert said in asking.result()
        assert said in refusal(idle)
        other.close()  # does not raise where there is nobody to say goodbye to


def test_a_server_that_is_only_slow_is_not_doubted_for_long(ipc, monkeypatch):
    """Its clients watch their handshakes, and no more once it answers."""
    monkeypatch.setattr(connection_module, "QUIET_S", 0.05)
    with faults.daemon(ipc) as server, LevelClient(ipc) as client, ThreadPoolExecutor(1) as pool:
        client.next()
        before = num_files()
        server.process.send_signal(signal.SIGSTOP)
        waiting = pool.submit(client.next)
        faults.eventually(lambda: num_files() > before, "the client watches")
        server.process.send_signal(signal.SIGCONT)
        assert len(waiting.result()) == 1
        assert client._connection._exchange.num_connections == 1
        faults.eventually(lambda: num_files() <= before, "it watches no longer")


# ---- no verdict on who is only hung up on


@contextlib.contextmanager
def listener(answer):
    """Something that listens on a tcp port and is no server: it does `answer(connection)` and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with connection:
                        answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize(("with_keys", "timeout_s"), [(False, 0.3), (True, 1.0)])
def test_who_is_hung_up_on_waits_as_for_a_server_that_is_not_there(keys, with_keys, timeout_s):
    """So does a server without room for one more connection."""
    path = keys / "here/env.key" if with_keys else ""
    with listener(lambda _: None) as address, pytest.raises(ServerUnreachable):
        LevelClient(address, keys=path, timeout_s=timeout_s).next()


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xff" + bytes(8) + b"\x7f\x03"])
def test_what_does_not_greet_has_no_mechanism(said):
    with listener(lambda connection: connection.sendall(said)) as address:
        assert mechanism_of(address) is None


def test_nobody_has_no_mechanism(ipc, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(handshake_module, "GREETING_S", 0.05)
        assert mechanism_of(f"tcp://127.0.0.1:{silent.getsockname()[1]}") is None
    assert mechanism_of(ipc) is None


def test_mechanisms(closed, opened):
    assert (mechanism_of(closed.address), mechanism_of(opened.address)) == ("CURVE", "NULL")


@pytest.mark.parametrize("lives", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_server_that_is_started_again_refuses_nobody_that_it_let_in(ipc, keys, tmp_path, lives, monkeypatch):
    """Stopped or killed, while clients ask and new ones connect: they wait."""
    monkeypatch.setattr(exchange_module, "FIRST_ATTEMPT_S", 0.2)
    options = ("--keys", str(keys / "here"), "--state-dir", str(tmp_path / "state"))
    asked, over = [0] * 2, threading.Event()

    def play(i):
        with LevelClient(ipc, keys=keys / "here/env.key") as client:
            while not over.is_set():
                client.next()
                with LevelClient(ipc, keys=keys / "here/env.key") as another:
                    another.next()
                asked[i] += 1

    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(len(asked)))
        stack.callback(over.set)
        playing = [pool.submit(play, i) for i in range(len(asked))]
        for life in range(lives):
            with faults.daemon(ipc, *options) as server:
                before = list(asked)
                faults.eventually(
                    lambda before=before: (
                        all(now > then for now, then in zip(asked, before, strict=True))
                        or any(each.done() for each in playing)
                    ),
                    "all play on",
                )
                server.kill() if life % 2 else server.stop()
        with faults.daemon(ipc, *options):
            over.set()
            for each in playing:
                each.result()

"""plr_server/serving/launch.py: a server of one's own, and nothing of it afterwards, however it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import warnings
from pathlib import Path

import faults
import pytest

from plr_client import AddressTaken, ConfigError, LevelClient, PlrError, ServerStartError, ServerUnreachable, Trainer
from plr_server import Config, launch


def children():
    """The processes that this one started and that still run."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that ended meanwhile
            found += (task / "children").read_text().split()
    return {int(pid) for pid in found if not faults.gone(pid)}


@pytest.fixture(autouse=True)
def temporary_folders(tmp_path_factory, monkeypatch):
    """Default addresses are made in here; nothing of them may be left, nor of their processes."""
    folder = tmp_path_factory.mktemp("t")
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = children()
    yield folder
    assert list(folder.iterdir()) == []
    assert children() <= before


def test_the_default_address_is_a_socket_in_a_folder_only_its_owner_enters(temporary_folders):
    with launch(Config(levels=range(3))) as server:
        path = Path(server.address.removeprefix("ipc://"))
        assert path.is_socket()
        assert path.parent.parent == temporary_folders
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert not faults.gone(server.process.pid)
    assert server.process.returncode == 0


def test_a_long_temporary_folder_is_no_trouble(temporary_folders, monkeypatch):
    long = temporary_folders / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with launch(Config()) as server, LevelClient(server.address) as client:
        assert len(client.next()) == 1
        path = Path(server.address.removeprefix("ipc://"))
        assert path.parent.stat().st_mode & 0o777 == 0o700
    assert not path.parent.exists()
    long.rmdir()


def test_the_configuration_arrives_whole():
    config = Config(levels=[5, 9, 7], strategy="sequential", num_steps=4, robust=True)
    with launch(config) as server, LevelClient(server.address) as client, Trainer(server.address) as trainer:
        assert [(given.level, given.train) for given in client.next(4)] == [
            (5, False),
            (9, False),
            (7, False),
            (5, False),
        ]
        assert trainer.stats()["strategy"] == "sequential"
        assert trainer.scores()[0].tolist() == [5, 9, 7]


def test_an_address_of_ones_own(bind):
    with launch(Config(), bind) as server, LevelClient(server.address) as client:
        assert server.address == bind or server.address.rpartition(":")[2] != "0"
        assert len(client.next()) == 1
        address = server.address
    assert faults.left_beside(address) == []
    with launch(Config(), address) as server:
        assert server.address == address  # free again


def test_beyond_loopback_only_if_said_aloud():
    with launch(Config(), "tcp://0.0.0.0:0", insecure=True) as server:
        host, _, port = server.address.rpartition(":")
        assert host == "tcp://0.0.0.0"
        with Trainer(f"tcp://127.0.0.1:{port}") as trainer:
            assert trainer.stats()["levels"] == 200


def test_an_exception_in_the_body_ends_the_server(ipc):
    with pytest.raises(KeyError), launch(Config(), ipc) as server:
        raise KeyError
    assert server.process.returncode == 0
    assert faults.left_beside(ipc) == []


def test_clients_learn_that_it_ended():
    with launch(Config()) as server:
        client = LevelClient(server.address)
        client.next()
    client._connection.timeout_s = 0.3
    with pytest.raises(ServerUnreachable, match="the server said it was stopping"):
        client.next()


def test_stop_may_come_early_and_twice():
    with launch(Config()) as server:
        server.stop()
        assert server.process.returncode == 0
        server.stop()


def test_a_killed_server_leaves_no_folder():
    with launch(Config()) as server:
        server.process.kill()
        server.process.wait()


def test_two_at_once():
    with launch(Config(levels=[1])) as one, launch(Config(levels=[2])) as two:
        drawn = []
        for server in (one, two):
            with LevelClient(server.address) as client:
                drawn.append(client.next()[0].level)
        assert drawn == [1, 2]


def test_a_ctrl_c_in_the_terminal_is_not_the_servers():
    with launch(Config()) as server:
        assert os.getsid(server.process.pid) != os.getsid(0)


@pytest.mark.parametrize(
    ("address", "kind", "text"),
    [
        ("tcp://0.0.0.0:0", ConfigError, "bind: expected a loopback address"),
        ("inproc://plr", ConfigError, "bind: expected ipc://PATH or tcp://HOST:PORT, got 'inproc://plr'"),
        ("ipc:///" + "x" * 120, ConfigError, "bind: expected an ipc path of 1 to 107 bytes"),
        ("ipc:///no/such/folder/plr.sock", ServerStartError, "bind: expected a folder that can be written"),
    ],
    ids=["beyond loopback", "another transport", "too long", "no folder"],
)
def test_a_bad_address_is_the_servers_own_error(address, kind, text):
    with pytest.raises(PlrError) as raised, launch(Config(), address):
        pass
    assert type(raised.value) is kind
    assert str(raised.value).startswith(text)


def test_a_taken_address(bind):
    with launch(Config(), bind) as server:
        with pytest.raises(AddressTaken) as raised, launch(Config(), server.address):
            pass
        assert raised.value.address == server.address
        owner = f"the server of process {server.process.pid}" if bind.startswith("ipc") else "another process"
        assert raised.value.owner == owner
        with Trainer(server.address) as trainer:
            assert trainer.stats()["levels"] == 200  # the first one is unharmed


def test_a_server_that_cannot_say_why_is_an_error_too(monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "/nowhere")  # its interpreter cannot even start
    with (
        pytest.raises(ServerStartError, match=r"^expected a ready server within 60 s, got exit code 1$"),
        launch(Config()),
    ):
        pass


def test_an_interrupt_while_it_starts_leaves_nothing():
    out = faults.run_script(
        """
        import os, signal, subprocess, sys
        import plr_server
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.05)  # a server takes longer to start
        try:
            with plr_server.launch(plr_server.Config()) as server:
                print("too late")
        except KeyboardInterrupt:
            print("interrupted")
        try:
            os.waitpid(-1, os.WNOHANG)
            print("a child is left")
        except ChildProcessError:
            print("no child")
        """
    )
    assert out == "interrupted\nno child\n"


@pytest.mark.parametrize("default", [True, False], ids=["default address", "own address"])
def test_the_death_of_the_parent_ends_it_and_leaves_nothing(temporary_folders, ipc, default):
    with faults.script(
        """
        import json, sys
        import plr_server
        with plr_server.launch(plr_server.Config(), sys.argv[1] or None) as server:
            print(json.dumps([server.address, server.process.pid]), flush=True)
            sys.stdin.read()
        """,
        "" if default else ipc,
    ) as parent:
        address, pid = json.loads(parent.stdout.readline())
        assert not faults.gone(pid)
        assert len(faults.left_beside(address)) == 2
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    faults.eventually(lambda: faults.gone(pid), "the server ends with its parent")
    assert faults.left_beside(address) == []
    assert list(temporary_folders.iterdir()) == []


def test_the_parents_terminal_stays_quiet():
    out = faults.run_script(
        """
        import plr_server
        with plr_server.launch(plr_server.Config()):
            pass
        """
    )
    assert out == ""


def test_a_forked_child_that_leaves_the_context_takes_nothing_from_its_parent():
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(launch(Config(levels=range(3))))
        with warnings.catch_warnings():  # Python 3.12 and newer warn where threads run
            warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            stack.close()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        with LevelClient(server.address, timeout_s=10.0) as client:
            assert len(client.next()) == 1
    assert server.process.poll() is not None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"config": 3}, "config: expected a Config, or a dict from names to Configs, got 3"),
        ({"config": {"train": 3}}, "config: expected a Config, or a dict from names to Configs, got {'train': 3}"),
        ({"config": Config(), "keys": 3}, "keys: expected a str or a path, got 3"),
        ({"config": Config(), "address": 5555}, "address: expected a str or a path, got 5555"),
        ({"config": Config(), "insecure": "no"}, "insecure: expected True or False, got 'no'"),
        ({"config": Config(), "allow_pickle": "no"}, "allow_pickle: expected True or False, got 'no'"),
        ({"config": Config(), "state_dir": "x", "take_over": 0}, "take_over: expected True or False, got 0"),
        (
            {"config": Config(), "state_dir": "x", "fsync": "often"},
            "fsync: expected one of never, interval, always, got",
        ),
        ({"config": Config(), "fsync": "always"}, "state_dir: expected a folder beside fsync='always', got none"),
        ({"config": Config(), "take_over": True}, "state_dir: expected a folder beside take_over, got none"),
    ],
)
def test_what_cannot_be_meant_is_refused(given, said):
    with pytest.raises(ConfigError) as raised, launch(**given):
        pass
    assert str(raised.value).startswith(said)

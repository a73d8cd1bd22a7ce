"""endpoint.py: which addresses are served, which are refused and why, and that nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import socket
import stat

import faults
import pytest
import zmq

from plr_client import AddressTaken, ConfigError, LevelClient, ServerStartError
from plr_server.serving.endpoint import listening


@pytest.fixture
def router():
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.linger = 0
        yield socket


@contextlib.contextmanager
def another_router():
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.linger = 0
        yield socket


def refusal(router, address, kind, **options):
    with pytest.raises(kind) as raised, listening(router, address, **options):
        pass
    assert type(raised.value) is kind
    return str(raised.value)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# ---- ipc


def test_ipc_is_its_owners_alone_and_leaves_nothing(router, ipc, tmp_path):
    with listening(router, ipc) as bound:
        assert bound == ipc
        assert names(tmp_path) == ["plr.sock", "plr.sock.lock"]
        mode = (tmp_path / "plr.sock").stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert not mode & 0o077
        assert not (tmp_path / "plr.sock.lock").stat().st_mode & 0o077
    assert names(tmp_path) == []


def test_the_callers_umask_is_as_before(router, ipc):
    before = os.umask(0o022)
    try:
        with listening(router, ipc):
            assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


def test_an_exception_leaves_nothing(router, ipc, tmp_path):
    with pytest.raises(KeyError), listening(router, ipc):
        raise KeyError
    assert names(tmp_path) == []


def test_an_ipc_path_of_ours_is_taken(router, ipc, tmp_path):
    with listening(router, ipc), another_router() as second:
        assert refusal(second, ipc, AddressTaken) == (
            f"address: expected a free one, got {ipc}, taken by the server of process {os.getpid()}; "
            "stop it or choose another --bind"
        )
        assert names(tmp_path) == ["plr.sock", "plr.sock.lock"]
    with another_router() as third, listening(third, ipc):
        pass  # free again


def test_an_ipc_path_of_another_program_is_taken_and_stays_its(router, ipc, tmp_path):
    with faults.other_program(tmp_path / "plr.sock"):
        assert refusal(router, ipc, AddressTaken) == (
            f"address: expected a free one, got {ipc}, taken by another program that listens there; "
            "stop it or choose another --bind"
        )
        assert names(tmp_path) == ["plr.sock"]


def test_another_program_too_busy_to_accept_is_still_there(router, ipc, tmp_path):
    path = str(tmp_path / "plr.sock")
    with faults.other_program(path), contextlib.ExitStack() as waiting:
        error = 0
        while not error:  # until its backlog is full
            probe = waiting.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            probe.setblocking(False)
            error = probe.connect_ex(path)
        assert "another program" in refusal(router, ipc, AddressTaken)


def test_a_stale_socket_and_lock_are_taken_over(router, ipc, tmp_path):
    faults.stale_socket(tmp_path / "plr.sock")
    (tmp_path / "plr.sock.lock").write_text("99999999 of an earlier life")
    with listening(router, ipc):
        assert (tmp_path / "plr.sock.lock").read_text() == str(os.getpid())
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.connect(str(tmp_path / "plr.sock"))
    assert names(tmp_path) == []


def test_a_file_that_is_no_socket_is_left_alone(router, ipc, tmp_path):
    (tmp_path / "plr.sock").write_text("precious")
    assert refusal(router, ipc, ServerStartError) == (
        f"bind: expected a path where nothing is yet, got the file {tmp_path}/plr.sock"
    )
    assert (tmp_path / "plr.sock").read_text() == "precious"
    assert names(tmp_path) == ["plr.sock"]


def test_a_folder_is_no_socket(router, tmp_path):
    assert refusal(router, f"ipc://{tmp_path}", ServerStartError) == (
        f"bind: expected a path where nothing is yet, got the folder {tmp_path}"
    )


def test_a_missing_folder(router, tmp_path):
    assert refusal(router, f"ipc://{tmp_path}/none/plr.sock", ServerStartError) == (
        f"bind: expected a folder that can be written, got {tmp_path}/none (No such file or directory)"
    )


@pytest.mark.parametrize(
    "path",
    ["/run/" + "x" * 103, "/run/" + "é" * 52, "", "*", "@abstract"],
    ids=["108 bytes", "109 bytes of 57 characters", "none", "wildcard", "abstract"],
)
def test_ipc_paths_that_cannot_be(router, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refusal(router, f"ipc://{path}", ConfigError)
    assert message.startswith(
        "bind: expected an ipc path of 1 to 107 bytes (the system's limit), no @ or *, got ipc://"
    )
    assert names(tmp_path) == []


def test_the_longest_ipc_path(router, tmp_path):
    room = 107 - len(os.fsencode(tmp_path)) - 1
    path = tmp_path / ("x" * room)
    with listening(router, f"ipc://{path}"), another_router() as peer:
        peer.connect(f"ipc://{path}")
    assert names(tmp_path) == []


# ---- tcp


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:0", "tcp://127.0.0.1:*", "tcp://localhost:0", "tcp://127.1.2.3:0"]
)
def test_loopback_tcp_gets_a_free_port(router, address):
    with listening(router, address) as bound:
        host, _, port = bound.removeprefix("tcp://").rpartition(":")
        socket.create_connection((host, int(port)), timeout=faults.DEADLINE_S).close()


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_ipv6_is_bound_and_found():
    with faults.daemon("tcp://[::1]:0") as server, LevelClient(server.address) as client:
        assert server.address.startswith("tcp://[::1]:")
        assert len(client.next(2)) == 2


def test_a_tcp_port_is_taken(router):
    with listening(router, "tcp://127.0.0.1:0") as bound, another_router() as second:
        assert refusal(second, bound, AddressTaken) == (
            f"address: expected a free one, got {bound}, taken by another process; stop it or choose another --bind"
        )


@pytest.mark.parametrize("host", ["0.0.0.0", "*", "192.0.2.7", "lo", "example.org", "[::]"])  # noqa: S104
def test_beyond_loopback_is_refused_unless_said_aloud(router, host):
    assert refusal(router, f"tcp://{host}:0", ConfigError) == (
        "bind: expected a loopback address such as tcp://127.0.0.1:5555, or --keys DIR (plr-server keygen makes them), "
        "or --insecure said aloud, and then whoever reaches it may read and change the curriculum, got "
        f"tcp://{host}:0"
    )


def test_insecure_binds_beyond_loopback(router):
    with listening(router, "tcp://0.0.0.0:0", insecure=True) as bound:
        assert bound.startswith("tcp://0.0.0.0:")
        port = int(bound.rpartition(":")[2])
        socket.create_connection(("127.0.0.1", port), timeout=faults.DEADLINE_S).close()


@pytest.mark.parametrize("port", ["", ":", ":http", ":-1", ":65536", ":99999"])
def test_ports_that_cannot_be(router, port):
    assert refusal(router, f"tcp://127.0.0.1{port}", ConfigError) == (
        f"bind: expected tcp://HOST:PORT with a port from 0 (a free one) to 65535, got tcp://127.0.0.1{port}"
    )


def test_an_address_of_another_machine_cannot_be_bound(router):
    message = refusal(router, "tcp://192.0.2.7:0", ServerStartError, insecure=True)
    assert message.startswith(
        "bind: expected an address that can be bound, got tcp://192.0.2.7:0 (Cannot assign requested"
    )


def test_a_scheme_that_was_forgotten_is_told(router):
    assert refusal(router, "127.0.0.1:5555", ConfigError) == (
        "bind: expected ipc://PATH or tcp://HOST:PORT, such as tcp://127.0.0.1:5555, got '127.0.0.1:5555'"
    )


@pytest.mark.parametrize("address", ["", "5555", "inproc://plr", "udp://127.0.0.1:5555", "/run/plr.sock"])
def test_other_addresses(router, address):
    assert refusal(router, address, ConfigError) == f"bind: expected ipc://PATH or tcp://HOST:PORT, got {address!r}"

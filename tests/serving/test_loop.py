"""plr_server/serving/loop.py: a real server under bad input, vanishing workers, repeated requests and stop signals."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading

import faults
import numpy as np
import pytest

from plr_client import InvalidInput, LevelClient, ServerUnreachable, Trainer
from plr_client.protocol import Notice
from plr_server import Config, Curriculum
from plr_server.durability.state_dir import StateDir
from plr_server.serving.dispatch import Dispatcher
from plr_server.serving.endpoint import listening
from plr_server.serving.loop import _Loop
from plr_server.serving.restart import restart
from plr_server.serving.wire import Wire

# ---- bad input


@pytest.fixture
def raw(server):
    with faults.Raw(server.address) as connected:
        yield connected


# A DEALER cannot send no frame at all; the others are for a session that is there.
@pytest.mark.parametrize("name", sorted(set(faults.BAD_FRAMES) - {"no frame", "an unknown op", "an unknown field"}))
def test_bad_frames_get_one_typed_error_and_the_server_lives_on(raw, trainer, name):
    frames, code, text = faults.BAD_FRAMES[name]
    trainer.push(**faults.block())
    before = faults.seen_from_outside(trainer)
    error = raw.ask(frames).error
    assert error.code == code
    assert text in str(error)
    assert faults.same(faults.seen_from_outside(trainer), before)
    assert raw.ask(faults.hello(name[:64])).result["max_frame_bytes"] > 0


def test_a_nan_of_any_bits_is_refused_also_where_warnings_are_errors(ipc, monkeypatch):
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    signalling = np.full((3, 2), 0x7F800001, dtype=np.uint32).view(np.float32)
    with faults.daemon(ipc), faults.Raw(ipc) as raw:
        raw.ask(faults.hello())
        error = raw.ask(faults.request("push", faults.block(values=signalling))).error
        assert (type(error), error.field) == (InvalidInput, "values")


def test_an_oversized_frame_costs_its_sender_the_connection_and_nobody_else(ipc):
    with faults.daemon(ipc, "--max-frame-bytes", "65536") as server, Trainer(server.address) as trainer:
        trainer.push_scores([1], [0.5])
        before = faults.seen_from_outside(trainer)
        with faults.Raw(server.address) as raw:
            assert raw.ask(faults.hello()).result["max_frame_bytes"] == 65536
            too_much = {"levels": np.zeros(8193, dtype=np.int64), "scores": np.zeros(8193)}
            with raw.hung_up_on():
                raw.send(faults.request("push_scores", too_much))
            assert faults.same(faults.seen_from_outside(trainer), before)
            assert raw.ask(faults.hello(seq=3)).error is None  # it may come back


def test_a_peer_that_speaks_no_zeromq_is_no_trouble(server, trainer):
    path = server.address.removeprefix("ipc://")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger:
        stranger.connect(path)
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
        trainer.stats()
    assert trainer.stats()["levels"] == 10


def test_a_peer_that_speaks_an_old_zeromq_is_refused_in_its_language(bind):
    """Of a peer of ZMTP 1.0, and any noise may be one, libzmq cannot tell which connection it has."""
    with faults.daemon(bind) as server, Trainer(server.address) as trainer, faults.plain(server.address) as old:
        old.sendall(b"\x01\x00" + b"\x05\x00abcd" + b"\x05\x01some\x05\x00more")  # who it is, then two messages
        told = b""
        while told.count(b"transport: expected ZMTP 3") < 2:
            told += old.recv(4096)
        assert trainer.stats()["sessions"] == 1


def test_a_client_that_never_reads_its_replies_is_no_trouble(ipc):
    with faults.daemon(ipc, "--levels", "0:100000") as server, faults.Raw(server.address) as deaf:
        deaf.ask(faults.hello("deaf"))
        for seq in range(2, 302):
            deaf.send(faults.request("weights", session="deaf", seq=seq))  # 240 MB of replies
        with Trainer(server.address) as trainer:
            assert trainer.push_scores([1], [0.5]) == 1
            assert trainer.stats()["pushes"] == 1


# ---- each request once


def test_a_request_sent_twice_is_applied_once_and_answered_twice(raw, trainer):
    before = trainer.stats()
    raw.ask(faults.hello())
    push = faults.request("push", faults.block())
    first, second = raw.ask(push), raw.ask(push)
    assert first.result == second.result == {"scored": 3}
    assert trainer.stats()["pushes"] == before["pushes"] + 1


def test_a_request_whose_reply_was_lost_is_repeated_on_a_new_connection(server, trainer):
    before = trainer.stats()
    with faults.Raw(server.address) as raw:
        raw.ask(faults.hello("lost"))
        first = raw.ask(faults.request("next", session="lost", args={"k": 6}))
    with faults.Raw(server.address) as raw:
        assert raw.ask(faults.hello("lost", seq=3, connection=2)).result["applied"] == 2
        again = raw.ask(faults.request("next", session="lost", args={"k": 6}, connection=2))
        assert again == first
        assert trainer.stats()["draws"] == before["draws"] + 6
        late = raw.ask(faults.hello("lost"))
        assert late.error.code == "out_of_step"
        assert raw.ask(faults.request("goodbye", session="lost", seq=4, connection=2)).error is None
    assert trainer.stats()["in_flight"] == before["in_flight"]


def test_a_late_copy_on_a_dead_connection_takes_no_levels_from_a_living_client(ipc):
    with faults.daemon(ipc) as server, Trainer(ipc) as trainer, faults.Raw(ipc) as alive:
        with faults.Raw(ipc) as dead:
            dead.ask(faults.hello())
            assert alive.ask(faults.hello(seq=3, connection=2)).error is None
            assert alive.ask(faults.request("next", args={"k": 3}, connection=2)).error is None
            dead.ask(faults.request("next", args={"k": 3}))  # the copy that was on its way
        with faults.script(WORKER, server.address, 1) as worker:  # another one that goes, later: it is noticed after
            assert worker.stdout.readline() == "playing\n"
            assert trainer.stats()["in_flight"] == 5
            worker.kill()
            worker.wait()
        faults.eventually(lambda: trainer.stats()["in_flight"] == 3, "the killed worker's levels are back", 10.0)
        alive.ask(faults.request("next", seq=3, args={"k": 3}, connection=2))
        assert trainer.stats()["in_flight"] == 3


# ---- clients that vanish

WORKER = """
import sys
from plr_client import LevelClient
clients = [LevelClient(sys.argv[1]) for _ in range(int(sys.argv[2]))]
for slots, client in enumerate(clients, start=1):
    client.next(1 + slots % 3)
for client in clients[: len(clients) // 2]:
    client.close()
print("playing", flush=True)
sys.stdin.readline()
"""


def test_levels_of_a_worker_killed_in_mid_episode_are_back(bind):
    with faults.daemon(bind) as server, Trainer(server.address) as trainer:
        with faults.script(WORKER, server.address, 1) as worker:
            assert worker.stdout.readline() == "playing\n"
            assert trainer.stats()["in_flight"] == 2
            worker.kill()
            worker.wait()
        faults.eventually(lambda: trainer.stats()["in_flight"] == 0, "the killed worker's levels are back", 10.0)
        with LevelClient(server.address) as client:
            assert len(client.next(3)) == 3


def test_a_hundred_workers_come_and_go(bind):
    with faults.daemon(bind) as server, Trainer(server.address) as trainer, contextlib.ExitStack() as stack:
        workers = [stack.enter_context(faults.script(WORKER, server.address, 25)) for _ in range(4)]
        for worker in workers:
            assert worker.stdout.readline() == "playing\n"
        assert trainer.stats()["in_flight"] > 50
        for worker in workers[:2]:
            worker.kill()
        for worker in workers[2:]:
            worker.communicate("go\n", timeout=faults.DEADLINE_S)  # ends without closing its clients
            assert worker.returncode == 0
        faults.eventually(lambda: trainer.stats()["in_flight"] == 0, "every level is back", 10.0)
        assert trainer.stats()["sessions"] <= 4 * 13 + 1  # those that said goodbye are forgotten
        with LevelClient(server.address) as client:
            assert len(client.next(64)) == 64
            assert trainer.stats()["in_flight"] == 64


def test_levels_come_back_while_others_keep_coming_and_going(ipc):
    with faults.daemon(ipc) as server, Trainer(server.address) as trainer:
        over = threading.Event()

        def churn():
            while not over.is_set():
                with faults.Raw(server.address) as passer_by:
                    passer_by.ask(faults.hello("passer-by"))

        crowd = threading.Thread(target=churn)
        with faults.script(WORKER, server.address, 1) as worker:
            assert worker.stdout.readline() == "playing\n"
            crowd.start()
            worker.kill()
        try:
            faults.eventually(lambda: trainer.stats()["in_flight"] == 0, "the killed worker's levels are back", 3.0)
        finally:
            over.set()
            crowd.join()


@pytest.fixture
def loop(ipc):
    """The server's loop, to be turned by hand."""
    dispatcher = Dispatcher({"default": Curriculum(Config(num_steps=3))}, max_frame_bytes=1 << 20)
    with contextlib.ExitStack() as stack:
        wire = Wire(1 << 20)
        stack.callback(wire.close)
        stack.enter_context(listening(wire.router, ipc))
        stack.callback(wire.close)
        yield _Loop(dispatcher, wire, None)


def turn(loop):
    loop._answer_some()
    loop._note_closed()
    loop._do_what_is_due()


def asked(loop, raw, frames):
    raw.send(frames)
    faults.eventually(lambda: turn(loop) or raw.socket.poll(0), "the request is answered")
    reply = raw.receive()
    assert reply.error is None
    return reply


@pytest.mark.parametrize("size", [1, 20_000], ids=["small", "put off"])
def test_what_comes_while_replies_go_out_is_not_left_until_the_next_look(ipc, tmp_path, monkeypatch, size):
    """That look is an hour away; the replies of a batch go out after its sync, and those of large requests last."""
    monkeypatch.setattr("plr_server.serving.loop.TICK_S", 3600.0)
    dispatcher = Dispatcher({"default": Curriculum(Config(levels=range(10)))}, max_frame_bytes=1 << 20)
    scores = {"levels": np.zeros(size, int), "scores": np.zeros(size)}
    with contextlib.ExitStack() as stack:
        log = StateDir(tmp_path / "state", fsync="always" if size == 1 else "never")
        stack.callback(log.close)
        restart(dispatcher, log)
        wire = Wire(1 << 20)
        stack.callback(wire.close)
        stack.enter_context(listening(wire.router, ipc))
        stack.callback(wire.close)
        told, stop = (stack.enter_context(each) for each in socket.socketpair())
        loop = threading.Thread(target=_Loop(dispatcher, wire, told, log).run, args=[None])
        loop.start()
        stack.callback(loop.join)
        stack.callback(stop.send, b"stop")
        with Trainer(ipc, timeout_s=faults.DEADLINE_S) as trainer:
            for _ in range(200):
                trainer.push_scores(**scores, wait=False)
            trainer.flush()
            assert trainer.counters()["pushes"] == 200


def test_pings_do_not_pile_up_at_a_client_in_a_long_episode(loop, ipc):
    """Connections of others that close are no reason to ask after this one."""
    with faults.Raw(ipc) as plays:
        asked(loop, plays, faults.hello("plays"))
        asked(loop, plays, faults.request("next", session="plays", args={"k": 1}))
        gone = []
        for i in range(100):
            with faults.Raw(ipc) as passer_by:
                asked(loop, passer_by, faults.hello(f"{i}"))
            gone.append(f"{i}")
        faults.eventually(lambda: turn(loop) or loop._num_due >= 300, "all are seen to be gone")
        assert not plays.socket.poll(0)
        assert asked(loop, plays, faults.request("next", session="plays", seq=3, args={"k": 1})).id == 3


def test_sessions_whose_peer_is_gone_are_forgotten_in_time_and_others_are_not(loop, ipc, monkeypatch):
    step = {name: array[0] for name, array in faults.block().items() if name != "next_values"}
    step["next_values"] = np.zeros(2)
    names = loop.dispatcher.sessions
    with faults.Raw(ipc) as stays, faults.Raw(ipc) as leaves:
        for raw, name in ((stays, "stays"), (leaves, "leaves")):
            asked(loop, raw, faults.hello(name))
            asked(loop, raw, faults.request("push_step", step, session=name))
        leaves.socket.close()
        monkeypatch.setattr("plr_server.serving.loop.LOOK_AFTER_S", (0.0, 0.01))
        monkeypatch.setattr("plr_server.serving.loop.RETURN_WITHIN_S", 3600.0)
        faults.eventually(lambda: turn(loop) or loop._num_due > 2, "it is seen to be gone")
        assert list(names) == ["stays", "leaves"]  # it may come back, with its pooled steps

        def forgotten():
            loop._due[:] = [(0.0, number, do) for _, number, do in loop._due]  # the hour is over
            turn(loop)
            return "leaves" not in names

        faults.eventually(forgotten, "the transport has noticed")
        (curriculum,) = loop.dispatcher.curricula.values()
        assert list(names) == list(curriculum.state()["scorer"]["pools"]) == ["stays"]


def test_who_is_gone_before_its_first_request_is_read_is_seen_to_be_gone(loop, ipc):
    """Its connection closes before the loop knows who speaks there."""
    wire, sessions = loop._wire, loop.dispatcher.sessions
    with faults.Raw(ipc) as leaves:
        leaves.send(faults.hello())
        leaves.send(faults.request("next", args={"k": 2}))
        faults.eventually(lambda: wire.router.poll(0), "a request has come")
        faults.eventually(lambda: loop._note_closed() or wire._connections, "it is there")
    faults.eventually(lambda: loop._note_closed() or not wire._connections, "it is gone")
    assert not sessions
    loop._answer_some()
    assert list(sessions) == [faults.SESSION]
    stats = loop.dispatcher.curricula["default"].stats
    faults.eventually(lambda: turn(loop) or not stats()["in_flight"], "its levels are back")
    assert not wire._known


def test_a_session_that_comes_back_in_time_is_kept(loop, ipc, monkeypatch):
    monkeypatch.setattr("plr_server.serving.loop.LOOK_AFTER_S", (0.0, 0.01))
    with faults.Raw(ipc) as first:
        asked(loop, first, faults.hello())
    faults.eventually(lambda: turn(loop) or loop._num_due > 2, "it is seen to be gone")
    with faults.Raw(ipc) as second:
        asked(loop, second, faults.hello(seq=3, connection=2))
        asked(loop, second, faults.request("next", args={"k": 2}, connection=2))
        loop._due[:] = [(0.0, number, do) for _, number, do in loop._due]
        turn(loop)
        assert list(loop.dispatcher.sessions) == [faults.SESSION]
        assert loop.dispatcher.curricula["default"].stats()["in_flight"] == 2


# ---- the end


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_tells_the_clients_leaves_nothing_and_exits_0(bind, number):
    with faults.daemon(bind) as server, faults.Raw(server.address) as raw:
        raw.ask(faults.hello())
        assert server.stop(number) == 0
        assert raw.receive() == Notice("closing")
        assert faults.left_beside(server.address) == []


def test_a_second_signal_does_not_spoil_the_first(ipc):
    with faults.daemon(ipc) as server:
        server.process.send_signal(signal.SIGINT)
        server.process.send_signal(signal.SIGTERM)
        assert server.stop(signal.SIGINT) == 0
        assert faults.left_beside(ipc) == []


def test_a_stop_during_a_burst_of_requests(ipc):
    with faults.daemon(ipc) as server, contextlib.ExitStack() as stack:
        answered, outcomes = threading.Event(), []

        def burst():
            client = stack.enter_context(LevelClient(ipc, timeout_s=5.0))
            try:
                while True:
                    client.next(8)
                    answered.set()
            except ServerUnreachable as error:
                outcomes.append(error.hint)

        crowd = [threading.Thread(target=burst) for _ in range(4)]
        for member in crowd:
            member.start()
        assert answered.wait(faults.DEADLINE_S)
        with faults.Raw(ipc) as flood:
            flood.ask(faults.hello("flood"))
            for seq in range(2, 2001):
                flood.send(faults.request("next", {"slots": np.arange(64)}, session="flood", seq=seq))
            assert server.stop() == 0
        assert faults.left_beside(ipc) == []
        for member in crowd:
            member.join(faults.DEADLINE_S)
        assert outcomes == ["the server said it was stopping: start it again, it is found by itself"] * 4


def test_a_server_whose_parent_is_gone_stops(ipc):
    with faults.daemon(ipc, "--parent-pid", "1" if os.getpid() != 1 else "2") as server:
        assert server.process.wait(faults.DEADLINE_S) == 0
        assert faults.left_beside(ipc) == []


# ---- starts that are refused


def test_a_taken_ipc_path_is_refused_with_the_reason(ipc):
    with faults.daemon(ipc) as server:
        assert faults.refused("--bind", ipc) == (
            f"plr-server: address: expected a free one, got {ipc}, taken by the server of process "
            f"{server.process.pid}; stop it or choose another --bind\n"
        )
        with Trainer(ipc) as trainer:
            assert trainer.stats()["levels"] == 200  # the first one is unharmed


def test_a_taken_tcp_port_is_refused_with_the_reason():
    with faults.daemon("tcp://127.0.0.1:0") as server:
        assert faults.refused("--bind", server.address) == (
            f"plr-server: address: expected a free one, got {server.address}, taken by another process; "
            "stop it or choose another --bind\n"
        )


def test_a_killed_servers_address_is_taken_over(ipc):
    with faults.daemon(ipc) as server:
        server.kill()
        assert len(faults.left_beside(ipc)) == 2
    with faults.daemon(ipc) as server, Trainer(ipc) as trainer:
        assert trainer.stats()["draws"] == 0
        assert server.stop() == 0
    assert faults.left_beside(ipc) == []


def test_beyond_loopback_only_when_said_aloud():
    assert faults.refused("--bind", "tcp://0.0.0.0:0") == (
        "plr-server: bind: expected a loopback address such as tcp://127.0.0.1:5555, or --keys DIR (plr-server keygen "
        "makes them), or --insecure said aloud, and then whoever reaches it may read and change the curriculum, got "
        "tcp://0.0.0.0:0\n"
    )
    with faults.daemon("tcp://0.0.0.0:0", "--insecure") as server:
        port = server.address.rpartition(":")[2]
        with LevelClient(f"tcp://127.0.0.1:{port}") as client:
            assert len(client.next()) == 1


@pytest.mark.parametrize("limit", ["0", "-1", "65535"])
def test_a_limit_that_no_header_fits_is_refused(ipc, limit):
    assert faults.refused("--bind", ipc, "--max-frame-bytes", limit) == (
        f"plr-server: max_frame_bytes: expected an integer, 65536 or more, got {limit}\n"
    )
    assert faults.left_beside(ipc) == []

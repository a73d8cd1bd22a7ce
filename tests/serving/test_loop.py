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
import zmq

from plr_client import LevelClient, ServerUnreachable, Trainer
from plr_client.protocol import Notice
from plr_server import Config, Curriculum
from plr_server.serving.dispatch import Dispatcher
from plr_server.serving.endpoint import listening
from plr_server.serving.loop import _Loop

# ---- bad input


@pytest.fixture
def raw(server):
    with faults.Raw(server.address) as connected:
        yield connected


@pytest.mark.parametrize("name", sorted(set(faults.BAD_FRAMES) - {"no frame"}))  # a DEALER cannot send no frame at all
def test_bad_frames_get_one_typed_error_and_the_server_lives_on(raw, trainer, name):
    frames, code, text = faults.BAD_FRAMES[name]
    raw.send(faults.request("goodbye", session="fault"))  # whatever an earlier case left under this name
    trainer.push(**faults.block())
    before = faults.seen_from_outside(trainer)
    error = raw.ask(frames).error
    assert error.code == code
    assert text in str(error)
    assert faults.same(faults.seen_from_outside(trainer), before)
    assert raw.ask(faults.request("hello")).result["max_frame_bytes"] > 0


def test_an_oversized_frame_costs_its_sender_the_connection_and_nobody_else(ipc):
    with faults.daemon(ipc, "--max-frame-bytes", "65536") as server, Trainer(server.address) as trainer:
        trainer.push_scores([1], [0.5])
        before = faults.seen_from_outside(trainer)
        with faults.Raw(server.address) as raw:
            assert raw.ask(faults.request("hello")).result == {"max_frame_bytes": 65536}
            too_much = {"levels": np.zeros(8193, dtype=np.int64), "scores": np.zeros(8193)}
            with raw.hung_up_on():
                raw.send(faults.request("push_scores", too_much))
            assert faults.same(faults.seen_from_outside(trainer), before)
            assert raw.ask(faults.request("hello")).error is None  # it may come back


def test_a_peer_that_speaks_no_zeromq_is_no_trouble(server, trainer):
    path = server.address.removeprefix("ipc://")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger:
        stranger.connect(path)
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
        trainer.stats()
    assert trainer.stats()["levels"] == 10


def test_a_client_that_never_reads_its_replies_is_no_trouble(ipc):
    with faults.daemon(ipc, "--levels", "0:100000") as server, faults.Raw(server.address) as deaf:
        for seq in range(1, 301):
            deaf.send(faults.request("weights", session="deaf", seq=seq))  # 240 MB of replies
        with Trainer(server.address) as trainer:
            assert trainer.push_scores([1], [0.5]) == 1
            assert trainer.stats()["pushes"] == 1


# ---- each request once


def test_a_request_sent_twice_is_applied_once_and_answered_twice(raw, trainer):
    before = trainer.stats()
    push = faults.request("push", faults.block())
    first, second = raw.ask(push), raw.ask(push)
    assert first.result == second.result == {"scored": 3}
    assert trainer.stats()["pushes"] == before["pushes"] + 1


def test_a_request_whose_reply_was_lost_is_repeated_on_a_new_connection(server, trainer):
    before = trainer.stats()
    ask = faults.request("next", {"slots": np.arange(6)}, session="lost")
    with faults.Raw(server.address) as raw:
        first = raw.ask(ask)
    with faults.Raw(server.address) as raw:
        again = raw.ask(ask)
        assert again.arrays["levels"].tolist() == first.arrays["levels"].tolist()
        assert trainer.stats()["draws"] == before["draws"] + 6
        assert str(raw.ask(faults.request("next", {"slots": np.arange(6)}, session="lost", seq=0)).error) == (
            "seq: expected more than 1, got 0"
        )
        raw.send(faults.request("goodbye", session="lost", seq=2))
    faults.eventually(lambda: trainer.stats()["in_flight"] == before["in_flight"], "the levels are back")


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
                    passer_by.ask(faults.request("stats", session="passer-by"))

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


@contextlib.contextmanager
def loop_without_a_process(ipc):
    """The server's loop, to be turned by hand."""
    dispatcher = Dispatcher({"default": Curriculum(Config(num_steps=3))}, max_frame_bytes=1 << 20)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router, listening(router, ipc):
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        router.setsockopt(zmq.LINGER, 0)
        with router.get_monitor_socket(zmq.EVENT_DISCONNECTED) as monitor:
            yield _Loop(dispatcher, router, monitor, None)
            router.disable_monitor()


def test_a_later_disconnect_does_not_put_off_the_look_for_an_earlier_one(ipc):
    with loop_without_a_process(ipc) as loop:
        loop._note_disconnects()
        first_s, again_s = loop._sweeps_s
        loop._note_disconnects()
        assert loop._sweeps_s[0] == first_s
        assert loop._sweeps_s[1] > again_s


def test_sessions_whose_peer_is_gone_are_forgotten_in_time_and_others_are_not(ipc):
    step = {name: array[0] for name, array in faults.block().items() if name != "next_values"}
    step["next_values"] = np.zeros(2)
    with loop_without_a_process(ipc) as loop, faults.Raw(ipc) as stays, faults.Raw(ipc) as leaves:
        for raw, name in ((stays, "stays"), (leaves, "leaves")):
            raw.send(faults.request("push_step", step, session=name))
            assert loop._router.poll(int(faults.DEADLINE_S * 1000))
            loop._answer_some()
            assert raw.receive().error is None
        leaves.socket.close()
        loop._look_after_sessions()
        assert list(loop.dispatcher.sessions) == ["stays", "leaves"]  # it may come back, with its pooled steps

        def forgotten():
            loop._forget_s = 0.0
            loop._look_after_sessions()
            return "leaves" not in loop.dispatcher.sessions

        faults.eventually(forgotten, "the transport has noticed")
        (curriculum,) = loop.dispatcher.curricula.values()
        assert list(loop.dispatcher.sessions) == list(curriculum.state()["scorer"]["pools"]) == ["stays"]


# ---- the end


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_tells_the_clients_leaves_nothing_and_exits_0(bind, number):
    with faults.daemon(bind) as server, faults.Raw(server.address) as raw:
        raw.ask(faults.request("next", {"slots": np.arange(2)}))
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
            client = stack.enter_context(LevelClient(ipc, timeout_s=1.0))
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
            for seq in range(1, 2001):
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
        "plr-server: bind: expected a loopback address such as tcp://127.0.0.1:5555, or --insecure said aloud: without "
        "it nobody beyond this machine may read or change the curriculum, got tcp://0.0.0.0:0\n"
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

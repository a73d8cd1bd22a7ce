"""wire.py: what one client, or many, can make the server hold: descriptors, requests, replies."""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
from pathlib import Path

import faults
import numpy as np
import zmq

from plr_client import LevelClient, RepliesUnread, TooManySessions, Trainer
from plr_client.protocol import Reply, decode_reply, encode_reply
from plr_server.serving import wire
from plr_server.serving.endpoint import listening


def resident_bytes(pid, what="VmRSS"):
    """The memory of a process: now, or VmHWM at its highest."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def open_files(pid):
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


# ---- descriptors

FILES = 200  # a quarter of which the server keeps free
AT_ONCE = 10  # connections between two signs that its loop goes round: a busy machine must not let them pile up


@contextlib.contextmanager
def daemon_after(code, bind):
    """A server in whose process some code runs first."""
    start = "import sys; from plr_server.__main__ import main; sys.exit(main(['serve', '--bind', sys.argv[1]]))"
    command = [sys.executable, "-c", f"{code}; {start}", bind]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603  our own command
    try:
        ready = faults.READY.fullmatch(process.stdout.readline())
        yield faults.Daemon(process, ready[1], ready[0])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextlib.contextmanager
def daemon_with_files(bind, soft, hard):
    """A server that may open so many files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with daemon_after(f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))", bind) as server:
        yield server
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before


@contextlib.contextmanager
def crowd(address):
    """Makes connected sockets, one after the other."""
    with zmq.Context() as context:
        context.max_sockets = 4000
        sockets = []

        def connect():
            sockets.append(context.socket(zmq.DEALER))
            sockets[-1].linger = 0
            sockets[-1].connect(address)
            return sockets[-1]

        try:
            yield connect
        finally:
            for each in sockets:
                each.close()


def test_the_soft_limit_is_raised(bind):
    with daemon_with_files(bind, 40, 2000) as server, crowd(server.address) as connect:
        for number in range(300):
            one = connect()
            one.send_multipart(faults.hello(f"{number}"))
            assert one.poll(int(faults.DEADLINE_S * 1000))
            assert decode_reply(one.recv_multipart()).error is None
        assert open_files(server.process.pid) > 300
        with Trainer(server.address) as trainer:
            assert trainer.stats()["sessions"] == 301


def test_short_of_files_no_client_is_taken_on_and_those_there_go_on(bind):
    with (
        daemon_with_files(bind, FILES, FILES) as server,
        Trainer(server.address) as trainer,
        LevelClient(server.address) as client,
        crowd(server.address) as connect,
    ):
        client.next()
        trainer.stats()
        refused = None
        taken = 2
        while refused is None:
            one = connect()
            one.send_multipart(faults.hello(f"{taken}"))
            assert one.poll(int(faults.DEADLINE_S * 1000)), taken
            refused = decode_reply(one.recv_multipart()).error
            taken += refused is None
            assert taken < FILES
        assert type(refused) is TooManySessions
        assert taken > 40
        for _ in range(FILES // AT_ONCE):  # connections that say nothing: it hangs up on some
            for _ in range(AT_ONCE):
                connect()
            assert len(client.next(3)) == 3
        full = 0.6 * FILES
        faults.eventually(
            lambda: trainer.push_scores([1], [0.5]) and open_files(server.process.pid) > full, "it is full"
        )
        faults.eventually(lambda: open_files(server.process.pid) < FILES, "those beyond are hung up on")
        assert server.process.poll() is None


def test_when_connections_close_there_is_room_again(bind):
    with daemon_with_files(bind, FILES, FILES) as server, Trainer(server.address) as trainer:
        with crowd(server.address) as connect:
            for _ in range(FILES // AT_ONCE + 5):
                trainer.stats()
                for _ in range(AT_ONCE):
                    connect()
            full = 0.6 * FILES
            faults.eventually(lambda: trainer.stats() and open_files(server.process.pid) > full, "it is full")
        with LevelClient(server.address, timeout_s=faults.DEADLINE_S) as client:
            faults.eventually(lambda: taken_on(client), "there is room")
        assert server.stop() == 0
        assert not server.address.startswith("ipc") or faults.left_beside(server.address) == []


def taken_on(client):
    with contextlib.suppress(TooManySessions):
        return len(client.next()) == 1
    return False


# ---- requests


def test_a_message_of_too_many_frames_is_not_kept(server, trainer):
    trainer.stats()
    blob = bytes(1_000_000)
    with faults.Raw(server.address) as raw:
        error = raw.ask([faults.header(), *[blob] * 100]).error
        assert str(error).startswith("frames: expected at most 16, got 101")
        assert raw.ask(faults.hello("frames")).error is None


def test_a_request_has_a_limit_in_all(ipc):
    with faults.daemon(ipc, "--max-frame-bytes", "65536"), faults.Raw(ipc) as raw:
        raw.ask(faults.hello())
        arrays = {name: np.zeros(60_000, dtype=np.uint8) for name in ("values", "rewards", "dones", "levels", "valid")}
        reply = raw.ask(faults.request("push", arrays))
        assert reply.id == 2
        assert str(reply.error).startswith("all arrays: expected at most 262144, got 300")


def test_a_busy_server_holds_few_requests_of_a_connection(ipc):
    with (
        contextlib.closing(wire.Wire(1 << 21)) as made,
        listening(made.router, ipc),
        faults.Raw(ipc) as raw,
    ):
        raw.socket.setsockopt(zmq.SNDHWM, 1)
        with contextlib.suppress(zmq.Again):
            for number in range(200):
                assert number < 50, "so many of 1 MB are held, here and there"
                assert raw.socket.poll(500, zmq.POLLOUT) or number > 0
                raw.socket.send(bytes(1_000_000), zmq.DONTWAIT)
        assert made.router.poll(int(faults.DEADLINE_S * 1000))
        made.close()


# ---- messages without an end

HELD = 48_000_000


def test_a_message_without_an_end_costs_its_sender_the_connection(bind):
    limit = f"from plr_server.serving import wire; wire.MAX_HELD_BYTES = {HELD}"
    with daemon_after(limit, bind) as server, Trainer(server.address) as trainer, LevelClient(server.address) as client:
        client.next(3)
        trainer.push_scores([1], [0.5])
        before = resident_bytes(server.process.pid)
        with faults.by_hand(server.address) as first, faults.by_hand(server.address) as second:
            for _ in range(60):
                for endless in (first, second):
                    with contextlib.suppress(ConnectionError):
                        endless.sendall(faults.unfinished(1_000_000))
            for endless in (first, second):
                with contextlib.suppress(ConnectionError):
                    assert endless.recv(1) == b""
        # Nor is more than the limit of what they sent held: it was more than twice that.
        faults.eventually(
            lambda: resident_bytes(server.process.pid) < before + HELD, "what they sent is held no longer"
        )
        # Whoever else it hung up on is back, with all that was theirs.
        assert trainer.push_scores([1], [0.5]) == 1
        assert len(client.next(3)) == 3
        stats = trainer.stats()
        assert (stats["pushes"], stats["sessions"]) == (2, 2)


def test_the_look_at_memory_needs_no_file():
    one = wire.Wire(1 << 20)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.closing(one):
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            assert not one.shed()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_who_finishes_messages_meanwhile_is_spared(monkeypatch, ipc):
    resident = 100_000_000
    monkeypatch.setattr(wire, "_resident_bytes", lambda _: resident)
    with contextlib.closing(wire.Wire(1 << 20)) as made, listening(made.router, ipc), contextlib.ExitStack() as stack:
        talks, silent = (stack.enter_context(faults.Raw(ipc)) for _ in range(2))

        def say(raw):
            raw.send([b"x"])
            assert made.router.poll(int(faults.DEADLINE_S * 1000))
            assert made.receive() is not None

        say(talks)
        say(silent)
        made.closed_peers()
        assert not made.shed()
        resident += wire.MAX_HELD_BYTES
        assert not made.shed()  # as much as may be
        resident += 1
        assert made.shed()
        say(talks)
        with silent.hung_up_on():
            assert not made.shed()
        assert not made.shed()  # what stays is taken for what the curricula need
        faults.eventually(lambda: len(made.closed_peers()) == 1, "it is told who is gone")
        say(talks)
        made.close()


# ---- replies


def test_replies_that_are_not_read_do_not_pile_up(ipc):
    with faults.daemon(ipc, "--levels", "0:200000") as server, faults.Raw(ipc) as deaf, Trainer(ipc) as trainer:
        trainer.scores()
        before = resident_bytes(server.process.pid)
        deaf.socket.setsockopt(zmq.RCVHWM, 1)
        deaf.send(faults.hello("deaf"))
        for seq in range(2, 102):
            deaf.send(faults.request("scores", session="deaf", seq=seq))  # 5 MB each
        for _ in range(20):
            assert trainer.push_scores([1], [0.5]) == 1
            assert len(trainer.scores()[0]) == 200_000
        grown = resident_bytes(server.process.pid, "VmHWM") - before
        assert grown < wire.MAX_UNREAD_BYTES_OF_ONE + 50_000_000


def test_who_does_not_read_is_told_so_in_place_of_a_reply(monkeypatch, ipc):
    monkeypatch.setattr(wire, "MAX_UNREAD_BYTES_OF_ONE", 15_000_000)
    frames = encode_reply(Reply(3, 1, 3, None, {}, {"weights": np.zeros(1_250_000)}))  # 10 MB
    with (
        contextlib.closing(wire.Wire(1 << 20)) as made,
        listening(made.router, ipc),
        faults.Raw(ipc) as deaf,
        faults.Raw(ipc) as reads,
    ):
        peers = []
        for raw in (deaf, reads):
            raw.send([b"x"])
            assert made.router.poll(int(faults.DEADLINE_S * 1000))
            peers.append(made.receive()[0])

        def refusal(number, error):
            return encode_reply(Reply(number, 1, 0, error))

        made.send_reply(peers[0], frames, refusal)
        made.send_reply(peers[0], frames, refusal)
        made.send_reply(peers[1], frames, refusal)  # it has a budget of its own
        assert deaf.receive().error is None
        error = deaf.receive().error
        assert (type(error), error.args) == (RepliesUnread, ("by one client", 15_000_000))
        assert reads.receive().error is None
        faults.eventually(lambda: not made._unread_bytes(), "libzmq has let go of what was read")
        made.send_reply(peers[0], frames, refusal)  # it has caught up
        assert deaf.receive().error is None
        made.close()


def test_no_reply_to_a_quick_client_is_dropped(server):
    """libzmq looks only now and then what a peer has read: a client in lock-step once seemed not to read."""
    with LevelClient(server.address) as client:
        for _ in range(10_000):
            client.next()
        assert client._connection._exchange.num_connections == 1  # nothing was sent again

"""plr_client/connection.py: timeouts, restarts, processes, threads and the interpreter's end."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import re
import signal
import subprocess
import sys
import threading
import time

import faults
import numpy as np
import pytest

from plr_client import InvalidInput, LevelClient, PlrError, ServerUnreachable, SessionExpired, Trainer
from plr_client.connection import Connection
from plr_server import Config, Curriculum
from plr_server.serving.dispatch import Dispatcher

NOT_THERE = "is plr-server running there? (plr-server serve --bind ADDRESS)"
STOPPED = "the server said it was stopping: start it again, it is found by itself"


def unreachable(client, ask="stats"):
    with pytest.raises(ServerUnreachable) as raised:
        getattr(client, ask)()
    return raised.value


# ---- arguments


@pytest.mark.parametrize("timeout_s", [0, -1.0, float("nan")])
def test_a_timeout_is_above_0(timeout_s):
    with pytest.raises(InvalidInput) as raised:
        Trainer("tcp://127.0.0.1:1", timeout_s=timeout_s)
    assert str(raised.value) == f"timeout_s: expected a number of seconds above 0, got {timeout_s}"


def test_an_address_that_zeromq_refuses_is_said_at_the_first_request_and_leaks_nothing():
    address = "tcp://me@127.0.0.1:5555"
    client = LevelClient(address, timeout_s=0.2)
    with pytest.raises(InvalidInput) as raised:
        client.next()
    assert str(raised.value).startswith(f"address: expected an address ZeroMQ can connect to, got {address} (")
    client.close()


def test_nothing_is_opened_before_the_first_request(server):
    client = LevelClient(server.address)
    assert client._connection._socket is None
    client.next()
    assert client._connection._socket is not None
    client.close()


# ---- nobody there


def test_a_timeout_names_address_attempts_and_seconds(ipc):
    with Trainer(ipc, timeout_s=0.2) as trainer:
        started = time.monotonic()
        error = unreachable(trainer)
        took_s = time.monotonic() - started
    assert (error.address, error.attempts, error.hint) == (ipc, 1, NOT_THERE)
    assert 0.2 <= error.waited_s <= took_s < 5.0
    assert str(error) == (f"expected a reply from {ipc}, got none in {error.waited_s:.1f} s and 1 attempt; {NOT_THERE}")


def test_a_request_is_sent_again_on_a_fresh_socket_while_time_is_left():
    with Trainer("tcp://127.0.0.1:9", timeout_s=2.2) as trainer:
        error = unreachable(trainer)
    assert error.attempts == 2
    assert 2.2 <= error.waited_s < 10.0


def test_a_client_may_start_before_its_server(ipc):
    with LevelClient(ipc, timeout_s=faults.DEADLINE_S) as client:
        answers = []
        waiting = threading.Thread(target=lambda: answers.extend(client.next(3)))
        waiting.start()
        faults.eventually(lambda: client._connection._socket is not None, "the client is asking")
        with faults.daemon(ipc):
            waiting.join(faults.DEADLINE_S)
            assert len(answers) == 3


# ---- restarts


def test_a_client_goes_on_with_a_restarted_server(bind):
    with faults.daemon(bind) as first:
        client, trainer = LevelClient(first.address, timeout_s=20.0), Trainer(first.address, timeout_s=20.0)
        client.next(2)
        trainer.push_scores([1], [0.5])
        session = client._connection.session
        first.kill()
    with faults.daemon(first.address) as second:
        assert second.address == first.address
        assert len(client.next(2)) == 2
        trainer.push_scores([2], [0.5])
        assert client._connection.session == session
        stats = trainer.stats()
        assert (stats["draws"], stats["pushes"], stats["sessions"]) == (2, 1, 2)
    client.close()
    trainer.close()


def test_a_client_that_is_told_where_finds_a_server_that_comes_back_elsewhere(tmp_path):
    asked, where = [], iter([None, f"ipc://{tmp_path}/first"])

    def tell():
        asked.append(next(where, f"ipc://{tmp_path}/second"))
        return asked[-1]

    client = LevelClient(tell, timeout_s=60.0)
    with faults.daemon(f"ipc://{tmp_path}/first") as first:
        assert not asked
        assert len(client.next(2)) == 2
        assert len(asked) == 2
        first.kill()
    with faults.daemon(f"ipc://{tmp_path}/second"):
        assert len(client.next(2)) == 2
    assert set(asked[2:]) == {f"ipc://{tmp_path}/second"}
    client.close()


def test_who_never_hears_where_the_server_is_times_out():
    def never():
        return None

    with Trainer(never, timeout_s=0.2) as trainer:
        assert unreachable(trainer).address == f"{never}"
    assert trainer.address is never


def test_a_request_in_flight_when_the_server_dies_is_answered_by_the_next_one(bind):
    with faults.daemon(bind) as first:
        client = LevelClient(first.address, timeout_s=faults.DEADLINE_S)
        client.next()
        first.process.send_signal(signal.SIGSTOP)
        answers = []
        waiting = threading.Thread(target=lambda: answers.extend(client.next(5)))
        waiting.start()
        faults.eventually(client._connection._lock.locked, "the client is asking")
        first.kill()
    with faults.daemon(first.address), Trainer(first.address) as trainer:
        waiting.join(faults.DEADLINE_S)
        assert len(answers) == 5
        assert trainer.stats()["draws"] == 5
    client.close()


def test_a_push_sent_twice_to_a_slow_server_is_applied_once(ipc):
    with faults.daemon(ipc) as server, Trainer(ipc, timeout_s=faults.DEADLINE_S) as trainer:
        trainer.stats()
        first_socket = trainer._connection._socket
        server.process.send_signal(signal.SIGSTOP)
        scored = []
        waiting = threading.Thread(target=lambda: scored.append(trainer.push_scores([1, 2], [0.5, 0.5])))
        waiting.start()
        faults.eventually(lambda: trainer._connection._socket not in (None, first_socket), "the push is sent again")
        server.process.send_signal(signal.SIGCONT)
        waiting.join(faults.DEADLINE_S)
        assert scored == [2]
        stats = trainer.stats()
        assert (stats["pushes"], stats["scores"]) == (1, 2)


ASKS = {
    "next": lambda client, _trainer: client.next(3),
    "stats": lambda _client, trainer: trainer.stats(),
    "push_scores": lambda _client, trainer: trainer.push_scores([1], [0.5]),
    "push": lambda _client, trainer: trainer.push(**faults.block()),
}


@pytest.fixture
def forgetful(ipc):
    """The dispatcher of a server in a thread of this process, to be made to forget; and a way to stop the server."""
    dispatcher = Dispatcher({"default": Curriculum(Config(levels=range(10)))}, max_frame_bytes=1 << 20, epoch=5)
    with faults.answering(dispatcher, ipc):
        yield dispatcher


@pytest.mark.parametrize("op", ASKS)
def test_a_session_that_was_forgotten_is_begun_anew_where_nothing_can_be_applied_twice(forgetful, ipc, op):
    with LevelClient(ipc) as client, Trainer(ipc) as trainer:
        ASKS[op](client, trainer)
        before = forgetful.curricula["default"].stats()
        for name in list(forgetful.sessions):
            forgetful.forget(name)
        ASKS[op](client, trainer)
        after = forgetful.curricula["default"].stats()
    told = "draws" if op == "next" else "pushes"
    assert after[told] - before[told] == {"next": 3, "stats": 0}.get(op, 1)


@pytest.mark.parametrize("op", ASKS)
def test_a_push_sent_twice_to_a_server_that_forgot_is_an_error_that_says_so(forgetful, ipc, op):
    """The first copy may have been applied before the server forgot; a server of another epoch knows of none."""
    for epoch in (5, 6):
        forgetful._epoch = 5
        with LevelClient(ipc) as client, Trainer(ipc) as trainer:
            for one in (client, trainer):
                one._connection.request("stats")
            connection = (client if op == "next" else trainer)._connection

            def twice(*args, send=connection.send):
                pending = send(*args)
                pending.attempts += 1
                return pending

            connection.send = twice
            for name in list(forgetful.sessions):
                forgetful.forget(name)
            forgetful._epoch = epoch
            before = forgetful.curricula["default"].stats()
            if epoch == 5 and op.startswith("push"):
                with pytest.raises(SessionExpired, match=f"{op}: sent 2 times and applied once or not at all, which"):
                    ASKS[op](client, trainer)
                assert forgetful.curricula["default"].stats() == before
                del connection.send
                assert trainer.push_scores([1], [0.5]) == 1  # and it goes on
            else:
                ASKS[op](client, trainer)


def test_a_late_reply_to_a_request_given_up_is_not_taken_for_the_next_one(ipc):
    with faults.daemon(ipc, "--strategy", "sequential") as server, LevelClient(ipc) as client:
        client.next()
        client._connection.timeout_s = 0.2
        server.process.send_signal(signal.SIGSTOP)
        unreachable(client, "next")
        server.process.send_signal(signal.SIGCONT)
        client._connection.timeout_s = faults.DEADLINE_S
        assert len(client.next(3)) == 3


def test_the_notice_that_the_server_stops_changes_the_hint_until_it_is_back(ipc):
    with LevelClient(ipc) as client:
        with faults.daemon(ipc) as server:
            client.next()
            assert server.stop() == 0
        client._connection.timeout_s = 0.5
        assert unreachable(client, "next").hint == STOPPED
        with faults.daemon(ipc) as server:
            client._connection.timeout_s = faults.DEADLINE_S
            client.next()
            client._connection.timeout_s = 0.2
            server.kill()
        assert unreachable(client, "next").hint == NOT_THERE


def test_closing_after_a_timeout_ends_the_session_too(ipc):
    with faults.daemon(ipc, "--levels", "0:10", "--partial", "stitch") as server:
        trainer = Trainer(ipc)
        trainer.stats()
        trainer._connection.timeout_s = 0.3
        session = trainer._connection.session
        server.process.send_signal(signal.SIGSTOP)
        unreachable(trainer)
        trainer.close()
        assert trainer._connection.session != session
        server.process.send_signal(signal.SIGCONT)
        trainer._connection.timeout_s = faults.DEADLINE_S
        assert trainer.stats()["draws"] == 0
        trainer.close()


# ---- threads


def test_threads_share_a_trainer(trainer):
    before = trainer.stats()["scores"]
    failures = []

    def push():
        try:
            for _ in range(25):
                assert trainer.push_scores([1, 2], [0.5, 0.25]) == 2
                assert len(trainer.weights()) == 10
        except BaseException as exc:  # noqa: BLE001  told to the test
            failures.append(exc)

    threads = [threading.Thread(target=push) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(faults.DEADLINE_S)
    assert not failures
    assert trainer.stats()["scores"] == before + 8 * 25 * 2


def test_closing_beside_a_request_that_times_out_is_no_error(ipc):
    trainer = Trainer(ipc, timeout_s=0.3)
    asking = threading.Thread(target=unreachable, args=[trainer])
    asking.start()
    faults.eventually(lambda: trainer._connection._socket is not None or not asking.is_alive(), "the request waits")
    trainer.close()
    asking.join(faults.DEADLINE_S)
    assert trainer._connection._socket is None


# ---- the life of a client


def test_closed_twice_and_used_again(server):
    trainer = Trainer(server.address)
    trainer.close()  # never opened
    first = trainer.stats()["draws"]
    session = trainer._connection.session
    trainer.close()
    trainer.close()
    assert trainer.stats()["draws"] == first
    assert trainer._connection.session != session
    trainer.close()


def test_an_error_leaves_the_connection_usable(trainer):
    with pytest.raises(PlrError):
        trainer.push_scores([99], [1.0])
    socket = trainer._connection._socket
    assert trainer.push_scores([1], [1.0]) == 1
    assert trainer._connection._socket is socket


@pytest.mark.parametrize(
    "again",
    [copy.deepcopy, lambda client: pickle.loads(pickle.dumps(client))],  # noqa: S301, ids=["deepcopy", "pickle"]
)
def test_a_copy_is_a_client_of_its_own(server, again):
    with LevelClient(server.address, timeout_s=17.0) as client:
        client.next()
        with again(client) as other:
            assert (other.address, other._connection.timeout_s) == (client.address, 17.0)
            assert other._connection is not client._connection
            other.next()
            assert other._connection.session != client._connection.session
        client.next()


def test_a_dropped_client_frees_its_socket_and_its_levels(server, trainer):
    client = LevelClient(server.address)
    client.next(3)
    socket = client._connection._socket
    held = trainer.stats()["in_flight"]
    del client
    gc.collect()
    assert socket.closed
    faults.eventually(lambda: trainer.stats()["in_flight"] == held - 3, "its levels are back")


# ---- processes


def test_a_forked_child_and_its_parent_both_go_on(server):
    out = faults.run_script(
        """
        import os, sys, warnings
        from plr_client import LevelClient, Trainer
        warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
        client, trainer = LevelClient(sys.argv[1]), Trainer(sys.argv[1])
        client.next(2), trainer.stats()
        before = trainer.stats()
        pid = os.fork()
        client.next(3)
        trainer.push_scores([1], [0.5])
        if pid == 0:
            during = trainer.stats()
            assert during["sessions"] >= before["sessions"] + 1, during  # client and trainer of its own
            client.close()
            client.next(1)
            warnings.simplefilter("ignore", ResourceWarning)  # pyzmq warns of the parent's sockets
            sys.exit(0)  # with open clients, through the interpreter's end
        assert os.waitpid(pid, 0)[1] == 0
        client.next(2)
        after = trainer.stats()
        print(after["draws"] - before["draws"], after["pushes"] - before["pushes"])
        """,
        server.address,
    )
    assert out == "9 2\n"


def test_parent_and_forked_child_have_different_sessions(server):
    out = faults.run_script(
        """
        import os, sys, warnings
        from plr_client import LevelClient
        warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
        client = LevelClient(sys.argv[1])
        client.next()
        if os.fork() == 0:
            client.next()
            print(client._connection.session, client._connection._exchange._number, flush=True)
            os._exit(0)
        os.wait()
        client.next()
        print(client._connection.session, client._connection._exchange._number)
        """,
        server.address,
    )
    child, parent = (line.split() for line in out.splitlines())
    assert child[0] != parent[0]
    assert (child[1], parent[1]) == ("2", "3")  # hello and next; hello and two nexts


def test_a_child_forked_while_a_thread_waits_for_a_reply_does_not_hang(server):
    out = faults.run_script(
        """
        import os, signal, sys, threading, warnings
        from plr_client import LevelClient, ServerUnreachable
        warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
        client = LevelClient(sys.argv[1], timeout_s=20)
        client.next()
        os.kill(int(sys.argv[2]), signal.SIGSTOP)
        thread = threading.Thread(target=client.next)
        thread.start()
        while not client._connection._lock.locked():
            pass
        pid = os.fork()
        if pid == 0:
            os.kill(int(sys.argv[2]), signal.SIGCONT)
            print(len(client.next(4)), flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
        thread.join()
        print(len(client.next(2)))
        """,
        server.address,
        server.process.pid,
    )
    assert out == "4\n2\n"


FILES = """
import os, resource, sys, time
import numpy as np
from plr_client import LevelClient, TooManyOpenFiles, Trainer

def files():
    return len(os.listdir("/proc/self/fd"))

def threads():
    return len(os.listdir("/proc/self/task"))

"""


def test_clients_of_a_process_share_threads_and_leave_nothing(server):
    out = faults.run_script(
        FILES
        + """
        import time
        first = LevelClient(sys.argv[1])
        first.next()
        before = files(), threads()
        clients = [LevelClient(sys.argv[1]) for _ in range(150)]
        for client in clients:
            client.next()
        while files() > before[0] + 2 * len(clients):  # two each; what watched handshakes closes in the background
            time.sleep(0.001)
        print(threads() - before[1])
        for client in clients:
            client.close()
        while files() > before[0]:  # sockets close in the background
            time.sleep(0.001)
        print(threads() - before[1], len(first.next()))
        """.replace("\n        ", "\n"),
        server.address,
    )
    assert out == "0\n0 1\n"


def test_a_thousand_clients_raise_the_soft_limit_of_open_files(server):
    out = faults.run_script(
        FILES
        + """
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        clients = [LevelClient(sys.argv[1]) for _ in range(1000)]
        print(sum(len(client.next()) for client in clients), files() > 2000)
        for client in clients:
            client.close()
        """.replace("\n        ", "\n"),
        server.address,
    )
    assert out == "1000 True\n"


def test_short_of_the_hard_limit_of_open_files_it_is_an_error_and_the_others_go_on(server):
    out = faults.run_script(
        FILES
        + """
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
        clients = []
        try:
            while True:
                clients.append(LevelClient(sys.argv[1]))
                clients[-1].next()
        except TooManyOpenFiles as error:
            print(error.limit, len(clients) > 20)
        clients.pop()
        print(sum(len(client.next()) for client in clients) == len(clients))
        clients.pop().close()
        clients.pop().close()
        deadline = time.monotonic() + 30
        while True:  # sockets close in the background
            try:
                with LevelClient(sys.argv[1]) as client:
                    print(len(client.next()))
                break
            except TooManyOpenFiles:
                assert time.monotonic() < deadline
                time.sleep(0.001)
        """.replace("\n        ", "\n"),
        server.address,
    )
    assert out == "100 True\nTrue\n1\n"


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_used_client_goes_into_multiprocessing_workers(server, method):
    out = faults.run_script(
        """
        import multiprocessing, sys, warnings
        from plr_client import LevelClient
        warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
        client = LevelClient(sys.argv[1])
        client.next()
        with multiprocessing.get_context(sys.argv[2]).Pool(2) as pool:
            print(sum(len(drawn) for drawn in pool.map(client.next, [3, 4, 5])))
            pool.close()
            pool.join()
        print(len(client.next()))
        """,
        server.address,
        method,
    )
    assert out == "12\n1\n"


# ---- the interpreter's end


def test_the_interpreter_ends_with_open_clients_and_without_a_word(ipc):
    with faults.daemon(ipc) as server:
        out = faults.run_script(
            """
            import os, signal, sys
            from plr_client import LevelClient, ServerUnreachable, Trainer
            idle, used = LevelClient(sys.argv[1]), Trainer(sys.argv[1])
            lost = Trainer("tcp://127.0.0.1:9", timeout_s=0.1)
            used.stats()
            cycle = [LevelClient(sys.argv[1])]
            cycle.append(cycle)
            cycle[0].next()
            try:
                lost.stats()
            except ServerUnreachable:
                print("lost")
            os.kill(int(sys.argv[2]), signal.SIGKILL)
            used._connection._put(used._connection._socket, [b"unsent"])
            print("done")
            """,
            ipc,
            server.process.pid,
            timeout_s=20.0,
        )
    assert out == "lost\ndone\n"


def test_an_interrupt_ends_the_interpreter_too(server):
    with faults.script(
        """
        import signal, sys
        from plr_client import LevelClient
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
        client = LevelClient(sys.argv[1])
        client.next()
        print("open", flush=True)
        sys.stdin.read()
        """,
        server.address,
    ) as process:
        assert process.stdout.readline() == "open\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(20.0) in (1, -signal.SIGINT)
        error = process.stderr.read()
    assert error.rstrip().endswith("KeyboardInterrupt")
    assert "Warning" not in error


def test_an_interrupted_request_leaves_the_client_usable(ipc):
    with faults.daemon(ipc, "--strategy", "sequential") as server:
        out = faults.run_script(
            """
            import os, signal, sys
            from plr_client import LevelClient
            client = LevelClient(sys.argv[1])
            client.next()
            os.kill(int(sys.argv[2]), signal.SIGSTOP)
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            try:
                client.next()
            except KeyboardInterrupt:
                print("interrupted")
            os.kill(int(sys.argv[2]), signal.SIGCONT)
            print(len(client.next(3)))
            """,
            ipc,
            server.process.pid,
        )
    assert out == "interrupted\n3\n"


# ---- what it costs to import


def third_party_modules(code):
    """The top-level modules that some code leaves imported, less the standard library's."""
    code += "\nimport json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, check=True, timeout=faults.DEADLINE_S)  # noqa: S603  our own
    return {
        name for name in json.loads(done.stdout) if name not in sys.stdlib_module_names and not name.startswith("__")
    }


def test_importing_plr_client_loads_numpy_zmq_and_msgpack_and_nothing_else():
    bare = third_party_modules("import numpy, zmq, msgpack")
    assert {"numpy", "zmq", "msgpack"} <= bare
    assert third_party_modules("import plr_client") - bare == {"plr_client"}


def test_a_whole_session_loads_nothing_more(server):
    code = (
        "from plr_client import LevelClient, Trainer\n"
        f"with LevelClient({server.address!r}) as client, Trainer({server.address!r}) as trainer:\n"
        "    client.next(), trainer.stats(), trainer.weights(), trainer.push_scores([1], [0.5])"
    )
    assert third_party_modules(code) - third_party_modules("import numpy, zmq, msgpack") == {"plr_client"}


def test_a_connection_carries_any_request(server):
    connection = Connection(server.address, curriculum="default", timeout_s=20.0)
    reply = connection.request("next", arrays={"slots": np.arange(2)})
    assert (reply.error, len(reply.result["levels"])) == (None, 2)
    with pytest.raises(PlrError, match=re.escape("got 'fly'")):
        connection.request("fly")
    connection.close()

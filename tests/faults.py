"""Real servers, raw clients and everything that can go wrong with them, for the tests of plr_client and plr_server."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import msgpack
import numpy as np
import zmq

from plr_client import InvalidInput, LevelOutsideSpace, MissingField, PlrError, Trainer
from plr_client.keys import read_client_keys
from plr_client.protocol import Request, decode_reply, encode_request
from plr_server.durability.records import read_origin, read_records
from plr_server.durability.recovery import generations

DEADLINE_S = 30.0
READY = re.compile(r"plr-server ready at (\S+) \((\d+) levels?, (\w+), (\w+)\)\n")


def eventually(holds, what, timeout_s=DEADLINE_S):
    """Waits, within bounds, until `holds()` is true."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"waited {timeout_s} s in vain: {what}"
        time.sleep(0.005)


# ---- servers


class Daemon:
    """A `plr-server serve` process, started by hand."""

    def __init__(self, process, address, ready):
        self.process, self.address, self.ready = process, address, ready

    def kill(self):
        """The server vanishes without a word, as under an out-of-memory kill."""
        self.process.kill()
        self.process.wait()

    def stop(self, number=signal.SIGTERM):
        """Asks it to stop and returns its exit code."""
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)


def serve_command(*options):
    return [sys.executable, "-m", "plr_server", "serve", *options]


@contextlib.contextmanager
def daemon(bind, *options):
    """Runs `plr-server serve --bind BIND OPTIONS`, from its ready line on; kills it where the test left it running."""
    command = serve_command("--bind", bind, *options)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603  our own command
    try:
        line = process.stdout.readline()
        ready = READY.fullmatch(line)
        assert ready, f"not a ready line: {line!r}"
        yield Daemon(process, ready[1], line)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextlib.contextmanager
def answering(dispatcher, address, log=None):
    """A server in a thread of this process, around a dispatcher that the test may meddle with."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        router.bind(address)
        over = threading.Event()

        def serve():
            while not over.is_set():
                if router.poll(5):
                    peer, *frames = router.recv_multipart()
                    router.send_multipart([peer, *dispatcher.answer(peer, frames)])
                if log is not None:
                    log.commit()
                    log.look_after()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def refused(*options):
    """Runs `plr-server serve OPTIONS`, which must refuse to start, and returns what it says on stderr."""
    done = subprocess.run(  # noqa: S603  our own command
        serve_command(*options),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert (done.returncode, done.stdout) == (1, ""), done
    assert "Traceback" not in done.stderr
    return done.stderr


def left_beside(bind):
    """What an ipc server has, or left, in its folder."""
    path = Path(bind.removeprefix("ipc://"))
    return [name for name in (path, path.with_name(path.name + ".lock")) if name.exists()]


@contextlib.contextmanager
def other_program(path):
    """Some other program's unix socket, listening at a path."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(1)
        yield


def stale_socket(path):
    """A socket file whose program is gone."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))


def gone(pid):
    """Whether a process has ended (a zombie has: only nobody asked for its exit code)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):  # the second where it ended between the open and the read
        return True


# ---- clients


@contextlib.contextmanager
def script(code, *args):
    """Runs Python code in a process of its own, warnings as errors; killed at the end where it still runs."""
    process = subprocess.Popen(  # noqa: S603  our own command
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()


def run_script(code, *args, timeout_s=DEADLINE_S):
    """Runs Python code to its end, which must come in time, exit code 0 and a silent stderr; returns its output."""
    with script(code, *args) as process:
        out, err = process.communicate(timeout=timeout_s)
        assert (process.returncode, err) == (0, ""), err
    return out


class Raw:
    """A bare DEALER socket that says whatever it is told; with the key file of a client, where it is given one."""

    def __init__(self, address, keys=None):
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        if keys is not None:
            pair = read_client_keys(keys)
            self.socket.curve_serverkey, self.socket.curve_publickey, self.socket.curve_secretkey = pair
        self.socket.connect(address)

    def send(self, frames):
        self.socket.send_multipart(frames)

    def receive(self):
        assert self.socket.poll(int(DEADLINE_S * 1000)), "no reply"
        return decode_reply(self.socket.recv_multipart())

    def ask(self, frames):
        self.send(frames)
        return self.receive()

    @contextlib.contextmanager
    def hung_up_on(self):
        """Waits, at its end, until the server has closed the connection."""
        monitor = self.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        try:
            yield
            assert monitor.poll(int(DEADLINE_S * 1000)), "the server did not hang up"
        finally:
            self.socket.disable_monitor()
            monitor.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()
        self._context.term()


def plain(address):
    """A connection to a server that has said nothing yet."""
    kind, _, where = address.partition("://")
    host, _, port = where.rpartition(":")
    if kind == "ipc":
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connected.connect(where)
    else:
        connected = socket.create_connection((host, int(port)))
    connected.settimeout(DEADLINE_S)
    return connected


@contextlib.contextmanager
def by_hand(address):
    """A connection to a server that speaks what libzmq's DEALER speaks, but by hand: handshake done, frames to come."""
    with plain(address) as connected:
        connected.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
        ready = b"\x05READY\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER"
        connected.sendall(b"\x04" + bytes([len(ready)]) + ready)
        told = b""
        while b"ROUTER" not in told:  # its greeting, then what it is
            told += connected.recv(256)
        yield connected


def unfinished(size):
    """A frame of so many bytes as it goes over the wire, of a message that more frames belong to."""
    return b"\x03" + size.to_bytes(8, "big") + bytes(size)


SESSION = "fault"


def request(op, arrays=None, *, seq=2, session=SESSION, connection=1, args=None, after=0, run=0):
    """The frames of a request."""
    return encode_request(Request(session, connection, seq, "default", op, args or {}, arrays or {}, after, run))


def hello(session=SESSION, *, seq=1, connection=1):
    """The frames that begin a session."""
    return request("hello", session=session, seq=seq, connection=connection)


def begin(dispatcher, *sessions, peer=b"\x01peer"):
    """Begins sessions of a dispatcher in this process."""
    for session in sessions:
        assert decode_reply(dispatcher.answer(peer, hello(session))).error is None


def header(**changes):
    """The packed header of a push without arrays, with some elements changed."""
    return msgpack.packb(list((HEADER | changes).values()))


HEADER = {
    "v": 2,
    "session": SESSION,
    "connection": 1,
    "seq": 7,
    "after": 0,
    "run": 0,
    "curriculum": "default",
    "op": "push",
    "args": {},
    "arrays": [],
}


def nested(depth):
    """Lists in lists, which msgpack can pack in no other way."""
    return b"\x91" * (depth - 1) + b"\x90"


def nested_in(name, depth):
    """The header of a push one of whose elements, or the shape of whose array, is nested deep."""
    fields = {key: msgpack.packb(value) for key, value in HEADER.items()} | {name: nested(depth)}
    if name == "arrays":
        fields[name] = b"\x91\x93" + msgpack.packb("x") + msgpack.packb("<f8") + nested(depth)
    return b"\x9a" + b"".join(fields.values())


# id: (frames, code of the error, its text)
BAD_FRAMES = {
    "no frame": ([], "protocol", "frames: expected a header frame, got none"),
    "an empty frame": ([b""], "protocol", "header: expected a msgpack list, got bytes that do not unpack"),
    "garbage": ([b"\xc1\xff\x00garbage"], "protocol", "header: expected a msgpack list, got bytes that do not unpack"),
    "bytes after the header": ([header() + b"\x00"], "protocol", "got bytes that do not unpack (ExtraData"),
    "a header cut short": (
        [header()[:-3]],
        "protocol",
        "header: expected a msgpack list, got bytes that do not unpack",
    ),
    "no list": ([msgpack.packb("hello")], "protocol", "header: expected a msgpack list, got str"),
    "an empty list": ([msgpack.packb([])], "protocol", "v: expected int, got None"),
    "a list too short": ([msgpack.packb([2, 1])], "protocol", "header: expected 10 elements, got 2"),
    "a map": ([msgpack.packb({"op": "push"})], "protocol", "header: expected a msgpack list, got dict"),
    "int map keys": ([msgpack.packb({1: 2})], "protocol", "int is not allowed for map key"),
    "a list as map key": ([b"\x81\x90\x01"], "protocol", "list is not allowed for map key"),
    "a bad timestamp": ([b"\xd7\xff" + b"\xff" * 8], "protocol", "header: expected a msgpack list, got"),
    "an extension type": ([b"\xd4\x05\x00"], "protocol", "header: expected a msgpack list, got ExtType"),
    "bad utf-8": ([b"\x81\xa1\xff\x01"], "protocol", "header: expected a msgpack list, got bytes that do not unpack"),
    "deep nesting": ([nested(60_000)], "protocol", "header: expected a msgpack list, got bytes that do not unpack"),
    "a map of the first version, nested deep": (
        [b"\x81\xa1v" + nested(1010)],
        "protocol",
        "header: expected a msgpack list, got dict",
    ),
    **{
        f"{name} nested {depth} deep": ([nested_in(name, depth)], "protocol", f"{name}: expected {kind}, got list")
        for depth in (500, 950, 1010)
        for name, kind in (("v", "int"), ("session", "str"), ("seq", "int"), ("op", "str"), ("args", "dict"))
    },
    "bytes after a list nested deep": ([nested(1010) + b"\x00"], "protocol", "got bytes that do not unpack (ExtraData"),
    "a shape nested deep": (
        [nested_in("arrays", 1010), b""],
        "protocol",
        "x: expected a shape of at most 4 axes, got ['list']",
    ),
    "a header too long": (
        [header(op="x" * 70_000)],
        "message_too_large",
        "header bytes: expected at most 65536, got 700",
    ),
    "too many frames": (
        [header()] + [b""] * 16,
        "message_too_large",
        "frames: expected at most 16, got 17; push smaller",
    ),
    "no version": ([header(v=None)], "protocol", "v: expected int, got None"),
    "another version": (
        [header(v=9)],
        "version_mismatch",
        "protocol version: expected 2 (the server's), got 9; install",
    ),
    "the first version": (
        [msgpack.packb({"v": 1, "id": 7, "session": "fault", "seq": 1, "op": "push", "args": {}, "arrays": []})],
        "version_mismatch",
        "protocol version: expected 2 (the server's), got 1; install",
    ),
    "a version that is a bool": ([header(v=True)], "protocol", "v: expected int, got True"),
    "no session": ([header(session=None)], "protocol", "session: expected str, got None"),
    "an empty session": ([header(session="")], "protocol", "session: expected 1 to 64 characters, got 0"),
    "a long session": ([header(session="s" * 65)], "protocol", "session: expected 1 to 64 characters, got 65"),
    "a session that is bytes": ([header(session=b"s")], "protocol", "session: expected str, got bytes"),
    "no connection": ([header(connection=0)], "protocol", "connection: expected 1 or more, got 0"),
    "a seq that is a float": ([header(seq=1.0)], "protocol", "seq: expected int, got 1.0"),
    "a seq that is text": ([header(seq="x" * 200)], "protocol", f"seq: expected int, got {'x' * 80!r}"),
    "a seq below 1": ([header(seq=-1)], "protocol", "seq: expected 1 or more, got -1"),
    "an after below 0": ([header(after=-1)], "protocol", "after: expected 0 or more, got -1"),
    "a run that is text": ([header(run="7")], "protocol", "run: expected int, got '7'"),
    "an after that is a float": ([header(after=1.0)], "protocol", "after: expected int, got 1.0"),
    "args that are a list": ([header(args=[])], "protocol", "args: expected dict, got list"),
    "an unknown session": (
        [header(session="who")],
        "session_expired",
        "session: expected one that the server knows, got one it has forgotten; push: not applied",
    ),
    "an unknown op": (
        [header(op="steal")],
        "unknown_operation",
        (
            "op: expected one of counters, describe, goodbye, hello, insert, levels, next, push, push_scores, "
            "push_step, save, scores, set_score_function, stats, sync, table, timings, weights, got 'steal'"
        ),
    ),
    "arrays that are a map": ([header(arrays={})], "protocol", "arrays: expected list, got dict"),
    "an array frame missing": (
        [header(arrays=[["levels", "<i8", [1]]])],
        "protocol",
        "frames: expected one for levels, got 0 for all arrays",
    ),
    "an array frame too many": ([header(), b"1"], "protocol", "frames: expected 0 for arrays, got 1"),
    "a description too short": (
        [header(arrays=[["levels", "<i8"]]), b""],
        "protocol",
        "arrays: expected [name, dtype, shape] or that and data, got list",
    ),
    "data in the header that is no bytes": (
        [header(arrays=[["levels", "<i8", [1], "12345678"]])],
        "protocol",
        "frames: expected one for levels, got 0 for all arrays",
    ),
    "data in the header and in a frame": (
        [header(arrays=[["levels", "<i8", [1], bytes(8)]]), bytes(8)],
        "protocol",
        "frames: expected 0 for arrays, got 1",
    ),
    "duplicate names": (
        [header(arrays=[["dones", "|b1", [1]], ["dones", "|b1", [1]]]), b"\0", b"\1"],
        "protocol",
        "arrays: expected distinct names, got 'dones'",
    ),
    "a name that is an int": ([header(arrays=[[1, "|b1", [1]]]), b"\0"], "protocol", "arrays: expected distinct names"),
    "a dtype of objects": ([header(arrays=[["x", "|O", [1]]]), b"\0" * 8], "protocol", "x: expected a dtype among ["),
    "a big-endian dtype": ([header(arrays=[["x", ">f8", [1]]]), b"\0" * 8], "protocol", "x: expected a dtype among ["),
    "an array cut short": (
        [header(arrays=[["values", "<f8", [3, 2]]]), b"\0" * 47],
        "protocol",
        "values: expected 48 bytes for <f8 [3, 2], got 47",
    ),
    "a lying shape": (
        [header(arrays=[["values", "<f8", [1 << 40, 1 << 40]]]), b"\0" * 8],
        "protocol",
        "values: expected 9671406556917033397649408 bytes",
    ),
    "a lying shape beside an axis of 0": (
        [header(arrays=[["values", "<f8", [0, 1 << 62]]]), b""],
        "protocol",
        "values: expected a shape that an array can have, got [0, 4611686018427387904]",
    ),
    "an axis no machine has": (
        [header(arrays=[["values", "<f8", [0, (1 << 64) - 1]]]), b""],
        "protocol",
        "values: expected a shape that an array can have, got [0, 18446744073709551615]",
    ),
    "a negative axis": (
        [header(arrays=[["values", "<f8", [-1]]]), b"\0" * 8],
        "protocol",
        "values: expected a shape of at most 4 axes, got ['-1']",
    ),
    "an axis that is a bool": (
        [header(arrays=[["values", "<f8", [True]]]), b"\0" * 8],
        "protocol",
        "values: expected a shape of at most 4 axes, got ['True']",
    ),
    "five axes": (
        [header(arrays=[["values", "<f8", [1] * 5]]), b"\0" * 8],
        "protocol",
        "values: expected a shape of at most 4 axes, got ['1', '1', '1', '1', '1']",
    ),
    "bools of 2": (
        [header(arrays=[["dones", "|b1", [2]]]), b"\1\2"],
        "protocol",
        "dones: expected bools of one byte, 0 or 1, got others",
    ),
    "an unknown field": (
        [header(arrays=[["prices", "<f8", [1]]]), b"\0" * 8],
        "invalid_input",
        (
            "prices: expected a field among columns, dones, final_values, groups, levels, logits, next_values, "
            "rewards, successes, truncated, valid, values, got an unknown one"
        ),
    ),
}


# ---- what a trainer may get wrong: a block of T = 3 steps in N = 2 columns, of the levels 0 to 9


def block(**changes):
    """The fields of a good push; None takes one out."""
    fields = {
        "values": np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], dtype=np.float32),
        "rewards": np.array([[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]], dtype=np.float32),
        "dones": np.array([[False, True], [False, False], [True, False]]),
        "levels": np.array([[3, 4], [3, 5], [3, 5]]),
        "next_values": np.array([0.7, 0.8], dtype=np.float32),
    }
    return fields | changes


def _with(value, *, at=(1, 0), like="values"):
    changed = block()[like].copy()
    changed[at] = value
    return changed


_FLOATS = "finite numbers up to 1e+30 in magnitude"
_ONES = np.ones((3, 2), dtype=bool)

# id: (changes to the block, class, field, text after "field: expected ")
BAD_PUSHES = {
    "values of another shape": (
        {"values": np.zeros((2, 3))},
        InvalidInput,
        "values",
        "shape (3, 2), by the shape of levels, got shape (2, 3)",
    ),
    "rewards without T": (
        {"rewards": np.zeros(2)},
        InvalidInput,
        "rewards",
        "shape (3, 2), by the shape of levels, got shape (2,)",
    ),
    "dones of numbers": (
        {"dones": np.full((3, 2), 0.5)},
        InvalidInput,
        "dones",
        "bools, or numbers that are 0 or 1, got 0.5",
    ),
    "levels of floats": (
        {"levels": np.zeros((3, 2))},
        InvalidInput,
        "levels",
        "an array of integers, got dtype float64",
    ),
    "levels of bools": ({"levels": _ONES}, InvalidInput, "levels", "an array of integers, got dtype bool"),
    "levels beyond int64": (
        {"levels": np.full((3, 2), 2**64 - 4, dtype=np.uint64)},
        InvalidInput,
        "levels",
        "integers within int64, got 18446744073709551612",
    ),
    "a level outside the space": (
        {"levels": np.array([[3, 4], [3, 10], [3, 10]])},
        LevelOutsideSpace,
        "levels",
        "one of the 10 levels of range(0, 10), got level 10",
    ),
    "a level below the space": (
        {"levels": np.array([[-1, 4], [-1, 5], [-1, 5]])},
        LevelOutsideSpace,
        "levels",
        "one of the 10 levels of range(0, 10), got level -1",
    ),
    "a level that changes without a done": (
        {"levels": np.array([[3, 4], [3, 5], [3, 6]])},
        InvalidInput,
        "levels",
        (
            "one level from an episode's first step to its last (the level active when obs_t was produced), got level "
            "6 after 5 in column 1 at step 2 without a done between"
        ),
    ),
    "values with NaN": ({"values": _with(np.nan)}, InvalidInput, "values", f"{_FLOATS}, got nan"),
    "values with inf": ({"values": _with(np.inf)}, InvalidInput, "values", f"{_FLOATS}, got inf"),
    "rewards with -inf": ({"rewards": _with(-np.inf, like="rewards")}, InvalidInput, "rewards", f"{_FLOATS}, got -inf"),
    "next_values with NaN": ({"next_values": [0.0, np.nan]}, InvalidInput, "next_values", f"{_FLOATS}, got nan"),
    "values too large": ({"values": _with(2e30).astype(float)}, InvalidInput, "values", f"{_FLOATS}, got 2"),
    "values missing": ({"values": None}, MissingField, "values", "an array: the strategy value_l1 needs it, got none"),
    "rewards missing": (
        {"rewards": None},
        MissingField,
        "rewards",
        "an array: the strategy value_l1 needs it, got none",
    ),
    "dones missing": ({"dones": None}, MissingField, "dones", "an array: the strategy value_l1 needs it, got none"),
    "levels missing": ({"levels": None}, MissingField, "levels", "an array: the strategy value_l1 needs it, got none"),
    "next_values missing": (
        {"next_values": None},
        MissingField,
        "next_values",
        "an array: the strategy value_l1 needs it, got none",
    ),
    "next_values of another N": (
        {"next_values": np.zeros(3)},
        InvalidInput,
        "next_values",
        "shape (2,), by the shape of levels, got shape (3,)",
    ),
    "T = 0": (
        {name: np.zeros((0, 2), dtype=int) for name in ("values", "rewards", "dones", "levels")},
        InvalidInput,
        "levels",
        "shape (T, N), T and N at least 1, got shape (0, 2)",
    ),
    "N = 0": (
        {name: np.zeros((3, 0), dtype=int) for name in ("values", "rewards", "dones", "levels")},
        InvalidInput,
        "levels",
        "shape (T, N), T and N at least 1, got shape (3, 0)",
    ),
    "truncated without done": (
        {"truncated": _ONES, "final_values": np.zeros((3, 2))},
        InvalidInput,
        "truncated",
        "True only where dones is, got True at step 0 of column 0, which is not done",
    ),
    "truncated without final_values": (
        {"truncated": block()["dones"]},
        MissingField,
        "final_values",
        "an array (T, N) beside truncated",
    ),
    "valid of another shape": (
        {"valid": np.ones(3, dtype=bool)},
        InvalidInput,
        "valid",
        "shape (3, 2), by the shape of levels, got shape (3,)",
    ),
    "logits of one action": (
        {"logits": np.zeros((3, 2, 1))},
        InvalidInput,
        "logits",
        "shape (3, 2, A), A at least 2, got shape (3, 2, 1)",
    ),
    "logits with NaN": (
        {"logits": np.full((3, 2, 4), np.nan)},
        InvalidInput,
        "logits",
        f"{_FLOATS}; a masked action's logit may be -1e8, got nan",
    ),
    "columns twice": ({"columns": [1, 1]}, InvalidInput, "columns", "2 distinct ints, got [1, 1]"),
    "columns of floats": ({"columns": [0.0, 1.0]}, InvalidInput, "columns", "an array of integers, got dtype float64"),
}


# ---- the disk


def lose_what_was_not_synced(folder):
    """Cuts the newest journal of a state directory back to what it says is on the disk, as a power loss may."""
    path = [*generations(folder, "journal").values()][-1]
    data = memoryview(path.read_bytes())
    origin, first = read_origin(data)
    records = [first, *read_records(data, first, origin.salt)]
    synced = max(first.sequence, *(record.synced for record in records))  # the first has a snapshot beside it
    os.truncate(path, max(record.end for record in records if record.sequence <= synced))


# ---- the state, to be compared


def seen_from_outside(trainer: Trainer):
    """Everything a client can read of the state, but the number of sessions."""
    stats = trainer.stats()
    del stats["sessions"]
    return stats, trainer.weights(), trainer.scores()


def same(left, right):
    """Whether two states are bit-identical: types, dtypes, shapes and bytes, all the way down."""
    if type(left) is not type(right):
        return False
    if isinstance(left, np.ndarray):
        return (left.dtype, left.shape, left.tobytes()) == (right.dtype, right.shape, right.tobytes())
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if dataclasses.is_dataclass(left):
        return all(same(getattr(left, field.name), getattr(right, field.name)) for field in dataclasses.fields(left))
    return left == right


class AtOnce:
    """An executor that does what it is given before it returns."""

    def __init__(self, *_):
        pass

    def submit(self, do, *arguments):
        future = Future()
        try:
            future.set_result(do(*arguments))
        except (OSError, PlrError) as exc:
            future.set_exception(exc)
        return future

    def shutdown(self):
        pass

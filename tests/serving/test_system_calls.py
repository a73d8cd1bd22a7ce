"""A server's state, killed at each system call that changes its folder: with strace, where that is installed.

Run as a script this file is the server that is killed: the real dispatcher on real files, without a socket. It starts
twice, cuts journals, takes snapshots, and cleans up. What is done in the background is done at once, so that the calls
come in the same order each time.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import faults
import numpy as np
import pytest

from plr_client.protocol import decode_reply
from plr_server import Config, Curriculum
from plr_server.durability import state_dir
from plr_server.durability.state_dir import StateDir
from plr_server.durability.values import digest, pack
from plr_server.serving.dispatch import Dispatcher
from plr_server.serving.restart import restart

CALLS = ("mkdir", "open", "write", "writev", "fsync", "fdatasync", "ftruncate", "rename", "link", "unlink")
TRACED = ",".join(f"?{call}{at}" for call in CALLS for at in ("", "at", "at2"))  # those that this machine has
STARTS, COMMANDS_EACH = 2, 12
PEER = b"\x01peer"


def new_dispatcher():
    config = Config(levels=range(10), num_steps=3, partial="stitch")
    return Dispatcher({"default": Curriculum(config)}, max_frame_bytes=1 << 20)


def commands():
    """What a client says, in order, a hello first at each start; and whether it is a command, which is written down."""
    scores = {"levels": np.arange(3), "scores": np.arange(3.0)}
    step = {name: array if name == "next_values" else array[0] for name, array in faults.block().items()}
    kinds = [("next", {}, {"k": 2}), ("push", faults.block(), {}), ("push_step", step, {}), ("push_scores", scores, {})]
    for number in range(STARTS * COMMANDS_EACH):
        op, arrays, args = ("hello", {}, {}) if number % COMMANDS_EACH == 0 else kinds[number % len(kinds)]
        connection = 1 + number // COMMANDS_EACH
        yield faults.request(op, arrays, seq=number + 1, connection=connection, args=args), op != "hello" or not number


def answer(dispatcher, frames):
    reply = decode_reply([bytes(frame) for frame in dispatcher.answer(PEER, frames)])
    assert reply.error is None, reply.error


def main(folder, acknowledged):
    """Answers all commands, over two starts, and writes a byte for each that was acknowledged."""
    state_dir.SNAPSHOT_AFTER_COMMANDS, state_dir.DIGEST_AFTER_COMMANDS, state_dir.SYNC_EVERY_S = 5, 3, 3600.0
    state_dir.ThreadPoolExecutor = faults.AtOnce
    to_say = commands()
    for _ in range(STARTS):
        log, dispatcher = StateDir(Path(folder), fsync="always"), new_dispatcher()
        restart(dispatcher, log)
        for _ in range(COMMANDS_EACH):
            frames, is_command = next(to_say)
            answer(dispatcher, frames)
            assert log.commit()
            with Path(acknowledged).open("ab") as file:
                file.write(b"." * is_command)
            log.look_after()
        log.close()


def run(folder, *options):
    """Runs this file under strace; returns its exit code and how many commands it acknowledged."""
    acknowledged = folder.with_name(f"{folder.name} acknowledged")
    acknowledged.touch()
    command = ["strace", "-qq", *options, sys.executable, __file__, str(folder), str(acknowledged)]
    paths = os.pathsep.join([*sys.path, str(Path(__file__).parents[1])])
    env = os.environ | {"PYTHONPATH": paths, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode, len(acknowledged.read_bytes())


@pytest.fixture(scope="module")
def states():
    """What the state is after each number of commands, as a digest."""
    dispatcher = new_dispatcher()
    digests = [digest(pack(dispatcher.state()))]
    for frames, is_command in commands():
        answer(dispatcher, frames)
        digests += [digest(pack(dispatcher.state()))] * is_command
    return digests


@pytest.fixture(scope="module")
def boundaries(tmp_path_factory):
    """Every call that changes something in the folder: which, and the how-manieth of its kind in the process."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    if subprocess.run(["strace", "-qq", "-o", os.devnull, "true"], check=False).returncode:  # noqa: S603, S607
        pytest.skip("strace may not trace here")
    folder = tmp_path_factory.mktemp("calls") / "state"
    log = folder.with_name("calls")
    assert run(folder, "-y", "-e", f"trace={TRACED}", "-o", str(log)) == (0, 1 + STARTS * (COMMANDS_EACH - 1))
    num, found = Counter(), []
    for line in log.read_text(errors="replace").splitlines():
        call = re.match(r"\w+", line)[0]
        num[call] += 1
        if f"{folder}" in line.replace(f"{folder} ", "") and ("O_CREAT" in line or not call.startswith("open")):
            found.append((call, num[call]))
    assert {re.sub("at2?$", "", call) for call, _ in found} == set(CALLS)
    return found


def check_killed_at(call, number, folder, states):
    code, num_acknowledged = run(folder, "-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={number}")
    assert code == -signal.SIGKILL
    log, dispatcher = StateDir(folder, fsync="always"), new_dispatcher()
    try:
        restart(dispatcher, log)
        assert num_acknowledged <= log.sequence <= num_acknowledged + 1
        assert digest(pack(dispatcher.state())) == states[log.sequence]
    finally:
        log.close()


def test_killed_at_some_system_calls_it_knows_what_it_acknowledged(boundaries, states, tmp_path):
    for number, (call, which) in enumerate(boundaries[3 :: len(boundaries) // 5]):
        check_killed_at(call, which, tmp_path / f"{number}", states)


@pytest.mark.slow
def test_killed_at_every_system_call_it_knows_what_it_acknowledged(boundaries, states, tmp_path):
    for number, (call, which) in enumerate(boundaries):
        check_killed_at(call, which, tmp_path / f"{number}", states)
    print(f"killed at each of {len(boundaries)} system calls")  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])

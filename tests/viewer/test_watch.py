"""plr_server/viewer/watch.py: `plr-server stats --watch` as a process of its own, against real servers."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys

import faults

from plr_client import Trainer
from plr_server import Config, launch
from plr_server.viewer.watch import HOME_AND_CLEAR


@contextlib.contextmanager
def watching(address, *options, stdout=subprocess.PIPE):
    command = [sys.executable, "-m", "plr_server", "stats", address, "--watch", *options]
    process = subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True)  # noqa: S603  our own
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def interrupted(process):
    process.send_signal(signal.SIGINT)
    return process.wait(faults.DEADLINE_S)


def test_json_has_a_line_for_each_reading_with_rates_until_its_reader_is_gone():
    with launch(Config(levels=range(10))) as server, Trainer(server.address) as trainer:
        trainer.push_scores([1], [0.5])
        with watching(server.address, "--json") as process:
            first = json.loads(process.stdout.readline())
            assert {name: first[name] for name in trainer.stats() if name != "sessions"} == {
                name: value for name, value in trainer.stats().items() if name != "sessions"
            }
            trainer.push_scores([2, 3], [0.5, 0.25])
            later = first
            while later["levels_seen"] < 3:
                later = json.loads(process.stdout.readline())
            assert later["pushes"] == 2
            assert 0 < later["pushes_per_s"] <= 1.0
            assert later["scores_per_s"] == 2 * later["pushes_per_s"]
            process.stdout.close()  # as `head` does
            assert process.wait(faults.DEADLINE_S) == 0
            assert process.stderr.read() == ""


def test_a_table_in_a_pipe_follows_the_last_one(server):
    with watching(server.address) as process:
        lines = iter(process.stdout.readline, "")
        tables = [list(iter(lambda: next(lines).rstrip("\n"), "")) for _ in range(2)]
        assert [line.split()[0] for line in tables[0]] == [line.split()[0] for line in tables[1]]
        assert tables[0][1].split() == ["levels", "10"]
        draws = next(line for line in tables[1] if line.startswith("draws"))
        assert draws.split() == ["draws", "0", "(0.0/s)"]
        assert interrupted(process) == 130


def test_on_a_terminal_it_stays_in_its_place(server):
    parent, child = pty.openpty()
    with watching(server.address, stdout=child) as process:
        os.close(child)
        said = b""
        while said.count(HOME_AND_CLEAR.encode()) < 2:
            said += os.read(parent, 4096)
        assert said.startswith(HOME_AND_CLEAR.encode())
        assert interrupted(process) == 130
    os.close(parent)


def test_a_server_that_is_gone_is_waited_for(ipc):
    with watching(ipc, "--json", "--timeout-s", "0.2") as process:
        assert process.stderr.readline().endswith("; still trying\n")
        with faults.daemon(ipc, "--levels", "0:30"):
            assert json.loads(process.stdout.readline())["levels"] == 30
        assert interrupted(process) == 130


def test_a_curriculum_that_the_server_does_not_have_ends_it(server):
    with watching(server.address, "--curriculum", "nobody") as process:
        assert process.wait(faults.DEADLINE_S) == 1
        assert (
            "curriculum: expected one of default (curriculum=NAME, or --curriculum NAME), got 'nobody'"
            in process.stderr.read()
        )

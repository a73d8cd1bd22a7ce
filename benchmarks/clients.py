"""A thousand connected clients and four trainers for five minutes: is each served as if it were alone?

1 000 clients, in four processes, each asks for a level about once a second; four trainers each push a block of
256 x 64 steps twice a second, to a server with a state directory. A round is a minute, and a row has a value of each:

  next p50, p99   a round trip at the caller; the ratio of the second is against the first
  memory          of the server, at the end of the minute
  sessions        that the server holds then: 1 000 clients, 4 trainers and who asks; one fewer is a lost one
  failures        calls that raised, of clients and trainers
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from report import Row, arguments, show

from plr_client import LevelClient, PlrError, Trainer
from plr_server import Config, launch

CLIENTS, PROCESSES, TRAINERS = 1_000, 4, 4
NUM_STEPS, NUM_COLUMNS, NUM_LEVELS = 256, 64, 200
ASKS_BEFORE = 500  # of each client: until then libzmq's queues for it grow, to about 64 KiB
ROUND_S, ASKS_EVERY_S, PUSHES_EVERY_S = 60.0, 1.0, 0.5


class Together(NamedTuple):
    """What the processes of clients and trainers meet by.

    Attributes:
        ready: all are connected.
        told: what each has measured.
        done: nobody measures any more, so they may leave.
    """

    ready: Any
    told: Any
    done: Any


Told = tuple[list[np.ndarray], int]  # seconds that each call of a round took, for each round; and calls that raised


def main() -> None:
    options = arguments(__doc__, rounds=5)
    with tempfile.TemporaryDirectory(prefix="plr-") as folder:
        show(list(measured(Path(folder), options.rounds)), options)


def measured(folder: Path, rounds: int) -> Iterator[Row]:
    fork = multiprocessing.get_context("fork")
    together = Together(fork.Barrier(PROCESSES + TRAINERS + 1), fork.SimpleQueue(), fork.Event())
    config = Config(levels=range(NUM_LEVELS))
    with launch(config, state_dir=folder / "state") as server, Trainer(server.address) as trainer:
        who = [asks] * PROCESSES + [pushes] * TRAINERS
        processes = [
            fork.Process(target=each, args=(server.address, number, rounds, together))
            for number, each in enumerate(who)
        ]
        for process in processes:
            process.start()
        together.ready.wait()
        begin_s = time.monotonic()
        memory, sessions = [], []
        for number in range(rounds):
            time.sleep(max(0.0, begin_s + (number + 1) * ROUND_S - time.monotonic()))
            memory.append(resident_bytes(server.process.pid) / 1e6)
            sessions.append(trainer.stats()["sessions"])
        answers: list[Told] = [together.told.get() for _ in processes]
        together.done.set()
        for process in processes:
            process.join()
    took_s = [np.concatenate(parts) for parts in zip(*(each for each, _ in answers if each), strict=True)]
    p50, p99 = ([1e3 * float(np.quantile(each, q)) for each in took_s] for q in (0.5, 0.99))
    yield Row("next p50", "ms", p50)
    yield Row("next p99", "ms", p99, float(np.median(p50)))
    yield Row("levels", "/s", [len(each) / ROUND_S for each in took_s])
    yield Row("memory", "MB", memory)
    yield Row("sessions", "", sessions)
    yield Row("failures", "", [float(sum(failures for _, failures in answers))])


def asks(address: str, seed: int, rounds: int, together: Together) -> None:
    """Keeps its share of the clients connected and asks for one after the other."""
    rng, num = np.random.default_rng(seed), CLIENTS // PROCESSES
    failures, rows = 0, []
    with ExitStack() as stack:
        clients = [stack.enter_context(LevelClient(address)) for _ in range(num)]
        for _ in range(ASKS_BEFORE):
            for client in clients:
                client.next()
        together.ready.wait()
        begin_s = due_s = time.monotonic()
        for number in range(rounds):
            took_s = []
            while (now_s := time.monotonic()) < begin_s + (number + 1) * ROUND_S:
                time.sleep(max(0.0, due_s - now_s))
                due_s = max(due_s, now_s - 1.0) + rng.exponential(ASKS_EVERY_S / num)
                called_s = time.perf_counter()
                try:
                    clients[rng.integers(num)].next()
                except PlrError:
                    failures += 1
                took_s.append(time.perf_counter() - called_s)
            rows.append(np.array(took_s))
        together.told.put((rows, failures))
        together.done.wait()


def pushes(address: str, seed: int, rounds: int, together: Together) -> None:
    rng = np.random.default_rng(seed)
    shape = (NUM_STEPS, NUM_COLUMNS)
    dones = rng.random(shape) < 1 / 75  # about 220 episodes in a block
    levels = (np.cumsum(dones, axis=0) - dones + np.arange(NUM_COLUMNS)) % NUM_LEVELS
    values, rewards = rng.random(shape, dtype=np.float32), rng.random(shape, dtype=np.float32)
    failures = 0
    with Trainer(address) as trainer:
        trainer.push(values, rewards, dones, levels, values[-1])
        together.ready.wait()
        until_s = time.monotonic() + rounds * ROUND_S
        while time.monotonic() < until_s:
            try:
                trainer.push(values, rewards, dones, levels, values[-1])
            except PlrError:
                failures += 1
            time.sleep(PUSHES_EVERY_S)
        together.told.put(([], failures))
        together.done.wait()


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()

"""What a state directory costs: pushes and levels with the journal on and off, recovery, and snapshots.

Servers with and without `--state-dir`, in interleaved rounds of one run, each through one client over ipc:

  push           blocks of 256 x 64 float32, in steps/s
  next(1)        a round trip at the caller, p50 in µs; 200 levels, all seen
  next(1) x 16   16 client processes at once, in all; under `always`, what they share a sync for

And in this process, for a curriculum of a million levels, all seen:

  recovery       from a snapshot and as many commands as one is taken after, half next(1), half push_scores of 64
  snapshot       how long the loop is held for one; it is written in the background
  stop           the last snapshot, on the disk

The ratio of a row is against the same without a journal.
"""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from report import Row, arguments, show

from plr_client import LevelClient, Trainer
from plr_client.protocol import Request, encode_request
from plr_server import Config, Curriculum, launch
from plr_server.durability.state_dir import FSYNC, SNAPSHOT_AFTER_COMMANDS, StateDir
from plr_server.serving.dispatch import Dispatcher
from plr_server.serving.restart import restart

NUM_STEPS, NUM_COLUMNS, NUM_LEVELS, MANY_LEVELS = 256, 64, 200, 10**6
ROUND_TRIPS, PUSHES, CLIENTS, TOGETHER_S = 1_000, 40, 16, 1.0
WITHOUT = "memory"


def main() -> None:
    options = arguments(__doc__, rounds=7)
    measured: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="plr-", dir=Path.cwd()) as folder:  # on a disk, not in memory
        with ExitStack() as stack:
            addresses = {}
            for fsync in (WITHOUT, *FSYNC):
                kept = {} if fsync == WITHOUT else {"state_dir": f"{folder}/{fsync}", "fsync": fsync}
                addresses[fsync] = stack.enter_context(launch(Config(levels=range(NUM_LEVELS)), **kept)).address
            for _ in range(options.rounds):
                for fsync, address in addresses.items():
                    for name, value in one_round(address):
                        measured[f"{name}, {fsync}"].append(value)
        for number in range(options.rounds):
            for name, value in many_levels(Path(folder) / f"{number}"):
                measured[name].append(value)
    show(list(rows(measured)), options)


def rows(measured: dict[str, list[float]]) -> Iterator[Row]:
    for name, values in measured.items():
        what, _, fsync = name.rpartition(", ")
        against = measured.get(f"{what}, {WITHOUT}") if fsync in FSYNC else None
        yield Row(name, unit(name), values, None if against is None else float(np.median(against)))


def unit(name: str) -> str:
    return "steps/s" if "push" in name else "/s" if "x 16" in name else "µs" if "next" in name else "ms"


def one_round(address: str) -> Iterator[tuple[str, float]]:
    rng = np.random.default_rng(0)
    shape = (NUM_STEPS, NUM_COLUMNS)
    dones = rng.random(shape) < 1 / 75  # about 220 episodes in a block
    levels = (np.cumsum(dones, axis=0) - dones + np.arange(NUM_COLUMNS)) % NUM_LEVELS
    values, rewards = rng.random(shape, dtype=np.float32), rng.random(shape, dtype=np.float32)
    with Trainer(address) as trainer, LevelClient(address) as client:
        trainer.push(values, rewards, dones, levels, values[-1])
        started = time.perf_counter()
        for _ in range(PUSHES):
            trainer.push(values, rewards, dones, levels, values[-1])
        yield "push 256 x 64", PUSHES * dones.size / (time.perf_counter() - started)
        times_us = np.empty(ROUND_TRIPS)
        for i in range(ROUND_TRIPS):
            started = time.perf_counter()
            client.next()
            times_us[i] = 1e6 * (time.perf_counter() - started)
        yield "next(1), p50", float(np.median(times_us))
    with multiprocessing.get_context("fork").Pool(CLIENTS) as pool:
        yield f"next(1) x {CLIENTS}", sum(pool.map(asks, [address] * CLIENTS, chunksize=1)) / TOGETHER_S


def asks(address: str) -> int:
    with LevelClient(address) as client:
        client.next()
        count, until = 0, time.perf_counter() + TOGETHER_S
        while time.perf_counter() < until:
            client.next()
            count += 1
        return count


def many_levels(folder: Path) -> Iterator[tuple[str, float]]:
    dispatcher, log = started(folder)
    say(dispatcher, "hello", 1)
    for number, begin in enumerate(range(0, MANY_LEVELS, 2**18)):
        ids = np.arange(begin, min(begin + 2**18, MANY_LEVELS))
        say(dispatcher, "push_scores", 2 + number, {"levels": ids, "scores": np.sin(ids)})
    log.save()
    levels = np.arange(64) % 7
    for number in range(SNAPSHOT_AFTER_COMMANDS // 2 + 1):
        say(dispatcher, "next", 100 + 2 * number)
        say(dispatcher, "push_scores", 101 + 2 * number, {"levels": levels, "scores": levels + 0.5})
    log.commit()
    killed = shutil.copytree(folder, folder.with_name(f"{folder.name} killed"))
    yield "recovery, 10^6 levels", timed_ms(lambda: started(killed)[1])
    before = set(folder.glob("snapshot*"))
    held_ms = [timed_ms(log.look_after)]
    while before & set(folder.glob("snapshot*")):
        held_ms.append(timed_ms(log.look_after))
    yield "snapshot holds the loop, 10^6 levels", max(held_ms)
    yield "stop, 10^6 levels", timed_ms(log.close)


def timed_ms(do: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    do()
    return 1e3 * (time.perf_counter() - started_s)


def started(folder: Path) -> tuple[Dispatcher, StateDir]:
    curriculum = Curriculum(Config(levels=range(MANY_LEVELS), strategy="external"))
    dispatcher, log = Dispatcher({"default": curriculum}, max_frame_bytes=2**28), StateDir(folder)
    restart(dispatcher, log)
    return dispatcher, log


def say(dispatcher: Dispatcher, op: str, number: int, arrays: dict[str, np.ndarray] | None = None) -> None:
    args = {} if arrays else {"k": 1}
    dispatcher.answer(b"\x01peer", encode_request(Request("s", 1, number, "default", op, args, arrays or {})))


if __name__ == "__main__":
    main()

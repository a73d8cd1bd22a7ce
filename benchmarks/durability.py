"""What a state directory costs: pushes and levels with the journal on and off, recovery, and snapshots.

Servers with and without `--state-dir`, each through one client over ipc, their calls in turns:

  push           blocks of 256 x 64 float32, in steps/s at the median
  next(1)        a round trip at the caller, p50 in µs; 200 levels, all seen
  next(1) x 16   16 client processes at once, in all; under `always`, what they share a sync for

And in this process, for a curriculum of a million levels (`--levels`), all seen:

  recovery       from a snapshot and as many commands as one is taken after, half next(1), half push_scores of 64
  next(1)        while a snapshot is made: taken in the loop, written in the background, the old one removed; with all
                 that the loop does beside it
  stop           the last snapshot, on the disk
  memory         the most that this process ever had

The ratio of a row is against the same without a journal.
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import resource
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
    options = arguments(__doc__, rounds=7, levels="only the part in this process, with so many levels")
    num_levels = options.levels or MANY_LEVELS
    measured: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="plr-", dir=Path.cwd()) as folder:  # on a disk, not in memory
        with ExitStack() as stack:
            addresses: dict[str, str] = {}
            for fsync in () if options.levels else (WITHOUT, *FSYNC):
                kept = {} if fsync == WITHOUT else {"state_dir": f"{folder}/{fsync}", "fsync": fsync}
                addresses[fsync] = stack.enter_context(launch(Config(levels=range(NUM_LEVELS)), **kept)).address
            for _ in range(options.rounds if addresses else 0):
                for name, value in one_round(addresses):
                    measured[name].append(value)
        for number in range(options.rounds):
            for name, value in many_levels(Path(folder) / f"{number}", num_levels):
                measured[name].append(value)
    show(list(rows(measured)), options)


def rows(measured: dict[str, list[float]]) -> Iterator[Row]:
    for name, values in measured.items():
        what, _, fsync = name.rpartition(", ")
        against = measured.get(f"{what}, {WITHOUT}") if fsync in FSYNC else None
        yield Row(name, unit(name), values, None if against is None else float(np.median(against)))


def unit(name: str) -> str:
    units = {"push": "steps/s", "x 16": "/s", "longest": "ms", "next": "µs", "memory": "MB"}
    return next((of for what, of in units.items() if what in name), "ms")


def one_round(addresses: dict[str, str]) -> Iterator[tuple[str, float]]:
    rng = np.random.default_rng(0)
    shape = (NUM_STEPS, NUM_COLUMNS)
    dones = rng.random(shape) < 1 / 75  # about 220 episodes in a block
    levels = (np.cumsum(dones, axis=0) - dones + np.arange(NUM_COLUMNS)) % NUM_LEVELS
    values, rewards = rng.random(shape, dtype=np.float32), rng.random(shape, dtype=np.float32)
    with ExitStack() as stack:
        trainers = {name: stack.enter_context(Trainer(address)) for name, address in addresses.items()}
        clients = {name: stack.enter_context(LevelClient(address)) for name, address in addresses.items()}
        pushes = {
            name: functools.partial(trainer.push, values, rewards, dones, levels, values[-1])
            for name, trainer in trainers.items()
        }
        for name, median_ms in medians_ms(pushes, PUSHES).items():
            yield f"push 256 x 64, {name}", 1e3 * dones.size / median_ms
        for name, median_ms in medians_ms({name: each.next for name, each in clients.items()}, ROUND_TRIPS).items():
            yield f"next(1), p50, {name}", 1e3 * median_ms
    for name, address in addresses.items():
        with multiprocessing.get_context("fork").Pool(CLIENTS) as pool:
            yield f"next(1) x {CLIENTS}, {name}", sum(pool.map(asks, [address] * CLIENTS, chunksize=1)) / TOGETHER_S


def medians_ms(calls: dict[str, Callable[[], object]], num: int) -> dict[str, float]:
    """Times calls one after the other, in turns, so that a busy machine hits all alike."""
    times_ms = {name: np.array([]) for name in calls}
    for _ in range(num):
        for name, call in calls.items():
            times_ms[name] = np.append(times_ms[name], timed_ms(call))
    return {name: float(np.median(each[1:])) for name, each in times_ms.items()}


def asks(address: str) -> int:
    with LevelClient(address) as client:
        client.next()
        count, until = 0, time.perf_counter() + TOGETHER_S
        while time.perf_counter() < until:
            client.next()
            count += 1
        return count


def many_levels(folder: Path, num_levels: int) -> Iterator[tuple[str, float]]:
    what = f"10^{np.log10(num_levels):.3g} levels"
    dispatcher, log = started(folder, num_levels)
    say(dispatcher, "hello", 1)
    for number, begin in enumerate(range(0, num_levels, 2**18)):
        ids = np.arange(begin, min(begin + 2**18, num_levels))
        say(dispatcher, "push_scores", 2 + number, {"levels": ids, "scores": np.sin(ids)})
    log.save()
    levels = np.arange(64) % 7
    for number in range(SNAPSHOT_AFTER_COMMANDS // 2 + 1):
        say(dispatcher, "next", 100 + 2 * number)
        say(dispatcher, "push_scores", 101 + 2 * number, {"levels": levels, "scores": levels + 0.5})
    log.commit()
    killed = shutil.copytree(folder, folder.with_name(f"{folder.name} killed"))
    recovered: list[StateDir] = []
    yield f"recovery, {what}", timed_ms(lambda: recovered.append(started(killed, num_levels)[1]))
    recovered.pop().close()
    before, numbers = set(folder.glob("snapshot*")), itertools.count(10**6)

    def turn() -> None:
        say(dispatcher, "next", next(numbers))
        log.commit()
        log.look_after()

    turns_ms = [timed_ms(turn)]
    while before & set(folder.glob("snapshot*")):
        turns_ms += [timed_ms(turn) for _ in range(100)]
    yield f"next(1) while a snapshot is made, p50, {what}", 1e3 * float(np.percentile(turns_ms, 50))
    yield f"next(1) while a snapshot is made, p99, {what}", 1e3 * float(np.percentile(turns_ms, 99))
    yield f"next(1) while a snapshot is made, longest, {what}", max(turns_ms)
    yield f"stop, {what}", timed_ms(log.close)
    yield f"memory, {what}", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed_ms(do: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    do()
    return 1e3 * (time.perf_counter() - started_s)


def started(folder: Path, num_levels: int) -> tuple[Dispatcher, StateDir]:
    curriculum = Curriculum(Config(levels=range(num_levels), strategy="external"))
    dispatcher, log = Dispatcher({"default": curriculum}, max_frame_bytes=2**28), StateDir(folder)
    restart(dispatcher, log)
    return dispatcher, log


def say(dispatcher: Dispatcher, op: str, number: int, arrays: dict[str, np.ndarray] | None = None) -> None:
    args = {} if arrays else {"k": 1}
    dispatcher.answer(b"\x01peer", encode_request(Request("s", 1, number, "default", op, args, arrays or {})))


if __name__ == "__main__":
    main()

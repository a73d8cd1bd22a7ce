"""Round trips and pushes through a real server, beside a bare pyzmq ROUTER that answers without doing anything.

Over ipc and tcp, in interleaved rounds of one run (each measures everything once, so that a busy machine hits all):

  next(1), next(64)  a round trip at the caller, p50 and p99 in µs; 200 levels, all seen
  next_arrays        1024 and 4096 levels at once, p50 and p99 in µs
  16 processes       round trips a second of 16 processes that do nothing but next(1)
  next(1) ahead      the same with prefetch=8, so that most calls send nothing and none should wait
  push               blocks of 256 x 64 float32, in steps/s
  push_step          one step of 64 envs, p50 and p99 in µs at the caller
  bare ROUTER        the same frames answered by a small header: the floor of the transport

The ratio of a row is against the bare ROUTER's row with the same frames.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import zmq
from report import Row, arguments, show

from plr_client import LevelClient, Trainer
from plr_client.protocol import Frames, Request, encode_request
from plr_server import Config, launch

NUM_STEPS, NUM_COLUMNS, NUM_LEVELS = 256, 64, 200
ROUND_TRIPS, PUSHES = 1_000, 20
NUM_PROCESSES, PROCESSES_S = 16, 2.0
PREFETCH, EPISODE_S = 8, 100e-6  # an episode of ten steps of 10 µs between two calls


def main() -> None:
    options = arguments(__doc__, rounds=7)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="plr-") as folder:
        for transport, ours, bare in (
            ("ipc", f"ipc://{folder}/plr.sock", f"ipc://{folder}/bare.sock"),
            ("tcp", "tcp://127.0.0.1:0", "tcp://127.0.0.1:*"),
        ):
            measured: dict[str, list[float]] = defaultdict(list)
            with (
                launch(Config(levels=range(NUM_LEVELS)), ours) as server,
                bare_router(bare) as bare_socket,
                LevelClient(server.address) as client,
                LevelClient(server.address, prefetch=PREFETCH) as ahead,
                Trainer(server.address) as trainer,
            ):
                trainer.push_scores(np.arange(NUM_LEVELS), np.random.default_rng(0).random(NUM_LEVELS))
                for _ in range(options.rounds):
                    for name, value in one_round(client, ahead, trainer, bare_socket):
                        measured[name].append(value)
                    bare_address = bare_socket.getsockopt_string(zmq.LAST_ENDPOINT)
                    for name, worker, address in (
                        ("bare ROUTER, 16 processes, next(1)", ask_bare_for, bare_address),
                        ("16 processes, next(1)", ask_ours_for, server.address),
                    ):
                        measured[name].append(round_trips_per_second(worker, address))
            rows += table(transport, measured)
    show(rows, options)


def table(transport: str, measured: dict[str, list[float]]) -> list[Row]:
    rows = []
    for name, values in measured.items():
        floor = measured.get(f"bare ROUTER, {name}")
        against = float(np.median(floor)) if floor else None
        unit = "steps/s" if "steps" in name else "1/s" if "processes" in name else "µs"
        rows.append(Row(f"{transport}: {name}", unit, values, against))
    return rows


def one_round(
    client: LevelClient, ahead: LevelClient, trainer: Trainer, bare: zmq.Socket[bytes]
) -> Iterator[tuple[str, float]]:
    rng = np.random.default_rng(0)
    shape = (NUM_STEPS, NUM_COLUMNS)
    dones = rng.random(shape) < 1 / 75  # about 220 episodes in a block
    levels = (np.cumsum(dones, axis=0) - dones + np.arange(NUM_COLUMNS)) % NUM_LEVELS
    values, rewards = rng.random(shape, dtype=np.float32), rng.random(shape, dtype=np.float32)
    block = (values, rewards, dones, levels, values[-1])
    step = (values[0], rewards[0], dones[0] | True, levels[0], values[1])

    def ask_bare(frames: Frames) -> None:
        bare.send_multipart(frames)
        bare.recv_multipart()

    def frames(op: str, k: int = 0, **arrays: np.ndarray) -> Frames:
        return encode_request(Request("0" * 32, 1, 1, "default", op, {"k": k} if k else {}, arrays))

    for k in (1024, 4096):
        yield from percentiles(f"next_arrays({k})", lambda k=k: client.next_arrays(k), calls=50)
    names = ("values", "rewards", "dones", "levels", "next_values")
    for k in (1, 64):
        asked = frames("next", k)
        yield from percentiles(f"bare ROUTER, next({k})", lambda asked=asked: ask_bare(asked))
        yield from percentiles(f"next({k})", lambda k=k: client.next(k))
    yield from percentiles("next(1) ahead", ahead.next, pause_s=EPISODE_S)
    pushed = frames("push", **dict(zip(names, block, strict=True)))
    yield "bare ROUTER, push 256 x 64, steps", steps_per_second(lambda: ask_bare(pushed))
    yield "push 256 x 64, steps", steps_per_second(lambda: trainer.push(*block))
    stepped = frames("push_step", **dict(zip(names, step, strict=True)))
    yield from percentiles("bare ROUTER, push_step of 64 envs", lambda: ask_bare(stepped))
    yield from percentiles("push_step of 64 envs", lambda: trainer.push_step(*step))


def percentiles(
    name: str, call: Callable[[], object], pause_s: float = 0.0, calls: int = ROUND_TRIPS
) -> list[tuple[str, float]]:
    times_us = np.empty(calls)
    for i in range(calls):
        started = time.perf_counter()
        call()
        stopped = time.perf_counter()
        times_us[i] = 1e6 * (stopped - started)
        while time.perf_counter() < stopped + pause_s:
            pass
    return [(f"{name}, p{q}", float(np.percentile(times_us, q))) for q in (50, 99)]


def steps_per_second(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    for _ in range(PUSHES):
        call()
    return PUSHES * NUM_STEPS * NUM_COLUMNS / (time.perf_counter() - started)


def round_trips_per_second(worker: Callable[[str, Any, Any], None], address: str) -> float:
    """Returns how many round trips NUM_PROCESSES processes make, each on a connection of its own."""
    fork = multiprocessing.get_context("fork")
    begin, made = fork.Barrier(NUM_PROCESSES), fork.Queue()
    workers = [fork.Process(target=worker, args=(address, begin, made)) for _ in range(NUM_PROCESSES)]
    for process in workers:
        process.start()
    total = sum(made.get() for _ in workers)
    for process in workers:
        process.join()
    return total / PROCESSES_S


def count_for_a_while(call: Callable[[], object], begin: Any, made: Any) -> None:
    call()
    begin.wait()
    number, deadline = 0, time.perf_counter() + PROCESSES_S
    while time.perf_counter() < deadline:
        call()
        number += 1
    made.put(number)


def ask_ours_for(address: str, begin: Any, made: Any) -> None:
    with LevelClient(address) as client:
        count_for_a_while(client.next, begin, made)


def ask_bare_for(address: str, begin: Any, made: Any) -> None:
    asked = encode_request(Request("0" * 32, 1, 1, "default", "next", {"k": 1}))
    with zmq.Context() as context, context.socket(zmq.DEALER) as bare:
        bare.linger = 0
        bare.connect(address)

        def ask() -> None:
            bare.send_multipart(asked)
            bare.recv_multipart()

        count_for_a_while(ask, begin, made)


@contextlib.contextmanager
def bare_router(address: str) -> Iterator[zmq.Socket[bytes]]:
    """A process that answers whatever it gets with 62 bytes, and a socket connected to it."""
    spawn = multiprocessing.get_context("spawn")
    read, write = spawn.Pipe(duplex=False)
    process = spawn.Process(target=echo_for_ever, args=(address, write), daemon=True)
    process.start()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.connect(read.recv())
    yield socket
    socket.close(0)
    context.term()
    process.terminate()
    process.join()


def echo_for_ever(address: str, ready: Connection) -> None:
    router = zmq.Context().socket(zmq.ROUTER)
    router.bind(address)
    ready.send(router.get_string(zmq.LAST_ENDPOINT).rstrip("\0"))
    while True:
        peer, *_ = router.recv_multipart()
        router.send_multipart([peer, bytes(62)])


if __name__ == "__main__":
    main()

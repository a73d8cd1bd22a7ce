"""What keys cost: a server that asks for them and encrypts, beside one that does not; and how soon a refusal is known.

Two servers of 200 levels, over ipc and tcp. Every call goes to the one, then to the other, so that both meet the same
machine; p50 of each round, in µs at the caller:

  next(1), next(64)    a round trip
  push_step            one step of 64 envs
  push, 1 MB           a block of 1024 x 64: values, rewards, dones and levels
  connect, next(1)     a new client to its first level

The ratio of a row with keys is against the row without. Then, in ms, from the first call of a client to its error:

  refused: ...         no keys, keys that are not on the list, keys of another server, keys at an open server
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from report import Row, arguments, show

from plr_client import LevelClient, NotAdmitted, Trainer
from plr_server import Config, launch
from plr_server.serving.keys import make_key

NUM_LEVELS, NUM_ENVS, NUM_STEPS = 200, 64, 1024
CALLS, LARGE_CALLS = 1_000, 50
REFUSALS = 5  # in a round


def main() -> None:
    options = arguments(__doc__, rounds=7)
    os.environ.pop("PLR_KEYS", None)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="plr-") as folder:
        key = make_key(Path(folder) / "keys", name="trainer", role="trainer")
        other = make_key(Path(folder) / "other", name="trainer", role="trainer")
        unlisted = Path(folder) / "unlisted.key"
        unlisted.touch(0o600)
        mixed = json.loads(key.read_text()) | {"secret": json.loads(other.read_text())["secret"]}
        unlisted.write_text(json.dumps(mixed))
        for transport, address in (("ipc", None), ("tcp", "tcp://127.0.0.1:0")):
            measured: dict[str, list[float]] = defaultdict(list)
            config = Config(levels=range(NUM_LEVELS))
            with launch(config, address) as opened, launch(config, address, keys=key.parent) as closed:
                for _ in range(options.rounds):
                    one_round(measured, opened.address, closed.address, key)
                    for name, at, keys in (
                        ("no keys", closed.address, None),
                        ("keys that are not on the list", closed.address, unlisted),
                        ("keys of another server", closed.address, other),
                        ("keys at an open server", opened.address, key),
                    ):
                        measured[f"refused: {name}"] += [refused_after_ms(at, keys) for _ in range(REFUSALS)]
            rows += table(transport, measured)
    show(rows, options)


def one_round(measured: dict[str, list[float]], opened: str, closed: str, key: Path) -> None:
    rng = np.random.default_rng(0)
    shape = (NUM_STEPS, NUM_ENVS)
    values, rewards = rng.random(shape, dtype=np.float32), rng.random(shape, dtype=np.float32)
    dones = rng.random(shape) < 1 / 75  # about 870 episodes in a block
    levels = (np.cumsum(dones, axis=0) - dones + np.arange(NUM_ENVS)) % NUM_LEVELS
    block, step = (
        (values, rewards, dones, levels, values[-1]),
        (values[0], rewards[0], dones[0] | True, levels[0], values[1]),
    )
    with (
        LevelClient(opened) as open_client,
        LevelClient(closed, keys=key) as keyed_client,
        Trainer(opened) as open_trainer,
        Trainer(closed, keys=key) as keyed_trainer,
    ):
        for k in (1, 64):
            in_turn(measured, f"next({k})", lambda k=k: open_client.next(k), lambda k=k: keyed_client.next(k))
        in_turn(
            measured,
            f"push_step of {NUM_ENVS} envs",
            lambda: open_trainer.push_step(*step),
            lambda: keyed_trainer.push_step(*step),
        )
        in_turn(
            measured, "push, 1 MB", lambda: open_trainer.push(*block), lambda: keyed_trainer.push(*block), LARGE_CALLS
        )
    in_turn(measured, "connect, next(1)", lambda: first_level(opened), lambda: first_level(closed, key), LARGE_CALLS)


def in_turn(
    measured: dict[str, list[float]],
    name: str,
    without: Callable[[], object],
    with_keys: Callable[[], object],
    calls: int = CALLS,
) -> None:
    """Times both calls, one after the other, again and again, and adds the median of each."""
    times_us = np.empty((calls, 2))
    for i in range(calls):
        for j, call in enumerate((without, with_keys)):
            began = time.perf_counter()
            call()
            times_us[i, j] = 1e6 * (time.perf_counter() - began)
    for suffix, median in zip((", without keys", ", with keys"), np.median(times_us, axis=0), strict=True):
        measured[name + suffix].append(float(median))


def first_level(address: str, keys: Path | None = None) -> None:
    with LevelClient(address, keys=keys) as client:
        client.next()


def refused_after_ms(address: str, keys: Path | None) -> float:
    began = time.perf_counter()
    try:
        LevelClient(address, keys=keys).next()
    except NotAdmitted:
        return 1e3 * (time.perf_counter() - began)
    raise AssertionError(f"{keys} let in at {address}")


def table(transport: str, measured: dict[str, list[float]]) -> list[Row]:
    rows = []
    for name, values in measured.items():
        yardstick = measured[name.replace(", with keys", ", without keys")]
        against = None if yardstick is values else float(np.median(yardstick))
        rows.append(Row(f"{transport}: {name}", "ms" if "refused" in name else "µs", values, against))
    return rows


if __name__ == "__main__":
    main()

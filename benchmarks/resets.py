"""Resets per second of 16 worker processes, and the wait at reset, beside Syllabus 0.7; episodes of ten steps.

Each contender has a process of its own, and in or beside it a curriculum of 200 or 10 000 levels, all
seen, under rank, temperature 0.1 and staleness_coef 0.1. Meanwhile a trainer pushes a block of 256 x 16 steps once a
second. Interleaved rounds of one run: each measures everything once, so that a busy machine hits all.

  resets        how many, by 16 free-running processes; ours without and with levels held ready (`prefetch`)
  wait          how long a reset takes in the 16 workers of an AsyncVectorEnv, median and 99th percentile; without any
                curriculum it is what a reset takes by itself. The floor of both is the same workers asking a bare
                pyzmq ROUTER in the same pattern on the same cores, without and with levels held ready

The ratio of each row is against the same of Syllabus. It is installed from PyPI into an environment of its own
(.venv-syllabus; 1.5 GB, Python 3.10 to 3.12), and holds one task ready for each env, as it recommends at most; its own
default is none. Without --peers ours is measured alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from levels import PEERS, python_of
from report import Row, show

CONTENDERS = Path(__file__).resolve().parent / "contenders"
NUM_LEVELS = (200, 10_000)
PEER = "Syllabus 0.7"
BARE = "no curriculum"
FLOOR = "bare ROUTER"
PREFETCH = 16
ASKED_RATIO = {200: 4.0, 10_000: 12.0}  # of the peer's resets/s
ASKED_WAIT_US = {"p50": 10.0}
ASKED_OF_FLOOR = 1.5  # p99 of the wait ahead, against the bare ROUTER's

QUANTILES = ("p50", "p99")

Cell = tuple[str, int, str]  # quantity, number of levels, contender


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of one measurement (default: %(default)s)")
    parser.add_argument("--prefetch", type=int, default=PREFETCH, help="levels held ready (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="also write the rows as JSON; - for standard output, alone")
    parser.add_argument("--peers", action="store_true", help="measure Syllabus too; installs it where it is not")
    options = parser.parse_args()
    ours = sys.executable, "resets_ours.py"
    ahead = f"ours, prefetch {options.prefetch}"
    router = sys.executable, "resets_router.py"
    contenders = {
        BARE: (sys.executable, "resets_bare.py", 0),
        FLOOR: (*router, 0),
        "ours": (*ours, 0),
        f"{FLOOR}, {options.prefetch} ahead": (*router, options.prefetch),
        ahead: (*ours, options.prefetch),
    }
    if options.peers:
        contenders = {PEER: (python_of(PEERS[PEER]), "resets_syllabus.py", 1)} | contenders
    load_before = os.getloadavg()[0]
    measured: defaultdict[Cell, list[float]] = defaultdict(list)
    for _ in range(options.rounds):
        for num_levels in NUM_LEVELS:
            for name, contender in contenders.items():
                resets = answer_of(contender, "rate", num_levels, options.seconds)
                waits = answer_of(contender, "wait", num_levels, options.seconds)
                measured["resets", num_levels, name].append(resets["rate"])
                for quantile in QUANTILES:
                    measured[f"wait {quantile}", num_levels, name].append(1e6 * waits[quantile])
    show(rows_of(measured, list(contenders)), options)
    if options.json != "-":
        print()
        show_asked(measured, ahead, with_peer=options.peers)
        print(f"\nload average {load_before:.1f} before, {os.getloadavg()[0]:.1f} after, on {os.cpu_count()} cores")


def answer_of(contender: tuple[str, str, int], measure: str, num_levels: int, seconds: float) -> dict[str, float]:
    """Returns what a contender answers in a process of its own."""
    python, script, ready = contender
    read, write = os.pipe()
    process = subprocess.Popen(  # noqa: S603  our own script
        [python, str(CONTENDERS / script), *map(str, (write, measure, num_levels, seconds, ready))],
        stdout=subprocess.DEVNULL,  # the libraries' own
        stderr=subprocess.PIPE,
        pass_fds=[write],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(CONTENDERS.parents[1])},
        text=True,
    )
    os.close(write)
    errors = process.communicate()[1]
    with os.fdopen(read) as answers:
        line = answers.readline()
    if not line:
        raise SystemExit(f"{script} failed at {measure} of {num_levels} levels:\n{errors}")
    answer: dict[str, float] = json.loads(line)
    return answer


def rows_of(measured: Mapping[Cell, Sequence[float]], contenders: Sequence[str]) -> list[Row]:
    rows = []
    for quantity, unit in (("resets", "1/s"), *((f"wait {quantile}", "µs") for quantile in QUANTILES)):
        for num_levels in NUM_LEVELS:
            against: float | None = None
            for name in contenders:
                row = Row(
                    f"{quantity}, {num_levels:,} levels: {name}", unit, measured[quantity, num_levels, name], against
                )
                rows.append(row)
                if name == PEER:
                    against = row.median
    return rows


def show_asked(measured: Mapping[Cell, Sequence[float]], name: str, *, with_peer: bool) -> None:
    for num_levels in NUM_LEVELS:

        def median(quantity: str, contender: str, num_levels: int = num_levels) -> float:
            return Row("", "", measured[quantity, num_levels, contender]).median

        for quantile, limit in ASKED_WAIT_US.items():
            show_limit(
                f"wait {quantile}, {num_levels:,} levels, µs", median(f"wait {quantile}", name), "at most", limit
            )
        floor = median("wait p99", name.replace("ours, prefetch", f"{FLOOR},") + " ahead")
        of_floor = median("wait p99", name) / floor
        show_limit(f"wait p99 against {FLOOR}, {num_levels:,} levels", of_floor, "at most", ASKED_OF_FLOOR)
        if with_peer:
            ratio = median("resets", name) / median("resets", PEER)
            show_limit(f"resets against {PEER}, {num_levels:,} levels", ratio, "at least", ASKED_RATIO[num_levels])


def show_limit(what: str, value: float, bound: str, limit: float) -> None:
    met = value <= limit if bound == "at most" else value >= limit
    print(f"{what:45} {value:9.3g}  asked {bound} {limit:g}{'' if met else '  MISSED'}")


if __name__ == "__main__":
    main()

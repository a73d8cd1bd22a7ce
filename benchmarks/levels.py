"""What a draw and an update cost with 200 to ten million levels, beside Syllabus 0.7 and DI-engine 0.5.3.

Rank, temperature 0.1, staleness_coef 0.1, value_l1, every level seen, 64 env columns. Each contender has a process of
its own, asked in turn, in interleaved rounds of one run (each round measures everything once, so that a busy machine
hits all); one thread each. Times are CPU times, but for the server's start.

  draw             `Curriculum.sample(1)`; the peers' `sample()`
  batch            `Curriculum.sample(64)`, per level; the peers draw one by one
  sampler draw     the same two without assignments and bookkeeping: `Sampler.draw`
  update           a block of 256 x 64 steps, about 220 episodes that end in it: `Curriculum.update`; the peers' own
  scoring          advantages, episodes and means of such a block, beside one numpy pass over the same arrays
  start            making an empty table; of the server: from nothing to the first level it hands out
  memory           growth of a fresh process to its peak: table made, seen, drawn from, updated

The ratio of a peer's row is against ours, of scoring's against the numpy pass. With --peers the peers are installed
from PyPI, each into an environment of its own (.venv-syllabus, .venv-di-engine; 1.5 GB each, Python 3.10 to 3.12), and
run up to a million levels; what takes many seconds there is measured in the first rounds only.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from report import Row, show

CONTENDERS = Path(__file__).resolve().parent / "contenders"
ROOT = CONTENDERS.parents[1]
NUM_LEVELS = (200, 10**3, 10**4, 10**5, 10**6, 10**7)
OURS = "ours"
PATIENCE_S = 15.0  # a peer's cell that has taken as long is not measured again
UNITS = {"µs": 1e6, "ms": 1e3, "s": 1.0, "MiB": 2.0**-20}  # from seconds and bytes


@dataclasses.dataclass(frozen=True)
class Peer:
    """A library to compare with.

    Attributes:
        script: what measures it, beside this file.
        environment: folder of its virtual environment, in the project's.
        installs: arguments of the `pip install` commands that make it, in order.
    """

    script: str
    environment: str
    installs: tuple[str, ...]


TORCH = "torch==2.13.0"  # first and alone: what comes later then leaves it as it is
PEERS = {
    "Syllabus 0.7": Peer("peer_syllabus.py", ".venv-syllabus", (TORCH, "syllabus-rl==0.7 numpy>=2 matplotlib scipy")),
    "DI-engine 0.5.3": Peer(
        "peer_di_engine.py",
        ".venv-di-engine",
        (
            TORCH,
            # what its LevelSampler imports; installed with its own list of dependencies it would replace torch
            (
                "numpy<2 gym==0.25.1 gymnasium DI-treetensor==0.5.0 DI-toolkit==0.3.0 easydict cloudpickle pyyaml "
                "flask hickle mpire pynng redis requests tabulate tensorboardX URLObject"
            ),
            "--no-deps DI-engine==0.5.3",
        ),
    ),
}


@dataclasses.dataclass(frozen=True)
class Quantity:
    """One thing to measure.

    Attributes:
        measure: its name in contenders/contender.py or contenders/contender_ours.py.
        unit: to show it in, a key of `UNITS`.
        num_levels: where.
        peers: whether they are measured too; they go up to a million levels.
        each_round: False for what is the same every time.
    """

    measure: str
    unit: str
    num_levels: tuple[int, ...] = NUM_LEVELS
    peers: bool = False
    each_round: bool = True


QUANTITIES = (
    Quantity("draw", "µs", peers=True),
    Quantity("batch", "µs"),
    Quantity("sampler draw", "µs"),
    Quantity("sampler batch", "µs"),
    Quantity("update", "ms", peers=True),
    Quantity("numpy pass", "ms", (200,)),
    Quantity("scoring", "ms", (200,)),
    Quantity("start", "ms", (10**6, 10**7), peers=True),
    Quantity("server", "s", (10**7,)),
    Quantity("memory", "MiB", (10**6, 10**7), peers=True, each_round=False),
)

Cell = tuple[str, int, str]  # measure, number of levels, contender
Measured = Mapping[Cell, Sequence[float]]  # seconds or bytes, one value for each round


@dataclasses.dataclass(frozen=True)
class Limit:
    """What a quantity of ours may be at most, in its unit, at a number of levels."""

    measure: str
    num_levels: int
    at_most: float


LIMITS = (
    Limit("draw", 10**6, 10.0),
    Limit("batch", 10**6, 4.0),
    Limit("update", 200, 2.0),
    Limit("update", 10**4, 2.0),
    Limit("update", 10**6, 8.0),
    Limit("scoring", 200, 1.0),
    Limit("memory", 10**6, 150.0),
    Limit("memory", 10**7, 1536.0),
    Limit("server", 10**7, 3.0),
)
DRAW_GROWTH_AT_MOST = 3.0  # from a thousand levels to a million


def main() -> None:
    options = arguments()
    contenders = {OURS: (sys.executable, "contender_ours.py")}
    if options.peers:
        contenders |= {name: (python_of(peer), peer.script) for name, peer in PEERS.items()}
    load_before = os.getloadavg()[0]
    measured = run(contenders, options.rounds)
    rows = [row for quantity in QUANTITIES for row in rows_of(quantity, measured)]
    show(rows, options)
    if options.json != "-":
        print()
        show_limits(measured)
        print(f"\nload average {load_before:.1f} before, {os.getloadavg()[0]:.1f} after, on {os.cpu_count()} cores")
    if options.plot:
        plot(measured, options.plot)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="also write the rows as JSON; - for standard output, alone")
    parser.add_argument("--peers", action="store_true", help="measure the peers too; installs them where they are not")
    parser.add_argument("--plot", metavar="FILE", help="draw cost against the number of levels (needs matplotlib)")
    options = parser.parse_args()
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install matplotlib")
    return options


# ---- the contenders


class Worker:
    """A contender's process: answers one measure after the other."""

    def __init__(self, python: str, script: str) -> None:
        read, write = os.pipe()
        self._process = subprocess.Popen(  # noqa: S603  our own script
            [python, str(CONTENDERS / script), str(write)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,  # the libraries' own
            stderr=subprocess.PIPE,
            pass_fds=[write],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
            text=True,
        )
        os.close(write)
        self._answers: IO[str] = os.fdopen(read)

    def ask(self, measure: str, num_levels: int) -> float:
        assert self._process.stdin is not None  # noqa: S101  narrows the type
        try:
            print(json.dumps([measure, num_levels]), file=self._process.stdin, flush=True)
            answer = self._answers.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise SystemExit(f"{measure} of {num_levels} levels failed:\n{self._process.communicate()[1]}")
        return float(answer)

    def close(self) -> None:
        self._process.communicate()
        self._answers.close()


def python_of(peer: Peer) -> str:
    """Returns the interpreter of a peer's environment, which is made where it is not there."""
    folder = ROOT / peer.environment
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        print(f"installing into {peer.environment}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)  # noqa: S603
        for install in peer.installs:
            command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *install.split()]
            subprocess.run(command, check=True, stdout=sys.stderr)  # noqa: S603  our own command
        ready.touch()
    return str(python)


def run(contenders: Mapping[str, tuple[str, str]], rounds: int) -> Measured:
    measured: defaultdict[Cell, list[float]] = defaultdict(list)
    for measure, num_levels, contender in cells(contenders, each_round=False):
        worker = Worker(*contenders[contender])  # a fresh one
        measured[measure, num_levels, contender].append(worker.ask(measure, num_levels))
        worker.close()
    workers = {name: Worker(*command) for name, command in contenders.items()}
    for _ in range(rounds):
        for cell in cells(contenders, each_round=True):
            measure, num_levels, contender = cell
            if contender == OURS or sum(measured[cell]) < PATIENCE_S:
                measured[cell].append(workers[contender].ask(measure, num_levels))
    for worker in workers.values():
        worker.close()
    return measured


def cells(contenders: Mapping[str, object], *, each_round: bool) -> Iterator[Cell]:
    for quantity in QUANTITIES:
        if quantity.each_round == each_round:
            for num_levels in quantity.num_levels:
                for contender in contenders:
                    if contender == OURS or (quantity.peers and num_levels <= 10**6):
                        yield quantity.measure, num_levels, contender


# ---- what came out


def rows_of(quantity: Quantity, measured: Measured) -> Iterator[Row]:
    factor = UNITS[quantity.unit]
    for num_levels in quantity.num_levels:
        against: float | None = None
        if quantity.measure == "scoring":
            against = factor * median_of(measured, "numpy pass", num_levels, OURS)
        for contender in (OURS, *PEERS):
            values = measured.get((quantity.measure, num_levels, contender))
            if values:
                name = f"{quantity.measure}, {num_levels:,} levels: {contender}"
                row = Row(name, quantity.unit, [factor * value for value in values], against)
                against = row.median if against is None else against
                yield row


def median_of(measured: Measured, measure: str, num_levels: int, contender: str) -> float:
    return Row("", "", measured[measure, num_levels, contender]).median


def show_limits(measured: Measured) -> None:
    units = {quantity.measure: quantity.unit for quantity in QUANTITIES}
    print(f"{'asked of ours':32}  {'median':>9}  {'at most':>8}  {'':6}  ratio to the faster peer")
    for limit in LIMITS:
        median = median_of(measured, limit.measure, limit.num_levels, OURS)
        peers = [
            median_of(measured, limit.measure, limit.num_levels, name)
            for name in PEERS
            if (limit.measure, limit.num_levels, name) in measured
        ]
        ratio = f"{median / min(peers):.2g}" if peers else ""
        name, unit = f"{limit.measure}, {limit.num_levels:,} levels", units[limit.measure]
        show_limit(name, UNITS[unit] * median, limit.at_most, unit, ratio)
    growth = median_of(measured, "draw", 10**6, OURS) / median_of(measured, "draw", 10**3, OURS)
    show_limit("draw, 1,000,000 against 1,000", growth, DRAW_GROWTH_AT_MOST, "times", "")


def show_limit(name: str, median: float, at_most: float, unit: str, ratio: str) -> None:
    verdict = "" if median <= at_most else "MISSED"
    print(f"{name:32}  {median:9.3g}  {at_most:8g}  {unit:6}  {ratio:9}  {verdict}".rstrip())


LINES = (  # measure, contender, label, colour, marker
    ("draw", "Syllabus 0.7", "Syllabus 0.7", "#d1495b", "s"),
    ("draw", "DI-engine 0.5.3", "DI-engine 0.5.3", "#edae49", "D"),
    ("draw", OURS, "plr-server, one at a time", "#00798c", "o"),
    ("batch", OURS, "plr-server, 64 at a time", "#66b2b2", "^"),
    ("update", "Syllabus 0.7", "Syllabus 0.7", "#d1495b", "s"),
    ("update", "DI-engine 0.5.3", "DI-engine 0.5.3", "#edae49", "D"),
    ("update", OURS, "plr-server", "#00798c", "o"),
)
PANELS = {
    ("draw", "batch"): ("Drawing one level", "rank, staleness 0.1, every level seen"),
    ("update",): ("Learning from one rollout block", "256 steps of 64 envs, about 220 episodes"),
}


def plot(measured: Measured, path: str) -> None:
    """Draws medians, and the range of the rounds around them, against the number of levels."""
    import matplotlib as mpl  # noqa: PLC0415  needed by this alone
    import matplotlib.pyplot as plt  # noqa: PLC0415
    from matplotlib.ticker import EngFormatter, NullLocator  # noqa: PLC0415

    mpl.use("agg")
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, 2, figsize=(11.5, 4.8), layout="constrained")
    for axis, (measures, (title, subtitle)) in zip(axes, PANELS.items(), strict=True):
        for measure, contender, label, colour, marker in LINES:
            at = [n for n in NUM_LEVELS if measure in measures and (measure, n, contender) in measured]
            if not at:
                continue
            medians = [median_of(measured, measure, n, contender) for n in at]
            least = [min(measured[measure, n, contender]) for n in at]
            most = [max(measured[measure, n, contender]) for n in at]
            axis.plot(at, medians, color=colour, marker=marker, markersize=6, linewidth=2, label=label)
            axis.fill_between(at, least, most, color=colour, alpha=0.15, linewidth=0)
        axis.set(xscale="log", yscale="log", xlabel="levels")
        axis.set_title(title, loc="left", fontweight="bold", pad=24)
        axis.text(0, 1.03, subtitle, transform=axis.transAxes, color="#555555", fontsize=10)
        axis.set_xticks(NUM_LEVELS, ["200", "1 000", "10⁴", "10⁵", "10⁶", "10⁷"])
        axis.yaxis.set_major_formatter(EngFormatter(unit="s"))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_minor_locator(NullLocator())
        axis.grid(color="#e3e3e3", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.legend(frameon=False, loc="upper left")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()

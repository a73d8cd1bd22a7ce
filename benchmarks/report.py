"""What the benchmarks share: rows of medians with their spread, printed as a table or as JSON."""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np


@dataclasses.dataclass(frozen=True)
class Row:
    """One quantity, measured once in each of several rounds.

    Attributes:
        name: what was measured.
        unit: of the values.
        values: one for each round.
        against: the median of what it is compared with, in the same unit and run; None for the yardstick itself.
    """

    name: str
    unit: str
    values: Sequence[float]
    against: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)


def arguments(doc: str | None, *, rounds: int, levels: str | None = None) -> argparse.Namespace:
    """Reads the command line; a benchmark that says what `--levels` means to it has that option, None by default."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="interleaved rounds (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="also write the rows as JSON; - for standard output, alone")
    if levels is not None:
        parser.add_argument("--levels", type=int, metavar="N", help=levels)
    return parser.parse_args()


def show(rows: Sequence[Row], options: argparse.Namespace) -> None:
    if options.json != "-":
        width = max(len(row.name) for row in rows)
        print(f"{'':{width}}  {'median':>12}  {'min .. max':>25}  unit      ratio")
        for row in rows:
            spread = f"{min(row.values):,.4g} .. {max(row.values):,.4g}"
            ratio = f"{row.median / row.against:.2f}" if row.against else ""
            print(f"{row.name:{width}}  {row.median:12,.4g}  {spread:>25}  {row.unit:8}  {ratio}")
    if options.json:
        machine = {"python": platform.python_version(), "numpy": np.__version__, "machine": platform.machine()}
        text = json.dumps(
            {"machine": machine, "rows": [dataclasses.asdict(row) | {"median": row.median} for row in rows]}, indent=1
        )
        if options.json == "-":
            print(text)
        else:
            Path(options.json).write_text(text + "\n")
    sys.stdout.flush()

"""Bugs put in on purpose, each of which the simulator has to find: `python tests/simulation/mutants.py` runs them all.

They are in mutants.diff: a name, a file, lines that are there once, and what comes in their place. Each is put into a
copy of the project and run there. The table that comes of it is docs/mutants.md.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
MUTANTS = Path(__file__).with_name("mutants.diff")
SCHEDULES = 10_000
TIMEOUT_S = 3600


class Mutant(NamedTuple):
    """A bug.

    Attributes:
        name: what is wrong, for the table.
        file: the source it is in.
        edits: (text, text instead of it), each text once in the file.
    """

    name: str
    file: str
    edits: tuple[tuple[str, str], ...]


def read_mutants():
    """Returns the mutants of mutants.diff."""
    mutants = []
    for block in MUTANTS.read_text().split("\n\n"):
        name, file, *lines = block.strip("\n").split("\n")
        hunks = "\n".join(lines).split("\n@@\n")
        edits = tuple((_side(hunk, "-"), _side(hunk, "+")) for hunk in hunks)
        mutants.append(Mutant(name.removeprefix("# "), file, edits))
    return mutants


def _side(hunk, mark):
    return "".join(f"{line[1:]}\n" for line in hunk.split("\n") if line[0] in (" ", mark))


def mutated(each, folder):
    """Makes a copy of the project with the bug in it."""
    for package in ("plr_client", "plr_server", "tests/simulation"):
        shutil.copytree(ROOT / package, folder / package)
    source = folder / each.file
    text = source.read_text()
    for old, new in each.edits:
        if text.count(old) != 1:
            raise LookupError(f"{each.name}: expected {old!r} once in {each.file}, got it {text.count(old)} times")
        text = text.replace(old, new)
    source.write_text(text)
    return folder


def found(each, schedules):
    """Returns after how many schedules a mutant is found, and by which check; None where it is not."""
    with tempfile.TemporaryDirectory() as folder:
        where = mutated(each, Path(folder))
        command = [
            sys.executable,
            "tests/simulation/simulate.py",
            "--stop",
            "--processes",
            "1",
            "--schedules",
            str(schedules),
        ]
        environment = os.environ | {"PYTHONPATH": str(where)}
        try:
            told = subprocess.run(  # noqa: S603  our own
                command, cwd=where, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return schedules, "it never ends"
    failure = re.search(r"^seed (\d+): (.*)$", told.stdout, re.MULTILINE)
    if failure is None:
        if told.returncode:
            raise RuntimeError(told.stderr)
        return None
    return int(failure[1]) + 1, failure[2]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--schedules", type=int, default=SCHEDULES, help="after which a mutant counts as missed")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--only", default="", help="the mutants whose name has this in it")
    parser.add_argument("--write", type=Path, help="the table, as a page")
    options = parser.parse_args()
    chosen = [each for each in read_mutants() if options.only in each.name]
    rows = []
    with ThreadPoolExecutor(options.processes) as pool:
        for each, result in zip(chosen, pool.map(lambda each: found(each, options.schedules), chosen), strict=True):
            where = each.file.removesuffix(".py").replace("/", ".")
            after, check = (f"{result[0]:,}".replace(",", " "), result[1]) if result else ("**missed**", "")
            rows.append(f"| {each.name} | {where} | {after} | {check} |")
            print(rows[-1], flush=True)
    if options.write:
        schedules = f"{options.schedules:,}".replace(",", " ")
        options.write.write_text(PAGE.format(num=len(rows), schedules=schedules, rows="\n".join(rows)))
    sys.exit(any("missed" in row for row in rows))


PAGE = """# Bugs put in on purpose

*Written by `make mutants`; do not edit.*

Does the simulator (`make simulate`) find what it is there to find? Each of these {num} bugs is put into a copy of the
source, one at a time, and schedules are run by their seeds, 0, 1, 2 ..., until one fails. A bug that {schedules}
schedules do not find counts as missed, and then the simulator is not finished.

A schedule has one to three clients, a server and its state directory. Requests and replies are lost, doubled, late or
out of order; clients are cut off; the server is killed at any call to the disk, or the machine loses its power and with
it what was not synced, in whole or in part, torn or with holes; the disk is full, fails, forgets, or says that it has
synced and has not. All of it follows from the seed. Afterwards this must hold:

- What was answered is in the history once, in an order that respects time, and nothing that was refused is.
- What a reply called durable is there after a loss of power, and all that was answered after a kill.
- Each reply is what a server that never stopped would have given after the same commands, and so is the state, bit for
  bit.
- The server starts again, unless the disk lost what it had called synced; and every client gets through in the end.

| the bug | in | found after | by |
|---|---|---|---|
{rows}
"""

if __name__ == "__main__":
    main()

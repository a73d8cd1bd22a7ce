"""The queue: a list of runs, a folder of results, and locks, so that several processes share the work.

A run that is under way holds a lock on a file of its own; the lock goes with the process, however that ends. A killed
run starts over from its first step, and gives the rows that it would have given: the curriculum lives in the server's
memory, and cannot yet be saved with the agent. A result appears whole or not at all.
"""

from __future__ import annotations

import csv
import fcntl
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from run import FIELDS, Row, run
from study import Job

HERE = Path(__file__).parent
# What the rows depend on.
MEASURED = ("plr_client", "plr_server", "wrappers", "benchmarks/learning", ":(exclude)benchmarks/learning/results")


class Unregistered(Exception):
    """A counted run was asked for while what it depends on differs from the commit."""


def work(jobs: Iterable[Job], results: Path) -> Iterator[Job]:
    """Does the runs that nobody has done or is doing; yields each when it is done.

    Args:
        jobs: in the order in which they are taken.
        results: a folder: a CSV file for each run that is done, and `claims`, the locks.

    Raises:
        Unregistered: before a counted run, where the tree is not as committed.
    """
    claims = results / "claims"
    claims.mkdir(parents=True, exist_ok=True)
    for job in jobs:
        result = results / f"{job}.csv"
        with (claims / str(job)).open("w") as claim:
            try:
                fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            if not result.exists():
                write(result, about(job), run(job))
                yield job


def about(job: Job) -> dict[str, Any]:
    """Returns what a result says of its run: the last commit that touches what it depends on, the arm, the machine."""
    commit, changed = _git("log", "-1", "--format=%H", "--", *MEASURED), _git("status", "--porcelain", "--", *MEASURED)
    if job.counted and changed:
        raise Unregistered(f"expected a tree as committed before the counted run {job}, got changes:\n{changed}")
    return {
        "task": job.task,
        "arm": job.arm,
        "seed": job.seed,
        "config": job.fields(),
        "steps": job.plan.steps,
        "commit": commit,
        "changed": bool(changed),
        "versions": {name: version(name) for name in ("numpy", "numba", "gymnasium", "minigrid")},
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }


def write(path: Path, head: dict[str, Any], rows: Iterable[Row]) -> None:
    """Writes a result: a comment with what it is about, then CSV; floats have 5 digits, what is missing is empty."""
    part = path.with_suffix(".part")
    with part.open("w", newline="") as file:
        print(f"# {json.dumps(head)}", file=file)
        table = csv.DictWriter(file, FIELDS, lineterminator="\n")
        table.writeheader()
        for row in rows:
            table.writerow({name: _text(value) for name, value in row.items()})
    part.rename(path)


def read(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """Returns what `write` was given: numbers are floats, what is missing is NaN."""
    with path.open(newline="") as file:
        head = json.loads(file.readline().removeprefix("# "))
        rows = [
            {name: text if name in ("evaluation", "difficulty") else float(text or "nan") for name, text in row.items()}
            for row in csv.DictReader(file)
        ]
    return head, rows


def _text(value: Any) -> str:
    if isinstance(value, str | int):
        return str(value)
    return "" if value != value else f"{value:.5g}"  # noqa: PLR0124  not a number


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(HERE.parents[1]), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603

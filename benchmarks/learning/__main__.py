"""The learning study, a command for each part of it: `python benchmarks/learning COMMAND`.

  work     does the registered runs that nobody has done or is doing, until none is left; start one for each core
  tables   every table and figure, from the raw rows: docs/evidence.md, or evidence.md beside other rows
  equal    plays the fast MiniGrid beside the stock one, step by step: random actions, then those of trained agents
  lockstep compares, bit for bit, what is learnt with a curriculum in the process, a server, and a server that is killed
  lock     what each field of the configuration changes, on a task so small that a run takes a second
  candidates  plays score rules that are not in the server: does one of them beat learnability?
  peer     compares level-replay's own sampler with ours: scores, weights, learning curves
  cost     what a server costs a training run, beside the same curriculum in the trainer's process

With --quick the first two are about the direction alone: one task, three seeds, three arms. protocol.md says what the
study is; the rows of the registered runs lie in results/.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # a run has one core: the next run has the other

import argparse
import itertools
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for report.py
sys.path.insert(0, str(Path(__file__).parents[1] / "contenders"))

import candidates
import cost
import equal
import lock
import lockstep
import peer
from evidence import write_evidence
from jobs import HERE, work
from run import trained
from study import Job, exploratory, quick, registered
from tasks import TASKS

# How many updates an agent is trained that then plays in both envs; that of keys16 plays its kinds of env everywhere.
EQUAL_UPDATES = {"keys16": 700, "multiroom": 250, "lava": 250}
PAGE = HERE.parents[1] / "docs" / "evidence.md"
EQUAL_SEED = 2_000_000  # levels from here on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in ("work", "tables"):
        command = commands.add_parser(name)
        command.add_argument("--quick", action="store_true", help="the direction: 9 runs of seeds that do not count")
        command.add_argument("--results", type=Path, help="a folder (default: results, or quick, beside this file)")
    comparing = commands.add_parser("equal")
    comparing.add_argument("--steps", type=int, default=1_000_000, help="of all tasks together (default: %(default)s)")
    lock.add_arguments(commands.add_parser("lock"))
    candidates.add_arguments(commands.add_parser("candidates"))
    peer.add_arguments(commands.add_parser("peer"))
    lockstep.add_arguments(commands.add_parser("lockstep"))
    cost.add_arguments(commands.add_parser("cost"))
    options = parser.parse_args()
    if options.command == "equal":
        play_beside_stock(options.steps)
    elif options.command == "lockstep":
        sys.exit(0 if lockstep.compare(options) else 1)
    elif options.command == "lock":
        lock.measure(options)
    elif options.command == "candidates":
        candidates.measure(options)
    elif options.command == "peer":
        peer.compare(options)
    elif options.command == "cost":
        cost.measure(options)
    else:
        results = options.results or HERE / ("quick" if options.quick else "results")
        if options.command == "tables":
            write_evidence(results, PAGE if results == HERE / "results" else results / "evidence.md")
        else:
            begun_s = time.monotonic()
            jobs = quick() if options.quick else itertools.chain(registered(), exploratory())
            for job in work(jobs, results):
                print(f"{time.monotonic() - begun_s:6.0f} s  {job}", flush=True)


def play_beside_stock(num_steps: int) -> None:
    share = num_steps // (2 * len(TASKS))
    agents = {name: trained(Job(name, "learnability", 0), updates) for name, updates in EQUAL_UPDATES.items()}
    for task in TASKS.values():
        for kind, agent in (("random", None), ("trained", agents.get(task.name, agents["keys16"]))):
            print(f"{task.name}, {kind}: {equal.play(task, EQUAL_SEED, share, agent)}", flush=True)


if __name__ == "__main__":
    main()

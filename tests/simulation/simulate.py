"""Runs simulated schedules by their seeds, on all cores: `python tests/simulation/simulate.py --schedules 1000000`.

A schedule is a seed, so a run goes on by its seeds: `--begin 300000` where the last one got to. A failure prints what
did not hold, and the command that repeats it; `--trace` shows what happens in a schedule, call by call.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
import traceback

from judge import Failure
from simulation import World, installed, run

CHUNK = 25
TELL_EVERY_S = 10.0
TRACED = {
    "disk": ("open_new", "write", "sync", "sync_data", "sync_folder", "truncate", "rename", "unlink", "power_fails"),
    "judge": ("begins", "has_written", "has_not_written", "tells", "ends", "restarted"),
}


def failure_of(seed):
    """Returns what did not hold in a schedule, and where; None where everything did."""
    try:
        run(seed)
    except Failure as failure:
        return failure.check, str(failure)
    except Exception as exc:  # noqa: BLE001  whatever a bug raises out of the server
        return f"an exception: {type(exc).__name__}", traceback.format_exc()
    return None


def failures_of(seeds):
    """Returns (seed, check, detail) of the schedules that failed, of a range of seeds."""
    return [(seed, *failure) for seed in seeds if (failure := failure_of(seed)) is not None]


def simulate(begin, schedules, processes, *, stop):
    """Runs schedules and tells how it goes; returns the first seed that failed, and all failures."""
    end, began_s, failures = begin + schedules, time.monotonic(), []
    chunks = [range(at, min(at + CHUNK, end)) for at in range(begin, end, CHUNK)]
    told_s = began_s
    with multiprocessing.Pool(processes) as pool:
        for chunk, found in zip(chunks, pool.imap(failures_of, chunks), strict=True):
            for seed, check, detail in found:
                print(f"seed {seed}: {check}\n{detail}\nAgain: python {sys.argv[0]} --begin {seed} --schedules 1")
            failures += found
            if (now_s := time.monotonic()) > told_s + TELL_EVERY_S or chunk.stop == end:
                told_s, num = now_s, chunk.stop - begin
                rate = f"{num / (now_s - began_s):.0f}/s, {len(failures)} failed"
                print(f"seeds {begin} to {chunk.stop - 1}: {rate}", flush=True)
            if stop and failures:
                pool.terminate()
                break
    return failures


def trace(seed):
    """Runs one schedule and prints what happens in it."""
    world = World(seed)
    print(f"seed {seed}: {world.described()}")
    for owner, names in ((getattr(world, what), names) for what, names in TRACED.items()):
        for name in names:
            setattr(owner, name, _told(world, name, getattr(owner, name)))
    with installed(world):
        world.run()


def _told(world, name, do):
    def done(*arguments, **named):
        shown = [f"{argument!s:.150}" for argument in [*arguments, *(f"{key}={value}" for key, value in named.items())]]
        if name == "write":
            shown[1] = f"{sum(map(len, arguments[1]))} bytes"
        print(f"{world.now_s:8.3f} s  {name}({', '.join(shown)})")
        try:
            return do(*arguments, **named)
        except (OSError, KeyboardInterrupt) as exc:
            print(f"            {exc!r}")
            raise

    return done


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--schedules", type=int, default=1000)
    parser.add_argument("--begin", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--stop", action="store_true", help="at the first failure")
    parser.add_argument("--trace", action="store_true", help="show what happens in the first schedule alone")
    options = parser.parse_args()
    if options.trace:
        trace(options.begin)
        return
    sys.exit(bool(simulate(options.begin, options.schedules, options.processes, stop=options.stop)))


if __name__ == "__main__":
    main()

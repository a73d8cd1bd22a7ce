"""What `import plr_client` costs, beside the import of the three packages it stands on.

Fresh interpreters, one import each, in interleaved rounds of one run (each imports everything once, so that a busy
machine hits all). Time is that of the import statement alone, memory the interpreter's peak afterwards. The ratio of a
row is against numpy + zmq + msgpack; plr_client may cost 1.3 in time. The other rows are there to compare.
"""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict

from report import Row, arguments, show

FLOOR = "numpy + zmq + msgpack"
IMPORTS = {
    FLOOR: "import numpy, zmq, msgpack",
    "plr_client": "import plr_client",
    "gymnasium": "import gymnasium",
    "wrappers": "import wrappers",
    "plr_server": "import plr_server",
}
MEASURE = """
import resource, time
started = time.perf_counter()
{statement}
print(1e3 * (time.perf_counter() - started), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def main() -> None:
    options = arguments(__doc__, rounds=15)
    times_ms, peaks_mib = defaultdict(list), defaultdict(list)
    for statement in IMPORTS.values():
        cost_of(statement)  # once unmeasured: the files are read, the bytecode is there
    for _ in range(options.rounds):
        for name, statement in IMPORTS.items():
            time_ms, peak_mib = cost_of(statement)
            times_ms[name].append(time_ms)
            peaks_mib[name].append(peak_mib)
    rows = []
    for what, unit, measured in (("time", "ms", times_ms), ("peak memory", "MiB", peaks_mib)):
        floor = Row(FLOOR, unit, measured[FLOOR]).median
        rows += [
            Row(f"{name}, {what}", unit, values, None if name == FLOOR else floor) for name, values in measured.items()
        ]
    show(rows, options)


def cost_of(statement: str) -> tuple[float, float]:
    """Returns milliseconds and MiB of one import in a fresh interpreter."""
    command = [sys.executable, "-c", MEASURE.format(statement=statement)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603  our own command
    time_ms, peak_mib = map(float, done.stdout.split())
    return time_ms, peak_mib


if __name__ == "__main__":
    main()

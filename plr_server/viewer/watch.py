"""`plr-server stats --watch`: what a server has done so far, again and again, with the rate of what it counts.

Used by the command line, and by watched for its rates. It needs no terminal: written to a file or a pipe, one reading
follows the other.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

from plr_client.errors import ServerUnreachable
from plr_client.trainer import Trainer

EVERY_S = 1.0
PATIENCE = 100.0  # ... and so many times what a reading took: the server looks at every level for it
RATES = ("draws", "replays", "pushes", "steps", "episodes", "scores")
HOME_AND_CLEAR = "\x1b[H\x1b[J"


def watch(trainer: Trainer, *, as_json: bool) -> None:
    """Prints stats until it is interrupted.

    A server that does not answer is waited for.

    Args:
        trainer: what asks.
        as_json: one JSON object a line; otherwise a table, in the place of the last one on a terminal.

    Raises:
        PlrError: the server has no such curriculum, or cannot be talked to.
    """
    before: tuple[float, Mapping[str, Any]] | None = None
    while True:
        began_s = time.monotonic()
        try:
            stats = trainer.stats()
        except ServerUnreachable as error:
            print(f"plr-server: {error}; still trying", file=sys.stderr, flush=True)
            before = None
            time.sleep(EVERY_S)
            continue
        now_s = time.monotonic()
        rates = {} if before is None else rates_between(before, (now_s, stats), RATES)
        before = now_s, stats
        if as_json:
            print(json.dumps(stats | {f"{name}_per_s": rate for name, rate in rates.items()}), flush=True)
        else:
            start, end = (HOME_AND_CLEAR, "") if sys.stdout.isatty() else ("", "\n")
            print(f"{start}{table(stats, rates)}{end}", flush=True)
        time.sleep(max(EVERY_S, PATIENCE * (now_s - began_s)))


def rates_between(
    before: tuple[float, Mapping[str, Any]], now: tuple[float, Mapping[str, Any]], names: Iterable[str]
) -> dict[str, float]:
    """Returns how fast counts grow, per second, from two readings: (seconds, counts) each.

    A count that has shrunk is of a server that was started again, and has no rate.

    >>> rates_between((10.0, {"draws": 5, "pushes": 4}), (12.0, {"draws": 8, "pushes": 1}), ("draws", "pushes"))
    {'draws': 1.5}
    """
    (from_s, old), (to_s, new) = before, now
    if to_s <= from_s:
        return {}
    known = (name for name in names if name in new and new[name] >= old.get(name, 0))
    return {name: (new[name] - old.get(name, 0)) / (to_s - from_s) for name in known}


def table(stats: Mapping[str, Any], rates: Mapping[str, float] | None = None) -> str:
    """Returns stats as text, a line each, with the rate where there is one.

    >>> print(table({"levels": 200, "draws": 12, "mean_score": 0.123456}, {"draws": 3.25}))
    levels      200
    draws       12  (3.2/s)
    mean_score  0.1235
    """
    width, lines = max(map(len, stats)), []
    for name, value in stats.items():
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        lines.append(f"{name:{width}}  {shown}" + (f"  ({rates[name]:,.1f}/s)" if rates and name in rates else ""))
    return "\n".join(lines)

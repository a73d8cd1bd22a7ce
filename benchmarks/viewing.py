"""What a viewer costs training, and how soon its page is there: `.venv-browser/bin/python benchmarks/viewing.py`.

A server of 200, 10 000 and a million levels, all seen, under the workers and the trainer of resets.py: 16 free-running
processes, episodes of ten steps, a block of 256 x 16 steps once a second. In each round, in turns, on the same server:

  without        nobody looks
  3 readers      `plr-server view`, and three clients that read its page and its stream as a browser does, but draw
                 nothing: what the viewer takes from training
  3 browsers     the same viewer, and three chromium with its page open: what they need to draw is added, and where they
                 run on the processors that train, they take it from training

  resets         how many, by all workers
  next p99       the 99th percentile of the wait at a reset, which is one `next(1)`
  looks          how often the viewer has read the level table meanwhile
  viewer         the processor time that the viewer took, in percent of one processor

A ratio is the median of those of the rounds, each against `without` of its own round. And, with nobody training:

  first paint    from the request until a browser has painted something, and until it has painted what the page says
  sent           all that a page asked for until its charts are there, and its data as text

Needs Playwright and the system's chromium (apt-get install chromium fonts-dejavu-core).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from playwright.sync_api import sync_playwright
from report import Row, show

sys.path.insert(0, str(Path(__file__).parent / "contenders"))

from resets import show_limit
from resets_contender import rate, rollout_block
from resets_ours import Ours

NUM_LEVELS = (200, 10_000, 1_000_000)
WITHOUT, READERS, BROWSERS = "without", "3 readers", "3 browsers"
NUM_PAGES = 3
LOADS = 9
CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
]
PAGE = ("/", "/static/uPlot.min.css", "/static/viewer.css", "/static/uPlot.iife.min.js", "/static/viewer.js")
IS_WHOLE = "() => charts[0]?.plot && document.querySelectorAll('#rows tr').length > 0"
PAINTED_MS = "() => performance.getEntriesByType('paint').map(({ name, startTime }) => [name, startTime])"
SENT_BYTES = """() => ["navigation", "resource"].flatMap((type) => performance.getEntriesByType(type))
  .reduce((sum, { transferSize }) => sum + transferSize, JSON.stringify(shown).length)"""
ASKED_RESETS, ASKED_P99 = 0.97, 1.1  # of those without
ASKED_OF_LOADS = {"first paint": 300.0, "sent": 150.0}
UNITS = {
    "resets": "1/s",
    "next p99": "µs",
    "looks": "",
    "viewer": "%",
    "first paint": "ms",
    "first paint of contents": "ms",
    "sent": "kB",
}
OPEN_TIMEOUT_S = 60.0
SPAWN = multiprocessing.get_context("spawn")  # what has threads is no good to fork from

Cell = tuple[str, int, str]  # quantity, number of levels, who looks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of one measurement (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="also write the rows as JSON; - for standard output, alone")
    options = parser.parse_args()
    load_before = os.getloadavg()[0]
    measured: defaultdict[Cell, list[float]] = defaultdict(list)
    for num_levels in NUM_LEVELS:
        ours, rng = Ours(num_levels, 0), np.random.default_rng(0)
        with contextlib.closing(ours):
            ours.push(rollout_block(num_levels, rng))
            for _ in range(options.rounds):
                for quantity, looks, value in one_round(ours, num_levels, options.seconds, rng):
                    measured[quantity, num_levels, looks].append(value)
            with viewer(ours.address) as (url, _):
                for quantity, value in loads(url):
                    measured[quantity, num_levels, ""].append(value)
    show(list(rows_of(measured)), options)
    if options.json != "-":
        print()
        show_asked(measured)
        print(f"\nload average {load_before:.1f} before, {os.getloadavg()[0]:.1f} after, on {os.cpu_count()} cores")


def one_round(
    ours: Ours, num_levels: int, seconds: float, rng: np.random.Generator
) -> Iterator[tuple[str, str, float]]:
    """Yields quantity, who looks, and value."""
    answer = rate(ours, num_levels, seconds, rng)
    yield "resets", WITHOUT, answer["rate"]
    yield "next p99", WITHOUT, 1e6 * answer["p99"]
    with viewer(ours.address) as (url, pid):
        for looks, watch in ((READERS, read), (BROWSERS, browse)):
            with watching(watch, url):
                looks_before, ran_before_s = num_looks(url), processor_s(pid)
                answer = rate(ours, num_levels, seconds, rng)
                ran_s, num = processor_s(pid) - ran_before_s, num_looks(url) - looks_before
            yield "resets", looks, answer["rate"]
            yield "next p99", looks, 1e6 * answer["p99"]
            yield "looks", looks, num
            yield "viewer", looks, 100 * ran_s / seconds


@contextlib.contextmanager
def viewer(address: str) -> Iterator[tuple[str, int]]:
    """Runs `plr-server view`, and yields the page's URL and the process id once it has looked at the levels."""
    command = [sys.executable, "-m", "plr_server", "view", address, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603  our own command
        assert process.stdout is not None  # noqa: S101  it is a pipe
        try:
            url = process.stdout.readline().split()[-1]
            num_looks(url)
            yield url, process.pid
        finally:
            process.kill()


def processor_s(pid: int) -> float:
    """Returns the processor time that a process has taken."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, after_name[11:13])) / os.sysconf("SC_CLK_TCK")  # utime and stime


@contextlib.contextmanager
def watching(watch: Callable[[str, Any, Any], None], url: str) -> Iterator[None]:
    """Has the page open in another process, from the time on when all of it is there."""
    is_open, is_over = SPAWN.Event(), SPAWN.Event()
    process = SPAWN.Process(target=watch, args=(url, is_open, is_over), daemon=True)
    process.start()
    if not is_open.wait(OPEN_TIMEOUT_S):
        raise SystemExit(f"no page after {OPEN_TIMEOUT_S} s")
    try:
        yield
    finally:
        is_over.set()
        process.join()


def browse(url: str, is_open: Any, is_over: Any) -> None:
    """Opens the page in three browsers."""
    with sync_playwright() as playwright, contextlib.ExitStack() as stack:
        for _ in range(NUM_PAGES):
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            stack.callback(browser.close)
            page = browser.new_page(locale="en-US")
            page.goto(url)
            page.wait_for_function(IS_WHOLE)
        is_open.set()
        is_over.wait()


def read(url: str, is_open: Any, is_over: Any) -> None:
    """Reads the page and its stream in three threads, and the first rows of the levels after each look."""
    have_read = threading.Barrier(NUM_PAGES + 1)
    for _ in range(NUM_PAGES):
        threading.Thread(target=read_one, args=(url, have_read), daemon=True).start()
    have_read.wait()
    is_open.set()
    is_over.wait()


def read_one(url: str, have_read: threading.Barrier) -> None:
    for path in PAGE:
        get(url, path)
    looked_t = None
    for said in events(url):
        history = history_of(said)
        newest_t = history["newest"]["t"] if "newest" in history else history["columns"]["t"][-1]
        if newest_t != looked_t:
            get(url, f"/levels?curriculum={said['selected']}&sort=weight&descending=1")
            if looked_t is None:
                have_read.wait()
            looked_t = newest_t


def get(url: str, path: str) -> bytes:
    """Returns what a page gets, as it is sent."""
    with contextlib.closing(HTTPConnection(urlsplit(url).netloc)) as connection:
        connection.request("GET", path, headers={"Accept-Encoding": "gzip"})
        return connection.getresponse().read()


def events(url: str) -> Iterator[dict[str, Any]]:
    """Yields what the page's stream says."""
    with contextlib.closing(HTTPConnection(urlsplit(url).netloc)) as connection:
        connection.request("GET", "/events?curriculum=default")
        for line in connection.getresponse():
            if line.startswith(b"data: "):
                yield json.loads(line.removeprefix(b"data: "))


def history_of(said: Mapping[str, Any]) -> Mapping[str, Any]:
    history: Mapping[str, Any] = said["curricula"].get(said["selected"], {}).get("history", {})
    return history


def num_looks(url: str) -> int:
    """Returns how often the viewer has looked at the levels; waits for the first time."""
    with contextlib.closing(events(url)) as stream:
        for said in stream:
            history = history_of(said)
            if num := history.get("added", history.get("length")):  # of a tick, which follows an empty document
                return int(num)
    raise SystemExit("the viewer has ended")


def loads(url: str) -> Iterator[tuple[str, float]]:
    """Yields quantity and value of each of several loads of the page, with nothing kept from the one before."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for _ in range(LOADS):
            with contextlib.closing(browser.new_context(locale="en-US")) as context:
                page = context.new_page()
                page.goto(url)
                page.wait_for_function(IS_WHOLE)
                painted_ms = dict(page.evaluate(PAINTED_MS))
                yield "first paint", painted_ms["first-paint"]
                yield "first paint of contents", painted_ms["first-contentful-paint"]
                yield "sent", page.evaluate(SENT_BYTES) / 1e3
        browser.close()


def rows_of(measured: Mapping[Cell, Sequence[float]]) -> Iterator[Row]:
    for (quantity, num_levels, looks), values in measured.items():
        against = measured.get((quantity, num_levels, WITHOUT)) if looks != WITHOUT else None
        against_median = statistics.median(against) if against else None
        name = f"{quantity}, {num_levels:,} levels{looks and ': '}{looks}"
        yield Row(name, UNITS[quantity], values, against_median)


def show_asked(measured: Mapping[Cell, Sequence[float]]) -> None:
    for num_levels in NUM_LEVELS:
        for looks in (READERS, BROWSERS):
            for quantity, bound, limit in (("resets", "at least", ASKED_RESETS), ("next p99", "at most", ASKED_P99)):
                pairs = zip(measured[quantity, num_levels, looks], measured[quantity, num_levels, WITHOUT], strict=True)
                ratio = statistics.median(value / without for value, without in pairs)
                show_limit(f"{quantity}, {num_levels:,} levels: {looks} against none", ratio, bound, limit)
    most = NUM_LEVELS[-1]
    for quantity, limit in ASKED_OF_LOADS.items():
        what = f"{quantity}, {most:,} levels, {UNITS[quantity]}"
        show_limit(what, statistics.median(measured[quantity, most, ""]), "at most", limit)


if __name__ == "__main__":
    main()

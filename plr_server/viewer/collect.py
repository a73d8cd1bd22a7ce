"""Polls a running server, keeps what it said, and hands it to any number of pages.

Used by web and the command line. A client like any other: it reads `counters` every second, which costs the server
nothing, and `scores` seldom; all pages share what was read. It never writes, and works in one thread of its own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from plr_client.errors import ConfigError, NotAdmitted, NotAllowed, PlrError
from plr_client.protocol import DEFAULT_CURRICULUM
from plr_client.trainer import Trainer
from plr_server.curriculum.config import Config
from plr_server.viewer.history import History
from plr_server.viewer.measures import Look, look, rows
from plr_server.viewer.rules import Facts, verdict

logger = logging.getLogger("plr_server")

TICK_S = 1.0  # between two reads of the counters
LOOK_S = 2.0  # between two reads of the scores, at least
READ_PATIENCE = 100.0  # ... and so many times what the last read took
WORK_PATIENCE = 20.0  # ... and what it took to make sense of it, so that this process leaves the processors alone
TIMEOUT_S = 3.0
RATE_TICKS = 10  # that a rate is taken over
CLIENT_TICKS = 600  # ten minutes, over which clients are missed
SAVE_S = 10.0
FILE_FORMAT = 1
COUNTED = ("draws", "replays", "pushes", "levels_seen")  # what the history keeps of the counters
RATES = ("draws", "pushes", "steps", "episodes")
SAVED_ROWS = 200  # of the level table, in a file


class Collector:
    """What a server does, read in a thread while the context lasts.

    Args:
        address: where the server listens.
        file: where the history is kept from one run of the viewer to the next; None: nowhere.
        keys: the path of a trainer's key file, where the server asks for keys; None for what PLR_KEYS names.

    Raises:
        InvalidInput: the address is no ipc or tcp address.
        ConfigError: the file is there, and is not one that a viewer wrote; or it could not be written.
    """

    def __init__(self, address: str, file: Path | None = None, *, keys: str | None = None) -> None:
        Trainer(address)  # checks the address
        self.address = address
        self._keys = keys
        self._refused = ""  # why, when it was last said
        self._file = file
        self._saved: dict[str, History] = {}
        if file is not None and file.exists():
            self._saved = _histories(read_file(file))
        elif file is not None and not file.parent.is_dir():
            raise ConfigError("history", "a file in a folder that is there", str(file))
        self._watched: dict[str, _Watched] = {}
        self._timings: Mapping[str, Mapping[str, Any]] = {}
        self._answered_s = time.monotonic()
        self._is_lost = self._is_new = True  # new: what it serves is not known
        self._version = 0
        self._changed = threading.Condition()  # its lock guards all that pages read
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="plr-collector", daemon=True)

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    # ---- for the pages, from any thread

    def wait(self, version: int, timeout_s: float) -> int:
        """Waits until there is something newer than `version`, or for `timeout_s`; returns the version now."""
        with self._changed:
            self._changed.wait_for(lambda: self._version != version, timeout_s)
            return self._version

    def tick(self, selected: str | None) -> dict[str, Any]:
        """Returns what changes every second, of all curricula.

        Returns:
            address, t (Unix time, s), lost_s (seconds without an answer; None while the server answers), curricula:
            name -> config and, once it was read, counters, rates (per second), summary, pushed_t (Unix time of the last
            push that was seen; None before it), verdict. The selected one has history: stride, length, and newest, the
            sample at its end.
        """
        with self._changed:
            said = self._all()
            if selected in self._watched:
                said["curricula"][selected]["history"] = self._watched[selected].history.newest()
            return said

    def document(self, selected: str | None = None) -> dict[str, Any]:
        """Returns what a page shows, as one value that JSON carries: as `tick`, with a whole history.

        Args:
            selected: the curriculum whose history is in it; None: those of all, and the first rows of their level
                tables, as for a file.
        """
        with self._changed:
            said = self._all()
            for name, watched in self._watched.items():
                if selected in {None, name}:
                    said["curricula"][name]["history"] = watched.history.to_dict()
                if selected is None:
                    said["curricula"][name]["levels"] = watched.rows("weight", descending=True, limit=SAVED_ROWS)
            return said

    def rows(self, name: str, sort: str, *, descending: bool, limit: int, find: int | None) -> dict[str, Any]:
        """Returns rows of the level table of a curriculum, as `measures.rows` does; none before the first look."""
        with self._changed:
            watched = self._watched.get(name)
        if watched is None:
            return {"total": 0, "rows": []}
        return watched.rows(sort, descending=descending, limit=limit, find=find)

    def timings(self) -> Mapping[str, Mapping[str, Any]]:
        """Returns the timings of the server, as `Trainer.timings` does."""
        return self._timings

    def _all(self) -> dict[str, Any]:
        silent_s = time.monotonic() - self._answered_s
        return {
            "format": FILE_FORMAT,
            "address": self.address,
            "t": time.time(),
            "lost_s": silent_s if self._is_lost else None,
            "curricula": {name: watched.to_dict() for name, watched in self._watched.items()},
        }

    # ---- the thread

    def _run(self) -> None:
        saved_s = time.monotonic()
        with contextlib.ExitStack() as stack:
            stack.callback(self._leave)
            while not self._stop.is_set():
                self._poll()
                if time.monotonic() - saved_s > SAVE_S:
                    self._save()
                    saved_s = time.monotonic()
                self._stop.wait(TICK_S)

    def _leave(self) -> None:
        self._save()
        for watched in self._watched.values():
            watched.trainer.close()

    def _poll(self) -> None:
        try:
            if self._is_new:
                self._find_curricula()
                self._is_new = False
            for watched in self._watched.values():
                reading = watched.read()
                with self._changed:
                    self._is_new |= watched.keep(reading, own=len(self._watched))
                    self._is_lost, self._answered_s = False, time.monotonic()
            self._timings = next(iter(self._watched.values())).trainer.timings()
        except PlrError as error:  # it is not there, or is another one now: ask again from the beginning
            self._is_new = True
            if isinstance(error, NotAdmitted | NotAllowed) and str(error) != self._refused:
                self._refused = str(error)
                logger.warning("the server refuses this page: %s", error)
            with self._changed:
                self._is_lost = True
        with self._changed:
            self._version += 1
            self._changed.notify_all()

    def _find_curricula(self) -> None:
        with self._trainer() as asking:
            described = asking.describe()
        with self._changed:
            known, self._watched = self._watched, {}
            for name, fields in described.items():
                watched = known.pop(name, None) or _Watched(self._trainer(name))
                watched.begin(fields)
                watched.history = self._saved.pop(name, watched.history)
                self._watched[name] = watched
        for watched in known.values():
            watched.trainer.close()

    def _trainer(self, curriculum: str = DEFAULT_CURRICULUM) -> Trainer:
        return Trainer(self.address, curriculum=curriculum, timeout_s=TIMEOUT_S, keys=self._keys)

    def _save(self) -> None:
        if self._file is None or not self._watched:
            return
        beside = self._file.with_name(f"{self._file.name}.part")
        try:
            beside.write_text(json.dumps(self.document()), encoding="utf-8")
            beside.replace(self._file)
        except OSError as exc:  # a full disk ends no page
            logger.warning("the history cannot be written: %s", exc)


class _Watched:
    """One curriculum: what was read of it, and the past."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.history = History()
        self._look: Look | None = None

    def begin(self, fields: Mapping[str, Any]) -> None:
        """Starts to watch a curriculum as it is described now."""
        self.fields = fields
        named = re.sub(r"^(\d+) ids$", r"0:\1", str(fields["levels"]))  # of a list only the length matters here
        self._config = Config.from_dict({**fields, "levels": named})
        self._counters: Mapping[str, Any] = {}
        self._summary: Mapping[str, Any] = {}
        self._looked_at: Mapping[str, Any] = {}
        self._next_look_s = 0.0

    def read(self) -> tuple[Mapping[str, Any], tuple[Look, Mapping[str, Any]] | None]:
        """Reads the counters and, where it is time for it and something has happened, the levels.

        Raises:
            PlrError: the server does not answer, or has no such curriculum any more.
        """
        counters = self.trainer.counters()
        began_s = time.monotonic()
        if began_s < self._next_look_s or _events(counters) == _events(self._looked_at):
            return counters, None
        levels = self.trainer.scores()
        read_s = time.monotonic() - began_s
        seen_now = look(self._config, counters["draws"], levels)
        worked_s = time.monotonic() - began_s
        self._looked_at = counters
        self._next_look_s = began_s + worked_s + max(LOOK_S, READ_PATIENCE * read_s, WORK_PATIENCE * worked_s)
        return counters, seen_now

    def keep(self, reading: tuple[Mapping[str, Any], tuple[Look, Mapping[str, Any]] | None], *, own: int) -> bool:
        """Keeps what `read` gave, where so many of the server's sessions are this viewer's own.

        Returns:
            Whether the server has begun anew since the last reading, so that it may serve something else.
        """
        counters, seen_now = reading
        now_s, clients = time.monotonic(), counters["sessions"] - own
        is_another = bool(self._counters) and counters["draws"] < self._counters["draws"]
        if is_another or not self._counters:
            self._ticks: deque[tuple[float, Mapping[str, Any]]] = deque(maxlen=RATE_TICKS + 1)
            self._clients: deque[int] = deque(maxlen=CLIENT_TICKS)
            self._began_s = self._pushed_s = now_s
            self._pushed_t: float | None = None
            self._began_pushes = counters["pushes"]
        elif counters["pushes"] > self._counters["pushes"]:
            self._pushed_s, self._pushed_t = now_s, time.time()
        self._counters = {**counters, "sessions": clients}
        self._clients.append(clients)
        self._ticks.append((now_s, self._counters))
        if seen_now is not None:
            self._look, self._summary = seen_now
            counted = {name: counters[name] for name in COUNTED}
            self.history.add({"t": round(time.time(), 1), **counted, **self._summary})
        return is_another

    def to_dict(self) -> dict[str, Any]:
        if not self._counters:
            return {"config": self.fields}
        return {
            "config": self.fields,
            "counters": self._counters,
            "rates": self._rates(),
            "summary": self._summary,
            "pushed_t": self._pushed_t,
            "verdict": [{"kind": finding.kind, "text": finding.text} for finding in verdict(self._facts())],
        }

    def rows(self, sort: str, *, descending: bool, limit: int, find: int | None = None) -> dict[str, Any]:
        if self._look is None:
            return {"total": 0, "rows": []}
        return rows(self._look, sort, descending=descending, limit=limit, find=find)

    def _rates(self) -> dict[str, float]:
        (from_s, before), (to_s, now) = self._ticks[0], self._ticks[-1]
        return {name: (now[name] - before[name]) / (to_s - from_s) if to_s > from_s else 0.0 for name in RATES}

    def _facts(self) -> Facts:
        num_pushes = self._counters["pushes"] - self._began_pushes
        return Facts(
            config=self._config,
            counters=self._counters,
            summary=self._summary,
            silent_s=time.monotonic() - self._pushed_s,
            push_every_s=(self._pushed_s - self._began_s) / num_pushes if num_pushes else None,
            clients=self._counters["sessions"],
            most_clients=max(self._clients),
        )


def _events(counters: Mapping[str, Any]) -> list[Any]:
    """Returns the counts that move whenever a score or a staleness does."""
    return [counters.get(name) for name in ("draws", "pushes", "scores", "entered")]


def read_file(path: Path) -> dict[str, Any]:
    """Returns the document in a history file.

    Raises:
        ConfigError: the file cannot be read, or is not one that a viewer wrote.
    """
    expected = f"a history that plr-server view --history wrote, format {FILE_FORMAT}"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:  # ValueError: no JSON, or no UTF-8
        raise ConfigError("history", expected, f"{path} ({exc!s:.200})") from exc
    try:
        is_ours = document["format"] == FILE_FORMAT and isinstance(_histories(document), dict)
    except (AttributeError, KeyError, TypeError, ValueError):  # some other JSON
        is_ours = False
    if not is_ours:
        raise ConfigError("history", expected, f"{path}, which is something else")
    found: dict[str, Any] = document
    return found


def _histories(document: Mapping[str, Any]) -> dict[str, History]:
    return {name: History.from_dict(of["history"]) for name, of in document["curricula"].items()}

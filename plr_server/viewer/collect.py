"""Polls a running server, keeps what it said, and hands it to any number of pages.

Used by web and the command line. A client like any other: it reads `counters` every second, which costs the server
nothing, and the level table seldom; all pages share what was read. It never writes, and works in one thread of its own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from plr_client.errors import ConfigError, InvalidInput, NotAdmitted, NotAllowed, PlrError
from plr_client.protocol import DEFAULT_CURRICULUM
from plr_client.trainer import Trainer
from plr_server.viewer.history import History
from plr_server.viewer.measures import num_requests, requests_between
from plr_server.viewer.watched import RATE_TICKS, Functions, Watched

logger = logging.getLogger("plr_server")

TICK_S = 1.0  # between two reads of the counters
TIMEOUT_S = 3.0
SAVE_S = 10.0
FILE_FORMAT = 1
NO_FUNCTIONS = Functions()


class Collector:
    """What a server does, read in a thread while the context lasts.

    Args:
        address: where the server listens.
        file: where the history is kept from one run of the viewer to the next; None: nowhere.
        keys: the path of a trainer's key file, where the server asks for keys; None for what PLR_KEYS names.
        functions: of the user's.

    Raises:
        InvalidInput: the address is no ipc or tcp address.
        ConfigError: the file is there, and is not one that a viewer wrote; or it could not be written.
    """

    def __init__(
        self, address: str, file: Path | None = None, *, keys: str | None = None, functions: Functions = NO_FUNCTIONS
    ) -> None:
        Trainer(address)  # checks the address
        self._functions = functions
        self.address = address
        self._keys = keys
        self.refused = ""  # why, where waiting for the server will not help
        self._file = file
        self._saved: dict[str, tuple[History, Sequence[str]]] = {}
        if file is not None and file.exists():
            self._saved = _histories(read_file(file))
        elif file is not None and not file.parent.is_dir():
            raise ConfigError("history", "a file in a folder that is there", str(file))
        self._watched: dict[str, Watched] = {}
        self._timings: deque[tuple[float, Mapping[str, Mapping[str, Any]]]] = deque(maxlen=RATE_TICKS + 1)
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
            address, t (Unix time, s), lost_s (seconds without an answer; None while the server answers), requests (of
            `requests_between`, over the last ten seconds), curricula: name -> config and, once it was read, counters,
            rates (per second), summary, groups (the labels of those in the history), has_pictures, pushed_t (Unix time
            of the last push that was seen; None before it), verdict. The selected one has history: stride, length, and
            newest, the sample at its end.
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
        for watched in [] if selected is not None else list(self._watched.values()):
            watched.await_look()
        with self._changed:
            said = self._all()
            for name, watched in self._watched.items():
                if selected in {None, name}:
                    said["curricula"][name]["history"] = watched.history.to_dict()
                if selected is None:
                    said["curricula"][name]["levels"] = watched.saved_levels()
            return said

    def rows(self, name: str, sort: str, *, descending: bool, limit: int, find: int | None) -> dict[str, Any]:
        """Returns rows of the level table of a curriculum, as `measures.rows` does; none before the first look."""
        with self._changed:
            watched = self._watched.get(name)
        if watched is None:
            return {"total": 0, "rows": []}
        watched.await_look()
        return watched.rows(sort, descending=descending, limit=limit, find=find)

    def level(self, name: str, level: int) -> dict[str, Any]:
        """Returns what is known of one level of a curriculum, which is followed from then on.

        Returns:
            row: as of `measures.rows`, None where it is not seen; history: its past, by column: t and `FOLLOWED`;
            group: its label, payload: as text, and ancestors, from its parent on: id and is_kept each, where the server
            could be asked.
        """
        with self._changed:
            watched = self._watched.get(name)
        if watched is None:
            return {"row": None, "history": {}}
        watched.await_look()
        with self._changed:
            found = watched.rows("id", descending=False, limit=1, find=level)["rows"]
            known = {"row": found[0] if found else None, "history": watched.past(level) if found else {}}
        with contextlib.suppress(PlrError):
            known |= watched.origin(level)
        return known

    def picture(self, name: str, level: int) -> bytes | None:
        """Returns the PNG of a level of a curriculum; None where there is none."""
        with self._changed:
            watched = self._watched.get(name)
        with contextlib.suppress(PlrError):
            return None if watched is None else watched.picture(level)
        return None

    def timings(self) -> Mapping[str, Mapping[str, Any]]:
        """Returns the timings of the server, as `Trainer.timings` does."""
        return self._timings[-1][1] if self._timings else {}

    def _all(self) -> dict[str, Any]:
        silent_s = time.monotonic() - self._answered_s
        return {
            "format": FILE_FORMAT,
            "address": self.address,
            "t": time.time(),
            "lost_s": silent_s if self._is_lost else None,
            "requests": requests_between(*self._timings[0], *self._timings[-1]) if self._timings else [],
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
            timings = next(iter(self._watched.values())).timings()
            with self._changed:
                if self._timings and num_requests(timings) < num_requests(self._timings[-1][1]):
                    self._timings.clear()  # another server
                self._timings.append((time.monotonic(), timings))
            self.refused = ""
        except PlrError as error:  # it is not there, or is another one now: ask again from the beginning
            self._is_new = True
            if isinstance(error, NotAdmitted | NotAllowed | InvalidInput) and str(error) != self.refused:
                self.refused = str(error)  # InvalidInput: of the key file
                logger.warning("the server refuses this page: %s", error)
            with self._changed:
                self._is_lost = True
                for watched in self._watched.values():
                    watched.lost()
        with self._changed:
            self._version += 1
            self._changed.notify_all()

    def _find_curricula(self) -> None:
        with self._trainer() as asking:
            described = asking.describe()
        with self._changed:
            known, self._watched = self._watched, {}
            for name, fields in described.items():
                watched = known.pop(name, None) or Watched(name, self._trainer(name), self._functions)
                watched.history, watched.labels = self._saved.pop(name, (watched.history, watched.labels))
                watched.begin(fields)
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


def _histories(document: Mapping[str, Any]) -> dict[str, tuple[History, Sequence[str]]]:
    """Returns the history of each curriculum, and the labels of the groups in it."""
    return {
        name: (History.from_dict(of["history"]), of.get("groups", ())) for name, of in document["curricula"].items()
    }

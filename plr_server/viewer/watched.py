"""One curriculum of a server as the viewer knows it: what was read of it, and the past.

Used by collect, whose thread reads; the threads of pages ask for single levels. It reads `counters` at every tick, and
the level table seldom and in pieces. It never writes.
"""

from __future__ import annotations

import base64
import dataclasses
import math
import re
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from typing import Any

from plr_client.errors import LevelOutsideSpace
from plr_client.levels import Level, TableRows
from plr_client.trainer import Trainer
from plr_server.curriculum.config import Config
from plr_server.viewer.functions import OfLevel
from plr_server.viewer.groups import Groups
from plr_server.viewer.history import History
from plr_server.viewer.measures import Look, joined, look, narrow, rows, rows_of
from plr_server.viewer.pictures import Pictures
from plr_server.viewer.rules import Facts, verdict
from plr_server.viewer.watch import rates_between

LOOK_S = 2.0  # between two reads of the level table, at least
READ_PATIENCE = 100.0  # ... and so many times what the last read took
WORK_PATIENCE = 50.0  # ... and the processor time that making sense of it took: 2 % of one, which training has not
RATE_TICKS = 10  # that a rate is taken over
CLIENT_TICKS = 600  # ten minutes, over which clients are missed
PIECE_ROWS = 2**15  # of the level table, in one read
MANY_LEVELS = 2**18  # more have one look in memory at a time
LOOK_TIMEOUT_S = 10.0  # that a page waits for one that is being taken
GROUP_S = 0.25  # for the groups of new levels, in one look
FOLLOW = 128  # levels with a past of their own
FOLLOW_FIRST = 16  # of each look: those most likely to be replayed next
FOLLOWED = ("score", "weight", "staleness", "plays", "last_return")
MAX_ANCESTORS = 16
PAYLOAD_CHARS = 400  # of a payload, as text
MAX_PARENTS = 4096  # whose children's origin is known after they are gone
COUNTED = ("draws", "replays", "pushes", "levels_seen")  # what the history keeps of the counters
ONLY_NOW = ("group_levels",)  # of a summary: what the history has no room for
RATES = ("draws", "pushes", "steps", "episodes")
SAVED_ROWS = 200  # of the level table, in a file


@dataclasses.dataclass(frozen=True, slots=True)
class Functions:
    """What the user's functions say of levels.

    Attributes:
        group: from a level to its group.
        render: pictures of levels.
    """

    group: OfLevel | None = None
    render: Pictures | None = None


class Watched:
    """One curriculum: what was read of it, and the past.

    Args:
        name: of the curriculum.
        trainer: asks the server about it; by one thread at a time.
        functions: of the user's.
    """

    def __init__(self, name: str, trainer: Trainer, functions: Functions) -> None:
        self._name, self.trainer, self._functions = name, trainer, functions
        self.history = History()
        self.labels: Sequence[str] = ()  # of the groups that the history knows
        self._look: Look | None = None
        self._has_look = threading.Event()  # or will not have one soon
        self._has_look.set()
        self._speaks = threading.Lock()  # held by whoever asks the server
        self._run = 0  # of the server, as far as this viewer knows: ids of payloads begin anew in each

    def begin(self, fields: Mapping[str, Any]) -> None:
        """Starts to watch a curriculum as it is described now."""
        self.fields = fields
        named = re.sub(r"^(\d+) ids$", r"0:\1", str(fields["levels"]))  # of a list only the length matters here
        self._config = Config.from_dict({**fields, "levels": named})
        self._counters: Mapping[str, Any] = {}
        self._summary: Mapping[str, Any] = {}
        self._looked_at: Mapping[str, Any] = {}
        self._next_look_s = 0.0
        self.lost()
        self._followed: OrderedDict[int, History] = OrderedDict()  # the one that was asked for first goes first
        self._parents: OrderedDict[int, int | None] = OrderedDict()
        self._groups: Groups | None = None
        if self._functions.group is not None:
            self._groups = Groups(self._functions.group, GROUP_S, self.labels)

    def lost(self) -> None:
        """Notes that the server is gone: who answers next may have other levels by the same ids."""
        self._run += 1

    def timings(self) -> Mapping[str, Mapping[str, Any]]:
        """Reads the server's timings."""
        with self._speaks:
            return self.trainer.timings()

    def read(self) -> tuple[Mapping[str, Any], tuple[Look, Mapping[str, Any]] | None]:
        """Reads the counters and, where it is time for it and something has happened, the levels.

        Raises:
            PlrError: the server does not answer, or has no such curriculum any more.
        """
        with self._speaks:
            counters = self.trainer.counters()
        began_s = time.monotonic()
        if began_s < self._next_look_s or _events(counters) == _events(self._looked_at):
            return counters, None
        if counters["levels"] > MANY_LEVELS:  # two looks at once would take too much memory
            self._has_look.clear()
            self._look = None
        try:
            levels, read_s = self._table()
            work_began_s = time.thread_time()  # a busy machine makes no more work
            it, summary = look(self._config, counters["draws"], levels)
            if self._groups is not None:
                summary |= self._groups.look(it, self._given_of)
        except BaseException:
            self._has_look.set()  # there will be none
            raise
        worked_s = time.thread_time() - work_began_s
        self._looked_at = counters
        self._next_look_s = time.monotonic() + max(LOOK_S, READ_PATIENCE * read_s, WORK_PATIENCE * worked_s)
        return counters, (it, summary)

    def _table(self) -> tuple[TableRows, float]:
        """Reads the level table in pieces, so that the server does other things in between.

        Returns:
            The rows, and how long the server was kept from other things, in seconds: all pieces as long as the quickest
            one, for that did not wait until others were served.
        """
        pieces: list[TableRows] = []
        quickest_s = math.inf
        while not pieces or len(pieces[-1].ids) == PIECE_ROWS:
            begin = PIECE_ROWS * len(pieces)
            with self._speaks:
                began_s = time.monotonic()
                piece = self.trainer.table(begin, begin + PIECE_ROWS)
                took_s = time.monotonic() - began_s
            pieces.append(narrow(piece))
            if len(piece.ids) == PIECE_ROWS or len(pieces) == 1:
                quickest_s = min(quickest_s, took_s)
        read_s = quickest_s * len(pieces)
        return joined(pieces), read_s

    def _given_of(self, ids: Sequence[int]) -> Sequence[Any]:
        """Returns what the user's functions are given of levels: ids or payloads; None for those that are gone."""
        if self._config.levels != "payloads":
            return ids
        return [None if level is None else level.payload for level in self._levels(ids)]

    def _levels(self, ids: Sequence[int]) -> list[Level | None]:
        """Returns levels of payloads; None for those that are gone.

        Raises:
            PlrError: the server does not answer.
        """
        try:
            with self._speaks:
                return [*self.trainer.levels(ids)]
        except LevelOutsideSpace:
            if len(ids) == 1:
                return [None]
            half = len(ids) // 2
            return self._levels(ids[:half]) + self._levels(ids[half:])

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
            self._has_look.set()
            if self._groups is not None:
                self.labels = self._groups.labels
            t = round(time.time(), 1)
            counted = {name: counters[name] for name in COUNTED}
            kept = {name: value for name, value in self._summary.items() if name not in ONLY_NOW}
            self.history.add({"t": t, **counted, **kept})
            self._follow(t)
        return is_another

    def _follow(self, t: float) -> None:
        """Adds to the past of the levels that are followed: those most likely to be played, and those asked for."""
        assert self._look is not None  # noqa: S101  the caller has just had one
        for row in self.rows("weight", descending=True, limit=FOLLOW_FIRST)["rows"]:
            self._follow_one(row["id"])
        for row in rows_of(self._look, self._followed):
            self._followed[row["id"]].add({"t": t, **{name: row[name] for name in FOLLOWED}})

    def _follow_one(self, level: int) -> History:
        past = self._followed.pop(level, None) or History()
        self._followed[level] = past
        if len(self._followed) > FOLLOW:
            self._followed.popitem(last=False)
        return past

    def to_dict(self) -> dict[str, Any]:
        if not self._counters:
            return {"config": self.fields}
        return {
            "config": self.fields,
            "counters": self._counters,
            "rates": self._rates(),
            "summary": self._summary,
            "groups": list(self.labels),
            "has_pictures": self._functions.render is not None,
            "pushed_t": self._pushed_t,
            "verdict": [{"kind": finding.kind, "text": finding.text} for finding in verdict(self._facts())],
        }

    def rows(self, sort: str, *, descending: bool, limit: int, find: int | None = None) -> dict[str, Any]:
        it = self._look
        if it is None:
            return {"total": 0, "rows": []}
        return rows(it, sort, descending=descending, limit=limit, find=find)

    def await_look(self) -> None:
        """Waits for the look that is being taken, where the one before had to go for it."""
        self._has_look.wait(LOOK_TIMEOUT_S)

    def saved_levels(self) -> dict[str, Any]:
        """Returns rows of the level table as a file has them: with what is known of their past, and their pictures."""
        found = self.rows("weight", descending=True, limit=SAVED_ROWS)
        for row in found["rows"]:
            if row["id"] in self._followed:
                row["history"] = self._followed[row["id"]].to_dict()["columns"]
            render = self._functions.render
            if render is not None and (png := render.kept(self._key(row["id"]))) is not None:
                row["picture"] = base64.b64encode(png).decode()
        return found

    def picture(self, level: int) -> bytes | None:
        """Returns the picture of a level; None where there is none."""
        if self._functions.render is None:
            return None
        return self._functions.render.png(self._key(level), lambda: self._given_of([level])[0])

    def _key(self, level: int) -> tuple[str, int, int]:
        return self._name, self._run, level

    def past(self, level: int) -> dict[str, list[Any]]:
        """Returns the past of a level, by column; from now on the level is followed."""
        columns: dict[str, list[Any]] = self._follow_one(level).to_dict()["columns"]
        return columns

    def origin(self, level: int) -> dict[str, Any]:
        """Returns what a level is: its group, its payload as text, and its ancestors, from the parent on.

        Raises:
            PlrError: the server does not answer.
        """
        given = self._given_of([level])[0]
        ancestors: list[dict[str, Any]] = []
        parent = self._parent(level)
        while parent is not None and len(ancestors) < MAX_ANCESTORS:
            before = self._parent(parent)
            ancestors.append({"id": parent, "is_kept": self._levels([parent])[0] is not None})
            parent = before
        return {
            "group": None if self._groups is None or given is None else self._groups.label_of(given),
            "payload": f"{given!r:.{PAYLOAD_CHARS}}"
            if self._config.levels == "payloads" and given is not None
            else None,
            "ancestors": ancestors,
        }

    def _parent(self, level: int) -> int | None:
        """Returns the level that one was made from, which is known of levels that are kept or were looked up then."""
        if self._config.levels != "payloads":
            return None
        if (found := self._levels([level])[0]) is not None:
            self._parents[level] = found.parent
            if len(self._parents) > MAX_PARENTS:
                self._parents.popitem(last=False)
        return self._parents.get(level)

    def _rates(self) -> dict[str, float]:
        return dict.fromkeys(RATES, 0.0) | rates_between(self._ticks[0], self._ticks[-1], RATES)

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

"""`plr-server top`: the verdict, the course of a run and the level table, in a terminal.

Used by the command line alone; needs `textual` (the extra `top`). It shows what a collector has read, as the pages do,
and asks the server for nothing itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, ClassVar

from plr_client.errors import counted, needed
from plr_server.viewer.collect import Collector
from plr_server.viewer.measures import SORT_KEYS

with needed("textual", "top", "textual", "rich"):
    from rich.text import Text
    from textual.app import App, ComposeResult
    from textual.binding import BindingType
    from textual.containers import Horizontal, Vertical
    from textual.content import Content
    from textual.css.query import NoMatches
    from textual.widgets import DataTable, Footer, Input, Sparkline, Static, Tab, Tabs

REFRESH_S = 1.0
ROWS = 100
COLOURS = {"trouble": "bold red", "watch": "yellow", "fine": "green", "note": "dim"}
COURSES = {  # of the history: what a sparkline shows, and how its newest value is written
    "effective_levels": ("effective levels", "{:.1f}"),
    "drawn_score": ("replayed score", "{:.3g}"),
    "table_score": ("table score", "{:.3g}"),
    "staleness_q90": ("staleness, q90", "{:,.0f}"),
}
COLUMNS = {  # of the level table: its head, and how a value is written
    "rank": ("rank", "{:,}"),
    "id": ("level", "{}"),
    "score": ("score", "{:.4g}"),
    "weight": ("P_replay", "{:.3%}"),
    "by_score": ("by score", "{:.3%}"),
    "by_staleness": ("by staleness", "{:.3%}"),
    "staleness": ("staleness", "{:,}"),
    "plays": ("plays", "{:,}"),
    "last_return": ("last return", "{:.4g}"),
}
SORTED_BY = {"rank": "score", "by_score": "weight", "by_staleness": "staleness"}  # what a column without a key sorts by


class Top(App[None]):
    """The terminal.

    Args:
        collector: what reads the server; its context is the caller's.
    """

    CSS = """
    #head { height: 1; background: $primary; color: $text; }
    #verdict { height: auto; max-height: 6; padding: 0 1; margin-bottom: 1; }
    #courses { height: 4; }
    .course { width: 1fr; padding: 0 1; }
    .course Sparkline { height: 2; }
    #find { display: none; }
    #find.open { display: block; }
    DataTable { height: 1fr; }
    """
    TITLE = "plr-server top"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        ("q", "quit", "quit"),
        ("p", "pause", "pause"),
        ("s", "sort", "sort by the next column"),
        ("r", "reverse", "reverse"),
        ("slash", "find", "find a level"),
        ("c", "next_curriculum", "next curriculum"),
        ("escape", "close_find", "all levels"),
    ]

    def __init__(self, collector: Collector) -> None:
        super().__init__()
        self._collector = collector
        self._names: list[str] = []  # of the curricula
        self._shown: str | None = None
        self._is_paused = False
        self._sort, self._descending = SORT_KEYS[0], True
        self._find: int | None = None

    def compose(self) -> ComposeResult:
        yield Static(id="head")
        yield Tabs()
        yield Static(id="verdict")
        with Horizontal(id="courses"):
            for name in COURSES:
                with Vertical(classes="course"):
                    yield Static(id=f"{name}-label")
                    yield Sparkline([], id=name)
        yield Input(placeholder="the id of a level; Escape shows all", type="integer", id="find")
        table: DataTable[Text] = DataTable(cursor_type="row", zebra_stripes=True)
        for key, (head, _) in COLUMNS.items():
            table.add_column(head, key=key)
        yield table
        yield Footer()

    def on_mount(self) -> None:
        """Begins to show what the collector reads."""
        self.query_one(DataTable).focus()
        self.set_interval(REFRESH_S, self._refresh)
        self._show()

    def action_pause(self) -> None:
        """Refreshes nothing by itself any more, or goes on."""
        self._is_paused = not self._is_paused
        self._show()

    def action_sort(self) -> None:
        """Sorts by the next of the columns that can be sorted by, the largest first."""
        self._sort_by(SORT_KEYS[(SORT_KEYS.index(self._sort) + 1) % len(SORT_KEYS)])

    def action_reverse(self) -> None:
        """Turns the order round."""
        self._descending = not self._descending
        self._show()

    def action_find(self) -> None:
        """Asks for the id of a level."""
        find = self.query_one(Input)
        find.add_class("open")
        find.focus()

    def action_close_find(self) -> None:
        """Shows all levels again."""
        find = self.query_one(Input)
        find.value = ""
        find.remove_class("open")
        self.query_one(DataTable).focus()

    def action_next_curriculum(self) -> None:
        """Shows the next curriculum of the server."""
        self.query_one(Tabs).action_next_tab()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Shows the one level whose id was typed."""
        digits = event.value.removeprefix("-")
        self._find = int(event.value) if digits.isdecimal() else None
        self._show()

    def on_tabs_tab_activated(self, event: Tabs.TabActivated) -> None:
        """Shows the curriculum that was chosen."""
        self._shown = str(event.tab.label)
        self._show()

    def on_data_table_header_selected(self, event: DataTable.HeaderSelected) -> None:
        """Sorts by the column that was clicked; a second time the other way round."""
        key = str(event.column_key.value)
        key = SORTED_BY.get(key, key)
        if key == self._sort:
            self.action_reverse()
        else:
            self._sort_by(key)

    def _sort_by(self, key: str) -> None:
        self._sort, self._descending = key, True
        self._show()

    def _refresh(self) -> None:
        if not self._is_paused:
            self._show()

    def _show(self) -> None:
        """Shows what the collector has now."""
        with contextlib.suppress(NoMatches):  # of a tick or a key that comes while the terminal is closed
            self._show_all()

    def _show_all(self) -> None:
        self._show_tabs(list(self._collector.tick(None)["curricula"]))
        said = self._collector.document(self._shown or "")
        curricula = said["curricula"]
        lost_s = said["lost_s"]
        state = "paused" if self._is_paused else "live" if lost_s is None else f"no answer for {lost_s:.0f} s"
        order = f"{COLUMNS[self._sort][0]}, {'largest' if self._descending else 'smallest'} first"
        self.query_one("#head", Static).update(Text(f" {said['address']}   {state}   levels by {order}"))
        watched = curricula.get(self._shown)
        if watched is None or "counters" not in watched or "history" not in watched:
            self.query_one("#verdict", Static).update(Text(self._collector.refused or "waiting for the server"))
            return
        self._show_verdict(watched)
        columns = watched["history"]["columns"]
        for name, (label, shape) in COURSES.items():
            course = [value for value in columns.get(name, []) if value is not None]
            newest = shape.format(course[-1]) if course else "none yet"
            self.query_one(f"#{name}-label", Static).update(Text(f"{label}: {newest}"))
            self.query_one(f"#{name}", Sparkline).data = course
        self._show_levels()

    def _show_tabs(self, names: list[str]) -> None:
        if names == self._names:
            return
        self._names = names
        if self._shown not in names:
            self._shown = names[0] if names else None
        tabs = self.query_one(Tabs)
        tabs.clear()
        for name in names:
            tabs.add_tab(Tab(Content(name)))
        tabs.display = len(names) > 1

    def _show_verdict(self, watched: Mapping[str, Any]) -> None:
        counters, rates = watched["counters"], watched["rates"]
        lines = [Text(finding["text"], COLOURS[finding["kind"]]) for finding in watched["verdict"]]
        numbers = (
            f"{counters['levels_seen']:,} of {counters['levels']:,} levels seen; {counters['in_flight']:,} in flight; "
            f"{counted(counters['sessions'], 'client')}; "
            f"{rates['draws']:,.0f} draws and {rates['pushes']:,.1f} pushes a second"
        )
        self.query_one("#verdict", Static).update(Text("\n").join([*lines, Text(numbers, "dim")]))

    def _show_levels(self) -> None:
        table = self.query_one(DataTable)
        found = self._collector.rows(
            self._shown or "", self._sort, descending=self._descending, limit=ROWS, find=self._find
        )
        at = table.cursor_row
        table.clear()
        for row in found["rows"]:
            cells = ("" if row[key] is None else shape.format(row[key]) for key, (_, shape) in COLUMNS.items())
            table.add_row(*(Text(cell, justify="right") for cell in cells), key=str(row["id"]))
        table.move_cursor(row=min(at, max(table.row_count - 1, 0)))

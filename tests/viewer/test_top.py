"""plr_server/viewer/top.py with Textual's Pilot, against real servers: the screen shows what the server says."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time

import faults
import numpy as np
import pytest
from textual.widgets import DataTable, Footer, Input, Sparkline, Static, Tabs

from plr_client import LevelClient, MissingDependency, Trainer
from plr_server import Config, Curriculum, launch
from plr_server.__main__ import main
from plr_server.viewer import collect, top
from plr_server.viewer import watched as one_curriculum
from plr_server.viewer.collect import Collector
from plr_server.viewer.measures import SORT_KEYS

TRAIN = Config(levels=range(40), temperature=0.5, staleness_coef=0.3)
CONFIGS = {"train": TRAIN, "eval": Config(levels=range(1000, 1007), strategy="sequential")}


RETURNED = 3  # the level of the one episode that was pushed: its return is 0.5


@pytest.fixture(scope="module")
def watched():
    """A collector that has seen 64 draws of a curriculum, and the same curriculum in this process."""
    curriculum, rng = Curriculum(TRAIN), np.random.default_rng(5)
    with (
        launch(CONFIGS) as server,
        LevelClient(server.address, curriculum="train") as client,
        Trainer(server.address, curriculum="train") as trainer,
    ):
        for _ in range(8):
            levels = [assignment.level for assignment in client.next(8)]
            assert levels == [assignment.level for assignment in curriculum.sample(8)]
            scores = rng.random(8)
            trainer.push_scores(levels, scores)
            curriculum.update_scores(levels, scores)
        episode = ([[0.0]], [[0.5]], [[True]], [[RETURNED]], [0.0])
        trainer.push(*episode)
        curriculum.update(*episode)
        with Collector(server.address) as collector:
            faults.eventually(lambda: "eval" in said(collector) and "history" in said(collector)["eval"], "two looks")
            yield collector, curriculum


@pytest.fixture
def hasty(monkeypatch):
    """Waits shortly between two readings and between two looks at what was read."""
    monkeypatch.setattr(top, "REFRESH_S", 0.05)
    monkeypatch.setattr(collect, "TICK_S", 0.05)
    monkeypatch.setattr(one_curriculum, "LOOK_S", 0.05)
    monkeypatch.setattr(collect, "TIMEOUT_S", 1.0)


def said(collector):
    return collector.document()["curricula"]


@contextlib.asynccontextmanager
async def terminal(collector):
    async with top.Top(collector).run_test(size=(140, 40)) as pilot:
        await shows(pilot, lambda: pilot.app.query_one(DataTable).row_count > 0, "the level table")
        yield pilot


async def shows(pilot, holds, what):
    """Waits until something is on the screen."""
    deadline = time.monotonic() + faults.DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, what
        await pilot.pause(0.02)


def text(pilot, query):
    return str(pilot.app.query_one(query, Static).content)


def column(pilot, key):
    return [cell.plain for cell in pilot.app.query_one(DataTable).get_column(key)]


def test_it_shows_what_the_curriculum_says(watched):
    collector, curriculum = watched
    stats, (ids, scores, staleness, seen) = curriculum.stats(), curriculum.scores()
    weights = curriculum.weights()

    async def look():
        async with terminal(collector) as pilot:
            assert f"{stats['levels_seen']} of 40 levels seen" in text(pilot, "#verdict")
            assert said(collector)["train"]["verdict"][0]["text"] in text(pilot, "#verdict")
            assert text(pilot, "#effective_levels-label") == f"effective levels: {stats['effective_levels']:.1f}"
            assert text(pilot, "#table_score-label") == f"table score: {stats['mean_score']:.3g}"
            course = pilot.app.query_one("#drawn_score", Sparkline).data
            assert course[-1] == pytest.approx(weights @ scores, rel=1e-5)
            order = np.argsort(-weights, kind="stable")[: seen.sum()]
            assert column(pilot, "id") == [str(ids[i]) for i in order]
            assert column(pilot, "weight") == [f"{weights[i]:.3%}" for i in order]
            assert column(pilot, "score") == [f"{scores[i]:.4g}" for i in order]
            assert column(pilot, "staleness") == [str(staleness[i]) for i in order]
            assert column(pilot, "last_return") == ["0.5" if ids[i] == RETURNED else "" for i in order]

    asyncio.run(look())


def test_sorting_by_keys_and_by_a_click(watched):
    collector, curriculum = watched
    ids, scores, _, seen = curriculum.scores()
    best_first = [str(i) for i in ids[seen][np.argsort(-scores[seen], kind="stable")]]
    by_id = [str(i) for i in np.sort(ids[seen])]

    async def sort():
        async with terminal(collector) as pilot:
            await pilot.press("s")
            await shows(pilot, lambda: column(pilot, "id") == best_first, "the highest score first")
            assert "levels by score, largest first" in text(pilot, "#head")
            await pilot.press("r")
            await shows(pilot, lambda: column(pilot, "score")[0] == f"{scores[seen].min():.4g}", "the lowest first")
            assert "levels by score, smallest first" in text(pilot, "#head")
            await pilot.click(DataTable, offset=(9, 0))  # the head of the column of levels
            await shows(pilot, lambda: column(pilot, "id") == by_id[::-1], "the highest id first")
            await pilot.click(DataTable, offset=(9, 0))
            await shows(pilot, lambda: column(pilot, "id") == by_id, "a second click turns it round")
            for key in (*SORT_KEYS[SORT_KEYS.index("id") + 1 :], SORT_KEYS[0]):
                await pilot.press("s")
                order = f"levels by {top.COLUMNS[key][0]}, largest first"
                await shows(pilot, lambda order=order: order in text(pilot, "#head"), order)

    asyncio.run(sort())


def test_finding_a_level(watched):
    collector, curriculum = watched
    ids, _, _, seen = curriculum.scores()
    level = str(ids[seen][3])

    async def find():
        async with terminal(collector) as pilot:
            await pilot.press("slash", *level)
            await shows(pilot, lambda: column(pilot, "id") == [level], "one level")
            assert pilot.app.query_one(Input).display
            await pilot.press("escape")
            await shows(pilot, lambda: len(column(pilot, "id")) == seen.sum(), "all levels again")
            assert not pilot.app.query_one(Input).display

    asyncio.run(find())


def test_another_curriculum_and_the_end(watched):
    collector, _ = watched

    async def change():
        async with terminal(collector) as pilot:
            assert pilot.app.query_one(Tabs).display
            assert pilot.app.query_one(Tabs).active_tab.label.plain == "train"
            await pilot.press("c")
            await shows(pilot, lambda: "of 7 levels" in text(pilot, "#verdict"), "the other curriculum")
            assert column(pilot, "id") == []
            await pilot.press("c")
            await shows(pilot, lambda: "of 40 levels" in text(pilot, "#verdict"), "and back")
            keys = {binding.key for _, binding, *_ in pilot.app.screen.active_bindings.values()}
            assert {"q", "p", "s", "r", "slash", "c", "escape"} <= keys
            assert pilot.app.query_one(Footer).display
            await pilot.press("q")
            await shows(pilot, lambda: not pilot.app.is_running, "the end")

    asyncio.run(change())


@pytest.mark.usefixtures("hasty")
def test_it_follows_what_happens_until_it_is_paused():
    with launch(Config(levels=range(9))) as server, Trainer(server.address) as trainer:
        trainer.push_scores([3], [0.5])

        async def follow(collector):
            async with terminal(collector) as pilot:
                assert not pilot.app.query_one(Tabs).display  # there is one curriculum
                trainer.push_scores([4], [0.25])
                await shows(pilot, lambda: "2 of 9 levels seen" in text(pilot, "#verdict"), "the new level")
                await pilot.press("p")
                assert "paused" in text(pilot, "#head")
                trainer.push_scores([5], [0.125])
                faults.eventually(lambda: said(collector)["default"]["counters"]["levels_seen"] == 3, "the reading")
                await pilot.pause(0.2)  # some refreshes that there would be
                assert "2 of 9 levels seen" in text(pilot, "#verdict")
                await pilot.press("p")
                await shows(pilot, lambda: "3 of 9 levels seen" in text(pilot, "#verdict"), "what was missed")
                assert "live" in text(pilot, "#head")

        with Collector(server.address) as collector:
            asyncio.run(follow(collector))


@pytest.mark.usefixtures("hasty")
def test_a_server_that_is_gone_is_said_and_found_again(ipc):
    async def follow(collector):
        async with top.Top(collector).run_test(size=(140, 40)) as pilot:
            assert text(pilot, "#verdict") == "waiting for the server"
            with faults.daemon(ipc) as server:
                await shows(pilot, lambda: "of 200 levels seen" in text(pilot, "#verdict"), "a server")
                server.kill()
                await shows(pilot, lambda: "no answer for" in text(pilot, "#head"), "that it is gone")
                assert "of 200 levels seen" in text(pilot, "#verdict")  # what it said last
            with faults.daemon(ipc, "--levels", "0:30"):
                await shows(pilot, lambda: "of 30 levels seen" in text(pilot, "#verdict"), "another server")

    with Collector(ipc) as collector:
        asyncio.run(follow(collector))


def test_it_needs_a_terminal(ipc, capsys):
    assert main(["top", ipc]) == 1
    expected = "top: expected a terminal (plr-server stats --watch needs none), got an output that is none"
    assert capsys.readouterr().err == f"plr-server: {expected}\n"


@pytest.mark.parametrize("absent", [("textual", "textual.app"), ("rich", "rich.text")], ids=["textual", "rich"])
def test_without_textual_it_says_what_to_install(absent, monkeypatch):
    for module in absent:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "plr_server.viewer.top")
    with pytest.raises(MissingDependency, match=r"textual.*\[top\]"):
        import plr_server.viewer.top  # noqa: F401, PLC0415


def test_an_address_that_is_none_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["top", "nowhere"]) == 1
    assert "address: expected ipc://PATH or tcp://HOST:PORT, got 'nowhere'" in capsys.readouterr().err

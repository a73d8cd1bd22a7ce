"""plr_server/viewer/watched.py against real servers: single levels, groups, pictures, and the memory of a day."""

from __future__ import annotations

import base64

import faults
import numpy as np
import pytest

from plr_client import LevelClient, Trainer
from plr_server import Config, Curriculum, launch
from plr_server.viewer import collect, watched
from plr_server.viewer.collect import Collector, Functions, read_file
from plr_server.viewer.functions import OfLevel
from plr_server.viewer.pictures import Pictures

SEEDS = Config(levels=range(50), temperature=0.5, staleness_coef=0.3)
MAZES = Config(levels="payloads", capacity=8, strategy="external", replay_prob=0.5)
MODULE = """
import numpy as np
def tens(level):
    return f"{level // 10} tens"
def rooms(payload):
    return payload["rooms"]
def picture(level):
    return np.full((4, 4, 3), level, dtype=np.uint8)
def plan(payload):
    return np.full((4, 4, 3), payload["rooms"], dtype=np.uint8)
"""


@pytest.fixture
def hasty(monkeypatch):
    """A collector that does not wait long between its reads."""
    for module, name, value in (
        (collect, "TICK_S", 0.02),
        (watched, "LOOK_S", 0.02),
        (watched, "READ_PATIENCE", 1.0),
        (watched, "WORK_PATIENCE", 1.0),
        (watched, "GROUP_S", 60.0),
    ):
        monkeypatch.setattr(module, name, value)


@pytest.fixture
def functions(hasty, tmp_path, monkeypatch):  # noqa: ARG001  for whoever has functions
    """Makes a viewer's functions by their names."""
    (tmp_path / "of_watched_levels.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)

    def made(group, render):
        return Functions(
            group=OfLevel("group", f"of_watched_levels:{group}"),
            render=Pictures(OfLevel("render", f"of_watched_levels:{render}")),
        )

    return made


def play(trainer, curriculum, *, pushes, seed=2):
    """Pushes episodes of one step, to the server and to the curriculum in this process."""
    rng = np.random.default_rng(seed)
    for _ in range(pushes):
        shape = (1, 8)
        block = {
            "values": rng.random(shape),
            "rewards": rng.integers(0, 9, shape) / 8,
            "dones": np.ones(shape, bool),
            "levels": rng.integers(0, 50, shape),
            "next_values": np.zeros(8),
        }
        assert trainer.push(**block) == curriculum.update(**block)


def columns_of(collector):
    return collector.document("default")["curricula"].get("default", {}).get("history", {}).get("columns", {})


def await_pushes(collector, pushes):
    """Waits until the newest look was taken after so many pushes."""
    faults.eventually(lambda: columns_of(collector).get("pushes", [0])[-1] == pushes, f"a look after {pushes} pushes")


@pytest.mark.usefixtures("hasty")
def test_rows_tell_what_was_played_as_the_curriculum_does():
    curriculum = Curriculum(SEEDS)
    with launch(SEEDS) as server, Trainer(server.address) as trainer, Collector(server.address) as collector:
        play(trainer, curriculum, pushes=9)
        await_pushes(collector, 9)
        expected, table = {}, curriculum.table()
        for at in np.flatnonzero(table.seen).tolist():
            expected[int(table.ids[at])] = tuple(
                getattr(table, name)[at] for name in ("plays", "last_returns", "since_played")
            )
        rows = collector.rows("default", "plays", descending=True, limit=99, find=None)["rows"]
        assert {row["id"]: (row["plays"], row["last_return"], row["since_played"]) for row in rows} == expected
        assert [row["plays"] for row in rows] == sorted(table.plays[table.seen].tolist(), reverse=True)
        summary = collector.document("default")["curricula"]["default"]["summary"]
        assert summary["mean_return"] == pytest.approx(np.nanmean(table.last_returns), rel=1e-5)
        assert summary["score_age"] == pytest.approx(curriculum.weights() @ table.since_played, rel=1e-5)


@pytest.mark.usefixtures("hasty")
def test_the_age_of_a_score_counts_the_draws_since_it_was_pushed():
    with launch(SEEDS) as server, Trainer(server.address) as trainer, Collector(server.address) as collector:
        trainer.push_scores([1, 2, 3], [0.5, 0.25, 0.125])
        with LevelClient(server.address) as client:
            client.next(30)
        trainer.push_scores([2], [0.0])
        await_pushes(collector, 2)
        faults.eventually(lambda: columns_of(collector)["draws"][-1] == 30, "the draws")
        rows = collector.rows("default", "id", descending=False, limit=9, find=None)["rows"]
        assert [(row["id"], row["plays"], row["since_played"]) for row in rows] == [(1, 1, 30), (2, 2, 0), (3, 1, 30)]


@pytest.mark.usefixtures("hasty")
def test_a_level_is_followed_once_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(watched, "FOLLOW_FIRST", 2)
    with launch(SEEDS) as server, Trainer(server.address) as trainer, Collector(server.address) as collector:
        trainer.push_scores(range(10), np.arange(10) / 10)
        await_pushes(collector, 1)
        assert collector.level("default", 9)["history"]["score"][-1] == 0.9  # the highest: followed by itself
        assert collector.level("default", 0)["history"] == {}
        for push, score in enumerate((0.25, 0.5), 2):
            trainer.push_scores([0], [score])
            await_pushes(collector, push)
        known = collector.level("default", 0)
        assert known["history"]["score"] == [0.25, 0.5]
        assert known["history"]["plays"] == [2, 3]
        assert known["row"]["score"] == 0.5
        assert (known["group"], known["payload"], known["ancestors"]) == (None, None, [])
        assert collector.level("default", 40) == {
            "row": None,
            "history": {},
            "group": None,
            "payload": None,
            "ancestors": [],
        }
        assert collector.level("nobody", 0) == {"row": None, "history": {}}


@pytest.mark.usefixtures("hasty")
def test_only_so_many_levels_have_a_past(monkeypatch):
    monkeypatch.setattr(watched, "FOLLOW", 4)
    monkeypatch.setattr(watched, "FOLLOW_FIRST", 1)
    with launch(SEEDS) as server, Trainer(server.address) as trainer, Collector(server.address) as collector:
        trainer.push_scores(range(10), np.arange(10) / 10)
        await_pushes(collector, 1)
        for level in range(8):
            collector.level("default", level)
        trainer.push_scores([0], [0.05])
        await_pushes(collector, 2)
        with_past = [level for level in range(10) if collector._watched["default"]._followed.get(level)]
        assert len(collector._watched["default"]._followed) == 4
        assert 9 in with_past


def test_ancestors_are_told_even_after_one_is_gone(functions):
    of = functions("rooms", "plan")
    with (
        launch(MAZES) as server,
        Trainer(server.address) as trainer,
        Collector(server.address, functions=of) as collector,
    ):
        (first,) = trainer.insert([{"rooms": 1}], scores=[0.5])
        (second,) = trainer.insert([{"rooms": 2}], scores=[0.6], parents=[first])
        (third,) = trainer.insert([{"rooms": 3}], scores=[0.7], parents=[second])
        faults.eventually(lambda: collector.level("default", third)["row"], "a look")
        known = collector.level("default", third)
        assert known["ancestors"] == [{"id": second, "is_kept": True}, {"id": first, "is_kept": True}]
        assert (known["group"], known["payload"]) == ("3", "{'rooms': 3}")
        trainer.insert([{"rooms": 10 + number} for number in range(7)], scores=[0.9] * 7)
        assert first not in trainer.scores()[0]
        assert second not in trainer.scores()[0]
        (fourth,) = trainer.insert([{"rooms": 4}], scores=[0.95], parents=[third])
        faults.eventually(lambda: collector.level("default", fourth)["row"], "a look")
        gone = [{"id": second, "is_kept": False}, {"id": first, "is_kept": False}]
        parent = {"id": third, "is_kept": third in trainer.scores()[0]}
        assert collector.level("default", fourth)["ancestors"] == [parent, *gone]


@pytest.mark.parametrize("config", [SEEDS, MAZES], ids=["seeds", "payloads"])
def test_groups_and_pictures(config, functions):
    of = functions("tens", "picture") if config is SEEDS else functions("rooms", "plan")
    with (
        launch(config) as server,
        Trainer(server.address) as trainer,
        Collector(server.address, functions=of) as collector,
    ):
        if config is SEEDS:
            trainer.push_scores(range(20), np.ones(20))
            expected = {"0 tens": 10, "1 tens": 10}
        else:
            trainer.insert([{"rooms": number % 3, "at": number} for number in range(8)], scores=np.ones(8))
            expected = {"0": 3, "1": 3, "2": 2}
        faults.eventually(lambda: columns_of(collector).get("group_mass"), "a look")
        now = collector.document()["curricula"]["default"]
        assert dict(zip(now["groups"], now["summary"]["group_levels"], strict=True)) == expected
        assert now["has_pictures"]
        pictures = [collector.picture("default", level) for level in (1, 2)]
        assert all(png.startswith(b"\x89PNG") for png in pictures)
        assert pictures[0] != pictures[1]
        assert collector.picture("nobody", 1) is None
        rows = collector.document()["curricula"]["default"]["levels"]["rows"]
        saved = {row["id"]: row.get("picture") for row in rows}
        assert base64.b64decode(saved[1]) == pictures[0]
        assert saved[3] is None  # nobody has seen it
        assert config is SEEDS or collector.picture("default", 99) is None


def test_another_server_has_other_levels_of_the_same_ids(functions, ipc, monkeypatch):
    monkeypatch.setattr(collect, "TIMEOUT_S", 0.5)
    with Collector(ipc, functions=functions("rooms", "plan")) as collector:
        pictures = []
        for rooms in (3, 5):
            with launch(MAZES, ipc), Trainer(ipc) as trainer:
                assert trainer.insert([{"rooms": rooms}], scores=[0.5]).tolist() == [0]
                of = str(rooms)
                faults.eventually(lambda of=of: collector.level("default", 0).get("group") == of, "its levels")
                faults.eventually(lambda: columns_of(collector).get("group_mass"), "a look")
                pictures.append(collector.picture("default", 0))
            faults.eventually(lambda: collector.tick("default")["lost_s"] is not None, "it noticed")
        assert pictures[0] != pictures[1]


def test_the_groups_of_a_history_keep_their_places(functions, tmp_path):
    file, of = tmp_path / "history.json", functions("tens", "picture")
    with launch(SEEDS) as server, Trainer(server.address) as trainer:
        trainer.push_scores(range(30, 40), np.ones(10))
        with Collector(server.address, file, functions=of) as collector:
            await_pushes(collector, 1)
        trainer.push_scores(range(20), np.ones(20))
        with Collector(server.address, file, functions=of) as collector:
            await_pushes(collector, 2)
        now = read_file(file)["curricula"]["default"]
        assert now["groups"] == ["3 tens", "0 tens", "1 tens"]
        columns = now["history"]["columns"]
        assert len(base64.b64decode(columns["group_mass"][0])) == 1
        assert len(base64.b64decode(columns["group_mass"][-1])) == 3
        assert now["summary"]["group_levels"] == [10, 10, 10]


@pytest.mark.usefixtures("hasty")
def test_a_table_is_read_in_pieces(monkeypatch):
    monkeypatch.setattr(watched, "PIECE_ROWS", 16)
    curriculum = Curriculum(SEEDS)
    with launch(SEEDS) as server, Trainer(server.address) as trainer, Collector(server.address) as collector:
        play(trainer, curriculum, pushes=12)
        await_pushes(collector, 12)
        rows = collector.rows("default", "id", descending=False, limit=99, find=None)["rows"]
        _, scores, _, seen = curriculum.scores()
        assert [(row["id"], row["score"]) for row in rows] == [(at, scores[at]) for at in np.flatnonzero(seen)]
        pieces = trainer.timings()["table"]["counts"]
        assert sum(pieces) % 4 == 0  # of 16, 16, 16 and 2 rows


# ---- memory

DAY_S, LOOK_EVERY_S, CHANGE_EVERY_S = 86_400, 20, 1_800
MEMORY_BYTES = 150_000_000
DAY = """
import re, sys, time, types
from pathlib import Path
import numpy as np
from plr_client import LevelClient, Trainer
from plr_server.viewer import watched
from plr_server.viewer.watched import Functions, Watched

address, day_s, look_every_s, change_every_s = sys.argv[1], *map(int, sys.argv[2:])
now_s = 0.0  # simulated
watched.time = types.SimpleNamespace(
    monotonic=lambda: now_s + time.monotonic(), time=lambda: now_s + time.time(), thread_time=time.thread_time
)
with Trainer(address, timeout_s=60.0) as trainer, LevelClient(address) as client:
    it = Watched("default", trainer, Functions())
    it.begin(trainer.describe()["default"])
    for second in range(day_s):
        now_s = float(second)
        if second % change_every_s == 0:
            rng = np.random.default_rng(second)
            trainer.push_scores(rng.choice(1_000_000, size=2**16, replace=False), rng.random(2**16))
            client.next()
            look = None  # one at a time, as in life
            counters, look = it.read()
            assert look is not None
        it.keep((counters, look if second % look_every_s == 0 else None), own=1)
        if second % look_every_s == 0:
            it.to_dict()
            it.past(second % 1_000)  # someone opens one level after the other
assert it.history.to_dict()["added"] == -(-day_s // look_every_s)
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
def test_a_day_of_looks_at_a_million_levels_takes_no_more_memory_than_it_may(tmp_path):
    """The looks of a day: 48 are read from the server, and each is kept as often as it would be until the next."""
    num = 1_000_000
    with faults.daemon(f"ipc://{tmp_path}/plr.sock", "--levels", f"0:{num}") as server:
        with Trainer(server.address, timeout_s=60.0) as trainer:
            for begin in range(0, num, 2**17):
                ids = np.arange(begin, min(begin + 2**17, num))
                trainer.push_scores(ids, np.sin(ids))
        said = faults.run_script(DAY, server.address, DAY_S, LOOK_EVERY_S, CHANGE_EVERY_S, timeout_s=1_800.0)
    assert 1024 * int(said) <= MEMORY_BYTES

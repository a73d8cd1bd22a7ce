"""plr_server/viewer/collect.py against real servers: what it reads, how seldom, and what it does when one is gone."""

from __future__ import annotations

import json
import shutil
import signal
import time

import faults
import numpy as np
import pytest

from plr_client import ConfigError, InvalidInput, LevelClient, Trainer
from plr_server import Config, Curriculum, launch
from plr_server.viewer import collect, watched
from plr_server.viewer.collect import Collector, read_file

CONFIG = Config(levels=range(50), temperature=0.5, staleness_coef=0.3)


def play(address, curriculum=None, *, rounds=6, name="default"):
    """Plays 8 levels a round and scores them; does the same to a curriculum in this process."""
    rng = np.random.default_rng(3)
    with LevelClient(address, curriculum=name) as client, Trainer(address, curriculum=name) as trainer:
        for _ in range(rounds):
            levels = [assignment.level for assignment in client.next(8)]
            scores = rng.random(8)
            trainer.push_scores(levels, scores)
            if curriculum is not None:
                assert levels == [assignment.level for assignment in curriculum.sample(8)]
                curriculum.update_scores(levels, scores)
        return curriculum


def shown(collector, name="default"):
    return collector.document()["curricula"].get(name, {})


def await_draws(collector, draws, name="default"):
    """Waits until the newest look was taken after so many draws."""

    def looked():
        columns = shown(collector, name).get("history", {"columns": {}})["columns"]
        return columns.get("draws", [0])[-1:] == [draws]

    faults.eventually(looked, f"a look after {draws} draws")


@pytest.fixture
def hasty(monkeypatch):
    """A collector that does not wait long between its reads."""
    monkeypatch.setattr(collect, "TICK_S", 0.02)
    monkeypatch.setattr(watched, "LOOK_S", 0.02)
    monkeypatch.setattr(watched, "READ_PATIENCE", 1.0)
    monkeypatch.setattr(watched, "WORK_PATIENCE", 1.0)


@pytest.mark.usefixtures("hasty")
def test_it_shows_what_the_curriculum_says():
    with launch(CONFIG) as server, Collector(server.address) as collector:
        curriculum = play(server.address, Curriculum(CONFIG))
        await_draws(collector, 48)
        faults.eventually(lambda: shown(collector)["counters"]["sessions"] == 0, "the goodbyes")  # of others than it
        now, stats = shown(collector), curriculum.stats()
        assert now["config"] == CONFIG.to_dict()
        counted = {
            **curriculum.counters(),
            **dict.fromkeys(("in_flight", "levels_in_flight", "most_in_flight"), 0),
        }  # a goodbye
        assert now["counters"] == counted | {"sessions": 0, "prefetched": 0, "prefetch_lag_pushes": 0.0}
        assert now["summary"]["effective_levels"] == pytest.approx(stats["effective_levels"], rel=1e-5)
        weights = dict(zip(curriculum.scores()[0].tolist(), curriculum.weights().tolist(), strict=True))
        assert len(now["levels"]["rows"]) == stats["levels_seen"]
        assert {row["id"]: row["weight"] for row in now["levels"]["rows"]} == pytest.approx(
            {level: weight for level, weight in weights.items() if weight}, rel=1e-5
        )


@pytest.mark.usefixtures("hasty")
def test_every_curriculum_of_the_server_is_watched():
    configs = {"train": Config(levels=(4, 2)), "eval": Config(levels=range(9), strategy="sequential")}
    with launch(configs) as server, Collector(server.address) as collector:
        play(server.address, name="train")
        play(server.address, name="eval", rounds=3)
        await_draws(collector, 48, "train")
        await_draws(collector, 24, "eval")
        document = collector.document()
        assert list(document["curricula"]) == ["train", "eval"]
        assert "history" not in collector.document("eval")["curricula"]["train"]
        assert collector.tick("eval")["curricula"]["eval"]["history"]["newest"]["draws"] == 24
        found = collector.rows("train", "id", descending=False, limit=9, find=None)
        assert [row["id"] for row in found["rows"]] == [2, 4]
        assert collector.rows("no", "id", descending=False, limit=9, find=None) == {"total": 0, "rows": []}


class Counting(Trainer):
    """Says when it read what."""

    reads: list  # (operation, when it ended)

    def counters(self):
        return self._noted("counters", super().counters())

    def table(self, begin=0, stop=None):
        return self._noted("table", super().table(begin, stop))

    def _noted(self, what, result):
        self.reads.append((what, time.monotonic()))
        return result


@pytest.fixture
def reads(monkeypatch):
    Counting.reads = []
    monkeypatch.setattr(collect, "Trainer", Counting)
    return Counting.reads


def between_two_looks_s(reads):
    """How long a collector of a server that is played on waits from its first read of the scores to the second."""
    with launch(CONFIG) as server, Collector(server.address), LevelClient(server.address) as client:

        def read_twice():
            client.next()
            return [what for what, _ in reads].count("table") >= 2

        faults.eventually(read_twice, "two reads of the scores")
    first_s, second_s = [when for what, when in reads if what == "table"][:2]
    return second_s - first_s


@pytest.mark.usefixtures("hasty")
def test_it_waits_a_hundred_times_as_long_as_the_last_read_of_scores_took(monkeypatch, reads):
    monkeypatch.setattr(watched, "READ_PATIENCE", 100.0)

    def slow(trainer, *rows):
        began_s = time.monotonic()
        found = Trainer.table(trainer, *rows)
        while time.monotonic() - began_s < 0.01:  # a server with much to say
            pass
        return trainer._noted("table", found)

    monkeypatch.setattr(Counting, "table", slow)
    assert between_two_looks_s(reads) >= 1.0
    assert [what for what, _ in reads].count("counters") > 10


@pytest.mark.usefixtures("hasty")
def test_it_waits_so_many_times_the_processor_time_that_its_own_work_took(monkeypatch, reads):
    monkeypatch.setattr(watched, "WORK_PATIENCE", 50.0)
    look = watched.look

    def hard(*args):
        began_s = time.thread_time()
        found = look(*args)
        while time.thread_time() - began_s < 0.02:
            pass
        return found

    monkeypatch.setattr(watched, "look", hard)
    assert between_two_looks_s(reads) >= 50 * 0.02


@pytest.mark.usefixtures("hasty")
def test_while_nothing_happens_the_scores_are_not_read_again(reads):
    with launch(CONFIG) as server, Collector(server.address) as collector:
        play(server.address)
        await_draws(collector, 48)
        before = [what for what, _ in reads].count("table")
        at = len(reads)
        faults.eventually(lambda: len(reads) > at + 50, "fifty ticks")
        assert [what for what, _ in reads].count("table") == before
        with Trainer(server.address) as trainer:
            trainer.push_scores([7], [0.5])
        faults.eventually(lambda: [what for what, _ in reads].count("table") == before + 1, "another look")


@pytest.mark.usefixtures("hasty")
def test_pages_share_what_was_read(reads):
    with launch(CONFIG) as server, Collector(server.address) as collector:
        play(server.address)
        await_draws(collector, 48)
        before = len([what for what, _ in reads if what == "table"])
        for _ in range(100):
            collector.document("default")
            collector.rows("default", "score", descending=True, limit=50, find=None)
        assert len([what for what, _ in reads if what == "table"]) == before


@pytest.mark.usefixtures("hasty")
def test_a_server_that_is_killed_and_started_again_is_found_again(ipc, monkeypatch):
    monkeypatch.setattr(collect, "TIMEOUT_S", 0.2)
    with Collector(ipc) as collector:
        assert collector.tick(None)["lost_s"] is not None
        assert collector.tick(None)["curricula"] == {}
        with faults.daemon(ipc, "--levels", "0:50") as server:
            play(ipc)
            await_draws(collector, 48)
            faults.eventually(lambda: collector.tick("default")["lost_s"] is None, "an answer in time")
            server.kill()
            faults.eventually(lambda: collector.tick("default")["lost_s"] is not None, "it noticed")
            assert shown(collector)["counters"]["draws"] == 48  # what it said last
        with faults.daemon(ipc, "--levels", "0:30"):
            play(ipc, rounds=1)
            await_draws(collector, 8)
            faults.eventually(lambda: collector.tick("default")["lost_s"] is None, "an answer in time")
            now = shown(collector)
            assert now["counters"]["levels"] == 30
            assert 48 in now["history"]["columns"]["draws"][:-1]  # the past is kept


@pytest.mark.usefixtures("hasty")
def test_a_server_that_is_silent_for_a_while_is_waited_for(ipc, monkeypatch):
    monkeypatch.setattr(collect, "TIMEOUT_S", 0.2)
    with faults.daemon(ipc, "--levels", "0:50") as server, Collector(ipc) as collector:
        play(ipc)
        await_draws(collector, 48)
        server.process.send_signal(signal.SIGSTOP)  # as where the network is gone: nothing closes the connection
        faults.eventually(lambda: collector.tick("default")["lost_s"] is not None, "it noticed")
        assert shown(collector)["counters"]["draws"] == 48  # what it said last
        server.process.send_signal(signal.SIGCONT)
        play(ipc, rounds=1)
        await_draws(collector, 56)
        faults.eventually(lambda: collector.tick("default")["lost_s"] is None, "an answer in time")
        assert 48 in shown(collector)["history"]["columns"]["draws"][:-1]  # the past is kept


@pytest.mark.usefixtures("hasty")
def test_missing_clients_are_noticed_and_the_viewer_is_none():
    with launch(CONFIG) as server, Collector(server.address) as collector:
        clients = [LevelClient(server.address) for _ in range(3)]
        for client in clients:
            client.next()
        faults.eventually(lambda: shown(collector).get("counters", {}).get("sessions") == 3, "three clients")
        clients.pop().close()
        texts = lambda: [finding["text"] for finding in shown(collector)["verdict"]]  # noqa: E731
        faults.eventually(lambda: "1 of 3 clients is gone." in texts(), "a missing client")
        for client in clients:
            client.close()


# ---- the file


@pytest.mark.usefixtures("hasty")
def test_a_history_goes_on_where_the_last_viewer_stopped(tmp_path):
    file = tmp_path / "history.json"
    with launch(CONFIG) as server:
        with Collector(server.address, file) as collector:
            play(server.address)
            await_draws(collector, 48)
        first = read_file(file)
        assert first["curricula"]["default"]["history"]["columns"]["draws"][-1] == 48
        assert len(first["curricula"]["default"]["levels"]["rows"]) > 0
        with Collector(server.address, file) as collector:
            play(server.address)
            await_draws(collector, 96)
        columns = [read["curricula"]["default"]["history"]["columns"] for read in (first, read_file(file))]
        before, after = (column["t"] for column in columns)
        assert after[: len(before)] == before
        assert len(after) > len(before)
    assert [path.name for path in tmp_path.iterdir()] == ["history.json"]


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"{", "Expecting property name"),
        (b"[]", "something else"),
        (b'{"format": 2}', "something else"),
        (b'{"format": 1}', "something else"),
        (b'{"format": 1, "curricula": [1]}', "something else"),
        (b'{"format": 1, "curricula": {"default": {"history": {"columns": {"t": [1], "x": []}}}}}', "something else"),
        (b"\xff", "utf-8"),
    ],
    ids=["no JSON", "a list", "another format", "no curricula", "a list of them", "ragged", "no text"],
)
def test_a_file_that_is_no_history_is_refused_and_left_alone(tmp_path, content, got):
    file = tmp_path / "notes.json"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        Collector("ipc:///nowhere", file)
    assert raised.value.field == "history"
    assert got in raised.value.got
    assert file.read_bytes() == content


def test_no_folder_for_the_file(tmp_path):
    with pytest.raises(
        ConfigError, match=r"^history: expected a file in a folder that is there, got .*/nowhere/h.json$"
    ):
        Collector("ipc:///nowhere", tmp_path / "nowhere" / "h.json")


@pytest.mark.usefixtures("hasty")
def test_a_history_that_cannot_be_written_ends_nothing(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(collect, "SAVE_S", 0.0)
    folder = tmp_path / "folder"
    folder.mkdir()
    with launch(CONFIG) as server, Collector(server.address, folder / "history.json") as collector:
        faults.eventually((folder / "history.json").exists, "the first save")
        shutil.rmtree(folder)
        faults.eventually(lambda: "the history cannot be written: [Errno 2]" in caplog.text, "a warning")
        play(server.address)
        await_draws(collector, 48)


def test_no_file_and_no_address():
    with pytest.raises(ConfigError, match="No such file"):
        read_file(collect.Path("/no/such/file.json"))
    with pytest.raises(InvalidInput, match="address: expected ipc://PATH"):
        Collector("localhost:5555")


def test_a_document_is_json():
    with launch(CONFIG) as server, Collector(server.address) as collector:
        faults.eventually(lambda: "summary" in shown(collector), "the first look")
        assert json.loads(json.dumps(collector.document()))["format"] == collect.FILE_FORMAT


def test_a_key_file_that_is_not_there_is_said(tmp_path, caplog):
    with Collector("ipc:///nowhere", keys=str(tmp_path / "no.key")) as collector:
        faults.eventually(lambda: "no.key" in collector.refused, "a reason")
    assert "the server refuses this page: keys: expected a file made by plr-server keygen" in caplog.text

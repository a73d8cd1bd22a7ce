"""Trainer.log_to with real dashboards: what TensorBoard and trackio have on disk afterwards is what the server says."""

from __future__ import annotations

import re

import numpy as np
import pytest
import trackio
from stable_baselines3 import PPO
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter
from trackio.sqlite_storage import SQLiteStorage

from plr_client import Trainer
from plr_server import Config, launch
from wrappers import LevelReplay
from wrappers.sb3 import LevelReplayCallback

NUM_SEEN = 30


@pytest.fixture
def seen():
    """A trainer of 50 levels; those from 0 to 29 have the score level / 30."""
    with launch(Config(levels=range(50), temperature=1.0)) as server, Trainer(server.address) as trainer:
        trainer.push_scores(range(NUM_SEEN), np.arange(NUM_SEEN) / NUM_SEEN)
        yield trainer


def expected(trainer):
    stats = trainer.stats()
    names = ("effective_levels", "seen_share", "mean_score", "max_score", "pushes", "draws")
    told = {f"curriculum/{name}": stats[name] for name in names}
    return told | {"curriculum/weighted_score": float(trainer.weights() @ trainer.scores()[1])}


def table_of(text):
    """The rows of a Markdown table, without its head."""
    return [re.findall(r"[^|\s]+", line) for line in text.splitlines()[2:]]


def test_tensorboard(seen, tmp_path):
    with SummaryWriter(tmp_path) as writer:
        for step in (100, 200):
            seen.log_to(writer, step)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = events.Tags()
    assert len(tags["scalars"]) == 12
    assert (tags["histograms"], tags["tensors"]) == (["curriculum/scores"], ["curriculum/top_levels/text_summary"])
    for name, value in expected(seen).items():
        assert [event.step for event in events.Scalars(name)] == [100, 200]
        assert events.Scalars(name)[-1].value == pytest.approx(value), name
    histogram = events.Histograms("curriculum/scores")[-1].histogram_value
    assert (histogram.num, histogram.min, histogram.max) == (NUM_SEEN, 0.0, pytest.approx(29 / 30))
    table = table_of(events.Tensors("curriculum/top_levels/text_summary")[-1].tensor_proto.string_val[0].decode())
    assert [int(row[0]) for row in table] == list(range(29, 9, -1))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A trackio project on this machine."""
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path)
    return "levels"


def test_trackio(seen, project):
    run = trackio.init(project=project, name="plr", embed=False)
    run.log({"loss": 1.0}, step=7)
    seen.log_to(run, 100)
    seen.log_to(trackio, 200)  # the module stands for the run that is open
    trackio.finish()
    loss, *logs = SQLiteStorage.get_logs(project, "plr")
    assert loss["loss"] == 1.0
    assert [log["global_step"] for log in logs] == [100, 200]
    for log in logs:
        assert {name: log[name] for name in expected(seen)} == pytest.approx(expected(seen))
        histogram = log["curriculum/scores"]
        assert (histogram["_type"], sum(histogram["values"])) == ("trackio.histogram", NUM_SEEN)
        assert log["curriculum/top_levels"]["_type"] == "trackio.table"
        rows = log["curriculum/top_levels"]["_value"]
        assert [row["level"] for row in rows] == list(range(29, 9, -1))
        assert rows[0]["p_replay"] == pytest.approx(seen.weights()[29])


def test_sb3_writes_all_of_it_to_its_tensorboard(tmp_path):
    from stable_baselines3.common.env_util import make_vec_env  # noqa: PLC0415

    with launch(Config(levels=range(200), gamma=0.99)) as server, Trainer(server.address) as trainer:
        envs = make_vec_env("CartPole-v1", 2, wrapper_class=lambda env: LevelReplay(env, server.address))
        model = PPO("MlpPolicy", envs, n_steps=64, batch_size=64, n_epochs=1, device="cpu", tensorboard_log=tmp_path)
        model.learn(256, callback=LevelReplayCallback(server.address))
        envs.close()
        _, scores, _, is_seen = trainer.scores()
    events = EventAccumulator(str(tmp_path / "PPO_1"))
    events.Reload()
    assert len([tag for tag in events.Tags()["scalars"] if tag.startswith("curriculum/")]) == 12
    histogram = events.Histograms("curriculum/scores")[-1]
    assert (histogram.step, histogram.histogram_value.num) == (256, is_seen.sum())
    assert histogram.histogram_value.max == pytest.approx(scores.max())
    text = events.Tensors("curriculum/top_levels/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert len(table_of(text)) == min(is_seen.sum(), 20)

"""plr_client/report.py and Trainer.log_to: what is written of a real server, and to which writers.

The real writers are in tests/integrations/test_dashboards_trains.py.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import types

import numpy as np
import pytest

from plr_client import InvalidInput, LevelClient, Trainer
from plr_server import Config, Curriculum, launch

NUMBERS = (
    *("effective_levels", "seen_share", "replay_share", "mean_score", "weighted_score", "max_score", "staleness_q90"),
    *("draws", "episodes", "pushes", "in_flight", "prefetch_lag_pushes"),
)
CONFIG = Config(levels=range(40), temperature=1.0, staleness_coef=0.3)


class Collected:
    """What it was called with."""

    def __init__(self):
        self.calls = []

    def __call__(self, values, step):
        self.calls.append((values, step))


@contextlib.contextmanager
def played():
    """Yields a server and, in this process, a curriculum to which the same has happened: 30 levels of 40 are seen."""
    curriculum, scores = Curriculum(CONFIG), np.random.default_rng(1).random(30)
    with launch(CONFIG) as server, LevelClient(server.address) as client, Trainer(server.address) as trainer:
        for levels in np.arange(30).reshape(3, 10):
            assert [each.level for each in client.next(10)] == [each.level for each in curriculum.sample(10)]
            trainer.push_scores(levels, scores[levels])
            curriculum.update_scores(levels, scores[levels])
        yield server, curriculum


def test_it_writes_what_the_curriculum_says():
    collected = Collected()
    with played() as (server, curriculum), Trainer(server.address) as trainer:
        trainer.log_to(collected, np.int64(7))
    [(values, step)] = collected.calls
    ids, scores, staleness, seen = curriculum.scores()
    weights, stats = curriculum.weights(), curriculum.stats()
    assert (step, type(step)) == (7, int)
    assert [name for name, value in values.items() if isinstance(value, float)] == [f"curriculum/{n}" for n in NUMBERS]
    told = {name.removeprefix("curriculum/"): value for name, value in values.items()}
    for name in ("effective_levels", "seen_share", "replay_share", "mean_score", "max_score", "draws", "pushes"):
        assert told[name] == stats[name], name
    assert told["weighted_score"] == pytest.approx(sum(weights * scores))
    assert told["weighted_score"] > told["mean_score"]
    assert told["staleness_q90"] == np.quantile(staleness[seen], 0.9)
    np.testing.assert_array_equal(told["scores"], scores[seen])
    best = sorted(range(40), key=lambda index: -weights[index])[:20]
    assert told["top_levels"] == [
        {"level": ids[i], "score": scores[i], "p_replay": weights[i], "staleness": staleness[i]} for i in best
    ]


def test_before_anything_is_seen_there_are_numbers_alone():
    collected = Collected()
    with launch(CONFIG) as server, Trainer(server.address) as trainer:
        trainer.log_to(collected, 0)
    [(values, _)] = collected.calls
    assert values == {f"curriculum/{name}": 0.0 for name in NUMBERS}


def test_levels_that_enter_between_two_reads_do_not_disturb():
    """In an open level space the table grows while it is read: what came after the weights is left out."""
    config = Config(levels="unbounded", capacity=50, temperature=1.0)
    with launch(config) as server, Trainer(server.address) as trainer, Trainer(server.address) as other:
        trainer.push_scores([5, 6], [0.5, 0.25])

        class Busy(Trainer):
            def scores(self):
                other.push_scores([7], [9.0])
                return super().scores()

        collected = Collected()
        with Busy(server.address) as busy:
            busy.log_to(collected, 1)
    [(values, _)] = collected.calls
    assert values["curriculum/scores"].tolist() == [0.5, 0.25]
    assert [row["level"] for row in values["curriculum/top_levels"]] == [5, 6]
    assert values["curriculum/max_score"] == 0.5


def test_baselines_that_score_nothing_are_written_too():
    with launch(Config(levels=range(4), strategy="random")) as server, Trainer(server.address) as trainer:
        collected = Collected()
        trainer.log_to(collected, 1)
    assert collected.calls[0][0]["curriculum/effective_levels"] == pytest.approx(4)


# ---- writers that can do only part of it


class Scalars:
    """A writer of numbers alone, such as the one of some training libraries."""

    def __init__(self):
        self.written = {}

    def add_scalar(self, name, value, step):
        self.written[name] = value, step


class Logs:
    def __init__(self):
        self.logged = []

    def log(self, values):
        self.logged.append(values)


def test_a_writer_without_histograms_gets_the_numbers():
    scalars, logs = Scalars(), Logs()
    with played() as (server, _), Trainer(server.address) as trainer:
        trainer.log_to(scalars, 30)
        trainer.log_to(logs, 31)
    assert list(scalars.written) == [f"curriculum/{name}" for name in NUMBERS]
    assert {step for _, step in scalars.written.values()} == {30}
    [logged] = logs.logged
    assert logged.pop("global_step") == 31
    assert logged == {name: value for name, (value, _) in scalars.written.items()}


class ActiveRun:
    """As `mlflow.start_run` returns it."""

    __module__ = "mlflow.tracking.fluent"
    info = types.SimpleNamespace(run_id="a")


def test_mlflow_gets_metrics_and_a_file(monkeypatch):
    """The calls alone, for MLflow is not installed with the tests; these are the signatures of its version 3."""
    mlflow, calls = types.ModuleType("mlflow"), []
    mlflow.log_metrics = lambda metrics, step=None, *, run_id=None: calls.append((metrics, step, run_id))
    mlflow.log_dict = lambda dictionary, artifact_file, run_id=None: calls.append((dictionary, artifact_file, run_id))
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    with played() as (server, curriculum), Trainer(server.address) as trainer:
        trainer.log_to(ActiveRun(), 5)
        trainer.log_to(mlflow, 6)
    (metrics, *run), (file, *path), (_, *module), _ = calls
    assert (run, module, path) == ([5, "a"], [6, None], ["curriculum/top_levels.json", "a"])
    assert list(metrics) == [f"curriculum/{name}" for name in NUMBERS]
    assert json.loads(json.dumps(file))["global_step"] == 5
    assert (len(file["top_levels"]), sum(file["scores"]["counts"])) == (20, 30)
    assert file["scores"]["edges"][-1] == curriculum.stats()["max_score"]


def test_what_a_script_defines_makes_no_mlflow_of_its_functions(trainer, monkeypatch):
    """A callable is called, also where its module has a `log_metrics`, as a user's script may."""
    monkeypatch.setattr(sys.modules[__name__], "log_metrics", None, raising=False)
    collected = Collected()
    trainer.log_to(collected, 1)
    assert len(collected.calls) == 1


@pytest.mark.parametrize("writer", [None, "runs/plr", 3, types.SimpleNamespace()], ids=["None", "str", "int", "object"])
def test_what_cannot_write_is_refused(trainer, writer):
    with pytest.raises(InvalidInput) as raised:
        trainer.log_to(writer, 1)
    assert (raised.value.field, raised.value.got) == ("writer", type(writer).__name__)
    assert raised.value.expected.startswith("a SummaryWriter, a W&B, trackio or MLflow run, or something to call")


@pytest.mark.parametrize("step", [None, 1.5, math.nan, "7"])
def test_a_step_that_is_no_integer_is_refused_and_nothing_written(trainer, step):
    scalars = Scalars()
    with pytest.raises(InvalidInput, match=r"^step: expected the trainer's global step, an integer, got "):
        trainer.log_to(scalars, step)
    assert scalars.written == {}

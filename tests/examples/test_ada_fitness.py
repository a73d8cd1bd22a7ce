"""examples/ada_fitness.py: the fitness beside plain loops, imported by a server by name, and the example as it runs."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import faults
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plr_client import ScoreFunctionError, Segment, Trainer
from plr_server import Config, launch

EXAMPLE = Path(__file__).parents[2] / "examples" / "ada_fitness.py"


def load():
    spec = importlib.util.spec_from_file_location("ada_fitness", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ada = load()


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=40), st.integers(0, 30), st.integers(1, 9))
def test_every_trial_counts_the_same(errors, steps_before, trial_steps):
    trials = {}
    for i, error in enumerate(errors):
        trials.setdefault((steps_before + i) // trial_steps, []).append(abs(error))
    means = [sum(trial) / len(trial) for trial in trials.values()]
    segment = Segment(level=0, steps=len(errors), steps_before=steps_before, td_errors=np.array(errors))
    assert ada.per_trial(trial_steps)(segment) == pytest.approx((sum(means) / len(means), max(means)))


def test_a_level_with_nothing_to_teach_has_no_fitness():
    with (
        launch(Config(levels=range(41), gamma=ada.GAMMA), allow_pickle=True) as server,
        Trainer(server.address) as trainer,
    ):
        trainer.set_score_function(lambda segment: (float(np.abs(segment.td_errors).max()),) * 2)
        for level in (0, 3, 40):
            episode = {name: x[:, np.newaxis] for name, x in ada.play(level).items()}
            trainer.push(**episode, next_values=[0.0])
        scores = trainer.scores()[1]
    assert scores[0] == pytest.approx(0, abs=1e-12)
    assert scores[3] > scores[40] > 0.01


def test_a_server_imports_it_by_name(monkeypatch):
    """From PYTHONPATH; parts of an episode, cut in the middle of a trial, are told apart by their steps before."""
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLE.parent))
    config = Config(levels=range(41), strategy="ada_fitness:fitness", gamma=ada.GAMMA)
    episode = {name: x[:, np.newaxis] for name, x in ada.play(3).items()}
    with launch(config) as server, Trainer(server.address, timeout_s=faults.DEADLINE_S) as trainer:
        cut = 12
        trainer.push(**{name: x[:cut] for name, x in episode.items()}, next_values=episode["values"][cut])
        assert trainer.push(**{name: x[cut:] for name, x in episode.items()}, next_values=[0.0]) == 1
        score = trainer.scores()[1][3]
        with pytest.raises(ScoreFunctionError, match="expected rewards, values and next_values in every push"):
            trainer.push(None, episode["rewards"], episode["dones"], episode["levels"], None)
        assert trainer.scores()[1][3] == score
        assert trainer.stats()["strategy"] == "ada_fitness:fitness"
    values = np.append(ada.play(3)["values"], 0.0)
    errors = np.abs(ada.play(3)["rewards"] + ada.GAMMA * values[1:] - values[:-1])
    assert score == pytest.approx((errors[12:16].mean() + errors[16:24].mean()) / 2)


def test_the_example_runs():
    done = subprocess.run(  # noqa: S603  our own script
        [sys.executable, str(EXAMPLE)],
        env={**os.environ, "PYTHONPATH": str(EXAMPLE.parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    first, *rows = done.stdout.splitlines()
    assert first == "scored by __main__:per_trial.<locals>.fitness"
    fitness = [float(row.split()[3]) for row in rows]
    assert fitness[0] == 0
    assert max(fitness) == fitness[1]
    assert done.stderr == ""

"""Does a curriculum help? Through a server, a task whose truth is known is learnt faster than with uniform levels.

The task is the combination lock of the learning study. And a server, killed or not, changes nothing of what is learnt.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import numpy as np
import pytest

from plr_client import LevelClient, Trainer
from plr_server import Curriculum, launch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "learning"))

from lock import LEARNABILITY, UNIFORM, UPDATES, VALUE_L1, Agent, config_of, course

SEEDS = range(8)


def course_through(server, seed, curriculum="default"):
    with (
        LevelClient(server.address, curriculum=curriculum) as client,
        Trainer(server.address, curriculum=curriculum) as trainer,
    ):
        return course(Agent(np.random.default_rng(seed)), client.next, trainer.push)


def areas(fields):
    """Returns (seeds,) the area under the curve of a run from each seed, each with a curriculum of its own."""
    with launch({str(seed): config_of(fields, seed=seed) for seed in SEEDS}) as server:
        return np.array([np.mean(course_through(server, seed, str(seed))[0]) for seed in SEEDS])


@pytest.fixture(scope="module")
def uniform_areas():
    return areas(UNIFORM)


@pytest.mark.parametrize("fields", [VALUE_L1, LEARNABILITY], ids=lambda fields: fields["strategy"])
def test_a_curriculum_through_the_server_learns_faster_than_uniform_levels(fields, uniform_areas):
    """Better from each of eight seeds: by chance that happens once in 256 times (a sign test, one-sided)."""
    ours = areas(fields)
    assert (ours > uniform_areas).all()
    assert ours.mean() > 1.4 * uniform_areas.mean()  # 1.7 with either of them


def test_what_draws_uniformly_does_not_pass_for_a_curriculum(uniform_areas):
    ours = areas({"strategy": "uniform", "staleness_coef": 0.0})
    assert not (ours > uniform_areas).all()
    assert 0.8 < ours.mean() / uniform_areas.mean() < 1.2


def test_a_server_that_is_killed_changes_nothing_of_what_is_learnt(tmp_path):
    """In lock-step: a curriculum in the process, a server, and one killed twice, which goes on from its journal."""
    config = config_of(LEARNABILITY, seed=0)
    curriculum = Curriculum(config)
    expected = course(Agent(np.random.default_rng(0)), curriculum.sample, curriculum.update)
    with launch(config) as server:
        assert course_through(server, 0) == expected

    address, state_dir = f"ipc://{tmp_path}/plr.sock", tmp_path / "state"
    with contextlib.ExitStack() as running:

        def start():
            running.callback(running.enter_context(launch(config, address, state_dir=state_dir)).process.kill)

        def push(*arrays, valid):
            nonlocal pushes
            if pushes in (UPDATES // 3, UPDATES // 2):  # levels are in flight, and a push is under way
                running.close()
                start()
            pushes += 1
            trainer.push(*arrays, valid=valid)

        pushes = 0
        start()
        with LevelClient(address) as client, Trainer(address) as trainer:
            assert course(Agent(np.random.default_rng(0)), client.next, push) == expected

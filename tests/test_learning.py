"""Does a curriculum help? Through a server, a task whose truth is known is learnt faster than with uniform levels.

A combination lock. Level n wants the right one of four actions at each of its first positions, the same code on all
levels; a wrong action ends the episode with 0, the last right one with 1. What the agent can do, the success rate over
all levels, is known in closed form. Long levels teach nothing before the short ones are learnt, short ones nothing
after: the case that a curriculum is for. And a server, killed or not, changes nothing of it.
"""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from plr_client import LevelClient, Trainer
from plr_server import Config, Curriculum, launch

LENGTH, COPIES, NUM_ACTIONS = 16, 8, 4
NUM_LEVELS = LENGTH * COPIES
NUM_ENVS, UPDATES, LEARNING_RATE, VALUE_RATE, GAE_LAMBDA = 16, 350, 0.1, 0.5, 0.95
SEEDS = range(8)
SHARED = {"levels": range(NUM_LEVELS), "gamma": 1.0, "gae_lambda": GAE_LAMBDA}
VALUE_L1 = {"strategy": "value_l1", "transform": "rank", "temperature": 0.3, "staleness_coef": 0.3}
LEARNABILITY = {"strategy": "learnability", "transform": "power", "temperature": 1.0, "staleness_coef": 0.3}


def length_of(level):
    return level % LENGTH + 1


class Agent:
    """REINFORCE with a table of preferences (position, action) and one of values (level, position)."""

    def __init__(self, rng):
        self.rng = rng
        self.code = rng.integers(NUM_ACTIONS, size=LENGTH)
        self.preferences = np.zeros((LENGTH, NUM_ACTIONS))
        self.values = np.zeros((NUM_LEVELS, LENGTH))

    def policy(self):
        exps = np.exp(self.preferences - self.preferences.max(1, keepdims=True))
        return exps / exps.sum(1, keepdims=True)

    def success_rate(self):
        right = self.policy()[np.arange(LENGTH), self.code]
        return np.cumprod(right)[length_of(np.arange(NUM_LEVELS)) - 1].mean()

    def play_and_learn(self, levels):
        """Plays one episode on each of the (N,) levels, learns from them, and returns what is pushed."""
        policy, length = self.policy(), length_of(levels)
        steps = np.arange(length.max())[:, np.newaxis]  # (T, 1)
        uniforms = self.rng.random((len(steps), len(levels), 1))
        actions = np.minimum((policy[: len(steps), np.newaxis].cumsum(-1) < uniforms).sum(-1), NUM_ACTIONS - 1)
        is_wrong = actions != self.code[: len(steps), np.newaxis]
        last = np.minimum(np.where(is_wrong.any(0), is_wrong.argmax(0), length), length - 1)
        valid, dones = steps <= last, steps == last
        rewards = (dones & ~is_wrong).astype(float)
        values = self.values[levels[np.newaxis], steps]

        carried = following = np.zeros(len(levels))
        advantages = np.zeros_like(values)
        for t in reversed(range(len(steps))):
            goes_on = ~dones[t]
            carried = rewards[t] + goes_on * (following + GAE_LAMBDA * carried) - values[t]
            advantages[t] = carried = carried * valid[t]
            following = values[t]
        pull = (np.eye(NUM_ACTIONS)[actions] - policy[: len(steps), np.newaxis]) * advantages[..., np.newaxis]
        self.preferences[: len(steps)] += LEARNING_RATE * pull.sum(1)
        visits = np.bincount(levels, minlength=NUM_LEVELS)
        np.add.at(self.values.T, (steps, levels[np.newaxis]), VALUE_RATE * advantages / visits[levels])
        return values, rewards, dones, np.broadcast_to(levels, values.shape), valid


def course(next_levels, push, seed):
    """Trains; returns the success rate over all levels after each update (U,), and the levels played (U, N)."""
    agent = Agent(np.random.default_rng(seed))
    rates, levels = [], []
    for _ in range(UPDATES):
        levels.append([assignment.level for assignment in next_levels(NUM_ENVS)])
        values, rewards, dones, played, valid = agent.play_and_learn(np.array(levels[-1]))
        push(values, rewards, dones, played, np.zeros(NUM_ENVS), valid=valid)
        rates.append(agent.success_rate())
    return rates, levels


def course_through(server, seed, curriculum="default"):
    with (
        LevelClient(server.address, curriculum=curriculum) as client,
        Trainer(server.address, curriculum=curriculum) as trainer,
    ):
        return course(client.next, trainer.push, seed)


def areas(fields):
    """Returns (seeds,) the area under the curve of a run from each seed, each with a curriculum of its own."""
    with launch({str(seed): Config(**SHARED, **fields, seed=seed) for seed in SEEDS}) as server:
        return np.array([np.mean(course_through(server, seed, str(seed))[0]) for seed in SEEDS])


@pytest.fixture(scope="module")
def uniform_areas():
    return areas({"strategy": "random"})


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
    config = Config(**SHARED, **LEARNABILITY)
    curriculum = Curriculum(config)
    expected = course(curriculum.sample, curriculum.update, 0)
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
            assert course(client.next, push, 0) == expected

"""Every wrapper at a server that asks for keys: the path of a key file is all that it needs, in any process."""

from __future__ import annotations

import contextlib
import json
import pickle
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv
from level_env import LevelEnv

from plr_client import InvalidInput, NotAllowed, Trainer
from plr_server import Config, launch
from plr_server.serving.keys import make_key
from wrappers import LevelReplay, LevelReplayVector, di_engine, level_replay
from wrappers.syllabus import DiscreteTaskSpace, GymnasiumSyncWrapper, PrioritizedLevelReplay, TaskWrapper

SEEDS = range(10)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    return {role: make_key(folder, name=role, role=role) for role in ("worker", "trainer")}


@pytest.fixture(scope="module")
def server(keys):
    config = Config(levels=SEEDS, num_steps=4)
    with launch(
        {"default": config, "payloads": Config(levels="payloads", capacity=4)}, keys=keys["worker"].parent
    ) as running:
        yield running


@pytest.fixture
def trainer(server, keys):
    with Trainer(server.address, keys=keys["trainer"]) as connected:
        yield connected


def test_envs_in_other_processes_need_no_more_than_a_worker_s_key(server, keys, trainer):
    before = trainer.stats()["draws"]
    make = partial(make_env, server.address, keys["worker"])
    envs = AsyncVectorEnv([make, make])
    with contextlib.closing(LevelReplayVector(envs, server.address, keys=keys["trainer"])) as wrapped:
        wrapped.reset()
        assert set(wrapped.levels) <= set(SEEDS)
        for _ in range(4):
            wrapped.step(wrapped.action_space.sample())
        wrapped.push(np.zeros((4, 2)), np.zeros(2))
    assert trainer.stats()["draws"] > before


def make_env(address, keys, **options):
    return LevelReplay(LevelEnv(), address, keys=keys, **options)


def test_bare_envs_need_a_trainer_s(server, keys):
    for name, allowed in (("worker", False), ("trainer", True)):
        envs = gym.make_vec("CartPole-v1", 2, vectorization_mode="sync")
        with contextlib.closing(LevelReplayVector(envs, server.address, keys=keys[name])) as wrapped:
            wrapped.reset()
            wrapped.step(wrapped.action_space.sample())
            with contextlib.nullcontext() if allowed else pytest.raises(NotAllowed, match="push: expected the key of"):
                wrapped.push(np.zeros((1, 2)), np.zeros(2))


def test_a_level_of_ones_choice_and_the_space_for_bad_times_are_a_worker_s_too(server, keys):
    with Trainer(server.address, curriculum="payloads", keys=keys["trainer"]) as payloads:
        (level,) = payloads.insert([{"walls": 3}])
    played = []
    env = make_env(
        server.address,
        keys["worker"],
        curriculum="payloads",
        set_level=lambda _, level: played.append(level),
        when_away="uniform",
    )
    with contextlib.closing(env):
        env.reset()
        env.reset(options={"level": int(level)})
    assert played == [{"walls": 3}] * 2


def test_an_env_s_spec_and_its_pickle_hold_the_path(server, keys):
    with contextlib.closing(make_env(server.address, keys["worker"])) as env:
        assert env._saved_kwargs["keys"] == keys["worker"]
        env.reset()
        secret = json.loads(keys["worker"].read_text())["secret"]
        assert secret.encode() not in pickle.dumps(env._levels)


class Closing(PrioritizedLevelReplay):
    close = PrioritizedLevelReplay.stop


DROP_INS = {
    "level_replay": lambda **where: level_replay.LevelSampler(SEEDS, strategy="value_l1", **where),
    "syllabus": lambda **where: Closing(DiscreteTaskSpace(len(SEEDS)), **where),
    "di_engine": lambda **where: di_engine.LevelSampler(
        SEEDS, None, None, 1, {"strategy": "value_l1", "discount_factor": 0.9, "gae_lambda": 0.9, **where}
    ),
}


@pytest.mark.parametrize("name", DROP_INS)
def test_drop_ins(server, keys, name, monkeypatch):
    make = DROP_INS[name]
    with pytest.raises(NotAllowed, match="expected the key of a trainer"):
        make(address=server.address, keys=str(keys["worker"]))
    with contextlib.closing(make(address=server.address, keys=str(keys["trainer"]))) as made:
        assert made.sample() is not None
    with pytest.raises(InvalidInput, match="keys: expected an address beside"):
        make(keys=str(keys["trainer"]))
    # Where it starts a server of its own, the keys of others are no matter.
    monkeypatch.setenv("PLR_KEYS", str(keys["worker"].parent / "nothing.key"))
    with contextlib.closing(make()) as made:
        assert made.sample() is not None


def test_a_syllabus_env_has_its_curriculum_s_keys(server, keys):
    curriculum = DROP_INS["syllabus"](address=server.address, keys=keys["trainer"])
    components = pickle.loads(pickle.dumps(curriculum.components))  # noqa: S301  made here
    assert components.keys == keys["trainer"]
    env = GymnasiumSyncWrapper(Tasks(LevelEnv()), components)
    with contextlib.closing(curriculum), contextlib.closing(env):
        _, info = env.reset()
        assert int(info["task"]) in SEEDS


class Tasks(TaskWrapper):
    def change_task(self, new_task):
        self.env.unwrapped.next_level = int(new_task)

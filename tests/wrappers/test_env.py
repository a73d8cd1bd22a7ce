"""wrappers/env.py against a real server."""

from __future__ import annotations

import doctest
from collections.abc import Iterator

import gymnasium as gym
import numpy as np
import pytest
from level_env import LevelEnv

import wrappers.env
from plr_client import InvalidInput, Trainer
from plr_server import Config, launch
from wrappers import LevelReplay

LEVELS = range(300, 340)
PLR_KEYS = {"plr_level", "plr_is_replay", "plr_train", "plr_scored"}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with launch(Config(levels=LEVELS, replay_prob=0.5)) as server:
        yield server.address


def sessions(address: str) -> int:
    with Trainer(address) as trainer:
        return int(trainer.stats()["sessions"])


def test_every_reset_plays_an_assigned_level(address: str) -> None:
    env = LevelReplay(LevelEnv(), address)
    assert (env.level, env.is_replay, env.train, env.scored) == (None, False, False, False)
    played = set()
    for _ in range(30):
        observation, info = env.reset()
        assert observation[0] == env.level == info["plr_level"] in LEVELS
        assert info["level"] == env.level  # the env's own info is still there
        assert (info["plr_is_replay"], info["plr_train"], info["plr_scored"]) == (env.is_replay, env.train, env.scored)
        assert env.train
        assert env.scored
        played.add(env.level)
        assert not PLR_KEYS & env.step(0)[4].keys()
    env.close()
    assert len(played) > 1


def test_a_seed_never_picks_the_level(address: str) -> None:
    env = LevelReplay(LevelEnv(), address)
    played = {env.reset(seed=301)[1]["plr_level"] for _ in range(30)}
    env.close()
    assert played <= set(LEVELS)
    assert len(played) > 1


def test_option_level_plays_it_outside_the_curriculum_and_leaves_the_callers_options_alone(address: str) -> None:
    env = LevelReplay(LevelEnv(), address)
    before = sessions(address)
    options = {"level": np.int64(7), "colour": "red"}
    observation, info = env.reset(seed=3, options=options)
    assert sessions(address) == before  # the server was not asked
    assert observation[0] == env.level == info["plr_level"] == 7
    assert type(info["plr_level"]) is int
    assert (env.is_replay, env.train, env.scored) == (False, True, False)
    assert options == {"level": 7, "colour": "red"}
    assert env.unwrapped.options == [{"colour": "red"}]
    _, info = env.reset(options={"colour": "blue"})
    assert info["plr_level"] in LEVELS
    assert info["plr_scored"]
    assert env.unwrapped.options[-1] == {"colour": "blue"}
    env.close()


@pytest.mark.parametrize("level", ["seven", 7.0, None, np.array([7, 8])])
def test_option_level_must_be_an_int(address: str, level: object) -> None:
    env = LevelReplay(LevelEnv(), address)
    with pytest.raises(InvalidInput, match=r"options\['level'\]: expected a level's id, an int, got"):
        env.reset(options={"level": level})


def set_next_level(env: gym.Env, level: int) -> None:
    assert type(env) is LevelEnv  # the wrapped one
    env.next_level = level


def test_set_level_gets_the_wrapped_env_and_the_seed_is_the_callers(address: str) -> None:
    inner = LevelEnv()
    env = LevelReplay(inner, address, set_level=set_next_level)
    for seed in (5, None, 6):
        observation, info = env.reset(seed=seed)
        assert observation[0] == info["plr_level"] in LEVELS
        assert inner.seeds[-1] == seed
    observation, _ = env.reset(seed=8, options={"level": 12})
    assert observation[0] == 12
    assert inner.seeds[-1] == 8
    env.close()


def test_an_info_dict_that_the_env_keeps_is_not_written_to(address: str) -> None:
    env = LevelReplay(LevelEnv(mute=True), address)
    assert env.reset()[1].keys() == PLR_KEYS
    assert env.step(0)[4] == {}
    env.close()


def test_connects_at_the_first_reset_and_leaves_at_close(address: str) -> None:
    before = sessions(address)
    env = LevelReplay(LevelEnv(), address)
    assert sessions(address) == before
    env.reset()
    assert sessions(address) == before + 1
    env.close()
    assert sessions(address) == before


def test_is_replay_tells_levels_that_have_a_score() -> None:
    with launch(Config(levels=range(3))) as server, Trainer(server.address) as trainer:
        env = LevelReplay(LevelEnv(), server.address)
        assert env.reset()[1]["plr_is_replay"] is False
        trainer.push_scores([0, 1, 2], [1.0, 2.0, 3.0])
        assert env.reset()[1]["plr_is_replay"] is True
        env.close()


def test_autoreset_inside_one_env_asks_too(address: str) -> None:
    env = gym.wrappers.Autoreset(LevelReplay(LevelEnv(), address))
    observation, _ = env.reset()
    for _ in range(100):
        observation, _, _, _, info = env.step(0)
        assert observation[0] in LEVELS
        assert (observation[1] == 0) == ("plr_level" in info)
    env.close()


def test_the_spec_rebuilds_the_env(address: str) -> None:
    env = LevelReplay(gym.make("CartPole-v1"), address)
    assert env.spec is not None
    rebuilt = gym.make(env.spec)
    assert isinstance(rebuilt, LevelReplay)
    assert rebuilt.address == address
    assert rebuilt.reset()[1]["plr_level"] in LEVELS
    rebuilt.close()
    env.close()


def test_an_address_must_be_one() -> None:
    with pytest.raises(InvalidInput, match="address: expected ipc://PATH or tcp://HOST:PORT"):
        LevelReplay(LevelEnv(), "localhost:5555")


def test_the_example_of_the_docstring_is_true() -> None:
    assert doctest.testmod(wrappers.env).failed == 0
    assert doctest.testmod(wrappers.env).attempted > 0

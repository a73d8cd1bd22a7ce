"""wrappers/env.py against a real server."""

from __future__ import annotations

import doctest
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from faults import eventually
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import Autoreset
from level_env import LevelEnv

import wrappers.env
from plr_client import InvalidInput, LevelOutsideSpace, ServerUnreachable, Trainer
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


def test_the_reset_and_the_first_step_tell_how_many_episodes_have_begun(address: str) -> None:
    env = LevelReplay(LevelEnv(), address)
    for number in (1, 2, 3):
        _, info = env.reset(options={"level": 301} if number == 2 else None)
        assert info["plr_episode"] == number
        assert env.step(0)[4]["plr_episode"] == number
        assert "plr_episode" not in env.step(0)[4]
    env.close()


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
    assert env.reset()[1].keys() == PLR_KEYS | {"plr_episode"}
    assert env.step(0)[4] == {"plr_episode": 1}
    assert env.step(0)[4] == {}
    env.close()


def test_connects_at_the_first_reset_and_leaves_at_close(address: str) -> None:
    before = sessions(address)
    env = LevelReplay(LevelEnv(), address)
    assert sessions(address) == before
    env.reset()
    assert sessions(address) == before + 1
    env.close()
    eventually(lambda: sessions(address) == before, "its goodbye")


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


class Loader:
    """Something large that cannot be copied, shared by the envs of a process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def load(self, env: gym.Env, level: int) -> None:
        with self.lock:
            env.unwrapped.next_level = level


def test_what_set_level_holds_is_not_copied(address: str) -> None:
    gym.register("Loaded-v0", LevelEnv)
    loader = Loader()
    env = LevelReplay(gym.make("Loaded-v0", disable_env_checker=True), address, set_level=loader.load)
    assert env.spec is not None
    assert env.spec.additional_wrappers[-1].kwargs["set_level"].__self__ is loader
    rebuilt = gym.make(env.spec)
    observation, info = rebuilt.reset()
    assert observation[0] == info["plr_level"] in LEVELS
    rebuilt.close()
    del gym.registry["Loaded-v0"]


def test_a_picked_level_of_payloads_is_played_by_its_payload() -> None:
    given = []
    with launch(Config(levels="payloads", capacity=4)) as server, Trainer(server.address) as trainer:
        ids = trainer.insert([{"maze": n} for n in range(3)]).tolist()
        env = LevelReplay(LevelEnv(), server.address, set_level=lambda _, payload: given.append(payload))
        before = trainer.stats()["draws"]
        for level, maze in zip(ids, range(3), strict=True):
            _, info = env.reset(options={"level": level})
            assert (info["plr_level"], info["plr_scored"], given[-1]) == (level, False, {"maze": maze})
        assert trainer.stats()["draws"] == before
        with pytest.raises(LevelOutsideSpace, match=r"options\['level'\]: expected the id of a level whose"):
            env.reset(options={"level": max(ids) + 1})
        assert len(given) == 3
        env.close()


@pytest.mark.parametrize("wrap", [LevelReplay, lambda env, _: Autoreset(env)])
@pytest.mark.parametrize("between", [lambda env: env, gym.wrappers.OrderEnforcing])
def test_what_would_reset_behind_its_back_may_not_be_inside(address: str, wrap: Any, between: Any) -> None:
    inner = between(wrap(LevelEnv(), address))
    with pytest.raises(InvalidInput, match=r"^env: expected .* no LevelReplay inside, and Autoreset around it, got "):
        LevelReplay(inner, address)


def test_gymnasiums_check_env_fails_by_design(address: str) -> None:
    env = LevelReplay(gym.make("CartPole-v1"), address)
    with warnings.catch_warnings(), pytest.raises(AssertionError, match=r"[Dd]eterministic"):  # noqa: PT012
        warnings.simplefilter("ignore")
        for _ in range(20):  # two levels in a row may happen to be the same
            check_env(env, skip_render_check=True)
    env.close()


def test_a_server_that_is_not_there_is_waited_for_as_long_as_said(tmp_path: Path) -> None:
    env = LevelReplay(LevelEnv(), f"ipc://{tmp_path}/plr.sock", timeout_s=0.2)
    with pytest.raises(ServerUnreachable) as raised:
        env.reset()
    assert 0.2 <= raised.value.waited_s < 5.0
    with pytest.raises(InvalidInput, match="timeout_s"):
        LevelReplay(LevelEnv(), f"ipc://{tmp_path}/plr.sock", timeout_s=0.0)


@pytest.mark.parametrize("env", ["CartPole-v1", None, gym.make_vec("CartPole-v1", 2, vectorization_mode="sync")])
def test_a_single_env_is_wrapped(address: str, env: Any) -> None:
    with pytest.raises(InvalidInput, match=r"^env: expected a single env \(LevelReplayVector is for a vector env\), "):
        LevelReplay(env, address)


def test_what_sets_the_level_is_a_function(address: str) -> None:
    with pytest.raises(InvalidInput, match=r"^set_level: expected a function of the env and the level, got 3$"):
        LevelReplay(LevelEnv(), address, set_level=3)  # type: ignore[arg-type]


def test_an_address_must_be_one() -> None:
    with pytest.raises(InvalidInput, match="address: expected ipc://PATH or tcp://HOST:PORT"):
        LevelReplay(LevelEnv(), "localhost:5555")


def test_the_example_of_the_docstring_is_true() -> None:
    assert doctest.testmod(wrappers.env).failed == 0
    assert doctest.testmod(wrappers.env).attempted > 0

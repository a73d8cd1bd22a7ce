"""wrappers/away.py: envs that play on while a real server is away, and what they push when it is back."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from pathlib import Path

import faults
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from level_env import LevelEnv, told

from plr_client import InvalidInput, ServerUnreachable, Trainer
from plr_server import Config, launch
from wrappers import LevelReplay, LevelReplayVector
from wrappers.away import NUM_RECENT

LEVELS = range(40)
UNIFORM = "drawn uniformly and not scored"
N = 3
BRIEFLY_S = 0.05


def serve(bind, tmp_path: Path):
    return faults.daemon(bind, "--levels", "0:40", "--state-dir", str(tmp_path / "state"))


@contextlib.contextmanager
def served(bind, **config):
    """A server that is killed at the end."""
    with launch(Config(**config), bind) as server:
        yield server
        server.process.kill()
        server.process.wait()


def sources(envs):
    """Whatever asks a server on behalf of an env or a vector env."""
    inner = [env._levels for env in envs.env.envs] if isinstance(envs, LevelReplayVector) and envs._inside else []
    return [*inner, envs._levels if isinstance(envs, LevelReplay) else envs]


def wait_for_server(envs, timeout_s):
    """Lets all that is asked wait so long; a test keeps that short only while the server is gone."""
    for source in sources(envs):
        source._client._connection.timeout_s = timeout_s
        if isinstance(source, LevelReplayVector):
            source._trainer._connection.timeout_s = timeout_s


# ---- one env


def play_what_is_ready(env):
    while env.reset()[1]["plr_scored"]:
        pass


@pytest.mark.parametrize("prefetch", [0, 8])
def test_it_plays_on_while_the_server_is_away_and_is_back_with_it(ipc, tmp_path, prefetch):
    env = LevelReplay(LevelEnv(), ipc, prefetch=prefetch, when_away="uniform", timeout_s=faults.DEADLINE_S)
    with serve(ipc, tmp_path) as server:
        for _ in range(10):
            assert env.reset()[1]["plr_scored"]
        server.kill()
        wait_for_server(env, BRIEFLY_S)
        with pytest.warns(UserWarning, match=UNIFORM) as warned:
            play_what_is_ready(env)
        assert len(warned) == 1
        wait_for_server(env, 10 * faults.DEADLINE_S)  # which no reset takes any more
        played = Counter()
        for _ in range(400):
            observation, info = env.reset()
            assert observation[0] == info["plr_level"] == env.level
            assert (info["plr_scored"], env.scored, env.train, env.is_replay) == (False, False, True, False)
            played[env.level] += 1
    assert set(played) <= set(LEVELS)
    assert len(played) > 30
    assert max(played.values()) < 40  # 10 each, on average
    with serve(ipc, tmp_path), Trainer(ipc) as trainer:
        faults.eventually(lambda: env.reset()[1]["plr_scored"], "the server is asked again")
        assert trainer.stats()["draws"] >= 11
        assert env.reset()[1]["plr_scored"]
        env.close()


def test_the_seed_of_a_reset_seeds_what_is_drawn(ipc):
    def played(seed):
        env = LevelReplay(LevelEnv(), ipc, when_away="uniform", timeout_s=faults.DEADLINE_S)
        with served(ipc, levels=LEVELS):
            env.reset()
        wait_for_server(env, BRIEFLY_S)
        with pytest.warns(UserWarning, match=UNIFORM):
            return [env.reset(seed=seed)[1]["plr_level"], *(env.reset()[1]["plr_level"] for _ in range(20))]

    assert played(5) == played(5)


def test_it_raises_where_that_is_wished_and_where_no_level_is_known(ipc):
    for when_away, first in (("uniform", False), ("raise", True)):
        env = LevelReplay(LevelEnv(), ipc, when_away=when_away, timeout_s=faults.DEADLINE_S)
        if first:
            with served(ipc):
                env.reset()
        wait_for_server(env, BRIEFLY_S)
        for _ in range(2):
            with pytest.raises(ServerUnreachable):
                env.reset()


def test_of_an_unbounded_space_it_draws_fresh_seeds(ipc):
    env = LevelReplay(LevelEnv(), ipc, when_away="uniform", timeout_s=faults.DEADLINE_S)
    with served(ipc, levels="unbounded", capacity=10, replay_prob=0.5):
        env.reset()
    wait_for_server(env, BRIEFLY_S)
    with pytest.warns(UserWarning, match=UNIFORM):
        levels = {env.reset()[1]["plr_level"] for _ in range(50)}
    assert len(levels) == 50
    assert min(levels) >= 0
    assert 2**28 < max(levels) < 2**31


def test_of_payloads_it_draws_those_that_it_was_handed_of_late(ipc):
    given = []
    env = LevelReplay(
        LevelEnv(),
        ipc,
        set_level=lambda _, payload: given.append(payload),
        when_away="uniform",
        timeout_s=faults.DEADLINE_S,
    )
    with served(ipc, levels="payloads", capacity=1000, replay_prob=0.5), Trainer(ipc) as trainer:
        trainer.insert([{"maze": i} for i in range(600)])
        for _ in range(400):
            env.reset()
    kept = list(dict.fromkeys(payload["maze"] for payload in reversed(given)))[:NUM_RECENT]
    wait_for_server(env, BRIEFLY_S)
    with pytest.warns(UserWarning, match=UNIFORM):
        env.reset()
    del given[:]
    for _ in range(2000):
        env.reset()
    away = {payload["maze"] for payload in given}
    assert away <= set(kept)
    assert len(away) > 0.9 * len(kept)


def test_of_a_list_of_ids_it_draws_those_that_it_was_handed(ipc):
    env = LevelReplay(LevelEnv(), ipc, when_away="uniform", timeout_s=faults.DEADLINE_S)
    with served(ipc, levels=[3, 14, 15]):
        for _ in range(30):
            env.reset()
    wait_for_server(env, BRIEFLY_S)
    with pytest.warns(UserWarning, match=UNIFORM):
        assert {env.reset()[1]["plr_level"] for _ in range(60)} == {3, 14, 15}


@pytest.mark.parametrize("make", [lambda **kwargs: LevelReplay(LevelEnv(), "ipc:///x", **kwargs), None])
def test_another_way_is_refused(make):
    bare = SyncVectorEnv([LevelEnv])
    make = make or (lambda **kwargs: LevelReplayVector(bare, "ipc:///x", **kwargs))
    with pytest.raises(InvalidInput, match="when_away: expected one of raise, uniform, got 'wait'"):
        make(when_away="wait")
    bare.close()


# ---- many envs


def build(bind, mode, arrangement, prefetch):
    wished = {"when_away": "uniform", "timeout_s": faults.DEADLINE_S}

    def bare() -> gym.Env:
        return LevelEnv()

    def inside() -> gym.Env:
        return LevelReplay(LevelEnv(), bind, prefetch=prefetch, **wished)

    envs = SyncVectorEnv([bare if arrangement == "bare" else inside] * N, autoreset_mode=mode)
    return LevelReplayVector(envs, bind, prefetch=prefetch * (arrangement == "bare"), **wished)


class Play:
    """Steps a vector env with random actions, checks whose level each row is, and counts the rows to be scored."""

    def __init__(self, envs):
        self.envs, self.rows, self.steps = envs, 0, 0
        self.check(envs.reset()[0])

    def check(self, observations):
        level, _ = told(observations)
        assert (level == self.envs.levels).all()
        assert set(level.tolist()) <= set(LEVELS)

    def step(self):
        envs = self.envs
        scored = envs.scored
        observations, _, terminations, truncations, _ = envs.step(np.zeros(N, dtype=np.int64))
        self.rows += int((envs.valid & scored).sum())
        self.steps += 1
        done = terminations | truncations
        if envs.metadata["autoreset_mode"] is AutoresetMode.DISABLED and done.any():
            observations, _ = envs.reset(options={"reset_mask": done})
        self.check(observations)

    def push(self):
        scored = self.envs.push(np.zeros((self.steps, N)), np.zeros(N))
        rows, self.rows, self.steps = self.rows, 0, 0
        return scored, rows

    def play_on(self, num):
        for _ in range(num):
            self.step()

    def play_until_away(self):
        while self.envs.scored.any():
            self.step()
        self.play_on(20)
        assert self.push()[0] == 0
        assert not self.envs.scored.any()


def test_rows_played_while_the_server_is_away_are_never_scored(ipc, tmp_path):
    """In all modes and arrangements, with levels ahead and without."""
    with serve(ipc, tmp_path) as server:
        plays = [Play(build(ipc, *how)) for how in itertools.product(AutoresetMode, ("bare", "inside"), (0, 4))]
        pushed = 0
        for play in plays:
            play.play_on(20)
            scored, rows = play.push()
            assert scored > 0
            assert rows > N
            pushed += rows
        server.kill()
    for play in plays:
        wait_for_server(play.envs, BRIEFLY_S)
        with pytest.warns(UserWarning, match=UNIFORM):
            play.play_until_away()
        wait_for_server(play.envs, 10 * faults.DEADLINE_S)
        for _ in range(5):  # no reset and no push waits for the server
            play.play_on(20)
            assert play.push() == (0, 0)
    with serve(ipc, tmp_path), Trainer(ipc) as trainer:
        for play in plays:
            envs = play.envs
            faults.eventually(lambda: play.step() or envs.scored.all(), "the server is asked again")  # noqa: B023
            faults.eventually(lambda: not envs._fallback.is_away(), "it is seen to be back")  # noqa: B023
            play.play_on(20)
            scored, rows = play.push()
            assert scored > 0
            pushed += rows
            envs.close()
        assert trainer.stats()["steps"] == pushed

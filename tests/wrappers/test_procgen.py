"""wrappers/procgen.py against real Procgen: fresh envs made for one level, and what the engine says it plays."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics

from plr_client import InvalidInput, MissingDependency, Trainer
from plr_server import Config, launch
from wrappers import LevelReplayVector
from wrappers.procgen import ProcgenVector, _import_procgen, _made_engine

try:
    GAMES = _import_procgen().ENV_NAMES
except MissingDependency as missing:
    pytest.skip(str(missing), allow_module_level=True)

LEVELS = [0, 7, 123_456, 2**31 - 2]
MORE_MODES = [("dodgeball", "extreme"), ("dodgeball", "memory"), ("maze", "memory"), ("starpilot", "hard")]


class Fresh:
    """Plain Procgen, made anew for one episode of one level."""

    def __init__(self, game: str, mode: str, level: int) -> None:
        self._env = _made_engine(
            num=1,
            env_name=game,
            distribution_mode=mode,
            num_threads=0,
            start_level=level,
            num_levels=1,
            rand_seed=level % 1000,
        )

    def step(self, action: int) -> tuple[Any, float, bool]:
        self._env.act(np.array([action]))
        rewards, _, firsts = self._env.observe()
        return self.frame(), float(rewards[0]), bool(firsts[0])

    def frame(self) -> Any:
        return self._env.observe()[1]["rgb"][0]


def assert_equals_fresh_envs(envs: ProcgenVector, game: str, mode: str, steps: int, rng: np.random.Generator) -> int:
    """Plays levels beside fresh envs, reset at every end and now and then in mid-episode; returns how many times."""
    levels: list[int | None] = rng.choice(LEVELS, envs.num_envs).tolist()
    observations, _ = envs.reset(seed=levels)
    fresh = [Fresh(game, mode, level) for level in levels if level is not None]
    resets = 0
    for _ in range(steps):
        for env, frame in zip(fresh, observations, strict=True):
            np.testing.assert_array_equal(env.frame(), frame)
        actions = rng.integers(15, size=envs.num_envs)
        observations, rewards, dones, _, _ = envs.step(actions)
        expected = [env.step(action) for env, action in zip(fresh, actions, strict=True)]
        assert [reward for _, reward, _ in expected] == rewards.tolist()
        assert [done for _, _, done in expected] == dones.tolist()
        mask = dones | (rng.random(envs.num_envs) < 0.01)
        if mask.any():
            resets += int(mask.sum())
            seeds: list[int | None] = [None] * envs.num_envs
            for i in np.flatnonzero(mask):
                seeds[i] = int(rng.choice(LEVELS))
                fresh[i] = Fresh(game, mode, seeds[i])
            observations, _ = envs.reset(seed=seeds, options={"reset_mask": mask})
    return resets


@pytest.fixture
def coinrun() -> Iterator[ProcgenVector]:
    envs = ProcgenVector("coinrun", 4)
    yield envs
    envs.close()


@pytest.mark.parametrize(("game", "mode"), [(game, "easy") for game in GAMES] + MORE_MODES)
def test_an_assigned_level_equals_a_fresh_env_bit_for_bit(game, mode):
    rng = np.random.default_rng(1)
    envs = ProcgenVector(game, 3, distribution_mode=mode)
    for _ in range(60):  # levels of its own first, that could leave something behind
        envs.step(rng.integers(15, size=3))
    assert_equals_fresh_envs(envs, game, mode, 250, rng)
    envs.close()


def test_dodgeball_carries_nothing_over_from_the_levels_before():
    envs = ProcgenVector("dodgeball", 8, cache_bytes=0)  # every state made anew, after whatever was played
    assert assert_equals_fresh_envs(envs, "dodgeball", "easy", 1500, np.random.default_rng(2)) > 150
    envs.close()


def test_in_miner_the_first_step_finds_the_exit_as_open_as_in_a_fresh_env():
    envs = ProcgenVector("miner", 4)
    moves = np.array([1, 3, 5, 7])  # left, down, up, right
    won = 0
    for level in range(40):
        envs.reset(seed=[level] * 4)
        _, rewards, *_ = envs.step(moves)
        assert rewards.tolist() == [Fresh("miner", "easy", level).step(move)[1] for move in moves]
        won += int((rewards == 10).sum())
    assert won > 0
    envs.close()


@pytest.mark.parametrize("game", ["coinrun", "bigfish"])
def test_64_envs_equal_fresh_envs(game):
    envs = ProcgenVector(game, 64)
    assert_equals_fresh_envs(envs, game, "easy", 250, np.random.default_rng(3))
    envs.close()


@pytest.mark.parametrize("game", ["coinrun", "dodgeball"])
def test_a_masked_reset_leaves_the_other_envs_untouched(game):
    rng = np.random.default_rng(4)
    undisturbed, disturbed = ProcgenVector(game, 6, num_threads=0), ProcgenVector(game, 6)
    left_alone = np.array([True, False, True, True, False, True])
    undisturbed.reset(seed=100)
    observations, _ = disturbed.reset(seed=100)
    for step in range(400):
        if step % 7 == 0:  # in mid-episode
            again, infos = disturbed.reset(seed=[step] * 6, options={"reset_mask": ~left_alone})
            np.testing.assert_array_equal(again[left_alone], observations[left_alone])
            assert (infos["level_seed"][~left_alone] == step).all()
        actions = rng.integers(15, size=6)
        expected = undisturbed.step(actions)
        observations, *rest, infos = disturbed.step(actions)
        for one, other in zip(expected[:4], [observations, *rest], strict=True):
            np.testing.assert_array_equal(one[left_alone], other[left_alone])
        for key, value in expected[4].items():
            np.testing.assert_array_equal(value[left_alone], infos[key][left_alone])
    undisturbed.close()
    disturbed.close()


def test_the_engine_reports_the_levels_asked_for():
    rng = np.random.default_rng(5)
    envs = ProcgenVector("bigfish", 16)
    asked = rng.integers(2**31 - 1, size=16)
    _, infos = envs.reset(seed=asked.tolist())
    assert "prev_level_seed" not in infos
    ends = 0
    for _ in range(2000):
        np.testing.assert_array_equal(infos["level_seed"], asked)
        _, _, dones, truncations, infos = envs.step(rng.integers(15, size=16))
        np.testing.assert_array_equal(infos["prev_level_seed"], asked)
        assert not truncations.any()
        if dones.any():
            ends += int(dones.sum())
            stepped = infos
            asked = np.where(dones, rng.integers(2**31 - 1, size=16), asked)
            _, infos = envs.reset(seed=asked.tolist(), options={"reset_mask": dones})
            np.testing.assert_array_equal(infos["prev_level_seed"], stepped["prev_level_seed"])
            np.testing.assert_array_equal(infos["prev_level_complete"], stepped["prev_level_complete"])
    assert ends > 100
    envs.close()


def test_under_a_real_server_every_row_is_credited_to_the_level_it_was_played_in():
    # Each row's value is made from the level that the engine says the row was played in, so that its TD error is that
    # level + 1: a level's score is exact only if no row of another level ever entered it.
    block, num_envs, rng = 250, 64, np.random.default_rng(6)
    config = Config(levels=range(200), strategy="one_step_td_error", gamma=0.0, replay_prob=0.5, temperature=1.0)
    with launch(config) as server, Trainer(server.address) as trainer:
        envs = LevelReplayVector(ProcgenVector("bigfish", num_envs), server.address)
        _, infos = envs.reset()
        ends = 0
        for _ in range(40):
            values = np.zeros((block, num_envs))
            for t in range(block):
                np.testing.assert_array_equal(envs.levels, infos["level_seed"])
                levels_before = envs.levels
                _, rewards, dones, _, infos = envs.step(rng.integers(15, size=num_envs))
                np.testing.assert_array_equal(levels_before, infos["prev_level_seed"])
                assert envs.valid.all()
                values[t] = rewards + infos["prev_level_seed"] + 1
                ends += int(dones.sum())
            envs.push(values, np.zeros(num_envs))
        ids, scores, _, seen = trainer.scores()
        envs.close()
    assert ends > 2000
    assert seen.all()
    np.testing.assert_allclose(scores, ids + 1, rtol=1e-6)


def test_without_a_reset_the_env_goes_on_to_a_level_of_its_own(coinrun):
    def play() -> list[tuple[int, int]]:
        """Returns the (env, level) of each episode that began by itself."""
        coinrun.reset(seed=[3, 3, 40, 50])
        rng = np.random.default_rng(7)
        begun = []
        for _ in range(1500):
            observations, _, dones, _, infos = coinrun.step(rng.integers(15, size=4))
            for i in np.flatnonzero(dones):
                level = int(infos["level_seed"][i])
                np.testing.assert_array_equal(observations[i], Fresh("coinrun", "easy", level).frame())
                begun.append((int(i), level))
        return begun

    begun = play()
    assert begun == play()
    first_of = dict(reversed(begun))
    assert first_of.keys() == {0, 1, 2, 3}
    assert first_of[0] == first_of[1]  # as from equal seeds in Gymnasium
    assert len(set(first_of.values())) == 3
    assert max(level for _, level in begun) > 10**6  # from all levels, not from those asked for


def test_a_masked_reset_leaves_the_env_its_own_draws():
    envs = ProcgenVector("bigfish", 4)
    envs.reset(seed=10)
    mask = np.array([True, True, True, False])
    envs.reset(seed=[7] * 4, options={"reset_mask": mask})
    drawn: list[set[int]] = [set() for _ in range(4)]
    for _ in range(400):
        _, _, dones, _, infos = envs.step(np.full(4, 4))
        for i in np.flatnonzero(dones):
            drawn[i].add(int(infos["level_seed"][i]))
    assert len(set.union(*drawn)) == sum(map(len, drawn)) >= 4
    assert all(drawn)
    envs.close()


def test_an_int_seed_is_counted_up_and_seeds_what_is_drawn(coinrun):
    _, infos = coinrun.reset(seed=20)
    assert infos["level_seed"].tolist() == [20, 21, 22, 23]
    _, drawn = coinrun.reset()
    coinrun.reset(seed=np.int64(20))
    _, again = coinrun.reset(seed=[None] * 4)
    assert len(set(drawn["level_seed"].tolist())) == 4
    np.testing.assert_array_equal(drawn["level_seed"], again["level_seed"])
    mask = np.array([False, True, False, True])
    _, infos = coinrun.reset(seed=np.array([1, 2, 3, 4]), options={"reset_mask": mask})
    assert infos["level_seed"].tolist() == [again["level_seed"][0], 2, again["level_seed"][2], 4]
    _, infos = coinrun.reset(seed=2**31 - 5)
    assert infos["level_seed"][3] == 2**31 - 2


def test_what_is_returned_is_never_overwritten(coinrun):
    rng = np.random.default_rng(8)
    kept = [coinrun.reset(seed=0)]
    for step in range(30):
        kept.append(coinrun.step(rng.integers(15, size=4)))
        kept.append(coinrun.reset(seed=step, options={"reset_mask": np.array([True, False, False, False])}))
    copies = [[{**part} if isinstance(part, dict) else part.copy() for part in one] for one in kept]
    for one in copies:
        one[-1].update({key: value.copy() for key, value in one[-1].items()})
    for _ in range(30):
        coinrun.step(rng.integers(15, size=4))
    coinrun.reset(seed=99)
    for one, copy in zip(kept, copies, strict=True):
        np.testing.assert_equal(list(one), copy)


def test_what_is_returned_may_be_written_to(coinrun):
    coinrun.reset(seed=5)
    for part in coinrun.step(np.zeros(4, np.int64)):
        for array in part.values() if isinstance(part, dict) else [part]:
            array[...] = 0
    _, infos = coinrun.reset(seed=50, options={"reset_mask": np.array([True, False, False, False])})
    assert infos["level_seed"].tolist() == [50, 6, 7, 8]
    assert infos["prev_level_seed"].tolist() == [5, 6, 7, 8]
    assert infos["_level_seed"].all()
    assert infos["_prev_level_seed"].all()


def test_the_cache_holds_no_more_than_its_bytes():
    tight, roomy = ProcgenVector("coinrun", 2, cache_bytes=100_000), ProcgenVector("coinrun", 2)
    for other in range(1, 8):
        seed = [0, other]
        np.testing.assert_array_equal(tight.reset(seed=seed)[0], roomy.reset(seed=seed)[0])
        assert sum(map(len, tight._first_states._states.values())) == tight._first_states._held_bytes <= 100_000
        if other > 1:  # what was used last; three of 31 KB fit
            assert list(tight._first_states._states) == [other - 1, 0, other]
    assert len(roomy._first_states._states) == 8
    nothing = ProcgenVector("coinrun", 2, cache_bytes=0)
    np.testing.assert_array_equal(nothing.reset(seed=3)[0], roomy.reset(seed=3)[0])
    for envs in (tight, roomy, nothing):
        envs.close()


def test_it_is_a_gymnasium_vector_env(coinrun):
    assert coinrun.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    wrapped = DictInfoToList(RecordEpisodeStatistics(coinrun))
    observations, infos = wrapped.reset(seed=1)
    assert observations in wrapped.observation_space
    assert [info["level_seed"] for info in infos] == [1, 2, 3, 4]
    wrapped.action_space.seed(0)
    observations, rewards, terminations, truncations, infos = wrapped.step(wrapped.action_space.sample())
    assert observations in wrapped.observation_space
    assert rewards.dtype == np.float64
    assert terminations.dtype == truncations.dtype == np.bool_
    assert [info["prev_level_seed"] for info in infos] == [1, 2, 3, 4]


def test_a_solved_level_is_told():
    envs = ProcgenVector("coinrun", 16)
    envs.reset(seed=0)
    right_jump = np.full(16, 8)
    solved = 0
    for _ in range(300):
        _, rewards, terminations, _, infos = envs.step(right_jump)
        complete = infos["prev_level_complete"]
        np.testing.assert_array_equal(complete, rewards == 10)  # the coin, which is at the level's end
        assert terminations[complete].all()
        solved += int(complete.sum())
    assert solved > 3
    envs.close()


@pytest.mark.parametrize(
    ("kwargs", "field"),
    [
        ({"env_name": "pong"}, "env_name"),
        ({"distribution_mode": "extreme"}, "distribution_mode"),
        ({"distribution_mode": "exploration"}, "distribution_mode"),
        ({"num_envs": 0}, "num_envs"),
        ({"num_threads": -1}, "num_threads"),
        ({"cache_bytes": -1}, "cache_bytes"),
    ],
)
def test_bad_settings_are_refused(kwargs, field):
    with pytest.raises(InvalidInput, match=f"^{field}: expected ") as raised:
        ProcgenVector(**{"env_name": "coinrun", "num_envs": 2, **kwargs})
    assert raised.value.field == field


@pytest.mark.parametrize(
    ("seed", "field"),
    [
        ([1, 2, 3], "seed"),
        ("1234", r"seed\[0\]"),
        (1.5, "seed"),
        (-1, "seed"),
        (2**31 - 4, "seed"),
        ([0, 1, -1, 2], r"seed\[2\]"),
        ([0, 1, 2, 2**31 - 1], r"seed\[3\]"),
        ([0, 1.0, 2, 3], r"seed\[1\]"),
        (np.array([0.0, 1.0, 2.0, 3.0]), r"seed\[0\]"),
    ],
)
def test_a_bad_seed_is_refused_and_nothing_is_reset(coinrun, seed, field):
    before, infos = coinrun.reset(seed=50)
    with pytest.raises(InvalidInput, match=f"^{field}: expected "):
        coinrun.reset(seed=seed)
    after, still = coinrun.reset(seed=[50] * 4, options={"reset_mask": np.array([True, False, False, False])})
    np.testing.assert_array_equal(after, before)
    np.testing.assert_equal(still, infos)


@pytest.mark.parametrize(
    "mask", [[True] * 4, np.zeros(4, np.bool_), np.ones(3, np.bool_), np.ones((4, 1), np.bool_), np.ones(4, np.int64)]
)
def test_a_bad_mask_is_refused(coinrun, mask):
    with pytest.raises(InvalidInput, match=r"^options\['reset_mask'\]: expected a bool array of shape \(4,\)"):
        coinrun.reset(seed=0, options={"reset_mask": mask})


@pytest.mark.parametrize(
    "actions", [[0, 1, 2], [[0], [1], [2], [3]], [0.0, 1.0, 2.0, 3.0], [0, 0, 0, -1], [0, 0, 0, 15], 3]
)
def test_bad_actions_are_refused_and_no_step_is_taken(coinrun, actions):
    before, _ = coinrun.reset(seed=0)
    with pytest.raises(InvalidInput, match=r"^actions: expected "):
        coinrun.step(actions)
    after, _ = coinrun.reset(seed=[0] * 4, options={"reset_mask": np.array([True, False, False, False])})
    np.testing.assert_array_equal(after, before)


def test_the_options_of_the_caller_are_not_changed(coinrun):
    options = {"reset_mask": np.ones(4, np.bool_), "of another wrapper": 1}
    coinrun.reset(seed=0, options=options)
    assert options.keys() == {"reset_mask", "of another wrapper"}


def test_closing_twice_is_harmless(coinrun):
    coinrun.close()
    coinrun.close()


def test_an_engine_collected_while_cffi_is_locked_does_not_wait_for_itself():
    envs = ProcgenVector("coinrun", 2)
    with envs._engine._ffi._lock:
        closing = threading.Thread(target=envs.close, daemon=True)
        closing.start()
        closing.join(20)
        assert not closing.is_alive()


def test_without_procgen_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "procgen", None)
    with pytest.raises(MissingDependency, match=r"procgen-mirror.*pip install 'plr-server\[procgen\]'"):
        ProcgenVector("coinrun", 2)

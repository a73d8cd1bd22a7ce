"""wrappers/vector.py against a real server, and against envs whose observations and rewards tell the truth."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from faults import eventually
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from level_env import (
    NOT_ASSIGNED,
    VALUE_DISCOUNT,
    LevelEnv,
    NativeLevelEnvs,
    episode_of,
    reward_of,
    td_error_of,
    told,
    value_of,
)
from numpy.typing import NDArray

from plr_client import InvalidInput, LevelClient, LevelOutsideSpace, MissingField, ServerUnreachable, Trainer
from plr_server import Config, launch
from wrappers import LevelReplay, LevelReplayVector
from wrappers import vector as module

# Python 3.12 and newer warn of every fork in a process with threads, and numpy has threads.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

LEVELS = range(200)
CONFIG = Config(levels=LEVELS, strategy="one_step_td_error", gamma=VALUE_DISCOUNT, partial="stitch", replay_prob=0.4)
N = 8
BLOCKS = (64, 1, 300, 128, 787)  # steps between pushes; the recording grows at 256 and 512
FEW_BLOCKS = (64, 1, 235)
NEXT_STEP, SAME_STEP, DISABLED = AutoresetMode
TRUNCATED = next(level for level in LEVELS if episode_of(level) == (2, True))
LONG = next(level for level in LEVELS if episode_of(level)[0] == 9)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with launch(CONFIG) as server:
        yield server.address


def sync_envs(make: list[Callable[[], gym.Env]], mode: AutoresetMode, **kwargs: Any) -> VectorEnv:
    return SyncVectorEnv(make, autoreset_mode=mode, **kwargs)


def async_envs(make: list[Callable[[], gym.Env]], mode: AutoresetMode, **kwargs: Any) -> VectorEnv:
    return AsyncVectorEnv(make, autoreset_mode=mode, context="fork", **kwargs)


def pipe_envs(make: list[Callable[[], gym.Env]], mode: AutoresetMode, **kwargs: Any) -> VectorEnv:
    return async_envs(make, mode, shared_memory=False, **kwargs)


def build(
    address: str, kind: Any, mode: AutoresetMode, arrangement: str, n: int = N, prefetch: int = 0, **env_kwargs: Any
) -> LevelReplayVector:
    """Returns n wrapped LevelEnvs; the arrangement is "inside" (LevelReplay in each sub-env) or "bare"."""

    def bare() -> gym.Env:
        return LevelEnv(**env_kwargs)

    def inside() -> gym.Env:
        return LevelReplay(LevelEnv(**env_kwargs), address, prefetch=prefetch)

    return LevelReplayVector(
        kind([bare if arrangement == "bare" else inside] * n, mode),
        address,
        prefetch=prefetch * (arrangement == "bare"),
    )


def native(address: str, mode: AutoresetMode, n: int = N) -> LevelReplayVector:
    return LevelReplayVector(NativeLevelEnvs(n, mode), address)


class Drive:
    """Plays a vector env, checks every row against what the row itself tells, and keeps what a trainer would."""

    def __init__(self, envs: LevelReplayVector) -> None:
        self.envs = envs
        self.mode = envs.metadata["autoreset_mode"]
        self.values: list[NDArray[np.float64]] = []
        self.final_values: list[NDArray[np.float64]] = []
        self.real_rows = 0
        self.dummy_rows = 0
        self.finished: set[int] = set()
        self.begin(envs.reset()[0])

    def begin(self, observations: Any) -> None:
        self.level, self.step_index = told(observations)
        assert (self.level == self.envs.levels).all()

    @property
    def value(self) -> NDArray[np.float64]:
        return np.asarray(value_of(self.level, self.step_index), np.float64)

    def step(self) -> NDArray[np.bool_]:
        """Steps once; in DISABLED also resets what is done. Returns the dones."""
        envs, level, levels = self.envs, self.level, self.envs.levels
        assert (levels == level).all()
        self.values.append(self.value)
        expected = reward_of(level, self.step_index)
        observations, rewards, terminations, truncations, infos = envs.step(np.zeros(envs.num_envs, np.int64))
        real = rewards != 0  # only a step that is taken pays
        dones = terminations | truncations
        assert (levels == level).all(), "an array that was handed out was written to"
        assert (rewards[real] == expected[real]).all(), "rows credited to a wrong level"
        assert (envs.valid == real).all(), "dummy rows valid, or real rows lost"
        assert not dones[~real].any()
        self.real_rows += int(real.sum())
        self.dummy_rows += int((~real).sum())
        self.finished |= set(level[dones].tolist())
        final_value = np.full(envs.num_envs, np.nan)  # to be read nowhere but at the truncated rows
        if self.mode is SAME_STEP and dones.any():
            for n in np.flatnonzero(dones):
                assert infos["_final_obs"][n]
                final = infos["final_obs"][n]
                final = final["pair"][0] if isinstance(final, dict) else final
                assert final[0] == level[n], "the final observation is not the terminal one"
                assert infos["final_info"]["level"][n] == level[n]
                final_value[n] = value_of(final[0], final[1])
        if self.mode is not SAME_STEP and dones.any():
            assert (told(observations)[0][dones] == level[dones]).all()
            final_value[dones] = value_of(*told(observations))[dones]
        self.final_values.append(final_value)
        begun = told(observations)[1] == 0
        if self.mode is not DISABLED:
            assert (infos["level"] == told(observations)[0]).all()
            assert (infos.get("_begin", np.zeros_like(begun)) == begun).all()
            assert (infos.get("_step", np.zeros_like(begun)) == ~begun).all()
            if begun.any():
                assert (infos["begin"]["of"][begun] == told(observations)[0][begun]).all()
                assert (infos["begin"]["_of"] == begun).all()
            if "own_choice" in infos:  # of the autoreset, before the assigned level took its place
                own = infos["own_choice"]
                assert not (infos["_own_choice"] | own["level"] | own["_level"]).any()
        elif dones.any():
            observations, _ = envs.reset(options={"reset_mask": dones})
        self.begin(observations)
        return dones

    def push(self, *, final: bool) -> None:
        final_values = np.stack(self.final_values) if final else None
        self.envs.push(np.stack(self.values), self.value, final_values=final_values)
        self.values, self.final_values = [], []


class RewardsTenfold(VectorWrapper):
    """Stands for NormalizeReward: what is learnt from is not what the env paid."""

    def step(self, actions: Any) -> Any:
        observations, rewards, *rest = self.env.step(actions)
        return observations, 10 * rewards, *rest


def scores_of(address: str) -> dict[int, float]:
    with Trainer(address) as trainer:
        ids, scores, _, seen = trainer.scores()
    return dict(zip(ids[seen].tolist(), scores[seen].tolist(), strict=True))


KINDS = {"sync": sync_envs, "async": async_envs, "pipe": pipe_envs}


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize(
    ("kind", "arrangement", "prefetch", "blocks"),
    [
        *((kind, arrangement, 0, BLOCKS) for kind in ("sync", "async") for arrangement in ("inside", "bare")),
        ("native", "bare", 0, BLOCKS),
        ("pipe", "inside", 0, FEW_BLOCKS),
        ("pipe", "bare", 0, FEW_BLOCKS),
        ("async", "inside", 3, FEW_BLOCKS),
        ("sync", "bare", 5, FEW_BLOCKS),
    ],
)
def test_every_row_is_credited_to_its_level_and_none_is_lost(
    mode: AutoresetMode, kind: str, arrangement: str, prefetch: int, blocks: tuple[int, ...]
) -> None:
    with launch(CONFIG) as server:
        address = server.address
        envs = (
            native(address, mode)
            if kind == "native"
            else build(address, KINDS[kind], mode, arrangement, prefetch=prefetch)
        )
        assert envs.metadata["autoreset_mode"] is mode
        drive = Drive(envs)
        for block in blocks:
            for _ in range(block):
                drive.step()
            drive.push(final=mode is not NEXT_STEP)
        taken = envs.env.steps_taken() if kind == "native" else sum(envs.env.call("get_wrapper_attr", "steps_taken"))
        assert drive.real_rows == taken
        assert drive.real_rows + drive.dummy_rows == sum(blocks) * N >= (10_000 if blocks is BLOCKS else 2_400)
        assert (drive.dummy_rows > 0) == (mode is NEXT_STEP)
        assert any(episode_of(level)[0] == 1 for level in drive.finished)
        # What the server was really pushed: only whole episodes, each step in its place, give these scores.
        scores = scores_of(address)
        assert scores.keys() == drive.finished
        assert len(scores) > 50
        assert scores == pytest.approx({level: td_error_of(level, bootstraps=True) for level in scores}, rel=1e-6)
        envs.close()


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("block", [1, 2, 5])
def test_an_episode_cut_right_after_a_push_is_not_taken_for_the_one_before(block: int, masked: bool) -> None:
    config = Config(levels=[LONG], strategy="one_step_td_error", gamma=VALUE_DISCOUNT, partial="stitch")
    with launch(config) as server:
        envs = build(server.address, sync_envs, DISABLED, "bare", n=3)
        drive = Drive(envs)
        for steps in (block, 9):  # the second episode is whole, and must be scored as such
            for _ in range(steps):
                drive.step()
            drive.push(final=True)
            if steps == block:
                assert scores_of(server.address) == {}
                mask = np.array([True, True, True])
                drive.begin(envs.reset(options={"reset_mask": mask} if masked else None)[0])
        assert scores_of(server.address) == pytest.approx({LONG: td_error_of(LONG, bootstraps=True)}, rel=1e-6)
        envs.close()


def test_prefetch_beside_level_replay_inside_is_refused(address: str) -> None:
    envs = sync_envs([lambda: LevelReplay(LevelEnv(), address, prefetch=2)] * 2, NEXT_STEP)
    with pytest.raises(InvalidInput, match=r"^prefetch: expected 0, because every LevelReplay asks for itself"):
        LevelReplayVector(envs, address, prefetch=2)
    envs.close()


@pytest.mark.parametrize("mode", [SAME_STEP, DISABLED])
def test_without_final_values_a_time_limit_is_an_end(mode: AutoresetMode) -> None:
    with launch(CONFIG) as server:
        envs = build(server.address, sync_envs, mode, "bare")
        drive = Drive(envs)
        for _ in range(200):
            drive.step()
        drive.push(final=False)
        scores = scores_of(server.address)
        envs.close()
    assert scores == pytest.approx({level: td_error_of(level, bootstraps=False) for level in scores}, rel=1e-6)
    assert any(episode_of(level)[1] for level in scores)


@pytest.mark.parametrize("arrangement", ["inside", "bare"])
@pytest.mark.parametrize("kind", [sync_envs, async_envs, pipe_envs])
@pytest.mark.parametrize("mode", AutoresetMode)
def test_nested_observations(address: str, mode: AutoresetMode, kind: Any, arrangement: str) -> None:
    envs = build(address, kind, mode, arrangement, n=3, nested=True)
    drive = Drive(envs)
    for _ in range(60):
        drive.step()
    assert len(drive.finished) > 3
    envs.close()


@pytest.mark.parametrize("arrangement", ["inside", "bare"])
def test_spawned_workers(address: str, arrangement: str) -> None:
    def kind(make: Any, mode: AutoresetMode) -> VectorEnv:
        return AsyncVectorEnv(make, context="spawn", autoreset_mode=mode)

    envs = build(address, kind, NEXT_STEP, arrangement, n=2)
    drive = Drive(envs)
    for _ in range(40):
        drive.step()
    assert len(drive.finished) > 2
    envs.close()


@pytest.mark.parametrize("arrangement", ["inside", "bare"])
def test_sessions_are_those_that_play_and_push_and_end_with_close(address: str, arrangement: str) -> None:
    with Trainer(address) as trainer:
        before = trainer.stats()["sessions"]
        envs = build(address, async_envs, NEXT_STEP, arrangement, n=3)
        assert trainer.stats()["sessions"] == before  # AsyncVectorEnv made one env too many, here
        drive = Drive(envs)
        playing = 3 if arrangement == "inside" else 1
        assert trainer.stats()["sessions"] == before + playing
        drive.step()
        drive.push(final=False)
        assert trainer.stats()["sessions"] == before + playing + 1
        envs.close()
        envs.close()
        eventually(lambda: trainer.stats()["sessions"] == before, "their goodbyes")


@pytest.mark.parametrize("arrangement", ["inside", "bare"])
def test_a_seed_never_picks_levels(address: str, arrangement: str) -> None:
    envs = build(address, sync_envs, NEXT_STEP, arrangement)
    played = set()
    for seed in (10_000, 10_000, list(range(10_000, 10_000 + N))):
        observations, _ = envs.reset(seed=seed)
        assert (told(observations)[0] == envs.levels).all()
        played |= set(envs.levels.tolist())
    envs.close()
    assert played <= set(LEVELS)
    assert len(played) > N


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("arrangement", ["inside", "bare"])
def test_option_level_is_played_outside_the_curriculum_and_not_scored(arrangement: str, mode: AutoresetMode) -> None:
    outside = NOT_ASSIGNED - 1  # in no level space
    with launch(CONFIG) as server:
        envs = build(server.address, sync_envs, mode, arrangement)
        drive = Drive(envs)
        options = {"level": outside, "colour": "red"}
        observations, _ = envs.reset(seed=1, options=options)
        assert options == {"level": outside, "colour": "red"}
        drive.begin(observations)
        assert (envs.levels == outside).all()
        assert not envs.scored.any()
        assert envs.train_mask.all()
        assert not envs.is_replay.any()
        for _ in range(40):  # after that episode, autoreset and masked resets go back to the curriculum
            drive.step()
        assert envs.scored.all()
        drive.push(final=mode is not NEXT_STEP)
        scores = scores_of(server.address)
        assert scores.keys() == drive.finished - {outside}
        assert scores == pytest.approx({level: td_error_of(level, bootstraps=True) for level in scores}, rel=1e-6)
        envs.close()


def test_bare_envs_take_a_level_each(address: str) -> None:
    envs = build(address, sync_envs, DISABLED, "bare")
    drive = Drive(envs)
    levels = np.arange(5_000, 5_000 + N)
    mask = np.arange(N) % 3 == 0
    kept = envs.levels
    options = {"level": levels, "reset_mask": mask}
    drive.begin(envs.reset(options=options)[0])
    assert options.keys() == {"level", "reset_mask"}
    assert (envs.levels == np.where(mask, levels, kept)).all()
    assert (envs.scored == ~mask).all()
    drive.begin(envs.reset(options={"level": levels.tolist()})[0])
    assert (envs.levels == levels).all()
    with pytest.raises(InvalidInput, match=rf"options\['level'\]: expected an int or {N} ints, got \[1, 2\]"):
        envs.reset(options={"level": [1, 2]})
    envs.close()


@pytest.mark.parametrize("arrangement", ["inside", "bare"])
def test_bad_options_reach_neither_the_server_nor_the_workers(address: str, arrangement: str) -> None:
    envs = build(address, async_envs, DISABLED, arrangement, n=2)
    drive = Drive(envs)
    with pytest.raises(InvalidInput, match=r"options\['level'\]: expected a level's id, an int, got 'seven'"):
        envs.reset(options={"level": "seven"})
    for mask in ([True, False], np.array([1, 0]), np.array([True]), np.array([False, False])):
        with pytest.raises(
            InvalidInput, match=r"options\['reset_mask'\]: expected a bool array of shape \(2,\) with a"
        ):
            envs.reset(options={"reset_mask": mask})
    drive.step()  # both workers are alive, and play what they played
    envs.close()


@pytest.mark.filterwarnings("ignore::UserWarning")  # gymnasium warns with the worker's traceback
def test_an_error_inside_a_worker_keeps_its_type(address: str) -> None:
    envs = build(address, async_envs, NEXT_STEP, "inside", n=1)
    with pytest.raises(InvalidInput, match=r"options\['level'\]: expected a level's id, an int, got 'seven'") as raised:
        envs.env.reset(options={"level": "seven"})
    assert raised.value.field == "options['level']"
    envs.env.close(terminate=True)


@pytest.mark.parametrize("arrangement", ["inside", "bare"])
@pytest.mark.parametrize("kind", [sync_envs, async_envs, pipe_envs])
def test_a_full_reset_right_after_an_end(address: str, kind: Any, arrangement: str) -> None:
    envs = build(address, kind, NEXT_STEP, arrangement)
    drive = Drive(envs)
    for _ in range(10):
        while not (dones := drive.step()).any():
            pass
        drive.begin(envs.reset()[0])
        assert not envs.valid.any()
        drive.values, drive.final_values = [], []
        drive.step()
        again = dones if kind is pipe_envs else np.zeros(N, bool)  # gymnasium resets those once more
        assert (envs.valid == ~again).all()
    drive.push(final=False)  # one step: the full reset dropped what came before
    envs.close()


@pytest.mark.parametrize("arrangement", ["inside", "bare"])
def test_steps_of_a_finished_env_are_not_valid(address: str, arrangement: str) -> None:
    envs = build(address, async_envs, DISABLED, arrangement, n=3)
    envs.reset()
    finished = np.zeros(3, bool)
    for _ in range(12):  # every episode is over after 9
        levels = envs.levels
        _, _, terminations, truncations, _ = envs.step(np.zeros(3, np.int64))
        assert (envs.valid == ~finished).all()
        assert (envs.levels == levels).all()
        finished |= terminations | truncations
    assert finished.all()
    envs.reset(options={"reset_mask": np.array([False, True, False])})
    envs.step(np.zeros(3, np.int64))
    assert envs.valid.tolist() == [False, True, False]
    envs.close()


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("arrangement", ["inside", "bare"])
def test_an_episode_cut_short_by_a_masked_reset_ends_there(mode: AutoresetMode, arrangement: str) -> None:
    with launch(Config(levels=[LONG], strategy="one_step_td_error", gamma=VALUE_DISCOUNT, partial="stitch")) as server:
        envs = build(server.address, sync_envs, mode, arrangement, n=2)
        drive = Drive(envs)
        for _ in range(3):
            drive.step()
        drive.begin(envs.reset(options={"reset_mask": np.array([True, True])})[0])
        for _ in range(2):
            drive.step()
        drive.push(final=False)
        assert scores_of(server.address) == {LONG: pytest.approx(td_error_of(LONG, bootstraps=False, steps=3))}
        envs.close()


@pytest.mark.parametrize("arrangement", ["inside", "bare"])
def test_a_masked_reset_in_place_of_the_dummy_row_takes_the_bootstrap_away(arrangement: str) -> None:
    with launch(
        Config(levels=[TRUNCATED], strategy="one_step_td_error", gamma=VALUE_DISCOUNT, partial="stitch")
    ) as server:
        envs = build(server.address, sync_envs, NEXT_STEP, arrangement, n=1)
        drive = Drive(envs)
        drive.step()
        assert drive.step().all()
        drive.begin(envs.reset(options={"reset_mask": np.array([True])})[0])
        drive.step()
        assert drive.dummy_rows == 0
        drive.push(final=False)
        assert scores_of(server.address) == {TRUNCATED: pytest.approx(td_error_of(TRUNCATED, bootstraps=False))}
        envs.close()


def test_final_obs_survives_the_masked_reset_of_an_env_that_reuses_two_arrays(address: str) -> None:
    envs = build(address, sync_envs, SAME_STEP, "bare", n=2, buffers=2)
    drive = Drive(envs)
    for _ in range(30):
        drive.step()  # checks final_obs
    envs.close()


def test_push_wants_the_steps_recorded(address: str) -> None:
    envs = build(address, sync_envs, NEXT_STEP, "bare")
    drive = Drive(envs)
    with pytest.raises(InvalidInput, match=r"values: .* for 0 steps recorded since the last push or full reset"):
        envs.push(np.zeros((1, N)), np.zeros(N))
    for _ in range(5):
        drive.step()
    good, bootstrap = np.zeros((5, N)), np.zeros(N)
    for name, arguments in {
        "values": {"values": np.zeros((4, N))},
        "next_values": {"next_values": np.zeros(N + 1)},
        "rewards": {"rewards": np.zeros((5, N + 1))},
        "final_values": {"final_values": np.zeros((N, 5))},
    }.items():
        with pytest.raises(InvalidInput, match=rf"{name}: expected shape \(") as raised:
            envs.push(**{"values": good, "next_values": bootstrap, **arguments})
        assert ("5 steps recorded" in str(raised.value)) == (name != "next_values")
    with pytest.raises(InvalidInput, match=r"values: .*nan"):
        envs.push(np.full((5, N), np.nan), bootstrap)
    with pytest.raises(MissingField, match="values"):
        envs.push(None, None)
    drive.push(final=False)  # refused pushes keep the rollout
    with pytest.raises(InvalidInput, match="0 steps recorded"):
        envs.push(good, bootstrap)
    envs.close()


def test_rewards_that_a_wrapper_around_changed_take_the_place_of_those_recorded() -> None:
    with launch(CONFIG) as server:
        envs = build(server.address, sync_envs, NEXT_STEP, "inside")
        drive, scaled = Drive(envs), RewardsTenfold(envs)
        rewards, values = [], []
        for _ in range(40):
            values.append(10 * drive.value)
            observations, reward, *_ = scaled.step(np.zeros(N, np.int64))
            rewards.append(reward)
            drive.begin(observations)
        envs.push(np.stack(values), 10 * drive.value, rewards=np.stack(rewards))
        scores = scores_of(server.address)
        envs.close()
    assert len(scores) > 20
    assert scores == pytest.approx({level: 10 * td_error_of(level, bootstraps=True) for level in scores}, rel=1e-6)


def test_strategies_without_values_are_pushed_logits_only() -> None:
    with launch(Config(levels=LEVELS, strategy="policy_entropy")) as server:
        envs = build(server.address, sync_envs, NEXT_STEP, "bare")
        drive = Drive(envs)
        for _ in range(20):
            drive.step()
        assert envs.push(None, None, logits=np.zeros((20, N, 4))) > 0
        scores = scores_of(server.address)
        assert drive.finished <= scores.keys() <= set(LEVELS)
        assert set(scores.values()) == {1.0}
        envs.close()


def test_the_server_refuses_levels_it_does_not_have(address: str) -> None:
    with launch(Config(levels=range(1_000, 1_010), strategy="one_step_td_error")) as server:
        envs = LevelReplayVector(
            SyncVectorEnv([lambda: LevelReplay(LevelEnv(), server.address)] * 2), address
        )  # asks one server, pushes to another
        drive = Drive(envs)
        drive.step()
        with pytest.raises(LevelOutsideSpace):
            drive.push(final=False)
        envs.close()


@pytest.mark.parametrize("n", [1, 64])
def test_recording_ends_when_nobody_pushes(address: str, monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    monkeypatch.setattr(module, "RECORDED_BYTES_MAX", 64 * 1024)
    steps_max = 64 * 1024 // (19 * n)  # a step of an env takes 19 bytes
    envs = LevelReplayVector(NativeLevelEnvs(n, SAME_STEP), address)
    envs.reset()
    action = np.zeros(n, np.int64)
    for _ in range(steps_max):
        envs.step(action)
        assert envs._rollout._rows.nbytes <= 64 * 1024
    assert envs._rollout.rows.shape == (steps_max, n)
    envs.step(action)
    assert envs._rollout.rows.nbytes == 0  # the memory is given back
    with pytest.raises(InvalidInput, match=f"push: expected a push at least every {steps_max} steps"):
        envs.push(np.zeros((steps_max + 1, n)), np.zeros(n))
    envs.reset()
    envs.step(action)
    envs.push(np.zeros((1, n)), np.zeros(n))
    envs.close()


@pytest.mark.parametrize("mode", [NEXT_STEP, SAME_STEP])
def test_without_a_server_bare_envs_play_on_unscored(tmp_path: Path, mode: AutoresetMode) -> None:
    address = f"ipc://{tmp_path}/plr.sock"
    with launch(CONFIG, address):
        envs = build(address, sync_envs, mode, "bare")
        drive = Drive(envs)
        envs._client.close()
        envs._client = LevelClient(address, timeout_s=0.2)
    with pytest.raises(ServerUnreachable):  # noqa: PT012
        for _ in range(20):  # every episode is over after 9
            drive.step()
    begun = envs.env.call("get_wrapper_attr", "level") != envs.levels
    assert begun.any()
    assert not envs.scored[begun].any()
    assert envs.scored[~begun].all()
    with launch(CONFIG, address):  # it is back
        envs._client = LevelClient(address)
        for _ in range(12):
            levels, told_levels = envs.levels, np.array(envs.env.call("get_wrapper_attr", "level"))
            assert (levels == told_levels)[envs.scored].all()
            envs.step(np.zeros(N, np.int64))
        assert envs.scored.all()
        envs.close()


def test_level_replay_must_be_everywhere_or_nowhere(address: str) -> None:
    mixed = async_envs([LevelEnv, LevelEnv, lambda: LevelReplay(LevelEnv(), address)], NEXT_STEP)
    with pytest.raises(InvalidInput, match="envs: expected LevelReplay in every sub-env or in none, got in 1 of 3"):
        LevelReplayVector(mixed, address)
    mixed.close()


def test_a_native_vector_env_must_take_a_list_of_seeds(address: str) -> None:
    envs = LevelReplayVector(gym.make_vec("CartPole-v1", num_envs=2), address)
    with pytest.raises(InvalidInput, match=r"envs: expected .* list of seeds .*vectorization_mode=\"sync\""):
        envs.reset()
    envs.close()


def test_the_sub_envs_own_errors_stay(address: str) -> None:
    class Broken(LevelEnv):
        def reset(self, **_: Any) -> Any:
            raise TypeError("broken")

    envs = LevelReplayVector(sync_envs([Broken], NEXT_STEP), address)
    with pytest.raises(TypeError, match="broken"):
        envs.reset()
    envs.close()


def test_other_vector_wrappers_go_around(address: str) -> None:
    bare = RecordEpisodeStatistics(sync_envs([LevelEnv] * 2, NEXT_STEP))
    with pytest.raises(InvalidInput, match="put other vector wrappers around LevelReplayVector"):
        LevelReplayVector(bare, address)
    envs = RecordEpisodeStatistics(build(address, sync_envs, NEXT_STEP, "bare", n=2))
    envs.reset()
    for _ in range(30):
        levels = envs.env.levels
        _, _, terminations, truncations, infos = envs.step(np.zeros(2, np.int64))
        for n in np.flatnonzero(terminations | truncations):
            assert infos["episode"]["l"][n] == episode_of(int(levels[n]))[0]
    envs.close()
    # With LevelReplay inside, wrappers that hand on the infos may be in between.
    inside = RecordEpisodeStatistics(sync_envs([lambda: LevelReplay(LevelEnv(), address)] * 2, NEXT_STEP))
    envs = LevelReplayVector(inside, address)
    envs.reset()
    assert set(envs.levels.tolist()) <= set(LEVELS)
    envs.close()


class KeepsInfos(VectorWrapper):
    """Hands on of the infos of resets, or of steps, only what a logger wants."""

    def __init__(self, envs: VectorEnv, of: str) -> None:
        super().__init__(envs)
        self.of = of

    def reset(self, **kwargs: Any) -> Any:
        observations, infos = super().reset(**kwargs)
        return observations, {} if self.of == "resets" else infos

    def step(self, actions: Any) -> Any:
        *results, infos = super().step(actions)
        return *results, {key: infos[key] for key in infos if self.of != "steps" or "final" in key}


def test_infos_of_resets_must_arrive(address: str) -> None:
    inner = sync_envs([lambda: LevelReplay(LevelEnv(), address)] * 2, NEXT_STEP)
    envs = LevelReplayVector(KeepsInfos(inner, "resets"), address)
    with pytest.raises(InvalidInput, match=r"^infos: expected plr_level from the envs that have begun .*, \[0, 1\]"):
        envs.reset()
    envs.close()


def play_until_it_raises(envs: LevelReplayVector, steps: int) -> tuple[str, NDArray[np.void]]:
    """Plays, checks that every row recorded has the level that its observation shows; returns what was raised."""
    observations, _ = envs.reset()
    shown = []
    with pytest.raises(InvalidInput) as raised:  # noqa: PT012
        for _ in range(steps):
            shown.append(observations[:, 0])
            observations, _, terminations, truncations, _ = envs.step(np.zeros(envs.num_envs, np.int64))
            if envs.metadata["autoreset_mode"] is DISABLED and (dones := terminations | truncations).any():
                observations, _ = envs.reset(options={"reset_mask": dones})
    rows = envs._rollout.rows
    assert (rows["levels"] == np.array(shown)[: len(rows)])[rows["valid"]].all()
    return str(raised.value), rows


@pytest.mark.parametrize("mode", [NEXT_STEP, SAME_STEP])
def test_infos_of_steps_must_arrive(address: str, mode: AutoresetMode) -> None:
    inner = sync_envs([lambda: LevelReplay(LevelEnv(), address)] * 2, mode)
    envs = LevelReplayVector(KeepsInfos(inner, "steps"), address)
    message, rows = play_until_it_raises(envs, 20)
    assert message.startswith("infos: expected plr_level from the envs that have begun an episode, [")
    assert "keeps infos to itself" in message
    assert len(rows) < 10  # at the first end of an episode
    envs.close()


class Trials(gym.Wrapper):
    """Plays three episodes as if they were one: it resets inside its step."""

    def __init__(self, env: gym.Env, *, tells: bool = False, repeats: int = 1) -> None:
        super().__init__(env)
        self.tells, self.repeats = tells, repeats

    def reset(self, **kwargs: Any) -> Any:
        self.trial = 0
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> Any:
        for _ in range(self.repeats):  # as frame skipping does: of these infos only the last arrives
            observation, reward, terminated, truncated, info = self.env.step(action)
            if terminated or truncated:
                break
        if (terminated or truncated) and self.trial < 2:
            self.trial += 1
            observation, begun = self.env.reset()
            return observation, reward, False, False, begun if self.tells else info
        return observation, reward, terminated, truncated, info


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("kind", [sync_envs, async_envs])
@pytest.mark.parametrize("tells", [False, True])
def test_a_wrapper_that_resets_inside_its_step_is_noticed_before_a_row_is_wrong(
    address: str, mode: AutoresetMode, kind: Any, tells: bool
) -> None:
    envs = LevelReplayVector(kind([lambda: Trials(LevelReplay(LevelEnv(), address), tells=tells)] * 3, mode), address)
    message, rows = play_until_it_raises(envs, 30)
    assert "resets inside its step" in message
    assert len(rows) <= 9
    envs.close()


@pytest.mark.parametrize("mode", AutoresetMode)
def test_resets_inside_a_step_are_noticed_at_the_next_reset_at_the_latest(address: str, mode: AutoresetMode) -> None:
    def make() -> gym.Env:
        return Trials(LevelReplay(LevelEnv(), address), repeats=3)

    envs = LevelReplayVector(sync_envs([make] * 2, mode), address)
    envs.reset()
    expected = r"^infos: expected plr_episode \d from env [01], which has begun so many \("
    with pytest.raises(InvalidInput, match=expected):  # noqa: PT012
        for _ in range(12):
            *_, terminations, truncations, _ = envs.step(np.zeros(2, np.int64))
            if mode is DISABLED and (dones := terminations | truncations).any():
                envs.reset(options={"reset_mask": dones})
    envs.close()


class Skips(gym.Wrapper):
    """Takes every action twice, and hands on the last info only."""

    def step(self, action: Any) -> Any:
        results = self.env.step(action)
        return results if results[2] or results[3] else self.env.step(action)


@pytest.mark.parametrize("mode", AutoresetMode)
def test_a_wrapper_may_keep_the_info_of_a_first_step(address: str, mode: AutoresetMode) -> None:
    envs = LevelReplayVector(sync_envs([lambda: Skips(LevelReplay(LevelEnv(), address))] * 3, mode), address)
    observations, _ = envs.reset()
    for _ in range(40):
        assert (envs.levels == observations[:, 0]).all()
        observations, _, terminations, truncations, _ = envs.step(np.zeros(3, np.int64))
        if mode is DISABLED and (dones := terminations | truncations).any():
            observations, _ = envs.reset(options={"reset_mask": dones})
    envs.close()


def test_both_ends_must_name_the_same_curriculum() -> None:
    with launch({"default": CONFIG, "train": CONFIG}) as server:
        for asked, pushed in (("train", "default"), ("default", "train")):
            make = functools.partial(LevelReplay, LevelEnv(), server.address, curriculum=asked)
            envs = async_envs([make], NEXT_STEP)
            expected = f"^curriculum: expected the curriculum that every LevelReplay asks, '{asked}' .* '{pushed}'$"
            with pytest.raises(InvalidInput, match=expected):
                LevelReplayVector(envs, server.address, curriculum=pushed)
            envs = LevelReplayVector(envs, server.address, curriculum=asked)
            drive = Drive(envs)
            drive.step()
            drive.push(final=False)
            with Trainer(server.address, curriculum=asked) as trainer:
                assert trainer.stats()["steps"] == 1
            envs.close()


def test_the_mode_is_that_of_these_very_envs(address: str) -> None:
    """Before Gymnasium 1.4 vector envs of a class share their metadata; the tests run on 1.2.2 too."""
    inner = sync_envs([lambda: LevelReplay(LevelEnv(), address)] * N, SAME_STEP)
    others = sync_envs([LevelEnv] * 2, NEXT_STEP)
    envs = LevelReplayVector(inner, address)
    more = sync_envs([LevelEnv] * 2, DISABLED)
    assert envs.metadata["autoreset_mode"] is SAME_STEP
    assert RecordEpisodeStatistics(envs)._autoreset_mode is SAME_STEP
    drive = Drive(envs)
    for _ in range(60):
        drive.step()
    assert (drive.real_rows, drive.dummy_rows) == (60 * N, 0)
    for vector in (envs, others, more):
        vector.close()


@pytest.mark.parametrize("levels", [3, 40])
@pytest.mark.parametrize("arrangement", ["inside", "bare"])
@pytest.mark.parametrize("mode", AutoresetMode)
def test_resets_right_after_pushes_leave_no_wrong_score_and_hardly_a_column(
    levels: int, mode: AutoresetMode, arrangement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stitched episodes are scored whole or, where a reset cut them after a push, not at all."""
    n, rng = 4, np.random.default_rng(0)
    config = Config(
        levels=range(levels), strategy="one_step_td_error", gamma=VALUE_DISCOUNT, partial="stitch", transform="constant"
    )
    columns = []

    class Watched(Trainer):
        def push(self, *arrays: Any, **more: Any) -> int:
            columns.append(more["columns"].tolist())
            return super().push(*arrays, **more)

    monkeypatch.setattr(module, "Trainer", Watched)
    with launch(config) as server:
        envs = build(server.address, sync_envs, mode, arrangement, n=n)
        drive = Drive(envs)
        for _ in range(150):
            for _ in range(rng.integers(1, 7)):
                drive.step()
            drive.push(final=mode is not NEXT_STEP)
            mask = (drive.step_index > 0) & (rng.random(n) < 0.5)
            if mode is NEXT_STEP:  # an end by a time limit bootstraps from the row that follows
                mask &= ~envs._ended
            if mask.any():
                outside = rng.random() < 0.2
                options = {"reset_mask": mask} | ({"level": NOT_ASSIGNED - 1} if outside else {})
                drive.begin(envs.reset(options=options)[0])
        scores = scores_of(server.address)
        envs.close()
    assert len(scores) > 0.9 * levels
    assert scores == pytest.approx({level: td_error_of(level, bootstraps=True) for level in scores}, rel=1e-6)
    assert all(name % n == env for block in columns for env, name in enumerate(block))
    names = {name for block in columns for name in block}
    assert n < len(names) <= (2 * n if levels == 40 else 8 * n)  # of 300 episodes that a reset cut after a push


def test_a_vector_env_is_wrapped(address: str) -> None:
    with pytest.raises(InvalidInput, match=r"^envs: expected a vector env \(LevelReplay is for a single one\), got "):
        LevelReplayVector(LevelEnv(), address)  # type: ignore[arg-type]


def test_the_autoreset_mode_must_be_told(address: str) -> None:
    envs = NativeLevelEnvs(2, NEXT_STEP)
    envs.metadata = {}
    with pytest.raises(InvalidInput, match=r"envs: expected an AutoresetMode in envs.metadata\['autoreset_mode'\]"):
        LevelReplayVector(envs, address)
    envs.close()


def test_a_server_that_is_not_there_is_waited_for_as_long_as_said(tmp_path: Path) -> None:
    envs = LevelReplayVector(sync_envs([LevelEnv], NEXT_STEP), f"ipc://{tmp_path}/plr.sock", timeout_s=0.2)
    with pytest.raises(ServerUnreachable) as raised:
        envs.reset()
    assert 0.2 <= raised.value.waited_s < 5.0
    envs.close()

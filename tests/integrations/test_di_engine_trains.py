"""wrappers/di_engine.py: DI-engine's own PLR run trains on real Procgen; every row is credited to the level it is from.

Procgen itself says which level it plays; the env of these tests draws that into its observations, beside the env, the
episode and the step. So the rows that reach the sampler carry the truth, and the scores are computed from that here.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import warnings
from pathlib import Path

import numpy as np
import pytest

import wrappers.di_engine
from plr_client import InvalidInput, ServerUnreachable, Trainer
from plr_server import Config, launch
from wrappers.di_engine import serial_pipeline_plr

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    from ding.data.level_replay import level_sampler
    from ding.entry import serial_entry_plr
    from ding.envs import BaseEnvTimestep
    from dizoo.procgen.envs.procgen_env import ProcgenEnv
    from yapf.yapflib import yapf_api

pytestmark = [  # what the libraries say of themselves and of each other
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
NUM_ENVS = 4
DISCOUNT, GAE_LAMBDA = 0.99, 0.95  # PPG's defaults, which the shipped configuration leaves as they are


class TellingProcgen(ProcgenEnv):
    """Has in its `cfg` beside ProcgenEnv's keys `number`, and `max_steps`, after which an episode ends."""

    def __init__(self, cfg):
        super().__init__(cfg)
        self._episode = -1

    def reset(self):
        self._episode, self._step = self._episode + 1, 0
        return self._telling(super().reset())

    def step(self, action):
        obs, reward, done, info = super().step(action)
        self._step += 1
        if self._step == self._cfg.max_steps:
            done, info["eval_episode_return"] = True, self._eval_episode_return
        return BaseEnvTimestep(self._telling(obs), reward, done, info)

    def _telling(self, obs):
        level = self._env.unwrapped.env.get_info()[0]["level_seed"]
        for place, number in enumerate((self._cfg.number, level, self._episode, self._step)):
            obs[:2, 0, place] = number % 256, number // 256
        return obs


def told(observations):
    """Returns (B, 4) ints: the env, level, episode and step that observations (B, 3, 64, 64) are of."""
    return observations[:, :2, 0, :4].astype(np.int64).transpose(0, 2, 1) @ [1, 256]


@pytest.fixture(autouse=True)
def collected_between_tests():
    """An old Procgen env that the garbage collector ends while cffi makes a new one waits for cffi's lock for ever."""
    gc.disable()
    yield
    gc.enable()
    gc.collect()


@pytest.fixture
def bigfish(tmp_path, monkeypatch):
    """DI-engine's shipped configuration, made tiny by the example; its env tells what it plays."""
    torch.set_num_threads(1)
    # DI-engine writes its configuration down, prettily; to make it pretty takes ten seconds.
    monkeypatch.setattr(yapf_api, "FormatCode", lambda text, **_: (text, True))
    path = Path(__file__).parents[2] / "examples" / "di_engine_bigfish.py"
    spec = importlib.util.spec_from_file_location("di_engine_bigfish", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    config, create = example.shipped(os.path.relpath(tmp_path / "exp"), tiny=True)
    config.policy.learn.aux_train_epoch = 1
    return config, create


def setting(config, max_steps=(None,) * NUM_ENVS):
    """Returns envs that tell what they play, in the form of DI-engine's `env_setting`."""
    envs = [{**config.env, "number": number, "max_steps": steps} for number, steps in enumerate(max_steps)]
    return [TellingProcgen, envs, [{**config.env, "number": 999, "max_steps": 5}]]


@pytest.fixture
def record(monkeypatch):
    """What the sampler of a run was given: the rows, and the table of its server after each update."""
    records = []

    class Recorder(wrappers.di_engine.LevelSampler):
        def update_with_rollouts(self, train_data, num_actors):
            super().update_with_rollouts(train_data, num_actors)
            rows = {name: column.numpy().copy() for name, column in train_data.items() if column is not None}
            with Trainer(self.address) as trainer:
                records.append((rows, trainer.scores(), {**trainer.stats(), "address": self.address}))

    monkeypatch.setattr(wrappers.di_engine, "LevelSampler", Recorder)
    return records


def step_scores(strategy, rows, truth):
    """Returns what each row scores by the equations (B,), NaN where the row is not enough to know."""
    if strategy in ("gae", "value_l1"):
        return rows["adv"] if strategy == "gae" else abs(rows["adv"])
    if strategy == "one_step_td_error":
        return abs(td_errors(rows, truth))
    logits = rows["logit"].astype(np.float64)
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    second, first = np.sort(chances, axis=1)[:, -2:].T
    return {
        "policy_entropy": -(chances * np.log(chances)).sum(axis=1) / np.log(chances.shape[1]),
        "least_confidence": 1 - first,
        "min_margin": 1 - (first - second),
    }[strategy]


def td_errors(rows, truth):
    """Returns r + gamma V(s') - V(s), by rewards and values of the rows; V(s') is in the row of the next step."""
    row_of = {place: row for row, place in enumerate(map(tuple, truth.tolist()))}
    longest = len(rows["done"]) // NUM_ENVS
    errors = np.empty(len(rows["done"]))
    for (env, level, episode, step), row in row_of.items():
        error = rows["reward"][row] - rows["value"][row]
        following = row_of.get((env, level, episode, step + 1))
        if following is not None:
            error += DISCOUNT * rows["value"][following]
        elif not rows["done"][row]:
            # The last step of a whole trajectory: its advantage is its error. Of one cut to n_sample rows, it is not.
            error = rows["adv"][row] if (step + 1) % longest == 0 else np.nan
        errors[row] = error
    return errors


def episodes(truth):
    """Returns the rows of each true episode, in the order of the steps; the one whose last row comes first is first."""
    rows_of = {}
    for row, (env, _, episode, step) in enumerate(truth):
        of_episode = rows_of.setdefault((env, episode), [])
        assert step == len(of_episode)  # all from the first on: none is missing, and none is another's
        of_episode.append(row)
    return sorted(rows_of.values(), key=lambda rows: rows[-1])


SHIPPED = {}  # rank, temperature 0.1, and DI-engine's defaults: schedule fixed, rho 0.2, nu 0.5
REPLAYS = {"temperature": 1.0, "rho": 0.0, "nu": 0.2, "alpha": 0.5, "staleness_coef": 0.1}


@pytest.mark.parametrize(
    ("strategy", "changes", "n_sample"),
    [
        ("min_margin", SHIPPED, 256),
        ("policy_entropy", REPLAYS, 128),
        ("least_confidence", REPLAYS, 128),
        ("gae", REPLAYS, 128),
        ("value_l1", REPLAYS, 128),
        ("one_step_td_error", REPLAYS, 128),
    ],
)
def test_every_row_is_credited_to_the_level_it_is_from(bigfish, record, strategy, changes, n_sample):
    """Over training runs, and the server's scores are those of the equations over each episode's own rows."""
    config, create = bigfish
    config.level_replay.update(changes, strategy=strategy)
    config.policy.collect.n_sample = config.policy.learn.batch_size = n_sample
    if changes is REPLAYS:
        config.policy.learn.value_norm = False  # so that the rows' values and rewards have one scale
        # Trajectories have 32 rows: one episode goes on for 4 more, another is cut again, to n_sample rows in all.
        envs = setting(config, (20, 36, None, None))
    else:
        envs = setting(config)
    serial_pipeline_plr((config, create), seed=1, env_setting=envs, max_train_iter=3)

    assert len(record) == 3
    expected, num_episodes, num_joined = {}, 0, 0
    for rows, (ids, scores, _, seen), stats in record:
        truth = told(rows["obs"])
        assert len(truth) == n_sample
        assert (truth[:, 1] != rows["seed"]).sum() == 0
        assert stats["strategy"] == strategy
        step_score = step_scores(strategy, rows, truth)
        for of_episode in episodes(truth):
            level = int(truth[of_episode[0], 1])
            score = np.nanmean(step_score[of_episode])
            alpha = changes.get("alpha", 1.0)
            expected[level] = (1 - alpha) * expected.get(level, score) + alpha * score
            num_episodes += 1
            num_joined += len(of_episode) > n_sample // NUM_ENVS
        assert set(ids[seen].tolist()) == set(expected)
        of_seen = [expected[level] for level in ids[seen].tolist()]
        np.testing.assert_allclose(scores[seen], of_seen, rtol=2e-5, atol=2e-6)
    assert num_episodes >= 12
    if changes is REPLAYS:
        assert num_joined >= 1
        assert record[-1][2]["replays"] >= 1
    else:
        assert len(expected) == 12  # rho: nothing is replayed before a fifth of the 500 levels is seen


def test_the_advantages_that_count_are_those_of_the_equations(bigfish, record):
    """A_t = delta_t + gamma lambda A_{t+1}, cut where a trajectory ends; delta from the rows' rewards and values."""
    config, create = bigfish
    config.level_replay.strategy = "value_l1"
    config.policy.collect.n_sample = config.policy.learn.batch_size = 128
    config.policy.learn.value_norm = False
    envs = setting(config, (20, 36, None, None))
    serial_pipeline_plr((config, create), seed=2, env_setting=envs, max_train_iter=1)
    rows = record[0][0]
    truth = told(rows["obs"])
    row_of = {place: row for row, place in enumerate(map(tuple, truth.tolist()))}
    errors, checked = td_errors(rows, truth), 0
    for (env, level, episode, step), row in row_of.items():
        following = row_of.get((env, level, episode, step + 1))
        ends = (step + 1) % 32 == 0 or rows["done"][row]
        if ends or following is not None:
            after = 0.0 if ends else rows["adv"][following]
            assert rows["adv"][row] == pytest.approx(errors[row] + DISCOUNT * GAE_LAMBDA * after, rel=1e-4, abs=1e-6)
            checked += 1
    assert checked >= 120


def test_env_processes_play_the_levels_they_are_given(bigfish, record):
    """DI-engine's shipped env manager, in which rows come as the processes finish."""
    config, create = bigfish
    config.policy.collect.n_sample = config.policy.learn.batch_size = 64
    config.env.collector_env_num = 2
    create.env_manager.type = "subprocess"
    envs = setting(config, (10, None))
    serial_pipeline_plr((config, create), seed=3, env_setting=envs, max_train_iter=2)
    assert len(record) == 2
    for rows, *_ in record:
        truth = told(rows["obs"])
        assert (truth[:, 1] != rows["seed"]).sum() == 0
        assert len(episodes(truth)) >= 4
    assert record[-1][2]["levels_seen"] == 4


def test_di_engines_own_run_plays_other_levels_than_it_scores(bigfish, record, monkeypatch):
    """What `serial_pipeline_plr` is for: with the sampler alone, the envs add random numbers to their seeds."""
    config, create = bigfish
    config.policy.collect.n_sample = config.policy.learn.batch_size = 64
    monkeypatch.setattr(serial_entry_plr, "LevelSampler", wrappers.di_engine.LevelSampler)
    envs = setting(config)
    serial_entry_plr.serial_pipeline_plr((config, create), seed=4, env_setting=envs, max_train_iter=1)
    rows = record[0][0]
    assert (told(rows["obs"])[:, 1] != rows["seed"]).all()


def test_the_runs_seed_is_the_curriculums(bigfish, record):
    config, create = bigfish
    config.policy.collect.n_sample = config.policy.learn.batch_size = 64
    for seed in (1, 1, 2):
        serial_pipeline_plr((config, create), seed=seed, env_setting=setting(config), max_train_iter=2)
    first, again, other = (sorted(set(rows["seed"].tolist())) for rows, *_ in record[1::2])  # what was drawn
    assert len(first) == NUM_ENVS
    assert first == again != other


def test_a_running_server_keeps_the_table(bigfish, record):
    config, create = bigfish
    config.policy.collect.n_sample = config.policy.learn.batch_size = 64
    with launch(Config(levels=range(500), strategy="min_margin")) as server, Trainer(server.address) as trainer:
        config.level_replay = {"strategy": "min_margin", "address": server.address}
        serial_pipeline_plr((config, create), seed=5, env_setting=setting(config), max_train_iter=2)
        stats = trainer.stats()
    assert stats["levels_seen"] == len({seed for rows, *_ in record for seed in rows["seed"].tolist()})
    assert stats["steps"] == 128


def test_nothing_trains_where_levels_would_not_be_those_asked_for(bigfish, record):
    config, create = bigfish
    config.env.control_level = True
    with pytest.raises(InvalidInput, match="control_level: expected False"):
        serial_pipeline_plr((config, create))
    config.env.control_level = False
    config.policy.learn.ignore_done = True
    with pytest.raises(InvalidInput, match="ignore_done: expected False"):
        serial_pipeline_plr((config, create))
    config.policy.learn.ignore_done = False
    config.level_replay.temprature = 0.1
    with pytest.raises(InvalidInput, match=r"level_replay\.temprature: expected a key among"):
        serial_pipeline_plr((config, create))
    assert not record


def test_the_module_of_di_engine_stays_as_it_is(bigfish, record):
    config, create = bigfish
    config.policy.collect.n_sample = config.policy.learn.batch_size = 64
    serial_pipeline_plr((config, create), env_setting=setting(config), max_train_iter=1)
    assert serial_entry_plr.LevelSampler is level_sampler.LevelSampler
    with pytest.raises(ServerUnreachable), Trainer(record[0][2]["address"], timeout_s=0.3) as trainer:
        trainer.stats()

"""wrappers.syllabus without any foreign library: real servers, real vector envs, levels told by the observations."""

from __future__ import annotations

import ast
import gc
import importlib.util
import multiprocessing
import os
import pickle
import re
import textwrap
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import faults
import numpy as np
import pytest
from gymnasium.spaces import Discrete
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import DictInfoToList
from level_env import VALUE_DISCOUNT, LevelEnv, reward_of, told, value_of
from level_replay_loop import ENVS, SCORES, STEPS, Rollouts, train_and_check

from plr_client import (
    ConfigError,
    InvalidInput,
    LevelOutsideSpace,
    MissingDependency,
    MissingField,
    ServerUnreachable,
    Trainer,
)
from plr_server import Config, launch
from wrappers.syllabus import (
    CentralPrioritizedLevelReplay,
    DiscreteTaskSpace,
    GymnasiumSyncWrapper,
    MultiProcessingSyncWrapper,
    PrioritizedLevelReplay,
    RaySyncWrapper,
    Task,
    TaskSampler,
    TaskSpace,
    TaskWrapper,
    make_multiprocessing_curriculum,
    make_ray_curriculum,
)

LEVELS = 40
NUM_ENVS = 6
NUM_STEPS = 32
SAMPLER = {"strategy": "one_step_td_error", "rho": 0.3, "replay_schedule": "fixed"}


class LevelTasks(TaskWrapper):
    def __init__(self, env, task_space=None):
        super().__init__(env)
        self.task_space = task_space or DiscreteTaskSpace(LEVELS)

    def change_task(self, new_task):
        self.task = new_task
        self.env.unwrapped.next_level = new_task


def make_env(curriculum):
    def thunk():
        env = LevelTasks(LevelEnv())
        return GymnasiumSyncWrapper(env, env.task_space, curriculum.components)

    return thunk


@pytest.fixture(scope="module")
def shared():
    """A curriculum for tests that need no state of it."""
    curriculum = PrioritizedLevelReplay(DiscreteTaskSpace(LEVELS), num_steps=4)
    yield curriculum
    curriculum.stop()


@pytest.fixture
def curriculum():
    made = PrioritizedLevelReplay(
        DiscreteTaskSpace(LEVELS),
        task_sampler_kwargs_dict=SAMPLER,
        num_steps=NUM_STEPS,
        num_processes=NUM_ENVS,
        gamma=VALUE_DISCOUNT,
        gae_lambda=0.95,
        seed=0,
    )
    yield made
    made.stop()


def fragment_scores(rows):
    """Returns the mean one-step TD error of one env's block, by episode: (level, score) of each."""
    scores, errors = [], []
    for level, step, done, last in rows:
        after = value_of(level, step + 1) * (not done)
        errors.append(abs(reward_of(level, step) + VALUE_DISCOUNT * after - value_of(level, step)))
        if done or last:
            scores.append((level, np.mean(errors)))
            errors = []
    return scores


TELLS = {
    "get_attr": lambda envs, _infos: envs.unwrapped.get_attr("task"),
    "infos": lambda _envs, infos: [info["task"] for info in infos],
}


@pytest.mark.parametrize("tells", TELLS)
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("vector", [SyncVectorEnv, AsyncVectorEnv])
def test_every_row_is_credited_to_the_level_it_was_played_on(curriculum, monkeypatch, vector, mode, tells):
    pushed = []
    real_push = curriculum._trainer.push

    def push(values, rewards, dones, levels, next_values, **more):
        pushed.append((levels, rewards, dones, more["valid"]))
        return real_push(values, rewards, dones, levels, next_values, **more)

    monkeypatch.setattr(curriculum._trainer, "push", push)
    envs = DictInfoToList(vector([make_env(curriculum)] * NUM_ENVS, autoreset_mode=mode))
    observations, _ = envs.reset()
    played, rows, latest = 0, defaultdict(list), {}
    for t in range(1, 10 * NUM_STEPS + 1):
        levels, steps = told(observations)
        values = value_of(levels, steps)
        ended = [bool(rows[n]) and rows[n][-1][2] for n in range(NUM_ENVS)]
        observations, rewards, terminations, truncations, infos = envs.step(np.zeros(NUM_ENVS, int))
        dones = terminations | truncations
        dummies = np.array(ended) & (mode is AutoresetMode.NEXT_STEP)
        for n in range(NUM_ENVS):
            rows[n].append(
                (levels[n], steps[n], dones[n], t % NUM_STEPS == 0) if not dummies[n] else (0, 0, False, None)
            )
        curriculum.update_curriculum(
            {
                "update_type": "on_demand",
                "metrics": {
                    "value": values[:, np.newaxis],
                    "next_value": value_of(*told(observations)),
                    "rew": rewards,
                    "dones": dones,
                    "tasks": TELLS[tells](envs, infos),
                },
            }
        )
        if t % NUM_STEPS:
            continue
        true_levels = np.array([[row[0] for row in rows[n][-NUM_STEPS:]] for n in range(NUM_ENVS)]).T
        true_dummies = np.array([[row[3] is None for row in rows[n][-NUM_STEPS:]] for n in range(NUM_ENVS)]).T
        levels, rewards, _, valid = pushed[-1]
        assert (valid == ~true_dummies).all()
        assert (levels == true_levels)[valid].all()
        assert (rewards[valid] // 1 >= levels[valid] + 1).all()  # rewards tell their level too
        played += valid.sum()
        of_block = defaultdict(list)
        for n in range(NUM_ENVS):
            real = [row for row in rows[n][-NUM_STEPS:] if row[3] is not None]
            real[-1] = (*real[-1][:3], True)
            for level, score in fragment_scores(real):
                of_block[level].append(score)
        latest |= of_block
    envs.close()

    assert played > 1300
    assert len(latest) > 12
    assert (len(pushed) * NUM_STEPS * NUM_ENVS == played) == (mode is AutoresetMode.SAME_STEP)
    levels, scores, _, seen = curriculum._trainer.scores()
    assert set(levels[seen].tolist()) == set(latest)
    for level, score in zip(levels[seen].tolist(), scores[seen].tolist(), strict=True):
        assert any(score == pytest.approx(possible) for possible in latest[level])


def test_a_flat_update_is_the_same_as_an_on_demand_one(shared):
    tasks = [7, 8]
    for t in range(4):
        metrics = {
            "value": [0.0, 0.0],
            "next_value": [0.0, 0.0],
            "rew": [1.0, 2.0],
            "dones": [True, True],
            "tasks": tasks,
        }
        if t % 2:
            shared.update(metrics)
        else:
            shared.update_on_demand({"update_type": "on_demand", "metrics": metrics})
    _, scores, _, seen = shared._trainer.scores()
    assert seen[[7, 8]].all()
    assert scores[[7, 8]].tolist() == [1.0, 2.0]


def test_without_a_next_value_a_block_waits_for_the_value_that_follows(curriculum):
    value = np.full(NUM_ENVS, 2.0)
    metrics = {"value": value, "rew": np.ones(NUM_ENVS), "dones": np.zeros(NUM_ENVS), "tasks": list(range(NUM_ENVS))}
    for t in range(NUM_STEPS):
        curriculum.update(metrics | ({"next_value": value} if t % 2 else {}))  # the same object says no more than None
    assert curriculum._trainer.stats()["pushes"] == 0
    curriculum.update(metrics | {"value": np.full(NUM_ENVS, 6.0)})
    levels, scores, _, seen = curriculum._trainer.scores()
    assert levels[seen].tolist() == list(range(NUM_ENVS))
    steady, last = abs(1 + VALUE_DISCOUNT * 2 - 2), abs(1 + VALUE_DISCOUNT * 6 - 2)
    assert scores[seen] == pytest.approx((steady * (NUM_STEPS - 1) + last) / NUM_STEPS)


def test_levels_are_replayed_by_score_once_rho_is_reached(curriculum):
    with Trainer(curriculum.components.address) as trainer:
        trainer.push_scores(np.arange(11), np.arange(11.0))  # 11 of 40 levels: below rho
        assert {task in range(11) for task in curriculum.sample(200)} == {False}
        trainer.push_scores([11], [50.0])
        drawn = curriculum.sample(400)
        assert 100 < sum(task == 11 for task in drawn) < 250  # replay_prob 0.5, temperature 0.1, staleness_coef 0.1


def replays(num_seen, num=400, **sampler):
    """Returns how many of the draws are replays, where that many of 40 levels are seen; without a schedule's name."""
    curriculum = PrioritizedLevelReplay(DiscreteTaskSpace(LEVELS), task_sampler_kwargs_dict=sampler, seed=0)
    curriculum._trainer.push_scores(np.arange(num_seen), np.ones(num_seen))
    drawn = sum(task < num_seen for task in curriculum.sample(num))
    curriculum.stop()
    return drawn


def test_nu_is_the_share_of_new_levels():
    fixed = {"replay_schedule": "fixed", "rho": 0.3}
    assert replays(20, nu=0, **fixed) == 400
    assert replays(20, nu=1, **fixed) == 0
    assert replays(20, nu=0.2, **fixed) == pytest.approx(320, abs=40)  # 5 standard deviations
    assert replays(20, nu=0.9, rho=0.0) == pytest.approx(40, abs=30)  # under proportionate too: min(seen, 1 - nu)


def test_rho_under_the_default_schedule():
    """min(seen share, replay_prob) from rho on; replay_prob is 0.5."""
    assert replays(23, rho=0.6) == 0
    assert replays(24, rho=0.6) == pytest.approx(200, abs=50)
    assert replays(19, rho=0.5) == 0
    assert replays(20, rho=0.5) == pytest.approx(200, abs=50)
    assert replays(10, rho=0.25, replay_prob=0.2) == pytest.approx(80, abs=40)


def test_ten_seeds_are_ten_streams_of_levels():
    def drawn(seed=None):
        curriculum = PrioritizedLevelReplay(DiscreteTaskSpace(1000), seed=seed)
        tasks = curriculum.sample(20)
        curriculum.stop()
        return tasks

    by_seed = [drawn(seed) for seed in range(10)]
    assert len(set(map(tuple, by_seed))) == 10
    assert drawn(3) == by_seed[3]
    of_numpy = []
    for seed in (5, 5, 6):  # without one numpy's global generator decides, which Syllabus draws from
        np.random.seed(seed)  # noqa: NPY002  it seeds this one
        of_numpy.append(drawn())
    assert of_numpy[0] == of_numpy[1] != of_numpy[2]


def test_evaluation_by_the_same_maker_takes_levels_from_training_and_with_a_curriculum_of_its_own_does_not(curriculum):
    envs = SyncVectorEnv([make_env(curriculum)] * 2)  # the maker of the training envs
    envs.reset()
    assert curriculum._trainer.stats()["draws"] == 2
    envs.close()
    in_turn = PrioritizedLevelReplay(DiscreteTaskSpace(LEVELS), task_sampler_kwargs_dict={"strategy": "sequential"})
    envs = SyncVectorEnv([make_env(in_turn)] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    observations, _ = envs.reset()
    played = set(told(observations)[0].tolist())
    while len(played) < LEVELS:
        played |= set(told(envs.step(np.zeros(2, int))[0])[0].tolist())
    assert curriculum._trainer.stats()["draws"] == 2
    envs.close()
    in_turn.stop()


def test_by_default_all_levels_are_played_once_before_any_is_replayed():
    curriculum = CentralPrioritizedLevelReplay(DiscreteTaskSpace(5), seed=0)
    with Trainer(curriculum.components.address) as trainer:
        for level in range(4):
            trainer.push_scores([level], [1.0 + level])
            assert set(curriculum.sample(20)).isdisjoint(range(level + 1))
        trainer.push_scores([4], [0.0])
        assert curriculum.sample(200).count(3) > 150
    curriculum.stop()


@pytest.mark.parametrize("levels", [range(LEVELS), range(1000, 1040), range(0, 4 * LEVELS, 4)])
def test_a_daemon_is_used_where_it_has_the_tasks(levels, ipc):
    space = DiscreteTaskSpace(Discrete(LEVELS), tasks=list(levels))
    with launch(Config(levels=levels, num_steps=3), ipc):
        curriculum = make_multiprocessing_curriculum(PrioritizedLevelReplay(space, address=ipc, num_steps=2))
        env = GymnasiumSyncWrapper(LevelTasks(LevelEnv(), space), space, curriculum.components)
        for _ in range(3):
            observation, info = env.reset(seed=3)
            assert observation[0] == info["task"] == env.task == env.env.task
            assert info["task"] in levels
        env.close()
        curriculum.stop()
        with Trainer(ipc) as trainer:  # which outlives the curriculum
            assert trainer.stats()["draws"] == 3
        with pytest.raises(LevelOutsideSpace, match="1 that it does not have"):
            PrioritizedLevelReplay(DiscreteTaskSpace(2, [levels[0], levels[-1] + 1]), address=ipc)
        with pytest.raises(InvalidInput, match="no settings beside it"):
            PrioritizedLevelReplay(space, address=ipc, gamma=0.99)
        with pytest.raises(InvalidInput, match=r"no settings beside it: .*seed"):
            PrioritizedLevelReplay(space, address=ipc, seed=0)


def test_older_releases_pass_queues():
    curriculum, tasks, updates = make_multiprocessing_curriculum(
        PrioritizedLevelReplay(DiscreteTaskSpace(LEVELS), num_steps=4), use_simple_queues=True
    )
    env = MultiProcessingSyncWrapper(
        LevelTasks(LevelEnv()), tasks, updates, update_on_step=False, task_space=DiscreteTaskSpace(LEVELS)
    )
    assert env.task is None
    observation, info = env.reset()
    assert observation[0] == info["task"]
    assert env.get_wrapper_attr("task") == info["task"]
    assert (info["plr_level"], info["plr_train"], info["plr_scored"]) == (info["task"], True, True)
    env.close()
    queues = {"task_queue": tasks, "update_queue": updates}
    env = MultiProcessingSyncWrapper(LevelTasks(LevelEnv()), **queues, task_space=DiscreteTaskSpace(LEVELS))
    assert env.reset()[0][0] == env.task
    env.close()
    queues = {"task_queue": multiprocessing.SimpleQueue(), "update_queue": multiprocessing.SimpleQueue()}
    env = GymnasiumSyncWrapper(LevelTasks(LevelEnv()), components=tasks, **queues)  # its own, which nobody reads
    assert env.reset()[0][0] == env.task
    with pytest.raises(InvalidInput, match="queues that make_multiprocessing_curriculum returned here"):
        GymnasiumSyncWrapper(LevelTasks(LevelEnv()), **queues)
    assert curriculum.task_queue is curriculum.update_queue is tasks
    assert curriculum.get_components() is curriculum.components is tasks
    assert curriculum.curriculum is curriculum
    curriculum.start()
    env.close()
    curriculum.stop()


def test_a_buffer_holds_tasks_ready(curriculum):
    env = LevelTasks(LevelEnv())
    env = GymnasiumSyncWrapper(env, env.task_space, curriculum.components, buffer_size=4)
    for _ in range(9):
        observation, _ = env.reset()
        assert observation[0] == env.task
    faults.eventually(lambda: curriculum._trainer.stats()["prefetched"] > 0, "some wait")
    env.close()


def test_a_task_goes_through_a_pickle_whole():
    task = pickle.loads(pickle.dumps(Task(7, 3, 12)))  # noqa: S301  our own
    assert (task, task.played, task.transitions) == (7, 3, 12)
    assert [10, 20][Task(1, 0, 0)] == 20


def test_a_copy_of_the_curriculum_is_a_client(shared):
    copy = pickle.loads(pickle.dumps(shared))  # noqa: S301  our own
    assert copy.sample(3)
    copy.stop()
    assert shared.sample(3)  # its server still runs


def test_a_forked_child_does_not_stop_the_server():
    curriculum = PrioritizedLevelReplay(DiscreteTaskSpace(LEVELS))
    child = os.fork()
    if not child:
        curriculum.stop()
        del curriculum
        gc.collect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert curriculum.sample()
    curriculum.stop()


def test_the_server_ends_with_the_curriculum():
    curriculum = PrioritizedLevelReplay(DiscreteTaskSpace(LEVELS))
    address = curriculum.components.address
    del curriculum
    gc.collect()
    with pytest.raises(ServerUnreachable):
        Trainer(address, timeout_s=0.2).stats()


class Writer:
    def __init__(self):
        self.scalars = {}

    def add_scalar(self, name, value, step):
        self.scalars[name] = value, step


class Wandb:
    def __init__(self):
        self.logged = {}

    def log(self, values):
        self.logged |= values


def test_metrics_go_to_a_writer_or_to_wandb():
    curriculum = PrioritizedLevelReplay(DiscreteTaskSpace(4), task_names=lambda task, _: f"maze {task}")
    with Trainer(curriculum.components.address) as trainer:
        trainer.push_scores([0, 1], [3.0, 1.0])
    writer, wandb = Writer(), Wandb()
    logs = curriculum.log_metrics(writer, [("mine", 1)], step=30, log_n_tasks=-1)
    assert dict(logs).keys() < writer.scalars.keys()
    assert writer.scalars["curriculum/weighted_score"][0] > writer.scalars["curriculum/mean_score"][0] == 2.0
    assert writer.scalars["mine"] == (1, 30)
    assert writer.scalars["curriculum/proportion_seen"] == (0.5, 30)
    assert writer.scalars["curriculum/score"] == (2.0, 30)
    assert writer.scalars["curriculum/maze 0_score"] == (3.0, 30)
    assert writer.scalars["curriculum/maze 0_prob"][0] > writer.scalars["curriculum/maze 1_prob"][0] > 0
    assert writer.scalars["curriculum/nonzero_probability_tasks"] == (2, 30)
    curriculum.log_metrics(wandb, 30)
    assert wandb.logged["curriculum/maze 0_score"] == 3.0
    assert (wandb.logged["curriculum/max_score"], wandb.logged["global_step"]) == (3.0, 30)
    assert "curriculum/maze 1_score" not in wandb.logged
    curriculum.stop()


METRICS = {"value": np.zeros(2), "next_value": np.zeros(2), "rew": np.zeros(2), "dones": np.zeros(2), "tasks": [0, 1]}


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"tasks": [0, LEVELS]}, LevelOutsideSpace, "40 tasks"),
        ({"tasks": [0, None]}, LevelOutsideSpace, "None"),
        ({"tasks": None}, MissingField, "tasks"),
        ({"dones": None}, MissingField, "dones"),
        ({"tasks": [0, 1, 2]}, InvalidInput, r"dones: expected shape \(3,\)"),
        ({"rew": [0.0, np.nan]}, InvalidInput, "rew: expected finite"),
        ({"next_value": [0.0, np.inf]}, InvalidInput, "next_value: expected finite"),
        ({"value": np.zeros((2, 2))}, InvalidInput, r"value: expected shape \(2,\)"),
        ({"value": ["a", "b"]}, InvalidInput, "value: expected numbers"),
        ({"value": object()}, InvalidInput, "value: expected numbers"),
        ({"env_ids": [0, 1]}, InvalidInput, "got env_ids"),
        ({"masks": [0, 1]}, InvalidInput, "got masks"),
    ],
)
def test_a_bad_update_is_refused_whole(change, error, match):
    curriculum = PrioritizedLevelReplay(DiscreteTaskSpace(LEVELS), num_steps=1)
    with pytest.raises(error, match=match):
        curriculum.update(METRICS | change)
    curriculum.update(METRICS)
    with pytest.raises(InvalidInput, match="one for each of 2 envs"):
        curriculum.update(METRICS | {"tasks": [0, 1, 2]})
    with pytest.raises(InvalidInput, match="update_type"):
        curriculum.update({"update_type": "step", "metrics": METRICS})
    assert curriculum._trainer.stats()["steps"] == 2
    curriculum.stop()


def updates(played, transitions, dones, **more):
    """An update of one env whose task tells the level of its last transition, and how many it has made."""
    metrics = {
        "value": [0.0],
        "next_value": None,
        "rew": [1.0],
        "dones": [dones],
        "tasks": [Task(0, played, transitions)],
    }
    return metrics | more


def test_a_block_that_cannot_be_pushed_is_dropped_and_the_update_after_it_is_not():
    curriculum = PrioritizedLevelReplay(DiscreteTaskSpace(LEVELS), num_steps=2)
    curriculum.update(updates(3, 1, dones=False))
    curriculum.update(updates(4, 2, dones=False))  # another level, and no end before it
    with pytest.raises(InvalidInput, match="levels"):
        curriculum.update(updates(5, 3, dones=True))
    assert curriculum._trainer.stats()["steps"] == 0
    curriculum.update(updates(6, 3, dones=False))  # a step that only reset the env
    curriculum.update(updates(6, 4, dones=True))
    assert curriculum._trainer.stats()["steps"] == 1
    levels, scores, _, seen = curriculum._trainer.scores()
    assert dict(zip(levels[seen].tolist(), scores[seen].tolist(), strict=True)) == {5: 1.0}
    curriculum.update(updates(7, 5, dones=False, next_value=[0.0]))
    assert curriculum._trainer.stats()["steps"] == 3
    curriculum.stop()


def test_an_episode_is_not_stitched_over_a_block_that_was_dropped(ipc):
    with launch(Config(levels=range(LEVELS), partial="stitch"), ipc):
        curriculum = PrioritizedLevelReplay(DiscreteTaskSpace(LEVELS), address=ipc, num_steps=2)
        for transitions in (1, 2):
            curriculum.update(updates(3, transitions, dones=False, next_value=[0.0]))
        curriculum.update(updates(4, 3, dones=False, next_value=[0.0]))
        with pytest.raises(InvalidInput, match="levels"):
            curriculum.update(updates(3, 4, dones=False, next_value=[0.0]))
        curriculum.update(updates(3, 5, dones=True, next_value=[0.0], rew=[9.0]))
        curriculum.update(updates(5, 6, dones=True, next_value=[0.0]))
        levels, scores, _, seen = curriculum._trainer.scores()
        assert dict(zip(levels[seen].tolist(), scores[seen].tolist(), strict=True)) == {3: 9.0, 5: 1.0}
        curriculum.stop()


def test_the_metrics_of_a_block_are_the_same_throughout(shared):
    copy = pickle.loads(pickle.dumps(shared))  # noqa: S301  our own
    copy.update(METRICS)
    with pytest.raises(InvalidInput, match="the same in every update of a block"):
        copy.update({name: value for name, value in METRICS.items() if name != "rew"})
    copy.stop()


def test_a_strategy_that_reads_the_policy_needs_its_log_probabilities():
    curriculum = PrioritizedLevelReplay(
        DiscreteTaskSpace(LEVELS), task_sampler_kwargs_dict={"strategy": "min_margin"}, num_steps=1
    )
    with pytest.raises(MissingField, match="logits"):
        curriculum.update(METRICS)
    probabilities = np.array([[0.5, 0.3, 0.2], [0.9, 0.05, 0.05]])
    curriculum.update({"dones": [1, 1], "tasks": [3, 4], "action_log_dist": np.log(probabilities)})
    _, scores, _, _ = curriculum._trainer.scores()
    assert scores[[3, 4]] == pytest.approx([0.8, 0.15])
    curriculum.stop()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"evaluator": object()}, "values come from the trainer"),
        ({"robust_plr": True}, "train_mask"),
        ({"random_start_tasks": 10}, "rho"),
        ({"record_stats": True}, "RecordEpisodeStatistics"),
        ({"num_proceses": 3}, "num_proceses: expected one of .*, got an unknown argument"),
        ({"num_processes": 0}, "1 or more"),
        ({"num_steps": True}, "1 or more"),
        ({"task_sampler_kwargs_dict": {"sample_full_distribution": True}}, "unbounded"),
        ({"task_sampler_kwargs_dict": {"use_dense_rewards": True}}, "grounded_signed_value_loss"),
        ({"task_sampler_kwargs_dict": {"gamma": 0.9}}, "argument of PrioritizedLevelReplay"),
        (
            {"task_sampler_kwargs_dict": {"nu": 0.5, "replay_prob": 0.5}},
            "nu: expected it or replay_prob, which is 1 - nu",
        ),
        ({"task_sampler_kwargs_dict": {"nu": 2}}, "nu: expected a number from 0 to 1, got 2"),
        (
            {"task_sampler_kwargs_dict": {"rho": 0.4}},
            "0 or replay_prob, 0.5, or more, under the schedule proportionate",
        ),
        ({"task_sampler_kwargs_dict": {"rho": 0.9, "nu": 0}}, "rho: expected 0 or 1 under the schedule proportionate"),
        ({"task_sampler_kwargs_dict": {"robust_plr": True}}, "train_mask"),
        (
            {"get_value": len},
            r"the trainer calls it itself, .* update\(\{'value': ...\}\), got <built-in function len>",
        ),
        ({"get_action_log_dist": len}, "the trainer calls it itself"),
        ({"task_sampler_kwargs_dict": {"replay_schedule": "sometimes"}}, "fixed or proportionate"),
        ({"task_sampler_kwargs_dict": {"staleness_transform": "rank"}}, "power"),
        ({"task_sampler_kwargs_dict": {"staleness_transform": np.ones(2)}}, "power"),
        ({"task_sampler_kwargs_dict": {"replay_schedule": np.ones(2)}}, "fixed or proportionate"),
        ({"task_sampler_kwargs_dict": {"rho": np.ones(2)}}, "rho: expected a number from 0 to 1"),
        ({"task_sampler_kwargs_dict": {"gae_lambda": np.zeros(2)}}, "argument of PrioritizedLevelReplay"),
        ({"task_space": 200}, "DiscreteTaskSpace"),
        ({"curriculum": "eval"}, "curriculum: expected an address beside it"),
    ],
)
def test_what_is_not_here_says_what_to_do_instead(arguments, match):
    with pytest.raises(InvalidInput, match=match):
        PrioritizedLevelReplay(**{"task_space": DiscreteTaskSpace(3)} | arguments)


@pytest.mark.parametrize(
    "wrong", [{"temperature": 0}, {"temperature": np.ones(2)}, {"score_transform": "cubic"}, {"replay_prob": 2.0}]
)
def test_a_value_out_of_range_is_a_config_error_in_its_word(wrong):
    with pytest.raises(ConfigError, match=f"^{next(iter(wrong))}: expected"):
        PrioritizedLevelReplay(DiscreteTaskSpace(3), task_sampler_kwargs_dict=wrong)


@pytest.mark.parametrize("seed", [-1, 0.5, "1"])
def test_a_seed_is_an_integer_0_or_more(seed):
    with pytest.raises(ConfigError, match=r"^seed: expected an integer, 0 or more"):
        PrioritizedLevelReplay(DiscreteTaskSpace(3), seed=seed)


def test_arguments_without_effect_are_taken(shared):
    made = PrioritizedLevelReplay(
        shared.task_space,
        LevelEnv().observation_space,
        action_space=Discrete(2),
        device="cuda",
        suppress_usage_warnings=True,
        evaluator=None,
        robust_plr=False,
        task_sampler_kwargs_dict={"num_actors": 64, "sample_full_distribution": False},
    )
    assert made.num_tasks == len(made.tasks) == LEVELS
    assert not made.requires_step_updates
    made.stop()


def test_methods_that_are_not_here_say_what_to_do_instead(shared):
    with pytest.raises(InvalidInput, match=r"update_on_episode: expected update\(\)"):
        shared.update_on_episode(1.0, 3, 0, 1.0)
    assert not hasattr(shared, "update_on_step")
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = shared.no_such_thing
    with pytest.raises(InvalidInput, match="max_queues"):
        make_multiprocessing_curriculum(shared, max_queues=3)


def test_the_sync_wrapper_refuses_what_it_cannot_use(shared):
    env = LevelTasks(LevelEnv())
    with pytest.raises(InvalidInput, match=r"components: expected curriculum\.components"):
        GymnasiumSyncWrapper(env, env.task_space)
    with pytest.raises(InvalidInput, match="channels"):
        GymnasiumSyncWrapper(env, env.task_space, object())
    with pytest.raises(InvalidInput, match="buffer_size"):
        GymnasiumSyncWrapper(env, env.task_space, shared.components, buffer_size=0)
    with pytest.raises(InvalidInput, match="a level lasts for one episode"):
        GymnasiumSyncWrapper(env, env.task_space, shared.components, change_task_on_completion=True)


def test_task_spaces():
    space = DiscreteTaskSpace(Discrete(3), tasks=[10, 30, 20])
    assert [space.encode(task) for task in space.tasks] == [0, 1, 2]
    assert [space.decode(index) for index in range(3)] == [10, 30, 20]
    assert space.contains(30)
    assert not space.contains(1)
    assert space.sample() in space.tasks
    assert TaskSpace(3).tasks == [0, 1, 2]
    assert isinstance(space, TaskSpace)
    drawn = []
    for seed in (1, 1, 2):
        space.seed(seed)
        drawn.append([space.sample() for _ in range(20)])
    assert drawn[0] == drawn[1] != drawn[2]
    assert space.task_name(30) == "30"
    for wrong in (0, 2.5, True, "3"):
        with pytest.raises(InvalidInput):
            DiscreteTaskSpace(wrong)
    with pytest.raises(InvalidInput, match="3 distinct ints"):
        DiscreteTaskSpace(3, [1, 2, 2])
    with pytest.raises(InvalidInput, match=r"names\[new_task\]"):
        DiscreteTaskSpace(2, ["easy", "hard"])
    with pytest.raises(LevelOutsideSpace):
        space.encode(11)
    with pytest.raises(LevelOutsideSpace):
        space.decode(3)


def of_tasks(seeds, *_spaces, **arguments):
    return TaskSampler(seeds, **arguments)


class ByActor(TaskSampler):
    """Is updated as Syllabus updates it, an env at a time, and by rollouts that are longer than its steps."""

    def update_with_rollouts(self, rollouts):
        longer = {name: np.concatenate([values, np.ones_like(values[:9])]) for name, values in vars(rollouts).items()}
        for actor in range(ENVS):
            super().update_with_rollouts(SimpleNamespace(**longer), actor)


def by_actor(seeds, *_spaces, **arguments):
    return ByActor(seeds, STEPS, **arguments)


@pytest.mark.parametrize(("strategy", "make"), [*((name, of_tasks) for name in SCORES), ("value_l1", by_actor)])
def test_a_task_sampler_scores_what_was_played(strategy, make):
    rollouts = Rollouts()
    rollouts.tasks = rollouts.level_seeds
    train_and_check(strategy, rollouts, make=make)


def test_the_other_strategies_of_a_task_sampler_read_what_they_need():
    zeros = np.zeros((3, 1, 1))
    rewards = np.array([1.0, 2.0, 4.0])[:, np.newaxis, np.newaxis]
    fields = {"tasks": zeros + 5, "masks": np.array([1, 1, 1, 0])[:, np.newaxis, np.newaxis], "rewards": rewards}
    rollouts = SimpleNamespace(value_preds=np.ones((4, 1, 1)), returns=np.full((4, 1, 1), 9.0), **fields)
    for strategy, score in (
        ("grounded_signed_value_loss", 7.0 - 1),
        ("grounded_positive_value_loss", 7.0 - 1),
        ("alt_advantage_abs", np.mean([7.0 - 1, 6.0 - 1, 4.0 - 1])),
        ("signed_value_loss", 9.0 - 1),
        ("one_step_td_error", np.mean([1.0, 2.0, 4.0 - 1])),
        ("uniform", 1.0),
    ):
        sampler = TaskSampler([5, 6], strategy=strategy, gamma=1.0)
        sampler.update_with_rollouts(rollouts)
        assert sampler.task_scores.tolist() == pytest.approx([score, 0.0]), strategy
        assert sampler.requires_value_buffers == (strategy != "uniform")
        sampler.close()


def test_what_a_task_sampler_tells():
    sampler = TaskSampler([30, 10, 20], 4, Discrete(2), None, 2, alpha=0.5, max_score_coef=0.25, seed=0)
    assert sampler.tasks.tolist() == [30, 10, 20]
    assert (sampler.num_tasks, sampler.task2index) == (3, {30: 0, 10: 1, 20: 2})
    assert sampler.update_task_score(0, 20, 4.0, 8.0, 3) == (4.0, 2)
    assert sampler.task_scores.tolist() == [0.0, 0.0, 5.0]
    sampler.update_task_score(0, 20, 1.0, 1.0, 3)
    assert sampler.metrics()["task_scores"].tolist() == [0.0, 0.0, 3.0]
    assert sampler.metrics()["unseen_task_weights"].tolist() == [1, 1, 0]
    assert sampler.metrics()["proportion_seen"] == pytest.approx(1 / 3)
    assert sampler.metrics()["score"] == sampler.max_score == 3.0
    assert {sampler.sample() for _ in range(9)} == {30, 10}  # rho is 1
    assert sampler.sample_weights().tolist() == [0, 0, 1]
    assert [sampler.sample("sequential") for _ in range(4)] == [30, 10, 20, 30]
    sampler.after_update([0, 1])
    with pytest.raises(LevelOutsideSpace, match="task: expected one of the 3 tasks, got 11"):
        sampler.update_task_score(0, 11, 1.0, 1.0, 1)
    with pytest.raises(InvalidInput, match="score: expected finite"):
        sampler.update_task_score(0, 10, 1.0, np.inf, 1)
    rollouts = SimpleNamespace(tasks=np.full((4, 2, 1), 10), masks=np.ones((5, 2, 1)))
    for wrong, match in (
        ({"actor_id": 2}, "actor_id: expected 0 to 1, got 2"),
        ({"actor_id": -1}, "actor_id"),
        ({"external_scores": np.ones(2)}, r"external_scores: expected None: update_task_score\(\)"),
        ({}, "rollouts: expected a RolloutStorage with value_preds"),
    ):
        with pytest.raises(InvalidInput, match=match):
            sampler.update_with_rollouts(rollouts, **wrong)
    assert sampler.unseen_task_weights.tolist() == [1, 1, 0]
    sampler.close()


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"tasks": 3}, InvalidInput, "tasks: expected a list of ints"),
        ({"tasks": ["easy"]}, InvalidInput, "tasks: expected a list of ints"),
        ({"tasks": []}, ConfigError, "tasks: expected"),
        ({"tasks": [1, 1]}, ConfigError, "tasks: .* an id twice"),
        ({"num_steps": 0}, InvalidInput, "num_steps: expected an integer, 1 or more"),
        ({"num_actors": 0}, InvalidInput, "num_actors: expected an integer, 1 or more"),
        ({"strategy": "off"}, ConfigError, "strategy: expected one of value_l1"),
        ({"gamma": 2.0}, ConfigError, "gamma: expected a number from 0 to 1"),
        ({"robust_plr": True}, InvalidInput, "train_mask"),
        ({"evaluator": object()}, InvalidInput, "values come from the trainer"),
        ({"rho": 0.1}, InvalidInput, "rho: expected 0 or replay_prob"),
        ({"temprature": 0.1}, InvalidInput, "temprature: expected one of"),
    ],
)
def test_a_task_sampler_refuses_what_is_not_here(arguments, error, match):
    with pytest.raises(error, match=match):
        TaskSampler(**{"tasks": [1, 2], "strategy": "one_step_td_error"} | arguments)


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_its_names_say_what_is_missing(shared):
    with pytest.raises(MissingDependency, match="ray"):
        make_ray_curriculum(shared)
    with pytest.raises(MissingDependency, match="ray"):
        RaySyncWrapper(LevelTasks(LevelEnv()))


def test_what_the_page_shows_runs():
    """The whole script, with the lines on evaluation put in at its end."""
    page = (Path(__file__).parents[2] / "docs/syllabus.md").read_text()
    script, evaluation = (
        re.search(rf"```python\n({begin}.*?)```", page, re.DOTALL).group(1)
        for begin in ("import gymnasium[^`]*make_multiprocessing_curriculum", "evaluation = ")
    )
    told = "print(curriculum._trainer.stats(), evaluation.sample(3), sep='; ')"
    more = f"{evaluation}eval_envs.reset()\n{told}\neval_envs.close()\n"
    script = script.replace("    curriculum.stop()\n", textwrap.indent(more, "    ") + "    curriculum.stop()\n")
    stats, in_turn = map(ast.literal_eval, faults.run_script(script).split("; "))
    assert stats["steps"] >= 4 * (512 - 128)  # of them some only reset an env
    assert in_turn == [4, 5, 6]


class GoalEnv(TaskWrapper):
    def _encode_goal(self):
        return np.array([self.task])


def test_a_task_wrapper_sets_tasks_and_hands_the_rest_on():
    env = GoalEnv(LevelEnv(nested=True))
    observation, info = env.reset(new_task=3, seed=5)
    assert env.seeds == [5]  # of the env inside
    assert observation["goal"] == [3]
    assert (info["task"], info["task_completion"]) == (3, 0.0)
    ended = False
    while not ended:
        observation, _, terminated, truncated, info = env.step(0)
        ended = terminated or truncated
        assert info["task_completion"] == env.task_completion == ended
    env.reset()
    assert env.task == 3
    with pytest.raises(AttributeError):
        _ = env.no_such_thing

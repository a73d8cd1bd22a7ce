"""wrappers.syllabus without any foreign library: real servers, real vector envs, levels told by the observations."""

from __future__ import annotations

import gc
import os
import pickle
from collections import defaultdict

import faults
import numpy as np
import pytest
from gymnasium.spaces import Discrete
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import DictInfoToList
from level_env import VALUE_DISCOUNT, LevelEnv, reward_of, told, value_of

from plr_client import ConfigError, InvalidInput, LevelOutsideSpace, MissingField, ServerUnreachable, Trainer
from plr_server import Config, launch
from wrappers.syllabus import (
    CentralPrioritizedLevelReplay,
    DiscreteTaskSpace,
    GymnasiumSyncWrapper,
    MultiProcessingSyncWrapper,
    PrioritizedLevelReplay,
    Task,
    TaskWrapper,
    make_multiprocessing_curriculum,
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


def test_by_default_all_levels_are_played_once_before_any_is_replayed():
    curriculum = CentralPrioritizedLevelReplay(DiscreteTaskSpace(5))
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
    assert dict(logs).keys() == writer.scalars.keys()
    assert writer.scalars["mine"] == (1, 30)
    assert writer.scalars["curriculum/proportion_seen"] == (0.5, 30)
    assert writer.scalars["curriculum/score"] == (2.0, 30)
    assert writer.scalars["curriculum/maze 0_score"] == (3.0, 30)
    assert writer.scalars["curriculum/maze 0_prob"][0] > writer.scalars["curriculum/maze 1_prob"][0] > 0
    assert writer.scalars["curriculum/nonzero_probability_tasks"] == (2, 30)
    curriculum.log_metrics(wandb, 30)
    assert wandb.logged["curriculum/maze 0_score"] == 3.0
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
        ({"task_sampler_kwargs_dict": {"nu": 0.5}}, "1 - nu"),
        ({"task_sampler_kwargs_dict": {"rho": 0.5}}, "0 or 1 under the schedule proportionate"),
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
    with pytest.raises(InvalidInput, match=r"curriculum\.components of a curriculum from here"):
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

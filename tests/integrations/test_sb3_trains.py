"""LevelReplayCallback in real training runs of Stable-Baselines3, against levels that the observations tell."""

from __future__ import annotations

import csv
import re
import runpy
import sys
import types
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from level_env import LevelEnv, episode_of, reward_of
from sb3_contrib import TRPO, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from plr_client import InvalidInput, MissingDependency, NotAllowed, ServerUnreachable, Trainer
from plr_server import Config, launch
from plr_server.serving.keys import make_key
from wrappers import LevelReplay, sb3
from wrappers.sb3 import LevelReplayCallback

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import sb3_ppo

torch.set_num_threads(1)
GAMMA, GAE_LAMBDA = 0.9, 0.8
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}  # SB3's buffer holds float32


class MaskedLevelEnv(LevelEnv):
    """A `LevelEnv` as MaskablePPO wants it."""

    def action_masks(self):
        return np.ones(2, np.bool_)


class ImageLevelEnv(LevelEnv):
    """A `LevelEnv` whose observation is an image: the level and the step are the colour of every pixel."""

    def __init__(self):
        super().__init__()
        self.observation_space = spaces.Box(0, 255, (36, 36, 3), np.uint8)

    def _observe(self):
        image = np.zeros((36, 36, 3), np.uint8)
        image[..., 0], image[..., 1] = self.level, self.step_index
        return image


def curriculum(**fields):
    """A configuration that agrees with `agent`, and lets many levels be played."""
    given = {"levels": range(60), "replay_prob": 0.5, "gamma": GAMMA, "gae_lambda": GAE_LAMBDA, "temperature": 1.0}
    return Config(**given | fields)


def agent(algorithm, envs, **fields):
    policy = "MlpLstmPolicy" if algorithm is RecurrentPPO else "MlpPolicy"
    given = {"n_steps": 16, "gamma": GAMMA, "gae_lambda": GAE_LAMBDA, "device": "cpu", "seed": 5}
    if algorithm is not A2C:
        given["batch_size"] = 16
    if algorithm in {PPO, RecurrentPPO, MaskablePPO}:
        given["n_epochs"] = 1
    if algorithm is RecurrentPPO:
        given["policy_kwargs"] = {"lstm_hidden_size": 16}
    return algorithm(policy, envs, **given | fields)


def pair(observations):
    """The levels and steps that observations (..., 2k) of `LevelEnv`, stacked k times, tell: the newest comes last."""
    return observations[..., -2].astype(np.int64), observations[..., -1].astype(np.int64)


def colour(images):
    """The levels and steps that observations (..., 3, 36, 36) of `ImageLevelEnv` tell."""
    return images[..., 0, 0, 0].astype(np.int64), images[..., 1, 0, 0].astype(np.int64)


def gae(rewards, values, next_values, dones, final_values, gamma):
    """Advantages (T, N) by the equations, step by step; `final_values` is 0 where an episode truly ended."""
    advantages, carried = np.zeros_like(values), np.zeros(values.shape[1])
    for t in reversed(range(len(values))):
        following = np.where(dones[t], final_values[t], values[t + 1] if t + 1 < len(values) else next_values)
        carried = rewards[t] + gamma * following - values[t] + gamma * GAE_LAMBDA * ~dones[t] * carried
        advantages[t] = carried
    return advantages


def parts(levels, dones):
    """The episodes and parts of episodes in a block, in the order in which they ended: (column, rows, level)."""
    found = []
    for n in range(levels.shape[1]):
        start = 0
        for t in range(len(levels)):
            if dones[t, n] or t + 1 == len(levels):
                assert (levels[start : t + 1, n] == levels[start, n]).all()
                found.append((t, n, slice(start, t + 1), int(levels[start, n])))
                start = t + 1
    return [part[1:] for part in sorted(found, key=lambda part: part[:2])]


class Truth(BaseCallback):
    """Follows a `LevelReplayCallback`, and checks it against what the observations tell and SB3 itself computed.

    After every rollout: each row's level, and the server's score of every level, which must be the mean |A| of the
    level's last rows, with the A that SB3 learns from. `watch` collects more of each rollout for a test of its own.
    """

    def __init__(self, callback, address, *, told=pair, watch=None):
        super().__init__()
        self.followed, self.trainer, self.told, self.watch = callback, Trainer(address), told, watch
        self.rows = self.episodes = self.timeouts = 0
        self.levels: set[int] = set()
        self.scores: dict[int, float] = {}

    def _init_callback(self):
        ids, scores, _, seen = self.trainer.scores()
        self.scores = dict(zip(ids[seen].tolist(), scores[seen].tolist(), strict=True))

    def _on_rollout_start(self):
        self.rewards, self.final_values = [], []

    def _on_step(self):
        self.rewards.append(self.locals["rewards"].copy())
        self.last_obs = self.locals["new_obs"]
        self.final_values.append(np.zeros(len(self.rewards[-1])))
        if not isinstance(self.model, RecurrentPPO):
            for n, info in enumerate(self.locals["infos"]):
                if info["TimeLimit.truncated"]:
                    self.final_values[-1][n] = self.value(info["terminal_observation"][None])[0]
        return True

    def value(self, observations):
        with torch.no_grad():
            return self.model.policy.predict_values(self.model.policy.obs_to_tensor(observations)[0]).numpy()[:, 0]

    def _on_rollout_end(self):
        buffer = self.model.rollout_buffer
        levels, steps = self.told(buffer.observations)
        np.testing.assert_array_equal(self.followed.levels, levels)
        lengths, truncated = np.vectorize(episode_of, otypes=[np.int64, np.bool_])(levels)
        dones = steps + 1 == lengths
        if self.watch is None:
            for n, rows, level in parts(levels, dones):
                self.scores[level] = np.abs(buffer.advantages[rows, n]).mean()
            ids, scores, _, seen = self.trainer.scores()
            assert set(ids[seen].tolist()) == set(self.scores)
            np.testing.assert_allclose(scores[seen], [self.scores[level] for level in ids[seen].tolist()], **TOLERANCE)
        else:
            self.watch(self, levels, steps, dones)
        self.rows += levels.size
        self.episodes += dones.sum()
        self.timeouts += (dones & truncated).sum()
        self.levels |= set(levels.ravel().tolist())


def train(model, address, steps, *, told=pair, watch=None, more=(), **fields):
    """Trains, checking all the while; returns the callback and the truth."""
    callback = LevelReplayCallback(address)
    truth = Truth(callback, address, told=told, watch=watch)
    model.learn(steps, callback=[callback, truth, *more], **fields)
    return callback, truth


@pytest.fixture(scope="module")
def run():
    with launch(curriculum()) as server:
        yield server.address


@pytest.fixture(scope="module", params=[DummyVecEnv, SubprocVecEnv], ids=lambda cls: cls.__name__)
def played(request, run):
    envs = request.param([lambda: LevelReplay(MaskedLevelEnv(), run)] * 3)
    yield run, envs
    envs.close()


@pytest.mark.parametrize("algorithm", [PPO, A2C, RecurrentPPO, MaskablePPO, TRPO], ids=lambda cls: cls.__name__)
def test_every_row_is_credited_to_its_level_and_scored_with_the_advantages_that_sb3_learns_from(played, algorithm):
    address, envs = played
    _, truth = train(agent(algorithm, envs), address, 16 * 3 * 20)
    assert truth.rows == 16 * 3 * 20
    assert truth.episodes > 100
    assert truth.timeouts > 30
    assert len(truth.levels) > 30


@pytest.mark.parametrize("algorithm", [PPO, A2C], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("gamma", [GAMMA, 0.5], ids=["sb3's gamma", "another gamma"])
def test_scores_equal_advantages_computed_from_the_env_and_the_critic_alone(algorithm, gamma):
    """Rewards and ends in closed form from the observations, and every V asked of the critic anew."""
    expected = {}

    def watch(truth, levels, steps, dones):
        buffer = truth.model.rollout_buffer
        values = truth.value(buffer.observations.reshape(-1, 2)).reshape(levels.shape)
        given = (values, truth.value(truth.last_obs), dones, np.array(truth.final_values))
        np.testing.assert_allclose(gae(reward_of(levels, steps), *given, GAMMA), buffer.advantages, **TOLERANCE)
        advantages = gae(reward_of(levels, steps), *given, gamma)
        for n, rows, level in parts(levels, dones):
            expected[level] = np.abs(advantages[rows, n]).mean()
        ids, scores, _, seen = truth.trainer.scores()
        np.testing.assert_allclose(scores[seen], [expected[level] for level in ids[seen].tolist()], **TOLERANCE)

    with launch(curriculum(gamma=gamma)) as server:
        envs = DummyVecEnv([lambda: LevelReplay(LevelEnv(), server.address)] * 3)
        _, truth = train(agent(algorithm, envs, learning_rate=0.05), server.address, 16 * 3 * 10, watch=watch)
        envs.close()
    assert truth.timeouts > 10
    assert len(expected) > 20


def test_normalised_rewards_are_scored_on_the_scale_of_the_values():
    with launch(curriculum()) as server:
        inner = DummyVecEnv([lambda: LevelReplay(LevelEnv(), server.address)] * 3)
        envs = VecNormalize(inner, norm_obs=False, gamma=GAMMA)
        original, given = [], []

        class Scales(BaseCallback):
            def _on_step(self):
                given.append(self.locals["rewards"].copy())
                original.append(self.training_env.get_original_reward())
                return True

        _, truth = train(agent(PPO, envs), server.address, 16 * 3 * 10, more=[Scales()])
        envs.close()
    assert truth.timeouts > 10
    assert np.mean(original) > 5 * np.mean(given)  # two scales indeed, and the scores above were on SB3's


@pytest.mark.parametrize(
    "wrapped",
    [
        VecMonitor,
        lambda envs: VecFrameStack(envs, 3),
        lambda envs: VecNormalize(VecMonitor(VecFrameStack(envs, 2)), norm_obs=False, gamma=GAMMA),
    ],
    ids=["VecMonitor", "VecFrameStack", "all three"],
)
def test_vector_env_wrappers_may_be_between(wrapped):
    with launch(curriculum()) as server:
        envs = wrapped(DummyVecEnv([lambda: LevelReplay(LevelEnv(), server.address)] * 3))
        _, truth = train(agent(PPO, envs), server.address, 16 * 3 * 5)
        envs.close()
    assert truth.episodes > 20


def test_images_are_transposed_between():
    with launch(curriculum()) as server:
        envs = VecTransposeImage(DummyVecEnv([lambda: LevelReplay(ImageLevelEnv(), server.address)] * 3))
        model = PPO("CnnPolicy", envs, n_steps=16, batch_size=48, n_epochs=1, gamma=GAMMA, gae_lambda=GAE_LAMBDA)
        _, truth = train(model, server.address, 16 * 3 * 3, told=colour)
        envs.close()
    assert truth.episodes > 10


def test_a_single_env_that_sb3_wraps_itself():
    with launch(curriculum()) as server:
        model = agent(PPO, LevelReplay(LevelEnv(), server.address))
        _, truth = train(model, server.address, 16 * 10)
        model.get_env().close()
    assert truth.episodes > 10


def test_episodes_longer_than_a_rollout_and_than_a_call_of_learn_are_scored_whole_when_stitched():
    """A frozen critic, blocks of 3 steps, episodes of 1 to 9: each score is over the episode from its first step."""
    history = []

    def watch(truth, levels, steps, dones):
        buffer = truth.model.rollout_buffer
        final_values = np.array(truth.final_values)
        history.append((levels, steps, dones, final_values, buffer.values.copy()))
        assert levels.shape == (3, 3)

    with launch(curriculum(partial="stitch")) as server, Trainer(server.address) as trainer:
        envs = DummyVecEnv([lambda: LevelReplay(LevelEnv(), server.address)] * 3)
        model = agent(PPO, envs, n_steps=3, batch_size=9, learning_rate=0.0)
        callback = LevelReplayCallback(server.address)
        truth = Truth(callback, server.address, watch=watch)
        for call in range(5):
            model.learn(3 * 3 * 12, callback=[callback, truth], reset_num_timesteps=call == 0)
        ids, scores, _, seen = trainer.scores()
        stats = trainer.stats()
        next_values = truth.value(truth.last_obs)
        envs.close()
    levels, steps, dones, final_values, values = map(np.concatenate, zip(*history, strict=True))
    assert (steps[1:] == np.where(dones[:-1], 0, steps[:-1] + 1)).all()  # nothing was lost between the calls
    advantages = gae(reward_of(levels, steps), values, next_values, dones, final_values, GAMMA)
    expected = {}
    for n, rows, level in parts(levels, dones):
        if dones[rows, n].any():
            expected[level] = np.abs(advantages[rows, n]).mean()
    assert max(episode_of(level)[0] for level in expected) > 6
    assert stats["steps"] == 5 * 3 * 3 * 12
    assert stats["episodes"] == dones.sum() > 50
    np.testing.assert_allclose(scores[seen], [expected[level] for level in ids[seen].tolist()], **TOLERANCE)
    assert seen.sum() == len(expected) > 20


def test_an_episode_cut_by_a_new_training_run_is_not_joined_to_the_next_one():
    """One level: the episode under way when `learn` resets the env must not go on in the block after."""
    with launch(curriculum(levels=[LONG], partial="stitch")) as server, Trainer(server.address) as trainer:
        envs = DummyVecEnv([lambda: LevelReplay(LevelEnv(), server.address)])
        model = agent(PPO, envs, n_steps=4, batch_size=4, learning_rate=0.0)
        callback = LevelReplayCallback(server.address)
        model.learn(4, callback=callback)
        scored_whole = []
        truth = Truth(
            callback, server.address, watch=lambda t, *_: scored_whole.append(t.model.rollout_buffer.values.copy())
        )
        model.learn(12, callback=[callback, truth])
        values, final_value = np.concatenate(scored_whole)[:9, 0], truth.value(np.array([[LONG, 9.0]]))
        score = trainer.scores()[1][0]
        envs.close()
    dones = np.arange(9)[:, None] == 8
    final_values = np.where(dones & episode_of(LONG)[1], final_value, 0.0)
    advantages = gae(reward_of(LONG, np.arange(9.0))[:, None], values[:, None], [0.0], dones, final_values, GAMMA)
    np.testing.assert_allclose(score, np.abs(advantages).mean(), **TOLERANCE)


LONG = next(level for level in range(60) if episode_of(level)[0] == 9)


def test_a_rollout_that_another_callback_stopped_is_dropped_and_so_is_the_row_with_the_stale_observation():
    class Levels(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            self.told = pair(self.model.rollout_buffer.observations)[0]
            self.pushed = callback.levels

    with launch(curriculum()) as server, Trainer(server.address) as trainer:
        envs = DummyVecEnv([lambda: LevelReplay(LevelEnv(), server.address)] * 3)
        model, callback, levels = agent(PPO, envs, n_steps=32), LevelReplayCallback(server.address), Levels()
        model.learn(96, callback=[callback, StopTrainingOnMaxEpisodes(2)])
        assert model.num_timesteps < 96
        assert trainer.stats()["steps"] == 0
        model.learn(96, callback=[callback, levels], reset_num_timesteps=False)
        envs.close()
        assert (levels.told[0] != levels.pushed[0]).any()  # an episode ended just before the stop
        np.testing.assert_array_equal(levels.told[1:], levels.pushed[1:])
        assert trainer.stats()["steps"] == 31 * 3


@pytest.mark.parametrize("same_callback", [True, False])
@pytest.mark.parametrize("evaluated", [True, False])
def test_after_an_evaluation_on_the_training_envs_the_row_with_the_stale_observation_is_left_out(
    evaluated, same_callback
):
    with launch(curriculum(partial="stitch")) as server, Trainer(server.address) as trainer:
        envs = DummyVecEnv([lambda: LevelReplay(LevelEnv(), server.address)] * 3)
        model = agent(PPO, envs)
        callback = LevelReplayCallback(server.address)
        model.learn(48, callback=callback)
        if evaluated:
            evaluate_policy(model, envs, 5, warn=False)
        if not same_callback:
            callback = LevelReplayCallback(server.address)
        told = []

        class Levels(BaseCallback):
            def _on_step(self):
                return True

            def _on_rollout_end(self):
                told.append(pair(self.model.rollout_buffer.observations)[0] == callback.levels)

        model.learn(48, callback=[callback, Levels()], reset_num_timesteps=False)
        assert told[0][1:].all()
        if evaluated:
            assert not told[0][0].all()
        else:
            assert told[0][0].all()
        # Nobody told a callback of its own whether the envs had been played since.
        assert trainer.stats()["steps"] == 48 + (48 if same_callback and not evaluated else 45)
        envs.close()


def test_an_evaluation_on_the_training_envs_in_mid_training_is_refused():
    class Evaluates(BaseCallback):
        def _on_step(self):
            if self.n_calls == 5:
                evaluate_policy(self.model, self.training_env, 2, warn=False)
            return True

    with launch(curriculum()) as server, Trainer(server.address) as trainer:
        envs = DummyVecEnv([lambda: LevelReplay(LevelEnv(), server.address)] * 3)
        with pytest.raises(
            InvalidInput, match=r"^envs\[0\]: expected a new episode only where one has ended .*evaluate"
        ):
            agent(PPO, envs).learn(48, callback=[LevelReplayCallback(server.address), Evaluates()])
        assert trainer.stats()["pushes"] == 0
        envs.close()


@pytest.mark.parametrize("vec_env", [DummyVecEnv, SubprocVecEnv], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("repeats", [1, 3], ids=["", "and keeps the info of a first step"])
def test_a_wrapper_that_resets_inside_its_step_is_refused(run, vec_env, repeats):
    class Trials(gym.Wrapper):
        trial = 0

        def step(self, action):
            for _ in range(repeats):
                result = self.env.step(action)
                if result[2] or result[3]:
                    break
            self.trial += result[2] or result[3]
            if (result[2] or result[3]) and self.trial % 3:
                return self.env.reset()[0], result[1], False, False, result[4]
            return result

    envs = vec_env([lambda: Trials(LevelReplay(LevelEnv(), run))] * 2)
    with pytest.raises(InvalidInput, match=r"^envs\[[01]\]: .* put LevelReplay around a wrapper that resets inside"):
        agent(PPO, envs, n_steps=64).learn(128, callback=LevelReplayCallback(run))
    envs.close()


def test_both_ends_must_name_the_same_curriculum():
    with launch({"default": curriculum(), "train": curriculum()}) as server:
        envs = DummyVecEnv([lambda: LevelReplay(LevelEnv(), server.address, curriculum="train")] * 2)
        model = agent(PPO, envs)
        expected = r"^curriculum: expected the curriculum that every LevelReplay asks, 'train' .*, got 'default'$"
        with pytest.raises(InvalidInput, match=expected):
            model.learn(32, callback=LevelReplayCallback(server.address))
        model.learn(32, callback=LevelReplayCallback(server.address, curriculum="train"))
        with Trainer(server.address, curriculum="train") as trainer:
            assert trainer.stats()["steps"] == 32
        envs.close()


def test_with_keys_envs_are_workers_and_the_callback_is_a_trainer(tmp_path):
    worker, trainer = (make_key(tmp_path, name=role, role=role) for role in ("worker", "trainer"))
    with launch(curriculum(), keys=tmp_path) as server:
        envs = DummyVecEnv([lambda: LevelReplay(LevelEnv(), server.address, keys=worker)] * 2)
        model = agent(PPO, envs)
        with pytest.raises(NotAllowed, match="expected the key of a trainer or an operator, got that of the worker"):
            model.learn(32, callback=LevelReplayCallback(server.address, keys=worker))
        model.learn(32, callback=LevelReplayCallback(server.address, keys=trainer))
        with Trainer(server.address, keys=trainer) as reading:
            assert reading.stats()["steps"] == 32
        envs.close()


def test_an_eval_env_without_level_replay_takes_no_levels_from_training():
    with launch(curriculum()) as server, Trainer(server.address) as trainer:
        envs = DummyVecEnv([lambda: LevelReplay(LevelEnv(), server.address)] * 3)
        eval_envs = DummyVecEnv([LevelEnv])
        evaluation = EvalCallback(eval_envs, eval_freq=16, n_eval_episodes=4, verbose=0, warn=False)
        agent(PPO, envs).learn(96, callback=[LevelReplayCallback(server.address), evaluation])
        stats = trainer.stats()
        assert stats["draws"] == stats["episodes"] + 3  # those that still play
        assert evaluation.last_mean_reward != -np.inf
        envs.close()


def test_levels_picked_through_the_options_are_left_out():
    picked = next(level for level in range(5000, 6000) if episode_of(level)[0] == 9)  # outside the curriculum
    left_out = []

    def watch(truth, levels, steps, dones):  # noqa: ARG001
        left_out.append((levels == picked).sum())

    with launch(curriculum()) as server, Trainer(server.address) as trainer:
        envs = DummyVecEnv([lambda: LevelReplay(LevelEnv(), server.address)] * 3)
        envs.set_options([{"level": picked}, {}, {"level": picked}])
        _, truth = train(agent(A2C, envs), server.address, 16 * 3 * 3, watch=watch)
        assert trainer.stats()["steps"] == truth.rows - 18
        envs.close()
    assert left_out == [18, 0, 0]


def test_the_score_sees_the_returns_of_the_env_and_its_successes():
    """learnability asks for p(1 - p) of the last two episodes: every return is above 0, every second is a success."""

    class Alternating(gym.Wrapper):
        episodes = 0

        def step(self, action):
            *result, info = self.env.step(action)
            if result[2] or result[3]:
                self.episodes += 1
                info["is_success"] = bool(self.episodes % 2)
            return (*result, info)

    scores = {}
    for outside in (Alternating, gym.Wrapper):
        config = curriculum(levels=[3], strategy="learnability", window=2)
        with launch(config) as server, Trainer(server.address) as trainer:
            envs = DummyVecEnv([lambda: outside(LevelReplay(LevelEnv(), server.address))])  # noqa: B023
            agent(A2C, envs).learn(64, callback=LevelReplayCallback(server.address))
            envs.close()
            scores[outside] = trainer.scores()[1][0]
    assert scores == {Alternating: 0.25, gym.Wrapper: 0.0}


def test_a_bootstrap_at_a_time_limit_is_no_return():
    """maxmc remembers a level's highest return: it is the env's, without the V that SB3 adds."""
    level = next(level for level in range(60) if episode_of(level) == (1, True))
    with launch(curriculum(levels=[level], strategy="maxmc")) as server, Trainer(server.address) as trainer:
        envs = DummyVecEnv([lambda: LevelReplay(LevelEnv(), server.address)])
        model = agent(PPO, envs, learning_rate=0.0)
        _, truth = train(model, server.address, 16, watch=lambda *_: None)
        value = truth.value(np.array([[level, 0.0]]))[0]
        bootstrap = model.rollout_buffer.rewards[0] - reward_of(level, 0)
        np.testing.assert_allclose(trainer.scores()[1], reward_of(level, 0) - value, **TOLERANCE)
        assert abs(bootstrap.item()) > 0.01
        envs.close()


@pytest.mark.parametrize(("algorithm", "log_interval", "lines"), [(PPO, 1, 6), (A2C, 4, 1)])
def test_metrics_go_to_sb3s_logger_when_it_logs(tmp_path, algorithm, log_interval, lines):
    with launch(curriculum()) as server, Trainer(server.address) as trainer:
        envs = DummyVecEnv([lambda: LevelReplay(LevelEnv(), server.address)] * 3)
        model = agent(algorithm, envs)
        model.set_logger(configure(str(tmp_path), ["csv"]))
        model.learn(16 * 3 * 6, callback=LevelReplayCallback(server.address), log_interval=log_interval)
        stats = trainer.stats()
        model.logger.close()
        envs.close()
    with (tmp_path / "progress.csv").open() as file:
        logged = [row for row in csv.DictReader(file) if row["curriculum/seen_share"]]
    assert len(logged) == lines
    for name in ("seen_share", "mean_score", "effective_levels", "replay_share"):
        assert float(logged[-1][f"curriculum/{name}"]) > 0
    if algorithm is PPO:
        assert float(logged[-1]["curriculum/mean_score"]) == stats["mean_score"]
        assert float(logged[-1]["curriculum/effective_levels"]) == stats["effective_levels"]


def test_off_policy_algorithms_are_refused(run):
    model = DQN("MlpPolicy", DummyVecEnv([lambda: LevelReplay(LevelEnv(), run)]), buffer_size=100, device="cpu")
    with pytest.raises(InvalidInput, match=r"model: expected an on-policy algorithm, such as PPO, .* got DQN"):
        model.learn(10, callback=LevelReplayCallback(run))
    assert model.num_timesteps == 0


class Forgetful(gym.Wrapper):
    """Drops the info of resets."""

    def reset(self, **kwargs):
        return self.env.reset(**kwargs)[0], {}


@pytest.mark.parametrize(
    "bare", [lambda _: LevelEnv(), lambda address: Forgetful(LevelReplay(LevelEnv(), address))], ids=["bare", "dropped"]
)
def test_envs_without_level_replay_are_refused_before_the_first_step(run, bare):
    envs = DummyVecEnv([lambda: LevelReplay(LevelEnv(), run), lambda: bare(run)])
    model = agent(PPO, envs)
    with pytest.raises(InvalidInput, match=r"reset_infos\[1\]: expected plr_level in the info of every reset"):
        model.learn(32, callback=LevelReplayCallback(run))
    assert model.num_timesteps == 0
    envs.close()


def test_an_episode_begun_without_a_reset_is_refused(run):
    """As under EpisodicLifeEnv around LevelReplay: the old level goes on, and nobody says so."""

    class Lives(gym.Wrapper):
        begun = False

        def reset(self, **kwargs):
            if self.begun:
                return np.zeros(2), {"lives": 1}
            self.begun = True
            return self.env.reset(**kwargs)

    envs = DummyVecEnv([lambda: Lives(LevelReplay(LevelEnv(), run))])
    with pytest.raises(InvalidInput, match=r"reset_infos\[0\]: .*, got \['lives'\]"):
        agent(PPO, envs).learn(64, callback=LevelReplayCallback(run))
    envs.close()


def test_a_wrong_address_is_refused_at_once():
    with pytest.raises(InvalidInput, match="address"):
        LevelReplayCallback("localhost:5555")


def test_a_server_that_is_gone_is_waited_for_as_long_as_said():
    with launch(curriculum()) as server:
        envs = DummyVecEnv([lambda: LevelReplay(LevelEnv(), server.address)])
        model, callback = agent(PPO, envs), LevelReplayCallback(server.address, timeout_s=0.2)

        class Ends(BaseCallback):
            def _on_step(self):
                if self.n_calls == 16:  # of 16, so that no env asks any more
                    server.stop()
                return True

        with pytest.raises(ServerUnreachable) as raised:
            model.learn(16, callback=[callback, Ends()])
    assert 0.2 <= raised.value.waited_s < 5.0


def test_without_sb3_the_import_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3.common.callbacks", None)
    with pytest.raises(MissingDependency, match=r"stable-baselines3, .* pip install 'plr-server\[sb3\]'"):
        runpy.run_path(sb3.__file__)


@pytest.mark.parametrize("missing", [True, False])
def test_of_an_sb3_that_is_broken_the_import_says_what_broke(monkeypatch, missing):
    name = "stable_baselines3.common.callbacks"
    if missing:
        monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "gymnasium", None)
    else:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    with pytest.raises(ImportError, match="gymnasium" if missing else "BaseCallback") as raised:
        runpy.run_path(sb3.__file__)
    assert not isinstance(raised.value, MissingDependency)


PAGE = (Path(__file__).parents[2] / "docs" / "sb3.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("code", SNIPPETS, ids=["first", "robust"])
def test_what_the_page_shows_runs_as_it_stands(code):
    scope = {}
    exec(compile(code, "docs/sb3.md", "exec"), scope)  # noqa: S102  it is our own
    assert scope["model"].num_timesteps == 4096


def test_the_buffer_on_the_page_hands_out_replayed_rows_only():
    """Ground truth is what each env says of itself; a row's truth travels through the buffer as its return."""
    definitions = SNIPPETS[1].split("with launch")[0]
    scope = {}
    exec(compile(definitions, "docs/sb3.md", "exec"), scope)  # noqa: S102  it is our own
    handed_out, masks = [], []

    class Checked(scope["ReplayedRows"]):
        def get(self, batch_size=None):
            for batch in super().get(batch_size):
                handed_out.append(batch.returns.numpy())
                yield batch

    class Said(BaseCallback):
        def _on_rollout_start(self):
            self.said = [self.training_env.get_attr("train")]

        def _on_step(self):
            self.said.append(self.training_env.get_attr("train"))
            return True

        def _on_rollout_end(self):
            train = np.array(self.said[:-1])
            np.testing.assert_array_equal(scope["callback"].train_mask, train)
            self.model.rollout_buffer.returns[:] = train
            masks.append(train)

    with launch(curriculum(robust=True, replay_schedule="fixed")) as server:
        envs = DummyVecEnv([lambda: LevelReplay(LevelEnv(), server.address)] * 3)
        scope["callback"] = LevelReplayCallback(server.address)
        model = agent(scope["RobustPPO"], envs, rollout_buffer_class=Checked)
        model.learn(16 * 3 * 10, callback=[scope["callback"], Said()])
        envs.close()
    assert (np.concatenate(handed_out) == 1.0).all()
    assert len(np.concatenate(handed_out)) >= 48 * 5
    assert 100 < np.sum(masks) < 380


class IntegerRewards(LevelEnv):
    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, 0, *rest


def test_sb3_cuts_the_bootstrap_of_integer_rewards_in_subproc_vec_env_and_the_scores_follow(run):
    """The trap that the page warns of; should this fail, SB3 has mended it."""
    rewards = []

    def watch(truth, levels, steps, dones):  # noqa: ARG001
        truncated = dones & np.vectorize(lambda level: episode_of(level)[1])(levels)
        rewards.append((truth.model.rollout_buffer.rewards[truncated], np.array(truth.final_values)[truncated]))

    envs = SubprocVecEnv([lambda: LevelReplay(IntegerRewards(), run)])
    train(agent(PPO, envs, n_steps=64), run, 64, watch=watch)
    envs.close()
    (given, final_values), *_ = rewards
    assert len(given) > 3
    np.testing.assert_array_equal(given, np.trunc(GAMMA * final_values))
    assert (abs(GAMMA * final_values) > 0.01).all()


def test_the_example_trains():
    stats = sb3_ppo.train(timesteps=2048, num_envs=4)
    assert stats["steps"] == 2048
    assert stats["episodes"] > 20

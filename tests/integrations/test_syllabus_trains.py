"""The two snippets of Syllabus' documentation, in real training runs, with nothing but their imports changed."""

from __future__ import annotations

from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from level_env import LevelEnv
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor, VecNormalize
from torch import nn

from wrappers.syllabus import (
    DiscreteTaskSpace,
    GymnasiumSyncWrapper,
    PrioritizedLevelReplay,
    TaskWrapper,
    make_multiprocessing_curriculum,
)

LEVELS = 30
torch.set_num_threads(1)


class LevelTasks(TaskWrapper):
    def __init__(self, env):
        super().__init__(env)
        self.task_space = DiscreteTaskSpace(LEVELS)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def change_task(self, new_task):
        self.task = new_task
        self.env.unwrapped.next_level = new_task

    def observation(self, observation):
        return observation.astype(np.float32)


def make_env(curriculum):
    def thunk():
        env = LevelTasks(LevelEnv())
        return GymnasiumSyncWrapper(env, env.task_space, curriculum.components)

    return thunk


@pytest.fixture
def pushed(monkeypatch):
    """Every block that reaches the server, as it was pushed."""
    blocks = []
    init = PrioritizedLevelReplay.__init__

    def watched(self, *args, **kwargs):
        init(self, *args, **kwargs)
        push = self._trainer.push

        def record(values, rewards, dones, levels, next_values, **more):
            scored = push(values, rewards, dones, levels, next_values, **more)
            blocks.append(SimpleNamespace(**locals() | more))
            return scored

        self._trainer.push = record

    monkeypatch.setattr(PrioritizedLevelReplay, "__init__", watched)
    return blocks


def gae(values, rewards, dones, next_values, valid, gamma, gae_lambda):
    """Returns (T, N) advantages by a loop over valid rows: what the trainer really had decides every score."""
    advantages = np.zeros_like(values)
    for n in range(values.shape[1]):
        after, advantage = next_values[n], 0.0
        for t in reversed(range(len(values))):
            if not valid[t, n]:
                continue
            delta = rewards[t, n] + gamma * after * (not dones[t, n]) - values[t, n]
            advantage = delta + gamma * gae_lambda * advantage * (not dones[t, n])
            advantages[t, n], after = advantage, values[t, n]
    return advantages


def possible_scores(block, true_levels, gamma, gae_lambda):
    """Returns, by level, the mean |A| of each of its episodes in a block, or parts of one."""
    advantages = np.abs(
        gae(block.values, block.rewards, block.dones, block.next_values, block.valid, gamma, gae_lambda)
    )
    scores = {}
    for n in range(advantages.shape[1]):
        part = []
        rows = np.flatnonzero(block.valid[:, n])
        for t in rows:
            part.append(advantages[t, n])
            if block.dones[t, n] or t == rows[-1]:
                scores.setdefault(true_levels[t, n], []).append(np.mean(part))
                part = []
    return scores


def check(curriculum, blocks, true_levels, true_valid, gamma, gae_lambda, least):
    """Every row pushed is of the level that the trainer's observation told, and the server scored just that."""
    latest = {}
    for block, levels, valid in zip(blocks, true_levels, true_valid, strict=True):
        assert (block.valid == valid).all()
        assert (block.levels == levels)[valid].all()
        latest |= possible_scores(block, levels, gamma, gae_lambda)
    assert sum(block.valid.sum() for block in blocks) >= least
    assert sum((block.dones & block.valid).sum() for block in blocks) >= least / 10
    assert len(latest) >= 20
    levels, scores, _, seen = curriculum._trainer.scores()
    assert set(levels[seen].tolist()) == set(latest)
    for level, score in zip(levels[seen].tolist(), scores[seen].tolist(), strict=True):
        assert any(score == pytest.approx(possible, rel=1e-4) for possible in latest[level])


class Agent(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 16), nn.Tanh())
        self.critic, self.actor = nn.Linear(16, 1), nn.Linear(16, 2)

    def get_value(self, x):
        return self.critic(self.body(x / 30))

    def get_action_and_value(self, x, action=None):
        hidden = self.body(x / 30)
        policy = torch.distributions.Categorical(logits=self.actor(hidden))
        action = policy.sample() if action is None else action
        return action, policy.log_prob(action), policy.entropy(), self.critic(hidden)


@pytest.mark.parametrize("snippet", ["get_attr", "infos"])
def test_cleanrl(pushed, snippet):  # noqa: PLR0915  one script, as CleanRL has it
    torch.manual_seed(1)
    args = SimpleNamespace(num_envs=8, num_steps=64, gamma=0.99, gae_lambda=0.95, num_updates=8)
    curriculum = PrioritizedLevelReplay(
        DiscreteTaskSpace(LEVELS),
        task_sampler_kwargs_dict={"strategy": "value_l1", "rho": 0.5, "replay_schedule": "fixed"},
        num_steps=args.num_steps,
        num_processes=args.num_envs,
        gamma=args.gamma,
        gae_lambda=args.gae_lambda,
        seed=1,
    )
    curriculum = make_multiprocessing_curriculum(curriculum)
    envs = gym.vector.AsyncVectorEnv([make_env(curriculum)] * args.num_envs)  # NEXT_STEP: dummy rows
    if snippet == "infos":
        envs = gym.wrappers.vector.DictInfoToList(envs)
    agent = Agent()
    optimizer = torch.optim.Adam(agent.parameters(), lr=2.5e-4)
    shape = (args.num_steps, args.num_envs)
    obs, actions = torch.zeros((*shape, 2)), torch.zeros(shape)
    logprobs, rewards, dones, values = (torch.zeros(shape) for _ in range(4))
    true_levels, true_valid = [], []
    next_obs, _ = envs.reset(seed=1)
    next_obs, next_done = torch.Tensor(next_obs), torch.zeros(args.num_envs)
    for _ in range(args.num_updates):
        for step in range(args.num_steps):
            obs[step], dones[step] = next_obs, next_done
            with torch.no_grad():
                action, logprob, _, value = agent.get_action_and_value(next_obs)
                values[step] = value.flatten()
            actions[step], logprobs[step] = action, logprob
            next_obs, reward, terminations, truncations, infos = envs.step(action.numpy())
            done = np.logical_or(terminations, truncations)
            rewards[step] = torch.tensor(reward).view(-1)
            next_obs, next_done = torch.Tensor(next_obs), torch.Tensor(done)

            # --- the snippet: of older releases, or of 0.7
            with torch.no_grad():
                next_value = agent.get_value(next_obs)
            if snippet == "get_attr":
                tasks = envs.get_attr("task")

                update = {
                    "update_type": "on_demand",
                    "metrics": {
                        "value": value,
                        "next_value": next_value,
                        "rew": reward,
                        "dones": done,
                        "tasks": tasks,
                    },
                }
                curriculum.update_curriculum(update)
            else:
                tasks = [i["task"] for i in infos]

                update = {
                    "value": value,
                    "next_value": next_value,
                    "rew": reward,
                    "dones": done,
                    "tasks": tasks,
                }
                curriculum.update(update)
            # ---

        true_levels.append(obs[:, :, 0].long().numpy().copy())
        true_valid.append(~dones.bool().numpy())  # here dones[t] says that obs[t] ended: its row is no transition
        with torch.no_grad():
            advantages = torch.tensor(
                gae(
                    values.numpy(), rewards.numpy(), np.vstack([dones[1:], next_done]) > 0,
                    agent.get_value(next_obs).flatten().numpy(), true_valid[-1], args.gamma, args.gae_lambda,
                )
            )  # fmt: skip
        keep = torch.tensor(true_valid[-1])
        for _ in range(2):
            _, newlogprob, entropy, newvalue = agent.get_action_and_value(obs[keep], actions[keep])
            ratio = (newlogprob - logprobs[keep]).exp()
            policy_loss = -torch.min(ratio * advantages[keep], ratio.clamp(0.8, 1.2) * advantages[keep]).mean()
            value_loss = (newvalue.flatten() - values[keep] - advantages[keep]).pow(2).mean()
            loss = policy_loss + 0.5 * value_loss - 0.01 * entropy.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    envs.close()
    check(curriculum, pushed, true_levels, true_valid, args.gamma, args.gae_lambda, least=3000)
    assert sum((~valid).sum() for valid in true_valid) > 300  # dummy rows there were
    assert curriculum._trainer.stats()["replay_share"] > 0.1
    curriculum.stop()


class Told(BaseCallback):
    """Keeps the levels that the rollout's observations tell."""

    def __init__(self):
        super().__init__()
        self.levels = []

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        self.levels.append(self.model.rollout_buffer.observations[:, :, 0].astype(np.int64))


class OlderCallback(BaseCallback):
    def __init__(self, curriculum, verbose=0):
        super().__init__(verbose)
        self.curriculum = curriculum

    def _on_step(self) -> bool:
        tasks = self.training_env.venv.venv.get_attr("task")

        update = {
            "update_type": "on_demand",
            "metrics": {
                "value": self.locals["values"],
                "next_value": self.locals["values"],
                "rew": self.locals["rewards"],
                "dones": self.locals["dones"],
                "tasks": tasks,
            },
        }
        self.curriculum.update_curriculum(update)
        return True


class PLRCallback(BaseCallback):
    def __init__(self, curriculum, verbose=0):
        super().__init__(verbose)
        self.curriculum = curriculum

    def _on_step(self) -> bool:
        tasks = [i["task"] for i in self.locals["infos"]]

        obs = self.locals["new_obs"]
        obs_tensor = torch.tensor(obs, dtype=torch.float32).to(self.model.device)
        with torch.no_grad():
            new_value = self.model.policy.predict_values(obs_tensor)

        update = {
            "value": self.locals["values"],
            "next_value": new_value,
            "rew": self.locals["rewards"],
            "dones": self.locals["dones"],
            "tasks": tasks,
        }
        self.curriculum.update(update)
        return True


@pytest.mark.parametrize(
    ("callback", "vector", "num_envs"),
    [(OlderCallback, DummyVecEnv, 8), (PLRCallback, DummyVecEnv, 8), (PLRCallback, SubprocVecEnv, 2)],
)
def test_stable_baselines3(pushed, callback, vector, num_envs):
    curriculum = PrioritizedLevelReplay(
        DiscreteTaskSpace(LEVELS),
        task_sampler_kwargs_dict={"rho": 0.5, "replay_schedule": "fixed"},
        num_steps=64,
        num_processes=num_envs,
        gamma=0.99,
        gae_lambda=0.95,
        seed=5,
    )
    curriculum = make_multiprocessing_curriculum(curriculum)
    venv = vector([make_env(curriculum)] * num_envs)
    venv = VecNormalize(VecMonitor(venv), norm_obs=False, norm_reward=True)
    model = PPO("MlpPolicy", venv, n_steps=64, batch_size=128, n_epochs=2, gamma=0.99, seed=5, device="cpu")
    told = Told()
    model.learn(8 * 64 * num_envs, callback=[callback(curriculum), told])
    venv.close()
    levels = told.levels[: len(pushed)]
    assert len(levels) == (8 if callback is PLRCallback else 7)  # the older one's last block still waits for a value
    check(curriculum, pushed, levels, [np.ones_like(block, bool) for block in levels], 0.99, 0.95, least=440 * num_envs)
    if callback is PLRCallback:
        stats = curriculum._trainer.stats()
        assert stats["replay_share"] > 0.1
    curriculum.stop()


def test_metrics_go_to_tensorboards_writer_interface():
    """SB3's own logger writes the same pairs."""
    curriculum = PrioritizedLevelReplay(DiscreteTaskSpace(LEVELS))
    model = PPO("MlpPolicy", LevelTasks(LevelEnv()), device="cpu")
    model.learn(0)
    writer = SimpleNamespace(log=lambda pair: [model.logger.record(*item) for item in pair.items()])
    curriculum.log_metrics(writer, None)
    assert model.logger.name_to_value["curriculum/proportion_seen"] == 0.0
    curriculum.stop()

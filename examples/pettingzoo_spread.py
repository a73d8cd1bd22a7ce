"""Several agents, one curriculum: PPO with a shared policy on MPE's simple_spread, a PettingZoo parallel env.

A level is a seed: where the three agents and the three landmarks begin. The lines marked PLR are what the curriculum
adds. Needs torch and mpe2 (pip install torch mpe2).
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import numpy as np
import torch
from mpe2 import simple_spread_v3
from torch import nn

from plr_client import Trainer  # PLR
from plr_server import Config, launch  # PLR
from wrappers.pettingzoo import LevelReplayParallel  # PLR

NUM_ENVS, NUM_STEPS, GAMMA, GAE_LAMBDA = 8, 50, 0.9, 0.95


class Agent(nn.Module):
    """The policy and the critic that all agents share."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = nn.Sequential(nn.Linear(18, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 5))
        self.critic = nn.Sequential(nn.Linear(18, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))

    def value(self, observations: list) -> np.ndarray:
        with torch.no_grad():
            return self.critic(torch.as_tensor(np.array(observations))).squeeze(-1).numpy()


def advantages(steps: list[dict], next_value: float) -> np.ndarray:
    """Generalised advantage estimates of what one agent did, one episode after the other."""
    result, carried = np.zeros(len(steps)), 0.0
    for t, step in reversed(list(enumerate(steps))):
        following = step["final_value"] if step["done"] else next_value
        carried = step["reward"] + GAMMA * following - step["value"] + GAMMA * GAE_LAMBDA * carried * (not step["done"])
        result[t], next_value = carried, step["value"]
    return result


def learn(agent: Agent, optimizer: torch.optim.Optimizer, played: list[dict]) -> None:
    gathered = {name: np.array([step[name] for step in played]) for name in played[0]}
    batch = {name: torch.as_tensor(array) for name, array in gathered.items()}
    batch["advantage"] = (batch["advantage"] - batch["advantage"].mean()) / (batch["advantage"].std() + 1e-8)
    for _ in range(4):
        for rows in torch.randperm(len(played)).split(400):
            some = {name: array[rows] for name, array in batch.items()}
            policy = torch.distributions.Categorical(logits=agent.policy(some["observation"]))
            ratio = (policy.log_prob(some["action"]) - some["log_prob"]).exp()
            gain = torch.min(ratio * some["advantage"], ratio.clamp(0.8, 1.2) * some["advantage"]).mean()
            error = (agent.critic(some["observation"]).squeeze(-1) - some["target"]).square().mean()
            optimizer.zero_grad()
            (0.5 * error - gain - 0.01 * policy.entropy().mean()).float().backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimizer.step()


def play(agent: Agent, envs: list, observations: list) -> list[dict]:
    """Plays NUM_STEPS steps in all envs; returns, for each env, what each of its agents did, step by step."""
    played = [defaultdict(list) for _ in envs]
    for _ in range(NUM_STEPS):
        for e, env in enumerate(envs):
            if not env.agents:
                observations[e], _ = env.reset()
        playing = [(e, name) for e, env in enumerate(envs) for name in env.agents]
        seen = [observations[e][name] for e, name in playing]
        with torch.no_grad():
            policy = torch.distributions.Categorical(logits=agent.policy(torch.as_tensor(np.array(seen))))
        chosen = policy.sample()
        rows = zip(seen, chosen.tolist(), policy.log_prob(chosen).tolist(), agent.value(seen), strict=True)
        for (e, name), row in zip(playing, rows, strict=True):
            played[e][name].append(dict(zip(("observation", "action", "log_prob", "value"), row, strict=True)))
        for e, env in enumerate(envs):
            steps = {name: played[e][name][-1] for name in env.agents}
            actions = {name: step["action"] for name, step in steps.items()}
            observations[e], rewards, terminations, truncations, _ = env.step(actions)
            for name, step in steps.items():
                step["reward"], step["done"] = rewards[name], terminations[name] or truncations[name]
                step["cut"] = truncations[name] and not terminations[name]  # by the time limit: bootstrap
                step["final_value"] = agent.value(observations[e][name]) if step["cut"] else np.float32(0)
    return played


def train(rollouts: int, seed: int) -> tuple[list[float], dict]:
    """Returns the mean reward of a step, for each rollout, and the server's stats."""
    torch.manual_seed(seed)
    agent = Agent()
    optimizer = torch.optim.Adam(agent.parameters(), lr=1e-3)
    config = Config(levels=range(200), gamma=GAMMA, gae_lambda=GAE_LAMBDA, staleness_coef=0.3, seed=seed)  # PLR
    mean_rewards = []
    with launch(config) as server, Trainer(server.address) as trainer:  # PLR
        envs = [simple_spread_v3.parallel_env() for _ in range(NUM_ENVS)]
        envs = [LevelReplayParallel(env, server.address) for env in envs]  # PLR
        observations = [env.reset()[0] for env in envs]
        for _ in range(rollouts):
            played = play(agent, envs, observations)
            for e, (env, steps_of) in enumerate(zip(envs, played, strict=True)):
                next_values = {name: agent.value(observations[e][name]) for name in env.agents}
                values = {name: [step["value"] for step in steps] for name, steps in steps_of.items()}
                finals = {name: [s["final_value"] for s in steps if s["cut"]] for name, steps in steps_of.items()}
                env.push(values, next_values, final_values=finals)  # PLR
                for name, steps in steps_of.items():
                    for step, advantage in zip(steps, advantages(steps, next_values.get(name, 0.0)), strict=True):
                        step["advantage"], step["target"] = advantage, advantage + step["value"]
            everything = [step for steps_of in played for steps in steps_of.values() for step in steps]
            learn(agent, optimizer, everything)
            mean_rewards.append(float(np.mean([step["reward"] for step in everything])))
        stats = trainer.stats()
        for env in envs:
            env.close()
    return mean_rewards, stats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rollouts", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rewards, stats = train(args.rollouts, args.seed)
    first, last = np.mean(rewards[:10]), np.mean(rewards[-10:])
    print(f"reward per step    {first:.2f} in the first ten rollouts, {last:.2f} in the last ten")
    print(f"levels seen        {stats['levels_seen']} of {stats['levels']}, replay share {stats['replay_share']:.0%}")
    print(f"episodes           {stats['episodes']} of three agents each, {stats['steps']} steps")


if __name__ == "__main__":
    main()

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

from plr_client import Trainer
from plr_server import Config, launch  # PLR
from wrappers.pettingzoo import LevelReplayParallel  # PLR

NUM_ENVS, NUM_STEPS, GAMMA, GAE_LAMBDA = 8, 50, 0.9, 0.95


class Agent(nn.Module):
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


def train(rollouts: int, seed: int) -> tuple[list[float], dict]:
    """Returns the mean reward of a step, for each rollout, and the server's stats."""
    torch.manual_seed(seed)
    agent = Agent()
    optimizer = torch.optim.Adam(agent.parameters(), lr=1e-3)
    config = Config(levels=range(200), gamma=GAMMA, gae_lambda=GAE_LAMBDA, staleness_coef=0.3)  # PLR
    rewards_seen = []
    with launch(config) as server, Trainer(server.address) as trainer:  # PLR
        envs = [simple_spread_v3.parallel_env() for _ in range(NUM_ENVS)]
        envs = [LevelReplayParallel(env, server.address) for env in envs]  # PLR
        observations = [env.reset()[0] for env in envs]
        for _ in range(rollouts):
            played = [defaultdict(list) for _ in envs]  # of each env: what each agent did, step by step
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
                for (e, name), (observation, action, log_prob, value) in zip(playing, rows, strict=True):
                    step = {"observation": observation, "action": action, "log_prob": log_prob, "value": value}
                    played[e][name].append(step)
                for e, env in enumerate(envs):
                    names = list(env.agents)
                    actions = {name: played[e][name][-1]["action"] for name in names}
                    observations[e], rewards, terminations, truncations, _ = env.step(actions)
                    for name in names:
                        step = played[e][name][-1]
                        step["reward"], step["done"] = rewards[name], terminations[name] or truncations[name]
                        step["cut"] = truncations[name] and not terminations[name]
                        step["final_value"] = agent.value(observations[e][name]) if step["cut"] else np.float32(0)
            for e, env in enumerate(envs):
                next_values = {name: agent.value(observations[e][name]) for name in env.agents}
                env.push(  # PLR
                    {name: [step["value"] for step in steps] for name, steps in played[e].items()},  # PLR
                    next_values,  # PLR
                    final_values={n: [s["final_value"] for s in steps if s["cut"]] for n, steps in played[e].items()},
                )  # PLR
                for name, steps in played[e].items():
                    for step, advantage in zip(steps, advantages(steps, next_values.get(name, 0.0)), strict=True):
                        step["advantage"], step["target"] = advantage, advantage + step["value"]
            everything = [step for env in played for steps in env.values() for step in steps]
            learn(agent, optimizer, everything)
            rewards_seen.append(float(np.mean([step["reward"] for step in everything])))
        stats = trainer.stats()
        for env in envs:
            env.close()
    return rewards_seen, stats


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

"""PPO in the manner of CleanRL, in one file, on MiniGrid and on Procgen (there with the IMPALA network).

`cleanrl_ppo_uniform.py` plays levels drawn uniformly. `cleanrl_ppo.py` is the same file with a curriculum that decides
which level each episode plays; the lines it adds are marked PLR, and docs/cleanrl.md shows the whole difference.

    python examples/cleanrl_ppo.py --env-id MiniGrid-MultiRoom-N2-S4-v0
    python examples/cleanrl_ppo.py --env-id procgen:bigfish --num-envs 64 --num-steps 256 --num-minibatches 8 \
        --update-epochs 3 --learning-rate 5e-4 --gamma 0.999 --total-timesteps 25000000
"""

from __future__ import annotations

import argparse
import dataclasses
import time

import gymnasium as gym
import minigrid.wrappers
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers.vector import NormalizeReward, RecordEpisodeStatistics, TransformReward
from torch import nn
from torch.distributions import Categorical
from torch.utils.tensorboard import SummaryWriter

from wrappers.procgen import ProcgenVector


@dataclasses.dataclass
class Args:
    """The settings, each an option of the command line."""

    env_id: str = "MiniGrid-MultiRoom-N2-S4-v0"  # or procgen:GAME
    num_levels: int = 200
    total_timesteps: int = 500_000
    num_envs: int = 16
    num_steps: int = 128
    num_minibatches: int = 4
    update_epochs: int = 4
    learning_rate: float = 1e-3
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_coef: float = 0.2
    ent_coef: float = 0.01
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    seed: int = 1
    log_dir: str = "runs/cleanrl_ppo"  # for tensorboard --logdir runs


class UniformLevels(gym.vector.VectorWrapper):
    """Procgen on levels drawn uniformly; its episodes begin in the step that ended the one before."""

    def __init__(self, envs: VectorEnv, num_levels: int, rng: np.random.Generator) -> None:
        super().__init__(envs)
        self.draw = lambda: rng.integers(num_levels, size=envs.num_envs).tolist()

    def reset(self, **_: object) -> tuple:
        return self.env.reset(seed=self.draw())

    def step(self, actions: np.ndarray) -> tuple:
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        if terminations.any():
            observations, _ = self.env.reset(seed=self.draw(), options={"reset_mask": terminations})
        return observations, rewards, terminations, truncations, infos


def make_env(env_id: str) -> gym.Env:
    env = gym.make(env_id)
    return minigrid.wrappers.ImgObsWrapper(env) if env_id.startswith("MiniGrid") else env


def layer_init(layer: nn.Linear, std: float = 2**0.5) -> nn.Linear:
    nn.init.orthogonal_(layer.weight, std)
    nn.init.zeros_(layer.bias)
    return layer


class Residual(nn.Module):
    """A residual block of the IMPALA network."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        convolutions = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.layers = nn.Sequential(*(layer for conv in convolutions for layer in (nn.ReLU(), conv)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


def impala() -> nn.Sequential:
    """Returns the network of arXiv 1802.01561 from images (B, 3, 64, 64) to features (B, 256)."""
    blocks, channels = [], 3
    for width in (16, 32, 32):
        blocks += [nn.Conv2d(channels, width, 3, padding=1), nn.MaxPool2d(3, stride=2, padding=1)]
        blocks += [Residual(width), Residual(width)]
        channels = width
    return nn.Sequential(*blocks, nn.ReLU(), nn.Flatten(), layer_init(nn.Linear(2048, 256)), nn.ReLU())


def small() -> nn.Sequential:
    """Returns a network from MiniGrid's views (B, 3, 7, 7) to features (B, 256)."""
    convolutions = nn.Conv2d(3, 16, 2), nn.ReLU(), nn.Conv2d(16, 32, 2), nn.ReLU()
    return nn.Sequential(*convolutions, nn.Flatten(), layer_init(nn.Linear(800, 256)), nn.ReLU())


class Agent(nn.Module):
    """A policy and a critic on the features of one network."""

    def __init__(self, envs: VectorEnv) -> None:
        super().__init__()
        is_procgen = envs.single_observation_space.shape == (64, 64, 3)
        self.network, self.scale = (impala(), 255) if is_procgen else (small(), 10)
        self.actor = layer_init(nn.Linear(256, int(envs.single_action_space.n)), std=0.01)
        self.critic = layer_init(nn.Linear(256, 1), std=1)

    def forward(self, images: torch.Tensor) -> tuple[Categorical, torch.Tensor]:
        """Takes uint8 images (B, height, width, 3) to the policy and the values (B,)."""
        features = self.network(images.permute(0, 3, 1, 2) / self.scale)
        return Categorical(logits=self.actor(features)), self.critic(features).squeeze(1)


def train(args: Args) -> None:  # noqa: PLR0915  from top to bottom, as in CleanRL
    rng = np.random.default_rng(args.seed)
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    writer = SummaryWriter(args.log_dir)

    # The envs
    is_procgen = args.env_id.startswith("procgen:")
    if is_procgen:
        envs = ProcgenVector(args.env_id.removeprefix("procgen:"), args.num_envs)
        envs = UniformLevels(envs, args.num_levels, rng)
    else:
        tapes = rng.integers(args.num_levels, size=(args.num_envs, 10_000)).tolist()
        envs = SyncVectorEnv(
            [lambda tape=tape: minigrid.wrappers.ReseedWrapper(make_env(args.env_id), tape) for tape in tapes]
        )
    envs = statistics = RecordEpisodeStatistics(envs)
    if is_procgen:
        envs = TransformReward(NormalizeReward(envs, gamma=args.gamma), lambda rewards: np.clip(rewards, -10, 10))
    # In NEXT_STEP the step after an end only resets: its row, whose observation is the terminal one, is no transition.
    has_reset_rows = envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP

    agent = Agent(envs).to(device)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)

    # The rollout. As in CleanRL, dones[t] tells that the step before obs[t] ended an episode, be it by a time limit.
    shape = (args.num_steps, args.num_envs)
    obs = np.zeros(shape + envs.single_observation_space.shape, np.uint8)
    actions = np.zeros(shape, np.int64)
    logprobs, rewards, values = (np.zeros(shape, np.float32) for _ in range(3))
    dones = np.zeros(shape, np.bool_)

    next_obs, _ = envs.reset()
    next_done = np.zeros(args.num_envs, np.bool_)
    num_updates = args.total_timesteps // (args.num_steps * args.num_envs)
    start = time.monotonic()
    for update in range(num_updates):
        optimizer.param_groups[0]["lr"] = (1 - update / num_updates) * args.learning_rate

        for step in range(args.num_steps):
            obs[step], dones[step] = next_obs, next_done
            with torch.no_grad():
                policy, value = agent(torch.as_tensor(next_obs, device=device))
                action = policy.sample()
                logprobs[step], values[step] = policy.log_prob(action).cpu(), value.cpu()
            actions[step] = action.cpu()
            next_obs, rewards[step], terminations, truncations, _ = envs.step(actions[step])
            next_done = terminations | truncations

        # Generalised advantage estimation
        with torch.no_grad():
            next_value = agent(torch.as_tensor(next_obs, device=device))[1].cpu().numpy()
        valid = ~dones if has_reset_rows else np.ones_like(dones)
        ends = np.vstack([dones[1:], next_done])
        advantages = rewards + args.gamma * np.vstack([values[1:], next_value]) * ~ends - values
        for t in reversed(range(args.num_steps - 1)):
            advantages[t] += args.gamma * args.gae_lambda * ~ends[t] * advantages[t + 1]

        # The batch, of rows that are transitions
        fields = (obs, actions, logprobs, advantages, advantages + values, values)
        batch = [torch.as_tensor(field[valid], device=device) for field in fields]
        for _ in range(args.update_epochs):
            for rows in np.array_split(rng.permutation(valid.sum()), args.num_minibatches):
                mb_obs, mb_actions, mb_logprobs, mb_advantages, mb_returns, mb_values = (field[rows] for field in batch)
                policy, value = agent(mb_obs)
                mb_advantages = (mb_advantages - mb_advantages.mean()) / (mb_advantages.std() + 1e-8)
                ratio = (policy.log_prob(mb_actions) - mb_logprobs).exp()
                clipped_ratio = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
                policy_loss = -torch.min(mb_advantages * ratio, mb_advantages * clipped_ratio).mean()
                clipped_value = mb_values + (value - mb_values).clamp(-args.clip_coef, args.clip_coef)
                value_loss = 0.5 * torch.max((value - mb_returns) ** 2, (clipped_value - mb_returns) ** 2).mean()
                loss = policy_loss - args.ent_coef * policy.entropy().mean() + args.vf_coef * value_loss
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                optimizer.step()

        steps, seconds = (update + 1) * valid.size, time.monotonic() - start
        returns = statistics.return_queue
        mean = f"{np.mean(returns):.3f}" if returns else "none yet"
        writer.add_scalar("charts/mean_return", np.mean(returns) if returns else np.nan, steps)
        print(f"{steps:,} steps, {steps / seconds:,.0f}/s, mean return of the last {len(returns)} episodes: {mean}")

    envs.close()
    writer.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for field in dataclasses.fields(Args):
        option = "--" + field.name.replace("_", "-")
        parser.add_argument(option, type=type(field.default), default=field.default, help="default: %(default)s")
    args = Args(**vars(parser.parse_args()))
    train(args)

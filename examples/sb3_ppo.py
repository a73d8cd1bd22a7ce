"""Stable-Baselines3's PPO on MiniGrid: the seven lines marked PLR are all that the curriculum asks of the script.

pip install 'plr-server[sb3,minigrid]'
"""

from __future__ import annotations

import argparse
from functools import partial

import gymnasium as gym
import minigrid  # noqa: F401  registers its envs
from gymnasium.wrappers import FlattenObservation, TransformReward
from minigrid.wrappers import ImgObsWrapper
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from plr_client import Trainer  # for the summary at the end
from plr_server import Config, launch  # PLR
from wrappers import LevelReplay  # PLR
from wrappers.sb3 import LevelReplayCallback  # PLR

GAMMA, GAE_LAMBDA = 0.99, 0.95


def make_env(address: str) -> gym.Env:
    env = gym.make("MiniGrid-MultiRoom-N2-S4-v0")
    env = FlattenObservation(ImgObsWrapper(env))
    env = TransformReward(env, float)  # MiniGrid's 0 is an int, and SB3 would cut its bootstrap to an int as well
    return LevelReplay(env, address)  # PLR


def train(timesteps: int, num_envs: int = 8, seed: int = 0, verbose: int = 0) -> dict:
    """Returns what the server has counted."""
    config = Config(levels=range(200), gamma=GAMMA, gae_lambda=GAE_LAMBDA, seed=seed)  # PLR
    with launch(config) as server:  # PLR
        envs = VecMonitor(DummyVecEnv([partial(make_env, server.address)] * num_envs))
        discounts = {"gamma": GAMMA, "gae_lambda": GAE_LAMBDA}
        model = PPO("MlpPolicy", envs, n_steps=128, **discounts, seed=seed, verbose=verbose, device="cpu")
        model.learn(timesteps, callback=LevelReplayCallback(server.address))  # PLR
        envs.close()
        with Trainer(server.address) as trainer:
            return trainer.stats()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--timesteps", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    stats = train(args.timesteps, seed=args.seed, verbose=1)
    print(f"levels seen       {stats['levels_seen']} of {stats['levels']}, replay share {stats['replay_share']:.0%}")
    print(f"effective levels  {stats['effective_levels']:.1f}, mean score {stats['mean_score']:.3f}")


if __name__ == "__main__":
    main()

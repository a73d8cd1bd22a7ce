"""RLlib's PPO on MiniGrid, on levels that a curriculum server on the Ray cluster assigns.

The lines marked PLR are all there is to it. It starts a Ray cluster of this machine alone; with --ray ADDRESS it joins
one of yours, whose nodes all need this project installed.
"""

from __future__ import annotations

import argparse

import gymnasium as gym
import minigrid
import numpy as np
import ray
from minigrid.wrappers import ImgObsWrapper
from ray.rllib.algorithms.ppo import PPOConfig
from ray.tune.registry import register_env

from plr_client import Trainer
from plr_server import Config  # PLR
from wrappers import LevelReplay  # PLR
from wrappers.ray import address, start, stop  # PLR
from wrappers.rllib import LevelReplayPPOTorchLearner  # PLR

GAMMA, GAE_LAMBDA = 0.99, 0.95


def make_env(_: dict) -> gym.Env:
    gym.register_envs(minigrid)
    env = gym.wrappers.FlattenObservation(ImgObsWrapper(gym.make("MiniGrid-Empty-Random-6x6-v0")))
    space = gym.spaces.Box(0.0, 1.0, env.observation_space.shape, np.float32)
    env = gym.wrappers.TransformObservation(env, lambda image: np.float32(image) / 10, space)
    return LevelReplay(env, address())  # PLR: in place of env


def train(args: argparse.Namespace) -> None:
    register_env("minigrid", make_env)
    curriculum = Config(levels=range(200), gamma=GAMMA, gae_lambda=GAE_LAMBDA, seed=args.seed)  # PLR
    start(curriculum, keys=args.keys)  # PLR
    config = (
        PPOConfig()
        .environment("minigrid")
        .env_runners(num_env_runners=args.env_runners, num_envs_per_env_runner=4)
        .fault_tolerance(restart_failed_env_runners=False)  # else what an env raises is only logged
        .learners(num_learners=args.learners)
        .learners(learner_class=LevelReplayPPOTorchLearner, learner_config_dict={"plr_address": address()})  # PLR
        .training(gamma=GAMMA, lambda_=GAE_LAMBDA, lr=1e-3)
        .training(train_batch_size_per_learner=1024, minibatch_size=128, num_epochs=4)
        .debugging(seed=args.seed)
    )
    algorithm = config.build_algo()
    with Trainer(address()) as trainer:
        for iteration in range(args.iterations):
            result = algorithm.train()
            stats = trainer.stats()
            print(
                f"iteration {iteration}  return {result['env_runners']['episode_return_mean']:.2f}  "
                f"levels seen {stats['levels_seen']}  replay share {stats['replay_share']:.0%}"
            )
    algorithm.stop()
    stop()  # PLR


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--env-runners", type=int, default=2)
    parser.add_argument("--learners", type=int, default=0, help="0: in this process")
    parser.add_argument("--ray", default="local", metavar="ADDRESS", help="a cluster to join, such as auto")
    parser.add_argument(
        "--keys", metavar="DIR", help="of plr-server keygen, for several nodes; PLR_KEYS names a trainer's"
    )
    args = parser.parse_args()
    ray.init(args.ray)
    train(args)
    ray.shutdown()


if __name__ == "__main__":
    main()

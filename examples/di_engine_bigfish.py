"""PPG on Procgen's bigfish in DI-engine's shipped configuration, with its levels from a curriculum server.

The configuration is DI-engine's own: PPG, min_margin, rank, temperature 0.1, schedule fixed, 500 levels, 64 envs in
processes of their own, CUDA. The line marked PLR is the difference to running it as it is. `--tiny` makes the networks,
batches and envs few and small enough for two CPU cores, and leaves what the curriculum reads.
"""

from __future__ import annotations

import argparse
from copy import deepcopy
from typing import Any

from dizoo.procgen.config.bigfish_plr_config import create_config, main_config

from wrappers.di_engine import serial_pipeline_plr  # PLR: instead of ding.entry.serial_entry_plr


def shipped(exp_name: str, *, tiny: bool) -> tuple[Any, Any]:
    """Returns DI-engine's configuration of bigfish, for `serial_pipeline_plr`."""
    main, create = deepcopy(main_config), deepcopy(create_config)
    main.exp_name = exp_name
    if tiny:
        main.env.update(collector_env_num=4, evaluator_env_num=1, n_evaluator_episode=1)
        main.policy.cuda = False
        main.policy.model.encoder_hidden_size_list = [4, 8, 16]
        main.policy.learn.batch_size = main.policy.collect.n_sample = 256
        create.env_manager.type = "base"  # one process
    # As shipped they are 256, which do not fit the encoder: DI-engine 0.5.3 stops in the first forward.
    encoded = main.policy.model.encoder_hidden_size_list[-1]
    main.policy.model.update(actor_head_hidden_size=encoded, critic_head_hidden_size=encoded)
    return main, create


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--exp-name", default="bigfish_plr", help="folder for logs and checkpoints")
    parser.add_argument("--seed", type=int, default=0, help="of the run, its curriculum included")
    parser.add_argument("--max-env-step", type=int, default=25_000_000)
    parser.add_argument("--address", help="of a running server, instead of one that ends with the run")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    config, create = shipped(args.exp_name, tiny=args.tiny)
    if args.address:
        config.level_replay = {"strategy": config.level_replay.strategy, "address": args.address}
    serial_pipeline_plr((config, create), seed=args.seed, max_env_step=args.max_env_step)


if __name__ == "__main__":
    main()

"""LevelReplayCallback: pushes what Stable-Baselines3 learns from to the curriculum server, each row for its level.

May be imported by users; needs `stable-baselines3` (the extra `sb3`). It only looks on: it never changes what SB3
collects or learns, picks no levels (`LevelReplay` inside the vector env does) and scores nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plr_client import InvalidInput, Trainer
from plr_client.address import Address
from plr_client.errors import needed
from plr_client.keys import KeyFile
from plr_client.protocol import DEFAULT_CURRICULUM
from plr_client.report import SCORES, TOP_LEVELS, markdown

with needed("stable-baselines3", "sb3", "stable_baselines3", "torch"):
    import torch
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

_NOT_TENSORBOARD = ("stdout", "log", "json", "csv")

_PLAYED = {"levels": np.int64, "train": np.bool_, "scored": np.bool_}  # from a reset to the next
_ENDED = {"dones": np.bool_, "truncated": np.bool_, "successes": np.bool_}
_ROW = np.dtype([("rewards", np.float32), *_ENDED.items(), *_PLAYED.items()])  # rewards as SB3's buffer keeps them


class LevelReplayCallback(BaseCallback):
    """Hands the rollouts of an on-policy SB3 algorithm to the server, and its metrics to SB3's logger.

    For PPO, A2C and what else derives from `OnPolicyAlgorithm`, such as sb3-contrib's RecurrentPPO, over any vector env
    whose envs have a `LevelReplay`: DummyVecEnv, SubprocVecEnv, vec env wrappers around them.

    * Levels: SB3 keeps the info of every reset beside its vector env (`reset_infos`), those of autoreset too. They are
      read where an episode ended and nowhere else; nothing is asked of the envs.
    * Values and rewards are those SB3 computed its advantages from: under VecNormalize the normalised rewards, because
      the values are on that scale. With SB3's `gamma` and `gae_lambda` in the server's configuration, the
      server's advantages are SB3's.
    * At a time limit SB3 adds gamma V(terminal observation) to the reward. It is taken off again and pushed as
      `final_values`, so that returns are those of the env.
    * The V to bootstrap with at the block's end is taken from the buffer too; no network is evaluated.
    * Episodes picked through `options["level"]` are left out. `info["is_success"]`, where every episode that ended in a
      rollout has it, says which were a success.
    * Logged whenever SB3 logs: the dozen `curriculum/` numbers of `plr_client.Trainer.log_to`, and in TensorBoard its
      histogram and its table too.

    One callback serves several calls of `learn`. A rollout that another callback stopped is not pushed. Where a `learn`
    goes on without a reset, its first row is not either if SB3 acts there on an observation that the envs have left
    behind: after such a stop, after `evaluate_policy(model, model.get_env())`, and with a callback that did not follow
    the `learn` before.

    Evaluate on envs of their own, made without `LevelReplay`, or with `curriculum="eval"` where the server has one:
    otherwise their episodes are drawn from the curriculum that trains, which counts them as played.

    Attributes:
        levels: (T, N) int64, the level of each row of the rollout last collected; (0, 0) before there is one.
        train_mask: (T, N) bool, False where the trainer should not learn from it (robust PLR, new levels). SB3's
            losses take no notice of it.

    Args:
        address: where the server listens, such as `ipc:///run/plr.sock` or `tcp://127.0.0.1:5555`; or a function that
            tells (`wrappers.ray.Lookup`).
        curriculum: the name of the curriculum, where the server has several; give it to each `LevelReplay` too.
        timeout_s: seconds without a reply after which a push raises; above 0.
        keys: the path of a key file, where the server asks for keys; by default what the environment variable PLR_KEYS
            names. It has to be a trainer's; `LevelReplay` has its own.

    Raises:
        InvalidInput: the address is not an ipc or tcp address, or the timeout not above 0; or, from `learn`, the
            algorithm is off-policy, a `LevelReplay` asks another curriculum, or an env has begun an episode without a
            `LevelReplay` saying so, or otherwise than by an end in this training: in a step of a wrapper around
            `LevelReplay`, or as somebody else played it.
        PlrError: from `learn`, as `plr_client.Trainer.push`.

    Example:
        >>> from stable_baselines3 import PPO
        >>> from stable_baselines3.common.env_util import make_vec_env
        >>> from plr_server import Config, launch
        >>> from wrappers import LevelReplay
        >>> with launch(Config(levels=range(200), gamma=0.99)) as server:
        ...     envs = make_vec_env("CartPole-v1", 4, wrapper_class=lambda env: LevelReplay(env, server.address))
        ...     model = PPO("MlpPolicy", envs, n_steps=64, batch_size=64, device="cpu")
        ...     model = model.learn(256, callback=LevelReplayCallback(server.address))
        ...     envs.close()
    """

    def __init__(
        self,
        address: Address,
        *,
        curriculum: str = DEFAULT_CURRICULUM,
        timeout_s: float = 30.0,
        keys: KeyFile = None,
    ) -> None:
        super().__init__()
        self._trainer = Trainer(address, curriculum=curriculum, timeout_s=timeout_s, keys=keys)
        self._curriculum = curriculum
        self._episodes: list[int] = []  # how many the LevelReplay of each env has begun
        self._rows = np.empty((0, 0), _ROW)
        self._step = 0
        self._rollouts = 0
        self._all_say_success = True

    @property
    def levels(self) -> NDArray[np.int64]:
        return self._rows["levels"]

    @property
    def train_mask(self) -> NDArray[np.bool_]:
        return self._rows["train"]

    def _init_callback(self) -> None:
        if not isinstance(self.model, OnPolicyAlgorithm):
            expected = "an on-policy algorithm, such as PPO, A2C or RecurrentPPO (a replay buffer holds no values)"
            raise InvalidInput("model", expected, type(self.model).__name__)

    def _on_training_start(self) -> None:
        followed = self._episodes
        self._playing = np.empty(self.training_env.num_envs, [*_PLAYED.items()])
        self._episodes = [0] * len(self._playing)
        self._begin(range(len(self._playing)))
        for asked in self.training_env.get_attr("plr_curriculum"):
            if asked != self._curriculum:
                expected = f"the curriculum that every LevelReplay asks, {asked!r} (give both the same curriculum=)"
                raise InvalidInput("curriculum", expected, repr(self._curriculum))
        goes_on = not self.locals["reset_num_timesteps"]
        # Whether SB3's last observation is one that the envs have left behind, stepped by this callback or others.
        self._stale = goes_on and (self._step > 0 or self._episodes != followed)
        if self._stale or not goes_on:  # no block will go on with the episodes pushed so far
            self._trainer.close()
        self._rollouts = self._step = 0

    def _on_rollout_start(self) -> None:
        self._rows = np.zeros((self.model.n_steps, len(self._playing)), _ROW)
        self._step = 0
        self._all_say_success = True

    def _on_step(self) -> bool:
        row = self._rows[self._step]
        self._step += 1
        row["rewards"], row["dones"] = self.locals["rewards"], self.locals["dones"]
        for name in _PLAYED:
            row[name] = self._playing[name]
        if self._stale:
            row["scored"] = self._stale = False
        ended = np.flatnonzero(row["dones"])
        for n in ended:
            info = self.locals["infos"][n]
            row["truncated"][n] = info.get("TimeLimit.truncated", False)
            row["successes"][n] = info.get("is_success", False)
            self._all_say_success &= "is_success" in info
        self._check_told(row["dones"])
        self._begin(ended)
        return True

    def _on_rollout_end(self) -> None:
        rows, buffer = self._rows, self.model.rollout_buffer
        self._step = 0
        gamma = self.model.gamma or 1.0  # with 0, V was added nowhere and is read nowhere
        self._trainer.push(
            buffer.values,
            np.where(rows["truncated"], rows["rewards"], buffer.rewards),
            rows["dones"],
            rows["levels"],
            (buffer.returns[-1] - buffer.rewards[-1]) / gamma,
            truncated=rows["truncated"],
            final_values=(buffer.rewards - rows["rewards"]) / gamma,
            valid=rows["scored"],
            successes=rows["successes"] if self._all_say_success else None,
        )
        self._rollouts += 1
        log_interval = self.locals["log_interval"]
        if log_interval and self._rollouts % log_interval == 0:
            self._trainer.log_to(self._record, self.num_timesteps)

    def _record(self, values: Mapping[str, Any], _step: int) -> None:
        for name, value in values.items():
            if name == SCORES:
                self.logger.record(name, torch.as_tensor(value), exclude=_NOT_TENSORBOARD)
            elif name == TOP_LEVELS:
                self.logger.record(name, markdown(value), exclude=_NOT_TENSORBOARD)
            else:
                self.logger.record(name, value)

    def _check_told(self, dones: NDArray[np.bool_]) -> None:
        """Raises where an env has begun an episode that no end of the one before tells of."""
        told = zip(self.locals["infos"], self.training_env.unwrapped.reset_infos, dones.tolist(), strict=True)
        for n, (info, reset_info, done) in enumerate(told):
            begun = self._episodes[n]
            if info.get("plr_episode", begun) != begun or reset_info.get("plr_episode", begun + done) != begun + done:
                expected = (
                    "a new episode only where one has ended in this training (evaluate on envs of their own; put "
                    "LevelReplay around a wrapper that resets inside its step)"
                )
                got = f"one of number {max(info.get('plr_episode', 0), reset_info['plr_episode'])} after {begun}"
                raise InvalidInput(f"envs[{n}]", expected, got)

    def _begin(self, envs: Iterable[int]) -> None:
        """Notes what `envs` play from the observation last returned on."""
        infos = self.training_env.unwrapped.reset_infos
        for n in envs:
            if "plr_level" not in infos[n]:
                expected = (
                    "plr_level in the info of every reset: LevelReplay(env, address) in every env of the vector env, "
                    "outside of wrappers that drop infos or begin an episode without a reset"
                )
                raise InvalidInput(f"reset_infos[{n}]", expected, str(sorted(infos[n])))
            self._playing[n] = infos[n]["plr_level"], infos[n]["plr_train"], infos[n]["plr_scored"]
            self._episodes[n] = infos[n]["plr_episode"]

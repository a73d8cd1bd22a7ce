"""What the RLlib tests run in Ray's processes: an env that shows its level, and a learner that writes down what it saw.

The learner pushes for real; beside that it keeps, in files, what it was given to learn from (the level read from the
observations) and what it pushed.
"""

from __future__ import annotations

import collections
import itertools
import pickle
import uuid
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID

from wrappers.rllib import LevelReplayPPOTorchLearner, _PushChunks


class ShowsLevel(gym.Env):
    """Plays the level it is seeded with; the observation is (level, step), and so tells one from the other.

    Args:
        shortest, longest: between them lies the length of an episode, which the level determines, as it does whether
            a time limit ends it.
    """

    def __init__(self, shortest: int, longest: int) -> None:
        self.observation_space = spaces.Box(-1.0, 1e6, (2,), np.float32)
        self.action_space = spaces.Discrete(3)
        self._between = shortest, longest
        self._level = self._step = -1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self._level, self._step = -1 if seed is None else seed, 0  # -1: nobody assigned it
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._step += 1
        ends = self._step == length_of(self._level, *self._between)
        by_time = self._level % 2 == 0
        reward = (self._level % 7) / 7 + int(action) / 10
        return self._observe(), reward, ends and not by_time, ends and by_time, {}

    def _observe(self) -> Any:
        return np.array([self._level, self._step], np.float32)


def length_of(level: int, shortest: int, longest: int) -> int:
    return shortest + level * 7919 % (longest - shortest + 1)


class RecordingLearner(LevelReplayPPOTorchLearner):
    """Writes files into the folder `learner_config_dict["records"]`: seen-*.pkl and pushed-*.pkl, in time order."""

    def build(self) -> None:
        super().build()
        folder = Path(self.config.learner_config_dict["records"])
        look = _Look()
        self._learner_connector.prepend(look)
        self._learner_connector.append(_Write(folder, look))
        push = next(piece for piece in self._learner_connector.connectors if isinstance(piece, _PushChunks))
        really_push = push._trainer.push

        def record_and_push(**fields: Any) -> int:
            scored = really_push(**fields)
            _save(folder, "pushed", next(updates), fields)
            return scored

        updates = itertools.count()
        push._trainer.push = record_and_push


class _Look(ConnectorV2):
    """Before everything: the episodes as RLlib dealt them to this learner."""

    def __call__(self, *, batch: Any, episodes: Any, **_: Any) -> Any:
        self.chunks = [
            {
                "episode": episode.id_,
                "start": episode.t_started,
                "observations": np.array(episode.get_observations()),
                "rewards": np.array(episode.get_rewards()),
                "logits": np.array(episode.get_extra_model_outputs("action_dist_inputs")),
                "terminated": episode.is_terminated,
                "truncated": episode.is_truncated,
            }
            for episode in episodes
        ]
        return batch


class _Write(ConnectorV2):
    """After everything: V of every observation, one by one through the module, and RLlib's own value targets."""

    def __init__(self, folder: Path, look: _Look) -> None:
        super().__init__()
        self._folder, self._look = folder, look
        self._updates = itertools.count()

    def __call__(self, *, rl_module: Any, batch: Any, **_: Any) -> Any:
        module = rl_module[DEFAULT_MODULE_ID].unwrapped()
        if not module.is_stateful():
            with torch.no_grad():
                for chunk in self._look.chunks:
                    observations = torch.from_numpy(chunk["observations"])
                    chunk["values"] = module.compute_values({"obs": observations}).numpy()
        _save(self._folder, "seen", next(self._updates), self._look.chunks)
        return batch


def _save(folder: Path, kind: str, update: int, what: Any) -> None:
    with (folder / f"{kind}-{update:04d}-{uuid.uuid4().hex}.pkl").open("wb") as file:
        pickle.dump((update, what), file)


def load(folder: Path, kind: str) -> list[tuple[int, Any]]:
    """Returns what was written with the number of the update, in time order; in one update every learner writes."""
    return [pickle.loads(path.read_bytes()) for path in sorted(folder.glob(f"{kind}-*"))]  # noqa: S301  our own


def seen_rows(seen):
    """Counts (level, reward, V, logits) of every step that the learners were given, the level from the observation."""
    rows = collections.Counter()
    for _, chunks in seen:
        for chunk in chunks:
            levels = chunk["observations"][:, 0].astype(int)
            assert len(set(levels.tolist())) == 1
            for t in range(len(chunk["rewards"])):
                rows[row(levels[t], chunk["rewards"][t], chunk["values"][t], chunk["logits"][t])] += 1
    return rows


def pushed_rows(pushed):
    rows = collections.Counter()
    for _, block in pushed:
        for t, n in np.argwhere(block["valid"]):
            rows[row(*(block[name][t, n] for name in ("levels", "rewards", "values", "logits")))] += 1
    return rows


def row(level, reward, value, logits):
    return int(level), round(float(reward), 4), round(float(value), 3), tuple(np.round(logits, 4).tolist())

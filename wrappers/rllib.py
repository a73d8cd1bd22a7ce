"""RLlib's PPO (new API stack): a learner that pushes what it learns from, each step with the level it was played on.

May be imported by users; imports ray, torch, gymnasium, numpy and plr_client. It never chooses levels, which is for
`LevelReplay` around the env, and it leaves the batch that RLlib trains on as it is.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plr_client import InvalidInput, MissingDependency, MissingField, PlrError, Trainer
from plr_client.protocol import DEFAULT_CURRICULUM

try:
    import torch
    from gymnasium.spaces import Discrete
    from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
    from ray.rllib.connectors.connector_v2 import ConnectorV2
    from ray.rllib.core import DEFAULT_MODULE_ID
    from ray.rllib.core.columns import Columns
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode
    from ray.rllib.utils.postprocessing.zero_padding import unpad_data_if_necessary
    from torch import distributed
except ImportError as error:  # how ray.tune reports a module that is missing
    if not isinstance(error.__cause__ or error, ModuleNotFoundError):
        raise  # what is there is broken
    raise MissingDependency("ray[rllib]", "rllib") from error

logger = logging.getLogger("plr_client")

_CHUNKS = "plr_chunks"  # where in a pipeline's shared data the chunks wait for their values


class LevelReplayPPOTorchLearner(PPOTorchLearner):
    """PPO's learner, which pushes every batch to the curriculum server before it trains on it.

    In the configuration::

        config.learners(
            learner_class=LevelReplayPPOTorchLearner,
            learner_config_dict={"plr_address": address},
        )

    The dict may also have "plr_curriculum", where the server has several: the name that `LevelReplay` has as
    `curriculum`; "plr_timeout_s", seconds without a reply after which a push raises (default 30.0); and "plr_keys", the
    path of a trainer's key file, where the server asks for keys (default: what PLR_KEYS names at the learner).

    Pushed are the rewards that reach the advantages, V under the weights before the update, and for discrete actions
    the logits that the actions were drawn with. V of the last observation is the bootstrap where a time limit ended an
    episode and where the end of a sample cut it. An episode that goes on in the next sample is pushed as what it is,
    one episode in several blocks, so that the server's `partial` decides what it scores.

    RLlib deals the steps of one batch out to its learners, and cuts episodes to make equal shares. So with several
    learners the first one gathers all shares, puts the episodes together again and pushes once.

    Steps of episodes whose beginning no learner of this run has seen are not pushed, for nobody knows their level.

    The result of every iteration has the dozen numbers of `plr_client.Trainer.log_to`, under `learners/curriculum/`.

    Raises:
        MissingField: there is no `plr_address`.
        InvalidInput: the address is not an ipc or tcp address, or the configuration drops RLlib's own connectors. When
            training: the episodes are of several agents, their infos are not `LevelReplay`'s, or tell that a wrapper
            around it has reset inside its step; or the curriculum is robust, whose new levels this learner cannot leave
            out.
        PlrError: when training, as `plr_client.Trainer.push`; every learner raises it.
    """

    def build(self) -> None:
        """Builds the learner, and puts the two pieces into its pipeline. RLlib calls it."""
        super().build()
        settings = self.config.learner_config_dict
        if "plr_address" not in settings:
            raise MissingField("plr_address", "where the server listens, in learner_config_dict", "none")
        if self._learner_connector is None or not self.config.add_default_connectors_to_learner_pipeline:
            expected = "RLlib's own, which add the step that V is bootstrapped from"
            raise InvalidInput("learner connectors", expected, "none")
        trainer = Trainer(
            settings["plr_address"],
            curriculum=settings.get("plr_curriculum", DEFAULT_CURRICULUM),
            timeout_s=settings.get("plr_timeout_s", 30.0),
            keys=settings.get("plr_keys"),
        )
        # gloo, for these are arrays of the main memory, whatever the learners average their gradients with
        group = distributed.new_group(backend="gloo") if self.distributed else None
        self._learner_connector.prepend(_ReadChunks())
        self._learner_connector.append(_PushChunks(trainer, group))


@dataclasses.dataclass(slots=True)
class _Chunk:
    """T steps of one episode, as a learner got them.

    Attributes:
        episode: the episode's id.
        start: how many steps of the episode were before.
        steps: T.
        terminated: whether the last step ended the episode.
        truncated: whether a time limit did.
        info: that of the episode's first observation, which tells the level; empty where start is not 0.
        logits: (T, A) for discrete actions, else None.
        rewards: (T,).
        values: (T + 1,) V of the observations of the steps and of the one after.
        level: what it was played on; None where it is not to be scored.
    """

    episode: str
    start: int
    steps: int
    terminated: bool
    truncated: bool
    info: dict[str, Any]
    logits: NDArray[Any] | None
    rewards: NDArray[Any] = dataclasses.field(default_factory=lambda: np.empty(0))
    values: NDArray[Any] = dataclasses.field(default_factory=lambda: np.empty(0))
    level: int | None = None

    @property
    def done(self) -> bool:
        return self.terminated or self.truncated


@dataclasses.dataclass(frozen=True, slots=True)
class _Open:
    """An episode that goes on: its env column at the server, the steps pushed so far, and its level as in `_Chunk`."""

    column: int
    steps: int
    level: int | None


class _ReadChunks(ConnectorV2):
    """First in the pipeline: notes what RLlib's own first piece overwrites, the ids and which episodes ended."""

    def __call__(self, *, batch: Any, episodes: Any, shared_data: Any, **_: Any) -> Any:
        if not isinstance(episodes[0], SingleAgentEpisode):
            raise InvalidInput("episodes", "those of single-agent envs", type(episodes[0]).__name__)
        for episode in episodes:
            _check_one_reset(episode)
        shared_data[_CHUNKS] = [
            _Chunk(
                episode.id_,
                episode.t_started,
                len(episode),
                bool(episode.is_terminated),
                bool(episode.is_truncated and not episode.is_terminated),
                {} if episode.t_started else episode.get_infos(0),
                np.array(episode.get_extra_model_outputs(Columns.ACTION_DIST_INPUTS))
                if isinstance(episode.action_space, Discrete)
                else None,
            )
            for episode in episodes
        ]
        return batch


class _PushChunks(ConnectorV2):
    """Last in the pipeline: adds V and the rewards to the chunks, and has the first learner push those of all."""

    def __init__(self, trainer: Trainer, group: Any) -> None:
        super().__init__()
        self._trainer = trainer
        self._group = group
        self._open: dict[str, _Open] = {}
        self._columns = itertools.count()

    def __call__(self, *, rl_module: Any, batch: Any, shared_data: Any, metrics: Any, **_: Any) -> Any:
        chunks: list[_Chunk] = shared_data[_CHUNKS]
        fields = batch[DEFAULT_MODULE_ID]
        with torch.no_grad():
            values = rl_module[DEFAULT_MODULE_ID].unwrapped().compute_values(fields)
        lengths = [chunk.steps + 1 for chunk in chunks]  # RLlib has appended a step to each, for V after the last
        per_chunk = [
            np.split(unpad_data_if_necessary(lengths, tensor.numpy(force=True)), np.cumsum(lengths)[:-1])
            for tensor in (values, fields[Columns.REWARDS])
        ]
        for chunk, its_values, its_rewards in zip(chunks, *per_chunk, strict=True):
            chunk.values, chunk.rewards = its_values, its_rewards[:-1]
        if self._group is None:
            self._push_and_log(chunks, metrics)
        else:
            self._push_together(chunks, metrics)
        return batch

    def _push_together(self, chunks: list[_Chunk], metrics: Any) -> None:
        first = distributed.get_rank() == 0
        shares: list[Any] | None = [None] * distributed.get_world_size() if first else None
        distributed.gather_object(chunks, shares, group=self._group)
        outcome: list[PlrError | None] = [None]
        if shares is not None:
            try:
                self._push_and_log(itertools.chain.from_iterable(shares), metrics)
            except PlrError as raised:  # every learner has to hear of it, or would wait for this one's gradients
                outcome = [raised]
        distributed.broadcast_object_list(outcome, group=self._group)
        if outcome[0] is not None:
            raise outcome[0]

    def _push_and_log(self, chunks: Iterable[_Chunk], metrics: Any) -> None:
        self._push(chunks)
        self._trainer.log_to(lambda values, _step: _record(metrics, values), 0)  # RLlib counts its steps itself

    def _push(self, chunks: Iterable[_Chunk]) -> None:
        columns: dict[int, list[_Chunk]] = {}
        going_on: dict[str, _Open] = {}
        strays = 0
        for chunk in sorted(chunks, key=lambda chunk: (chunk.episode, chunk.start)):
            before = going_on.pop(chunk.episode, None) or self._open.get(chunk.episode)
            if chunk.start == 0:
                before = _Open(next(self._columns), 0, _level(chunk.info))
            if before is None or before.steps != chunk.start:
                strays += chunk.steps
                continue
            chunk.level = before.level
            if chunk.level is not None:
                columns.setdefault(before.column, []).append(chunk)
            if not chunk.done:
                going_on[chunk.episode] = dataclasses.replace(before, steps=chunk.start + chunk.steps)
        if strays:
            logger.warning("%d steps of episodes that began unseen are not scored: their level is not known", strays)
        if columns:
            self._trainer.push(**_block(columns))
        self._open = going_on  # what has not gone on by now was abandoned


def _record(metrics: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, float):
            metrics.log_value(tuple(name.split("/")), value, reduce="mean", window=1)


def _check_one_reset(episode: SingleAgentEpisode) -> None:
    """Raises where `LevelReplay` was reset inside the episode: it tells of a reset there and in the step after it."""
    after = max(0, 2 - episode.t_started)
    for step, info in enumerate(episode.get_infos()[after:], start=episode.t_started + after):
        if "plr_episode" in info:
            expected = "one reset in an episode (put LevelReplay around a wrapper that resets inside its step)"
            raise InvalidInput("infos", expected, f"another one before step {step}")


def _level(info: dict[str, Any]) -> int | None:
    """Returns the level of the episode that began with this info; None where it is outside the curriculum."""
    if "plr_level" not in info:
        expected = "plr_level at the start of an episode (LevelReplay around the env, no wrapper that drops infos)"
        raise InvalidInput("infos", expected, str(sorted(info)))
    if not info["plr_train"]:
        expected = "False: RLlib's PPO learns from every step, new levels too"
        raise InvalidInput("robust", expected, "True")
    return int(info["plr_level"]) if info["plr_scored"] else None


def _block(columns: dict[int, list[_Chunk]]) -> dict[str, Any]:
    """Returns the fields of one push. Whole episodes share columns; one that came or goes on has one of its own."""
    length = max(sum(chunk.steps for chunk in column) for column in columns.values())
    packed: dict[int, list[_Chunk]] = {}
    room, shared = 0, -1
    for name, column in columns.items():
        steps = sum(chunk.steps for chunk in column)
        if column[0].start > 0 or not column[-1].done:
            packed[name] = column
        elif steps <= room:
            packed[shared] += column
            room -= steps
        else:
            packed[name] = list(column)
            room, shared = length - steps, name

    shape = (length, len(packed))
    block: dict[str, NDArray[Any]] = {
        **{name: np.zeros(shape, np.float32) for name in ("values", "rewards", "final_values")},
        **{name: np.zeros(shape, np.bool_) for name in ("dones", "truncated", "valid")},
        "levels": np.zeros(shape, np.int64),
        "next_values": np.zeros(len(packed), np.float32),
        "columns": np.array(list(packed)),
    }
    like = next(iter(packed.values()))[0].logits
    if like is not None:
        block["logits"] = np.zeros((*shape, like.shape[1]), np.float32)
    for n, column in enumerate(packed.values()):
        stop = 0
        for chunk in column:
            rows = slice(stop, stop + chunk.steps)
            stop += chunk.steps
            block["values"][rows, n] = chunk.values[:-1]
            block["rewards"][rows, n] = chunk.rewards
            block["levels"][rows, n] = chunk.level
            block["valid"][rows, n] = True
            block["dones"][stop - 1, n] = chunk.done
            block["truncated"][stop - 1, n] = chunk.truncated
            block["final_values"][stop - 1, n] = block["next_values"][n] = chunk.values[-1]
            if chunk.logits is not None:
                block["logits"][rows, n] = chunk.logits
    return block

"""DI-engine: its `LevelSampler` and `serial_pipeline_plr`, with the level table on a curriculum server.

May be imported by users; imports numpy and plr_client, and plr_server and DI-engine only in the calls that need them.
It changes nothing in DI-engine's own modules.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from plr_client import ConfigError, InvalidInput, LevelClient, MissingDependency, MissingField, Trainer
from plr_client.protocol import DEFAULT_CURRICULUM
from wrappers.foreign import SeedTable, config_of, drawn_seed, own_server, share

if TYPE_CHECKING:
    from plr_server import Config

MAX_SEED = 2**24  # DI-engine's rows carry seeds as float32, which holds every integer up to here

_OF_LOGITS = ("policy_entropy", "least_confidence", "min_margin")  # the server scores these
_OF_ADVANTAGES = ("gae", "value_l1", "one_step_td_error")  # the trainer's own advantages score these
_STRATEGIES = (*_OF_LOGITS, *_OF_ADVANTAGES, "random")

_FIELD_OF = {  # of plr_server.Config, by key
    "strategy": "strategy",
    "replay_schedule": "replay_schedule",
    "score_transform": "transform",
    "temperature": "temperature",
    "eps": "eps",
    "rho": "min_fill_ratio",
    "alpha": "alpha",
    "staleness_coef": "staleness_coef",
    "staleness_temperature": "staleness_temperature",
    "seed": "seed",
}
_OF_THE_ADAPTER = ("seed", "address", "curriculum", "keys", "discount_factor", "gae_lambda")

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class LevelSampler(SeedTable):
    """Stands in for `ding.data.level_replay.level_sampler.LevelSampler`, and keeps its table on a curriculum server.

    By default it launches a server of its own, which ends with `close()`, with this object or with this process.

    Args:
        seeds: the levels, distinct ints from 0 to 2**24.
        obs_space: not read; DI-engine passes a shape.
        action_space: not read; DI-engine passes a number.
        num_actors: how many envs collect, 1 or more.
        cfg: the section `level_replay` of DI-engine's configuration, with DI-engine's keys and defaults, which become
            fields of `plr_server.Config`: `strategy`, `replay_schedule`, `temperature`, `eps`, `alpha`,
            `staleness_coef` and `staleness_temperature` as they are, `score_transform` -> `transform`, `rho` ->
            `min_fill_ratio`, `nu` -> `replay_prob` = 1 - nu under the schedule fixed, else 1. `staleness_transform` can
            only be power. And keys of ours: `seed`, of the server's generator, without which it is drawn from numpy's
            global one, as DI-engine's draws are; `discount_factor` and `gae_lambda`, those the policy's advantages
            were made with, which one_step_td_error needs. With `address`, of a running server, `curriculum`, where it
            has several, and `keys`, the path of a trainer's key file, where it asks for keys (by default what PLR_KEYS
            names), only `discount_factor`, `gae_lambda` and `strategy` may be there beside them.

    Attributes:
        config: DI-engine's keys and defaults; of the class, and of a class of yours that derives from it.
        seeds: (n,) int64.
        seed2index: the index of each seed, in `seeds` and in all arrays of one number a seed.
        address: where the server listens, for `plr_client.Trainer(address).stats()` and so on.

    Raises:
        InvalidInput: an argument or a key is not what it must be, a key is unknown, or the running server has another
            strategy.
        LevelOutsideSpace: the running server does not have these seeds.
        MissingField: one_step_td_error without `discount_factor` or `gae_lambda`.
        ServerUnreachable: no reply from the running server.
        ServerStartError: no server could be started.

    Source: arXiv 2010.03934, table 1. docs/di_engine.md lists the differences to DI-engine 0.5.3.

    >>> import contextlib
    >>> cfg = {"strategy": "min_margin", "temperature": 0.1}
    >>> with contextlib.closing(LevelSampler(range(500), (3, 64, 64), 15, 2, cfg)) as sampler:
    ...     [sampler.sample("sequential") for _ in range(3)], 0 <= sampler.sample() < 500
    ([0, 1, 2], True)
    """

    config: ClassVar[dict[str, Any]] = {
        "strategy": "policy_entropy",
        "replay_schedule": "fixed",
        "score_transform": "rank",
        "temperature": 1.0,
        "eps": 0.05,
        "rho": 0.2,
        "nu": 0.5,
        "alpha": 1.0,
        "staleness_coef": 0,
        "staleness_transform": "power",
        "staleness_temperature": 1.0,
    }

    def __init__(
        self,
        seeds: Sequence[int],
        obs_space: Any,  # noqa: ARG002  DI-engine's signature
        action_space: Any,  # noqa: ARG002  as obs_space
        num_actors: int,
        cfg: Mapping[str, Any],
    ) -> None:
        ids = np.asarray(seeds)
        if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() > MAX_SEED:
            expected = f"a list of ints from 0 to {MAX_SEED}, because DI-engine's rows carry them as float32"
            raise InvalidInput("seeds", expected, f"{seeds!r:.80}")
        section = _checked(cfg, self.config)
        self._known = frozenset(ids.tolist())
        self._strategy: str = section["strategy"]
        self._decay = _decay(section)
        self._in_turn: itertools.cycle[int] = itertools.cycle(ids.tolist())
        self._slots = itertools.cycle(range(_positive(num_actors)))
        seed = drawn_seed() if section.get("seed") is None else section["seed"]
        with contextlib.ExitStack() as resources:
            if "address" in section:
                self.address: str = section["address"]
            else:
                self.address, stop = own_server(self, _config(section | {"seed": seed}, ids.tolist()))
                resources.callback(stop)
            self._rng = np.random.default_rng(seed)
            curriculum = section.get("curriculum", DEFAULT_CURRICULUM)
            keys = section.get("keys") if "address" in section else ""
            trainer = resources.enter_context(Trainer(self.address, curriculum=curriculum, keys=keys))
            self._client = resources.enter_context(LevelClient(self.address, curriculum=curriculum, keys=keys))
            if (at_server := trainer.stats()["strategy"]) != self._strategy:
                raise InvalidInput("level_replay.strategy", f"{at_server}, that of the server", self._strategy)
            super().__init__(trainer, ids.tolist())
            self._resources = resources.pop_all()

    def sample(self, strategy: str | None = None) -> int:
        """Returns the level that the next env plays.

        Args:
            strategy: "sequential": the next of `seeds` in turn; "random": any of them. Both are outside the curriculum,
                which still scores them. None: what the curriculum draws.

        Raises:
            InvalidInput: the strategy is none of these, or the server's level is not among `seeds`.
            ServerUnreachable: no reply from the server.
        """
        if strategy == "sequential":
            return next(self._in_turn)
        if strategy == "random":
            return int(self._rng.choice(self.seeds))
        if strategy not in (None, self._strategy):
            raise InvalidInput("strategy", f"None, sequential, random or {self._strategy}", repr(strategy))
        level: int = self._client.next(slots=[next(self._slots)])[0].level
        if level not in self._known:
            raise InvalidInput("seeds", "all levels of the server at the address", f"none that is {level}")
        return level

    def update_with_rollouts(self, train_data: Mapping[str, Any], num_actors: int) -> None:
        """Scores the episodes, and parts of episodes, of what was collected since the last update.

        Args:
            train_data: the rows as DI-engine's collector returns them, trajectory after trajectory: `seed`, `done` and,
                as the strategy needs, `logit` (B, A) or `adv` (B,); `obs` and `next_obs` (B, ...), or mappings of such.
                Tensors of any device, or arrays.
            num_actors: how many envs collected them.

        Raises:
            MissingField: a column is not there.
            InvalidInput: a column has a wrong shape or value, or a trajectory two seeds; nothing was applied.
            LevelOutsideSpace: a seed is not a level of the server.
            ServerUnreachable: no reply from the server.
        """
        if self._strategy == "random":
            return
        seeds, dones = _column(train_data, "seed"), _column(train_data, "done")
        if not seeds.size or not (np.abs(seeds) <= MAX_SEED).all() or (seeds % 1).any():
            raise InvalidInput("train_data['seed']", f"levels, at least one, up to {MAX_SEED}", f"{seeds!s:.80}")
        if dones.shape != seeds.shape or not np.isin(dones, (0, 1)).all():
            raise InvalidInput("train_data['done']", f"shape {seeds.shape} of 0 and 1", f"{dones!s:.80}")
        levels, ended = seeds.astype(np.int64), dones == 1
        longest = -(-len(levels) // _positive(num_actors))
        trajectories = _trajectories(levels, ended, longest)
        episodes = _joined(trajectories, levels, ended, _given(train_data, "obs"), _given(train_data, "next_obs"))
        if self._strategy in _OF_LOGITS:
            self._push_logits(episodes, levels, _column(train_data, "logit", ndim=2))
            return
        numbers = _column(train_data, "adv")
        if numbers.shape != levels.shape:
            raise InvalidInput("train_data['adv']", f"shape {levels.shape}", f"shape {numbers.shape}")
        if self._strategy == "one_step_td_error":
            numbers = _td_errors(numbers, trajectories, self._decay)
            start, stop = trajectories[-1]
            if not ended[-1] and stop - start < longest:  # cut again, to n_sample rows: the next advantage is not there
                episodes[-1] = episodes[-1][:-1]
        if self._strategy != "gae":
            numbers = np.abs(numbers)
        scored = [rows for rows in episodes if rows.size]
        self._trainer.push_scores([levels[rows[0]] for rows in scored], [numbers[rows].mean() for rows in scored])

    def _push_logits(self, episodes: list[Ints], levels: Ints, logits: Floats) -> None:
        """Pushes the rows as one env column, in which one episode follows the other."""
        if len(logits) != len(levels):
            raise InvalidInput("train_data['logit']", f"{len(levels)} rows", f"{len(logits)}")
        order = np.concatenate(episodes)
        ends = np.zeros((len(order), 1), dtype=np.bool_)
        ends[np.cumsum([len(rows) for rows in episodes]) - 1] = True  # also where cut: every collection starts afresh
        self._trainer.push(None, None, ends, levels[order, np.newaxis], None, logits=logits[order, np.newaxis])

    def close(self) -> None:
        """Hangs up, and stops the server if it is this sampler's own. May be called twice."""
        self._resources.close()


class _NoDIEngine(MissingDependency):
    """It is no extra, because its own list holds other packages at old releases."""

    fields = ("package",)  # type: ignore[assignment]
    template = "expected package {package}, which is not installed; docs/di_engine.md says how to install it"


def serial_pipeline_plr(  # noqa: PLR0917  DI-engine's signature
    input_cfg: Any,
    seed: int = 0,
    env_setting: Any = None,
    model: Any = None,
    max_train_iter: int = int(1e10),
    max_env_step: int = int(1e10),
) -> Any:
    """Runs `ding.entry.serial_entry_plr.serial_pipeline_plr` with the `LevelSampler` of this module.

    Beside that, its collecting envs play exactly the levels they are given: DI-engine's own run seeds them without
    `dynamic_seed=False`, upon which `ProcgenEnv` adds a random number to each seed. The server it launches is gone when
    it returns; with `address` in the section `level_replay`, the running one stays.

    Args:
        input_cfg: as DI-engine takes it; its section `level_replay` as in `LevelSampler`. What that leaves out
            of `seed`, `discount_factor` and `gae_lambda` is that of the run and of its policy.
        seed: as DI-engine takes it.
        env_setting: as DI-engine takes it.
        model: as DI-engine takes it.
        max_train_iter: as DI-engine takes it.
        max_env_step: as DI-engine takes it.

    Returns:
        The policy.

    Raises:
        MissingDependency: DI-engine is not installed.
        InvalidInput: a `ProcgenEnv` would choose levels of its own (`control_level`), the policy hides where episodes
            end (`ignore_done`), or as `LevelSampler`.
        MissingField, LevelOutsideSpace, ServerUnreachable, ServerStartError: as `LevelSampler`.
    """
    try:
        from ding.entry import serial_entry_plr as entry  # noqa: PLC0415  optional
    except ModuleNotFoundError as error:
        if error.name != "ding":
            raise
        raise _NoDIEngine("DI-engine") from error

    def compile_config(*args: Any, **kwargs: Any) -> Any:
        cfg = entry.compile_config(*args, **kwargs)
        if cfg.policy.learn.get("ignore_done"):
            raise InvalidInput("policy.learn.ignore_done", "False, because rows must say where an episode ends", "True")
        section, collect = cfg.level_replay, cfg.policy.collect
        for name in ("discount_factor", "gae_lambda"):
            section.setdefault(name, collect.get(name))
        if "address" not in section:
            section.setdefault("seed", cfg.seed)
        return cfg

    def create_env_manager(*args: Any) -> Any:
        envs = entry.create_env_manager(*args)
        if getattr(envs.env_ref, "_control_level", False):
            raise InvalidInput("env.control_level", "False, or ProcgenEnv plays levels of its own choice", "True")
        envs.seed = functools.partial(envs.seed, dynamic_seed=False)  # what the evaluator asks for overrides it
        return envs

    with contextlib.ExitStack() as samplers:

        def level_sampler(*args: Any) -> LevelSampler:
            return samplers.enter_context(contextlib.closing(LevelSampler(*args)))

        names = {
            "compile_config": compile_config,
            "create_env_manager": create_env_manager,
            "LevelSampler": level_sampler,
        }
        # DI-engine's function, in which three names mean ours; its module stays as it is.
        run = types.FunctionType(entry.serial_pipeline_plr.__code__, vars(entry) | names)
        return run(input_cfg, seed, env_setting, model, max_train_iter, max_env_step)


def _checked(cfg: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the section, filled up where the server is the sampler's own, once its keys are known to go together."""
    section = {"strategy": defaults["strategy"], **cfg}
    for key in section:
        if key not in defaults and key not in _OF_THE_ADAPTER:
            raise InvalidInput(
                f"level_replay.{key}", f"a key among {', '.join([*defaults, *_OF_THE_ADAPTER])}", "an unknown key"
            )
        if "address" in section and (key == "seed" or (key in defaults and key != "strategy")):
            raise InvalidInput(f"level_replay.{key}", "none beside address: the running server has its own", "one")
    if section["strategy"] not in _STRATEGIES:
        raise InvalidInput("level_replay.strategy", f"one of {', '.join(_STRATEGIES)}", repr(section["strategy"]))
    for key in ("curriculum", "keys"):
        if key in section and "address" not in section:
            raise InvalidInput(f"level_replay.{key}", "an address beside it", "none")
    return section if "address" in section else {**defaults, **section}


def _decay(section: Mapping[str, Any]) -> float:
    """Returns gamma * lambda of the policy's advantages; 1 where no strategy reads it."""
    decay = 1.0
    for name in ("discount_factor", "gae_lambda") if section["strategy"] == "one_step_td_error" else ():
        if section.get(name) is None:
            raise MissingField(f"level_replay.{name}", "that of the policy: one_step_td_error needs it", "none")
        decay *= share(f"level_replay.{name}", section[name])
    return decay


def _config(given: Mapping[str, Any], seeds: Sequence[int]) -> Config:
    """Returns the section in our words."""
    if given["staleness_transform"] != "power":
        expected = "power, the paper's P_C"
        raise InvalidInput("level_replay.staleness_transform", expected, repr(given["staleness_transform"]))
    replay_prob = 1.0 - share("level_replay.nu", given["nu"]) if given["replay_schedule"] == "fixed" else 1.0
    fields = {field: given[key] for key, field in _FIELD_OF.items()}
    words = {field: f"level_replay.{key}" for key, field in _FIELD_OF.items()} | {"levels": "seeds"}
    try:
        return config_of(words, levels=tuple(seeds), replay_prob=replay_prob, **fields)
    except ConfigError as error:
        raise InvalidInput(*error.args) from error


def _positive(num_actors: Any) -> int:
    if isinstance(num_actors, bool) or not isinstance(num_actors, int | np.integer) or num_actors < 1:
        raise InvalidInput("num_actors", "an int, 1 or more", repr(num_actors))
    return int(num_actors)


def _given(train_data: Mapping[str, Any], name: str) -> Any:
    if train_data.get(name) is None:
        raise MissingField(f"train_data[{name!r}]", "the rows' column of that name", "none")
    return train_data[name]


def _column(train_data: Mapping[str, Any], name: str, ndim: int = 1) -> Floats:
    column = _numpy(_given(train_data, name))
    if column.ndim != ndim:
        raise InvalidInput(f"train_data[{name!r}]", "(B, A)" if ndim > 1 else "(B,)", f"shape {column.shape}")
    return column.astype(np.float64)


def _numpy(given: Any) -> NDArray[Any]:
    return np.asarray(given.detach().cpu() if hasattr(given, "detach") else given)


def _trajectories(levels: Ints, ended: NDArray[np.bool_], longest: int) -> list[tuple[int, int]]:
    """Returns where trajectories start and stop among the rows.

    The collector hands one over when its episode ends or when it has `longest` rows, and at last cuts all rows to
    `n_sample`, `longest` for each env; that may cut the last trajectory again.
    """
    trajectories, start = [], 0
    while start < len(levels):
        ends = np.flatnonzero(ended[start : start + longest])
        stop = start + int(ends[0]) + 1 if ends.size else min(start + longest, len(levels))
        if (levels[start:stop] != levels[start]).any():
            expected = f"one in a trajectory, which ends where done or after {longest} rows, n_sample / num_actors"
            raise InvalidInput(
                "train_data['seed']", expected, f"{np.unique(levels[start:stop])} in rows {start}:{stop}"
            )
        trajectories.append((start, stop))
        start = stop
    return trajectories


def _joined(
    trajectories: Iterable[tuple[int, int]], levels: Ints, ended: NDArray[np.bool_], obs: Any, next_obs: Any
) -> list[Ints]:
    """Returns the rows of each episode, or part of one, in the order in which the last of them was handed over.

    An episode longer than a trajectory is in several; the next one goes on with the observation at which one was cut.
    """
    episodes: dict[int, Ints] = {}  # by first row of the last trajectory
    cut: dict[tuple[int, bytes], int] = {}
    for start, stop in trajectories:
        rows = np.arange(start, stop)
        goes_on = cut.pop((int(levels[start]), _bytes(obs, start)), None)
        episodes[start] = rows if goes_on is None else np.concatenate([episodes.pop(goes_on), rows])
        if not ended[stop - 1]:
            cut[int(levels[start]), _bytes(next_obs, stop - 1)] = start
    return list(episodes.values())


def _bytes(observations: Any, row: int) -> bytes:
    if isinstance(observations, Mapping):
        return b"".join(_bytes(part, row) for part in observations.values())
    return _numpy(observations[row]).tobytes()


def _td_errors(advantages: Floats, trajectories: Iterable[tuple[int, int]], decay: float) -> Floats:
    """Returns delta_t = A_t - gamma lambda A_{t+1}; the last advantage of a trajectory is the delta itself.

    The rows' rewards and values would not give it: with `value_norm` values are scaled, rewards are not, and V of the
    observation after a cut is not there.

    Source: Schulman et al., arXiv 1506.02438, equation 16.
    """
    errors = advantages.copy()
    for start, stop in trajectories:
        errors[start : stop - 1] -= decay * advantages[start + 1 : stop]
    return errors

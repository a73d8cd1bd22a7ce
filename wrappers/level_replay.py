"""A drop-in for level-replay's `LevelSampler`: its train loop, played by our server.

May be imported by users, and by `wrappers.syllabus`, whose `TaskSampler` is this one in other words; imports numpy and
plr_client, never level-replay or torch. It has no code of level-replay and keeps no scores. What differs from it is in
docs/level_replay.md.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from plr_client import InvalidInput, LevelClient, Trainer
from plr_client.keys import KeyFile
from plr_client.protocol import DEFAULT_CURRICULUM
from wrappers.foreign import SeedTable, config_of, drawn_seed, host_array, own_server, replay_fields, share

if TYPE_CHECKING:
    from plr_server import Config

VALUE_STRATEGIES = ("gae", "value_l1", "one_step_td_error")
POLICY_STRATEGIES = ("policy_entropy", "least_confidence", "min_margin")
BASELINES = ("random", "sequential")
OF_ADVANTAGES = ("gae", "value_l1", "signed_value_loss", "positive_value_loss")

_WORDS = {"levels": "seeds", "transform": "score_transform", "min_fill_ratio": "rho"}  # of `Config`, in level-replay's


class LevelSampler(SeedTable):
    """Draws seeds and learns from rollouts, with the arguments and methods of level-replay's.

    It starts a server of its own, which ends with it; or uses a daemon, with `address`.

    Attributes:
        seeds: (n,) int64.
        seed2index: the index of each seed, in `seeds` and in all arrays of one number a seed.
        strategy: as given.

    Args:
        seeds: distinct ints; they are the server's level ids.
        obs_space: no effect.
        action_space: no effect: the number of actions is that of `action_log_dist`.
        num_actors: how many envs play, 1 or more.
        strategy: random, sequential, policy_entropy, least_confidence, min_margin, gae, value_l1 or one_step_td_error.
        replay_schedule: fixed or proportionate.
        score_transform: max, eps_greedy, rank, power, softmax or constant.
        temperature: of the transform, above 0.
        eps: of eps_greedy, 0 to 1.
        rho: share of seeds seen before any replay, 0 to 1; under proportionate 0 or 1.
        nu: probability of a new seed, under fixed, 0 to 1.
        alpha: weight of a new score, above 0 up to 1.
        staleness_coef: share of staleness in the weights, 0 to 1.
        staleness_transform: power.
        staleness_temperature: above 0.
        gamma: discount of one_step_td_error, 0 to 1. The other strategies take the advantages from the rollouts.
        seed: of the server's generator, 0 or more. Without one it is drawn from numpy's global generator, which
            `np.random.seed` seeds, as level-replay's draws are.
        address: where a daemon listens that is used instead; it has the configuration, these seeds as its levels, and
            the train loop's gamma and gae_lambda.
        curriculum: the name of the curriculum there; only with `address`.
        keys: the path of a trainer's key file, where the daemon asks for keys; by default what the environment variable
            PLR_KEYS names; only with `address`.

    Raises:
        InvalidInput: an argument is not what it must be or has no counterpart here, or the daemon has another strategy.
        ConfigError: a value is out of its range.
        LevelOutsideSpace: the daemon does not have these seeds.
        ServerUnreachable: no daemon at the address.
    """

    _SEEDS: ClassVar[str] = "level_seeds"  # the field of a rollout

    def __init__(  # noqa: PLR0917  as level-replay has them
        self,
        seeds: Sequence[int],
        obs_space: Any = None,  # noqa: ARG002
        action_space: Any = None,  # noqa: ARG002
        num_actors: int = 1,
        strategy: str = "random",
        replay_schedule: str = "fixed",
        score_transform: str = "power",
        temperature: float = 1.0,
        eps: float = 0.05,
        rho: float = 0.2,
        nu: float = 0.5,
        alpha: float = 1.0,
        staleness_coef: float = 0,
        staleness_transform: str = "power",
        staleness_temperature: float = 1.0,
        *,
        gamma: float = 0.999,
        seed: int | None = None,
        address: str | None = None,
        curriculum: str = DEFAULT_CURRICULUM,
        keys: KeyFile = None,
    ) -> None:
        known = (*BASELINES, *POLICY_STRATEGIES, *VALUE_STRATEGIES)
        if strategy not in known:
            raise InvalidInput("strategy", f"one of {', '.join(known)}", repr(strategy))
        if staleness_transform != "power":
            raise InvalidInput("staleness_transform", "power, with staleness_temperature", repr(staleness_transform))
        try:
            levels = tuple(map(operator.index, seeds))
        except TypeError as error:
            raise InvalidInput("seeds", "a list of ints", f"{seeds!r:.80}") from error
        if curriculum != DEFAULT_CURRICULUM and address is None:
            raise InvalidInput("curriculum", "an address beside it, of a daemon that has it", repr(curriculum))
        if keys is not None and address is None:
            raise InvalidInput("keys", "an address beside them, of a daemon that asks for keys", repr(keys))
        if seed is not None and address is not None:
            raise InvalidInput("seed", "None beside an address: the daemon has its own", repr(seed))
        at: Config | str
        if address is None:
            at = config_of(
                _WORDS,
                levels=levels,
                strategy=strategy,
                transform=score_transform,
                temperature=temperature,
                eps=eps,
                alpha=alpha,
                staleness_coef=staleness_coef,
                staleness_temperature=staleness_temperature,
                gamma=0.0 if strategy in OF_ADVANTAGES else gamma,
                seed=drawn_seed() if seed is None else seed,
                **replay_fields(replay_schedule, rho, 1.0 - share("nu", nu) if replay_schedule == "fixed" else 1.0),
            )
        else:
            at = address
        self._open(levels, strategy, num_actors, at, curriculum, keys="" if address is None else keys)

    def _open(
        self,
        seeds: Sequence[int],
        strategy: str,
        num_actors: int,
        at: Config | str,
        curriculum: str = DEFAULT_CURRICULUM,
        *,
        keys: KeyFile = "",
    ) -> None:
        """Connects to the daemon at an address, or to a server of its own, started with a configuration."""
        if isinstance(num_actors, bool) or not isinstance(num_actors, int) or num_actors < 1:
            raise InvalidInput("num_actors", "an integer, 1 or more", repr(num_actors))
        self.strategy = strategy
        self._stop: Callable[[], object] | None = None
        self._gamma_is_0 = False
        if isinstance(at, str):
            address = at
        else:
            self._gamma_is_0 = strategy in OF_ADVANTAGES
            address, self._stop = own_server(self, at)
        trainer = Trainer(address, curriculum=curriculum, keys=keys)
        if self._stop is None and (daemons := trainer.stats()["strategy"]) != strategy:
            raise InvalidInput("strategy", f"{daemons}, the daemon's", repr(strategy))
        super().__init__(trainer, seeds)
        self._client = LevelClient(address, curriculum=curriculum, keys=keys)
        self._num_actors = num_actors
        self._draws = 0
        self._turn = 0  # of sample("sequential")
        # (N,) each, of the env's last block: the seed of its last row, and whether that episode goes on.
        self._last: tuple[NDArray[np.int64], NDArray[np.bool_]] = np.zeros(0, np.int64), np.zeros(0, np.bool_)

    @property
    def requires_value_buffers(self) -> bool:
        """Whether the strategy reads returns and value predictions."""
        return self.strategy in VALUE_STRATEGIES

    def seed_range(self) -> tuple[int, int]:
        """Returns the smallest and the largest seed."""
        return int(self.seeds.min()), int(self.seeds.max())

    def sample(self, strategy: str | None = None) -> int:
        """Returns the seed of the next episode.

        Args:
            strategy: None or the sampler's own. Also "sequential", which takes the seeds in turn, as for the first
                episodes of a training run: those are no draws, but their rollouts count.

        Raises:
            InvalidInput: another strategy.
            ServerUnreachable: no reply from the server.
        """
        if strategy == "sequential" != self.strategy:
            self._turn += 1
            return int(self.seeds[(self._turn - 1) % len(self.seeds)])
        if strategy not in {None, self.strategy}:
            raise InvalidInput(
                "strategy", f"None, sequential or {self.strategy}, which it was made with", repr(strategy)
            )
        self._draws += 1
        return self._client.next(slots=[self._draws % self._num_actors])[0].level

    def sample_weights(self) -> NDArray[np.float64]:
        """Returns (n,) the probabilities of a replay; all 0 while nothing is seen, and for random and sequential.

        Raises:
            ServerUnreachable: no reply from the server.
        """
        if self.strategy in BASELINES:  # they replay nothing; the server tells what they draw next
            return np.zeros(len(self.seeds))
        weights: NDArray[np.float64] = self._trainer.weights()[self._places]
        return weights

    def update_with_rollouts(self, rollouts: Any) -> None:
        """Scores the seeds of a rollout, after its `compute_returns`.

        An episode belongs to the seed in its first row, whatever its other rows say: in Procgen the last one already
        tells the seed that follows.

        Args:
            rollouts: a RolloutStorage of T steps in N envs, arrays or torch tensors: `masks` (T + 1, N, 1), 0 where an
                observation is the first of an episode, and `level_seeds` (T, N, 1); for the strategies that read
                values `value_preds` and `returns` (T + 1, N, 1) and `rewards` (T, N, 1); for those that read the
                policy `action_log_dist` (T, N, A).

        Raises:
            InvalidInput: a field is missing or not what it must be; nothing was applied.
            LevelOutsideSpace: a seed is none of the sampler's.
            ServerUnreachable: no reply from the server.
        """
        self._score(rollouts)

    def _score(self, rollouts: Any, num_steps: int | None = None, env: int | None = None) -> None:
        """Scores the first `num_steps` steps of a rollout, by default all, of one env or of all."""
        if self.strategy in BASELINES:
            return
        steps, envs = np.shape(_field(rollouts, self._SEEDS))[:2]
        if env is not None and not 0 <= env < envs:
            raise InvalidInput("actor_id", f"0 to {envs - 1}", repr(env))
        columns = np.arange(envs) if env is None else np.array([int(env)])

        def read(name: str, *shape: int) -> NDArray[Any]:
            whole = host_array(name, _field(rollouts, name), shape)
            return whole[: None if num_steps is None else num_steps + shape[0] - steps, columns]

        begins = read("masks", steps + 1, envs) <= 0
        played, goes_on = self._last if len(self._last[0]) == envs else (np.zeros(envs, np.int64), np.zeros(envs, bool))
        levels = _levels_of_episodes(read(self._SEEDS, steps, envs).astype(np.int64), begins)
        began_before = goes_on[columns] & ~np.logical_or.accumulate(begins[:-1])
        levels = np.where(began_before, played[columns], levels)
        values = rewards = next_values = logits = None
        if self.requires_value_buffers:
            predicted = read("value_preds", steps + 1, envs).astype(np.float64)
            values, next_values = predicted[:-1], predicted[-1]
            # Under a gamma of 0, A_t = r_t - V_t: with returns for rewards just what the train loop learns from.
            rewards = read("returns", steps + 1, envs)[:-1] if self._gamma_is_0 else read("rewards", steps, envs)
        elif self.strategy in POLICY_STRATEGIES:
            logits = read("action_log_dist", steps, envs, np.shape(_field(rollouts, "action_log_dist"))[-1])
        self._trainer.push(values, rewards, begins[1:], levels, next_values, logits=logits, columns=columns)
        played[columns], goes_on[columns] = levels[-1], ~begins[-1]
        self._last = played, goes_on

    def after_update(self) -> None:
        """Does nothing: what a block holds of an unfinished episode was scored with the block."""

    def close(self) -> None:
        """Closes the connections, and stops the server if it is this object's own."""
        self._trainer.close()
        self._client.close()
        if self._stop is not None:
            self._stop()


def _levels_of_episodes(seeds: NDArray[np.int64], begins: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Returns (T, N) the seed in the first row of each row's episode, or in the block's first row."""
    first = np.maximum.accumulate(np.where(begins[:-1], np.arange(len(seeds))[:, np.newaxis], 0))
    return np.take_along_axis(seeds, first, axis=0)


def _field(rollouts: Any, name: str) -> Any:
    if not hasattr(rollouts, name):
        raise InvalidInput("rollouts", f"a RolloutStorage with {name}", f"{type(rollouts).__name__} without it")
    return getattr(rollouts, name)

"""LevelReplayParallel: a PettingZoo parallel env that plays the levels the server assigns, and pushes its rollouts.

May be imported by users; needs `pettingzoo`. It never computes scores: it hands over what each agent did, and which
columns are the agents of one env; the server makes one score of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plr_client import InvalidInput, Trainer
from plr_client.address import Address
from plr_client.errors import counted, needed
from plr_client.keys import KeyFile
from plr_client.protocol import DEFAULT_CURRICULUM
from wrappers.env import LevelSource, told
from wrappers.vector import RECORDED_BYTES_MAX

with needed("pettingzoo", "pettingzoo"):
    from pettingzoo import ParallelEnv
    from pettingzoo.utils import BaseParallelWrapper

STEP_BYTES, AGENT_STEP_BYTES = 640, 11  # what a recorded step takes, without and for each agent

Bools = NDArray[np.bool_]
PerAgent = ArrayLike | Mapping[Any, ArrayLike]


class LevelReplayParallel(BaseParallelWrapper):
    """Asks the server for a level at every reset, plays it with all agents, and records what they do.

    The level is the seed of the wrapped env's reset, or whatever `set_level` makes of it. `reset(seed=...)` never picks
    the level: a seed is ignored, or with `set_level` handed on. `reset(options={"level": 7})` plays level 7 for that
    episode, outside the curriculum and unscored. The other options reach the env. Where levels are payloads, 7 is the
    id of one that the server holds, and `set_level` gets its payload.

    Every agent's info of a reset, and of resets only, carries `plr_level` (int), `plr_is_replay`, `plr_train` and
    `plr_scored` (bools). They are the env's attributes too, of the episode being played:

    Attributes:
        level: the level's id; None before the first reset.
        is_replay: True where the level was drawn from the seen ones, False where it is new.
        train: whether the trainer should learn from this episode; False only under robust PLR for new levels.
        scored: False where the level was picked through the options.
        address: where the server listens.

    Rewards and ends of every agent are recorded, over as many episodes as you play, so that the trainer hands over only
    its values. The score of an episode is the mean over all steps of all agents: each agent's advantages come from its
    own rewards and values, and an agent that ends early weighs as much as it has played. A rollout::

        for _ in range(T):
            if not env.agents:
                observations, _ = env.reset()
            for agent in env.agents:
                values[agent].append(...)         # V(observations[agent])
            observations, *_ = env.step(actions)
        env.push(values, next_values)             # {agent: V(observations[agent])} of those that go on

    A reset in mid-episode ends it there without bootstrap. Where so many steps are not pushed that they would take more
    than 64 MiB, 90 000 of ten agents, the recording ends, for trainers that push through `plr_client.Trainer`
    themselves. The connections open with the first request, in the process that makes it.

    An env to evaluate on is made without this wrapper, or with `curriculum="eval"` where the server has one: otherwise
    its episodes are drawn from the curriculum that trains, which counts them as played.

    `pettingzoo.test.parallel_seed_test` fails on the wrapped env, and should: it wants two resets with one seed to
    begin the same episode. Test the env inside.

    Args:
        env: a parallel env whose `possible_agents` are known; one made of an AEC env too.
        address: where the server listens, such as `ipc:///run/plr.sock` or `tcp://127.0.0.1:5555`; or a function that
            tells (`wrappers.ray.Lookup`).
        curriculum: the name of the curriculum, where the server has several.
        set_level: for an env whose level is not its reset seed: called as `set_level(env, level)` with the wrapped env
            and the level's id, or its payload where it has one, before each `env.reset`.
        prefetch: how many levels to have ready, as in `wrappers.LevelReplay`.
        timeout_s: seconds without a reply after which a reset or a push raises; above 0.
        keys: the path of a key file, where the server asks for keys; by default what the environment variable PLR_KEYS
            names. It has to be a trainer's.

    Raises:
        InvalidInput: the address is not an ipc or tcp address, `env` is no such env or has a `LevelReplayParallel`
            inside, prefetch is not an integer from 0 to 4096, or the timeout not above 0.
    """

    def __init__(
        self,
        env: ParallelEnv,
        address: Address,
        *,
        set_level: Callable[[ParallelEnv, Any], object] | None = None,
        curriculum: str = DEFAULT_CURRICULUM,
        prefetch: int = 0,
        timeout_s: float = 30.0,
        keys: KeyFile = None,
    ) -> None:
        if not isinstance(env, ParallelEnv):
            expected = "a parallel env (pettingzoo.utils.aec_to_parallel makes one of an AEC env)"
            raise InvalidInput("env", expected, repr(env))
        if not getattr(env, "possible_agents", None):
            raise InvalidInput("env", "possible_agents, all that may ever play", "none")
        inner: Any = env
        while isinstance(inner, BaseParallelWrapper):
            if isinstance(inner, LevelReplayParallel):
                raise InvalidInput(
                    "env", "an env whose resets are this wrapper's: no LevelReplayParallel inside", repr(env)
                )
            inner = inner.env
        super().__init__(env)
        self.address = address
        self.level: int | None = None
        self.is_replay = False
        self.train = False
        self.scored = False
        self._columns = {agent: n for n, agent in enumerate(env.possible_agents)}
        self._playing: Bools = self._marked(())  # who takes the next step
        self._rows: list[tuple[Any, ...]] = []
        self._steps = 0  # since the last push
        self._steps_max = RECORDED_BYTES_MAX // (STEP_BYTES + AGENT_STEP_BYTES * len(self._columns))
        self._levels = LevelSource(
            address, set_level=set_level, curriculum=curriculum, prefetch=prefetch, timeout_s=timeout_s, keys=keys
        )
        self._trainer = Trainer(address, curriculum=curriculum, timeout_s=timeout_s, keys=keys)

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[Any, Any], dict[Any, dict[str, Any]]]:
        """Starts an episode on the level that the server assigns.

        Args:
            seed: never picks the level; with `set_level` it is the seed of the wrapped env's reset.
            options: for the wrapped env, except `"level"`: an int, the level to play outside the curriculum.

        Returns:
            Observations and infos by agent, and in every info the four `plr_` keys.

        Raises:
            InvalidInput: `options["level"]` is not an int, or the server's levels are payloads and there is no
                `set_level`.
            LevelOutsideSpace: `options["level"]` is not the id of a payload that the server holds.
            NoLevels: the server's levels are payloads, and none has been inserted yet.
            ServerUnreachable: no reply from the server.
        """
        assignment, scored, seed, options = self._levels.next(self.env, seed, options)
        observations, infos = self.env.reset(seed=seed, options=options)
        if self._rows:  # an episode in mid-play ends with its last step: what follows is another one
            _, _, dones, *_ = self._rows[-1]
            dones |= self._playing
        elif self._playing.any():  # it was pushed as going on: nothing of the next one may be taken for it
            self._trainer.close()
        self._playing = self._marked(self.env.agents)
        self.level, self.is_replay, self.train = assignment.level, assignment.is_replay, assignment.train
        self.scored = scored
        plr = told(assignment, scored=scored)
        return observations, {agent: infos.get(agent, {}) | plr for agent in self.env.agents}

    def step(
        self, actions: dict[Any, Any]
    ) -> tuple[dict[Any, Any], dict[Any, float], dict[Any, bool], dict[Any, bool], dict[Any, dict[str, Any]]]:
        """Steps the env and records what every agent that played got.

        Args:
            actions: by agent, as the env takes them.

        Returns:
            Observations, rewards, terminations, truncations and infos, as the env gives them.
        """
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        played, self._playing = self._playing, self._marked(self.env.agents)
        terminated, truncated = (
            self._marked(agent for agent, ended in ends.items() if ended) for ends in (terminations, truncations)
        )
        if self._steps == self._steps_max:
            self._rows.clear()
        elif self._steps < self._steps_max:
            earned = np.zeros(len(played))
            for agent, n in self._columns.items():
                if played[n]:
                    earned[n] = rewards.get(agent, 0.0)
            dones = played & (terminated | truncated | ~self._playing)  # who has gone has ended, said or not
            self._rows.append((played, earned, dones, dones & truncated & ~terminated, self.level, self.scored))
        self._steps += 1
        return observations, rewards, terminations, truncations, infos

    def push(
        self,
        values: PerAgent | None,
        next_values: PerAgent | None,
        *,
        rewards: PerAgent | None = None,
        final_values: PerAgent | None = None,
        logits: PerAgent | None = None,
    ) -> int:
        """Pushes the T steps recorded since the last push, of K agents, and begins the next rollout.

        Everything is given by agent, `{agent: ...}` with one entry for each step that the agent took, in order; or as
        arrays (T, K) in the order of `possible_agents`, whose entries where an agent did not play are not read.

        Args:
            values: (T_a,) by agent, or (T, K): V of the observation before each step; None where the strategy needs
                none.
            next_values: a number by agent, or (K,): V of the observation last returned, read of the agents that go on.
            rewards: (T_a,) by agent, or (T, K), where you learn from others than those recorded, such as scaled ones:
                values and rewards must be on one scale.
            final_values: for agents cut by a time limit, to bootstrap with V of their last observation: one entry by
                agent for each time that happened, or (T, K), read where it did. Without it, a time limit counts as an
                end without bootstrap.
            logits: (T_a, A) by agent, or (T, K, A): action logits, for the strategies that read the policy. All agents
                must have the same number A of actions.

        Returns:
            The number of episodes, or parts of episodes, that were scored.

        Raises:
            InvalidInput: a number of entries or a shape does not fit the steps recorded, none or too many were, or the
                server refuses a field; the rollout is kept.
            PlrError: as `Trainer.push`.
        """
        if not 0 < self._steps <= self._steps_max:
            expected = f"1 to {self._steps_max} steps since the last one (or plr_client.Trainer, with arrays of yours)"
            raise InvalidInput("push", expected, f"{self._steps}")
        played, earned, dones, truncated, levels, scored = map(np.array, zip(*self._rows, strict=True))
        goes_on = played[-1:] & ~dones[-1:]
        if isinstance(next_values, Mapping):
            next_values = {
                agent: np.asarray(next_values[agent])[np.newaxis]
                for agent, n in self._columns.items()
                if goes_on[0, n] and agent in next_values
            }
        elif next_values is not None:
            next_values = np.asarray(next_values)[np.newaxis]
        following = self._table("next_values", next_values, goes_on)
        last = self._table("final_values", final_values, truncated)
        pushed = self._trainer.push(
            self._table("values", values, played),
            earned if rewards is None else self._table("rewards", rewards, played),
            dones,
            np.broadcast_to(levels[:, np.newaxis], played.shape),
            None if following is None else following[0],
            truncated=None if last is None else truncated,
            final_values=last,
            valid=played & scored[:, np.newaxis],
            logits=self._table("logits", logits, played),
            groups=np.zeros(len(self._columns), np.int64),
        )
        self._rows.clear()
        self._steps = 0
        return pushed

    def close(self) -> None:
        """Gives the level in flight back to the server, closes the connections and the wrapped env."""
        self._levels.close()
        self._trainer.close()
        super().close()

    def _marked(self, agents: Iterable[Any]) -> Bools:
        """Returns (K,) whether each of the possible agents is among these."""
        mask = np.zeros(len(self._columns), np.bool_)
        mask[[self._columns[agent] for agent in agents]] = True
        return mask

    def _table(self, name: str, given: PerAgent | None, read: Bools) -> NDArray[Any] | None:
        """Returns what was given by agent as an array (T, K, ...), 0 where it is not to be read."""
        if given is None:
            return None
        if not isinstance(given, Mapping):
            array = np.asarray(given)
            if array.shape[:2] != read.shape:
                steps, agents = counted(len(read), "step"), counted(len(self._columns), "possible agent")
                expected = f"shape {read.shape}, of {steps} and {agents}"
                raise InvalidInput(name, expected, f"shape {array.shape}")
            return np.where(read.reshape(*read.shape, *[1] * (array.ndim - 2)), array, 0)
        for agent in given.keys() - self._columns.keys():
            raise InvalidInput(name, f"agents among {list(self._columns)}", repr(agent))
        entry = next((np.shape(array)[1:] for array in given.values() if np.size(array)), ())
        table = np.zeros((*read.shape, *entry))
        for agent, n in self._columns.items():
            array, rows = np.asarray(given.get(agent, ())), read[:, n]
            count = int(rows.sum())
            if array.shape != (count, *entry) and (count or array.size):
                expected = f"shape {(count, *entry)}, by the steps recorded since the last push"
                raise InvalidInput(f"{name}[{agent!r}]", expected, f"shape {array.shape}")
            table[rows, n] = array if count else 0.0
        return table

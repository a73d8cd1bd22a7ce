"""LevelReplayVector: a Gymnasium vector env that knows which level every row belongs to, and pushes rollouts.

May be imported by users. It never computes scores: it hands over what happened, attributed to the right levels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from numpy.typing import ArrayLike, NDArray

from plr_client import Assignment, InvalidInput, LevelClient, ServerUnreachable, Trainer
from plr_client.address import Address
from plr_client.errors import counted
from plr_client.keys import KeyFile
from plr_client.protocol import DEFAULT_CURRICULUM
from wrappers.away import fallback_of
from wrappers.env import level_id

RECORDED_BYTES_MAX = 64 * 2**20  # more than this unpushed: somebody else pushes, so the recording ends

_IN_BETWEEN = (
    " (a wrapper between LevelReplay and LevelReplayVector keeps infos to itself, or resets inside its step: "
    "let it hand on the infos, or put LevelReplay around it)"
)
_ROW = np.dtype(
    [("rewards", np.float64), ("levels", np.int64), ("dones", np.bool_), ("truncated", np.bool_), ("valid", np.bool_)]
)

Bools = NDArray[np.bool_]


class LevelReplayVector(VectorWrapper):
    """A vector env whose envs play the levels that the server assigns, in the autoreset mode that it was built with.

    Two arrangements, told apart by looking:

    * `LevelReplay` around every sub-env (of a SyncVectorEnv or AsyncVectorEnv): each asks for its levels itself, and
      this wrapper reads from the infos which level is whose.
    * Bare sub-envs, or a native vector env whose `reset` takes a list of seeds and a `reset_mask` and returns all rows:
      this wrapper asks for all envs that need a level in one request, and resets them, with the level as the seed, in
      one masked reset. In NEXT_STEP and SAME_STEP such an env has just reset itself to a level nobody asked for; that
      first observation and info are replaced by those of the assigned level before anybody out here sees them.
      Wrappers inside the sub-envs do see that reset: what counts or learns from resets there (RecordVideo,
      NormalizeObservation) sees one more an episode. Put `LevelReplay` into each sub-env then, or take DISABLED, which
      saves that reset and is cheapest: `reset(options={"reset_mask": dones})` assigns levels to the masked envs.

    Bare sub-envs must be directly in `envs`; other vector wrappers go around this one: they would take the masked
    resets for the user's. Around a `LevelReplay` wrappers may be, of one env and of the vector env, as long as they
    hand on the infos of steps and do not reset inside a step: otherwise rows would be credited to a wrong level, so
    `step` and `reset` raise at the first sign of it.

    Envs to evaluate on are made without either wrapper, or with `curriculum="eval"` on both where the server has one:
    otherwise their episodes are drawn from the curriculum that trains, which counts them as played.

    Attributes:
        levels: (N,) int64, the level of each row of the observation last returned.
        is_replay: (N,) bool, where that level was drawn from the seen ones.
        train_mask: (N,) bool, False where the trainer should not learn from it (robust PLR, new levels).
        scored: (N,) bool, False where the level was picked through the options, outside the curriculum, or drawn while
            the server was away.
        metadata: those of `envs`, with the `autoreset_mode` of these very envs; before Gymnasium 1.4 all vector envs of
            a class share one dict.
        valid: (N,) bool, of the step last returned: False for a row that is no transition, which is the reset row of
            NEXT_STEP and, in DISABLED, a step of a finished env that was not reset. All False before the first step.

    The arrays are replaced, never written to, so they may be kept. A transition belongs to `levels` as it was before
    the step that made it.

    Rewards, ends, levels and validity of every step are recorded, so that the trainer hands over only its values::

        observations, _ = envs.reset()
        for _ in range(T):
            ...                                   # values[t] = V(observations)
            observations, *_ = envs.step(actions)
        envs.push(values, next_values)            # V of the last observations

    A full `reset` starts a new rollout: steps not yet pushed are dropped. A masked reset goes on recording. An episode
    that it cuts short ends there without bootstrap; where all of its steps were pushed before as going on, it is as the
    server has scored it by then. Where so many steps are not pushed that they take more than 64 MiB, 55 000 of 64 envs,
    the recording ends and its memory is freed, for trainers that push through `Trainer` themselves.

    `AsyncVectorEnv(shared_memory=False)` in NEXT_STEP does not forget a pending autoreset when it is reset: where an
    episode had just ended, the step after the reset resets that env again, to one more assigned level, and is not
    `valid`.

    Args:
        envs: the vector env.
        address: where the server listens, such as `ipc:///run/plr.sock` or `tcp://127.0.0.1:5555`; or a function that
            tells (`wrappers.ray.Lookup`).
        curriculum: the name of the curriculum, where the server has several; give it to each `LevelReplay` too.
        prefetch: for bare sub-envs, how many levels to have ready for all of them together (N is a good choice), so
            that a step does not wait for a round trip: see `plr_client.LevelClient`. `LevelReplay` has its own.
        timeout_s: seconds without a reply after which the server is taken for away; above 0. `LevelReplay` has its own.
        keys: the path of a key file, where the server asks for keys; by default what the environment variable PLR_KEYS
            names. It has to be a trainer's; `LevelReplay` has its own.
        when_away: "raise" then, or "uniform": see `LevelReplay`, which has its own. While the server is away, `push`
            drops what was recorded and returns 0, and what is left of the episodes under way is not scored either.

    Raises:
        InvalidInput: some sub-envs have a `LevelReplay` and others not, or one that asks another curriculum; bare
            sub-envs sit under other vector wrappers, `envs` does not tell its autoreset mode, the address is not an ipc
            or tcp address, the timeout is not above 0, when_away is not one of the two, or prefetch is not an integer
            from 0 to 4096, or not 0 though the sub-envs have a `LevelReplay`.
    """

    def __init__(
        self,
        envs: VectorEnv,
        address: Address,
        *,
        curriculum: str = DEFAULT_CURRICULUM,
        prefetch: int = 0,
        timeout_s: float = 30.0,
        when_away: str = "raise",
        keys: KeyFile = None,
    ) -> None:
        if not isinstance(envs, VectorEnv):
            raise InvalidInput("envs", "a vector env (LevelReplay is for a single one)", repr(envs))
        # Before Gymnasium 1.4 the metadata are the class's: another vector env in another mode changes them.
        mode = getattr(envs.unwrapped, "autoreset_mode", envs.metadata.get("autoreset_mode"))
        try:
            self._mode = AutoresetMode(mode)
        except ValueError:
            raise InvalidInput("envs", "an AutoresetMode in envs.metadata['autoreset_mode']", repr(mode)) from None
        self._inside = _asks_for_levels(envs, curriculum)
        if self._inside and prefetch:
            expected = "0, because every LevelReplay asks for itself (LevelReplay(env, address, prefetch=...))"
            raise InvalidInput("prefetch", expected, repr(prefetch))
        if not self._inside and isinstance(envs, VectorWrapper):
            expected = "bare sub-envs directly in a vector env (put other vector wrappers around LevelReplayVector)"
            raise InvalidInput("envs", expected, repr(envs))
        connecting: dict[str, Any] = {"curriculum": curriculum, "timeout_s": timeout_s, "keys": keys}
        self._client = LevelClient(address, prefetch=prefetch, **connecting)
        self._trainer = Trainer(address, **connecting)
        self._fallback = fallback_of(when_away, address, **connecting)
        # Not before: what could not be made must not close `envs` when it is garbage-collected.
        super().__init__(envs)
        self.metadata = {**envs.metadata, "autoreset_mode": self._mode}
        self._autoreset_survives_reset = self._mode is AutoresetMode.NEXT_STEP and not getattr(
            envs.unwrapped, "shared_memory", True
        )
        self._none: Bools = np.zeros(envs.num_envs, np.bool_)
        self._ended = self._none  # finished and not yet reset; never set in SAME_STEP
        self.levels: NDArray[np.int64] = np.zeros(envs.num_envs, np.int64)
        self.is_replay: Bools = np.zeros(envs.num_envs, np.bool_)
        self.train_mask: Bools = np.zeros(envs.num_envs, np.bool_)
        self.scored: Bools = np.zeros(envs.num_envs, np.bool_)
        self.valid: Bools = np.zeros(envs.num_envs, np.bool_)
        self._rollout = _Rollout(envs.num_envs)
        self._columns = _Columns(envs.num_envs)
        self._episodes = np.zeros(envs.num_envs, np.int64)  # how many each LevelReplay inside has begun

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Starts episodes on assigned levels, in all envs or in those of a mask.

        Args:
            seed: never picks levels. With `LevelReplay` inside it goes there; bare envs are seeded with their levels.
            options: for the envs, except `"reset_mask"`, an (N,) bool array of the envs to reset (default: all, and a
                new rollout), and `"level"`, the level to play outside the curriculum: an int, or for bare envs also
                (N,) ints, read where the mask is set. The dict is not changed.

        Returns:
            Observations and infos of the vector env.

        Raises:
            InvalidInput: an option is not what it must be, the vector env takes no list of seeds, a wrapper between
                `LevelReplay` and here drops infos or has reset inside a step, or sub-envs are bare and the server's
                levels are payloads.
            ServerUnreachable: no reply from the server.
        """
        options = {} if options is None else dict(options)
        if self._fallback is not None and isinstance(seed, int | np.integer):
            self._fallback.seed(int(seed))
        masked = "reset_mask" in options
        rows = self._checked_mask(options["reset_mask"]) if masked else ~self._none
        if self._inside:
            if "level" in options:  # checked here, because an error inside an Async worker ends that worker
                options["level"] = level_id(options["level"])
            observations, infos = self.env.reset(seed=seed, options=options or None)  # type: ignore[arg-type]
            if not masked:  # counted from here on, whatever was played before
                self._episodes = infos.get("plr_episode", self._episodes) - rows
            self._check_told(rows, infos)
            self._begin_told(rows, infos)
        else:
            observations, infos = self._assign(rows, options)
        if masked:
            if self._rollout.steps:
                self._rollout.cut(rows, keep_truncated=self._mode is not AutoresetMode.NEXT_STEP)
            else:
                self._columns.cut(rows)
        else:
            self._rollout.clear()
            self._trainer.close()  # nothing of what follows is taken for a part of the episodes pushed as going on
            self._columns = _Columns(self.num_envs)
            self.valid = np.zeros_like(self._none)
        if not self._autoreset_survives_reset:
            self._ended = self._ended & ~rows
        return observations, infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Steps all envs, and sees to it that every env that begins an episode plays an assigned level.

        Args:
            actions: (N, ...), an element of `action_space`.

        Returns:
            Observations, rewards, terminations, truncations and infos, as the vector env's autoreset mode has them.

        Raises:
            InvalidInput: a wrapper around `LevelReplay` drops infos, or has reset inside its step.
            ServerUnreachable: no reply from the server. Bare envs that have just begun an episode then play it out on a
                level of their own, unscored.
        """
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        dones = terminations | truncations
        if self._mode is AutoresetMode.NEXT_STEP:
            begun = self._ended
        else:
            begun = dones if self._mode is AutoresetMode.SAME_STEP else self._none
        if self._inside:
            self._check_told(begun, infos)

        self.valid = ~self._ended
        if self._mode is AutoresetMode.NEXT_STEP:
            self._ended = dones
        elif self._mode is AutoresetMode.DISABLED:
            self._ended = self._ended | dones
        # Before the levels change: a transition belongs to the level that was active when its observation was produced.
        self._rollout.append(rewards, self.levels, dones, truncations & ~terminations, self.valid & self.scored)

        if begun.any():
            if self._inside:
                self._begin_told(begun, infos)
            else:
                if "final_obs" in infos:  # an env may reuse the array in its next reset
                    infos["final_obs"] = deepcopy(infos["final_obs"])
                # Until the server has answered, these envs play levels nobody assigned.
                self.scored = _replaced(self.scored, begun, by=False)
                observations, begun_infos = self._assign(begun, {"reset_mask": begun})
                _replace_rows(infos, begun_infos, begun)
        return observations, rewards, terminations, truncations, infos

    def push(
        self,
        values: ArrayLike | None,
        next_values: ArrayLike | None,
        *,
        rewards: ArrayLike | None = None,
        final_values: ArrayLike | None = None,
        logits: ArrayLike | None = None,
    ) -> int:
        """Pushes the T steps recorded since the last push or full reset, and begins the next rollout.

        An episode cut by a time limit bootstraps with the value of its terminal observation. In NEXT_STEP that
        observation is the next one, so its value is already in `values` or `next_values`. In SAME_STEP and DISABLED
        hand over `final_values` (SAME_STEP: V of `infos["final_obs"]`; DISABLED: V of the observation before you reset
        the env); without them a time limit counts as an end without bootstrap.

        Args:
            values: (T, N), V of the observation before each step; None where the strategy needs none.
            next_values: (N,), V of the observation last returned; None where the strategy needs none.
            rewards: (T, N), where you learn from others than those recorded, such as what `NormalizeReward` around this
                wrapper made of them: values and rewards must be on one scale.
            final_values: (T, N), V of the terminal observation, read where an episode was truncated.
            logits: (T, N, A), action logits, for the strategies that read the policy.

        Returns:
            The number of episodes, or parts of episodes, that were scored.

        Raises:
            InvalidInput: a shape does not fit the steps recorded, the recording has ended, or the server refuses a
                field; the rollout is kept.
            PlrError: as `Trainer.push`. After `ServerUnreachable`, which `when_away="uniform"` keeps from you, the
                server may have scored the rollout or not; it is kept, so that a push of it again may score it twice.
        """
        rollout = self._rollout
        if rollout.steps > rollout.steps_max:
            expected = (
                f"a push at least every {rollout.steps_max} steps "
                "(reset() records anew; plr_client.Trainer.push takes arrays of your own)"
            )
            raise InvalidInput("push", expected, f"{rollout.steps} steps since the last one")
        shape = (rollout.steps, self.num_envs)
        for name, given in (("values", values), ("rewards", rewards), ("final_values", final_values)):
            if given is not None and np.shape(given) != shape:
                steps = counted(rollout.steps, "step")
                expected = f"shape {shape}, for {steps} recorded since the last push or full reset"
                raise InvalidInput(name, expected, f"shape {np.shape(given)}")
        if next_values is not None and np.shape(next_values) != shape[1:]:
            raise InvalidInput("next_values", f"shape {shape[1:]}", f"shape {np.shape(next_values)}")

        rows = rollout.rows
        follows = self._mode is AutoresetMode.NEXT_STEP and values is not None and next_values is not None
        if final_values is None and follows:  # the row after a time limit is the terminal observation's
            final_values = np.concatenate([np.asarray(values)[1:], np.asarray(next_values)[np.newaxis]])
        if self._fallback is not None and self._fallback.is_away():
            return self._drop()
        columns = self._columns.chosen(rows)
        try:
            scored = self._trainer.push(
                values,
                rows["rewards"] if rewards is None else rewards,
                rows["dones"],
                rows["levels"],
                next_values,
                truncated=None if final_values is None else rows["truncated"],
                final_values=final_values,
                valid=rows["valid"],
                logits=logits,
                columns=columns,
            )
        except ServerUnreachable as error:
            if self._fallback is None:
                raise
            self._fallback.left(error)
            return self._drop()
        self._columns.pushed(rows, columns)
        rollout.clear()
        return scored

    def _drop(self) -> int:
        """Drops the rollout, for the server is away; no later push makes whole episodes of what is left of these."""
        self._columns.cut(~self._none)
        self._rollout.clear()
        self.scored = np.zeros_like(self._none)
        return 0

    def close(self, **kwargs: Any) -> None:
        """Closes the connections, which gives the levels in flight back to the server, and the vector env."""
        self._client.close()
        self._trainer.close()
        super().close(**kwargs)

    def _checked_mask(self, mask: Any) -> Bools:
        """Returns the caller's reset mask; a wrong one must not cost levels, nor reach the workers."""
        shape = self._none.shape
        if isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and mask.shape == shape and mask.any():
            return mask
        raise InvalidInput("options['reset_mask']", f"a bool array of shape {shape} with a True in it", repr(mask))

    def _assign(self, rows: Bools, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Resets the bare envs `rows` to levels from the server or to `options["level"]`; returns what that returns."""
        slots: list[int] = np.flatnonzero(rows).tolist()
        scored = "level" not in options
        if scored:
            if self._fallback is None:
                assignments = self._client.next(len(slots), slots=slots)
            else:
                assignments, scored = self._fallback.next(self._client, len(slots), slots=slots)
            if assignments[0].payload is not None:
                expected = (
                    "LevelReplay(env, address, set_level=...) around every sub-env, because the levels are payloads"
                )
                raise InvalidInput("envs", expected, "bare sub-envs, whose level is a seed")
        else:
            picked = self._picked_levels(options.pop("level"))
            assignments = [Assignment(picked[slot], is_replay=False, train=True) for slot in slots]
        seeds: list[int | None] = [None] * self.num_envs
        for slot, assignment in zip(slots, assignments, strict=True):
            seeds[slot] = assignment.level
        try:
            observations, infos = self.env.reset(seed=seeds, options=options or None)  # type: ignore[arg-type]
        except (TypeError, gym.error.Error) as error:
            if hasattr(self.env, "call"):
                raise
            expected = (
                "a vector env whose reset takes a list of seeds and a reset_mask "
                '(gym.make_vec(..., vectorization_mode="sync") or "async" makes one)'
            )
            raise InvalidInput("envs", expected, f"{self.env!r}, which raised: {error}") from error
        self._begin(
            rows,
            [assignment.level for assignment in assignments],
            [assignment.is_replay for assignment in assignments],
            [assignment.train for assignment in assignments],
            scored,
        )
        return observations, infos

    def _picked_levels(self, level: Any) -> list[int]:
        if np.ndim(level) == 0:
            return [level_id(level)] * self.num_envs
        if np.shape(level) != self._none.shape:
            raise InvalidInput("options['level']", f"an int or {self.num_envs} ints", repr(level))
        return [level_id(each) for each in level]

    def _check_told(self, rows: Bools, infos: dict[str, Any]) -> None:
        """Raises unless the `LevelReplay` in each of the envs `rows` has begun one episode now, and no other has.

        A wrapper that keeps infos to itself is noticed as `plr_level` is missing; one that resets inside its step as it
        comes unasked, or as the count of episodes, told at the reset and at the step after, is ahead.
        """
        told = infos.get("_plr_level", self._none)
        if (told != rows).any():
            envs, others = np.flatnonzero(rows).tolist(), np.flatnonzero(told).tolist()
            expected = f"plr_level from the envs that have begun an episode, {envs!s:.80}{_IN_BETWEEN}"
            raise InvalidInput("infos", expected, f"it from {others!s:.80}")
        if "_plr_episode" in infos:
            self._episodes = self._episodes + rows
            ahead = infos["_plr_episode"] & (infos["plr_episode"] != self._episodes)
            if ahead.any():
                n = int(ahead.argmax())
                expected = f"plr_episode {self._episodes[n]} from env {n}, which has begun so many{_IN_BETWEEN}"
                raise InvalidInput("infos", expected, str(infos["plr_episode"][n]))

    def _begin_told(self, rows: Bools, infos: dict[str, Any]) -> None:
        """Begins episodes as the `LevelReplay` inside the envs `rows` tells."""
        self._begin(rows, *(infos[key][rows] for key in ("plr_level", "plr_is_replay", "plr_train", "plr_scored")))

    def _begin(self, rows: Bools, levels: Any, is_replay: Any, train: Any, scored: Any) -> None:
        """Notes what the envs `rows` play from the observation now returned on."""
        self.levels = _replaced(self.levels, rows, levels)
        self.is_replay = _replaced(self.is_replay, rows, is_replay)
        self.train_mask = _replaced(self.train_mask, rows, train)
        self.scored = _replaced(self.scored, rows, scored)


class _Rollout:
    """The steps since the last push: one array of rows (steps, N) that doubles when it is full, up to a limit."""

    def __init__(self, num_envs: int) -> None:
        self.steps = 0
        self.steps_max = max(1, RECORDED_BYTES_MAX // (_ROW.itemsize * num_envs))
        self._rows = np.empty((0, num_envs), _ROW)

    @property
    def rows(self) -> NDArray[np.void]:
        return self._rows[: self.steps]

    def append(self, rewards: Any, levels: Any, dones: Any, truncated: Any, valid: Any) -> None:
        if self.steps == self.steps_max:
            self._rows = np.empty((0, self._rows.shape[1]), _ROW)
        elif self.steps < self.steps_max:
            if self.steps == len(self._rows):
                grown = np.empty((min(max(256, 2 * self.steps), self.steps_max), self._rows.shape[1]), _ROW)
                grown[: self.steps] = self._rows
                self._rows = grown
            row = self._rows[self.steps]
            row["rewards"], row["levels"], row["dones"], row["truncated"], row["valid"] = (
                rewards,
                levels,
                dones,
                truncated,
                valid,
            )
        self.steps += 1

    def cut(self, envs: Bools, *, keep_truncated: bool) -> None:
        """Ends the episodes of `envs` with the last step, if they have not: what follows is another episode."""
        last = self.rows[-1:]
        last["dones"] |= envs
        if not keep_truncated:  # the value of the terminal observation is not the one that follows in `values`
            last["truncated"] &= ~envs

    def clear(self) -> None:
        self.steps = 0


class _Columns:
    """What the server knows the envs by, so that no episode is taken for a part of one that a reset cut before it.

    The server goes on with the episode that a column was pushed with last, unless the column comes back with another
    level. So where a cut episode is followed by one on the same level, the env gets another name. The name it leaves,
    with a part of an episode behind it, is taken again as soon as the env comes with another level.
    """

    def __init__(self, num_envs: int) -> None:
        self._names = np.arange(num_envs)
        self._going_on: Bools = np.zeros(num_envs, np.bool_)  # whether the last push left the env's episode unfinished
        self._levels = np.zeros(num_envs, np.int64)  # of that episode
        self._cut: Bools = np.zeros(num_envs, np.bool_)  # whether a reset has ended it since
        self._left: dict[int, dict[int, int]] = {}  # by env, the names with a part left behind, and its level

    def cut(self, envs: Bools) -> None:
        """Notes that the episodes of `envs` ended with the last step pushed."""
        self._cut |= envs & self._going_on

    def chosen(self, rows: NDArray[np.void]) -> NDArray[np.int64]:
        """Returns (N,) the names to push `rows` (T, N) under."""
        names = self._names.copy()
        for n in self._to_choose(rows):
            begins, held = rows["levels"][rows["valid"][:, n].argmax(), n], self._held(n)
            new = next(name for name in itertools.count(n, len(names)) if name not in held)
            names[n] = next((name for name, level in held.items() if level != begins), new)
        return names

    def pushed(self, rows: NDArray[np.void], names: NDArray[np.int64]) -> None:
        """Notes that `rows` (T, N) were pushed under `names` (N,)."""
        for n in self._to_choose(rows):
            self._left[n] = {name: level for name, level in self._held(n).items() if name != names[n]}
        self._names = names
        valid = rows["valid"]
        played = valid.any(0)
        last = rows[len(rows) - 1 - valid[::-1].argmax(0), np.arange(len(names))]
        self._going_on = np.where(played, ~last["dones"], self._going_on)
        self._levels = np.where(played, last["levels"], self._levels)
        self._cut = self._cut & ~played

    def _to_choose(self, rows: NDArray[np.void]) -> list[int]:
        """Returns the envs that come with a new episode while the server holds parts of episodes that were cut."""
        if not self._left and not self._cut.any():
            return []
        begins = rows["valid"].any(0) & (self._cut | ~self._going_on)
        return [n for n in np.flatnonzero(begins).tolist() if self._cut[n] or self._left.get(n)]

    def _held(self, n: int) -> dict[int, int]:
        """Returns the names of env n that the server holds a part of a cut episode for, and its level."""
        current = {int(self._names[n]): int(self._levels[n])} if self._cut[n] else {}
        return current | self._left.get(n, {})


def _asks_for_levels(envs: VectorEnv, curriculum: str) -> bool:
    """Returns whether the sub-envs have a `LevelReplay`, which must be all of them or none, and ask `curriculum`."""
    call = getattr(envs.unwrapped, "call", None)
    if call is None:
        return False
    # Asking for the attribute itself would end an Async worker that does not have it.
    told: tuple[bool, ...] = call("has_wrapper_attr", "plr_curriculum")
    if any(told) and not all(told):
        raise InvalidInput("envs", "LevelReplay in every sub-env or in none", f"in {sum(told)} of {len(told)}")
    if all(told):
        for asked in call("get_wrapper_attr", "plr_curriculum"):
            if asked != curriculum:
                expected = f"the curriculum that every LevelReplay asks, {asked!r} (give both the same curriculum=)"
                raise InvalidInput("curriculum", expected, repr(curriculum))
    return all(told)


def _replaced(array: NDArray[Any], rows: Bools, by: Any) -> NDArray[Any]:
    array = array.copy()
    array[rows] = by
    return array


def _replace_rows(infos: dict[str, Any], begun: dict[str, Any], rows: Bools) -> None:
    """Puts the infos of a masked reset in the place of those that autoreset left in `rows`.

    `final_obs` and `final_info`, of the step itself, stay. A key that the masked reset does not have becomes absent in
    `rows`: zero, and its mask `_key` False; an array without a mask, which only native vector envs have, stays.
    """
    for key in infos.keys() | begun.keys():
        old, new = infos.get(key), begun.get(key)
        if key.removeprefix("_") in ("final_obs", "final_info"):
            continue
        if isinstance(old, dict):
            _replace_rows(old, new or {}, rows)
        elif not isinstance(old, np.ndarray):
            infos[key] = old if new is None else new
        elif new is not None:
            old[rows] = new[rows]
        elif f"_{key}" in infos or key.removeprefix("_") in infos.keys() - {key}:
            old[rows] = 0

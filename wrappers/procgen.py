"""ProcgenVector: a Gymnasium vector env over real Procgen whose every env plays exactly the level asked for.

May be imported by users; needs `procgen-mirror` (the extra `procgen`) only when an env is made. It knows nothing of
curricula or servers: `LevelReplayVector` around it brings them together.
"""

from __future__ import annotations

import operator
import struct
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from plr_client import InvalidInput, MissingDependency
from plr_client.errors import counted

LEVEL_END = 2**31 - 1  # levels are [0, LEVEL_END): the engine draws below an exclusive int32 bound

_NUM_ACTIONS = 15
_FORCE_RESET = np.array([-1])  # the action on which the engine ends the episode
_KEEP_GENERATOR = struct.pack("=2i", 1, 0)  # seeded, and a text of no length: from that, C++ reads no new generator
_EASY_AND_HARD = ("easy", "hard")
_MORE_MODES = {
    "extreme": ("chaser", "dodgeball", "leaper", "starpilot"),
    "memory": ("caveflyer", "dodgeball", "heist", "jumper", "maze", "miner"),
}

Bools = NDArray[np.bool_]
Frames = NDArray[np.uint8]


class ProcgenVector(VectorEnv[Frames, NDArray[np.integer[Any]], NDArray[Any]]):
    """N Procgen envs in one engine; `reset(seed=levels)` picks the level of each, in all envs or in those of a mask.

    An episode played here equals, bit for bit, that of a fresh Procgen env with `start_level=level, num_levels=1`: each
    reset puts the engine's state at the level's first frame into the running engine. Those states are made once per
    level and kept, so a reset to a level played before costs about 0.1 ms.

    Ends of episodes are Procgen's own:

    * Autoreset is SAME_STEP: the observation at a done is the first one of the next level. Without a reset from outside
      the engine draws that level itself from [0, 2**31 - 1), by a generator of each env that a reset without a mask
      seeds from the env's level. Procgen keeps no terminal observation, so infos have no `final_obs`.
    * `truncations` are all False, and a time-out (1 000 steps in most games) is a termination. The engine does
      not tell a time-out from another end, and without the terminal observation nobody could bootstrap from it;
      published Procgen results count it as an end too.

    Infos, of steps and resets, are as the engine reports them, with Gymnasium's `_key` masks:

    * `level_seed`: (N,) int64, the level of the observation returned.
    * `prev_level_seed`, `prev_level_complete`: (N,) int64 and bool, the level that the last step was taken in, and
      whether that step solved it. Absent before the first step; a reset leaves them as they are.

    Make and play it in one process: the engine's threads do not survive a fork.

    Args:
        env_name: the game, such as `"coinrun"`.
        num_envs: N, at least 1.
        distribution_mode: `"easy"`, `"hard"`, or where the game has it `"extreme"` or `"memory"`.
        num_threads: of the engine; 0 steps the envs in the caller's.
        cache_bytes: how much memory the first-frame states of levels may take, those unused longest go first; a
            state has 15 to 32 KB, and making one anew costs about 0.5 ms.

    Raises:
        InvalidInput: Procgen has no such game, or the game no such mode, or a number is below its range.
        MissingDependency: `procgen-mirror` is not installed.

    Source: Cobbe et al., Leveraging Procedural Generation to Benchmark Reinforcement Learning, 2020 (arXiv 1912.01588).
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012  as in Gymnasium

    def __init__(
        self,
        env_name: str,
        num_envs: int,
        *,
        distribution_mode: str = "easy",
        num_threads: int = 4,
        cache_bytes: int = 128 * 2**20,
    ) -> None:
        procgen = _import_procgen()
        # Checked here, because the engine ends the process.
        if env_name not in procgen.ENV_NAMES:
            raise InvalidInput("env_name", f"one of {', '.join(procgen.ENV_NAMES)}", repr(env_name))
        modes = (*_EASY_AND_HARD, *(mode for mode, games in _MORE_MODES.items() if env_name in games))
        if distribution_mode not in modes:
            raise InvalidInput("distribution_mode", f"one of {', '.join(modes)} in {env_name}", repr(distribution_mode))
        for field, number, least in (
            ("num_envs", num_envs, 1),
            ("num_threads", num_threads, 0),
            ("cache_bytes", cache_bytes, 0),
        ):
            if number < least:
                raise InvalidInput(field, f"at least {least}", str(number))

        self.num_envs = num_envs
        self.single_observation_space = spaces.Box(0, 255, (64, 64, 3), np.uint8)
        self.single_action_space = spaces.Discrete(_NUM_ACTIONS)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        settings = {"env_name": env_name, "distribution_mode": distribution_mode, "rand_seed": 0}
        self._engine = _made_engine(num=num_envs, num_threads=num_threads, **settings)
        self._first_states = _FirstStates(
            _made_engine(num=1, num_threads=0, **settings),
            env_name=env_name,
            cache_bytes=cache_bytes,
        )
        # The arrays that the engine writes to. Its get_info makes a dict of them for each env, which costs as much as
        # stepping one env more.
        self._reported: dict[str, NDArray[Any]] = self._engine._info  # noqa: SLF001
        self._of_last_step: dict[str, NDArray[Any]] = {}
        self._all: Bools = np.ones(num_envs, np.bool_)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Frames, dict[str, Any]]:
        """Starts episodes on the levels asked for; envs outside the mask go on as if nothing had happened.

        Args:
            seed: N levels, each in [0, 2**31 - 1); an int s means s + i for env i, and seeds `np_random`. Where it is
                None the level is drawn from `np_random`.
            options: `"reset_mask"`, an (N,) bool array of the envs to reset (default: all). Others are ignored.

        Returns:
            Observations, (N, 64, 64, 3) uint8 and the caller's to keep, and infos, of all envs.

        Raises:
            InvalidInput: the seed or the mask is not what it must be; nothing was reset.
        """
        rows = self._checked_mask(options)
        levels = self._levels_from(seed, rows)
        masked = options is not None and "reset_mask" in options
        for env, level in levels.items():
            state = self._first_states[level] if masked else self._first_states.seeding(level)
            self._engine.call_c_func("set_state", env, state, len(state))
        _, observations, _ = self._engine.observe()
        return observations["rgb"], self._infos()

    def step(
        self, actions: NDArray[np.integer[Any]]
    ) -> tuple[Frames, NDArray[np.float64], Bools, Bools, dict[str, Any]]:
        """Steps all envs.

        Args:
            actions: (N,) ints in [0, 15).

        Returns:
            Observations, (N, 64, 64, 3) uint8; rewards, (N,) float64; terminations and truncations, (N,) bool; infos.
            All are the caller's to keep.

        Raises:
            InvalidInput: the actions are not what they must be; no step was taken.
        """
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or actions.dtype.kind not in "iu":
            raise InvalidInput("actions", f"({self.num_envs},) ints", f"{actions.dtype} {actions.shape}")
        if actions.min() < 0 or actions.max() >= _NUM_ACTIONS:  # -1 would end the episode
            raise InvalidInput("actions", f"ints in [0, {_NUM_ACTIONS})", f"{actions.min()} to {actions.max()}")
        self._engine.act(actions)
        rewards, observations, dones = self._engine.observe()
        self._of_last_step = {
            "prev_level_seed": self._reported["prev_level_seed"].astype(np.int64),
            "_prev_level_seed": self._all,
            "prev_level_complete": self._reported["prev_level_complete"].astype(np.bool_),
            "_prev_level_complete": self._all,
        }
        truncations = np.zeros(self.num_envs, np.bool_)
        return observations["rgb"], rewards.astype(np.float64), dones, truncations, self._infos()

    def close_extras(self, **kwargs: Any) -> None:  # noqa: ARG002  Gymnasium's signature
        """Ends the engine and its threads."""
        self._engine.close()
        self._first_states.close()

    def _infos(self) -> dict[str, Any]:
        # A reset overwrites what the engine says of the last step, so that comes from when it was said.
        infos = {key: array.copy() for key, array in self._of_last_step.items()}
        infos["level_seed"] = self._reported["level_seed"].astype(np.int64)
        infos["_level_seed"] = self._all.copy()
        return infos

    def _checked_mask(self, options: dict[str, Any] | None) -> Bools:
        if options is None or "reset_mask" not in options:
            return self._all
        mask = options["reset_mask"]
        if isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and mask.shape == (self.num_envs,) and mask.any():
            return mask
        expected = f"a bool array of shape ({self.num_envs},) with a True in it"
        raise InvalidInput("options['reset_mask']", expected, repr(mask))

    def _levels_from(self, seed: Any, rows: Bools) -> dict[int, int]:
        """Returns the level of each env of `rows`, all checked."""
        envs: list[int] = np.flatnonzero(rows).tolist()
        if isinstance(seed, int | np.integer):
            first = int(seed)
            if not 0 <= first <= LEVEL_END - self.num_envs:
                expected = f"at least 0 and at most {LEVEL_END - self.num_envs}, as env i plays level seed + i"
                raise InvalidInput("seed", expected, str(first))
            super().reset(seed=first)
            return {env: first + env for env in envs}
        seeds = [None] * self.num_envs if seed is None else seed
        if not isinstance(seeds, Sequence | np.ndarray) or len(seeds) != self.num_envs:
            got = f"{len(seeds)}" if isinstance(seeds, Sequence | np.ndarray) else repr(seeds)
            raise InvalidInput("seed", f"an int, or {counted(self.num_envs, 'level')}, one for each env", got)
        chosen = {env: _level(f"seed[{env}]", seeds[env]) for env in envs if seeds[env] is not None}
        return {env: chosen[env] if env in chosen else int(self.np_random.integers(LEVEL_END)) for env in envs}


class _FirstStates:
    """The engine's state at the first frame of each level, made on demand and kept while there is room."""

    def __init__(self, engine: Any, *, env_name: str, cache_bytes: int) -> None:
        self._engine = engine  # of one env
        self._env_name = env_name
        self._template: bytes = engine.get_state()[0]
        self._levels_at = 8 + len(env_name) + 52  # two int32, the range that the next level is drawn from
        self._generator_at = self._levels_at + 16  # what draws it; the generator that makes the level's content follows
        self._cache_bytes = cache_bytes
        self._held_bytes = 0
        self._states: OrderedDict[int, bytes] = OrderedDict()

    def __getitem__(self, level: int) -> bytes:
        if level in self._states:
            self._states.move_to_end(level)
            return self._states[level]
        state = self._states[level] = self._made(level)
        self._held_bytes += len(state)
        while self._held_bytes > self._cache_bytes:
            self._held_bytes -= len(self._states.popitem(last=False)[1])
        return state

    def seeding(self, level: int) -> bytes:
        """Returns the state with a generator of the levels to come, which is a copy of the one that made this level."""
        state = self[level]
        made_this = self._generator_at + len(_KEEP_GENERATOR)
        generator = state[made_this : _generator_end(state, made_this)]
        return state[: self._generator_at] + generator + state[made_this:]

    def close(self) -> None:
        self._engine.close()

    def _made(self, level: int) -> bytes:
        # Always from the same state: one in mid-episode would hand something on to the next level (in dodgeball).
        self._engine.set_state([self._with_range(self._template, level, level + 1)])
        self._engine.act(_FORCE_RESET)
        state = self._with_range(self._engine.get_state()[0], 0, LEVEL_END)
        # By the template's generator of the levels to come, every env would go on to one and the same level.
        state = state[: self._generator_at] + _KEEP_GENERATOR + state[_generator_end(state, self._generator_at) :]
        if self._env_name == "miner":
            # The last field counts the diamonds left, and stays what it was until the first step has looked whether the
            # exit is open: 0 in a fresh env, here the template's.
            state = state[:-8] + bytes(4) + state[-4:]
        return state

    def _with_range(self, state: bytes, first: int, end: int) -> bytes:
        return state[: self._levels_at] + struct.pack("=2i", first, end) + state[self._levels_at + 8 :]


def _generator_end(state: bytes, begin: int) -> int:
    """Returns where the generator that begins at `begin` ends: an int, the length of its text, and the text."""
    _, length = struct.unpack_from("=2i", state, begin)
    return begin + 8 + int(length)


def _level(field: str, level: Any) -> int:
    try:
        as_int = operator.index(level)
    except TypeError:
        as_int = -1
    if not 0 <= as_int < LEVEL_END:
        raise InvalidInput(field, f"a level, an int in [0, {LEVEL_END})", repr(level))
    return as_int


def _made_engine(**settings: Any) -> Any:
    engine = _import_procgen().ProcgenGym3Env(**settings)
    # Looked up now, because cffi holds a lock while it looks up a function for the first time: an engine that was never
    # closed, and is garbage-collected while another is being made, would wait for that lock forever.
    _ = engine._c_lib.libenv_close  # noqa: SLF001
    return engine


def _import_procgen() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # it leaves a file open
            from procgen import env  # noqa: PLC0415  optional
    except ModuleNotFoundError as error:
        raise MissingDependency("procgen-mirror", "procgen") from error
    return env

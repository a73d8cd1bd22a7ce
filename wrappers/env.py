"""LevelReplay: one Gymnasium env that plays, episode by episode, the levels that the server assigns.

May be imported by users and by the other wrappers. It never scores, pushes or records anything.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, SupportsFloat

import gymnasium as gym
from gymnasium.utils import RecordConstructorArgs
from gymnasium.wrappers import Autoreset

from plr_client import Assignment, InvalidInput, LevelClient, LevelOutsideSpace, Trainer
from plr_client.address import Address
from plr_client.keys import KeyFile
from plr_client.protocol import DEFAULT_CURRICULUM
from wrappers.away import fallback_of


class LevelReplay(gym.Wrapper, RecordConstructorArgs):
    """Asks the server for a level at every reset, also at those of autoreset, and plays it.

    The level is the seed of the wrapped env's reset, or whatever `set_level` makes of it. `reset(seed=...)` never picks
    the level: a seed is ignored, or with `set_level` handed on, for what in the env is random beside its level.
    `reset(options={"level": 7})` plays level 7 for that episode, outside the curriculum: the server is not asked and
    `scored` is False. The other options reach the env. Where levels are payloads, 7 is the id of one that the server
    holds, and `set_level` gets its payload.

    The info of every reset, and of resets only, carries `plr_level` (int), `plr_is_replay`, `plr_train` and
    `plr_scored` (bools). They are the env's attributes too, of the episode being played. The info of a reset and of the
    first step after it carries `plr_episode` (int), how many episodes this wrapper has begun: by this a trainer's end
    notices a reset whose info a wrapper in between has kept to itself.

    Attributes:
        level: the level's id; None before the first reset.
        is_replay: True where the level was drawn from the seen ones, False where it is new.
        train: whether the trainer should learn from this episode; False only under robust PLR for new levels.
        scored: False where the level was picked through the options, or drawn while the server was away.
        address: where the server listens.
        plr_curriculum: the name of the curriculum that is asked.

    The connection opens with the first reset, in the process that makes it, so an env may be built in one process and
    played in another. Put the wrapper inside or outside of others as you like, as long as they hand on `info`. A
    wrapper that resets inside its `step`, to play several trials in a row, goes inside: `LevelReplay(Trials(env))`, one
    level for all of its trials. `gymnasium.wrappers.Autoreset` goes outside.

    An env to evaluate on is made without this wrapper, or with `curriculum="eval"` where the server has one: otherwise
    its episodes are drawn from the curriculum that trains, which counts them as played.

    `gymnasium.utils.env_checker.check_env` fails on the wrapped env, and should: it wants two resets with one seed to
    begin the same episode. Check the env inside, and what a level is with `plr-server check-env`.

    Args:
        env: the env to wrap.
        address: where the server listens, such as `ipc:///run/plr.sock` or `tcp://127.0.0.1:5555`; or a function that
            tells (`wrappers.ray.Lookup`).
        curriculum: the name of the curriculum, where the server has several.
        set_level: for an env whose level is not its reset seed: called as `set_level(env, level)` with the wrapped env
            and the level's id, or its payload where it has one, before each `env.reset`. It is never copied, and must
            be picklable where the env is built in another process.
        prefetch: how many levels this env has ready, so that a reset takes microseconds instead of a round trip: 4 to 8
            where episodes are short. They are that many episodes less fresh: see `plr_client.LevelClient`.
        timeout_s: seconds without a reply after which the server is taken for away; above 0.
        keys: the path of a key file, where the server asks for keys; by default what the environment variable PLR_KEYS
            names. It is read in the process that connects.
        when_away: "raise" then, or "uniform": play on, with one warning, levels drawn uniformly from the last known
            space, until it is back. They are not `scored`; the seed of a reset seeds the draws. Of a list of ids, or of
            payloads, the last 256 that this env was handed are known; where no level is, as before the server was ever
            there, it raises still.

    Raises:
        InvalidInput: the address is not an ipc or tcp address, prefetch not an integer from 0 to 4096, the timeout not
            above 0, set_level no function, or when_away not one of the two; or `env` is no single env, or has a
            `LevelReplay` or an `Autoreset` inside, whose resets this one would not see.

    Example:
        >>> import gymnasium as gym
        >>> from plr_server import Config, launch
        >>> from wrappers import LevelReplay
        >>> with launch(Config(levels=range(200, 210))) as server:
        ...     env = LevelReplay(gym.make("CartPole-v1"), server.address)
        ...     observation, info = env.reset()
        ...     assert info["plr_level"] == env.level
        ...     observation, info = env.reset(options={"level": 7})
        ...     env.close()
        >>> info
        {'plr_level': 7, 'plr_is_replay': False, 'plr_train': True, 'plr_scored': False, 'plr_episode': 2}
    """

    def __init__(
        self,
        env: gym.Env,
        address: Address,
        *,
        set_level: Callable[[gym.Env, Any], object] | None = None,
        curriculum: str = DEFAULT_CURRICULUM,
        prefetch: int = 0,
        timeout_s: float = 30.0,
        when_away: str = "raise",
        keys: KeyFile = None,
    ) -> None:
        if not isinstance(env, gym.Env):
            raise InvalidInput("env", "a single env (LevelReplayVector is for a vector env)", repr(env))
        settings: dict[str, Any] = {
            "address": address,
            "set_level": set_level,
            "curriculum": curriculum,
            "prefetch": prefetch,
            "timeout_s": timeout_s,
            "when_away": when_away,
            "keys": keys,
        }
        # Not copied, because what `set_level` holds may be large or impossible to copy.
        RecordConstructorArgs.__init__(self, _disable_deepcopy=True, **settings)
        gym.Wrapper.__init__(self, env)
        inner: Any = env
        while isinstance(inner, gym.Wrapper):
            if isinstance(inner, LevelReplay | Autoreset):
                expected = "an env whose resets are this wrapper's: no LevelReplay inside, and Autoreset around it"
                raise InvalidInput("env", expected, repr(env))
            inner = inner.env
        self.address = address
        # By this LevelReplayVector and others know, across processes too, that the env asks for its levels, and where.
        self.plr_curriculum = curriculum
        self.level: int | None = None
        self.is_replay = False
        self.train = False
        self.scored = False
        self._episodes = 0
        self._at_first_step = False
        self._levels = LevelSource(**settings)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode on the level that the server assigns.

        Args:
            seed: never picks the level; with `set_level` it is the seed of the wrapped env's reset.
            options: for the wrapped env, except `"level"`: an int, the level to play outside the curriculum.

        Returns:
            The wrapped env's observation and info, and in the info the four `plr_` keys.

        Raises:
            InvalidInput: `options["level"]` is not an int, or the server's levels are payloads and there is no
                `set_level`.
            LevelOutsideSpace: `options["level"]` is not the id of a payload that the server holds.
            NoLevels: the server's levels are payloads, and none has been inserted yet.
            NotAdmitted: the server asks for other keys.
            ServerUnreachable: no reply from the server, and `when_away` is not "uniform".
        """
        assignment, scored, seed, options = self._levels.next(self.env, seed, options)
        observation, info = self.env.reset(seed=seed, options=options)
        self.level, self.is_replay, self.train = assignment.level, assignment.is_replay, assignment.train
        self.scored = scored
        self._episodes += 1
        self._at_first_step = True
        # A copy: some envs return one dict from every step.
        return observation, {**info, **told(assignment, scored=scored), "plr_episode": self._episodes}

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Steps the env.

        Args:
            action: as the env takes it.

        Returns:
            Observation, reward, terminated, truncated and info, as the env gives them; in the info of an episode's
            first step also `plr_episode`.
        """
        if not self._at_first_step:
            return self.env.step(action)
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._at_first_step = False
        return observation, reward, terminated, truncated, {**info, "plr_episode": self._episodes}

    def close(self) -> None:
        """Gives the level in flight back to the server, closes the connection and the wrapped env."""
        self._levels.close()
        super().close()


class LevelSource:
    """Decides what an env plays next, and sets the level where that is not the seed of the reset.

    Args: as of `LevelReplay`.

    Raises:
        InvalidInput: the address, set_level, the name, prefetch, the timeout or `when_away` is not what it must be.
    """

    def __init__(
        self,
        address: Address,
        *,
        set_level: Callable[[Any, Any], object] | None,
        curriculum: str,
        prefetch: int,
        timeout_s: float,
        when_away: str = "raise",
        keys: KeyFile,
    ) -> None:
        if set_level is not None and not callable(set_level):
            raise InvalidInput("set_level", "a function of the env and the level", repr(set_level))
        self._connecting: dict[str, Any] = {"curriculum": curriculum, "timeout_s": timeout_s, "keys": keys}
        self._fallback = fallback_of(when_away, address, **self._connecting)
        self._client = LevelClient(address, prefetch=prefetch, **self._connecting)
        self._set_level = set_level

    def next(
        self, env: Any, seed: int | None, options: dict[str, Any] | None
    ) -> tuple[Assignment, bool, int | None, dict[str, Any] | None]:
        """Asks the server, unless the options pick a level.

        Args:
            env: handed to `set_level`.
            seed: of the reset, for what is random beside the level.
            options: of the reset.

        Returns:
            The assignment, whether it is scored, and seed and options of the reset of `env`.

        Raises:
            InvalidInput, LevelOutsideSpace, NoLevels, ServerUnreachable: as `LevelReplay.reset`.
        """
        fallback = self._fallback
        if fallback is not None and seed is not None:
            fallback.seed(seed)
        scored = options is None or "level" not in options
        if options is None or scored:
            (assignment,), scored = (self._client.next(), True) if fallback is None else fallback.next(self._client)
        else:
            assignment = self._picked(level_id(options["level"]))
            options = {key: value for key, value in options.items() if key != "level"}
        if self._set_level is not None:
            self._set_level(env, assignment.level if assignment.payload is None else assignment.payload)
            return assignment, scored, seed, options
        if assignment.payload is not None:
            expected = "a function that makes a payload the env's level, because the server's levels are payloads"
            raise InvalidInput("set_level", expected, "None")
        return assignment, scored, assignment.level, options

    def close(self) -> None:
        """Gives the level in flight back to the server and closes the connection; a later `next` opens it anew."""
        self._client.close()

    def _picked(self, level: int) -> Assignment:
        picked = Assignment(level, is_replay=False, train=True)
        if self._set_level is None:
            return picked
        # It wants what the level is, and only the server knows whether that is its id.
        with Trainer(self._client.address, **self._connecting) as trainer:
            try:
                return picked._replace(payload=trainer.levels([level])[0].payload)
            except LevelOutsideSpace:
                expected = "the id of a level whose payload the server holds"
                raise LevelOutsideSpace("options['level']", expected, str(level)) from None
            except InvalidInput:  # the levels are ids
                return picked


def told(assignment: Assignment, *, scored: bool) -> dict[str, Any]:
    """Returns what the info of a reset says of the level."""
    return {
        "plr_level": assignment.level,
        "plr_is_replay": assignment.is_replay,
        "plr_train": assignment.train,
        "plr_scored": scored,
    }


def level_id(level: object) -> int:
    """Returns `options["level"]` as an int, or raises `InvalidInput`."""
    try:
        return operator.index(level)  # type: ignore[arg-type]
    except TypeError:
        raise InvalidInput("options['level']", "a level's id, an int", repr(level)) from None

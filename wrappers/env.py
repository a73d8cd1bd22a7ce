"""LevelReplay: one Gymnasium env that plays, episode by episode, the levels that the server assigns.

May be imported by users and by the other wrappers. It never scores, pushes or records anything.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, ClassVar

import gymnasium as gym
from gymnasium.utils import RecordConstructorArgs

from plr_client import Assignment, InvalidInput, LevelClient
from plr_client.protocol import DEFAULT_CURRICULUM


class LevelReplay(gym.Wrapper, RecordConstructorArgs):
    """Asks the server for a level at every reset, also at those of autoreset, and plays it.

    The level is the seed of the wrapped env's reset, or whatever `set_level` makes of it. `reset(seed=...)` never picks
    the level: a seed is ignored, or with `set_level` handed on, for what in the env is random beside its level.
    `reset(options={"level": 7})` plays level 7 for that episode, outside the curriculum: the server is not asked and
    `scored` is False. The other options reach the env.

    The info of every reset, and of resets only, carries `plr_level` (int), `plr_is_replay`, `plr_train` and
    `plr_scored` (bools). They are the env's attributes too, of the episode being played:

    Attributes:
        level: the level's id; None before the first reset.
        is_replay: True where the level was drawn from the seen ones, False where it is new.
        train: whether the trainer should learn from this episode; False only under robust PLR for new levels.
        scored: False where the level was picked through the options.
        address: where the server listens.

    The connection opens with the first reset, in the process that makes it, so an env may be built in one process and
    played in another. Put the wrapper inside or outside of others as you like, as long as they hand on `info`.

    Args:
        env: the env to wrap.
        address: where the server listens, such as `ipc:///run/plr.sock` or `tcp://127.0.0.1:5555`.
        curriculum: the name of the curriculum, where the server has several.
        set_level: for an env whose level is not its reset seed: called as `set_level(env, level)` with the wrapped env
            and the level's id, or its payload where it has one, before each `env.reset`. It must be picklable
            where the env is built in another process.
        prefetch: how many levels this env has ready, so that a reset takes microseconds instead of a round trip: 4 to 8
            where episodes are short. They are that many episodes less fresh: see `plr_client.LevelClient`.

    Raises:
        InvalidInput: the address is not an ipc or tcp address, or prefetch not an integer from 0 to 4096.

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
        {'plr_level': 7, 'plr_is_replay': False, 'plr_train': True, 'plr_scored': False}
    """

    asks_for_levels: ClassVar[bool] = True  # by this LevelReplayVector knows, across processes too, that it need not

    def __init__(
        self,
        env: gym.Env,
        address: str,
        *,
        set_level: Callable[[gym.Env, Any], object] | None = None,
        curriculum: str = DEFAULT_CURRICULUM,
        prefetch: int = 0,
    ) -> None:
        RecordConstructorArgs.__init__(
            self, address=address, set_level=set_level, curriculum=curriculum, prefetch=prefetch
        )
        gym.Wrapper.__init__(self, env)
        self.address = address
        self.level: int | None = None
        self.is_replay = False
        self.train = False
        self.scored = False
        self._set_level = set_level
        self._client = LevelClient(address, curriculum=curriculum, prefetch=prefetch)

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
            NoLevels: the server's levels are payloads, and none has been inserted yet.
            ServerUnreachable: no reply from the server.
        """
        assignment, scored, seed, options = next_episode(self._client, self.env, self._set_level, seed, options)
        observation, info = self.env.reset(seed=seed, options=options)
        self.level, self.is_replay, self.train = assignment.level, assignment.is_replay, assignment.train
        self.scored = scored
        return observation, info | told(assignment, scored=scored)  # a copy: some envs return one dict from every step

    def close(self) -> None:
        """Gives the level in flight back to the server, closes the connection and the wrapped env."""
        self._client.close()
        super().close()


def next_episode(
    client: LevelClient,
    env: Any,
    set_level: Callable[[Any, Any], object] | None,
    seed: int | None,
    options: dict[str, Any] | None,
) -> tuple[Assignment, bool, int | None, dict[str, Any] | None]:
    """Decides what an env plays next, and sets the level where that is not the seed of the reset.

    Args:
        client: asks the server, unless the options pick a level.
        env: handed to `set_level`.
        set_level: as of `LevelReplay`.
        seed: of the reset, for what is random beside the level.
        options: of the reset.

    Returns:
        The assignment, whether it is scored, and seed and options of the reset of `env`.

    Raises:
        InvalidInput, NoLevels, ServerUnreachable: as `LevelReplay.reset`.
    """
    scored = options is None or "level" not in options
    if options is None or scored:
        assignment = client.next()[0]
    else:
        assignment = Assignment(level_id(options["level"]), is_replay=False, train=True)
        options = {key: value for key, value in options.items() if key != "level"}
    if set_level is not None:
        set_level(env, assignment.level if assignment.payload is None else assignment.payload)
        return assignment, scored, seed, options
    if assignment.payload is not None:
        expected = "a function that makes a payload the env's level, because the server's levels are payloads"
        raise InvalidInput("set_level", expected, "None")
    return assignment, scored, assignment.level, options


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

"""Does a level determine the episode? Plays levels of an env again under the same actions, and compares.

Behind `plr-server check-env`, and for users' own tests. It knows nothing of curricula, servers or wrappers. It imports
Gymnasium, so the command line imports it only when it is asked for.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from plr_client.errors import InvalidInput, counted

Env = gym.Env[Any, Any] | VectorEnv[Any, Any, Any]
Digest = Any  # of hashlib, which does not name its type


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        what: "observations", "rewards" or "ends" that do not repeat; "leak", an episode depends on the one played
            before, looked for where all three repeat; "raised", the env raised; "same", all episodes are the same.
        levels: on how many levels it was found.
        first: where it was found first, in words.
    """

    what: str
    levels: int
    first: str


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """What `check_env` found.

    Attributes:
        num_levels: how many levels were checked.
        max_steps: how many steps an episode was played for, if it did not end before.
        steps: how many were taken in all, three plays of each level together.
        ended: on how many levels the episode ended within them.
        distinct_first: how many levels differ by their first observation.
        distinct_episodes: how many differ by anything in their episodes, all played under the same actions.
        findings: what is wrong; none if a level determines the episode.
    """

    num_levels: int
    max_steps: int
    steps: int
    ended: int
    distinct_first: int
    distinct_episodes: int
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was found: a level determines the episode, and of several not all are the same."""
        return not self.findings

    def text(self) -> str:
        """Returns the report for people, a line for each thing that was looked at."""
        found = {finding.what: finding for finding in self.findings}
        levels, steps = counted(self.num_levels, "level"), counted(self.max_steps, "step")
        lines = [f"{levels}, up to {steps} each, three times under the same actions"]
        for what, label, good, bad in _LINES:
            said = good
            if what == "leak" and found.keys() & _REPEATS:
                said = "cannot be told of an env that does not repeat"
            elif what in found:
                said = f"{bad}, on {found[what].levels} of {levels}; first: {found[what].first}"
            elif "raised" in found and what != "raised":
                said += ", where it did not raise"
            lines.append(f"  {label:21}{said}")
        distinct = f"{self.distinct_first} of {self.num_levels} by their first observation"
        lines += [
            f"  {'episodes that ended':21}{self.ended} of {self.num_levels}",
            f"  {'distinct levels':21}{distinct}, {self.distinct_episodes} by the episode",
        ]
        verdict = "fine: a level determines the episode"
        if "same" in found:
            verdict = f"not fine: {found['same'].first}"
        elif found.keys() == {"raised"}:
            verdict = "not fine: the env raised, so that it cannot be told whether a level determines the episode"
        elif found:
            verdict = "not fine: a level does not determine the episode, so that its score says little about it"
        return "\n".join([*lines, verdict])

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields, and `ok`, as plain values."""
        return {"ok": self.ok, **dataclasses.asdict(self)}


_REPEATS = {"observations", "rewards", "ends"}
_LINES = (
    ("observations", "observations repeat", "yes", "no"),
    ("rewards", "rewards repeat", "yes", "no"),
    ("ends", "ends repeat", "yes", "no"),
    ("leak", "state leaks", "no", "yes"),
    ("raised", "raised", "nothing", "yes"),
)


@dataclasses.dataclass(frozen=True, slots=True)
class _Episode:
    """What was seen of one play: digests of the observations; rewards and ends in words; what the env raised."""

    observations: tuple[bytes, ...] = ()
    rewards: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    raised: str | None = None


def env_maker(env_id: str, kwargs: Mapping[str, Any]) -> Callable[[], Env]:
    """Finds out what makes an env.

    Args:
        env_id: `ENV_ID`, registered with Gymnasium; `MODULE:ENV_ID`, registered by importing the module; or
            `MODULE:FACTORY`, a function or class in the module.
        kwargs: for the factory, or for `gymnasium.make`.

    Returns:
        What makes the env; it may still raise.

    Raises:
        InvalidInput: the module cannot be imported, or there is no such env.
    """
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            factory = getattr(importlib.import_module(module), name, None)
        except Exception as exc:  # whatever a foreign module raises when it is imported
            raise InvalidInput("env_id", f"a module {module} that can be imported", f"{exc!r:.200}") from exc
        if callable(factory):
            return functools.partial(factory, **kwargs)
    try:
        gym.spec(name)
    except gym.error.Error as exc:
        expected = "ENV_ID, registered with Gymnasium, MODULE:ENV_ID, registered by the module, or MODULE:FACTORY"
        raise InvalidInput("env_id", expected, f"{env_id} ({exc})") from exc
    return functools.partial(gym.make, name, disable_env_checker=True, **kwargs)


def check_env(make: Callable[[], Env], levels: Sequence[int], *, max_steps: int = 200, seed: int = 0) -> Report:
    """Plays every level three times under the same actions and compares the plays bit for bit.

    Once in each of two new envs, to see whether the level repeats; and once in an env that has just played the level
    before (for the first level: the last), to see whether state leaks from one episode into the next. The level is the
    seed of the reset. Actions come from the action space, seeded, so that all levels are played under the same ones.

    Args:
        make: makes an env, or a vector env of one env; called twice for each level.
        levels: the seeds, one or more.
        max_steps: how long an episode is played if it does not end before, at least 1.
        seed: of the actions.

    Returns:
        The report. An exception of the env is a finding in it.

    Raises:
        InvalidInput: `levels` or `max_steps` is not what it must be, or what `make` makes is no such env.
    """
    if not levels or min(levels) < 0 or len(set(levels)) != len(levels):
        raise InvalidInput("levels", "one or more distinct seeds, 0 or above", f"{levels!s:.80}")
    if max_steps < 1:
        raise InvalidInput("max_steps", "at least 1 (--steps on the command line)", str(max_steps))
    fresh, again, after = [], [], []
    for n, level in enumerate(levels):
        fresh += _played(make, [level], max_steps, seed)
        repeated, following = _played(make, [level, levels[(n + 1) % len(levels)]], max_steps, seed)
        again.append(repeated)
        after.append(following)
    after = after[-1:] + after[:-1]

    found = _compared(levels, fresh, again, after)
    whole = [play for play in fresh if not play.raised]
    distinct = len(set(whole))
    if distinct == 1 < len(whole):
        found["same"] = [f"the episodes of all {len(whole)} levels are the same, so that there is nothing to choose"]
    return Report(
        num_levels=len(levels),
        max_steps=max_steps,
        steps=sum(len(play.rewards) for play in (*fresh, *again, *after)),
        ended=sum(any(play.ends) for play in fresh),
        distinct_first=len({play.observations[0] for play in whole}),
        distinct_episodes=distinct,
        findings=tuple(Finding(what, len(places), places[0]) for what, places in found.items()),
    )


def _compared(
    levels: Sequence[int], fresh: list[_Episode], again: list[_Episode], after: list[_Episode]
) -> dict[str, list[str]]:
    """Returns the levels on which something is wrong, with where, by what is wrong."""
    found: dict[str, list[str]] = {}
    for n, level in enumerate(levels):
        at, at_after = f"level {level}", f"level {level} after level {levels[n - 1]}"
        for where, play in ((at, fresh[n]), (at, again[n]), (at_after, after[n])):
            if play.raised:
                found.setdefault("raised", []).append(f"{where}, {play.raised}")
                break
        else:
            for what, difference in _differences(fresh[n], again[n]).items():
                found.setdefault(what, []).append(f"{at}, {difference}")
            for what, difference in list(_differences(fresh[n], after[n]).items())[:1]:
                found.setdefault("leak", []).append(f"{at_after}, {what} {difference}")
    if found.keys() & _REPEATS:  # what differs after another level would differ anyway
        found.pop("leak", None)
    return found


def _played(make: Callable[[], Env], levels: Sequence[int], max_steps: int, seed: int) -> list[_Episode]:
    """Plays levels one after the other in a new env, until it raises."""
    try:
        env = make()
    except Exception as exc:  # noqa: BLE001  whatever a foreign env raises
        return [_Episode(raised=_words("when it was made", exc)), *[_Episode()] * (len(levels) - 1)]
    if not isinstance(env, gym.Env | VectorEnv) or getattr(env, "num_envs", 1) != 1:
        raise InvalidInput("env", "a Gymnasium env, or a vector env of one env", f"{env!r:.200}")
    played: list[_Episode] = []
    for level in levels:
        played.append(_Episode() if played and played[-1].raised else _play(env, level, max_steps, seed))
    try:
        env.close()
    except Exception as exc:  # noqa: BLE001  as above
        if not played[0].raised:
            played[0] = dataclasses.replace(played[0], raised=_words("when it was closed", exc))
    return played


def _play(env: Env, level: int, max_steps: int, seed: int) -> _Episode:
    observations, rewards, ends = [], [], []
    raised, where = None, "at the reset"
    try:
        actions = copy.deepcopy(env.action_space)  # an env may draw from its own
        actions.seed(seed)
        observation, _ = env.reset(seed=level)
        observations.append(_digest(observation))
        for step in range(max_steps):
            where = f"at step {step}"
            observation, reward, terminated, truncated, info = env.step(actions.sample())
            ended = " and ".join(
                name for name, end in (("terminated", terminated), ("truncated", truncated)) if np.any(end)
            )
            if ended and isinstance(env, VectorEnv) and _mode(env) is AutoresetMode.SAME_STEP:
                # The observation is the first one of an episode that nobody asked for.
                observation = info["final_obs"][0] if "final_obs" in info else None
            observations.append(_digest(observation))
            rewards.append(", ".join(map(repr, np.asarray(reward).ravel().tolist())))
            ends.append(ended)
            if ended:
                break
    except Exception as exc:  # noqa: BLE001  as above
        raised = _words(where, exc)
    return _Episode(tuple(observations), tuple(rewards), tuple(ends), raised)


def _mode(env: VectorEnv[Any, Any, Any]) -> Any:
    # Before Gymnasium 1.4 the metadata are the class's: another vector env in another mode changes them.
    return getattr(env.unwrapped, "autoreset_mode", env.metadata.get("autoreset_mode"))


def _words(where: str, exc: Exception) -> str:
    return f"{where}: {type(exc).__name__}: {' '.join(str(exc).split()):.200}"


def _differences(one: _Episode, other: _Episode) -> dict[str, str]:
    """Returns where observations, rewards and ends first differ, in words, for those that do."""
    differences = {}
    for step, (here, there) in enumerate(zip(one.observations, other.observations, strict=False), start=-1):
        if here != there:
            differences["observations"] = "at the reset" if step < 0 else f"after step {step}"
            break
    for what, of_one, of_other in (("rewards", one.rewards, other.rewards), ("ends", one.ends, other.ends)):
        for step, (first, second) in enumerate(zip(of_one, of_other, strict=False)):
            if first != second:
                differences[what] = f"at step {step}: {first or 'going on'}, then {second or 'going on'}"
                break
    return differences


def _digest(observation: Any) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    _feed(digest, observation)
    return digest.digest()


def _feed(digest: Digest, value: Any) -> None:
    if isinstance(value, Mapping):
        for key in sorted(value, key=repr):
            digest.update(repr(key).encode())
            _feed(digest, value[key])
    elif isinstance(value, tuple | list):
        digest.update(f"{len(value)} of".encode())
        for each in value:
            _feed(digest, each)
    elif value is None or isinstance(value, str | bytes):
        digest.update(repr(value).encode())
    else:
        array = np.asarray(value)
        if array.dtype == object:
            raise TypeError(f"expected an observation of arrays, numbers and text, got a {type(value).__name__} in it")
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())

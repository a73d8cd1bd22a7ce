"""Score functions of users: found by name or unpickled, called with one segment at a time, their results checked.

Used by the curriculum. What such a function does wrong comes out as a typed error; it is code of the operator's choice,
or of a client that the operator trusts, and nothing here fences it in.
"""

from __future__ import annotations

import dataclasses
import importlib
import numbers
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plr_client.errors import ConfigError, InvalidInput, ScoreFunctionError
from plr_client.segment import Segment
from plr_server.curriculum.scoring.history import Past
from plr_server.curriculum.scoring.rollouts import MAX_MAGNITUDE, UNSAID, Rollout
from plr_server.curriculum.scoring.scores import Episodes, Ints, advantages, flatten

ScoreFunction = Callable[[Segment], tuple[float, float]]
Failure = (Exception, SystemExit)  # whatever code of others raises, but for a Ctrl-C


def import_function(name: str) -> ScoreFunction:
    """Returns the function that `module:function` names.

    Raises:
        ConfigError: it cannot be imported in this process, or is no function.
    """
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except Failure as exc:
        raise ConfigError(
            "strategy",
            "module:function that the server can import (from the folder it was started in, or PYTHONPATH)",
            f"{name} ({exc!r:.200})",
        ) from exc
    if not callable(found):
        raise ConfigError("strategy", "module:function", f"{name}, which is a {type(found).__name__}")
    function: ScoreFunction = found
    return function


def unpickle_function(pickled: bytes) -> tuple[str, ScoreFunction]:
    """Returns a function that cloudpickle pickled, and its name, `module:function`.

    Raises:
        ScoreFunctionError: it cannot be unpickled in this process.
        InvalidInput: it is no function.
    """
    import cloudpickle  # noqa: PLC0415  only a server that was sent one pays for it

    try:
        found = cloudpickle.loads(pickled)
    except Failure as exc:
        raise ScoreFunctionError("sent by a client", f"{exc!r:.200} when it was unpickled") from exc
    if not callable(found):
        raise InvalidInput("function", "a function", f"a {type(found).__name__}")
    name = getattr(found, "__qualname__", type(found).__qualname__)
    return f"{getattr(found, '__module__', None)}:{name}"[:200], found


def score_with(
    function: ScoreFunction,
    name: str,
    rollout: Rollout,
    rows: Ints,
    episodes: Episodes,
    *,
    past: Past,
    gamma: float,
    gae_lambda: float,
) -> Episodes:
    """Calls a score function for every episode of a block that is to be scored, in the order of application.

    Args:
        function: the function.
        name: its name, for errors.
        rollout: the block.
        rows: its valid rows, as from `find_episodes`.
        episodes: its E episodes, as from `find_episodes`.
        past: what came before them.
        gamma: discount, 0 to 1.
        gae_lambda: lambda of the advantages, 0 to 1.

    Returns:
        The episodes with their mean and max, 0 where one is not to be scored.

    Raises:
        ScoreFunctionError: it raised, or returned something else than two finite floats.
    """
    mean, highest = np.zeros(len(episodes.level)), np.zeros(len(episodes.level))
    for e, segment in _segments(rollout, rows, episodes, past, gamma=gamma, gae_lambda=gae_lambda):
        mean[e], highest[e] = _call(function, name, segment)
    return dataclasses.replace(episodes, mean=mean, max=highest)


def _segments(
    rollout: Rollout, rows: Ints, episodes: Episodes, past: Past, *, gamma: float, gae_lambda: float
) -> Iterator[tuple[int, Segment]]:
    per_step: dict[str, NDArray[np.float64] | None] = {
        "rewards": rollout.rewards,
        "values": rollout.values,
        "logits": rollout.logits,
    }
    bootstraps = rollout.values is not None and rollout.rewards is not None and rollout.next_values is not None
    if bootstraps:
        per_step["advantages"], per_step["td_errors"] = advantages(rollout, gamma, gae_lambda)
    flat = {name: flatten(array, rows) for name, array in per_step.items() if array is not None}
    for array in flat.values():
        array.flags.writeable = False
    begin = episodes.begin
    for e in past.order.tolist():
        steps, finished = slice(begin[e], begin[e] + episodes.steps[e]), episodes.finished[e]
        last = episodes.stop[e] - 1, episodes.column[e]
        truncated = rollout.truncated is not None and bool(rollout.truncated[last])
        next_value = None
        if bootstraps and rollout.next_values is not None:
            next_value = 0.0 if finished else float(rollout.next_values[last[1]])
            if truncated and rollout.final_values is not None:
                next_value = float(rollout.final_values[last])
        best, said = past.best, past.successes[e]
        yield (
            e,
            Segment(
                level=int(episodes.level[e]),
                steps=int(episodes.steps[e]),
                steps_before=int(past.steps_before[e]),
                finished=bool(finished),
                truncated=truncated,
                next_value=next_value,
                episode_return=None if np.isnan(past.returns[e]) else float(past.returns[e]),
                best_return=None if best is None or np.isneginf(best[e]) else float(best[e]),
                success=None if said == UNSAID else bool(said),
                **{name: array[steps] for name, array in flat.items()},
            ),
        )


def _call(function: ScoreFunction, name: str, segment: Segment) -> tuple[float, float]:
    try:
        result: Any = function(segment)
    except Failure as exc:
        raise ScoreFunctionError(name, f"{exc!r:.200}") from exc
    try:
        mean, highest = (
            float(x) for x in result if isinstance(x, numbers.Real)
        )  # a text is no float, if it reads as one
    except (TypeError, ValueError, OverflowError) as exc:
        raise ScoreFunctionError(name, f"{result!r:.200}") from exc
    if not (abs(mean) <= MAX_MAGNITUDE and abs(highest) <= MAX_MAGNITUDE):  # False for NaN too
        raise ScoreFunctionError(name, f"{result!r:.200}")
    return mean, highest

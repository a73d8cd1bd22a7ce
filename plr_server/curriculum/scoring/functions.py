"""Score functions of users: found by name or unpickled, called with one segment at a time, their results checked.

Used by the curriculum. What such a function does wrong comes out as a typed error; it is code of the operator's choice,
or of a client that the operator trusts, and nothing here fences it in.
"""

from __future__ import annotations

import contextlib
import importlib
import numbers
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plr_client.errors import ConfigError, InvalidInput, PlrError, ScoreFunctionError
from plr_client.segment import Segment
from plr_server.curriculum.arrays import MAX_MAGNITUDE, Floats
from plr_server.curriculum.scoring.episodes import PER_STEP, Episodes, advantages
from plr_server.curriculum.scoring.history import Past
from plr_server.curriculum.scoring.rollouts import UNSAID

ScoreFunction = Callable[[Segment], tuple[float, float]]


def import_function(name: str) -> ScoreFunction:
    """Returns the function that `module:function` names.

    Raises:
        ConfigError: it cannot be imported in this process, or is no function.
    """
    module, _, path = name.partition(":")
    expected = "module:function that the server can import (from the folder it was started in, or PYTHONPATH)"
    with _code_of_others(lambda raised: ConfigError("strategy", expected, f"{name} ({raised})")):
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
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

    with _code_of_others(lambda raised: ScoreFunctionError("sent by a client", f"{raised} when it was unpickled")):
        found = cloudpickle.loads(pickled)
        name = getattr(found, "__qualname__", type(found).__qualname__)
        named = _sendable(f"{getattr(found, '__module__', None)}:{name}"[:200])
    if not callable(found):
        raise InvalidInput("function", "a function", f"a {type(found).__name__}")
    return named, found


def score_with(
    function: ScoreFunction, name: str, episodes: Episodes, *, past: Past, gamma: float, gae_lambda: float
) -> tuple[Floats, Floats]:
    """Calls a score function for every episode of a block that is to be scored, in the order of application.

    Args:
        function: the function.
        name: its name, for errors.
        episodes: the block's E episodes.
        past: what came before them.
        gamma: discount, 0 to 1.
        gae_lambda: lambda of the advantages, 0 to 1.

    Returns:
        Mean (E,) and maximum (E,), 0 where an episode is not to be scored.

    Raises:
        ScoreFunctionError: it raised, or returned something else than two finite floats.
    """
    mean, highest = np.zeros(len(episodes)), np.zeros(len(episodes))
    for e, segment in _segments(episodes, past, gamma=gamma, gae_lambda=gae_lambda):
        mean[e], highest[e] = _call(function, name, segment)
    return mean, highest


def _segments(episodes: Episodes, past: Past, *, gamma: float, gae_lambda: float) -> Iterator[tuple[int, Segment]]:
    per_step: dict[str, NDArray[np.float64]] = {
        name: array.view() for name in PER_STEP if (array := getattr(episodes, name)) is not None
    }
    if episodes.next_value is not None:
        per_step["advantages"], per_step["td_errors"] = advantages(episodes, gamma, gae_lambda)
    for array in per_step.values():
        array.flags.writeable = False
    begin = episodes.begin
    for e in past.order.tolist():
        steps = slice(begin[e], begin[e] + episodes.steps[e])
        best, said = past.best, episodes.success[e]
        yield (
            e,
            Segment(
                level=int(episodes.level[e]),
                steps=int(episodes.steps[e]),
                steps_before=int(past.steps_before[e]),
                finished=bool(episodes.finished[e]),
                truncated=bool(episodes.truncated[e]),
                next_value=None if episodes.next_value is None else float(episodes.next_value[e]),
                episode_return=None if np.isnan(past.returns[e]) else float(past.returns[e]),
                best_return=None if best is None or np.isneginf(best[e]) else float(best[e]),
                success=None if said == UNSAID else bool(said),
                **{field: array[steps] for field, array in per_step.items()},
            ),
        )


def _call(function: ScoreFunction, name: str, segment: Segment) -> tuple[float, float]:
    with _code_of_others(lambda raised: ScoreFunctionError(name, raised)):
        result: Any = function(segment)
        pair = _pair(result)
    if pair is None or not all(abs(score) <= MAX_MAGNITUDE for score in pair):  # False for NaN too
        raise ScoreFunctionError(name, _shown(result))
    return pair


def _pair(result: Any) -> tuple[float, float] | None:
    """Returns two real numbers as floats; None where the result is something else."""
    try:
        mean, highest = result
        numbers_only = isinstance(mean, numbers.Real) and isinstance(highest, numbers.Real)  # no text that reads as one
        return (float(mean), float(highest)) if numbers_only else None
    except (TypeError, ValueError, OverflowError):
        return None


@contextlib.contextmanager
def _code_of_others(error: Callable[[str], PlrError]) -> Iterator[None]:
    """Makes an error of ours of whatever comes out of the context, but for a Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as exc:
        raise error(_shown(exc)) from exc


def _shown(value: object) -> str:
    """Returns what can be said of a thing from code of others, whose repr may be anything, or raise anything."""
    try:
        return _sendable(f"{value!r:.200}")
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001  as above
        return f"a {type(value).__name__} that cannot be shown"


def _sendable(text: str) -> str:
    """Returns the text without lone surrogates, which would not go over the wire."""
    return text.encode(errors="backslashreplace").decode()

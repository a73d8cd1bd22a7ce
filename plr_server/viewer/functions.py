"""Functions of the user's that the viewer calls: `--group` and `--render`, each given as `module:function`.

Used by groups, pictures and the command line. They run in the viewer's process alone, never in the server's. Whatever
one raises ends nothing: the level has no group or no picture then, and the log says so once.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any

from plr_client.errors import ConfigError

logger = logging.getLogger("plr_server")


class OfLevel:
    """A function from one level, its id or its payload, to anything.

    Args:
        option: what it was given by, for errors: "group" or "render".
        name: `module:function`, found in the folder that the viewer was started in or on PYTHONPATH.

    Raises:
        ConfigError: it cannot be imported, or is no function.
    """

    def __init__(self, option: str, name: str) -> None:
        expected = "module:function that can be imported (from the folder the viewer was started in, or PYTHONPATH)"
        module, _, path = name.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for part in path.split("."):
                found = getattr(found, part)
        except Exception as exc:  # whatever a foreign module raises when it is imported
            raise ConfigError(option, expected, f"{name} ({type(exc).__name__}: {exc!s:.200})") from exc
        if not callable(found):
            raise ConfigError(option, "module:function", f"{name}, which is a {type(found).__name__}")
        self._name, self._function = name, found
        self._has_failed = False

    def __call__(self, level: Any, then: Callable[[Any], Any]) -> Any:
        """Returns what `then` makes of the function's result for a level; None where one of them raises."""
        try:
            return then(self._function(level))
        except Exception as exc:  # noqa: BLE001  the user's function may raise anything
            if not self._has_failed:
                logger.warning("%s failed for level %.80r: %s: %s", self._name, level, type(exc).__name__, exc)
            self._has_failed = True
            return None

"""A state is copied whole, and fast: what it was taken of goes on changing.

Used by the state machine. Pure: plain values and arrays in, such out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

_UNCHANGING = frozenset((int, float, str, bytes, bool, type(None)))


def copied(value: Any, reuse: Any = None) -> Any:
    """Returns a value of which no part is shared with the one given, except what cannot change.

    Args:
        value: maps, lists and arrays, within one another, of what cannot change.
        reuse: a copy that this made before, to be given up: its arrays are filled anew where they fit.
    """
    if isinstance(value, np.ndarray):
        if isinstance(reuse, np.ndarray) and (reuse.dtype, reuse.shape) == (value.dtype, value.shape):
            np.copyto(reuse, value)
            return reuse
        return value.copy()
    if isinstance(value, Mapping):
        if _UNCHANGING.issuperset(map(type, value.values())):  # there may be millions
            return dict(value)
        before = reuse if isinstance(reuse, dict) else {}
        return {key: copied(part, before.get(key)) for key, part in value.items()}
    if isinstance(value, list):
        return list(value) if _UNCHANGING.issuperset(map(type, value)) else [copied(part) for part in value]
    return value

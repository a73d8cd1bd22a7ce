"""Arrays as they come in: what numpy can take, of the promised shape, dtype and range, or refused by name.

Used by the whole curriculum, for the names of its dtypes too. Pure functions: no state, no IO.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from plr_client.errors import InvalidInput

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Flags = NDArray[np.int8]

MAX_MAGNITUDE = 1e30  # beyond it sums of products overflow
FLOAT64_BYTES = 8
FEW = 2**12  # numbers whose squares BLAS adds up without threads


def as_array(name: str, given: Any) -> NDArray[Any]:
    """Returns what was given as an array.

    Raises:
        InvalidInput: numpy cannot make one of it, or it holds integers beyond int64.
    """
    try:
        array = np.asarray(given)
    except Exception as exc:  # whatever a foreign object raises when it cannot become an array
        raise InvalidInput(name, "something numpy can turn into an array", f"{exc!s:.200}") from exc
    if array.dtype.kind == "u" and array.dtype.itemsize == np.uint64().itemsize:  # of either byte order
        largest = array.max(initial=0)
        if largest > np.iinfo(np.int64).max:
            raise InvalidInput(name, "integers within int64", f"{largest}")
    return array


def numbers(name: str, given: Any, kinds: str, shape: tuple[int, ...] | None = None) -> NDArray[Any]:
    """Returns an array of one of the dtype kinds: "iu" for integers, "fiub" for anything that reads as a number.

    Raises:
        InvalidInput: it is no such array, or not of the shape, which is that of `levels`.
    """
    array = as_array(name, given)
    if array.dtype.kind not in kinds:
        expected = "integers" if kinds == "iu" else "numbers"
        raise InvalidInput(name, f"an array of {expected}", f"dtype {array.dtype}")
    if shape is not None and array.shape != shape:
        raise InvalidInput(name, f"shape {shape}, by the shape of levels", f"shape {array.shape}")
    return array


def finite(name: str, array: NDArray[Any], hint: str = "") -> Floats:
    """Returns numbers as a new contiguous float64 array.

    Raises:
        InvalidInput: one of them is NaN, infinite or beyond `MAX_MAGNITUDE`.
    """
    if array.dtype.itemsize > FLOAT64_BYTES:
        with np.errstate(over="ignore"):  # what is too large becomes inf and is refused
            array = array.astype(np.float64)
    floats: Floats = np.array(array, dtype=np.float64, order="C")
    if floats.size <= FEW and np.vdot(floats, floats) <= MAX_MAGNITUDE:  # a quick yes; False for NaN
        return floats
    if not (floats.max() <= MAX_MAGNITUDE and floats.min() >= -MAX_MAGNITUDE):  # False for NaN too
        worst = floats[~(np.abs(floats) <= MAX_MAGNITUDE)][0]
        raise InvalidInput(name, f"finite numbers up to {MAX_MAGNITUDE:g} in magnitude{hint}", f"{worst}")
    return floats


def bools(name: str, given: Any, shape: tuple[int, ...]) -> Bools:
    """Returns an array of the shape, which is that of `levels`, as bools.

    Raises:
        InvalidInput: it is no array of that shape, or holds something else than 0 and 1.
    """
    array = numbers(name, given, "fiub", shape)
    if array.dtype == np.bool_:
        return array
    if not ((array == 0) | (array == 1)).all():
        raise InvalidInput(name, "bools, or numbers that are 0 or 1", f"{array[(array != 0) & (array != 1)][0]}")
    return array.astype(np.bool_)


def scores_of(given: Any, shape: tuple[int, ...]) -> Floats:
    """Returns scores that a trainer made itself, float64 of the shape.

    Raises:
        InvalidInput: they are no numbers of that shape, or not finite.
    """
    array = as_array("scores", given)
    if array.shape != shape or array.dtype.kind not in "fiu":
        raise InvalidInput("scores", f"shape {shape} of numbers", f"shape {array.shape} of {array.dtype}")
    return finite("scores", array)


def ids_of(name: str, given: Any) -> Ints:
    """Returns level ids, (m,) int64.

    Raises:
        InvalidInput: they are no integers of one axis.
    """
    array = as_array(name, given)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise InvalidInput(name, "shape (m,) of integers", f"shape {array.shape} of {array.dtype}")
    return array.astype(np.int64)


def slots_of(given: Any, k: int) -> list[int]:
    """Returns the numbers of k env slots.

    Raises:
        InvalidInput: they are not k distinct integers.
    """
    chosen = as_array("slots", given)
    slots: list[int] = chosen.tolist() if chosen.shape == (k,) and chosen.dtype.kind in "iu" else []
    if len(set(slots)) != k:
        raise InvalidInput("slots", f"{k} distinct ints", f"{given!s:.80}")
    return slots

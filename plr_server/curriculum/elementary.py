"""exp, log and power that give the same bits on every CPU.

numpy's own take what vector instructions there are, and differ in the last bits from CPU to CPU; then the same commands
would lead to another state on another machine. These are made of what IEEE 754 fixes alone: additions, multiplications,
divisions and exact scaling. Used by the whole curriculum where a result goes into its state. Pure functions.

Source: fdlibm (Sun Microsystems, 1993), e_exp.c and e_log.c; errors of at most about one unit in the last place.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from plr_server.curriculum.arrays import Floats

_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10  # HIGH times a small integer is exact
_LOG2_E = 1.44269504088896338700e00
_LEAST, _MOST = -750.0, 709.0  # exp is 0 below, and is not asked for above
_EXP = (
    1.66666666666666019037e-01,
    -2.77777777770155933842e-03,
    6.61375632143793436117e-05,
    -1.65339022054652515390e-06,
    4.13813679705723846039e-08,
)
_LOG = (
    6.666666666666735130e-01,
    3.999999999940941908e-01,
    2.857142874366239149e-01,
    2.222219843214978396e-01,
    1.818357216161805012e-01,
    1.531383769920937332e-01,
    1.479819860511658591e-01,
)
_SQRT_HALF = 0.70710678118654752440
_BLOCK = 2**13  # numbers at a time: what is in between stays in the cache


def _in_blocks(function: Callable[[Floats], Floats]) -> Callable[[Floats], Floats]:
    def whole(x: Floats) -> Floats:
        if x.size <= _BLOCK:
            return function(x)
        flat, results = x.reshape(-1), np.empty(x.size)
        for begin in range(0, x.size, _BLOCK):
            results[begin : begin + _BLOCK] = function(flat[begin : begin + _BLOCK])
        return results.reshape(x.shape)

    whole.__doc__ = function.__doc__
    return whole


@_in_blocks
def exp(x: Floats) -> Floats:
    """Returns e^x; for x up to 709, -inf included."""
    x = np.maximum(x, _LEAST)
    k = np.rint(x * _LOG2_E)
    high, low = x - k * _LN2_HIGH, k * _LN2_LOW
    r = high - low
    c = r - _polynomial(_EXP, r * r)
    y: Floats = 1.0 - ((low - r * c / (2.0 - c)) - high)
    with np.errstate(under="ignore"):
        return np.ldexp(y, k.astype(np.int32))


@_in_blocks
def log(x: Floats) -> Floats:
    """Returns the natural logarithm of finite numbers above 0."""
    mantissa, k = np.frexp(x)  # x = mantissa 2^k, 1/2 <= mantissa < 1
    small = mantissa < _SQRT_HALF
    f: Floats = np.where(small, mantissa + mantissa, mantissa) - 1.0
    exponent: Floats = (k - small).astype(np.float64)
    s, half_square = f / (2.0 + f), 0.5 * f * f
    r = _polynomial(_LOG, s * s)
    result: Floats = exponent * _LN2_HIGH - ((half_square - (s * (half_square + r) + exponent * _LN2_LOW)) - f)
    return result


def power(x: Floats, exponent: float) -> Floats:
    """Returns x^exponent for x of 0 or more and results up to 1; 0^exponent is 0, as the exponent is not.

    The relative error is about 1e-16 times 1 + |ln of the result|.
    """
    result = exp(exponent * log(np.where(x > 0.0, x, 1.0)))
    return np.where(x > 0.0, result, 0.0)


def _polynomial(coefficients: tuple[float, ...], z: Floats) -> Floats:
    """Returns c1 z + c2 z^2 + ..."""
    total = z * coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        total += coefficient
        total *= z
    return total

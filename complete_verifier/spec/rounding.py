"""Decimal numbers to floats with a known direction of rounding, and exact decimal arithmetic.

Fact used throughout: rounding to float64 is monotone, so for decimals d and floats f that float64 holds exactly
(every float32 and float64), nearest64(d) < f implies d < f and nearest64(d) > f implies d > f. Only where the
two are equal must the decimal itself be asked, which keeps the slow exact comparison to a few entries.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from decimal import Context, Decimal, DivisionByZero, Inexact, InvalidOperation, Overflow
from fractions import Fraction

import numpy as np
from numpy.typing import DTypeLike, NDArray

Float64s = NDArray[np.float64]
Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]

ZERO = Decimal(0)
ONE = Decimal(1)
MINUS_ONE = Decimal(-1)

# Digits after which exact arithmetic gives up. Literals are far shorter (lexer), so only long chains get here.
EXACT_DIGITS = 4000


def exact_context() -> Context:
    """A decimal context whose operations are exact or raise (`decimal.Inexact` and kin)."""
    traps = [Inexact, InvalidOperation, DivisionByZero, Overflow]
    return Context(prec=EXACT_DIGITS, Emax=999_999, Emin=-999_999, traps=traps)


def negate(value: Decimal) -> Decimal:
    """-value without rounding (the operator `-` rounds to 28 digits) and without a negative zero."""
    return value.copy_negate() if value else ZERO


def nearest64(values: Iterable[Decimal]) -> Float64s:
    """The float64 nearest to each decimal (correctly rounded); [n]."""
    return np.array([float(value) for value in values], dtype=np.float64)


def round_up(exact: Sequence[Decimal], nearest: Float64s, dtype: DTypeLike) -> Floats:
    """The smallest number of `dtype` (float32 or float64) that is >= each decimal; +inf beyond its range."""
    cast, side = _cast_and_side(exact, nearest, dtype)
    return np.where(side < 0, np.nextafter(cast, cast.dtype.type(np.inf)), cast)


def round_down(exact: Sequence[Decimal], nearest: Float64s, dtype: DTypeLike) -> Floats:
    """The largest number of `dtype` (float32 or float64) that is <= each decimal; -inf beyond its range."""
    cast, side = _cast_and_side(exact, nearest, dtype)
    return np.where(side > 0, np.nextafter(cast, cast.dtype.type(-np.inf)), cast)


def round_up_fraction(value: Fraction, dtype: DTypeLike) -> float:
    """A number of `dtype` (float32 or float64) next to `value` that is >= it; +inf beyond its range."""
    try:
        nearest = float(value)
    except OverflowError:
        nearest = math.inf if value > 0 else -math.inf
    with np.errstate(over="ignore"):
        cast: Floats = np.array([nearest]).astype(dtype)
    near = float(cast[0])
    below = near == -math.inf or (math.isfinite(near) and Fraction(near) < value)
    return float(np.nextafter(cast, cast.dtype.type(np.inf))[0]) if below else near


def step_off(values: Floats, exact: Sequence[Decimal], where: Bools, towards: float) -> Floats:
    """`values`, moved one float towards `towards` where `where` holds and the value equals the decimal."""
    equal = where.copy()
    for i in np.flatnonzero(where).tolist():
        equal[i] = Decimal(float(values[i])) == exact[i]
    return np.where(equal, np.nextafter(values, values.dtype.type(towards)), values)


def cast_decimal(value: Decimal, dtype: DTypeLike) -> float:
    """What a reader of the printed number feeds the network: text -> float64 -> `dtype`."""
    with np.errstate(over="ignore"):
        return float(np.float64(float(value)).astype(dtype))


def _cast_and_side(exact: Sequence[Decimal], nearest: Float64s, dtype: DTypeLike) -> tuple[Floats, NDArray[np.int8]]:
    """The decimals cast to `dtype`, and whether each result lies below (-1), on (0) or above (1) its decimal."""
    with np.errstate(over="ignore"):
        cast: Floats = nearest.astype(dtype)
    back = cast.astype(np.float64)
    side = np.sign(np.where(back == nearest, 0.0, back - nearest)).astype(np.int8)
    for i in np.flatnonzero(back == nearest).tolist():
        value = Decimal(float(back[i]))
        side[i] = (value > exact[i]) - (value < exact[i])
    return cast, side

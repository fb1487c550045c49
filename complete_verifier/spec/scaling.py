"""Rows ``c . y <= rhs`` in a run's floats: coefficients near 1, exact where that can be, right-hand sides rounded up.

Multiplied by a positive number a row says the same. Rows as people write them are left alone. One whose coefficients
would vanish, overflow or be rounded is multiplied by what makes whole numbers of them, and by a power of two that
brings the largest near 1, all exact in the element type: ``1e-50 y <= -2e-45`` is ``y <= -2e5``, and
``0.1 y - 0.3 z <= 0`` is ``0.5 y - 1.5 z <= 0``. Where no such number exists (many digits), coefficients are nearest
ones: off by one rounding relative to themselves, as every product of a bounding pass is; the right-hand side is never
below the exact one. A row of coefficients too far apart for the element type gets ``rhs = inf``: it proves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from math import gcd, lcm

import numpy as np
from numpy.typing import DTypeLike, NDArray

from complete_verifier.spec.property import Clause, ExactRow
from complete_verifier.spec.rounding import Float64s, Floats, round_up, round_up_fraction

# Rows whose largest coefficient lies between these powers of two are taken as they are, if nothing is lost by it ...
_LEAST, _MOST = 2.0**-24, 2.0**24
# ... that is, if the others are not smaller than this part of it.
_SPREAD = 2.0**-40


@dataclass(frozen=True, slots=True)
class FloatRows:
    """S rows: ``c`` ``[S, O]``, ``rhs`` ``[S]``, and ``scale`` ``[S]``: what each row was multiplied by.

    ``unusable`` rows ``[S]`` have coefficients that the element type cannot hold together: c = 0, rhs = +inf.
    ``rounded`` ``[S]``: rows some of whose coefficients are not exact.
    """

    c: Floats
    rhs: Floats
    scale: Float64s
    unusable: NDArray[np.bool_]
    rounded: NDArray[np.bool_]


def float_rows(clauses: Sequence[Clause], n_outputs: int, dtype: DTypeLike) -> FloatRows:
    """The rows of all clauses in float32 or float64."""
    rows = [row for clause in clauses for row in clause.rows]
    mat = np.concatenate([np.zeros((0, n_outputs)), *(clause.mat for clause in clauses)])
    nearest = np.concatenate([np.zeros(0), *(clause.rhs for clause in clauses)])
    with np.errstate(over="ignore", under="ignore"):
        c = mat.astype(dtype)
    rhs = round_up([row.rhs for row in rows], nearest, dtype)
    scale, unusable, rounded = np.ones(len(rows)), np.zeros(len(rows), np.bool_), np.zeros(len(rows), np.bool_)
    inexact = _inexact(rows, dtype)
    plain = _plain(mat, rows)
    for i, row in enumerate(rows):
        if plain[i] and not (inexact and any(value in inexact for _, value in row.terms)):
            continue
        factor, exact = _factor(row, dtype, keep=bool(plain[i]))
        rounded[i] = not exact
        if factor == 1 and plain[i]:
            continue
        scaled = _coefficients(row, factor, dtype)
        scale[i] = float(factor) if factor < 2**1000 else np.inf
        c[i] = 0
        if scaled is None:
            rhs[i], unusable[i] = np.inf, True
            continue
        c[i, [index for index, _ in row.terms]] = scaled
        rhs[i] = round_up_fraction(Fraction(row.rhs) * factor, dtype)
    return FloatRows(c, rhs, scale, unusable, rounded)


def _inexact(rows: Sequence[ExactRow], dtype: DTypeLike) -> frozenset[Decimal]:
    """Coefficients that are no numbers of the element type."""
    written = {value for row in rows for _, value in row.terms}
    with np.errstate(over="ignore", under="ignore"):
        floats = [float(np.float64(float(value)).astype(dtype)) for value in written]
    return frozenset(value for value, near in zip(written, floats, strict=True) if Decimal(near) != value)


def _plain(mat: Float64s, rows: Sequence[ExactRow]) -> NDArray[np.bool_]:
    """Rows ``[S]`` whose coefficients are neither very large nor very small, nor far apart."""
    size = np.abs(mat)
    largest = size.max(1, initial=0.0)
    smallest = np.where(size > 0, size, np.inf).min(1, initial=np.inf)
    whole = (size > 0).sum(1) == np.array([len(row.terms) for row in rows], dtype=np.int64)  # none is 0 in float64
    return whole & (largest >= _LEAST) & (largest <= _MOST) & (smallest >= largest * _SPREAD)


def _factor(row: ExactRow, dtype: DTypeLike, keep: bool) -> tuple[Fraction, bool]:
    """What to multiply a row by, and whether its coefficients are exact then. ``keep``: 1 is a fair answer."""
    if not row.terms:
        return Fraction(1), True
    values = [Fraction(value) for _, value in row.terms]
    denominator = lcm(*(value.denominator for value in values))
    whole = [int(value * denominator) for value in values]
    common = gcd(*whole)
    digits = np.finfo(dtype).nmant + 1
    exact = all(_length(number // common) <= digits for number in whole)
    if exact:
        largest = max(abs(number) for number in whole) // common
        return Fraction(denominator, common) / 2 ** (largest.bit_length() - 1), True
    if keep:
        return Fraction(1), False
    return _power_of_two(max(abs(value) for value in values)), False


def _length(number: int) -> int:
    """Bits from the first 1 to the last."""
    number = abs(number)
    return (number // (number & -number)).bit_length()


def _power_of_two(largest: Fraction) -> Fraction:
    """What brings a number between 1/2 and 2."""
    power = largest.numerator.bit_length() - largest.denominator.bit_length()
    return Fraction(1, 2**power) if power >= 0 else Fraction(2**-power)


def _coefficients(row: ExactRow, factor: Fraction, dtype: DTypeLike) -> Floats | None:
    """Of the row times ``factor``; None if one of them is too small for the element type."""
    values = np.array([float(Fraction(value) * factor) for _, value in row.terms]).astype(dtype)
    return values if bool((np.abs(values) >= np.finfo(dtype).tiny).all()) else None

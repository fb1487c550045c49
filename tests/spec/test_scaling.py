"""Rows in a run's floats: the same half-spaces in exact arithmetic, never easier to prove, nothing lost on the way."""

from __future__ import annotations

import random
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from complete_verifier.spec.property import ExactRow, clauses_from_rows
from complete_verifier.spec.rounding import round_up_fraction
from complete_verifier.spec.scaling import FloatRows, float_rows

OUTPUTS = 3
KINDS = (np.float32, np.float64)


def row(coefficients: Sequence[str], rhs: str) -> ExactRow:
    terms = tuple((i, Decimal(value)) for i, value in enumerate(coefficients) if Decimal(value))
    return ExactRow(terms, Decimal(rhs), False)


def made(rows: Sequence[ExactRow], kind: type[np.floating]) -> FloatRows:
    return float_rows(clauses_from_rows([tuple(rows)], OUTPUTS), OUTPUTS, kind)


def factor_of(exact: ExactRow, found: FloatRows, at: int) -> Fraction:
    """The largest number that a coefficient was multiplied by; all were by the same one where none is rounded."""
    factors = {Fraction(float(found.c[at, i])) / Fraction(value) for i, value in exact.terms}
    assert found.rounded[at] or len(factors) == 1
    return max(factors)


EXACT = [
    (["1e-50"], "0"), (["1e-50"], "-2e-45"), (["1e-46"], "-5e-46"), (["1e-400"], "-5e-400"),
    (["1e-40"], "-5.00000001e-40"), (["1e39"], "1e38"), (["1e300", "-1e300"], "1e10"), (["0.1", "-0.3"], "0.7"),
    (["1e-50", "-3e-50", "2e-49"], "1e-49"), (["1", "-1"], "0.1"), (["0.123456789012"], "1"), (["2", "0.5"], "3"),
    (["1"], "1e39"), (["1"], "-1e39"), (["-1e-30", "1e-33"], "0"),
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("coefficients", "rhs"), EXACT)
def test_rows_with_few_digits_are_exact(coefficients: list[str], rhs: str, kind: type[np.floating]) -> None:
    exact = row(coefficients, rhs)
    found = made([exact], kind)
    assert not found.rounded[0] and not found.unusable[0]
    factor = factor_of(exact, found, 0)
    wanted = Fraction(exact.rhs) * factor
    assert factor > 0
    assert float(found.scale[0]) == (pytest.approx(float(factor)) if factor < 10**300 else np.inf)
    assert 0.4 <= np.abs(found.c[0]).max() <= 2
    limit = float(found.rhs[0])
    if np.isfinite(limit):
        assert Fraction(limit) >= wanted
        with np.errstate(over="ignore"):
            below = np.nextafter(found.rhs[0], kind(-np.inf))
        assert below == -np.inf or Fraction(float(below)) < wanted, "rounded up, but by one number only"
    else:
        assert limit > 0 and wanted > float(np.finfo(kind).max)


@pytest.mark.parametrize("kind", KINDS)
def test_random_rows_are_never_easier_to_prove(kind: type[np.floating]) -> None:
    """Exact rows: same half-space but for the raised limit. Rounded ones: coefficients off by one rounding at most."""
    draw = random.Random(0)
    rows = []
    for _ in range(400):
        digits, power = draw.choice([1, 3, 12, 20]), draw.choice([-60, -30, -3, 0, 5, 30])
        numbers = [f"{draw.uniform(-1, 1):.{digits}f}e{power + draw.choice([0, 0, -4])}" for _ in range(OUTPUTS)]
        rows.append(row(numbers, f"{draw.uniform(-1, 1):.{digits}f}e{power}"))
    rows = [exact for exact in rows if exact.terms]
    found = made(rows, kind)
    unit = Fraction(float(np.finfo(kind).eps))
    assert not found.unusable.any() and 50 < found.rounded.sum() < 390
    for at, exact in enumerate(rows):
        scale = Fraction(float(found.scale[at]))
        for i, value in exact.terms:
            wanted = Fraction(value) * scale
            assert abs(Fraction(float(found.c[at, i])) - wanted) <= unit * abs(wanted)
        if not found.rounded[at]:
            assert Fraction(float(found.rhs[at])) >= Fraction(exact.rhs) * factor_of(exact, found, at)
        elif scale.numerator == 1 or scale.denominator == 1:  # a power of two
            assert Fraction(float(found.rhs[at])) >= Fraction(exact.rhs) * scale


def test_plain_rows_are_left_alone() -> None:
    found = made([row(["1", "-1"], "0"), row(["0.5", "3", "-8"], "0.1"), row(["0", "1024"], "1")], np.float32)
    assert found.c.tolist() == [[1, -1, 0], [0.5, 3, -8], [0, 1024, 0]]
    assert found.scale.tolist() == [1, 1, 1] and not found.rounded.any()


@pytest.mark.parametrize("small", ["1e-50", "1e-400", "1e-39"])
def test_a_row_whose_coefficients_lie_too_far_apart_proves_nothing(small: str) -> None:
    """``y0 + small * y1 < 0`` on y0 = 0, y1 = -1 holds: without the small term a bound of 0 would refute it."""
    found = made([row(["1", small], "0"), row(["1"], "0")], np.float32)
    assert found.unusable.tolist() == [True, False]
    assert found.rhs.tolist() == [np.inf, 0] and not found.c[0].any()


@pytest.mark.parametrize("kind", KINDS)
def test_fractions_are_rounded_up(kind: type[np.floating]) -> None:
    largest = Fraction(float(np.finfo(kind).max))
    assert round_up_fraction(2 * largest, kind) == np.inf
    assert round_up_fraction(Fraction(10) ** 400, kind) == np.inf
    assert round_up_fraction(-(Fraction(10) ** 400), kind) == -float(largest)
    assert round_up_fraction(-2 * largest, kind) == -float(largest)
    assert round_up_fraction(Fraction(1, 10**400), kind) == float(np.finfo(kind).smallest_subnormal)
    assert round_up_fraction(Fraction(-1, 10**400), kind) == 0
    for value in (Fraction(1, 3), Fraction(-1, 3), Fraction(1, 10), 1 + Fraction(1, 2**60)):
        found = round_up_fraction(value, kind)
        assert Fraction(found) >= value and found - float(value) <= np.finfo(kind).eps

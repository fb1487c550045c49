"""Random constraints, each with a meaning of its own that shares no code with the language: a Python function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from operator import ge, gt, le, lt

import numpy as np
import torch
from hypothesis import strategies as st

from abcrown.language.expressions import Expression
from abcrown.language.formulas import Formula

Point = Sequence[Fraction]
Meaning = Callable[[Point], bool]
Value = Callable[[Point], Fraction]

# Few and small numbers: then points lie on the limits of comparisons all the time, where strictness shows.
NUMBERS = (-2, -1, -0.5, 0, 0.25, 1, 2, 3)
COMPARISONS = (le, lt, ge, gt)
points = st.lists(st.sampled_from([Fraction(n) for n in NUMBERS]), min_size=3, max_size=3)
_KINDS = (int, float, Fraction, np.float32, np.float64, lambda n: torch.tensor(n, dtype=torch.float32))


@dataclass(frozen=True)
class Meant:
    """A constraint, and when it holds."""

    formula: Formula
    meaning: Meaning


def _number(draw: st.DrawFn) -> object:
    """A number of some library's type."""
    value = draw(st.sampled_from(NUMBERS))
    kind = draw(st.sampled_from(_KINDS))
    return Fraction(value) if kind is int and value != int(value) else kind(value)  # type: ignore[operator]


@st.composite
def terms(draw: st.DrawFn, variables: Expression) -> tuple[Expression, Value]:
    """A single linear expression, and its value at a point."""
    shape = draw(st.sampled_from(["variable", "scaled", "sum", "shifted", "quotient", "product"]))
    i, j = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    k = _number(draw)
    exact = Fraction(float(k)) if not isinstance(k, Fraction) else k  # type: ignore[arg-type]
    match shape:
        case "variable":
            return variables[i], lambda p: p[i]
        case "scaled":
            return k * variables[i] - variables[j], lambda p: exact * p[i] - p[j]
        case "sum":
            return (-variables).sum() + variables[i], lambda p: p[i] - p[0] - p[1] - p[2]
        case "shifted":
            return 1 - (variables[i] + k), lambda p: 1 - p[i] - exact
        case "quotient":
            return (variables[i] + variables[j]) / 3, lambda p: (p[i] + p[j]) / 3
        case _:
            row = np.array([1.0, -2.0, 0.5])
            return row @ variables, lambda p: p[0] - 2 * p[1] + p[2] / 2


@st.composite
def atoms(draw: st.DrawFn, variables: Expression, strict: bool = False) -> Meant:
    """A comparison with a number or between expressions, either way round."""
    left, value = draw(terms(variables))
    compare = draw(st.sampled_from((lt, gt) if strict else COMPARISONS))
    if draw(st.booleans()):
        right, other = draw(terms(variables))
        return Meant(compare(left, right), lambda p: compare(value(p), other(p)))
    k = _number(draw)
    exact = Fraction(float(k)) if not isinstance(k, Fraction) else k  # type: ignore[arg-type]
    if draw(st.booleans()):
        return Meant(compare(k, left), lambda p: compare(exact, value(p)))
    return Meant(compare(left, k), lambda p: compare(value(p), exact))


@st.composite
def vectors(draw: st.DrawFn, variables: Expression, strict: bool = False) -> Meant:
    """A comparison of all entries at once, with an array."""
    limits = [draw(st.sampled_from(NUMBERS)) for _ in range(3)]
    compare = draw(st.sampled_from((lt, gt) if strict else COMPARISONS))
    given = draw(st.sampled_from([list, np.array, torch.tensor]))(limits)

    def meaning(p: Point) -> bool:
        return all(compare(p[i], Fraction(limits[i])) for i in range(3))

    return Meant(compare(variables, given), meaning)


def constraints(variables: Expression, strict: bool = False) -> st.SearchStrategy[Meant]:
    """Comparisons joined by and, or and not. ``strict``: every comparison is, and none is negated."""
    leaves = st.one_of(atoms(variables, strict), vectors(variables, strict))

    def join(inner: st.SearchStrategy[Meant]) -> st.SearchStrategy[Meant]:
        both = st.builds(_and, inner, inner) | st.builds(_or, inner, inner)
        return both if strict else both | st.builds(_not, inner)

    return st.recursive(leaves, join, max_leaves=6)


def _and(a: Meant, b: Meant) -> Meant:
    return Meant(a.formula & b.formula, lambda p: a.meaning(p) and b.meaning(p))


def _or(a: Meant, b: Meant) -> Meant:
    return Meant(a.formula | b.formula, lambda p: a.meaning(p) or b.meaning(p))


def _not(a: Meant) -> Meant:
    return Meant(~a.formula, lambda p: not a.meaning(p))

"""Constraints mean what they say, exactly, also as a disjunction, also negated, also on the limit of a comparison."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import reduce
from operator import and_, or_

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abcrown import input_vars, output_vars
from abcrown.language.expressions import Expression
from abcrown.language.normal_form import NormalForm, normal_form
from auto_LiRPA.errors import SpecError
from tests.python_api.formulas import NUMBERS, Meant, Point, constraints, points

X = input_vars(3)
GRID = [[Fraction(a), Fraction(b), Fraction(c)] for a in NUMBERS[::2] for b in NUMBERS[1::2] for c in NUMBERS[::3]]


def holds(form: NormalForm, point: Point) -> bool:
    return any(all(atom.holds(point) for atom in cube) for cube in form.cubes)


@given(constraints(X), points)
def test_a_constraint_its_normal_form_and_the_negated_one(meant: Meant, point: Point) -> None:
    plain, negated = normal_form(meant.formula), normal_form(meant.formula, negated=True)
    for place in (point, *GRID):
        truth = meant.meaning(place)
        assert meant.formula.holds(place) == truth
        assert holds(plain, place) == truth
        assert holds(negated, place) != truth


def test_the_negation_of_greater_is_at_most() -> None:
    y = output_vars(2)
    ((atom,),) = normal_form(y[0] > y[1], negated=True).cubes
    assert str(atom) == "y[0] + -1*y[1] <= 0"
    ((atom,),) = normal_form(y[0] >= y[1], negated=True).cubes
    assert str(atom) == "y[0] + -1*y[1] < 0"
    equal = [Fraction(1), Fraction(1)]
    assert (y[0] == y[1]).holds(equal) and not (y[0] != y[1]).holds(equal)


def truth(formula: object, *values: object) -> bool:
    return formula.holds([Fraction(v) for v in values])  # type: ignore[attr-defined,arg-type]


def test_vectors_mean_every_entry_and_shapes_are_numpys() -> None:
    x = input_vars((2, 3))
    assert x.shape == (2, 3) and x[0].shape == (3,) and x[:, 1].shape == (2,) and x[1, 2].shape == ()
    assert x[..., 1:].shape == (2, 2) and x[[1, 0], 2].shape == (2,) and len(x) == 2 and x.flatten().size == 6
    assert [e.shape for e in x] == [(3,), (3,)] and x.reshape(3, 2).shape == (3, 2)
    assert truth(x[:, torch.tensor([0, 2])] <= 5, 5, 9, 5, 5, 9, 5)
    assert not truth(x <= 5, 5, 9, 5, 5, 5, 5)
    assert truth(x <= np.array([[1], [2]]), 1, 1, 1, 2, 2, 2)  # broadcast
    assert truth(x[0] + x[1] == 7 * np.ones(3), 1, 2, 3, 6, 5, 4)
    assert truth(np.eye(2) @ x - x == 0, 1, 2, 3, 4, 5, 6)
    assert truth(x @ torch.ones(3, 1) == [[6], [15]], 1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize("wrap", [np.array, torch.tensor, list])
def test_arrays_on_the_left(wrap: Callable[[object], object]) -> None:
    """numpy and torch come first there, and have to give way."""
    x = input_vars(2)
    given_array = wrap([1.0, 2.0])
    for formula, inside, outside in (
        (given_array <= x, (1, 2), (0, 2)),
        (given_array < x, (2, 3), (1, 3)),
        (given_array >= x, (1, 2), (2, 2)),
        (given_array > x, (0, 1), (1, 1)),
    ):
        assert truth(formula, *inside) and not truth(formula, *outside)
    if wrap is not list:
        assert truth(given_array - x == [0, 0], 1, 2)
        assert truth(given_array * x + given_array == [2, 6], 1, 2)


def test_numbers_are_exact() -> None:
    x = input_vars(1)
    assert truth(x == 0.1, Fraction(0.1)) and not truth(x == 0.1, Fraction(1, 10))
    assert truth(x == Decimal("0.1"), Fraction(1, 10)) and truth(x == Fraction(1, 3), Fraction(1, 3))
    assert truth(x == torch.tensor([0.1], dtype=torch.bfloat16), Fraction(0.10009765625))
    assert truth(3 * (x / 3) == 7, 7) and truth(x * 1e300 * 1e300 * 1e-300 * 1e-300 == Fraction(1e300) ** 2 * Fraction(
        1e-300) ** 2, 1)  # fmt: skip
    assert truth(x < 2**100, 2**100 - 1) and not truth(x < 2**100, 2**100)


PITFALLS: dict[str, Callable[[Expression, Expression], object]] = {
    "chained": lambda x, y: 0 <= x[0] <= 1,
    "and": lambda x, y: (x[0] > 0) and (x[1] > 0),
    "or": lambda x, y: (x[0] > 0) or (x[1] > 0),
    "not": lambda x, y: not (x[0] > 0),
    "if": lambda x, y: 1 if x[0] > 0 else 2,
    "in": lambda x, y: x[0] in [0, 1],
    "any": lambda x, y: any([x[0] > 0, x[1] > 0]),
    "all": lambda x, y: all(e > 0 for e in x),
    "no parentheses": lambda x, y: x[0] > 0 & x[1] > 0,
    "no parentheses, or": lambda x, y: x[0] > 0 | x[1] > 0,
    "twice compared": lambda x, y: (x < 1) < 2,
    "twice compared, left": lambda x, y: 2 > (x < 1),
    "compared constraints": lambda x, y: (x < 1) == (x < 2),
    "with True": lambda x, y: (x < 1) & True,
    "with an array of bools": lambda x, y: np.array([True]) & (x < 1),
    "with a tensor of bools": lambda x, y: torch.tensor([True]) | (x < 1),
    "a truth value as a number": lambda x, y: x < True,
    "truth of an expression": lambda x, y: bool(x[0]),
    "max": lambda x, y: max(x[0], x[1]),
    "sorted": lambda x, y: sorted([x[0], x[1]]),
    "product": lambda x, y: x[0] * x[1],
    "quotient": lambda x, y: 1 / x[0],
    "quotient of two": lambda x, y: x[0] / x[1],
    "power": lambda x, y: x[0] ** 2,
    "abs": lambda x, y: abs(x[0]) < 1,
    "inputs with outputs": lambda x, y: x[0] < y[0],
    "other variables": lambda x, y: x[0] < input_vars(3)[0],
    "text": lambda x, y: x < "1",
    "none": lambda x, y: x < None,
    "nan": lambda x, y: x < float("nan"),
    "infinity": lambda x, y: x <= torch.tensor(float("inf")),
    "complex": lambda x, y: x < np.array([1j, 2, 3]),
    "ragged": lambda x, y: x < [[1, 2], [3]],
    "shapes": lambda x, y: x < [1, 2],
    "shapes of a product": lambda x, y: x @ np.ones((2, 2)),
    "index": lambda x, y: x[3],
    "index of a name": lambda x, y: x["a"],
    "division by zero": lambda x, y: x / 0,
    "nothing": lambda x, y: x[3:] > 0,
    "np.array": lambda x, y: np.asarray(x),
    "np.maximum": lambda x, y: np.maximum(x, 0),
    "torch.relu": lambda x, y: torch.relu(x),  # type: ignore[arg-type]
    "float": lambda x, y: float(x[0]),
    "length": lambda x, y: len(x[0]),
    "no variables": lambda x, y: input_vars(0),
    "negative shape": lambda x, y: output_vars((2, -1)),
    "shape of text": lambda x, y: input_vars("3"),
    "shape True": lambda x, y: input_vars(True),
    "too many": lambda x, y: input_vars(10**9),
}


@pytest.mark.parametrize("name", PITFALLS)
def test_pitfalls_are_errors_of_one_line(name: str) -> None:
    """What Python or another library would quietly read as something else."""
    with pytest.raises((SpecError, TypeError)) as caught:
        PITFALLS[name](input_vars(3), output_vars(3))
    assert "\n" not in str(caught.value)
    if name not in ("np.maximum",):  # numpy itself refuses, before we are asked
        assert caught.type is SpecError


def test_long_chains_do_not_recurse_and_deep_ones_are_refused() -> None:
    x = input_vars(1)
    many = reduce(and_, (x <= i for i in range(5000)))
    assert len(normal_form(many).cubes[0]) == 5000
    assert len(normal_form(reduce(or_, (x <= i for i in range(3000)))).cubes) == 3000
    formula = x <= 0
    with pytest.raises(SpecError, match="alternate"):
        for i in range(1000):
            formula = (formula & (x <= i)) | (x >= i)


def test_growth_is_refused_before_it_happens() -> None:
    y = output_vars(2)
    pair = (y[0] > 0) | (y[1] > 0)
    product = reduce(and_, ((y[0] > i) | (y[1] > i) for i in range(60)))  # 2^60 cubes
    with pytest.raises(SpecError, match="limit"):
        normal_form(product)
    assert len(normal_form(product, negated=True).cubes) == 60
    assert len(normal_form(reduce(and_, [pair] * 10)).cubes) <= 3  # repeats are kept once


@given(st.integers(0, 2), st.sampled_from(NUMBERS))
def test_repeats_are_kept_once(index: int, limit: float) -> None:
    formula = (X[index] <= limit) | (X[index] <= limit) | ((X[index] <= limit) & (X[index] <= limit))
    assert len(normal_form(formula).cubes) == 1

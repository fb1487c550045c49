"""A specification asks exactly what was written: boxes, and the opposite of the property."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import reduce
from operator import and_, or_
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abcrown import VerificationSpec, input_vars, output_vars
from abcrown.language.formulas import Formula
from auto_LiRPA.errors import SpecError, UserError
from complete_verifier.spec.compile import read_vnnlib_text
from complete_verifier.spec.property import Property
from tests.python_api.formulas import NUMBERS, Meant, Point, constraints, points

X, Y = input_vars(3), output_vars(3)
build = VerificationSpec.build_spec
BOX = (X >= 0) & (X <= 1)


def asked(spec: VerificationSpec, x: Point, y: Point) -> bool:
    """Whether the specification takes x and y for a counterexample."""
    return spec.property.violated_by([Decimal(float(v)) for v in x], [float(v) for v in y])


@st.composite
def boxes(draw: st.DrawFn) -> Meant:
    """One to three boxes that may touch, with open and closed sides, written entry by entry or at once."""
    found = []
    for _ in range(draw(st.integers(1, 3))):
        ends = sorted(draw(st.lists(st.sampled_from(NUMBERS), min_size=2, max_size=2, unique=True)))
        low, high = Fraction(ends[0]), Fraction(ends[1])
        opens = draw(st.booleans())
        if draw(st.booleans()):
            lower = X > ends[0] if opens else X >= ends[0]
        else:
            lower = reduce(and_, ((-2 * X[i] < -2 * ends[0] if opens else -2 * X[i] <= -2 * ends[0]) for i in range(3)))

        def meaning(p: Point, low: Fraction = low, high: Fraction = high, opens: bool = opens) -> bool:
            return all((low < v if opens else low <= v) and v <= high for v in p)

        found.append(Meant(lower & (X <= ends[1]), meaning))
    return Meant(reduce(or_, (m.formula for m in found)), lambda p: any(m.meaning(p) for m in found))


@given(boxes(), constraints(Y, strict=True), st.lists(st.tuples(points, points), min_size=8, max_size=8))
def test_a_counterexample_is_in_a_box_and_misses_the_property(
    box: Meant, prop: Meant, pairs: list[tuple[Point, Point]]
) -> None:
    try:
        spec = build(X, Y, box.formula, prop.formula)
    except SpecError as error:  # nothing to verify: the property holds for all outputs, or for none
        always = "holds whatever" in str(error)
        assert always or "never holds" in str(error)
        assert all(prop.meaning(y) == always for _, y in pairs)
        return
    for x, y in pairs:
        assert asked(spec, x, y) == (box.meaning(x) and not prop.meaning(y))
    assert read_vnnlib_text(spec.to_vnnlib()) == spec.property


@pytest.mark.parametrize("sides", [lambda: (X >= 0) & (X > 0), lambda: (X > 0) & (X >= 0)])
def test_the_open_one_of_two_equal_bounds_wins(sides: Callable[[], Formula]) -> None:
    spec = build(X, Y, sides() & (X <= 1), Y[0] > 0)
    assert spec.property.regions[0].box.lo_strict.all()


def test_thirds_are_cleared_on_both_sides() -> None:
    """(y0 + y1) / 3 > 1/2 has no finite decimals: the row is scaled as a whole."""
    spec = build(X, Y, BOX, (Y[0] + Y[1]) / 3 > 0.5)
    inside = [Fraction(0)] * 3
    for y0, violated in ((Fraction(3, 2), True), (Fraction(3, 2) + Fraction(1, 1024), False), (Fraction(1), True)):
        assert asked(spec, inside, [y0, Fraction(0), Fraction(9)]) == violated


def test_several_boxes_share_all_clauses_and_equal_ones_are_one() -> None:
    left, right = (X >= 0) & (X <= 1), (X >= [2, 2, 2]) & (X <= 3)
    spec = build(X, Y, left | right | left, (Y[0] > Y[1]) & (Y[0] > Y[2]))
    assert len(spec.property.regions) == 2 and all(len(r.clauses) == 2 for r in spec.property.regions)


def test_boxes_of_a_product_that_do_not_meet_are_left_out() -> None:
    halves = (X[0] <= 1) | (X[0] >= 2)
    quarters = ((X[0] >= 0) & (X[0] <= 1.5)) | ((X[0] >= 1.75) & (X[0] <= 3))
    spec = build(X, Y, halves & quarters & (X[1:] >= 0) & (X[1:] <= 1), Y[0] > 0)
    assert [tuple(map(float, (r.box.lo[0], r.box.hi[0]))) for r in spec.property.regions] == [(0, 1), (2, 3)]


def same(spec: VerificationSpec, text: str) -> None:
    assert spec.property == read_vnnlib_text(text)


def test_lower_upper_and_clauses() -> None:
    lower, upper = np.zeros((1, 2), np.float32), torch.ones(1, 2)
    spec = build(lower=lower, upper=upper, clauses=[([[1, -1], [0, 2.5]], [0, -1]), (np.array([1.0, 0.0]), 3)])
    assert spec.input_shape == (1, 2)
    declared = "".join(f"(declare-const {n} Real)" for n in ("X_0", "X_1", "Y_0", "Y_1"))
    box = "".join(f"(assert (>= X_{i} 0))(assert (<= X_{i} 1))" for i in range(2))
    first = "(and (<= Y_0 Y_1) (<= (* 2.5 Y_1) -1))"
    same(spec, f"{declared}{box}(assert (or {first} (and (<= Y_0 3))))")


def test_a_ball_and_a_label() -> None:
    spec = build(center=torch.tensor([[0.5, 0.25]]), eps=[[0.25, 0.125]], label=1, n_outputs=3)
    (region,) = spec.property.regions
    assert (region.box.lo.tolist(), region.box.hi.tolist()) == ([0.25, 0.125], [0.75, 0.375])
    y = output_vars(3)
    assert spec.property == build(
        lower=[[0.25, 0.125]], upper=[[0.75, 0.375]], output_vars=y, output_constraint=(y[1] > y[0]) & (y[1] > y[2])
    ).property
    exact = build(center=[0.1], eps=0.3, label=0, output_vars=output_vars(2)).property.regions[0].box
    assert Fraction(exact.lo_exact[0]) == Fraction(0.1) - Fraction(0.3)  # no rounding of the difference


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "p.vnnlib"
    path.write_text(build(X, Y, BOX, Y[0] > 0).to_vnnlib())
    spec = build(vnnlib_path=path, input_shape=(3, 1))
    assert spec.property == build(X, Y, BOX, Y[0] > 0).property and spec.input_shape == (3, 1)
    assert build(vnnlib_path=str(path)).input_shape is None


Y1 = output_vars(1)
FAULTS: dict[str, tuple[Callable[[], VerificationSpec], str]] = {
    "nothing": (build, "the inputs are described by"),
    "inputs only": (lambda: build(lower=[0], upper=[1]), "the outputs are described by"),
    "twice": (lambda: build(lower=[0], upper=[1], center=[0], eps=1, label=0, n_outputs=2), "found lower, upper, ce"),
    "half": (lambda: build(lower=[0], label=0, n_outputs=2), "found lower"),
    "outputs twice": (lambda: build(lower=[0], upper=[1], label=0, clauses=[]), "found clauses, label"),
    "file and more": (lambda: build(vnnlib_path="x", lower=[0]), "leave out lower"),
    "no such file": (lambda: build(vnnlib_path="nowhere.vnnlib"), "nowhere.vnnlib"),
    "no variables": (lambda: build(input_constraint=BOX, label=0, n_outputs=2), "needs input_vars"),
    "swapped variables": (lambda: build(Y, X, BOX, Y[0] > 0), "pass what input_vars"),
    "other variables": (lambda: build(input_vars(3), Y, BOX, Y[0] > 0), "other variables"),
    "a bool": (lambda: build(X, Y, True, Y[0] > 0), "bool is no constraint"),  # type: ignore[arg-type]
    "outputs in the input constraint": (lambda: build(X, Y, BOX & (Y[0] > 0), Y[0] > 0), "output variables in it"),
    "inputs in the output constraint": (lambda: build(X, Y, BOX, X[0] > 0), "input variables in it"),
    "no box": (lambda: build(X, Y, BOX & (X[0] + X[1] <= 1), Y[0] > 0), r"x\[0\] and x\[1\].*box"),
    "unbounded": (lambda: build(X, Y, (X >= 0) & (X[:2] <= 1), Y[0] > 0), r"x\[2\] has no upper bound"),
    "unbounded case": (lambda: build(X, Y, BOX | (X[0] >= 0), Y[0] > 0), r"x\[1\] has no lower bound"),
    "empty": (lambda: build(X, Y, BOX & (X[1] >= 2), Y[0] > 0), r"x\[1\] is empty: \[2.0, 1.0\]"),
    "empty, open": (lambda: build(X, Y, BOX & (X[1] > 1), Y[0] > 0), r"x\[1\] is empty: \(1.0, 1.0\]"),
    "empty case": (lambda: build(X, Y, BOX | (BOX & (X[1] >= 2)), Y[0] > 0), "is empty"),
    "all cases empty": (
        lambda: build(X, Y, BOX & ((X[0] > 1) | (X[0] < 0)) & ((X[1] > 1) | (X[1] < 0)), Y[0] > 0),
        "is empty",
    ),
    "crossed arrays": (lambda: build(lower=[1, 1], upper=[2, 0], label=0, n_outputs=2), "X_1 is empty"),
    "arrays of other shapes": (lambda: build(lower=[1, 1], upper=[[2, 2]], label=0, n_outputs=2), "shape"),
    "a single number": (lambda: build(lower=1, upper=2, label=0, n_outputs=2), "at least one axis"),
    "no number": (lambda: build(lower=[], upper=[], label=0, n_outputs=2), "at least one axis"),
    "nan": (lambda: build(lower=[float("nan")], upper=[1], label=0, n_outputs=2), "lower: nan is not finite"),
    "infinite": (lambda: build(lower=[0], upper=[np.inf], label=0, n_outputs=2), "upper: inf is not finite"),
    "negative radius": (lambda: build(center=[0], eps=-1, label=0, n_outputs=2), "negative"),
    "radius of another shape": (lambda: build(center=[0, 0], eps=[1, 1, 1], label=0, n_outputs=2), "make them alike"),
    "no decimal": (lambda: build(X, Y, (3 * X >= 1) & (X <= 1), Y[0] > 0), "no finite decimal form"),
    "not strict": (lambda: build(X, Y, BOX, Y[0] >= 0), r"y\[0\] >= 0 is not strict"),
    "not strict inside": (lambda: build(X, Y, BOX, (Y[0] > 0) | ~(Y[1] > 0)), r"y\[1\] <= 0 is not strict"),
    "equation": (lambda: build(X, Y, BOX, Y[0] == 0), "not strict"),
    "always": (lambda: build(X, Y, BOX, Y[0] - Y[0] < 1), "holds whatever"),
    "never": (lambda: build(X, Y, BOX, Y[0] - Y[0] > 1), "never holds"),
    "no clauses": (lambda: build(lower=[0], upper=[1], clauses=[]), "nothing to verify"),
    "no pair": (lambda: build(lower=[0], upper=[1], clauses=[[1, 2, 3]]), "a clause is a pair"),  # type: ignore[list-item]
    "rows that do not fit": (lambda: build(lower=[0], upper=[1], clauses=[([[1, 2]], [1, 2])]), "make no rows"),
    "other widths": (lambda: build(lower=[0], upper=[1], clauses=[([1, 2], 1), ([1], 1)]), "1, 2 columns"),
    "label alone": (lambda: build(lower=[0], upper=[1], label=0), "needs n_outputs"),
    "label too large": (lambda: build(lower=[0], upper=[1], label=3, n_outputs=3), "label = 3"),
    "one output": (lambda: build(lower=[0], upper=[1], label=0, n_outputs=1), "one output only"),
    "other n_outputs": (lambda: build(X, Y, BOX, Y[0] > 0, n_outputs=2), "n_outputs = 2, but 3"),
    "input_shape": (lambda: build(lower=[0], upper=[1], label=0, n_outputs=2, input_shape=(2,)), "does not hold"),
    "too large a number": (lambda: build(X, Y1, BOX, Y1[0] * 1e300 * 1e300 > 1), "float64 range"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_one_line(name: str) -> None:
    make, message = FAULTS[name]
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_the_name_is_in_the_message() -> None:
    with pytest.raises(SpecError, match=r"^altitude: output_constraint: "):
        build(X, Y, BOX, X[0] > 0, name="altitude")


def test_too_many_cases_are_refused() -> None:
    grid = reduce(and_, ((X[i] >= 0) & (X[i] <= 1) | (X[i] >= 2) & (X[i] <= 3) for i in range(3)))
    y = output_vars(2)
    many = reduce(and_, (y[0] > i for i in range(20_000)))
    with pytest.raises(SpecError, match="160000 cases"):
        build(X, y, grid, many)


def test_an_image() -> None:
    x, y = input_vars((3, 48, 48)), output_vars(2)
    center = np.random.default_rng(0).random((3, 48, 48), dtype=np.float32)
    spec = build(x, y, (x >= center - 0.1) & (x <= center + 0.1), y[0] > y[1])
    assert spec.property.n_inputs == 6912 and isinstance(spec.property, Property)

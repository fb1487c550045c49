"""Boxes and clauses in exact arithmetic: rounding outwards and inwards, membership, violation."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auto_LiRPA.errors import ContractError, SpecError
from complete_verifier.spec.property import Clause, ExactRow, InputBox, Property, Region
from complete_verifier.spec.rounding import exact_context, negate

FLOATS = (np.float32, np.float64)
# Long decimals, decimals of float32 numbers (ties), and their neighbours far below float64's resolution.
SHORT = st.decimals(-2, 2, places=3)
FLOAT32 = st.floats(-2, 2, width=32).map(lambda v: Decimal(v))
NUDGED = st.builds(lambda v, sign: exact_context().add(v, Decimal(sign).scaleb(-60)), FLOAT32, st.sampled_from([-1, 1]))
EXTREME = st.sampled_from([Decimal(text) for text in ("0", "-0.0", "1e-60", "-1e-300", "16777217", "3.4e38", "1e-45")])
NUMBERS = st.one_of(SHORT, FLOAT32, NUDGED, EXTREME)


@st.composite
def intervals(draw: st.DrawFn) -> InputBox:
    a, b = sorted(draw(st.tuples(NUMBERS, NUMBERS) | NUMBERS.map(lambda v: (v, v))))
    strict = draw(st.tuples(st.booleans(), st.booleans())) if a < b else (False, False)
    return InputBox.from_exact([a], [b], [strict[0]], [strict[1]])


def neighbours(value: np.floating) -> tuple[np.floating, np.floating]:
    kind = type(value)
    return np.nextafter(value, kind(-np.inf)), np.nextafter(value, kind(np.inf))


@pytest.mark.parametrize("dtype", FLOATS)
@settings(max_examples=100, deadline=None)
@given(box=intervals())
def test_outward_is_the_smallest_float_box_around_the_decimals(box: InputBox, dtype: type[np.floating]) -> None:
    lo, hi = (bound[0] for bound in box.outward(dtype))
    assert type(lo) is dtype and type(hi) is dtype
    lo_exact, hi_exact = Fraction(box.lo_exact[0]), Fraction(box.hi_exact[0])
    assert Fraction(float(lo)) <= lo_exact < Fraction(float(neighbours(lo)[1]))
    assert Fraction(float(neighbours(hi)[0])) < hi_exact <= Fraction(float(hi))


@pytest.mark.parametrize("dtype", FLOATS)
@settings(max_examples=100, deadline=None)
@given(box=intervals())
def test_inward_is_the_largest_float_box_inside_or_one_printable_point(box: InputBox, dtype: type[np.floating]) -> None:
    lo, hi = (bound[0] for bound in box.inward(dtype))
    inside = [box.contains([Decimal(float(v))]) for v in (lo, hi)]
    if all(inside):
        assert lo <= hi
        assert not box.contains([Decimal(float(neighbours(lo)[0]))])
        assert not box.contains([Decimal(float(neighbours(hi)[1]))])
    else:
        assert lo == hi
        assert not any(box.contains([Decimal(float(v))]) for v in neighbours(lo))


@pytest.mark.parametrize("dtype", FLOATS)
@settings(max_examples=100, deadline=None)
@given(box=intervals(), share=st.floats(0, 1))
def test_every_point_of_the_inward_box_prints_as_decimals_inside_that_read_back(
    box: InputBox, dtype: type[np.floating], share: float
) -> None:
    lo, hi = box.inward(dtype)
    x = np.clip((lo + dtype(share) * (hi - lo)).astype(dtype), lo, hi)
    outward_lo, outward_hi = box.outward(dtype)
    assert (outward_lo <= x).all() and (x <= outward_hi).all()  # what is proved covers what is attacked
    printed = box.decimals_for(x)
    assert printed is not None and box.contains(printed)
    assert dtype(np.float64(str(printed[0]))) == x[0]


@settings(max_examples=60, deadline=None)
@given(box=intervals())
def test_no_decimals_are_printed_for_a_point_beyond_the_box(box: InputBox) -> None:
    lo, hi = box.outward(np.float32)
    for x in (neighbours(lo[0])[0], neighbours(hi[0])[1]):
        assert box.decimals_for(np.array([x])) is None


def test_shortest_text_outside_the_box_is_replaced_by_all_digits() -> None:
    """The float32 nearest to 0.3 is 0.300000011920928955...; its shortest float64 text rounds up, over the bound."""
    value = np.float32(0.3)
    box = InputBox.from_exact([Decimal(0)], [Decimal(float(value))])
    assert not box.contains([Decimal(repr(float(value)))])
    (printed,) = box.decimals_for(np.array([value])) or (None,)
    assert printed == Decimal(float(value))


def test_degenerate_width_is_attacked_by_the_float_that_its_decimal_becomes() -> None:
    box = InputBox.from_exact([Decimal("0.1")], [Decimal("0.1")])
    lo, hi = box.inward(np.float32)
    assert lo == hi == np.float32(0.1)
    assert not box.contains([Decimal(float(lo[0]))])
    assert box.decimals_for(lo) == (Decimal("0.1"),)


def test_strict_sides_are_open() -> None:
    box = InputBox.from_exact([Decimal(0)], [Decimal(1)], [True], [False])
    assert not box.contains([Decimal(0)]) and box.contains([Decimal(1)]) and box.contains([Decimal("1e-99")])
    lo, hi = box.inward(np.float32)
    assert lo[0] == np.nextafter(np.float32(0), np.float32(1)) and hi[0] == 1
    assert box.outward(np.float32)[0][0] == 0


def box_error(lo: str, hi: str, strict: bool = False) -> str:
    with pytest.raises(SpecError) as caught:
        InputBox.from_exact([Decimal(0), Decimal(lo)], [Decimal(1), Decimal(hi)], [False, strict], [False, False])
    return str(caught.value)


def test_impossible_boxes_are_refused_by_the_inputs_name() -> None:
    assert "input X_1 is empty" in box_error("1", "0.9999999999999999999999999999999")
    assert "input X_1 is empty" in box_error("1", "1", strict=True)
    for bad in ("NaN", "sNaN", "-Infinity"):
        assert "X_1" in box_error(bad, "1") and "finite" in box_error("0", bad)


def test_a_box_beyond_float32_says_so() -> None:
    box = InputBox.from_exact([Decimal(0)], [Decimal("1e39")])
    with pytest.raises(SpecError, match="X_0.*does not fit float32; set double_fp"):
        box.outward(np.float32)
    with pytest.raises(SpecError, match="set double_fp"):
        box.inward(np.float32)
    assert box.outward(np.float64)[1][0] >= 1e39


def prop(rows: list[ExactRow], box: InputBox | None = None) -> Property:
    box = box or InputBox.from_exact([Decimal(0)], [Decimal("0.1")])
    return Property(1, 2, (Region(box, (Clause.from_rows(rows, 2),)),))


def row(*coefficients: str, rhs: str, strict: bool = False) -> ExactRow:
    terms = tuple((i, Decimal(c)) for i, c in enumerate(coefficients) if Decimal(c))
    return ExactRow(terms, Decimal(rhs), strict)


def test_violation_is_decided_on_the_exact_numbers() -> None:
    inside, y = [Decimal("0.1")], [1.0, 0.0]
    assert prop([row("1", "0", rhs="1")]).violated_by(inside, y)
    assert not prop([row("1", "0", rhs="1", strict=True)]).violated_by(inside, y)
    assert not prop([row("1", "0", rhs="0.99999999999999999999999999")]).violated_by(inside, y)
    assert prop([row("1", "0", rhs="1.00000000000000000000000001", strict=True)]).violated_by(inside, y)
    # The float 0.1 is a little more than the decimal 0.1, the bound.
    assert not prop([row("1", "0", rhs="1")]).violated_by([0.1], y)
    assert not prop([row("1", "0", rhs="1")]).violated_by([Decimal("0.1000000000000000000000000001")], y)
    # 0.1 + 0.2 <= 0.3 holds for decimals, not for floats.
    assert prop([row("0.1", "0.2", rhs="0.3")]).violated_by(inside, [1.0, 1.0])


def test_every_row_and_some_clause_of_the_same_region_count() -> None:
    low, high = InputBox.from_exact([Decimal(0)], [Decimal(1)]), InputBox.from_exact([Decimal(2)], [Decimal(3)])
    first = Clause.from_rows([row("1", "0", rhs="0"), row("0", "1", rhs="0")], 2)
    second = Clause.from_rows([row("-1", "0", rhs="-5")], 2)
    spec = Property(1, 2, (Region(low, (first,)), Region(high, (first, second))))
    assert spec.violated_by([0.5], [0.0, 0.0]) and not spec.violated_by([0.5], [0.0, 1.0])
    assert not spec.violated_by([0.5], [5.0, 0.0]) and spec.violated_by([2.5], [5.0, 9.0])
    assert not spec.violated_by([1.5], [0.0, 0.0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_never_a_counterexample(bad: float) -> None:
    spec = prop([row("1", "0", rhs="1")])
    assert spec.violated_by([0.0], [0.0, 0.0])
    assert not spec.violated_by([bad], [0.0, 0.0])
    assert not spec.violated_by([Decimal("NaN")], [0.0, 0.0])
    assert not spec.violated_by([0.0], [bad, 0.0])
    assert not spec.violated_by([0.0], [0.0, bad])


def test_a_property_that_nothing_violates_is_refused() -> None:
    box = InputBox.from_exact([Decimal(0)], [Decimal(1)])
    for regions in ((), (Region(box, ()),)):
        with pytest.raises(SpecError, match="nothing to verify"):
            Property(1, 2, regions)
    with pytest.raises(ContractError):
        Property(2, 2, (Region(box, (Clause.from_rows([row("1", rhs="0")], 2),)),))
    with pytest.raises(ContractError):
        prop([row("1", rhs="0")]).violated_by([0.0, 0.0], [0.0, 0.0])


def test_matrices_hold_the_nearest_floats_of_the_rows() -> None:
    clause = Clause.from_rows([row("0.1", "0", rhs="1"), row("0", "-3", rhs="1e-3", strict=True)], 2)
    assert clause.mat.tolist() == [[0.1, 0.0], [0.0, -3.0]]
    assert clause.rhs.tolist() == [1.0, 0.001] and clause.strict.tolist() == [False, True]
    with pytest.raises(SpecError, match="beyond the float64 range"):
        Clause.from_rows([row("1", rhs="1e400")], 2)


def test_negate_is_exact_and_has_no_negative_zero() -> None:
    digits = "1." + "1" * 60
    assert str(negate(Decimal(digits))) == f"-{digits}" and str(negate(Decimal("-0.0"))) == "0"

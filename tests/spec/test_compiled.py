"""Clauses as tensors: both layouts say the same, padding never proves, and rounding leans to `unknown`."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auto_LiRPA.errors import ContractError, SpecError
from complete_verifier.spec.compile import read_vnnlib_text
from complete_verifier.spec.compiled import CompiledSpec, compile_property, compile_region
from complete_verifier.spec.property import Clause, ExactRow, InputBox, Property, Region

DTYPES = (torch.float32, torch.float64)
HEAD = (
    "(declare-const X_0 Real)(declare-const Y_0 Real)(declare-const Y_1 Real)(declare-const Y_2 Real)"
    "(assert (<= X_0 0.3))(assert (>= X_0 0.1))"
)
UNEQUAL = HEAD + "(assert (or (and (<= Y_0 Y_1) (< Y_0 Y_2) (>= Y_1 0.1)) (<= Y_2 0.7) (and (> Y_1 1) (<= Y_1 2))))"
INEXACT = HEAD + "(assert (<= (+ (* 0.1 Y_0) (* -0.7 Y_1)) 0.3))"


def compiled(text: str, dtype: torch.dtype = torch.float32) -> CompiledSpec:
    (spec,) = compile_property(read_vnnlib_text(text), dtype)
    return spec


@pytest.mark.parametrize("dtype", DTYPES)
def test_both_layouts_hold_the_same_rows(dtype: torch.dtype) -> None:
    spec = compiled(UNEQUAL, dtype)
    assert spec.C.shape == (3, 3, 3) and spec.C.dtype is dtype and spec.C_exact and spec.n_clauses == 3
    assert spec.row_mask.sum(1).tolist() == [3, 1, 2] and spec.clause_ids.tolist() == [0, 0, 0, 1, 2, 2]
    assert torch.equal(spec.C[spec.row_mask], spec.rows)
    assert torch.equal(spec.rhs[spec.row_mask], spec.row_rhs)
    assert torch.equal(spec.strict[spec.row_mask], spec.row_strict)
    assert (spec.C[~spec.row_mask] == 0).all() and (spec.rhs[~spec.row_mask] == torch.inf).all()
    assert spec.rows.tolist() == [[1, -1, 0], [1, 0, -1], [0, -1, 0], [0, 0, 1], [0, -1, 0], [0, 1, 0]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_clause_is_proven_by_any_of_its_rows(dtype: torch.dtype) -> None:
    spec = compiled(UNEQUAL, dtype)
    for proven_row, clause in enumerate(spec.clause_ids.tolist()):
        lower = torch.full((2, 6), -100.0, dtype=dtype)
        lower[1, proven_row] = 100.0
        expected = torch.zeros(2, 3, dtype=torch.bool)
        expected[1, clause] = True
        assert torch.equal(spec.clause_proven(lower), expected)
        padded = torch.full((2, 3, 3), 1e9, dtype=dtype)  # high in the padding: must not matter
        padded[:, spec.row_mask] = lower
        assert torch.equal(spec.clause_proven_padded(padded), expected)


def test_equality_proves_a_strict_row_only() -> None:
    spec = compiled(HEAD + "(assert (or (<= Y_0 0.5) (< Y_1 0.5)))")
    assert spec.clause_proven(torch.tensor([0.5, 0.5])).tolist() == [False, True]
    above = np.nextafter(np.float32(0.5), np.float32(1))
    assert spec.clause_proven(torch.tensor([above, above])).tolist() == [True, True]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_never_proves(bad: float) -> None:
    spec = compiled(UNEQUAL)
    assert not spec.clause_proven(torch.full((6,), bad)).any()
    assert not spec.clause_proven_padded(torch.full((3, 3), bad)).any()


def test_a_clause_without_rows_is_never_proven() -> None:
    box = InputBox.from_exact([Decimal(0)], [Decimal(1)])
    row = ExactRow(((0, Decimal(1)),), Decimal(0), True)
    cases: list[list[list[ExactRow]]] = [[[]], [[], [row]], [[row], []]]
    for clauses in cases:
        spec = compile_region(Region(box, tuple(Clause.from_rows(rows, 2) for rows in clauses)), 2)
        proven = spec.clause_proven(torch.full((sum(map(len, clauses)),), 9.0))
        assert proven.tolist() == [bool(rows) for rows in clauses]


NUMBERS = st.one_of(
    st.decimals(-3, 3, places=3),
    st.floats(-3, 3, width=32).map(Decimal),
    st.sampled_from(
        [Decimal(v) for v in ("1e-60", "-1e-60", "16777217", "0.5000000000000000000000001", "1e39", "-1e39")]
    ),
)


def one_row(
    coefficients: list[Decimal], rhs: Decimal, strict: bool, dtype: torch.dtype
) -> tuple[CompiledSpec, ExactRow]:
    row = ExactRow(tuple((i, c) for i, c in enumerate(coefficients) if c), rhs, strict)
    box = InputBox.from_exact([Decimal(0)], [Decimal(1)])
    spec = Property(1, len(coefficients), (Region(box, (Clause.from_rows([row], len(coefficients)),)),))
    return compile_property(spec, dtype)[0], row


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=80, deadline=None)
@given(rhs=NUMBERS, strict=st.booleans(), steps=st.integers(-2, 2))
def test_the_right_hand_side_is_rounded_up_by_less_than_one_float(
    dtype: torch.dtype, rhs: Decimal, strict: bool, steps: int
) -> None:
    spec, row = one_row([Decimal(1)], rhs, strict, dtype)
    limit = spec.row_rhs[0]
    below = torch.nextafter(limit, torch.full_like(limit, -torch.inf))
    assert Decimal(below.item()) < rhs <= Decimal(limit.item())
    bound = limit
    for _ in range(abs(steps)):
        bound = torch.nextafter(bound, torch.full_like(bound, float(np.copysign(np.inf, steps))))
    if spec.clause_proven(bound[None]).item():  # then no y >= bound satisfies the row
        assert not row.holds([Fraction(bound.item())])


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=80, deadline=None)
@given(
    coefficients=st.lists(st.decimals(-3, 3, places=3), min_size=2, max_size=2),
    rhs=st.decimals(-3, 3, places=3),
    centre=st.lists(st.floats(-4, 4, width=32), min_size=2, max_size=2),
    strict=st.booleans(),
)
def test_rounded_coefficients_never_prove_what_the_decimals_do_not(
    dtype: torch.dtype, coefficients: list[Decimal], rhs: Decimal, centre: list[float], strict: bool
) -> None:
    """The engine's best possible bound of its own rounded row over one point y, rounded down, must not prove a row
    that y satisfies exactly."""
    if not any(coefficients):
        return
    y = [Fraction(v) for v in centre]
    if coefficients[0] and y[0]:  # put the right-hand side right at the value: the hardest case
        exact = sum(Fraction(c) * v for c, v in zip(coefficients, y, strict=True))
        rhs = Decimal(exact.numerator) / Decimal(exact.denominator)
    spec, row = one_row(coefficients, rhs, strict, dtype)
    used = sum(Fraction(c) * v for c, v in zip(spec.rows[0].tolist(), y, strict=True))
    bound = torch.tensor([float(used)], dtype=dtype)
    if Fraction(bound.item()) > used:
        bound = torch.nextafter(bound, torch.full_like(bound, -torch.inf))
    output = torch.tensor(centre, dtype=dtype)
    slack = spec.coefficient_slack(output, output)
    if spec.clause_proven(bound, slack).item():
        assert not row.holds(y)


def test_inexact_coefficients_are_said_and_demand_their_slack() -> None:
    spec = compiled(INEXACT)
    assert not spec.C_exact and spec.C_float64 is not None and spec.C_float64[0, 0, :2].tolist() == [0.1, -0.7]
    with pytest.raises(ContractError, match="coefficient_slack"):
        spec.clause_proven(torch.tensor([5.0]))
    slack = spec.coefficient_slack(torch.tensor([-1e6, 0.0, 0.0]), torch.tensor([0.0, 0.0, 0.0]))
    assert 0.001 < slack.item() < 0.01
    assert not spec.clause_proven(torch.tensor([0.3001]), slack).item()
    assert spec.clause_proven(torch.tensor([0.32]), slack).item()
    unbounded = spec.coefficient_slack(torch.full((3,), -torch.inf), torch.zeros(3))
    assert not spec.clause_proven(torch.tensor([1e30]), unbounded).any()


def test_without_slack_a_rounded_row_would_prove_a_falsehood() -> None:
    """0.1 y0 - 0.7 y1 <= 0 holds at (7e6, 1e6), with equality; the float32 row gives 0.02 there."""
    spec = compiled(HEAD + "(assert (<= (- (* 0.1 Y_0) (* 0.7 Y_1)) 0))")
    y = torch.tensor([7e6, 1e6, 0.0])
    bound = (spec.rows.double() @ y.double()).float()
    assert bound.item() > 0.02 and spec.row_rhs.item() == 0  # alone this would count as proven
    assert not spec.clause_proven(bound, spec.coefficient_slack(y, y)).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_box_is_rounded_outwards(dtype: torch.dtype) -> None:
    spec = compiled(UNEQUAL, dtype)
    assert Decimal(spec.lower.item()) <= Decimal("0.1") and Decimal("0.3") <= Decimal(spec.upper.item())
    assert spec.lower.dtype is dtype


def test_a_subset_keeps_what_it_is_told() -> None:
    spec = compiled(UNEQUAL)
    part = spec.subset(torch.tensor([False, True, True]))
    assert part.clause_ids.tolist() == [0, 1, 1] and torch.equal(part.rows, spec.rows[3:])
    assert part.region.clauses == spec.region.clauses[1:] and part.C.shape == (2, 2, 3)
    assert torch.equal(part.lower, spec.lower) and part.clause_proven(torch.tensor([9.0, -9, -9])).tolist() == [
        True,
        False,
    ]


def test_one_specification_per_box_in_order() -> None:
    text = HEAD + "(assert (or (and (<= X_0 0.2) (<= Y_0 0)) (<= Y_1 0) (and (<= X_0 0.2) (<= Y_2 0))))"
    first, second = compile_property(read_vnnlib_text(text))
    assert (first.n_clauses, second.n_clauses) == (2, 1)
    assert abs(first.upper.item() - 0.2) < 1e-6 and abs(second.upper.item() - 0.3) < 1e-6


def test_wrong_shapes_types_and_numbers_are_refused() -> None:
    spec = compiled(UNEQUAL)
    with pytest.raises(ContractError):
        spec.clause_proven(torch.zeros(5))
    with pytest.raises(ContractError):
        spec.clause_proven_padded(torch.zeros(3, 2))
    with pytest.raises(ContractError):
        compiled(UNEQUAL, torch.float16)
    with pytest.raises(SpecError, match="does not fit float32"):
        compiled(HEAD + "(assert (<= (* 1e39 Y_0) 1))")
    assert compiled(HEAD + "(assert (<= (* 1e39 Y_0) 1))", torch.float64).C[0, 0, 0] == 1e39

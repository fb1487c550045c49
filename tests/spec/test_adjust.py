"""What settings change about a property: exact, and the same for proofs and for counterexamples."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
import torch

from auto_LiRPA.errors import SpecError
from complete_verifier.driver.questions import clauses_of
from complete_verifier.spec.adjust import ball_region, offset_rows, rescale, shrink
from complete_verifier.spec.balls import Ball
from complete_verifier.spec.compile import read_vnnlib_text
from complete_verifier.spec.property import Property

DECLARED = "".join(f"(declare-const {v} Real)\n" for v in ("X_0", "X_1", "Y_0", "Y_1"))
TEXT = (
    DECLARED
    + """(assert (>= X_0 0.1)) (assert (<= X_0 0.7)) (assert (>= X_1 -0.5)) (assert (< X_1 0.25))
(assert (or (and (<= Y_0 0.3) (< Y_1 0.1)) (and (>= Y_0 Y_1))))
"""
)


def prop() -> Property:
    return read_vnnlib_text(TEXT)


@pytest.mark.parametrize("offset", [0.1, -0.3, 1e-10, 16777217.0])
def test_an_offset_moves_every_limit_by_the_decimal_that_was_written(offset: float) -> None:
    moved, step = offset_rows(prop(), offset), Decimal(repr(offset))
    for before, after in zip(prop().regions, moved.regions, strict=True):
        assert before.box == after.box
        for old, new in zip(before.clauses, after.clauses, strict=True):
            assert [row.rhs + step for row in old.rows] == [row.rhs for row in new.rows]
            assert [row.terms for row in old.rows] == [row.terms for row in new.rows]
            assert [row.strict for row in old.rows] == [row.strict for row in new.rows]
            np.testing.assert_array_equal(new.rhs, [float(row.rhs) for row in new.rows])


def test_both_sides_honour_the_offset() -> None:
    """0.3 + 0.4 is 0.7 exactly, whose nearest float32 lies below it."""
    moved = offset_rows(prop(), 0.4)
    clause = moved.regions[0].clauses[0]
    assert clause.rows[0].rhs == Decimal("0.7")
    found = clauses_of(moved, torch.float32, torch.device("cpu"))
    for k, clause in enumerate(moved.regions[0].clauses):
        for r, row in enumerate(clause.rows):
            above = Decimal(float(found.rhs[k, r]))  # proofs use the limit rounded up, never below the exact one
            assert row.rhs <= above <= row.rhs + Decimal("1e-7")


def test_shrinking_moves_both_ends_inwards_and_keeps_them_open_or_closed() -> None:
    box = shrink(prop(), 0.05).regions[0].box
    assert box.lo_exact == (Decimal("0.15"), Decimal("-0.45")) and box.hi_exact == (Decimal("0.65"), Decimal("0.20"))
    assert box.hi_strict.tolist() == [False, True] and not box.lo_strict.any()
    assert box.contains([Decimal("0.15"), Decimal("0.1999")]) and not box.contains([Decimal("0.15"), Decimal("0.2")])


def test_a_box_that_shrinks_to_nothing_is_refused() -> None:
    with pytest.raises(SpecError, match=r"shrink_eps: the box of input X_0 is empty"):
        shrink(prop(), 0.31)


def test_scaling_is_about_the_middle() -> None:
    box = rescale(prop(), 0.5).regions[0].box
    assert box.lo_exact == (Decimal("0.25"), Decimal("-0.3125")) and box.hi_exact[0] == Decimal("0.55")
    assert rescale(prop(), 1.0).regions[0].box == prop().regions[0].box
    with pytest.raises(SpecError, match="rescale_vnnlib_ptb = -1"):
        rescale(prop(), -1.0)


def test_a_ball_shrinks_and_scales_by_its_radius() -> None:
    clauses = prop().regions[0].clauses
    ball = Ball((Decimal("0.1"), Decimal("0.2")), Decimal("0.4"), 2.0)
    whole = Property(2, 2, (ball_region(ball, clauses),))
    assert shrink(whole, 0.1).regions[0].ball == Ball(ball.center, Decimal("0.3"), 2.0)
    assert rescale(whole, 0.25).regions[0].ball == Ball(ball.center, Decimal("0.100"), 2.0)
    assert shrink(whole, 0.1).regions[0].box.lo_exact == (Decimal("-0.2"), Decimal("-0.1"))
    with pytest.raises(SpecError, match="radius of the ball is -0.1"):
        shrink(whole, 0.5)

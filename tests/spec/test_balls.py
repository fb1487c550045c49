"""Balls in exact arithmetic, against integers and high precision; and outward rounding to tensors."""

from __future__ import annotations

from decimal import Context, Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
import torch

from auto_LiRPA.errors import SpecError
from auto_LiRPA.values import LpBall
from complete_verifier.driver.input_regions import input_region
from complete_verifier.spec.adjust import ball_region
from complete_verifier.spec.balls import Ball
from complete_verifier.spec.counterexample import check_printed, format_counterexample, printable_input
from complete_verifier.spec.property import ExactRow, Property, clauses_from_rows
from complete_verifier.spec.writer import print_vnnlib

TINY = Decimal("1e-25")  # the digits that sums keep by default


def decimals(*values: str) -> tuple[Decimal, ...]:
    return tuple(map(Decimal, values))


def ball_property(ball: Ball, rhs: str = "0") -> Property:
    clauses = tuple(clauses_from_rows([(ExactRow(((0, Decimal(1)),), Decimal(rhs), False),)], 1))
    return Property(len(ball.center), 1, (ball_region(ball, clauses),), source="ball")


@pytest.mark.parametrize(("p", "point"), [(1.0, ("0.3", "-0.7")), (2.0, ("0.6", "-0.8")), (3.0, ("1", "0"))])
def test_a_point_on_the_sphere_is_inside_and_the_next_one_is_not(p: float, point: tuple[str, ...]) -> None:
    ball = Ball(decimals("0.1", "0.2"), Decimal(1), p)
    x, y = (c + v for c, v in zip(ball.center, decimals(*point), strict=True))
    assert ball.contains((x, y))
    assert not ball.contains((x + TINY, y)) and ball.contains((x - TINY, y))


def test_a_broken_norm_counts_a_point_only_beyond_doubt() -> None:
    ball, radius = Ball(decimals("0", "0", "0"), Decimal("0.5"), 2.5), Decimal("0.5")
    with localcontext(Context(prec=80)):
        edge = (radius ** Decimal("2.5") / 3) ** (1 / Decimal("2.5"))
        inside, outside = edge * (1 - Decimal("1e-30")), edge * (1 + Decimal("1e-30"))
    assert ball.contains((inside, inside.copy_negate(), inside)) and not ball.contains((outside,) * 3)
    assert ball.contains(decimals("0", "0", "0")) and not ball.contains(decimals("0.5", "0.01", "0"))


def test_the_tensors_contain_the_exact_ball() -> None:
    rng = np.random.default_rng(0)
    for p in (1.0, 2.0, 1.5):
        center = tuple(Decimal(repr(v)) for v in rng.uniform(-3, 3, 6).tolist())  # not float32 numbers
        ball = Ball(center, Decimal("0.123456789"), p)
        region = input_region(ball_property(ball), (2, 3), torch.float32, torch.device("cpu"))
        assert isinstance(region, LpBall) and region.x0.shape == (1, 2, 3) and region.x0.dtype == torch.float32
        off = sum(abs(Fraction(c) - Fraction(v)) for c, v in zip(center, region.x0.flatten().tolist(), strict=True))
        assert off > 0
        assert Fraction(region.eps.item()) >= Fraction(ball.radius) + off
        assert region.eps.item() < 0.1234578


def test_a_counterexample_must_lie_in_the_ball_not_only_in_its_box() -> None:
    prop = ball_property(Ball(decimals("0", "0"), Decimal(1), 2.0))
    corner, inside = np.array([0.75, 0.75], np.float32), np.array([0.5, 0.75], np.float32)
    assert printable_input(prop, corner, [-1.0]) is None
    assert printable_input(prop, inside, [-1.0]) == decimals("0.5", "0.75")

    def network(x: np.ndarray) -> np.ndarray:
        return np.array([-1.0], np.float32)

    assert check_printed(prop, format_counterexample(inside.tolist(), [-1.0]), network)
    assert not check_printed(prop, format_counterexample(corner.tolist(), [-1.0]), network)
    assert not prop.violated_by(corner.tolist(), [-1.0]) and prop.violated_by(inside.tolist(), [-1.0])


def test_vnnlib_has_no_words_for_a_ball() -> None:
    with pytest.raises(SpecError, match="boxes only"):
        print_vnnlib(ball_property(Ball(decimals("0"), Decimal(1), 2.0)))


def test_a_negative_radius_is_refused() -> None:
    with pytest.raises(SpecError, match="radius of the ball is -1"):
        Ball(decimals("0"), Decimal(-1), 2.0)

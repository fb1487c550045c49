"""Balls of a norm a little above 1: powers of small coefficients with the large dual exponent must not vanish."""

from __future__ import annotations

import pytest
import torch

from auto_LiRPA.values import LpBall


@pytest.mark.parametrize("p", (1.0000001, 1.01, 1.1, 1.5, 2.0, 3.0))
@pytest.mark.parametrize("scale", (1.0, 1e-4, 1e-20, 1e20))
def test_a_corner_of_the_ball_is_not_cut_off(p: float, scale: float) -> None:
    coef = scale * torch.tensor([[[0.5, -0.3, 0.2], [0.0, 0.0, 0.0]]], requires_grad=True)
    least = LpBall(torch.zeros(1, 3), torch.ones(1), p).minimum(coef)
    assert least[0, 0] <= -0.5 * scale * (1 - 1e-6), "reached at (-1, 0, 0)"
    assert least[0, 0] >= -scale, "the ball lies in the box"
    assert least[0, 1] == 0

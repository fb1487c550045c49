"""Leaves over Lp balls: cuts keep the ball, and the optimum is the one that a general solver finds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from complete_verifier.bab.ball_cuts import BallCuts
from complete_verifier.bab.leaves import _least

P = [1.0, 1.5, 2.0, 4.0]


def on_sphere(rng: np.random.Generator, ball: BallCuts, count: int) -> np.ndarray:
    d = rng.normal(size=(count, len(ball.center)))
    return ball.center + ball.radius * d / np.linalg.norm(d, ball.p, axis=1, keepdims=True)


@pytest.mark.parametrize("p", P)
def test_a_cut_leaves_out_its_point_and_nothing_of_the_ball(p: float) -> None:
    rng = np.random.default_rng(0)
    ball = BallCuts(rng.normal(size=4), 0.7, p)
    inside = on_sphere(rng, ball, 2000)
    for _ in range(50):
        x = ball.center + (0.71 + rng.exponential()) * (on_sphere(rng, ball, 1)[0] - ball.center) / 0.7
        cut = ball.cut(x)
        assert cut is not None
        assert cut[0] @ x > cut[1] and (inside @ cut[0] <= cut[1]).all()
        assert ball.cut(ball.inside(x)) is None
    assert ball.cut(ball.center) is None


def by_slsqp(ball: BallCuts, a: np.ndarray, b: np.ndarray, half: np.ndarray, limit: float) -> float:
    """min over x of max_i (a_i x + b_i) with half . x <= limit."""
    found = minimize(
        lambda z: z[-1],
        np.append(ball.center, 5.0),
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-12},
        constraints=[
            {"type": "ineq", "fun": lambda z: z[-1] - a @ z[:-1] - b},
            {"type": "ineq", "fun": lambda z: limit - half @ z[:-1]},
            {"type": "ineq", "fun": lambda z: ball.radius - np.linalg.norm(z[:-1] - ball.center, ball.p)},
        ],
    )
    return float(found.fun)


@pytest.mark.parametrize("p", P)
def test_the_least_margin_is_that_of_a_general_solver(p: float) -> None:
    """min over x of the ball and a half-space of max_i (a_i x + b_i): closed just below it, a point just above."""
    rng = np.random.default_rng(int(10 * p))
    for _ in range(5):
        ball = BallCuts(rng.normal(size=3), 0.8, p)
        a, b = rng.normal(size=(2, 3)), rng.normal(size=2)
        half, limit = rng.normal(size=3), 0.0
        limit = float(half @ ball.center) + 0.1
        bounds = [(c - 0.8, c + 0.8) for c in ball.center]
        least = by_slsqp(ball, a, b, half, limit)
        rows = np.vstack([np.hstack([a, -np.ones((2, 1))]), np.append(half, 0.0)])
        for shift, closed in ((-5e-3, True), (5e-3, False)):
            limits = np.append(-b + least + shift, limit)  # a x + b - (least + shift) <= t
            done, x = _least(rows, limits, [*bounds, (None, None)], 0.0, ball)
            assert done == closed
            assert done or (x is not None and np.linalg.norm(x - ball.center, p) <= 0.8)

"""Bounds from multipliers: below the optimum for any multipliers at all, and equal to it for the best ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.sparse import csr_array

from complete_verifier.mip.dual import safe_lower_bound


def _program(seed: int) -> Any:
    gen = np.random.default_rng(seed)
    rows = gen.normal(size=(6, 5)) * (gen.uniform(size=(6, 5)) < 0.7)
    lower, upper = -gen.uniform(0, 2, size=5), gen.uniform(0, 2, size=5)
    inside = lower + gen.uniform(size=5) * (upper - lower)
    equality = np.array([True, False, False, True, False, False])
    limits = rows @ inside + np.where(equality, 0.0, gen.uniform(0, 0.5, size=6))
    return gen.normal(size=5), csr_array(rows), limits, equality, lower, upper


def _optimum(cost: Any, rows: Any, limits: Any, equality: Any, lower: Any, upper: Any) -> tuple[float, Any]:
    dense = rows.toarray()
    found = linprog(
        cost, dense[~equality], limits[~equality], dense[equality], limits[equality], np.stack([lower, upper], 1)
    )
    assert found.status == 0
    best = np.zeros(len(limits))
    best[~equality], best[equality] = found.ineqlin.marginals, found.eqlin.marginals
    return found.fun, best


def _bound(program: Any, multipliers: np.ndarray) -> float:
    cost, rows, limits, equality, lower, upper = program
    return safe_lower_bound(cost, rows, limits, equality, lower, upper, multipliers)


@pytest.mark.parametrize("seed", range(20))
def test_any_multipliers_bound_and_the_best_ones_are_exact(seed: int) -> None:
    program = _program(seed)
    optimum, best = _optimum(*program)
    assert optimum - 1e-9 <= _bound(program, best) <= optimum + 1e-12
    gen = np.random.default_rng(seed)
    for scale in (1e-3, 1.0, 30.0):
        noisy = best + scale * gen.normal(size=len(best))
        assert _bound(program, noisy) <= optimum + 1e-12
        assert _bound(program, -noisy) <= optimum + 1e-12


@pytest.mark.parametrize("seed", range(20))
def test_a_wrong_sign_gains_nothing(seed: int) -> None:
    """A positive multiplier on a row with slack would lift the bound above the optimum."""
    program = _program(seed)
    optimum, best = _optimum(*program)
    for row in np.flatnonzero(~program[3] & (best == 0)):
        wrong = best.copy()
        wrong[row] = 1e-3
        assert _bound(program, wrong) <= optimum + 1e-12


def test_rounding_is_taken_off() -> None:
    """0.1 v + 0.2 v >= 0.3 holds at v = 1 only up to rounding: the bound stays below the exact sum."""
    cost, rows = np.array([0.1, 0.2, -0.3]), csr_array((0, 3))
    ones = np.ones(3)
    bound = safe_lower_bound(cost, rows, np.zeros(0), np.zeros(0, dtype=bool), ones, ones, np.zeros(0))
    assert -1e-12 < bound < 0.0


def test_nonsense_multipliers_bound_nothing() -> None:
    program = _program(0)
    assert _bound(program, np.full(6, np.nan)) == -np.inf
    assert _bound(program, np.full(6, -np.inf)) == -np.inf

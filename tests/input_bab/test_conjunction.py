"""Weighted sums of rows: sound, and near the best that an LP finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from complete_verifier.input_bab.conjunction import mixed_margin


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_against_the_exact_least_worst_row(rows: int) -> None:
    """``min over the box of the largest row`` bounds every weighted sum; the sums found come near it."""
    gen = np.random.default_rng(rows)
    exact, found, alone = [], [], []
    for _ in range(40):
        a, b = gen.normal(size=(rows, 3)), gen.normal(size=rows)
        center, radius = gen.normal(size=3), gen.uniform(0.2, 1, size=3)
        bounds = [*zip(center - radius, center + radius, strict=True), (None, None)]
        best = linprog([0, 0, 0, 1], A_ub=np.hstack([a, -np.ones((rows, 1))]), b_ub=-b, bounds=bounds, method="highs")
        tensors = {"coef": a, "constant": b, "center": center, "radius": radius}
        coef, constant, c, r = (torch.from_numpy(v) for v in tensors.values())
        gap = coef @ c + constant - coef.abs() @ r
        real = torch.ones(1, 1, rows, dtype=torch.bool)
        mixed = mixed_margin(coef[None, None], gap[None, None], constant[None, None], real, c[None], r[None])
        exact.append(best.fun)
        found.append(float(mixed))
        alone.append(float(gap.max()))
    exact_a, found_a, alone_a = np.array(exact), np.array(found), np.array(alone)
    assert (found_a <= exact_a + 1e-9).all() and (found_a >= alone_a - 1e-12).all()
    if rows == 1:
        np.testing.assert_allclose(found_a, exact_a, atol=1e-9)
    else:
        gained = (found_a - alone_a).sum() / (exact_a - alone_a).sum()
        assert gained > 0.8, gained


def test_padding_and_nan_give_nothing() -> None:
    coef, constant = torch.zeros(2, 1, 2, 3), torch.full((2, 1, 2), 5.0)
    gap = torch.full((2, 1, 2), -1.0)
    coef[1, 0, 1] = torch.nan
    real = torch.tensor([[[True, False]], [[True, True]]])
    center, radius = torch.zeros(2, 3), torch.ones(2, 3)
    constant[:, :, 0] = -1.0
    found = mixed_margin(coef, gap, constant, real, center, radius)
    assert found.tolist() == [[-1.0], [-1.0]]

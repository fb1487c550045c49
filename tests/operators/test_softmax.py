"""Softmax by pairwise differences: the same function, planes that hold, and an independent look at the formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from auto_LiRPA.operators.base import LinearBounds
from auto_LiRPA.operators.bilinear import MatMul
from auto_LiRPA.operators.softmax import Differences, PairSoftmax, Softmax
from auto_LiRPA.values import Interval

ROUNDING = {torch.float64: 1e-11, torch.float32: 2e-5}


def _box(seed: int, n: int, scale: float, width: float, dtype: torch.dtype) -> Interval:
    generator = torch.Generator().manual_seed(seed)
    center = scale * torch.randn(2, 3, n, generator=generator, dtype=torch.float64)
    radius = width * torch.rand(2, 3, n, generator=generator, dtype=torch.float64)
    radius[torch.rand(2, 3, n, generator=generator) < 0.2] = 0
    return Interval((center - radius).to(dtype), (center + radius).to(dtype))


def _points(box: Interval, seed: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(count, *box.lower.shape, generator=generator, dtype=torch.float64)
    share[::2] = share[::2].round()
    x = box.lower.double() + share * (box.upper.double() - box.lower.double())
    return torch.minimum(torch.maximum(x, box.lower.double()), box.upper.double())


@pytest.mark.parametrize("n", [2, 3, 5])
def test_differences_lose_nothing(n: int) -> None:
    x = torch.randn(4, 2, n, dtype=torch.float64) * 5
    t = Differences(n).forward(x)
    first, second = torch.triu_indices(n, n, 1)
    assert torch.equal(t, x[..., second] - x[..., first])
    torch.testing.assert_close(PairSoftmax(n).forward(t), torch.softmax(x, -1))
    coef = torch.randn_like(t)
    (back,) = Differences(n).transpose(coef)
    torch.testing.assert_close((back * x).flatten(1).sum(1), (coef * t).flatten(1).sum(1))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(2, 6),
    scale=st.sampled_from([0.1, 1.0, 10.0, 60.0]),
    width=st.sampled_from([1e-6, 0.1, 1.0, 5.0, 40.0]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    pairs=st.booleans(),
    optimised=st.booleans(),
)
def test_bounds_hold_at_points(
    seed: int, n: int, scale: float, width: float, dtype: torch.dtype, pairs: bool, optimised: bool
) -> None:
    """Interval and planes of both forms, for differences that belong to points of a box of x."""
    box = _box(seed, n, scale, width, dtype)
    maps = Differences(n)
    op, own = (PairSoftmax(n), maps.interval(box)) if pairs else (Softmax(n), box)
    relaxation = op.relax(own)
    spec = relaxation.alpha
    assert spec is not None
    generator = torch.Generator().manual_seed(seed + 1)
    alpha = torch.rand(2, 4, *spec.initial.shape[1:], generator=generator).to(dtype) if optimised else None
    coef = torch.randn(2, 4, 3, n, generator=generator).to(dtype)
    pulled = relaxation.pull(coef, alpha)
    assert pulled.bias is not None
    image = op.interval(own)
    for x in _points(box, seed + 2, 24):
        p = torch.softmax(x, -1)
        assert (p >= image.lower.double() - ROUNDING[dtype]).all()
        assert (p <= image.upper.double() + ROUNDING[dtype]).all()
        z = maps.forward(x) if pairs else x
        terms = pulled.coefs[0].double() * z.unsqueeze(1)
        claim = terms.flatten(2).sum(-1) + pulled.bias.double()
        size = 1 + terms.abs().flatten(2).sum(-1) + pulled.bias.double().abs()
        truth = (coef.double() * p.unsqueeze(1)).flatten(2).sum(-1)
        assert (claim <= truth + ROUNDING[dtype] * size).all()


@pytest.mark.parametrize("n", [2, 4])
def test_forward_planes_hold(n: int) -> None:
    """Forward mode over x itself, as the network's input."""
    box = _box(n, n, 1.0, 1.0, torch.float64)
    maps = Differences(n)
    count = box.lower[0].numel()
    eye = torch.eye(count, dtype=torch.float64).reshape(1, count, 3, n).expand(2, -1, -1, -1)
    zero = torch.zeros_like(box.lower)
    start = maps.push((LinearBounds(eye, zero, eye, zero),))
    out = PairSoftmax(n).relax(maps.interval(box)).push((start,))
    for x in _points(box, 7, 40):
        p = torch.softmax(x, -1)
        low = torch.einsum("bi...,bi->b...", out.lower_w, x.flatten(1)) + out.lower_b
        high = torch.einsum("bi...,bi->b...", out.upper_w, x.flatten(1)) + out.upper_b
        assert (low <= p + 1e-12).all() and (high >= p - 1e-12).all()


def test_a_common_coefficient_costs_nothing() -> None:
    """The outputs sum to 1, so equal coefficients are a constant, however wide the box."""
    box = _box(3, 4, 2.0, 20.0, torch.float64)
    coef = torch.full((2, 1, 3, 4), 5.0, dtype=torch.float64)
    pulled = Softmax(4).relax(box).pull(coef)
    assert pulled.bias is not None
    torch.testing.assert_close(pulled.bias, torch.full((2, 1), 15.0, dtype=torch.float64))
    assert (pulled.coefs[0] == 0).all()


def test_intervals_are_exact_for_independent_entries() -> None:
    """Against every corner of the box; also where one entry dwarfs the others (a quotient with a constant in its
    denominator would call that entry's rivals impossible)."""
    lower, upper = torch.tensor([[-80.0, -2.0, 0.0]]), torch.tensor([[90.0, 3.0, 60.0]])
    image = Softmax(3).interval(Interval(lower.double(), upper.double()))
    ends = torch.stack([lower[0], upper[0]]).double()
    corners = torch.stack([torch.tensor([ends[(i >> k) & 1, k] for k in range(3)]) for i in range(8)]).double()
    p = torch.softmax(corners, -1)
    torch.testing.assert_close(image.lower[0], p.amin(0), rtol=1e-9, atol=0)
    torch.testing.assert_close(image.upper[0], p.amax(0), rtol=1e-9, atol=0)
    assert math.isclose(float(image.upper[0, 1]), 1.0, rel_tol=1e-2) or float(image.upper[0, 1]) > 0


@pytest.mark.parametrize("seed", range(4))
def test_means_are_bounded_as_by_linear_programs(seed: int) -> None:
    """``x @ y`` with rows of x on the simplex: the interval equals what an LP finds for every entry."""
    from scipy.optimize import linprog

    generator = torch.Generator().manual_seed(seed)
    inner = 2 + seed
    p = torch.softmax(2 * torch.randn(2, 3, inner, generator=generator, dtype=torch.float64), -1)
    radius = 0.3 * torch.rand(2, 3, inner, generator=generator, dtype=torch.float64)
    x = Interval((p - radius).clamp_min(0), (p + radius).clamp_max(1))
    center = torch.randn(2, inner, 4, generator=generator, dtype=torch.float64)
    y = Interval(center - 0.1, center + 0.2)
    image, plain = MatMul(True).interval(x, y), MatMul().interval(x, y)
    assert (image.lower >= plain.lower).all() and (image.upper <= plain.upper).all()
    for b in range(2):
        for i in range(3):
            limits = list(zip(x.lower[b, i].tolist(), x.upper[b, i].tolist(), strict=True))
            for j in range(4):
                for sign, ends, found in ((1, y.lower, image.lower), (-1, y.upper, image.upper)):
                    cost = sign * ends[b, :, j].numpy()
                    solved = linprog(cost, A_eq=[[1.0] * inner], b_eq=[1.0], bounds=limits)
                    assert sign * float(found[b, i, j]) == pytest.approx(solved.fun, abs=1e-9)

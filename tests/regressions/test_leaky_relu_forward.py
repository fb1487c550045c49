"""Wrong answer 3: LeakyRelu in forward mode (a peer's bounds are wrong on 175 of 400 intervals)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from auto_LiRPA.bounds.methods import Method
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.activation import SLOPE_RULES, Relu
from auto_LiRPA.values import Box
from tests.nets import Builder, Dense
from tests.regressions.bounding import INTERSECTED, METHODS, PLAIN, bound

COUNT = 400


def intervals() -> tuple[Tensor, Tensor]:
    """400 of them: a third on either side of 0, a third across."""
    gen = torch.Generator().manual_seed(0)
    ends = torch.rand(2, COUNT, generator=gen, dtype=torch.float64) * 4
    shift = torch.tensor([-4.0, -2.0, 0.0], dtype=torch.float64).repeat(COUNT)[:COUNT]
    low, high = ends.amin(0) + shift, ends.amax(0) + shift
    return low.unsqueeze(0), high.unsqueeze(0)


def elementwise(leak: float, rule: str, sign: float) -> Graph:
    """``sign * leaky(x)``, every neuron by itself."""
    build = Builder((COUNT,))
    at = build.add(Relu(leak, rule), (0,), (COUNT,))
    eye = sign * torch.eye(COUNT, dtype=torch.float64)
    build.dense(Dense(eye, torch.zeros(COUNT, dtype=torch.float64)), at)
    return build.graph()


@pytest.mark.parametrize("rule", SLOPE_RULES)
@pytest.mark.parametrize("leak", [0.01, 0.1, 0.5, 0.99])
def test_four_hundred_intervals(leak: float, rule: str) -> None:
    """No value of the function outside the bounds, on both sides of a positive and a negative last layer."""
    low, high = intervals()
    share = torch.linspace(0, 1, 101, dtype=torch.float64).unsqueeze(1)
    x = low + share * (high - low)
    for sign in (1.0, -1.0):
        y = sign * torch.nn.functional.leaky_relu(torch.cat([x, x.clamp(low, high).clamp_min(0)]), leak)
        inside = torch.cat([x, x.clamp_min(0)])
        y = y.masked_fill((inside < low) | (inside > high), torch.nan)
        least = torch.nan_to_num(y, nan=torch.inf).amin(0)
        most = torch.nan_to_num(y, nan=-torch.inf).amax(0)
        graph = elementwise(leak, rule, sign)
        for settings in (INTERSECTED, PLAIN):
            lower, upper = bound(graph, Box(low, high), Method.FORWARD, settings)
            assert int((lower[0] > least + 1e-12).sum() + (upper[0] < most - 1e-12).sum()) == 0


def test_no_looser_than_the_lines() -> None:
    """Where the function is linear the bounds are exact; elsewhere within the triangle of chord and lower line."""
    low, high = intervals()
    lower, upper = bound(elementwise(0.1, "adaptive", 1.0), Box(low, high), Method.FORWARD, PLAIN)
    stable = (low >= 0) | (high <= 0)
    ends = torch.nn.functional.leaky_relu(torch.cat([low, high]), 0.1)
    assert torch.allclose(lower[stable], ends[0].unsqueeze(0)[stable], atol=1e-12)
    assert torch.allclose(upper[stable], ends[1].unsqueeze(0)[stable], atol=1e-12)
    assert bool((upper <= ends[1] + 1e-12).all()) and bool((lower >= low - 1e-12).all())


@pytest.mark.parametrize("seed", range(4))
def test_deep_networks(seed: int) -> None:
    """Three LeakyRelu layers by all methods against samples."""
    gen = torch.Generator().manual_seed(seed)
    build = Builder((3,))
    weights = []
    at, n_in = 0, 3
    for n_out in (6, 6, 6, 2):
        weight = torch.randn(n_out, n_in, generator=gen, dtype=torch.float64)
        weights.append(weight)
        at = build.dense(Dense(weight, torch.zeros(n_out, dtype=torch.float64)), at)
        if n_out != 2:
            at = build.add(Relu(0.2), (at,), (n_out,))
        n_in = n_out
    low = torch.randn(1, 3, generator=gen, dtype=torch.float64)
    y = low + torch.rand(4000, 3, generator=gen, dtype=torch.float64).mul(1.2).round(decimals=1).clamp(0, 1)
    for i, weight in enumerate(weights):
        y = y @ weight.T
        y = y if i == 3 else torch.nn.functional.leaky_relu(y, 0.2)
    for method in METHODS:
        lower, upper = bound(build.graph(), Box(low, low + 1.0), method, PLAIN)
        assert bool((lower[0] <= y.amin(0) + 1e-9).all() & (upper[0] >= y.amax(0) - 1e-9).all()), method

"""Bounds of a small transformer block: sound for every method, in order, and what splits of its factors do."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from auto_LiRPA.bounds.methods import Method, Query, compute
from auto_LiRPA.bounds.settings import AlphaSettings, BoundSettings
from auto_LiRPA.graph.run import evaluate
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.values import Box, LpBall, Region
from tests.attention import INPUTS, OUTPUTS, attention, run_attention

ROUNDING = {torch.float64: 1e-9, torch.float32: 2e-4}
MODES = ("keep", "fixed", "stream")


def _region(p: float, eps: float, seed: int, dtype: torch.dtype) -> Region:
    x = torch.randn(2, INPUTS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    if p == float("inf"):
        return Box(x - eps, x + eps)
    return LpBall(x, torch.full((2,), eps, dtype=dtype), p)


def _points(region: Region, count: int, seed: int) -> Tensor:
    """Points of the region ``[count, 2, INPUTS]``, half of them at its border."""
    generator = torch.Generator().manual_seed(seed)
    center = region.center().double()
    direction = torch.randn(count, *center.shape, generator=generator, dtype=torch.float64)
    if isinstance(region, LpBall):
        length = torch.linalg.vector_norm(direction, ord=region.p, dim=-1, keepdim=True)
        share = torch.rand(count, 2, 1, generator=generator, dtype=torch.float64)
        share[::2] = 1
        return center + direction / length * region.eps[:, None].double() * share
    box = region.interval()
    share = torch.rand(direction.shape, generator=generator, dtype=torch.float64)
    share[::2] = share[::2].round()
    return box.lower.double() + share * (box.upper.double() - box.lower.double())


def _bounds(
    seed: int, region: Region, method: Method, mode: str, pairs: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    options = BoundSettings(alpha=AlphaSettings(mode=mode, iterations=5, lr_alpha=0.3))  # type: ignore[arg-type]
    graph = attention(seed, dtype, pairs)
    found = compute(graph, region, Query(), method, DistributedContext.single(), options)
    assert found.lower is not None and found.upper is not None
    return found.lower.bound.detach(), found.upper.bound.detach()


def test_the_graph_is_the_function() -> None:
    x = torch.randn(5, INPUTS, dtype=torch.float64)
    for pairs in (True, False):
        torch.testing.assert_close(evaluate(attention(1, pairs=pairs), x), run_attention(1)(x))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**4),
    method=st.sampled_from(list(Method)),
    mode=st.sampled_from(MODES),
    p=st.sampled_from([float("inf"), 2.0, 1.0]),
    eps=st.sampled_from([1e-4, 0.05, 0.3, 1.0]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    pairs=st.booleans(),
)
def test_sound(seed: int, method: Method, mode: str, p: float, eps: float, dtype: torch.dtype, pairs: bool) -> None:
    region = _region(p, eps, seed, dtype)
    lower, upper = _bounds(seed, region, method, mode, pairs, dtype)
    x = _points(region, 200, seed + 1)
    y = run_attention(seed)(x.flatten(0, 1)).reshape(200, 2, OUTPUTS)
    rounding = ROUNDING[dtype] * (1 + y.abs())
    assert (y >= lower.double() - rounding).all() and (y <= upper.double() + rounding).all()


# Each takes six seconds of a core: two in the short form.
MORE = ((0.02, 1), (0.02, 2), (0.2, 0), (0.2, 2))


@pytest.mark.parametrize(
    ("eps", "seed"),
    [(0.02, 0), (0.2, 1), *(pytest.param(*one, marks=pytest.mark.soak) for one in MORE)],
)
def test_methods_are_in_order(eps: float, seed: int) -> None:
    """IBP, CROWN-IBP and CROWN, each way of alpha-CROWN: no looser from left to right, up to rounding."""
    region = _region(float("inf"), eps, seed, torch.float64)
    ibp, _ = _bounds(seed, region, Method.IBP, "fixed", True, torch.float64)
    crown, _ = _bounds(seed, region, Method.CROWN, "fixed", True, torch.float64)
    assert (crown >= ibp - 1e-9).all()
    for mode in MODES:
        optimised, _ = _bounds(seed, region, Method.ALPHA_CROWN, mode, True, torch.float64)
        assert (optimised >= crown - 1e-9).all()
        assert (optimised > crown + 1e-6).any(), mode


@pytest.mark.parametrize("seed", range(3))
def test_differences_are_no_looser_than_their_entries(seed: int) -> None:
    region = _region(float("inf"), 0.1, seed, torch.float64)
    widths = []
    for pairs in (True, False):
        lower, upper = _bounds(seed, region, Method.CROWN, "fixed", pairs, torch.float64)
        widths.append((upper - lower).sum())
    assert widths[0] <= widths[1]

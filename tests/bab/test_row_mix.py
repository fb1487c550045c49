"""A conjunction bounded as one weighted row: its gradient, and that the weights stay weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from auto_LiRPA.bounds.backward import Rows
from auto_LiRPA.bounds.intermediate import crown_boxes
from auto_LiRPA.bounds.optimize import RowMix, optimize_rows
from auto_LiRPA.bounds.settings import AlphaSettings
from auto_LiRPA.graph.run import evaluate
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.values import Box
from complete_verifier.bab.roots import first_mix
from tests.bab.problems import BOUNDS, sample
from tests.nets import dense_layers, mlp


def mixture(rows: int, batch: int, gen: torch.Generator, n_out: int = 3) -> RowMix:
    """Random rows; from element to element one more of them is padding, and one is always real."""
    real = torch.arange(rows) < (rows - torch.arange(batch) % rows).unsqueeze(1)
    c = torch.randn(batch, rows, n_out, generator=gen, dtype=torch.float64) * real.unsqueeze(2)
    rhs = torch.randn(batch, rows, generator=gen, dtype=torch.float64) * real
    weight = (torch.rand(batch, rows, generator=gen, dtype=torch.float64) + 0.01) * real
    return RowMix(c, rhs, real, weight / weight.sum(1, keepdim=True))


def check_weights(weight: Tensor, real: Tensor) -> None:
    assert bool((weight >= 0).all())
    assert torch.allclose(weight.sum(1), torch.ones(len(weight), dtype=weight.dtype), atol=1e-12)
    assert bool((weight[~real] == 0).all())


@pytest.mark.parametrize("seed", range(5))
def test_gradient_equals_autograd_on_the_simplex(seed: int) -> None:
    """The derivative of the sum at a fixed output, less what would change the sum of the weights."""
    gen = torch.Generator().manual_seed(seed)
    mix = mixture(4, 5, gen)
    y = torch.randn(5, 1, 3, generator=gen, dtype=torch.float64)
    leaf = mix.weight.clone().requires_grad_()
    with torch.enable_grad():
        share = leaf / leaf.sum(1, keepdim=True)  # the sum of normalised weights is what moves
        coef, constant = mix.row(share)
        ((coef * y).sum((1, 2)) + constant.squeeze(1)).sum().backward()
    assert leaf.grad is not None
    expected = torch.where(mix.real, leaf.grad, 0.0)
    torch.testing.assert_close(mix.gradient(mix.weight, y), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rate", [0.05, 5.0])
@pytest.mark.parametrize("seed", range(4))
def test_weights_stay_weights_and_bounds_sound(seed: int, rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """After any number of steps, however large: >= 0, sum 1, nothing on padding; and the bounds hold at all points."""
    monkeypatch.setattr("auto_LiRPA.bounds.optimize.LR_MIX", rate)
    gen = torch.Generator().manual_seed(seed)
    batch, rows = 6, (2, 3, 9, 20)[seed]
    graph = mlp(dense_layers([3, 8, 8, 3], seed))
    low = torch.randn(1, 3, generator=gen, dtype=torch.float64)
    box = Box(low.expand(batch, -1), (low + 1.0).expand(batch, -1))
    mix = mixture(rows, batch, gen)
    with torch.no_grad():
        relaxations = crown_boxes(graph, box, DistributedContext.single(), BOUNDS).relaxations
        first = Rows(graph.output, *mix.row(mix.weight))
        y = evaluate(graph, sample(Box(box.lower[:1], box.upper[:1]), 500, gen))
        gap = torch.einsum("bro,no->bnr", mix.c, y) - mix.rhs.unsqueeze(1)
        value = gap.masked_fill(~mix.real.unsqueeze(1), -torch.inf).amax(2)
        start = None
        for iterations in (1, 3, 25):
            found = optimize_rows(
                graph, first, box, relaxations, AlphaSettings(mode="fixed", iterations=iterations), mix=mix
            )
            assert found.weight is not None
            check_weights(found.weight, mix.real)
            assert bool((found.lower <= value + 1e-9).all())
            start = found.lower if start is None else start
            assert bool((found.lower >= start).all())
        assert start is not None
        assert bool((found.lower > start + 1e-6).any()), "the weights gained nothing"


def test_one_row_has_no_weight_to_move() -> None:
    gen = torch.Generator().manual_seed(0)
    mix = mixture(1, 3, gen)
    graph = mlp(dense_layers([2, 4, 3], 0))
    box = Box(torch.zeros(3, 2, dtype=torch.float64), torch.ones(3, 2, dtype=torch.float64))
    with torch.no_grad():
        relaxations = crown_boxes(graph, box, DistributedContext.single(), BOUNDS).relaxations
        rows = Rows(graph.output, *mix.row(mix.weight))
        found = optimize_rows(graph, rows, box, relaxations, AlphaSettings(mode="fixed", iterations=5), mix=mix)
    assert found.weight is not None and torch.equal(found.weight, mix.weight)


@pytest.mark.parametrize("seed", range(5))
def test_a_search_starts_with_weights(seed: int) -> None:
    """Most of it on the best row, which is a real one; the rest spread over the clause's other real rows."""
    gen = torch.Generator().manual_seed(seed)
    real = mixture(5, 10, gen).real
    best = (torch.rand(real.shape, generator=gen) * real).argmax(1)
    weight = first_mix(real, best)
    check_weights(weight, real)
    assert torch.equal(weight.argmax(1), best)
    several = real.sum(1) > 1
    assert bool((weight[several][real[several]] > 0).all())

"""Differentiable bounds against finite differences, and when they are recorded, refused or plain."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm
from auto_LiRPA.errors import UserError
from auto_LiRPA.utils import get_spec_matrix
from tests.api.networks import KINDS, cnn, mlp

METHODS = ("IBP", "CROWN-IBP", "CROWN", "forward", "forward+backward")
STEP = 1e-6


def _directional(value: Callable[[], Tensor], tensors: Sequence[Tensor], seed: int) -> tuple[float, float]:
    """The derivative of ``value`` along a random direction: by autograd, and by central differences."""
    gen = torch.Generator().manual_seed(seed)
    direction = [torch.randn(t.shape, generator=gen, dtype=t.dtype) for t in tensors]
    gradients = torch.autograd.grad(value(), tensors, allow_unused=True)
    by_autograd = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True) if g is not None)
    ends = []
    with torch.no_grad():
        for sign in (1, -1):
            for t, d in zip(tensors, direction, strict=True):
                t += sign * STEP * d
            with torch.enable_grad():
                ends.append(float(value().detach()))
            for t, d in zip(tensors, direction, strict=True):
                t -= sign * STEP * d
    return by_autograd, (ends[0] - ends[1]) / (2 * STEP)


def _sum_of_bounds(bounded: BoundedModule, method: str, x: Tensor, eps: Tensor, p: float, rows: Tensor) -> Tensor:
    given = BoundedTensor(x, PerturbationLpNorm(norm=p, eps=eps))
    lower, upper = bounded.compute_bounds(x=(given,), C=rows, method=method)
    weight = torch.linspace(0.5, 1.5, lower.numel(), dtype=lower.dtype).reshape(lower.shape)
    return (weight * lower).sum() - (weight.flip(-1) * upper).sum()


@pytest.mark.parametrize("p", [math.inf, 2.0])
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("method", METHODS)
def test_gradients_equal_finite_differences(method: str, kind: str, p: float) -> None:
    """By parameters, x, eps and C, through every differentiable method; weights cut into several blocks."""
    for seed in (1, 2, 6):
        net = KINDS[kind](seed, 2e-4)
        x = torch.rand(2, *net.input_shape, dtype=torch.float64).requires_grad_()
        eps = torch.full((2, *([1] * len(net.input_shape))), 0.2, dtype=torch.float64).requires_grad_()
        rows = torch.randn(2, 3, net.n_out, dtype=torch.float64).requires_grad_()
        bounded = BoundedModule(net, x)
        bounded.train()
        for tensors in ([*net.parameters()], [x, eps, rows]):
            value = partial(_sum_of_bounds, bounded, method, x, eps, p, rows)
            by_autograd, by_difference = _directional(value, tensors, seed)
            assert by_autograd == pytest.approx(by_difference, rel=1e-4, abs=1e-6), f"seed {seed}"


def test_gradients_reach_every_parameter_of_an_exported_module() -> None:
    """A torch module without a graph of its own: every weight and bias gets its gradient."""
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 5), nn.ReLU(), nn.Linear(5, 2)
    )
    net = net.double()
    x = torch.rand(2, 1, 4, 4, dtype=torch.float64)
    bounded = BoundedModule(net, x)
    bounded.train()
    parameters = list(net.parameters())
    for method in METHODS:
        given = BoundedTensor(x, PerturbationLpNorm(eps=0.1))

        def value(method: str = method, given: BoundedTensor = given) -> Tensor:
            return bounded.compute_bounds(x=(given,), method=method)[0].sum()

        gradients = torch.autograd.grad(value(), parameters, allow_unused=True)
        assert all(g is not None for g in gradients), method
        by_autograd, by_difference = _directional(value, parameters, 0)
        assert by_autograd == pytest.approx(by_difference, rel=1e-4, abs=1e-6), method


def test_certified_training_lowers_the_loss() -> None:
    """A few optimiser steps on the worst-case loss, with a new radius each: the graph sees every step."""
    net = cnn(4)
    x = torch.rand(8, *net.input_shape, dtype=torch.float64)
    label = torch.arange(8) % net.n_out
    bounded = BoundedModule(net, x)
    optimiser = torch.optim.Adam(bounded.parameters(), lr=0.02)
    losses = []
    for step in range(15):
        bounded.train()
        given = BoundedTensor(x, PerturbationLpNorm(eps=0.01))
        rows = get_spec_matrix(x, label, net.n_out)
        lower, _ = bounded(method_opt="compute_bounds", x=(given,), C=rows, method="CROWN-IBP", bound_upper=False)
        loss = nn.functional.softplus(-lower).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
        assert step == 0 or losses[-1] != losses[-2]
    assert losses[-1] < 0.8 * losses[0]


def test_plain_numbers_unless_asked() -> None:
    """No graph of gradients: by default, in evaluation mode, under no_grad. The model's own mode is left alone."""
    net = mlp(3)
    net.train()
    x = torch.rand(1, *net.input_shape, dtype=torch.float64)
    bounded = BoundedModule(net, x)
    assert net.training and not bounded.training
    given = BoundedTensor(x, PerturbationLpNorm(eps=0.1))
    for method in (*METHODS, "CROWN-Optimized"):
        assert not any(side.requires_grad for side in bounded.compute_bounds(x=(given,), method=method))
    bounded.train()
    assert all(side.requires_grad for side in bounded.compute_bounds(x=(given,), method="CROWN"))
    with torch.no_grad():
        assert not any(side.requires_grad for side in bounded.compute_bounds(x=(given,), method="CROWN"))
    bounded.eval()
    assert not net.training and not bounded.compute_bounds(x=(given,), method="CROWN")[0].requires_grad
    free = BoundedTensor(x.clone().requires_grad_(), PerturbationLpNorm(eps=0.1))
    assert bounded.compute_bounds(x=(free,), method="CROWN")[0].requires_grad


def test_last_boxes_keep_no_graph_alive() -> None:
    """What a module remembers of a differentiable call is cut off from it."""
    net = mlp(3)
    x = torch.rand(1, *net.input_shape, dtype=torch.float64)
    bounded = BoundedModule(net, x)
    bounded.train()
    bounded.compute_bounds(x=(BoundedTensor(x, PerturbationLpNorm(eps=0.1)),), method="CROWN")
    assert not any(side.requires_grad for box in bounded.save_intermediate().values() for side in box)


def test_refusals_name_the_method_and_the_parameter() -> None:
    """alpha-CROWN has no gradients: asked for some it says so instead of returning plain numbers."""
    net = mlp(3)
    x = torch.rand(1, *net.input_shape, dtype=torch.float64)
    bounded = BoundedModule(net, x)
    bounded.train()
    with pytest.raises(UserError, match="CROWN-Optimized gives no gradients"):
        bounded.compute_bounds(x=(BoundedTensor(x, PerturbationLpNorm(eps=0.1)),), method="alpha-CROWN")


def test_batch_norm_trains_with_its_running_statistics() -> None:
    """Its weight and bias get their gradients; changed statistics are seen by the next call."""
    norm = nn.BatchNorm1d(4)
    net = nn.Sequential(nn.Linear(3, 4), norm, nn.ReLU(), nn.Linear(4, 2)).double()
    x = torch.rand(2, 3, dtype=torch.float64)
    bounded = BoundedModule(net, x)
    bounded.train()
    given = BoundedTensor(x, PerturbationLpNorm(eps=0.1))

    def value() -> Tensor:
        return bounded.compute_bounds(x=(given,), method="CROWN")[0].sum()

    by_autograd, by_difference = _directional(value, [*net.parameters()], 0)
    assert by_autograd == pytest.approx(by_difference, rel=1e-4, abs=1e-6)
    before = value()
    with torch.no_grad():
        norm.get_buffer("running_var").mul_(4.0)
    assert not torch.equal(before, value()), "the statistics went stale"
    lower, upper = bounded.compute_bounds(x=(given,), method="CROWN")
    y = net.eval()(x)
    assert bool(((lower <= y + 1e-9) & (y <= upper + 1e-9)).all())


def test_parameters_behind_a_folded_constant_are_refused_by_name() -> None:
    """Weight norm's quotient is computed when the network is read: no gradient would reach what it is made of."""
    first = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    net = nn.Sequential(first, nn.ReLU(), nn.Linear(4, 2)).double()
    x = torch.rand(2, 3, dtype=torch.float64)
    bounded = BoundedModule(net, x)
    given = BoundedTensor(x, PerturbationLpNorm(eps=0.1))
    before = bounded.compute_bounds(x=(given,), method="CROWN")[0]
    with torch.no_grad():
        next(p for name, p in net.named_parameters() if name.endswith("original0")).mul_(3.0)
    assert not torch.equal(before, bounded.compute_bounds(x=(given,), method="CROWN")[0]), "the constant went stale"
    bounded.train()
    with pytest.raises(UserError, match="no gradient reaches the parameter 0.parametrizations"):
        bounded.compute_bounds(x=(given,), method="CROWN")

"""Wrong answer 1: an L1 or L2 ball is lost where an elementwise operator stands before the first dense layer.

A peer takes the ball for its centre until the first dense layer, so that real outputs lie outside its bounds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from auto_LiRPA.bounds.methods import Method
from auto_LiRPA.operators.activation import Relu
from auto_LiRPA.operators.arithmetic import Add, Affine
from auto_LiRPA.operators.base import Operator
from auto_LiRPA.operators.piecewise import Abs, Clip
from auto_LiRPA.operators.smooth import Power, Sigmoid, Tanh
from auto_LiRPA.values import Box, LpBall, Region
from tests.api.attacks import Around
from tests.nets import Builder, Dense, dense_layers
from tests.regressions.bounding import INTERSECTED, METHODS, PLAIN, bound
from tests.support import shared_dir


def number(value: float) -> Tensor:
    """A constant of the network, in its own element type from the start."""
    return torch.tensor(value, dtype=torch.float64)


# in front of the first dense layer: the operators, and the same in torch
FRONTS: dict[str, tuple[list[Operator], Callable[[Tensor], Tensor]]] = {
    "normalisation": ([Affine(number(1 / 0.5), number(-0.4 / 0.5))], lambda x: (x - 0.4) / 0.5),
    "two scalings": (
        [Affine(number(-3.0), None), Affine(number(0.5), number(1.0))],
        lambda x: -1.5 * x + 1,
    ),
    "relu": ([Relu()], torch.relu),
    "leaky relu": ([Relu(0.1)], lambda x: torch.nn.functional.leaky_relu(x, 0.1)),
    "abs": ([Abs()], torch.abs),
    "clip": ([Clip(-0.2, 0.3)], lambda x: x.clamp(-0.2, 0.3)),
    "sigmoid": ([Sigmoid()], torch.sigmoid),
    "tanh": ([Tanh()], torch.tanh),
    "square": ([Power(2.0)], lambda x: x**2),
    "scaling, then cube": ([Affine(number(2.0), None), Power(3.0)], lambda x: (2 * x) ** 3),
}


def region(p: float, x: Tensor, eps: Tensor) -> Region:
    """The ball around each sample."""
    wide = eps.reshape(-1, *([1] * (x.ndim - 1)))
    return Box(x - wide, x + wide) if p == math.inf else LpBall(x, eps, p)


def real_range(network: Callable[[Tensor], Tensor], around: Around, n_out: int) -> tuple[Tensor, Tensor]:
    """Least and greatest outputs ``[B, n_out]`` that samples and a gradient search reach."""
    gen = torch.Generator().manual_seed(0)
    batch = around.x.shape[0]
    points = around.samples(400, gen)
    y = network(points.flatten(0, 1)).reshape(len(points), batch, n_out)
    rows = torch.eye(n_out, dtype=y.dtype).expand(batch, -1, -1)
    both = torch.cat([rows, -rows], dim=1)
    found = torch.minimum(around.search(network, both, around.x), around.search(network, both, points[0])).T
    return torch.minimum(y.amin(0), found[:, :n_out]), torch.maximum(y.amax(0), -found[:, n_out:])


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("front", sorted(FRONTS))
def test_the_ball_reaches_the_first_dense_layer(front: str, p: float) -> None:
    """Every method, with and without intersection: no real output outside; and the bounds know the ball's size."""
    operators, function = FRONTS[front]
    layers = dense_layers([4, 8, 2], seed=len(front))
    build = Builder((4,))
    at = 0
    for op in operators:
        at = build.add(op, (at,), (4,))
    at = build.relu(build.dense(layers[0], at))
    build.dense(layers[1], at)
    graph = build.graph()

    def network(x: Tensor) -> Tensor:
        hidden = torch.relu(function(x) @ layers[0].weight.T + layers[0].bias)
        return hidden @ layers[1].weight.T + layers[1].bias

    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.4
    eps = torch.tensor([0.05, 0.3, 1.0], dtype=torch.float64)
    low, high = real_range(network, Around.ball(x, eps, p), 2)
    assert bool((high - low > 1e-3).any()), "the outputs hardly move: nothing is tested"
    for method in METHODS:
        for settings in (INTERSECTED, PLAIN):
            lower, upper = bound(graph, region(p, x, eps), method, settings)
            assert bool((lower <= low + 1e-9).all()), f"{method}: {(lower - low).max()} too high"
            assert bool((upper >= high - 1e-9).all()), f"{method}: {(high - upper).max()} too low"


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_a_dense_branch_beside_the_elementwise_one(p: float) -> None:
    """The ball reaches a sum through a scaling and through a dense layer at once."""
    gen = torch.Generator().manual_seed(3)
    square = Dense(torch.randn(4, 4, generator=gen, dtype=torch.float64), torch.zeros(4, dtype=torch.float64))
    last = dense_layers([4, 2], seed=2)[0]
    build = Builder((4,))
    scaled = build.add(Affine(number(2.0), None), (0,), (4,))
    total = build.add(Add(), (scaled, build.dense(square, 0)), (4,))
    build.dense(last, build.relu(total))
    graph = build.graph()

    def network(x: Tensor) -> Tensor:
        return torch.relu(2 * x + x @ square.weight.T) @ last.weight.T + last.bias

    x = torch.randn(2, 4, generator=gen, dtype=torch.float64)
    eps = torch.tensor([0.3, 1.0], dtype=torch.float64)
    low, high = real_range(network, Around.ball(x, eps, p), 2)
    for method in METHODS:
        lower, upper = bound(graph, region(p, x, eps), method, PLAIN)
        assert bool((lower <= low + 1e-9).all() & (upper >= high - 1e-9).all()), method


@pytest.mark.parametrize("index", range(6))
def test_reference_cases(index: int) -> None:
    """The peer's own failing cases: sound here, by every method."""
    with open(shared_dir("reference", "bounds_lp_soundness.json"), encoding="utf-8") as file:
        case = json.load(file)["cases"][index]

    def numbers(key: str) -> Tensor:
        return torch.tensor(case[key], dtype=torch.float64)

    build = Builder((9,))
    at = 0
    if case["normalised_inside"]:
        op = Affine(1 / numbers("std"), -numbers("mean") / numbers("std"))
        at = build.add(op, (0,), (9,))
    at = build.relu(build.dense(Dense(numbers("W1"), numbers("b1")), at))
    build.dense(Dense(numbers("W2"), numbers("b2")), at)
    ball = region(float(case["p"]), numbers("x").unsqueeze(0), numbers("eps").unsqueeze(0))
    for method in METHODS:
        for settings in (INTERSECTED, PLAIN):
            lower, upper = bound(build.graph(), ball, method, settings)
            assert bool((lower[0] <= numbers("inner_lb") + 1e-12).all()), method
            assert bool((upper[0] >= numbers("inner_ub") - 1e-12).all()), method
            if method is Method.CROWN:  # near the truth as well: one hidden layer leaves little slack
                gap = (upper - lower)[0] / (numbers("inner_ub") - numbers("inner_lb"))
                assert bool((gap < 3).all()), gap

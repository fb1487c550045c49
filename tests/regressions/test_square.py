"""Wrong answer 2: ``x**2`` under CROWN, where a tangent was taken for the upper line (8.75 on [2, 3]; true: 9)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from auto_LiRPA.bounds.methods import Method
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.arithmetic import Affine
from auto_LiRPA.operators.smooth import Power
from auto_LiRPA.values import Box
from tests.graph.single import model, node, read
from tests.nets import Builder
from tests.regressions.bounding import INTERSECTED, METHODS, PLAIN, bound

POINTS = 2001


def power(exponent: float, count: int, dtype: torch.dtype) -> Graph:
    """``x ** exponent`` with a linear map behind it, so that backward methods do not start at the power itself."""
    build = Builder((count,))
    at = build.add(Power(exponent), (0,), (count,))
    build.add(Affine(torch.tensor(1.0, dtype=dtype), None), (at,), (count,))
    return build.graph()


@pytest.mark.parametrize("method", METHODS)
def test_the_square_on_two_to_three(method: Method) -> None:
    """Between 4 and 9, and no less."""
    box = Box(torch.tensor([[2.0]]), torch.tensor([[3.0]]))
    for settings in (INTERSECTED, PLAIN):
        lower, upper = bound(power(2.0, 1, torch.float32), box, method, settings)
        assert float(upper) >= 9.0 and float(lower) <= 4.0
        assert float(upper) <= 9.0 + 1e-4  # the chord, which is exact at the ends


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("exponent", [2.0, 3.0, 4.0, 5.0, 0.5, 1.5, -1.0, -2.0])
def test_every_interval(exponent: float, dtype: torch.dtype) -> None:
    """200 intervals left of 0, across it, right of it, tiny and wide, where the power is defined."""
    gen = np.random.default_rng(int(exponent * 10) + 100)
    ends = np.sort(gen.uniform(-3, 3, size=(200, 2)), axis=1)
    ends[:40, 1] = ends[:40, 0] + 10.0 ** gen.uniform(-7, -1, size=40)
    if exponent < 0 or exponent != int(exponent):
        ends = np.abs(ends)
        ends.sort(axis=1)
        ends += 0.05
    low, high = (torch.tensor(ends[:, i]).to(dtype).unsqueeze(0) for i in (0, 1))
    # every point of the interval as float64 knows it, ends included
    share = torch.linspace(0, 1, POINTS, dtype=torch.float64).unsqueeze(1)
    x = torch.clamp(low.double() + share * (high - low).double(), low.double(), high.double())
    y = x**exponent
    room = 1e-12 if dtype == torch.float64 else 1e-5
    for method in METHODS:
        for settings in (INTERSECTED, PLAIN):
            lower, upper = bound(power(exponent, 200, dtype), Box(low, high), method, settings)
            slack = room * (1 + y.abs().amax(0))
            assert bool((lower[0].double() <= y.amin(0) + slack).all()), method
            assert bool((upper[0].double() >= y.amax(0) - slack).all()), method


def test_written_as_a_product_or_with_any_exponent_type() -> None:
    """`Pow` with an integer, a float and a 0-d exponent all give the same operator."""
    for exponent in (np.array([2], dtype=np.int64), np.array(2.0, dtype=np.float32), np.array(2, dtype=np.int32)):
        graph = read(model([node("Pow", "x e")], ["N", 3], {"e": exponent}))
        lower, upper = bound(graph, Box(torch.full((1, 3), 2.0), torch.full((1, 3), 3.0)), Method.CROWN)
        assert bool((upper >= 9).all() & (lower <= 4).all())

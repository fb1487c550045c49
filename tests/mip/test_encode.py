"""Programs against the networks that they encode: every point fits in, and the least value found is computed there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor, nn

from auto_LiRPA.bounds.intermediate import interval_boxes
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.run import evaluate
from auto_LiRPA.operators.activation import Relu
from auto_LiRPA.operators.arithmetic import Add, Sub
from auto_LiRPA.operators.base import Operator
from auto_LiRPA.operators.conv import Conv
from auto_LiRPA.operators.piecewise import Abs, Clip
from auto_LiRPA.operators.pooling import AveragePool, MaxPool
from auto_LiRPA.operators.shape import Concat, Reshape
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.values import Box
from complete_verifier.mip import encode as encode_module
from complete_verifier.mip.encode import Encoding, Sides, Unsuitable, encode
from complete_verifier.mip.linear_maps import LinearMaps
from complete_verifier.mip.settings import Formulation
from tests.nets import Builder, dense_layers, residual

POINTWISE: list[Operator] = [
    Relu(),
    Relu(leak=0.1),
    Abs(),
    Clip(-0.2, 0.3),
    Clip(None, 0.1),
    Clip(0.0, 6.0),
]


@dataclass(frozen=True)
class Sample:
    graph: Graph
    box: Box

    def encoded(self, formulation: Formulation = "mip", cut: frozenset[int] = frozenset()) -> Encoding:
        boxes, _ = interval_boxes(self.graph, self.box, DistributedContext.single())
        sides = {i: _sides(b.lower, b.upper) for i, b in boxes.items()}
        maps = LinearMaps(self.graph, lambda: None)
        return encode(maps, _sides(self.box.lower, self.box.upper), sides, self.graph.output, formulation, cut)


def _sides(lower: Tensor, upper: Tensor) -> Sides:
    return Sides(lower[0].flatten().numpy(), upper[0].flatten().numpy())


def _box(shape: tuple[int, ...], seed: int) -> Box:
    gen = torch.Generator().manual_seed(seed)
    center = torch.randn(1, *shape, generator=gen, dtype=torch.float64)
    return Box(center - 0.6, center + 0.6)


def pointwise(op: Operator, seed: int) -> Sample:
    build = Builder((3,))
    layers = dense_layers([3, 6, 5, 2], seed)
    at = 0
    for layer in layers[:-1]:
        at = build.dense(layer, at)
        at = build.add(op, (at,), build.nodes[at].shape)
    build.dense(layers[-1], at)
    return Sample(build.graph(), _box((3,), seed))


def spatial(seed: int) -> Sample:
    """Convolution, MaxPool with padding, a branch through AveragePool, Concat, Sub, and a residual Add."""
    torch.manual_seed(seed)
    build = Builder((2, 4, 4))
    conv = nn.Conv2d(2, 2, 3, 1, 1, dtype=torch.float64)
    assert conv.bias is not None
    weight = build.store.place(conv.weight.detach())
    op = Conv(weight, conv.bias.detach(), (1, 1), (1, 1), (1, 1), 1, (2, 4, 4))
    first = build.add(op, (0,), (2, 4, 4))
    act = build.relu(first)
    total = build.add(Add(), (act, 0), (2, 4, 4))
    pads = ((1, 0), (0, 1))
    top = build.add(MaxPool((2, 2), (2, 2), pads, (1, 1), False, (2, 4, 4), (2, 2, 2)), (total,), (2, 2, 2))
    no_pads = ((0, 0), (0, 0))
    mean = build.add(AveragePool((2, 2), (2, 2), no_pads, False, True, (2, 4, 4), (2, 2, 2)), (act,), (2, 2, 2))
    apart = build.add(Sub(), (top, mean), (2, 2, 2))
    both = build.add(Concat(0, (2, 2)), (apart, mean), (4, 2, 2))
    flat = build.add(Reshape((4, 2, 2), (16,)), (both,), (16,))
    build.dense(dense_layers([16, 2], seed)[0], flat)
    return Sample(build.graph(), _box((2, 4, 4), seed))


def samples() -> list[tuple[str, Sample]]:
    found = [(f"{type(op).__name__} {i}", pointwise(op, i)) for i, op in enumerate(POINTWISE)]
    found += [("residual", Sample(residual(dense_layers([3, 5, 5, 2], 7)), _box((3,), 7)))]
    return [*found, ("spatial", spatial(3))]


def minimum(encoding: Encoding, neuron: int, fixed: np.ndarray | None = None) -> tuple[float, np.ndarray]:
    """Least value of one target neuron (with the inputs fixed, if given), by SciPy directly."""
    program = encoding.program
    cost = np.zeros(len(program.lower))
    row = encoding.target.matrix[[neuron]].toarray()[0]
    cost[: len(row)] = row
    lower, upper = program.lower.copy(), program.upper.copy()
    if fixed is not None:
        lower[: encoding.n_inputs] = upper[: encoding.n_inputs] = fixed
    limits = np.where(program.equality, program.limits, -np.inf)
    found = milp(
        cost,
        constraints=LinearConstraint(program.rows, limits, program.limits),
        bounds=Bounds(lower, upper),
        integrality=program.integer.astype(np.uint8),
        options={"mip_rel_gap": 0.0},
    )
    assert found.status == 0, found.message
    return float(found.fun + encoding.target.offset[neuron]), found.x[: encoding.n_inputs]


@pytest.mark.parametrize(("name", "case"), samples(), ids=lambda x: x if isinstance(x, str) else "")
def test_a_program_is_its_network(name: str, case: Sample) -> None:
    """With the inputs fixed both ends are the network's output; the least value is reached by the network itself."""
    encoding = case.encoded()
    low, high = case.box.lower.flatten(), case.box.upper.flatten()
    gen = torch.Generator().manual_seed(0)
    share = torch.rand(4, len(low), generator=gen, dtype=torch.float64)
    points = torch.cat([low + share * (high - low), low[None], high[None]])
    outputs = evaluate(case.graph, points.reshape(-1, *case.graph.input_shape)).flatten(1)
    negated = Encoding(
        encoding.program,
        type(encoding.target)(-encoding.target.matrix, -encoding.target.offset),
        encoding.n_inputs,
        encoding.binaries,
        encoding.gaps,
    )
    for point, output in zip(points.numpy(), outputs.numpy(), strict=True):
        for neuron, value in enumerate(output):
            assert minimum(encoding, neuron, point)[0] == pytest.approx(value, abs=1e-5), name
            assert -minimum(negated, neuron, point)[0] == pytest.approx(value, abs=1e-5), name
    least, where = minimum(encoding, 0)
    reached = evaluate(case.graph, torch.from_numpy(where).reshape(1, *case.graph.input_shape))[0, 0]
    assert least == pytest.approx(float(reached), abs=1e-5)
    many = low + torch.rand(4000, len(low), generator=gen, dtype=torch.float64) * (high - low)
    assert least <= float(evaluate(case.graph, many.reshape(-1, *case.graph.input_shape))[:, 0].min()) + 1e-6
    assert encoding.program.integer.any(), "nothing was unstable: the test proves little"


@pytest.mark.parametrize("formulation", ["lp", "lp_integer"])
def test_relaxed_programs_are_below_the_exact_one(formulation: Formulation) -> None:
    for name, case in samples():
        exact, relaxed = minimum(case.encoded(), 0)[0], minimum(case.encoded(formulation), 0)[0]
        assert relaxed <= exact + 1e-6, name
    triangles = minimum(samples()[0][1].encoded("lp"), 0)[0]
    assert triangles == pytest.approx(minimum(samples()[0][1].encoded("lp_integer"), 0)[0], abs=1e-6)


def test_a_cut_program_is_below_the_whole_one_and_smaller() -> None:
    case = pointwise(Relu(), 0)
    cut = frozenset({2})  # the first activation
    whole, part = case.encoded(), case.encoded(cut=cut)
    assert minimum(part, 0)[0] <= minimum(whole, 0)[0] + 1e-6
    assert len(part.binaries) < len(whole.binaries)


def test_a_program_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode_module, "MOST_NONZEROS", 20)
    with pytest.raises(Unsuitable, match="too large"):
        pointwise(Relu(), 0).encoded()

"""Scores on the flat form agree with those made layer by layer from relaxations, and with the formula by hand."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from auto_LiRPA.bounds.backward import backward, spec_rows
from auto_LiRPA.bounds.columns import Layout
from auto_LiRPA.bounds.intermediate import Intermediate
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.activation import ReluRelaxation
from auto_LiRPA.operators.arithmetic import Add, Sub
from complete_verifier.branching.columns import make_columns, preactivation_bias
from complete_verifier.branching.layout import make_layout, root_columns
from complete_verifier.branching.scores import Scores, flat_scores
from tests.bab.problems import KINDS, incomplete, random_case
from tests.branching.inputs import REDUCTIONS, random_columns, random_input
from tests.nets import Builder, dense_layers


def layer_scores(
    graph: Graph, layout: Layout, coefficients: Mapping[int, Tensor], root: Intermediate, sign: Tensor, reduceop: str
) -> Scores:
    """The same scores layer by layer from the engine's own relaxations: slope and offset of each chord."""
    reduce = {"min": torch.minimum, "max": torch.maximum, "mean": lambda a, b: (a + b) / 2}[reduceop]
    mains, backups, unstable = [], [], []
    for layer in layout.layers:
        relaxation = root.relaxations[layer.node]
        assert isinstance(relaxation, ReluRelaxation)
        assert relaxation.lines.upper_offset is not None
        slope = relaxation.lines.upper_slope.flatten(1)[:, layer.index]
        offset = relaxation.lines.upper_offset.flatten(1)[:, layer.index]
        a = coefficients.get(layer.node, torch.zeros(1, 1, graph.nodes[layer.node].size)).flatten(2)[:, 0, layer.index]
        bias = preactivation_bias(graph, layer.source)
        b = torch.zeros_like(slope) if bias is None else bias[layer.index].to(slope)
        mains.append((reduce(a * b * (slope - 1), a * b * slope) + a.clamp_max(0) * offset).abs())
        backups.append(a.clamp_max(0) * offset)
        box = relaxation.box.pick(layer.index)
        unstable.append((box.lower < 0) & (box.upper > 0))
    return Scores(torch.cat(mains, 1), torch.cat(backups, 1), torch.cat(unstable, 1) & (sign == 0))


@pytest.mark.parametrize("kind", KINDS)
def test_flat_scores_equal_those_of_the_layers(kind: str) -> None:
    compared = 0
    for seed in range(3):
        problem = random_case(kind, seed, neurons=20, regions=2).problem
        graph, root = problem.graph, incomplete(problem).intermediate
        layout = make_layout(graph, root)
        if layout.width == 0:
            continue
        gen = torch.Generator().manual_seed(seed)
        sign = torch.randint(-1, 2, (2, layout.width), generator=gen).to(torch.int8)
        sign[0] = 0
        dtype = problem.clauses.c.dtype
        rows = spec_rows(graph, torch.randn(1, 1, problem.clauses.c.shape[-1], generator=gen).to(dtype))
        columns = make_columns(graph, layout, dtype, torch.device("cpu"))
        box = root_columns(layout, root)
        with torch.no_grad():
            saved = backward(graph, rows, root.relaxations, save=True).saved
            nothing = torch.zeros(2, 1, 1, dtype=dtype)
            parts = [
                saved.get(layer.node, nothing.expand(2, 1, graph.nodes[layer.node].size)).flatten(2)[:, 0, layer.index]
                for layer in layout.layers
            ]
            coef = torch.cat([part.expand(2, -1) for part in parts], 1)
            for reduceop in ("min", "max", "mean"):
                expected = layer_scores(graph, layout, saved, root, sign, reduceop)
                found = flat_scores(columns, coef, box.lower, box.upper, sign, reduceop)
                assert torch.equal(found.splittable, expected.splittable)
                mask, tolerance = found.splittable, 1e-5 if dtype == torch.float32 else 1e-12
                for name in ("main", "backup"):
                    pair = getattr(found, name)[mask], getattr(expected, name)[mask]
                    torch.testing.assert_close(*pair, rtol=tolerance, atol=tolerance)
                compared += int(mask.sum())
    assert compared > 30


@pytest.mark.parametrize("leak", [False, True])
@pytest.mark.parametrize("reduceop", ["min", "max", "mean", "auto"])
def test_flat_scores_are_the_formula(reduceop: str, leak: bool) -> None:
    """The relaxation's upper line has slope ``leak + rise s``; a child's slope is 1 or ``leak``."""
    gen = torch.Generator().manual_seed(7)
    columns = random_columns(gen, [6, 9], torch.float64, leak)
    known = random_input(gen, 5, 15, torch.float64)
    found = flat_scores(columns, known.coef, known.lower, known.upper, known.sign, reduceop)
    reduce = REDUCTIONS[reduceop]
    for row in range(5):
        for c in range(15):
            if not found.splittable[row, c]:
                continue
            low, high, a = float(known.lower[row, c]), float(known.upper[row, c]), float(known.coef[row, c])
            k = 0.0 if columns.leak is None else float(columns.leak[c])
            b = float(columns.bias[c])
            chord = (high - k * low) / (high - low)
            offset = high - chord * high
            down = min(a, 0) * offset
            main = abs(reduce(a * b * (chord - 1), a * b * (chord - k)) + down)
            assert float(found.main[row, c]) == pytest.approx(main, rel=1e-9, abs=1e-12)
            assert float(found.backup[row, c]) == pytest.approx(down, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_columns_name_each_neurons_layer_and_bias(kind: str) -> None:
    problem = random_case(kind, 1, neurons=20).problem
    layout = make_layout(problem.graph, incomplete(problem).intermediate)
    columns = make_columns(problem.graph, layout, torch.float64, torch.device("cpu"))
    assert columns.width == layout.width > 0
    assert columns.leak is None
    for number, layer in enumerate(layout.layers):
        assert columns.spans[number] == (layer.start, layer.stop)
        assert columns.layer[layer.start : layer.stop].unique().tolist() == [number]
        bias = preactivation_bias(problem.graph, layer.source)
        assert bias is not None
        assert torch.equal(columns.bias[layer.start : layer.stop], bias[layer.index].double())


def test_biases_of_branches_that_meet_are_summed_or_subtracted() -> None:
    layers = dense_layers([3, 4, 4], 1)
    for op, sign in ((Add(), 1), (Sub(), -1)):
        build = Builder((3,))
        one = build.dense(layers[0], 0)
        other = build.dense(layers[1], one)
        meeting = build.add(op, (one, other), (4,))
        found = preactivation_bias(build.graph(), meeting)
        assert found is not None
        assert torch.equal(found, layers[0].bias + sign * layers[1].bias)

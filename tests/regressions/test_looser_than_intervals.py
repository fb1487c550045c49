"""Wrong answer 10: CROWN looser than plain intervals, because the two are not intersected."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm
from auto_LiRPA.bounds.intermediate import crown_boxes, interval_boxes
from auto_LiRPA.bounds.methods import Method
from auto_LiRPA.bounds.settings import BoundSettings
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.module import load_onnx
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.values import Box
from complete_verifier.incomplete.settings import IncompleteSettings
from complete_verifier.incomplete.stage import run_incomplete
from tests.bab.problems import clauses, make_problem
from tests.nets import dense_layers, mlp, residual
from tests.regressions.bounding import INTERSECTED, PLAIN, bound
from tests.support import shared_dir


def wide_case(seed: int) -> tuple[Graph, Box]:
    """A network over a box so wide that nearly all neurons are undecided: there intervals can win."""
    graph = (residual if seed % 2 else mlp)(dense_layers([4, 12, 12, 3], seed))
    return graph, Box(torch.full((1, 4), -2.0, dtype=torch.float64), torch.full((1, 4), 2.5, dtype=torch.float64))


@pytest.mark.parametrize("method", [Method.CROWN, Method.ALPHA_CROWN, Method.CROWN_IBP, Method.FORWARD_CROWN])
def test_never_looser_than_intervals(method: Method) -> None:
    """On every output and both sides, with rows and without; on many networks plain CROWN alone is looser."""
    lost = 0
    for seed in range(20):
        graph, box = wide_case(seed)
        rows = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for c in (None, rows):
            ibp = bound(graph, box, Method.IBP, INTERSECTED, c)
            ours = bound(graph, box, method, INTERSECTED, c)
            assert bool((ours[0] >= ibp[0] - 1e-9).all() & (ours[1] <= ibp[1] + 1e-9).all()), f"{seed}"
            plain = bound(graph, box, Method.CROWN, PLAIN, c)
            lost += int((plain[0] < ibp[0] - 1e-6).sum())
    assert lost >= 3, "intervals never win here: the intersection is not tested"


def test_intermediate_boxes_are_intersected_too() -> None:
    """CROWN's boxes lie within the interval boxes, neuron by neuron."""
    context, gained = DistributedContext.single(), 0
    for seed in range(20):
        graph, box = wide_case(seed)
        with torch.no_grad():
            ibp = interval_boxes(graph, box, context)[0]
            ours = crown_boxes(graph, box, context, INTERSECTED).boxes
            plain = crown_boxes(graph, box, context, PLAIN).boxes
        for node, mine in ours.items():
            # tighter boxes below can only help intervals above, so the reference is the boxes' own intervals
            assert bool((mine.lower >= ibp[node].lower - 1e-9).all() & (mine.upper <= ibp[node].upper + 1e-9).all())
            gained += int((mine.lower > plain[node].lower + 1e-9).sum())
    assert gained > 0


def test_the_incomplete_stage_intersects() -> None:
    """What BaB and the verdict start from is at least the interval bound of each row."""
    won = 0
    for seed in range(12):
        graph, box = wide_case(seed)
        rows = torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        spec = clauses([(row.unsqueeze(0).numpy(), torch.tensor([-1e6]).double().numpy()) for row in rows], rows.dtype)
        problem = make_problem(graph, box, replace(spec, rhs=spec.rhs + 2e6))  # proves nothing: all methods run
        ibp = run_incomplete(problem, IncompleteSettings(method="ibp")).lower
        for method in ("crown", "crown-ibp", "alpha-crown", "forward+crown"):
            ours = run_incomplete(problem, IncompleteSettings(method=method)).lower
            assert bool((ours >= ibp - 1e-9).all()), f"{seed} {method}"
        loose = replace(problem, bounds=BoundSettings(compare_with_ibp=False, alpha=problem.bounds.alpha))
        won += int((run_incomplete(loose, IncompleteSettings(method="crown")).lower < ibp - 1e-6).sum())
    assert won > 0


def test_mnist_256x2() -> None:
    """The peer's own case at eps 0.05: widths add up to 150 by its IBP and 216 by its CROWN; ours lies within both."""
    with open(shared_dir("reference", "bounds_mnist_fc.json"), encoding="utf-8") as file:
        case = json.load(file)["cases"][0]
    peer = {
        r["method"]: torch.tensor([r["lb"], r["ub"]])
        for r in case["results"]
        if r["method"] in ("IBP", "CROWN") and r.get("eps") == 0.05 and r["dtype"] == "float32" and "lb" in r
    }
    net = load_onnx(shared_dir("benchmarks", *case["onnx"].split("/")))
    x = torch.tensor(case["x"]).reshape(1, *net.graph.input_shape)
    bounded = BoundedModule(net, x)
    lower, upper = bounded.compute_bounds(x=(BoundedTensor(x, PerturbationLpNorm(eps=0.05)),), method="CROWN")
    width = {method: float((high - low).sum()) for method, (low, high) in peer.items()}
    assert {method: round(value) for method, value in width.items()} == {"IBP": 150, "CROWN": 216}
    for low, high in peer.values():
        assert bool((lower[0] >= low - 1e-3 * (1 + low.abs())).all())
        assert bool((upper[0] <= high + 1e-3 * (1 + high.abs())).all())
    assert float((upper - lower).sum()) < width["IBP"]

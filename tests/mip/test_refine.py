"""Tightened boxes: they hold what the network computes, are the exact ranges where time allows, and prove more."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from auto_LiRPA.values import Box
from complete_verifier.events import Event, Note, ignore
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.incomplete.settings import IncompleteSettings
from complete_verifier.incomplete.stage import run_incomplete
from complete_verifier.mip import refine
from complete_verifier.mip.pool import SolverPool
from complete_verifier.mip.refine import refine_neurons, window_cut
from complete_verifier.mip.regions import margin
from complete_verifier.mip.settings import MipSettings
from complete_verifier.problem import Problem
from tests.bab.problems import KINDS, clauses, make_problem, random_case, sample
from tests.milp import worst_violation
from tests.nets import dense_layers, mlp, residual


def start_of(problem: Problem) -> IncompleteResult:
    return run_incomplete(problem, IncompleteSettings(method="crown"))


def values(problem: Problem, x: Tensor) -> list[Tensor]:
    """Every node's value at ``x``."""
    found = [x]
    for node in problem.graph.nodes[1:]:
        found.append(node.op.forward(*(found[i] for i in node.inputs)))
    return found


def check_boxes(problem: Problem, start: IncompleteResult, end: IncompleteResult, seed: int) -> float:
    """No looser than before, and no sample outside; returns the total width that was taken off."""
    assert isinstance(problem.region, Box)
    gen = torch.Generator().manual_seed(seed)
    taken = 0.0
    for region in range(len(problem.region.lower)):
        box = Box(problem.region.lower[region : region + 1], problem.region.upper[region : region + 1])
        at = values(problem, sample(box, 3000, gen))
        for node, old in start.intermediate.boxes.items():
            new = end.intermediate.boxes[node]
            slack = 1e-9 if at[node].dtype == torch.float64 else 1e-5 * (1 + float(at[node].abs().max()))
            assert bool((at[node] >= new.lower[region] - slack).all()), "a sample below its box"
            assert bool((at[node] <= new.upper[region] + slack).all()), "a sample above its box"
            assert bool((new.lower >= old.lower).all() and (new.upper <= old.upper).all()), "a looser box"
            taken += float((old.upper - old.lower - new.upper + new.lower).sum())
    return taken


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_shrink_and_hold_every_sample(kind: str, pool: SolverPool, count: Callable[[int, int], int]) -> None:
    taken = proved = tried = 0.0
    for seed in range(count(10, 100)):
        case = random_case(kind, seed, neurons=20, regions=(1, 3)[seed % 5 == 3])
        start = start_of(case.problem)
        if bool(start.proven.all()):
            continue
        tried += 1
        before = {i: (b.lower.clone(), b.upper.clone()) for i, b in start.intermediate.boxes.items()}
        settings = MipSettings(
            formulation=("mip", "lp", "lp_integer")[seed % 3], early_stop=seed % 2 == 0, window=(-1, 1)[seed % 4 == 3]
        )
        found = refine_neurons(case.problem, start, settings, ignore, pool)
        for i, (lower, upper) in before.items():  # what came in is left as it was
            assert torch.equal(start.intermediate.boxes[i].lower, lower)
            assert torch.equal(start.intermediate.boxes[i].upper, upper)
        taken += check_boxes(case.problem, start, found.result, seed)
        assert bool((found.result.lower >= start.lower).all())
        for node, slopes in found.result.slopes.items():  # they belong to the new relaxations
            spec = found.result.intermediate.relaxations[node].alpha
            assert spec is not None and slopes.shape[-1] == len(spec.index)
        wrong = found.result.proven & (torch.tensor(case.truth) < 0)
        assert not bool(wrong.any()), f"{kind} {seed}: proved though violated"
        proved += int((found.result.proven & ~start.proven).sum())
    assert tried > 3 and taken > 0.1 and proved > 0, "refinement hardly had to work"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_boxes_are_the_exact_ranges(dtype: torch.dtype, pool: SolverPool) -> None:
    """The second layer of an MLP, without the early stop: its ranges by the independent MILP, to the margin."""
    layers = dense_layers([3, 7, 6, 2], 5, dtype)
    plain = [(layer.weight.double().numpy(), layer.bias.double().numpy()) for layer in layers]
    ends = np.ones(3)
    box = Box(-torch.ones(1, 3, dtype=dtype), torch.ones(1, 3, dtype=dtype))
    problem = make_problem(mlp(layers), box, clauses([(np.array([[1.0, 0.0]]), np.array([-50.0]))], dtype))
    start = start_of(problem)
    start = IncompleteResult(start.lower, torch.zeros_like(start.proven), start.intermediate, start.slopes)
    found = refine_neurons(problem, start, MipSettings(early_stop=False), ignore, pool).result.intermediate.boxes[3]
    for neuron in range(6):
        old = start.intermediate.boxes[3]
        if float(old.lower[0, neuron]) >= 0 or float(old.upper[0, neuron]) <= 0:
            continue
        row = np.eye(1, 6, neuron)
        least = worst_violation(plain[:2], -ends, ends, row, np.zeros(1))
        most = -worst_violation(plain[:2], -ends, ends, -row, np.zeros(1))
        size = max(abs(float(old.lower[0, neuron])), abs(float(old.upper[0, neuron])))
        slack = 2 * margin(size) + 1e-3 * size  # the solver's gap
        assert least - slack <= float(found.lower[0, neuron]) < least, "above the exact minimum, or far below it"
        assert most < float(found.upper[0, neuron]) <= most + slack, "below the exact maximum, or far above it"


def test_slopes_of_wider_boxes_are_not_handed_on(monkeypatch: pytest.MonkeyPatch, pool: SolverPool) -> None:
    """Where time is too short for new slopes there are none: the old ones belong to other neurons."""
    monkeypatch.setattr(refine, "rebound", lambda problem, result, seconds, on_event: result)
    case = random_case("mlp", 5)
    start = run_incomplete(case.problem, IncompleteSettings())
    found = refine_neurons(case.problem, start, MipSettings(), ignore, pool)
    assert start.slopes and found.tightened > 0 and not found.result.slopes


def test_time_that_is_used_up_leaves_the_start(pool: SolverPool) -> None:
    case = random_case("mlp", 4)
    start = start_of(case.problem)
    notes: list[Event] = []
    found = refine_neurons(case.problem, start, MipSettings(refine_share=0.0), notes.append, pool)
    assert found.result is start and found.tightened == 0
    assert not [n for n in notes if isinstance(n, Note) and n.text.startswith("Refined")]


def test_a_window_cuts_off_what_lies_far_below() -> None:
    graph = mlp(dense_layers([2, 3, 3, 3, 1], 0))  # nodes: dense 1, relu 2, dense 3, relu 4, dense 5, relu 6, dense 7
    assert window_cut(graph, 5, -1) == frozenset()
    assert window_cut(graph, 5, 1) == {2} and window_cut(graph, 7, 1) == {2, 4} and window_cut(graph, 7, 2) == {2}
    assert window_cut(graph, 3, 1) == frozenset()
    skip = residual(dense_layers([2, 3, 3, 1], 0))
    assert all(i < skip.output for i in window_cut(skip, skip.output, 1))

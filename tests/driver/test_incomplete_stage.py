"""The incomplete stage: sound rows, whatever it is cut into; slopes that belong to their clauses; nothing from NaN."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor

from auto_LiRPA.bounds.backward import backward, concretize, spec_rows
from auto_LiRPA.bounds.intermediate import Intermediate
from auto_LiRPA.bounds.settings import AlphaSettings, BoundSettings
from auto_LiRPA.errors import ConfigError, OutOfTime
from auto_LiRPA.values import Box, Interval
from complete_verifier.events import BoundsFound, Event
from complete_verifier.incomplete import first_bounds as first_bounds_module
from complete_verifier.incomplete import optimized_bounds as optimized_module
from complete_verifier.incomplete.regions import join, pick, relax_all, trusted
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.incomplete.rows import RowBlock
from complete_verifier.incomplete.settings import IncompleteSettings, Method
from complete_verifier.incomplete.stage import run_incomplete
from complete_verifier.problem import Clauses, Problem
from tests.driver.problems import sampled_problem

ROUNDING = 1e-9
METHODS = get_args(Method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(4))
def test_no_row_passes_what_samples_reach(seed: int, method: Method) -> None:
    case = sampled_problem(seed)
    found = run_incomplete(case.problem, IncompleteSettings(method=method))
    assert (found.lower <= case.least + ROUNDING).all()
    assert torch.equal(found.proven, case.problem.clauses.proven(found.lower))
    assert found.lower[case.least < torch.inf].isfinite().all()


def test_better_methods_are_no_looser() -> None:
    for seed in range(4):
        case = sampled_problem(seed)
        lower = {m: run_incomplete(case.problem, IncompleteSettings(method=m)).lower for m in METHODS}
        real = case.least < torch.inf
        for worse, better in (("ibp", "crown"), ("ibp", "crown-ibp"), ("ibp", "forward"), ("crown", "alpha-crown")):
            assert (lower[better] >= lower[worse] - ROUNDING)[real].all(), (seed, worse, better)
        assert (lower["alpha-crown"] > lower["crown"] + 1e-3)[real].any()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("max_rows", [1, 4])
def test_pieces_give_the_same_crown_bounds(seed: int, max_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few rows and regions are bounded together."""
    case = sampled_problem(seed)
    whole = run_incomplete(case.problem, IncompleteSettings(method="crown"))
    monkeypatch.setattr(first_bounds_module, "_GROUP_BYTES", 1)
    pieces = run_incomplete(case.problem, IncompleteSettings(method="crown", max_rows=max_rows))
    torch.testing.assert_close(pieces.lower, whole.lower, atol=ROUNDING, rtol=0)
    for node, box in whole.intermediate.boxes.items():
        # a neuron that is stable in one region is bounded backward there only if another region needs it
        unstable = (box.lower < 0) & (box.upper > 0)
        mine = pieces.intermediate.boxes[node]
        torch.testing.assert_close(mine.lower[unstable], box.lower[unstable], atol=ROUNDING, rtol=0)
        torch.testing.assert_close(mine.upper[unstable], box.upper[unstable], atol=ROUNDING, rtol=0)


@pytest.mark.parametrize("seed", range(4))
def test_pieces_of_alpha_crown_are_sound(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = sampled_problem(seed)
    crown = run_incomplete(case.problem, IncompleteSettings(method="crown"))
    monkeypatch.setattr(first_bounds_module, "_GROUP_BYTES", 1)
    monkeypatch.setattr(optimized_module, "_SLOPE_BYTES", 1)
    pieces = run_incomplete(case.problem, IncompleteSettings(max_rows=2))
    assert (pieces.lower <= case.least + ROUNDING).all()
    assert (pieces.lower >= crown.lower - ROUNDING).all()
    again = bounds_by_slopes(case.problem, pieces)
    assert (again <= case.least + ROUNDING).all()


def bounds_by_slopes(problem: Problem, found: IncompleteResult) -> Tensor:
    """Every clause bounded again with the slopes that are handed on, over the boxes that are handed on: ``[K, R]``."""
    assert found.slopes and isinstance(problem.region, Box)
    clauses, bounds = problem.clauses, []
    for k, region in enumerate(clauses.region.tolist()):
        boxes = {i: Interval(b.lower[[region]], b.upper[[region]]) for i, b in found.intermediate.boxes.items()}
        relaxations = relax_all(problem.graph, boxes)
        for node, relaxation in relaxations.items():
            spec = found.intermediate.relaxations[node].alpha
            relaxation.pinned = None if spec is None else spec.index
        slopes = {node: value[[k]] for node, value in found.slopes.items()}
        result = backward(problem.graph, spec_rows(problem.graph, clauses.c[[k]]), relaxations, slopes)
        bounds.append(concretize(result, problem.region.pick(torch.tensor([region])))[0])
    return torch.stack(bounds)


@pytest.mark.parametrize("seed", range(4))
def test_slopes_belong_to_their_clauses(seed: int) -> None:
    """One row a region and fixed boxes: then the slopes that are handed on reproduce the bound itself."""
    alpha = AlphaSettings(mode="fixed", iterations=6, lr_alpha=0.2, start_save_best=0.0)
    case = sampled_problem(seed, regions=5, clauses=5, rows=1, alpha=alpha)
    clauses = replace(case.problem.clauses, region=torch.tensor([3, 0, 4, 1, 2]))
    clauses = replace(clauses, rhs=torch.full_like(clauses.rhs, 1e6))  # nothing is ever proved: all rows optimised
    problem = replace(case.problem, clauses=clauses, bounds=BoundSettings(compare_with_ibp=False, alpha=alpha))
    found = run_incomplete(problem, IncompleteSettings())
    torch.testing.assert_close(bounds_by_slopes(problem, found), found.lower, atol=1e-7, rtol=0)
    crown = run_incomplete(problem, IncompleteSettings(method="crown"))
    assert (found.lower > crown.lower + 1e-3).any()


def test_proven_clauses_are_pruned_and_the_stage_can_end_between(seed: int = 2) -> None:
    case = sampled_problem(seed)
    events: list[Event] = []
    calls = []
    run_incomplete(case.problem, IncompleteSettings(), events.append, lambda r: bool(calls.append(r)) or True)
    assert len(calls) == 1 and not calls[0].proven.all()
    assert [e.method for e in events if isinstance(e, BoundsFound)] == ["CROWN"]
    events.clear()
    both = run_incomplete(case.problem, IncompleteSettings(), events.append, lambda r: False)
    assert [e.method for e in events if isinstance(e, BoundsFound)] == ["CROWN", "alpha-CROWN"]
    # rows of clauses that CROWN proved keep CROWN's bound
    assert torch.equal(both.lower[calls[0].proven], calls[0].lower[calls[0].proven])


def test_the_deadline_ends_the_stage(seed: int = 2) -> None:
    case = sampled_problem(seed, timeout_s=-1.0)
    late = replace(case.problem, context=replace(case.problem.context, seconds_left=case.problem.clock.left))
    with pytest.raises(OutOfTime):
        run_incomplete(late, IncompleteSettings())
    # time for CROWN only: what it found stays
    case = sampled_problem(seed)
    crown = run_incomplete(case.problem, IncompleteSettings(method="crown"))
    found = run_incomplete(case.problem, IncompleteSettings(max_seconds=0.0))
    assert torch.equal(found.lower, crown.lower) and not found.slopes


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_says_what_to_lower(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise error

    monkeypatch.setattr(first_bounds_module, "crown_boxes", full)
    with pytest.raises(ConfigError, match=r"out of memory on cpu.*parallel\.tile_rows"):
        run_incomplete(sampled_problem(0).problem, IncompleteSettings())


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ConfigError, match="bound_prop_method = magic"):
        IncompleteSettings(method="magic")  # type: ignore[arg-type]


# -- numbers that mean nothing ----------------------------------------------------------------------------------------
def spoiled(boxes, node: int, lower: float, upper: float, region: int):  # type: ignore[no-untyped-def]
    box = boxes[node]
    new = Interval(box.lower.clone(), box.upper.clone())
    new.lower[region, 0], new.upper[region, 0] = lower, upper
    return {**boxes, node: new}


@pytest.mark.parametrize("method", ["crown", "alpha-crown"])
@pytest.mark.parametrize(("lower", "upper"), [(float("nan"), float("nan")), (1.0, -1.0), (0.0, float("nan"))])
def test_nan_or_crossed_boxes_prove_nothing(
    method: Method, lower: float, upper: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One neuron of one region is spoiled: none of that region's clauses is proved, the others are untouched."""
    case = sampled_problem(1)
    problem = replace(case.problem, clauses=replace(case.problem.clauses, rhs=case.problem.clauses.rhs.clamp_max(-1e6)))
    assert run_incomplete(problem, IncompleteSettings(method=method)).proven.all()
    real = first_bounds_module.crown_boxes

    def broken(graph, region, context, settings, given):  # type: ignore[no-untyped-def]
        found = real(graph, region, context, settings, given)
        boxes = spoiled(found.boxes, min(found.boxes), lower, upper, region=1)
        return Intermediate(boxes, relax_all(graph, boxes), found.starts)

    monkeypatch.setattr(first_bounds_module, "crown_boxes", broken)
    found = run_incomplete(problem, IncompleteSettings(method=method))
    assert torch.equal(found.proven, problem.clauses.region != 1)


def test_trust_ends_beyond_rounding() -> None:
    fine = Interval(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0 - 1e-7, 5.0]]))
    crossed = Interval(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.9, 5.0], [0.0, 0.0]]))
    assert trusted({1: fine}).tolist() == [True]  # type: ignore[union-attr]
    assert trusted({1: crossed}).tolist() == [False, True]  # type: ignore[union-attr]
    assert trusted({}) is None


def test_infinite_rows_prove_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    case = sampled_problem(1)

    def infinite(problem: Problem, clauses: Clauses, block: RowBlock, *rest: object) -> Tensor:
        return torch.full(block.matrix(clauses).shape[:2], torch.inf, dtype=torch.float64)

    monkeypatch.setattr(first_bounds_module, "_rows", infinite)
    assert not run_incomplete(case.problem, IncompleteSettings(method="crown")).proven.any()


def test_join_is_the_inverse_of_pick(seed: int = 3) -> None:
    problem = sampled_problem(seed).problem
    whole = run_incomplete(problem, IncompleteSettings(method="crown")).intermediate
    parts = [pick(problem.graph, whole, torch.tensor([i]), problem.context) for i in range(3)]
    back = join(problem.graph, parts, problem.context)
    for node, box in whole.boxes.items():
        assert torch.equal(back.boxes[node].lower, box.lower) and torch.equal(back.boxes[node].upper, box.upper)
    for a, b in zip(whole.starts, back.starts, strict=True):
        assert torch.equal(a.index, b.index)

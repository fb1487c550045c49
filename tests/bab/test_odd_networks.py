"""Searches where something is odd: branches, clauses without rows, weights that vanish, memory or time that ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from auto_LiRPA.bounds.backward import Rows
from auto_LiRPA.bounds.domains.ascent import AscentSettings
from auto_LiRPA.bounds.domains.batch import Batch
from auto_LiRPA.bounds.domains.row_mix import MixState
from auto_LiRPA.bounds.optimize import RowMix, optimize_rows
from auto_LiRPA.errors import OutOfTime
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.arithmetic import Add
from auto_LiRPA.operators.piecewise import Abs
from auto_LiRPA.values import Box
from complete_verifier.bab import refine as refining
from complete_verifier.bab import search as searching
from complete_verifier.bab.agreement import Agreed, Status, agree
from complete_verifier.bab.domains import Domains, concatenate
from complete_verifier.bab.expansion import Expander
from complete_verifier.bab.keeper import Keeper
from complete_verifier.bab.refine import RefineSettings, refine_boxes
from complete_verifier.bab.refined_search import RefineShare, refined_search
from complete_verifier.bab.relu_bounding import ReluBounder
from complete_verifier.bab.search import search
from complete_verifier.bab.settings import BabProgress, BabSettings, Tiling
from complete_verifier.bab.store import DomainStore
from complete_verifier.input_bab.search import search_boxes
from complete_verifier.input_bab.settings import InputBabSettings
from complete_verifier.problem import Clock, Problem
from tests.bab.problems import BOUNDS, KINDS, clauses, decide, incomplete, make_problem, random_case, sample, set_up
from tests.nets import Builder, dense_layers

QUICK = BabSettings(batch_size=32, iterations=6, lr_alpha=0.1, record_ledger=True)
REFINE = RefineSettings(
    seconds=1.0, ascent=AscentSettings(iterations=6, lr_alpha=0.2, lr_beta=0.2), tiling=Tiling(512, False), parents=64
)


def two_branches(seed: int) -> Graph:
    """Two stacks side by side that meet in a sum: a layer of one stack is no ancestor of the other's."""
    build = Builder((3,))
    ends = []
    for stack in (0, 1):
        first, second = dense_layers([3, 4, 4], 2 * seed + stack)
        ends.append(build.relu(build.dense(second, build.relu(build.dense(first, 0)))))
    total = build.add(Add(), (ends[0], ends[1]), (4,))
    (last,) = dense_layers([4, 1], seed + 77)
    build.dense(last, total)
    return build.graph()


def hard_problem(graph: Graph, seed: int, margin: float) -> Problem:
    """One clause, its threshold ``margin`` below the least value that 20 000 samples find."""
    box = Box(-torch.ones(1, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64))
    problem = make_problem(graph, box, clauses([(np.ones((1, 1)), np.zeros(1))], torch.float64))
    x = sample(box, 20_000, torch.Generator().manual_seed(seed))
    values = [x]
    for node in graph.nodes[1:]:
        values.append(node.op.forward(*(values[i] for i in node.inputs)))
    least = float(values[-1].min())
    return replace(problem, clauses=clauses([(np.ones((1, 1)), np.array([least - margin]))], torch.float64))


@pytest.mark.parametrize("margin", [0.05, -0.01])
def test_layers_of_another_branch_are_no_part_of_a_refinement(margin: float) -> None:
    for seed in range(4):
        problem = hard_problem(two_branches(seed), seed, margin)
        start = incomplete(problem)
        if bool(start.proven.all()):
            continue
        found = refined_search(problem, start, QUICK, RefineShare(0.0, 0.005), on_candidate=lambda x: True)
        assert found.closed == (margin > 0), f"{seed}: {found}"


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_clause_without_rows_is_never_refuted(kind: str, strict: bool) -> None:
    """Every input satisfies it. Its padding rows add up to 0, which is no proof."""
    problem = random_case(kind, 1).problem
    spec = problem.clauses.pick(torch.tensor([0]))
    spec = replace(
        spec,
        c=torch.zeros_like(spec.c),
        rhs=torch.full_like(spec.rhs, torch.inf),
        attainable_rhs=torch.full_like(spec.attainable_rhs, strict),
    )
    found = decide(replace(problem, clauses=spec), replace(QUICK, max_iterations=8))
    assert not found.closed


def test_momentum_never_takes_all_weights_to_zero() -> None:
    """Strict rows are refuted by a sum of 0: with all weights 0 that sum is no proof."""
    rows = 3
    like = torch.zeros(2, 1, dtype=torch.float64)
    batch = Batch(
        sign=like.to(torch.int8),
        value=like,
        lower=like,
        upper=like,
        region=Box(like, like),
        c=torch.randn(2, rows, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
        rhs=torch.zeros(2, rows, dtype=torch.float64),
        real=torch.ones(2, rows, dtype=torch.bool),
        mix=torch.full((2, rows), 1 / rows, dtype=torch.float64),
        strict=torch.ones(2, dtype=torch.bool),
    )
    state = MixState(batch)
    first, second = state.moments
    first.fill_(-10.0)
    second.fill_(1.0)
    state.ascend(batch, torch.ones(2, 2, dtype=torch.float64), torch.ones(2, dtype=torch.float64), 1, 0.5)
    assert bool((state.weight.sum(1) > 0.99).all())


def test_a_large_rate_never_takes_all_weights_to_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where any network is bounded."""
    from auto_LiRPA.bounds import optimize

    def all_down(tensors: list[Tensor], *rest: object) -> None:
        for tensor in tensors:
            tensor.sub_(1e3)

    monkeypatch.setattr(optimize, "ascend", all_down)
    setup = set_up(random_case("mlp", 1).problem)
    graph, output = setup.problem.graph, setup.problem.graph.output_shape
    c = torch.ones(1, 2, *output, dtype=setup.problem.clauses.c.dtype)
    real = torch.tensor([[True, True]])
    mix = RowMix(c, torch.zeros(1, 2, dtype=c.dtype), real, torch.full((1, 2), 0.5, dtype=c.dtype))
    found: list[Tensor] = []
    row = RowMix.row

    def spy(self: RowMix, weight: Tensor) -> tuple[Tensor, Tensor]:
        found.append(weight.clone())
        return row(self, weight)

    monkeypatch.setattr(RowMix, "row", spy)
    rows = Rows(graph.output, *mix.row(mix.weight))
    settings = replace(BOUNDS.alpha, iterations=3)
    optimize_rows(graph, rows, setup.problem.region, setup.root.intermediate.relaxations, settings, mix=mix)
    assert len(found) > 2 and all(bool((weight.sum(1) > 0.99).all()) for weight in found)


@pytest.mark.parametrize("error", [MemoryError("no"), RuntimeError("DefaultCPUAllocator: not enough"), OutOfTime("no")])
def test_a_refinement_that_fails_does_not_end_the_search(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> Tensor:
        raise error

    monkeypatch.setattr(refining._Trees, "_worst", fail)
    decided = 0
    for seed in range(4):
        case = random_case("mlp", seed, neurons=20)
        start = incomplete(case.problem)
        if bool(start.proven.all()):
            continue
        found = refined_search(case.problem, start, QUICK, RefineShare(0.0, 0.01), on_candidate=lambda x: True)
        assert found.closed == case.holds
        decided += 1
    assert decided > 0


def test_other_errors_of_a_refinement_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> Tensor:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(refining._Trees, "_worst", fail)
    setup = next(
        s for s in (set_up(random_case("mlp", seed).problem) for seed in range(20)) if len(s.layout.layers) > 1
    )
    with pytest.raises(RuntimeError, match="a mistake"):
        refine_boxes(setup.problem, setup.root, REFINE)


def test_every_bound_of_a_refinement_knows_when_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """One optimisation may be long: it has to look at the clock of its layer by itself."""
    asked: list[float] = []
    bound = ReluBounder.bound

    def spy(self: ReluBounder, found: object, seconds_left: Callable[[], float] | None = None) -> object:
        assert seconds_left is not None
        asked.append(seconds_left())
        return bound(self, found, seconds_left)  # type: ignore[arg-type]

    monkeypatch.setattr(ReluBounder, "bound", spy)
    setup = next(
        s for s in (set_up(random_case("mlp", seed).problem) for seed in range(20)) if len(s.layout.layers) > 1
    )
    refine_boxes(setup.problem, setup.root, REFINE)
    assert len(asked) > 1 and all(seconds <= REFINE.seconds for seconds in asked)


def test_progress_and_limits_count_both_parts_of_a_refined_search(monkeypatch: pytest.MonkeyPatch) -> None:
    from complete_verifier.bab import refined_search as module

    problem = hard_problem(two_branches(0), 0, 1e-7)
    start = incomplete(problem)
    calls: list[int] = []

    def cut(given: Problem, *rest: object, **more: object) -> object:
        """The attempt ends after two rounds, as if its time were over."""
        calls.append(1)
        arguments = list(rest)
        if len(calls) > 1:
            return search(given, *arguments, **more)  # type: ignore[arg-type]
        arguments[1] = replace(arguments[1], max_iterations=2)  # type: ignore[type-var]
        return replace(search(given, *arguments, **more), stopped_by="time limit")  # type: ignore[arg-type]

    monkeypatch.setattr(module, "search", cut)
    seen: list[BabProgress] = []
    settings = replace(QUICK, batch_size=1, max_iterations=5)
    problem = replace(problem, clock=Clock(time.monotonic(), 60.0))
    found = refined_search(problem, start, settings, RefineShare(0.5, 0.0), seen.append)
    assert len(calls) == 2 and found.rounds <= 5
    assert [p.round for p in seen] == sorted({p.round for p in seen})
    assert seen[-1].domains_visited == found.domains_visited


def test_slopes_of_other_nodes_keep_their_numbers_in_a_smaller_network() -> None:
    """alpha-CROWN decides some neurons of the last nonlinear node, whose slopes stay: a layer below is compacted."""
    decided = 0
    for seed in range(60):
        gen = np.random.default_rng([seed, 9])
        width, build = int(gen.integers(5, 12)), Builder((3,))
        first, second, third, last = dense_layers([3, width, width, width, 1], seed)
        at = build.relu(build.dense(second, build.relu(build.dense(first, 0))))
        build.dense(last, build.add(Abs(), (build.dense(third, at),), (width,)))
        problem = hard_problem(build.graph(), seed, 0.02)
        start = incomplete(problem)
        spec = start.intermediate.relaxations[6].alpha
        box = start.intermediate.boxes[5].flat()
        narrower = spec is not None and int(((box.lower < 0) & (box.upper > 0)).sum()) < len(spec.index)
        if bool(start.proven.all()) or not narrower:
            continue
        search(problem, start, replace(QUICK, max_iterations=2))
        decided += 1
        if decided == 3:
            break
    assert decided > 0


@pytest.mark.parametrize("said", [1.0, float("inf")])
@pytest.mark.parametrize("inputs", [False, True])
def test_a_bound_that_the_incomplete_stage_did_not_trust_proves_nothing_later(said: float, inputs: bool) -> None:
    """A clause that it left open although the number says otherwise (overflow, broken boxes) is open."""
    problem = hard_problem(two_branches(1), 1, -0.05)
    start = incomplete(problem)
    start = replace(start, lower=torch.full_like(start.lower, said), proven=torch.zeros_like(start.proven))
    if inputs:
        assert not search_boxes(problem, start, InputBabSettings(max_iterations=5)).closed
    else:
        assert not search(problem, start, replace(QUICK, max_iterations=5)).closed


def test_a_round_that_fails_at_its_leaves_leaves_no_child_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parents go back into the store then: their children beside them would be searched twice."""

    def fail(self: object, leaves: Domains, *rest: object) -> None:
        raise MemoryError

    problem = hard_problem(two_branches(1), 1, -0.05)
    one = searching._Search(problem, incomplete(problem), QUICK, None, None, Keeper(None, None))
    root = one.roots
    leaf = replace(root, id=root.id + 100, sign=torch.ones_like(root.sign), value=torch.zeros_like(root.value))

    def round_of(parents: Domains) -> tuple[Agreed, list[int]]:
        with torch.no_grad(), DomainStore(root, "worst_first") as store:
            store.add(parents, parents.lower)
            found = one._round(store, agree(problem.context, Status(len(parents))))
            return found, sorted(store.take(len(store)).id.tolist())

    one.state.next_id = 200
    fine, left = round_of(root)
    assert fine.counts_for and left and min(left) >= 200  # some child of the root stays open
    monkeypatch.setattr(Expander, "close_leaves", fail)
    failed, left = round_of(concatenate(root, leaf))
    assert not failed.counts_for and failed.open == 2 and left == [0, 100]


def test_large_numbers_are_no_infinity_to_a_leaf() -> None:
    """HiGHS takes 1e20 for infinity: rows beyond it looked as if no point satisfied them."""
    decided = 0
    for seed in range(16):
        build, at = Builder((3,)), 0
        for number, layer in enumerate(dense_layers([3, 4, 4, 1], seed)):
            at = build.relu(at) if number else at
            at = build.dense(replace(layer, weight=layer.weight * 1e9, bias=layer.bias * 1e9), at)
        problem = hard_problem(build.graph(), seed, 0.0)
        limit = problem.clauses.rhs + 1e-3 * problem.clauses.rhs.abs()  # above the least value that sampling found
        problem = replace(problem, clauses=replace(problem.clauses, rhs=limit))
        assert not search(problem, incomplete(problem), replace(QUICK, max_iterations=12)).closed
        decided += 1
    assert decided == 16

"""Clauses decided by our programs, against the MILP of `tests.milp`, which shares no code with them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from auto_LiRPA.graph.run import evaluate
from auto_LiRPA.operators.smooth import Sigmoid
from auto_LiRPA.parallel.store import LocalStore, Weight
from auto_LiRPA.values import Box
from complete_verifier.events import ignore
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.incomplete.settings import IncompleteSettings
from complete_verifier.incomplete.stage import run_incomplete
from complete_verifier.mip.clauses import MipResult, solve_clauses
from complete_verifier.mip.encode import Unsuitable
from complete_verifier.mip.messages import Answer, Ending, Task
from complete_verifier.mip.pool import SolverPool, Wanted
from complete_verifier.mip.program import Program
from complete_verifier.mip.settings import MipSettings
from complete_verifier.problem import Clock, Problem
from tests.bab.problems import KINDS, clauses, make_problem, random_case
from tests.milp import worst_violation
from tests.nets import Builder, dense_layers, mlp

# Nearer to the threshold than the margin (6e-6 and more on these networks) no verdict may be given, whatever the truth.
NEAR = (1e-9, 3e-6)


def start_of(problem: Problem) -> IncompleteResult:
    """One cheap pass, so that much is left to the programs."""
    return run_incomplete(problem, IncompleteSettings(method="crown"))


def judge(problem: Problem) -> tuple[Callable[[np.ndarray], bool], list[np.ndarray]]:
    """Whether a point of some region satisfies a clause of that region, by the network itself in float64; and who did.

    Clauses of one row or more, over the regions' own boxes.
    """
    found: list[np.ndarray] = []
    graph = problem.graph.mapped(lambda t: t.double() if t.is_floating_point() else t, _double)
    spec, region = problem.clauses, problem.region
    assert isinstance(region, Box)

    def judged(x: np.ndarray) -> bool:
        point = torch.as_tensor(x, dtype=torch.float64).reshape(1, *graph.input_shape)
        y = evaluate(graph, point)[0].flatten()
        holds = (spec.c.double() @ y <= spec.rhs.double()).all(1)
        inside = ((region.lower.double() <= point) & (point <= region.upper.double())).flatten(1).all(1)
        if bool((holds & inside[spec.region]).any()):
            found.append(x)
            return True
        return False

    return judged, found


def _double(weight: Weight) -> Weight:
    return LocalStore().place(torch.cat([block.data for block in weight.blocks()]).double())


def decide(problem: Problem, pool: SolverPool, settings: MipSettings) -> tuple[MipResult, list[np.ndarray]]:
    judged, found = judge(problem)
    return solve_clauses(problem, start_of(problem), settings, ignore, judged, pool), found


@pytest.mark.parametrize("kind", KINDS)
def test_verdict_equals_milp(kind: str, pool: SolverPool, count: Callable[[int, int], int]) -> None:
    """Every clause, on 108 networks (600 in `make soak`): one to three clauses and rows, up to three regions."""
    each = count(36, 200)
    by_program = held = violated = 0
    for seed in range(each):
        case = random_case(kind, seed, neurons=(18, 30)[seed % 4 == 0], regions=(1, 3)[seed % 5 == 3])
        start = start_of(case.problem)
        settings = MipSettings(early_stop=seed % 3 > 0)
        result, found = decide(case.problem, pool, settings)
        assert result.confirmed == (not case.holds) == bool(found), f"{kind} {seed}: {result}, exact {case.truth}"
        wrong = result.proven & (torch.tensor(case.truth) < 0)
        assert not bool(wrong.any()), f"{kind} {seed}: proved though violated"
        assert bool(result.proven.all()) == case.holds, f"{kind} {seed}: {result}, exact {case.truth}"
        by_program += int((result.proven & ~start.proven).sum())
        held, violated = held + case.holds, violated + (not case.holds)
    assert held > each // 5 and violated > each // 5 and by_program > each // 2, "the programs hardly had to work"


@pytest.mark.parametrize("formulation", ["lp", "lp_integer"])
def test_relaxations_prove_some_and_never_too_much(formulation: str, pool: SolverPool) -> None:
    proved = 0
    for seed in range(6):
        case = random_case("mlp", seed)
        start = start_of(case.problem)
        judged, _ = judge(case.problem)
        settings = MipSettings(formulation=formulation)  # type: ignore[arg-type]
        result = solve_clauses(case.problem, start, settings, ignore, judged, pool)
        assert not bool((result.proven & (torch.tensor(case.truth) < 0)).any())
        proved += int((result.proven & ~start.proven).sum())
    assert proved > 0


def _near_case(seed: int, distance: float) -> Problem:
    """A network whose least row value is exactly known; the threshold is ``distance`` above it (negative: below)."""
    layers = dense_layers([3, 6, 6, 2], seed)
    plain = [(layer.weight.numpy(), layer.bias.numpy()) for layer in layers]
    ends = np.ones(3)
    c = np.array([[1.0, -1.0]])
    least = worst_violation(plain, -ends, ends, c, np.zeros(1))
    box = Box(-torch.ones(1, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64))
    return make_problem(mlp(layers), box, clauses([(c, np.array([least + distance]))], torch.float64))


@pytest.mark.parametrize("seed", range(2))
def test_thresholds_within_the_solvers_tolerance_are_left_undecided(seed: int, pool: SolverPool) -> None:
    for distance in (*NEAR, *(-d for d in NEAR)):
        problem = _near_case(seed, distance)
        result = solve_clauses(problem, start_of(problem), MipSettings(), ignore, lambda x: False, pool)
        assert not bool(result.proven.any()), f"{seed} {distance}"
        assert not result.out_of_time and "tolerance" in result.stopped_by
    for distance in (-1e-3, 1e-3):  # and clear ones are decided
        problem = _near_case(seed, distance)
        result, found = decide(problem, pool, MipSettings())
        assert bool(result.proven.all()) == (distance < 0) and bool(found) == (distance > 0)


class _Scripted(SolverPool):
    """Answers each part of a clause with an ending of its own, whenever it is asked; no process is started."""

    def __init__(self, endings: list[Ending]) -> None:
        super().__init__(len(endings), lambda: 60.0)
        self.endings = endings
        self.parts: dict[bytes, Ending] = {}

    def start(self, count: int) -> None:
        return None

    def solve(self, program: Program, tasks: Sequence[Task], wanted: Wanted | None = None) -> Iterator[Answer]:
        time.sleep(0.1)
        for task in [t for t in tasks if t.exact]:
            part = task.lower.tobytes()
            ending = self.parts.setdefault(part, self.endings[len(self.parts) % len(self.endings)])
            if wanted is None or wanted(task):
                yield Answer(task.number, ending, -np.inf, np.inf, np.zeros(0), 0.0)


@pytest.mark.parametrize("other", [Ending.LIMIT, Ending.FAILED])
def test_a_clause_needs_all_parts_of_its_program(other: Ending) -> None:
    """Two processes share one clause by the sign of a neuron; one part alone proves nothing."""
    problem = replace(_near_case(0, -0.5), clock=Clock(time.monotonic(), 1.5))
    start = run_incomplete(problem, IncompleteSettings(method="ibp"))
    for endings in ([Ending.INFEASIBLE, other], [other, Ending.INFEASIBLE]):
        result = solve_clauses(problem, start, MipSettings(), ignore, lambda x: True, _Scripted(endings))
        assert not bool(result.proven.any()) and not result.confirmed
        problem = replace(problem, clock=Clock(time.monotonic(), 1.5))
    both = _Scripted([Ending.INFEASIBLE, Ending.INFEASIBLE])
    assert bool(solve_clauses(problem, start, MipSettings(), ignore, lambda x: True, both).proven.all())


def test_skip_unsafe_reports_no_counterexample(pool: SolverPool) -> None:
    problem = _near_case(0, 0.5)
    judged, found = judge(problem)
    result = solve_clauses(problem, start_of(problem), MipSettings(skip_unsafe=True), ignore, judged, pool)
    assert not result.confirmed and not found and not bool(result.proven.any())


def test_a_point_that_is_not_confirmed_is_no_counterexample(pool: SolverPool) -> None:
    problem = _near_case(1, 0.5)
    result = solve_clauses(problem, start_of(problem), MipSettings(), ignore, lambda x: False, pool)
    assert not result.confirmed and not bool(result.proven.any())


def test_without_a_program_it_says_so(pool: SolverPool) -> None:
    build = Builder((2,))
    layers = dense_layers([2, 3, 1], 0)
    at = build.dense(layers[0], 0)
    at = build.add(Sigmoid(), (at,), (3,))
    build.dense(layers[1], at)
    box = Box(-torch.ones(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64))
    problem = make_problem(build.graph(), box, clauses([(np.ones((1, 1)), np.zeros(1))], torch.float64))
    with pytest.raises(Unsuitable, match="Sigmoid .node n2. is not piecewise linear"):
        solve_clauses(problem, start_of(problem), MipSettings(), ignore, lambda x: True, pool)
    unbounded = _near_case(0, 0.0)
    start = start_of(unbounded)
    boxes = {i: replace(b, upper=torch.full_like(b.upper, torch.inf)) for i, b in start.intermediate.boxes.items()}
    start = replace(start, intermediate=replace(start.intermediate, boxes=boxes))
    with pytest.raises(Unsuitable, match="not finite"):
        solve_clauses(unbounded, start, MipSettings(), ignore, lambda x: True, pool)

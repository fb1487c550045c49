"""LP leaves against the MILP: all sign patterns of a small network together are the network."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from auto_LiRPA.graph.run import evaluate
from complete_verifier.bab.leaves import LeafResult, LeafSolver
from tests.bab.problems import KINDS, Setup, domains, random_case, set_up
from tests.milp import worst_violation

MOST_COLUMNS = 6  # 64 leaves


def small(kind: str) -> list[tuple[int, Setup]]:
    """Problems with a few splittable neurons."""
    found = []
    for seed in range(60):
        case = random_case(kind, seed, neurons=9)
        setup = set_up(case.problem, iterations=1)
        if 3 <= setup.layout.width <= MOST_COLUMNS:
            found.append((seed, setup))
        if len(found) == 2:
            return found
    raise AssertionError(f"too few small networks of kind {kind}")


def all_leaves(setup: Setup, clause: int) -> list[LeafResult]:
    """Every sign pattern of the splittable neurons, decided."""
    patterns = torch.tensor(list(itertools.product([-1, 1], repeat=setup.layout.width)), dtype=torch.int8)
    gen = torch.Generator().manual_seed(0)
    batch = domains(setup, torch.full((len(patterns),), clause), patterns, gen)
    solver = LeafSolver(setup.problem, setup.root, setup.layout)
    with torch.no_grad():
        return [solver.solve(batch.pick(torch.tensor([i]))) for i in range(len(batch))]


def exact_worst(kind: str, seed: int, setup: Setup, clause: int) -> float:
    net = random_case(kind, seed, neurons=9).net
    box, spec = setup.problem.region, setup.problem.clauses
    low, high = (side.double().flatten().numpy() for side in (box.lower, box.upper))  # type: ignore[attr-defined]
    real = torch.isfinite(spec.rhs[clause])
    c, rhs = spec.c[clause][real].double().numpy(), spec.rhs[clause][real].double().numpy()
    return worst_violation(net.plain, low, high, c, rhs, net.skip)


def violation(setup: Setup, clause: int, x: np.ndarray) -> float:
    """``max c . f(x) - rhs`` by plain evaluation."""
    spec = setup.problem.clauses
    y = evaluate(setup.problem.graph, torch.as_tensor(x).unsqueeze(0).to(spec.c)).flatten()
    return float((spec.c[clause] @ y - spec.rhs[clause]).amax())


@pytest.mark.parametrize("kind", KINDS)
def test_all_leaves_together_are_the_network(kind: str) -> None:
    """The least violation over all leaves is the MILP's; with thresholds just below it all leaves are closed."""
    for seed, setup in small(kind):
        exact = exact_worst(kind, seed, setup, 0)
        for margin in (-0.05, 0.05):  # exact worst violation that is asked for
            spec = setup.problem.clauses
            moved = replace(spec, rhs=spec.rhs + (exact - margin))
            problem = replace(setup.problem, clauses=moved)
            here = replace(setup, problem=problem)
            leaves = all_leaves(here, 0)
            if margin > 0:
                assert all(leaf.closed for leaf in leaves), f"{kind} {seed}: an open leaf without a counterexample"
                continue
            points = [leaf.candidate for leaf in leaves if not leaf.closed]
            assert points and all(p is not None for p in points), f"{kind} {seed}"
            box = problem.region.interval()
            found = [violation(here, 0, p) for p in points if p is not None]
            assert min(found) == pytest.approx(margin, abs=1e-4), f"{kind} {seed}: {found}"
            for p in points:
                x = torch.as_tensor(p).double()
                assert bool((x >= box.lower[0].double() - 1e-9).all() & (x <= box.upper[0].double() + 1e-9).all())


def test_an_empty_leaf_is_closed() -> None:
    """Two neurons that are the same cannot have opposite signs."""
    from auto_LiRPA.values import Box
    from tests.bab.problems import clauses, make_problem
    from tests.nets import Dense, mlp

    same = torch.tensor([[1.0], [1.0]], dtype=torch.float64)
    out = Dense(torch.ones(3, 2, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    graph = mlp([Dense(same, torch.tensor([0.0, -0.25], dtype=torch.float64)), out])
    box = Box(torch.tensor([[-1.0]], dtype=torch.float64), torch.tensor([[1.0]], dtype=torch.float64))
    # satisfied everywhere, so that only an empty leaf can be closed
    spec = clauses([(np.zeros((1, 3)), np.array([1.0]))], torch.float64)
    setup = set_up(make_problem(graph, box, spec))
    closed = [leaf.closed for leaf in all_leaves(setup, 0)]
    # signs (-, -), (-, +), (+, -), (+, +) of x and x - 0.25
    assert closed == [False, True, False, False]

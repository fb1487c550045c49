"""Splits of inputs of curves and products: covering, sound, and able to close what the root's bounds leave open."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from auto_LiRPA.bounds.backward import backward, concretize, spec_rows
from auto_LiRPA.bounds.settings import AlphaSettings, BoundSettings
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.values import Box
from complete_verifier.bab.lockstep import ALONE
from complete_verifier.bab.nonlinear_bounding import NonlinearBounder, split_points
from complete_verifier.bab.nonlinear_domains import NonlinearDomains, cut_boxes, make_sources, split_terms
from complete_verifier.bab.nonlinear_search import nonlinear_search, root_domains, splits_nonlinear
from complete_verifier.bab.settings import BabProgress, BabSettings
from complete_verifier.bab.subproblems import Numbering
from complete_verifier.incomplete.settings import IncompleteSettings
from complete_verifier.incomplete.stage import run_incomplete
from complete_verifier.problem import Clauses, Clock, Problem
from tests.attention import INPUTS, OUTPUTS, attention, run_attention
from tests.nets import dense_layers, mlp

SETTINGS = BabSettings(batch_size=16, iterations=10, lr_alpha=0.1, lr_beta=0.1, max_iterations=40)


def _region(seed: int, eps: float) -> Box:
    x = torch.randn(1, INPUTS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Box(x - eps, x + eps)


def _least(seed: int, box: Box, row: Tensor) -> float:
    """The row's least value over the box, from above: random points, then descent from the best of them."""
    network = run_attention(seed)
    share = torch.rand(4000, INPUTS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = box.lower + share * (box.upper - box.lower)
    x = x[(network(x) @ row).argsort()[:20]]
    for step in range(200):
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad((network(x) @ row).sum(), x)
        rate = 0.1 * (box.upper - box.lower) * 0.97**step
        x = torch.minimum(torch.maximum(x - rate * slope.sign(), box.lower), box.upper)
    return float((network(x.detach()) @ row).min())


# Each takes half a minute of a core: one in the short form.
SEEDS = (0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in (1, 2)))


def _problem(seed: int, eps: float, row: Tensor, rhs: float) -> Problem:
    clauses = Clauses(
        row.reshape(1, 1, -1), torch.tensor([[rhs]], dtype=torch.float64), torch.zeros(1, dtype=torch.long),
        torch.zeros(1, 1, dtype=torch.bool),
    )  # fmt: skip
    bounds = BoundSettings(alpha=AlphaSettings(iterations=5, lr_alpha=0.2))
    return Problem(
        attention(seed), _region(seed, eps), clauses, DistributedContext.single(), bounds, Clock(time.monotonic(), 600)
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_closes_what_the_root_leaves_open_and_nothing_false(seed: int) -> None:
    """A counterexample is ``row . y <= rhs``: with rhs above the least value one exists, so nothing may be closed."""
    row = torch.randn(OUTPUTS, generator=torch.Generator().manual_seed(seed + 50), dtype=torch.float64)
    least = _least(seed, _region(seed, 0.5), row)
    hopeless = _problem(seed, 0.5, row, least + 1.0)
    gap = least - float(run_incomplete(hopeless, IncompleteSettings()).lower.max())
    assert gap > 0
    provable = _problem(seed, 0.5, row, least - 0.8 * gap)
    start = run_incomplete(provable, IncompleteSettings())
    assert not bool(start.proven.any())
    found = nonlinear_search(provable, start, SETTINGS)
    assert found.closed and found.rounds >= 1, found
    false = _problem(seed, 0.5, row, least + 0.01 * gap)
    told: list[BabProgress] = []
    limited = replace(SETTINGS, max_iterations=5)
    found = nonlinear_search(false, run_incomplete(false, IncompleteSettings()), limited, told.append)
    assert told[-1].worst_bound == found.worst_bound  # of what is open, once told by the rounds and once by the store
    assert not found.closed and found.stopped_by


@pytest.mark.parametrize("seed", SEEDS)
def test_domains_hold_at_their_points(seed: int) -> None:
    """Children cover their parent, and each domain's bound holds at every input whose activations lie in it."""
    row = torch.randn(OUTPUTS, generator=torch.Generator().manual_seed(seed + 80), dtype=torch.float64)
    problem = _problem(seed, 0.4, row, 100.0)
    start = run_incomplete(problem, IncompleteSettings())
    search = NonlinearBounder(problem, start, SETTINGS, ALONE)
    domains = search.bound(root_domains(problem, start, search.real))
    share = torch.rand(2000, INPUTS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    box = _region(seed, 0.4)
    x = box.lower + share * (box.upper - box.lower)
    values = [x]
    for node in problem.graph.nodes[1:]:
        values.append(node.op.forward(*(values[i] for i in node.inputs)))
    columns = torch.cat([values[s.node].flatten(1) for s in search.sources], 1)
    truth = values[-1] @ row - 100.0
    for _ in range(4):
        domains = search.bound(domains.children(Numbering(0, len(domains))))
        inside_any = torch.zeros(len(x), dtype=torch.bool)
        for i in range(len(domains)):
            z = columns[:, domains.column[i]]
            inside = (domains.side[i] * (z - domains.point[i]) >= 0).all(1)
            inside_any |= inside
            assert (truth[inside] >= domains.lower[i] - 1e-7).all()
        assert inside_any.all()
    boxes = cut_boxes(domains, search.sources, start.intermediate, torch.zeros(len(domains), dtype=torch.long))
    for source in make_sources(problem.graph, start.intermediate):
        assert (boxes[source.node].lower <= boxes[source.node].upper).all()
    terms = split_terms(domains, search.sources, boxes).terms
    assert terms
    for source_id, term in terms.items():
        assert term.point is not None and (term.sign != 0).any()
        cut = boxes[source_id].pick(term.index)
        for z in (cut.lower, cut.upper):
            # what a multiplier adds to the bound is never above 0 on the domain, and 0 somewhere
            assert (term.sign * (term.point - z) <= 0).all()
    # multipliers of any size keep the bound sound
    grown = {k: type(t)(t.index, torch.rand_like(t.beta), t.sign, t.point) for k, t in terms.items()}
    rows = spec_rows(problem.graph, row.reshape(1, 1, -1))
    lower = concretize(
        backward(problem.graph, rows, search.relaxations(boxes), None, grown), search.region(domains)
    )
    for i in range(len(domains)):
        inside = (domains.side[i] * (columns[:, domains.column[i]] - domains.point[i]) >= 0).all(1)
        assert (truth[inside] + 100.0 >= lower[i] - 1e-7).all()


def test_children_cover_their_parent_where_splits_are_dropped() -> None:
    """Room for two splits, and three are made: the one with the least multiplier goes, never a point of the parent."""
    none, one = torch.zeros(1, 2, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    domain = NonlinearDomains(
        id=one, clause=one, depth=one, lower=none[:, 0], mix=none[:, :1], column=torch.tensor([[0, 1]]),
        side=torch.tensor([[1, -1]], dtype=torch.int8), point=torch.tensor([[-0.5, 0.5]], dtype=torch.float64),
        beta=torch.tensor([[2.0, 1.0]], dtype=torch.float64), next_column=one + 2, next_point=none[:, 0] + 0.25,
    )  # fmt: skip
    z = 2 * torch.rand(2000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1

    def inside(domains: NonlinearDomains, i: int) -> Tensor:
        return (domains.side[i] * (z[:, domains.column[i]] - domains.point[i]) >= 0).all(1)

    children = domain.children(Numbering(1, 1))
    assert children.column.tolist() == [[0, 2], [0, 2]] and children.beta.tolist() == [[2.0, 0.0], [2.0, 0.0]]
    for i, half in enumerate((z[:, 2] >= 0.25, z[:, 2] <= 0.25)):
        assert (inside(children, i) == (half & (z[:, 0] >= -0.5))).all()  # its own half of more than the parent
    narrower = replace(children, next_column=children.clause, next_point=children.point[:, 0] + 1)
    again = narrower.children(Numbering(3, 2))
    # the same side of a neuron once more: narrowed in its own place. The other side is one more split
    assert again.column[:2].tolist() == [[0, 2], [0, 2]] and again.point[:2, 0].tolist() == [0.5, 0.5]
    for i in range(2):
        assert (inside(children, i) <= (inside(again, i) | inside(again, i + 2))).all()


def test_points_and_networks() -> None:
    box = Box(torch.tensor([[-1.0, 1.0, -0.01]]), torch.tensor([[3.0, 2.0, 3.0]])).interval()
    assert split_points(box, True).tolist() == [[0.0, 1.5, pytest.approx(1.495)]]
    assert split_points(box, False).tolist() == [[1.0, 1.5, pytest.approx(1.495)]]
    row = torch.ones(OUTPUTS, dtype=torch.float64)
    problem = _problem(0, 0.1, row, 0.0)
    assert splits_nonlinear(problem)
    assert not splits_nonlinear(Problem(mlp(dense_layers([4, 5, 3], 0)), problem.region, problem.clauses,
                                        problem.context, problem.bounds, problem.clock))  # fmt: skip

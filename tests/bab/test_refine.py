"""Boxes of hidden neurons tightened by trees of their own: they hold every point, and are never looser."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from auto_LiRPA.bounds.domains.ascent import AscentSettings
from complete_verifier.bab import refine as refining
from complete_verifier.bab.domains import Domains
from complete_verifier.bab.refine import RefineSettings, can_refine, refine_boxes
from complete_verifier.bab.refined_search import RefineShare, refined_search
from complete_verifier.bab.settings import BabSettings, Tiling
from complete_verifier.problem import Clock
from tests.bab.problems import KINDS, Setup, incomplete, random_case, sample, set_up

SETTINGS = RefineSettings(
    seconds=1.5, ascent=AscentSettings(iterations=6, lr_alpha=0.2, lr_beta=0.2), tiling=Tiling(512, False), parents=128
)


def values_at(setup: Setup, x: torch.Tensor) -> list[torch.Tensor]:
    """Every node's value at inputs ``x``, by the operators' own forward rules."""
    values = [x]
    for node in setup.problem.graph.nodes[1:]:
        values.append(node.op.forward(*(values[i] for i in node.inputs)))
    return values


@pytest.mark.parametrize("kind", KINDS)
def test_refined_boxes_hold_every_point_and_are_tighter(kind: str, count: Callable[[int, int], int]) -> None:
    tightened = decided = 0
    for seed in range(count(4, 40)):
        setup = set_up(random_case(kind, seed, neurons=24).problem)
        if not can_refine(setup.problem) or setup.layout.width == 0:
            continue
        refined = refine_boxes(setup.problem, setup.root, SETTINGS)
        gen = torch.Generator().manual_seed(seed)
        values = values_at(setup, sample(setup.problem.region, 3000, gen))  # type: ignore[arg-type]
        for node, box in refined.intermediate.boxes.items():
            old = setup.root.intermediate.boxes[node]
            room = 1e-5 * (1 + box.upper.abs().amax())
            assert bool((values[node] >= box.lower - room).all() & (values[node] <= box.upper + room).all())
            assert bool((box.lower >= old.lower).all() & (box.upper <= old.upper).all())
            open_before = (old.lower < 0) & (old.upper > 0)
            tightened += int((open_before & (box.upper - box.lower < old.upper - old.lower - 1e-3)).sum())
            decided += int((open_before & ~((box.lower < 0) & (box.upper > 0))).sum())
            assert refined.intermediate.relaxations.keys() == setup.root.intermediate.relaxations.keys()
    assert tightened > 3 and decided >= 0


def test_trees_that_end_reach_the_exact_bounds() -> None:
    """With all neurons below split, a tree's least leaf is the neuron's least value: dense sampling comes near it."""
    near = 0
    for seed in range(12):
        case = random_case("mlp", seed, neurons=12)
        setup = set_up(case.problem)
        if setup.layout.width == 0 or setup.problem.graph.nodes[0].size > 3:
            continue
        refined = refine_boxes(setup.problem, setup.root, replace(SETTINGS, seconds=4.0, min_gain=0.0))
        gen = torch.Generator().manual_seed(seed)
        values = values_at(setup, sample(setup.problem.region, 20000, gen))  # type: ignore[arg-type]
        for layer in setup.layout.layers[1:]:
            box, seen = refined.intermediate.boxes[layer.source].pick(layer.index), values[layer.source].flatten(1)
            seen = seen[:, layer.index]
            # sides beyond 0 are not asked for: a tree whose leaves all lie above 0 ends
            gap = (seen.amin(0).clamp_max(0) - box.lower[0].clamp_max(0)) / (box.upper - box.lower)[0].clamp_min(1e-6)
            near += int((gap < 0.1).sum())
            assert bool((gap > -1e-4).all())
    assert near >= 5


@pytest.mark.parametrize("kind", KINDS)
def test_a_refined_search_reaches_the_exact_verdict(kind: str, count: Callable[[int, int], int]) -> None:
    """The attempt is given no time, so that the refinement's boxes decide."""
    for seed in range(count(4, 40)):
        case = random_case(kind, seed, neurons=20)
        problem = replace(case.problem, clock=Clock(time.monotonic(), 60.0))
        start = incomplete(problem)
        if bool(start.proven.all()):
            continue
        settings = BabSettings(batch_size=32, iterations=6, lr_alpha=0.1, record_ledger=True)
        found = refined_search(problem, start, settings, RefineShare(0.0, 0.02), on_candidate=lambda x: True)
        assert found.closed == case.holds, f"{kind} {seed}: {found}, exact {case.truth}"


def test_a_tree_without_leaves_says_zero_and_not_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """All leaves closed means z >= 0; claiming the leaves' own bounds would need them all to be kept."""
    seen: list[float] = []
    least = refining._Trees._least

    def spy(self: refining._Trees, leaves: Domains) -> torch.Tensor:
        found = least(self, leaves)
        seen.append(float(found.amax()))
        return found

    monkeypatch.setattr(refining._Trees, "_least", spy)
    for seed in range(6):
        setup = set_up(random_case("mlp", seed, neurons=20).problem)
        refine_boxes(setup.problem, setup.root, SETTINGS)
    assert seen and max(seen) <= 0.0


def test_a_leaf_whose_bound_is_no_number_bounds_nothing() -> None:
    """An infinity comes from sums that overflow: such a leaf is open, and its tree keeps the bound it had."""
    setup = next(s for seed in range(20) if (s := set_up(random_case("mlp", seed).problem)).layout.width > 1)
    layer = next(x for x in setup.layout.layers[1:])
    boxes = dict(setup.root.intermediate.boxes)
    box = boxes[layer.source].flat()
    neurons = ((box.lower < 0) & (box.upper > 0))[0].nonzero().squeeze(-1)
    trees = refining._Trees(setup.problem, boxes, layer, SETTINGS, neurons)
    leaves = trees.bounder.bound(trees.roots)
    for value in (torch.inf, -torch.inf, torch.nan):
        broken = replace(leaves, lower=torch.full_like(leaves.lower, value))
        assert torch.equal(torch.fmax(trees._least(broken), trees.first), trees.first), value

"""What the tests of input splitting share: searches over random small problems, domains, and coverage by leaves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from auto_LiRPA.graph.run import evaluate
from auto_LiRPA.values import Box
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.incomplete.settings import IncompleteSettings
from complete_verifier.incomplete.stage import run_incomplete
from complete_verifier.input_bab.bounding import Bounder
from complete_verifier.input_bab.domains import Domains
from complete_verifier.input_bab.groups import Groups, make_groups
from complete_verifier.input_bab.search import search_boxes
from complete_verifier.input_bab.settings import InputBabResult, InputBabSettings, Leaf
from complete_verifier.problem import Problem
from tests.bab.problems import KINDS, Case, box_around, clauses, make_problem, network
from tests.milp import worst_violation

# Inputs that move: more are no task for input splits.
MOST_MOVING = 4


def input_case(kind: str, seed: int, neurons: int = 16, regions: int = 1) -> Case:
    """Up to three clauses of up to three rows over boxes of few moving inputs, and the exact worst violations.

    Each threshold is 0.02 to 0.1 away from the exact worst violation: there the search has to work.
    """
    gen = np.random.default_rng([7, seed, KINDS.index(kind)])
    dtype = torch.float64 if seed % 4 == 0 else torch.float32
    net = network(kind, gen, dtype, neurons)
    radius = (0.5, 2.0) if kind == "cnn" else (0.1, 0.8)
    boxes = [_few_move(gen, box_around(gen, net.graph.input_shape, dtype, radius)) for _ in range(regions)]
    holds = gen.uniform() < 0.6
    rows, truth = [], []
    count = int(gen.integers(1, 4)) + regions - 1
    for number in range(count):
        box = boxes[number % regions]
        low, high = (side.double().flatten().numpy() for side in (box.lower, box.upper))
        height = int(gen.integers(1, 4))
        c = gen.normal(size=(height, 3)).astype(np.float32).astype(np.float64)
        rhs = 0.3 * gen.normal(size=height)
        margin = float((1 if holds else gen.choice([-1, 1])) * gen.uniform(0.02, 0.1))
        rhs += worst_violation(net.plain, low, high, c, rhs, net.skip) - margin
        rows.append((c, rhs))
        truth.append(margin)
    whole = Box(torch.cat([b.lower for b in boxes]), torch.cat([b.upper for b in boxes]))
    spec = clauses(rows, dtype, region=[number % regions for number in range(count)])
    return Case(make_problem(net.graph, whole, spec, seconds=60.0), net, truth)


def _few_move(gen: np.random.Generator, box: Box) -> Box:
    size = box.lower[0].numel()
    still = torch.from_numpy(gen.permutation(size)[MOST_MOVING:])
    upper = box.upper.flatten().clone()
    upper[still] = box.lower.flatten()[still]
    return Box(box.lower, upper.reshape(box.lower.shape))


FAST = InputBabSettings(batch_size=64, record_leaves=True)


def first_bounds(problem: Problem) -> IncompleteResult:
    """Interval bounds: they leave nearly everything to the search."""
    return run_incomplete(problem, IncompleteSettings(method="ibp"))


def decide(problem: Problem, settings: InputBabSettings, start: IncompleteResult | None = None) -> InputBabResult:
    """A search whose candidates are confirmed on the network itself."""
    spec = problem.clauses

    def confirm(x: np.ndarray) -> bool:
        y = evaluate(problem.graph, torch.as_tensor(x).unsqueeze(0).to(spec.c))[0].flatten()
        return bool((spec.c @ y <= spec.rhs + 1e-6).all(1).any())

    return search_boxes(problem, start or first_bounds(problem), settings, on_candidate=confirm)


def root_domains(problem: Problem, bounder: Bounder, count: int, gen: torch.Generator) -> Domains:
    """Random boxes within the regions of random groups, everything else as at the root."""
    groups = bounder.groups
    group = torch.randint(0, len(groups), (count,), generator=gen)
    region = problem.region
    assert isinstance(region, Box)
    low, high = (side.flatten(1)[groups.region[group]] for side in (region.lower, region.upper))
    a, b = (torch.rand(low.shape, generator=gen, dtype=torch.float64).to(low) for _ in range(2))
    lower, upper = low + torch.minimum(a, b) * (high - low), low + torch.maximum(a, b) * (high - low)
    return domains_of(lower, upper, group, groups, bounder)


def domains_of(lower: Tensor, upper: Tensor, group: Tensor, groups: Groups, bounder: Bounder | None = None) -> Domains:
    """Boxes ``[D, m]`` of which nothing is known."""
    count, inputs = lower.shape
    half = lower.new_zeros(count, 0 if bounder is None else bounder.half_spaces, inputs + 1)
    half[..., -1] = -1
    return Domains(
        id=torch.arange(count),
        group=group,
        depth=torch.zeros(count, dtype=torch.int64),
        lower=lower,
        upper=upper,
        open=groups.clause[group] >= 0,
        margin=lower.new_full((count, groups.shape[0]), -torch.inf),
        order=torch.full((count, inputs), -1, dtype=torch.int16),
        phase=torch.zeros(count, 0 if bounder is None else bounder.phases, dtype=torch.int8),
        half=half,
    )


def all_groups(problem: Problem, most: int = 8) -> Groups:
    """Groups of all clauses."""
    return make_groups(problem.clauses, torch.ones(len(problem.clauses.region), dtype=torch.bool), most)


def points_in(lower: Tensor, upper: Tensor, count: int, gen: torch.Generator) -> Tensor:
    """Points ``[count, D, m]``, a third of them corners."""
    share = torch.rand(count, *lower.shape, generator=gen, dtype=torch.float64).to(lower)
    corner = (torch.arange(count) % 3 == 0).reshape(-1, 1, 1)
    share = torch.where(corner, share.round(), share)
    return torch.minimum(torch.maximum(lower + share * (upper - lower), lower), upper)


def covers(leaves: Sequence[Leaf], clause: int, lower: Tensor, upper: Tensor) -> bool:
    """Whether the leaves of a clause fill the box ``[m]``: all inside, volumes adding up, and no point missed.

    All numbers are binary fractions; volumes are summed exactly.
    """
    mine = [leaf for leaf in leaves if leaf.clause == clause]
    if not mine:
        return False
    a, b = (torch.stack([getattr(leaf, side) for leaf in mine]).double().numpy() for side in ("lower", "upper"))
    low, high = lower.double().numpy(), upper.double().numpy()
    if (a < low).any() or (b > high).any() or (a > b).any():
        return False
    sides = np.flatnonzero(high > low)
    if sum(_volume(x, y) for x, y in zip(a[:, sides], b[:, sides], strict=True)) != _volume(low[sides], high[sides]):
        return False
    points = np.random.default_rng(0).uniform(low, high, (200, len(low)))
    return all(((a <= x) & (x <= b)).all(1).any() for x in np.clip(points, low, high))


def _volume(lower: np.ndarray, upper: np.ndarray) -> Fraction:
    sides = (Fraction(y) - Fraction(x) for x, y in zip(lower.tolist(), upper.tolist(), strict=True))
    return math.prod(sides, start=Fraction(1))


def without_clip(settings: InputBabSettings) -> InputBabSettings:
    """The same settings with whole boxes."""
    return replace(settings, clip=replace(settings.clip, enabled=False))

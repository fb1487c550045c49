"""Bounds of domains: never above what a point of the domain really gives, whatever signs, multipliers and weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from auto_LiRPA.graph.run import evaluate
from complete_verifier.bab.domains import Domains
from complete_verifier.branching.layout import domain_boxes, root_columns
from tests.bab.problems import KINDS, Setup, column_values, domains, random_case, sample, set_up

ROUNDING = {torch.float32: 2e-5, torch.float64: 1e-10}
POINTS = 600


def signs_seen(setup: Setup, x: Tensor, count: int, gen: torch.Generator) -> Tensor:
    """Signs ``[count, U]`` of random neurons as they are at random points: such a domain is not empty."""
    at = torch.randint(0, len(x), (count,), generator=gen)
    here = column_values(setup, x[at])
    share = torch.rand(count, 1, generator=gen)
    chosen = torch.rand(here.shape, generator=gen) < share
    return torch.where(chosen, torch.where(here >= 0, 1, -1), 0).to(torch.int8)


def inside(setup: Setup, sign: Tensor, x: Tensor) -> Tensor:
    """Which points ``[N]`` lie in which domains ``[D]``: ``[D, N]``."""
    z = column_values(setup, x)
    return ((z.unsqueeze(0) * sign.unsqueeze(1)) >= 0).all(2)


def gaps(setup: Setup, batch: Domains, x: Tensor) -> Tensor:
    """``c . y - rhs`` of each domain's clause at each point, ``[D, N, R]``; -inf on padding rows."""
    y = evaluate(setup.problem.graph, x).flatten(1)
    spec = setup.problem.clauses.pick(batch.clause)
    return torch.einsum("dro,no->dnr", spec.c, y) - spec.rhs.unsqueeze(1)


def cases(kind: str, seeds: range, general: bool = False) -> list[tuple[Setup, Tensor, torch.Generator]]:
    """Problems with something to split, and points of their boxes."""
    found = []
    for seed in seeds:
        setup = set_up(random_case(kind, seed, neurons=20).problem, general=general)
        gen = torch.Generator().manual_seed(seed)
        if setup.layout.width:
            found.append((setup, sample(setup.problem.region, POINTS, gen), gen))  # type: ignore[arg-type]
    assert len(found) >= 2
    return found


def batch_of(setup: Setup, x: Tensor, gen: torch.Generator, count: int = 24) -> Domains:
    sign = signs_seen(setup, x, count, gen)
    clause = torch.randint(0, len(setup.problem.clauses.region), (count,), generator=gen)
    return domains(setup, clause, sign, gen)


@pytest.mark.parametrize("kind", KINDS)
def test_one_pass_with_any_weights_and_multipliers(kind: str, count: Callable[[int, int], int]) -> None:
    """Slopes, multipliers and row weights at random: the weighted sum at every point of the domain is no less."""
    met = 0
    for setup, x, gen in cases(kind, range(count(5, 60))):
        batch = batch_of(setup, x, gen)
        random = torch.rand(batch.value.shape, generator=gen).to(batch.value)
        batch = replace(batch, value=torch.where(batch.sign == 0, random, batch.value))
        lower = setup.bounder.quick(batch)
        value = (torch.nan_to_num(gaps(setup, batch, x), neginf=0.0) * batch.mix.unsqueeze(1)).sum(2)
        met += check(setup, batch, lower, value, x)
    assert met > 100, "hardly any point lay in any domain"


@pytest.mark.parametrize("general", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_optimised_bounds(kind: str, general: bool, count: Callable[[int, int], int]) -> None:
    """At every point of the domain some row of the clause reaches the bound, so a positive one refutes it there."""
    met = 0
    for setup, x, gen in cases(kind, range(count(5, 60)), general):
        batch = batch_of(setup, x, gen)
        found = setup.bounder.bound(batch)
        assert torch.equal(found.id, batch.id) and torch.equal(found.sign, batch.sign)
        met += check(setup, batch, found.lower, gaps(setup, batch, x).amax(2), x)
        assert bool((found.lower >= setup.bounder.quick(batch) - 1e-6).all()), "the first pass already gives that much"
    assert met > 100


def check(setup: Setup, batch: Domains, lower: Tensor, value: Tensor, x: Tensor) -> int:
    """``value`` ``[D, N]`` is no less than ``lower`` ``[D]`` on the domains' own points; how many those are."""
    member = inside(setup, batch.sign, x)
    room = ROUNDING[lower.dtype] * (1 + value.abs())
    wrong = member & (lower.unsqueeze(1) > value + room)
    assert not bool(wrong.any()), f"{int(wrong.sum())} points lie below their domain's bound"
    return int(member.sum())


def test_a_bound_never_gets_looser() -> None:
    (setup, x, gen), *_ = cases("mlp", range(6))
    batch = batch_of(setup, x, gen)
    once = setup.bounder.bound(batch)
    hopeless = replace(once, value=torch.where(once.sign == 0, torch.rand_like(once.value), once.value + 5.0))
    assert bool((setup.bounder.bound(hopeless).lower >= once.lower).all())
    # a NaN is replaced, and never replaces
    unknown = replace(batch, lower=torch.full_like(batch.lower, torch.nan))
    assert bool(setup.bounder.bound(unknown).lower.isfinite().all())


def test_domain_tiles_change_nothing() -> None:
    """24 domains in tiles of 5 (the last one ragged) as in one."""
    (setup, x, gen), *_ = cases("residual", range(0, 12, 4))  # float64
    assert setup.problem.clauses.c.dtype == torch.float64
    batch = batch_of(setup, x, gen)
    whole, quick = setup.bounder.bound(batch), setup.bounder.quick(batch)
    small = set_up(setup.problem, height=5).bounder
    parts = small.bound(batch)
    assert torch.equal(parts.id, whole.id)
    assert torch.allclose(parts.lower, whole.lower, rtol=1e-6, atol=1e-8)
    assert torch.allclose(small.quick(batch), quick, rtol=1e-12)


def test_boxes_of_a_domain_hold_its_points() -> None:
    """Split boxes are the root's with the split side cut at 0; every point of the domain lies in them."""
    for setup, x, gen in cases("residual", range(5)):
        sign = signs_seen(setup, x, 16, gen)
        boxes = domain_boxes(setup.layout, setup.root.intermediate, torch.zeros(16, dtype=torch.long), sign)
        z, member = column_values(setup, x), inside(setup, sign, x)
        for layer in setup.layout.layers:
            part, own = boxes[layer.source].pick(layer.index), setup.layout.of(sign, layer)
            assert bool((part.lower[own > 0] >= 0).all()) and bool((part.upper[own < 0] <= 0).all())
            value, room = setup.layout.of(z, layer).unsqueeze(0), 1e-5
            held = (value >= part.lower.unsqueeze(1) - room) & (value <= part.upper.unsqueeze(1) + room)
            assert bool(held.all(2)[member].all())


def test_splits_and_multipliers_help() -> None:
    """Splits tighten bounds by their boxes, and again by their multipliers: neither is there for nothing."""
    by_boxes = by_multipliers = 0
    for setup, x, gen in cases("mlp", range(5)):
        batch = batch_of(setup, x, gen)
        batch = replace(batch, value=torch.where(batch.sign == 0, batch.value, 0.0))
        fixed = set_up(setup.problem, lr_beta=0.0).bounder
        root = fixed.bound(replace(batch, sign=torch.zeros_like(batch.sign))).lower
        boxes, both = fixed.bound(batch).lower, setup.bounder.bound(batch).lower
        by_boxes += int((boxes > root + 1e-3).sum())
        by_multipliers += int((both > boxes + 1e-3).sum())
    assert by_boxes > 10 and by_multipliers > 10


@pytest.mark.parametrize("kind", KINDS)
def test_the_lean_way_gives_what_the_general_one_gives(kind: str, count: Callable[[int, int], int]) -> None:
    """Two implementations of the same mathematics: one pass, the facts for branching, and eight iterations."""
    for seed in range(count(6, 60)):
        problem = random_case(kind, seed, neurons=20).problem
        lean, general = set_up(problem), set_up(problem, general=True)
        if lean.layout.width == 0:
            continue
        gen = torch.Generator().manual_seed(seed)
        batch = batch_of(lean, sample(problem.region, POINTS, gen), gen)  # type: ignore[arg-type]
        room = 1e-9 if lean.problem.clauses.c.dtype == torch.float64 else 1e-4
        assert torch.allclose(lean.bounder.quick(batch), general.bounder.quick(batch), rtol=room, atol=room)
        a, b = lean.bounder.facts(batch), general.bounder.facts(batch)
        assert torch.allclose(a.coef, b.coef, rtol=room, atol=room)
        assert torch.equal(a.lower, b.lower) and torch.equal(a.upper, b.upper)
        if lean.problem.clauses.c.dtype == torch.float64:  # in float32 the paths of two optimisations part
            one, other = lean.bounder.bound(batch).lower, general.bounder.bound(batch).lower
            # row weights of a domain that is proved go on in one and rest in the other
            open_ = ~lean.bounder.proven(batch, one)
            assert torch.equal(open_, ~general.bounder.proven(batch, other))
            assert torch.allclose(one[open_], other[open_], rtol=1e-6, atol=1e-7)


def test_boxes_of_their_own_tighten_a_domain() -> None:
    """Domains may carry tighter boxes than the root's: sampled points still obey, and bounds get better."""
    better = 0
    for setup, x, gen in cases("mlp", range(6)):
        batch = batch_of(setup, x, gen)
        z, member = column_values(setup, x), inside(setup, batch.sign, x)
        root = root_columns(setup.layout, setup.root.intermediate)
        seen = torch.where(member.unsqueeze(2), z.unsqueeze(0), torch.nan)
        # half-way between what the domain's points show and the root's box: tighter, and true for these points
        least, most = seen.nan_to_num(torch.inf).amin(1), seen.nan_to_num(-torch.inf).amax(1)
        low = torch.nan_to_num(torch.fmin((least + root.lower) / 2, root.upper), posinf=0.0)
        high = torch.nan_to_num(torch.fmax((most + root.upper) / 2, root.lower), neginf=0.0)
        some = member.any(1, keepdim=True)
        low, high = torch.where(some, low, root.lower), torch.where(some, high, root.upper)
        own = replace(batch, box_lower=low, box_upper=high)
        found, plain = setup.bounder.bound(own), setup.bounder.bound(batch)
        check(setup, own, found.lower, gaps(setup, own, x).amax(2), x)
        better += int((found.lower > plain.lower + 1e-4).sum())
    assert better > 10

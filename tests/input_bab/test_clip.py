"""Clipping never loses a point that a counterexample could be, whatever the rounding; the dual bound is exact."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from auto_LiRPA.values import Box
from complete_verifier.input_bab.clip import _outward, clip, half_spaces, least_value
from complete_verifier.input_bab.region import CutBox
from tests.input_bab.cases import all_groups, domains_of, input_case, points_in


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_point_of_the_half_spaces_is_lost(dtype: torch.dtype, iterations: int) -> None:
    """Rows are evaluated in exact float64 arithmetic of float32 numbers; the hull is over the open clauses."""
    gen = torch.Generator().manual_seed(0)
    groups = next(g for g in (all_groups(input_case("mlp", seed).problem) for seed in range(20)) if g.shape[0] > 1)
    count, g, r, m = 200, groups.shape[0], 3, 3
    lower = torch.randn(count, m, generator=gen).to(dtype)
    upper = lower + torch.rand(count, m, generator=gen).to(dtype)
    domains = domains_of(lower, upper, torch.zeros(count, dtype=torch.int64), groups)
    domains = replace(domains, open=torch.rand(count, g, generator=gen) < 0.8)
    coef = torch.randn(count, g, r, m, generator=gen).to(dtype) * (torch.rand(count, g, r, m, generator=gen) < 0.8)
    x = points_in(lower, upper, 300, gen)
    value = torch.einsum("dgrm,ndm->ndgr", coef.double(), x.double())
    constant = (-value.mean(0) + 0.3 * torch.randn(count, g, r, generator=gen)).to(dtype)
    real = torch.rand(count, g, r, generator=gen) < 0.9
    half = half_spaces(coef, constant, real, lower, upper)
    clipped, empty = clip(domains, half, iterations)
    inside = ((value + constant.double() <= 0) | ~real).all(-1)  # [N, D, G]: may be a counterexample to that clause
    assert not bool((inside & empty).any()), "a clause was refuted that a point satisfies"
    needed = (inside & domains.open).any(-1)
    kept = ((x >= clipped.lower) & (x <= clipped.upper)).all(-1)
    assert bool((kept | ~needed).all()), "a point was lost"
    assert bool((clipped.lower >= lower).all() and (clipped.upper <= upper).all())
    assert float((clipped.upper - clipped.lower).prod(1).sum()) < 0.9 * float((upper - lower).prod(1).sum())
    assert 0 < int(empty.sum()) < empty.numel()


def test_rounding_of_the_passes_is_allowed_for() -> None:
    """A row whose exact zero lies on an end of the box: errors of a few units in the last place lose nothing."""
    groups = all_groups(input_case("mlp", 2).problem)
    lower, upper = torch.tensor([[100.0, -1.0]]), torch.tensor([[101.0, 1.0]])
    domains = domains_of(lower, upper, torch.zeros(1, dtype=torch.int64), groups)
    g = groups.shape[0]
    coef = torch.tensor([[1.0, 0.0]]).expand(1, g, 1, 2)
    for error in (1, 3):
        # the true constant is -100; the pass rounded it up: all points would be above 0
        constant = torch.full((1, g, 1), -100.0 + error * 7.7e-6)
        half = half_spaces(coef, constant, torch.ones(1, g, 1, dtype=torch.bool), lower, upper)
        clipped, empty = clip(domains, half, 1)
        assert not bool(empty.any()) and float(clipped.lower[0, 0]) == 100.0 and float(clipped.upper[0, 0]) >= 100.0


def test_ends_of_boxes_are_rounded_outwards() -> None:
    gen = torch.Generator().manual_seed(3)
    value = torch.randn(500, generator=gen, dtype=torch.float64)
    like = torch.zeros(500)
    low, high = _outward(value, like, down=True), _outward(value, like, down=False)
    assert low.dtype == torch.float32
    assert bool((low.double() <= value).all() and (high.double() >= value).all())
    assert bool((torch.nextafter(low, low + 1) >= high).all()), "further than the next number"


def test_nothing_known_clips_nothing() -> None:
    groups = all_groups(input_case("mlp", 2).problem)
    lower, upper = torch.zeros(3, 2), torch.ones(3, 2)
    domains = domains_of(lower, upper, torch.zeros(3, dtype=torch.int64), groups)
    g = groups.shape[0]
    coef, constant = torch.ones(3, g, 2, 2), torch.full((3, g, 2), 5.0)
    real = torch.ones(3, g, 2, dtype=torch.bool)
    real[0] = False
    coef[1] = torch.nan
    constant[2] = torch.nan
    clipped, empty = clip(domains, half_spaces(coef, constant, real, lower, upper), 2)
    assert not bool(empty.any())
    assert torch.equal(clipped.lower, lower) and torch.equal(clipped.upper, upper)


def test_a_constant_row_that_cannot_hold_refutes() -> None:
    groups = all_groups(input_case("mlp", 2).problem)
    lower, upper = torch.zeros(1, 2), torch.ones(1, 2)
    domains = domains_of(lower, upper, torch.zeros(1, dtype=torch.int64), groups)
    g = groups.shape[0]
    for constant, expected in ((0.5, True), (-0.5, False)):
        real = torch.ones(1, g, 1, dtype=torch.bool)
        half = half_spaces(torch.zeros(1, g, 1, 2), torch.full((1, g, 1), constant), real, lower, upper)
        assert bool(clip(domains, half, 1)[1].all()) is expected


@pytest.mark.parametrize("inputs", [1, 2, 5])
def test_one_half_space_is_bounded_exactly(inputs: int) -> None:
    """Against an LP: with one constraint the dual step is exact; with two it is sound."""
    gen = np.random.default_rng(inputs)
    compared = 0
    for _ in range(30):
        coef, a = gen.normal(size=inputs), gen.normal(size=(2, inputs))
        center, radius = gen.normal(size=inputs), gen.uniform(0, 1, size=inputs)
        d = -(a @ center) + gen.normal(size=2) * 0.5
        bounds = list(zip(center - radius, center + radius, strict=True))
        half = torch.from_numpy(np.concatenate([a, d[:, None]], 1))

        o, c, r = (torch.from_numpy(v)[None] for v in (coef, center, radius))
        ours = [float(least_value(o, torch.zeros_like(o[:, 0]), c, r, half[None, :rows])) for rows in (1, 2)]
        one = linprog(coef, A_ub=a[:1], b_ub=-d[:1], bounds=bounds, method="highs")
        if one.status == 0:
            assert ours[0] == pytest.approx(one.fun, abs=1e-7)
            compared += 1
        both = linprog(coef, A_ub=a, b_ub=-d, bounds=bounds, method="highs")
        if both.status == 0:
            assert ours[1] <= both.fun + 1e-7
    assert compared > 10


def test_a_cut_box_bounds_shared_and_single_rows_alike() -> None:
    gen = torch.Generator().manual_seed(1)
    box = Box(torch.zeros(3, 2, 2), torch.ones(3, 2, 2))
    half = torch.randn(3, 2, 5, generator=gen)
    cut = CutBox(box, half)
    coef = torch.randn(1, 4, 2, 2, generator=gen)
    shared = cut.minimum(coef)
    torch.testing.assert_close(shared, cut.minimum(coef.expand(3, -1, -1, -1)))
    assert bool((shared >= box.minimum(coef) - 1e-6).all()) and not torch.equal(shared, box.minimum(coef))
    part = cut.pick(torch.tensor([2]))
    torch.testing.assert_close(part.minimum(coef), shared[2:])

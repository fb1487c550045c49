"""Bounds over a box and half-spaces: never above the linear program's optimum, and near it for few half-spaces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from complete_verifier.bab.clip_dual import (
    HalfSpaces,
    Objectives,
    ascend,
    best_multiplier,
    bound_below,
    evaluate,
    shrink_box,
)

SHARE = {torch.float32: 8 * torch.finfo(torch.float32).eps, torch.float64: 1e-12}


@dataclass(frozen=True)
class Instance:
    """Random objectives, half-spaces (most of which cut the box) and boxes."""

    goals: Objectives
    limits: HalfSpaces
    center: Tensor
    radius: Tensor

    @property
    def share(self) -> float:
        return SHARE[self.center.dtype]

    def bound(self) -> Tensor:
        return bound_below(self.goals, self.limits, self.center, self.radius, self.share)


def instance(seed: int, limits: int, dtype: torch.dtype, goals: int = 5, count: int = 3) -> Instance:
    """Zero coefficients, inputs that do not move, padding rows, parallel rows and goals: all of them now and then."""
    gen = torch.Generator().manual_seed(seed)
    n = int(torch.randint(1, 9, (1,), generator=gen))

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=gen, dtype=torch.float64)

    center, radius = rand(count, n), rand(count, n).abs()
    radius[torch.rand(radius.shape, generator=gen) < 0.1] = 0
    coef, goal = rand(count, limits, n), rand(count, goals, n)
    coef[torch.rand(coef.shape, generator=gen) < 0.2] = 0
    goal[torch.rand(goal.shape, generator=gen) < 0.2] = 0
    if seed % 5 == 0:
        goal[:, 0] = -2 * coef[:, 0]
    if seed % 7 == 0 and limits > 1:
        coef[:, 1] = coef[:, 0]
    reach = (coef.abs() * radius.unsqueeze(1)).sum(2)
    bias = -(coef * center.unsqueeze(1)).sum(2) + reach * (2 * torch.rand(count, limits, generator=gen) - 1.1)
    if seed % 3 == 0:
        coef[:, -1], bias[:, -1] = 0, 0
    offset = rand(count, goals)
    far = (center.abs() + radius).unsqueeze(2)
    scale = bias.abs() + (coef.abs() @ far).squeeze(2)
    goal_scale = offset.abs() + (goal.abs() @ far).squeeze(2)
    parts = (t.to(dtype) for t in (goal, offset, goal_scale, coef, bias, scale, center, radius))
    goal, offset, goal_scale, coef, bias, scale, center, radius = parts
    return Instance(Objectives(goal, offset, goal_scale), HalfSpaces(coef, bias, scale), center, radius)


def optimum(case: Instance, domain: int, goal: int) -> float:
    """The linear program's exact least value; +inf where no point is feasible."""
    low = (case.center - case.radius)[domain].double().numpy()
    high = (case.center + case.radius)[domain].double().numpy()
    found = linprog(
        case.goals.coef[domain, goal].double().numpy(),
        A_ub=case.limits.coef[domain].double().numpy(),
        b_ub=-case.limits.bias[domain].double().numpy(),
        bounds=list(zip(low, high, strict=True)),
        method="highs",
    )
    if found.status == 2:
        return np.inf
    assert found.status == 0
    return float(found.fun) + float(case.goals.bias[domain, goal])


def over_the_box(case: Instance) -> Tensor:
    """Least values without the half-spaces ``[D, J]``."""
    coef = case.goals.coef
    middle = (coef @ case.center.unsqueeze(2)).squeeze(2) + case.goals.bias
    return middle - (coef.abs() @ case.radius.unsqueeze(2)).squeeze(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_never_above_the_linear_program(dtype: torch.dtype, count: Callable[[int, int], int]) -> None:
    gained = close = total = 0
    for seed in range(count(24, 2000)):
        case = instance(seed, 1 + seed % 6, dtype)
        found, plain = case.bound(), over_the_box(case)
        slack = 2 * case.share * (case.goals.scale + 1)
        assert bool((found >= plain - 50 * slack).all()), "half-spaces must not loosen a bound"
        for domain in range(3):
            for goal in range(5):
                exact = optimum(case, domain, goal)
                if not np.isfinite(exact):
                    continue  # no point is feasible: every bound is right
                assert float(found[domain, goal]) <= exact + 1e-7 * (1 + abs(exact)), f"seed {seed}"
                if exact < float(plain[domain, goal]) + 1e-3:
                    continue
                total += 1
                share = (float(found[domain, goal]) - float(plain[domain, goal])) / (exact - float(plain[domain, goal]))
                gained += share > 0.5
                close += share > 0.95
    assert total > 60
    assert gained > 0.85 * total, f"{gained} of {total} gain at least half of what there is to gain"
    assert close > 0.6 * total, f"{close} of {total} come within 5 percent"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_half_space_is_exact(dtype: torch.dtype) -> None:
    tolerance = 1e-4 if dtype == torch.float32 else 1e-8
    moved = 0
    for seed in range(10):
        case = instance(seed, 1, dtype)
        found = case.bound()
        for domain in range(3):
            for goal in range(5):
                exact = optimum(case, domain, goal)
                if np.isfinite(exact):
                    assert float(found[domain, goal]) == pytest.approx(exact, rel=tolerance, abs=tolerance), seed
                    moved += exact > float(over_the_box(case)[domain, goal]) + 1e-3
    assert moved > 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_multipliers_are_sound(dtype: torch.dtype) -> None:
    """Also absurd ones: sampled feasible points are never below the bound."""
    feasible = 0
    for seed in range(30):
        gen = torch.Generator().manual_seed(seed)
        case = instance(seed, 3, dtype)
        size = 10.0 ** torch.randint(-3, 7, (3, 5, 3), generator=gen)
        beta = torch.rand(3, 5, 3, generator=gen, dtype=torch.float64) * size
        beta = torch.where(torch.rand(beta.shape, generator=gen) < 0.2, -beta, beta)
        found = evaluate(case.goals, case.limits, case.center, case.radius, beta.to(dtype), case.share).double()
        x = case.center.double().unsqueeze(1) + case.radius.double().unsqueeze(1) * (
            2 * torch.rand(3, 400, case.center.shape[1], generator=gen, dtype=torch.float64) - 1
        )
        inside = ((x @ case.limits.coef.double().mT + case.limits.bias.double().unsqueeze(1)) <= 0).all(2)
        value = x @ case.goals.coef.double().mT + case.goals.bias.double().unsqueeze(1)
        assert bool((value >= found.unsqueeze(1))[inside].all())
        feasible += int(inside.sum())
    assert feasible > 1000


def test_the_best_multiplier_is_the_best_of_a_fine_grid() -> None:
    for seed in range(60):
        gen = torch.Generator().manual_seed(seed)
        n = int(torch.randint(1, 7, (1,), generator=gen))
        total, row = (torch.randn(n, generator=gen, dtype=torch.float64) for _ in range(2))
        radius = torch.rand(n, generator=gen, dtype=torch.float64)
        if seed % 3 == 0:
            row[0], total[-1] = 0, 0
        weight = row.abs() * radius
        reach = weight.sum()
        middle = reach * (2 * torch.rand((), generator=gen, dtype=torch.float64) - 1.2)

        def value(
            beta: Tensor, total: Tensor = total, row: Tensor = row, radius: Tensor = radius, middle: Tensor = middle
        ) -> Tensor:
            return beta * middle - ((total + beta.unsqueeze(-1) * row).abs() * radius).sum(-1)

        best = best_multiplier(total, row, weight, middle, reach)
        grid = torch.linspace(0, 50, 20001, dtype=torch.float64)
        assert float(best) >= 0
        assert float(value(best)) >= float(value(grid).max()) - 1e-9


def test_wide_and_narrow_devices_take_the_same_steps() -> None:
    """On a GPU nothing is picked out; the values are those of the other way."""
    for seed in range(20):
        case = instance(seed, 4, torch.float64)
        beta = ascend(case.goals.coef, case.limits, case.center, case.radius)
        middle, reach = case.limits.levels(case.center, case.radius)
        total = case.goals.coef.clone()
        for k in range(4):
            row = case.limits.coef[:, k].unsqueeze(1)
            weight = row.abs() * case.radius.unsqueeze(1)
            step = best_multiplier(total, row, weight, middle[:, k].unsqueeze(1), reach[:, k].unsqueeze(1))
            step = torch.where(((reach[:, k] > 0) & (middle[:, k] <= reach[:, k])).unsqueeze(1), step, 0.0)
            gains = middle[:, k].unsqueeze(1) > (total.sign() @ (row * case.radius.unsqueeze(1)).mT).squeeze(2)
            step = torch.where(gains, step, 0.0)
            torch.testing.assert_close(step, beta[:, :, k], rtol=1e-9, atol=1e-12)
            total = total + step.unsqueeze(2) * row


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_cut_box_holds_all_feasible_points_and_is_tight(dtype: torch.dtype) -> None:
    cut = 0
    for seed in range(12):
        alone = seed % 2 == 1
        case = instance(seed, 1 if alone else 3, dtype)
        low, high = shrink_box(case.limits, case.center, case.radius, case.share)
        n = case.center.shape[1]
        tolerance = 1e-4 if dtype == torch.float32 else 1e-7
        for domain in range(3):
            for i in range(n):
                for sign, got in ((1.0, low[domain, i]), (-1.0, -high[domain, i])):
                    axis = torch.zeros_like(case.goals.coef)
                    axis[:, :, i] = sign
                    goals = Objectives(axis, torch.zeros_like(case.goals.bias), case.goals.scale)
                    exact = optimum(Instance(goals, case.limits, case.center, case.radius), domain, 0)
                    assert float(got) <= exact + 1e-9
                    if alone and np.isfinite(exact):
                        assert float(got) == pytest.approx(exact, abs=tolerance)
                        cut += exact > sign * float(case.center[domain, i]) - float(case.radius[domain, i]) + 1e-3
    assert cut > 5


def test_half_spaces_that_overflow_say_nothing() -> None:
    case = instance(1, 2, torch.float32)
    case.limits.coef[:, 0], case.limits.bias[:, 0] = 3e38, -3e38
    case.goals.coef[:, 0] = 3e38
    found = case.bound()
    assert not bool(found.isnan().any())
    assert bool((found[:, 1:] >= over_the_box(case)[:, 1:] - 1e-3).all())

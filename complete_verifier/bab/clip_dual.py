"""Linear functions bounded from below over a box and half-spaces, by coordinate ascent on the Lagrangian dual.

For ``min o.x + e`` over ``|x - c| <= r`` and ``a_k . x + b_k <= 0`` every ``beta >= 0`` gives a lower bound:

    min_x  o.x + e  >=  min_x  (o + sum_k beta_k a_k) . x + e + sum_k beta_k b_k
                     =  v . c - |v| . r + e + sum_k beta_k b_k          with v = o + sum_k beta_k a_k,

because on the feasible set ``beta_k (a_k . x + b_k) <= 0`` and dropping the half-spaces afterwards only adds points.
So no step has to be right for the result to be sound: the bound is evaluated from the final ``beta`` alone, in float64,
less a share of all magnitudes that were added up (source: clip-and-verify, interface.md, section 7.9).

Shapes: D problems groups (domains), J objectives and M half-spaces each, n variables.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class HalfSpaces:
    """``coef . x + bias <= 0``: ``[D, M, n]``, ``[D, M]``; ``scale`` ``[D, M]``: magnitudes a row adds up.

    Padding is a zero row.
    """

    coef: Tensor
    bias: Tensor
    scale: Tensor

    def levels(self, center: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        """Value at the centre and reach over the box: both ``[D, M]``."""
        middle = (self.coef @ center.unsqueeze(-1)).squeeze(-1) + self.bias
        return middle, (self.coef.abs() @ radius.unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True, slots=True)
class Objectives:
    """``coef . x + bias`` to be bounded from below: ``[D, J, n]``, ``[D, J]``; ``scale`` ``[D, J]``."""

    coef: Tensor
    bias: Tensor
    scale: Tensor


def bound_below(goals: Objectives, limits: HalfSpaces, center: Tensor, radius: Tensor, share: float) -> Tensor:
    """Lower bounds ``[D, J]`` over the boxes ``center +- radius`` ``[D, n]`` and the half-spaces, rounded down.

    Args:
        share: part of all magnitudes that is taken off for rounding, in the rows themselves too.
    """
    beta = ascend(goals.coef, limits, center, radius)
    return evaluate(goals, limits, center, radius, beta, share)


def ascend(coef: Tensor, limits: HalfSpaces, center: Tensor, radius: Tensor) -> Tensor:
    """Multipliers ``[D, J, M]``: from 0, each in turn goes to its best value with the others held."""
    middle, reach = limits.levels(center, radius)
    total = coef.clone()
    betas = []
    for k in range(limits.bias.shape[1]):
        row = limits.coef[:, k]
        step = _step(total, row, middle[:, k], reach[:, k], radius)
        total.addcmul_(step.unsqueeze(2), row.unsqueeze(1))
        betas.append(step)
    return torch.stack(betas, 2) if betas else coef.new_zeros(*coef.shape[:2], 0)


def _step(total: Tensor, row: Tensor, middle: Tensor, reach: Tensor, radius: Tensor) -> Tensor:
    """Best multiplier ``[D, J]`` of one half-space, `best_multiplier` for objectives that it improves at all."""
    weight = row.abs() * radius
    # derivative at 0: positive where the objective's minimiser breaks the half-space
    rise = middle.unsqueeze(1) - (total.sign() @ (row * radius).unsqueeze(2)).squeeze(2)
    # a zero row says nothing, and one that no point of the box meets has no best multiplier
    useful = ((reach > 0) & (middle <= reach)).unsqueeze(1) & (rise > 0)
    if total.device.type != "cpu":  # picking some would make the device wait
        found = best_multiplier(total, row.unsqueeze(1), weight.unsqueeze(1), middle.unsqueeze(1), reach.unsqueeze(1))
        return torch.where(useful, found, 0.0)
    domain, goal = useful.nonzero(as_tuple=True)
    step = torch.zeros_like(rise)
    step[domain, goal] = best_multiplier(
        total[domain, goal], row[domain], weight[domain], middle[domain], reach[domain]
    )
    return step


def best_multiplier(total: Tensor, row: Tensor, weight: Tensor, middle: Tensor, reach: Tensor) -> Tensor:
    """Where ``beta middle - sum_i |total_i + beta row_i| r_i`` is largest over beta >= 0: ``[...]``.

    The function is concave and piecewise linear. Its slope is ``middle + reach`` far to the left and falls by twice
    ``weight_i = |row_i| r_i`` at each breakpoint ``-total_i / row_i``; the first one where it is not positive any more
    is the maximum.

    Args:
        total, row, weight: ``[..., n]``; ``middle``, ``reach``: ``[...]``, reach the sum of the weights.
    """
    breaks = torch.where(row != 0, -total / row, torch.inf)
    breaks, order = _sorted(breaks)
    passed = weight.expand_as(breaks).gather(-1, order).cumsum(-1)
    goal = ((middle + reach) / 2).expand(breaks.shape[:-1]).unsqueeze(-1)
    at = torch.searchsorted(passed, goal.contiguous()).clamp_max(breaks.shape[-1] - 1)
    best = breaks.gather(-1, at).squeeze(-1)
    # breakpoints at infinity are those of inputs without a share; there, and where sums overflowed, nothing is gained
    return torch.where(torch.isfinite(best), best, 0.0).clamp_min(0)


def _sorted(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values in order along the last axis, and where they come from; on a CPU by NumPy, three times as fast."""
    if values.device.type != "cpu":
        sorted_values, order = values.sort(-1)
        return sorted_values, order
    order = torch.from_numpy(np.argsort(values.numpy(), axis=-1))
    return values.gather(-1, order), order


def evaluate(
    goals: Objectives, limits: HalfSpaces, center: Tensor, radius: Tensor, beta: Tensor, share: float
) -> Tensor:
    """The dual bound at any ``beta`` ``[D, J, M]``, in float64 and rounded down; -inf where it is no number."""
    beta = beta.double().clamp_min(0)
    total = torch.baddbmm(goals.coef.double(), beta, limits.coef.double())
    value = (total @ center.double().unsqueeze(2)).squeeze(2) - (total.abs() @ radius.double().unsqueeze(2)).squeeze(2)
    value = value + goals.bias.double() + (beta @ limits.bias.double().unsqueeze(2)).squeeze(2)
    magnitude = goals.scale.double() + (beta @ limits.scale.double().unsqueeze(2)).squeeze(2)
    value = value - share * magnitude
    value = torch.where(torch.isfinite(value), value, -torch.inf).to(goals.coef.dtype)
    return torch.nextafter(value, torch.full_like(value, -torch.inf))


def shrink_box(limits: HalfSpaces, center: Tensor, radius: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The box ``[D, n]`` that remains when each half-space alone cuts each side: ``(lower, upper)``, rounded outwards.

    ``a_i (x_i - c_i) <= sum_{j != i} |a_j| r_j - (a . c + b)``. A side may cross the other one: no point remains.
    """
    middle, reach = limits.levels(center, radius)
    slack = (reach - middle + share * limits.scale).unsqueeze(2)
    safe = torch.where(limits.coef == 0, 1.0, limits.coef)
    room = slack / safe.abs() - radius.unsqueeze(1)
    # what the quotient and the difference can lose in rounding
    room = room + share * (slack.abs() / safe.abs() + radius.unsqueeze(1))
    room = torch.where((limits.coef == 0) | ~torch.isfinite(room), torch.inf, room)
    above = torch.where(limits.coef > 0, room, torch.inf).amin(1)
    below = torch.where(limits.coef < 0, room, torch.inf).amin(1)
    high = center + torch.minimum(above, radius)
    low = center - torch.minimum(below, radius)
    widen = share * (center.abs() + radius)
    return low - widen, high + widen

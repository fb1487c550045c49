"""Clip-and-verify for input splits: what linear bounds of the rows say about where a counterexample can be.

Shape letters: D domains, G clauses, R rows, C half-spaces, N rows of a tile, m inputs.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from complete_verifier.input_bab.domains import Domains

# Rounding of the passes that made a linear bound, in units of the dtype's precision, relative to the size of its terms.
_ROUNDING = 64.0


def half_spaces(coef: Tensor, constant: Tensor, real: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """``[..., m + 1]``: ``a . x + d <= 0`` wherever a row ``coef . x + constant <= 0`` holds, rounding included.

    Where nothing is known (padding, NaN) the half-space is everything: a = 0, d = -1.
    """
    size = torch.maximum(lower.abs(), upper.abs())[(slice(None), *(None,) * (coef.ndim - 2))]
    slack = _ROUNDING * torch.finfo(coef.dtype).eps * ((coef.abs() * size).sum(-1) + constant.abs())
    known = real & torch.isfinite(slack)
    limit = torch.where(known, constant - slack, -1.0)
    return torch.cat([torch.where(known[..., None], coef, 0.0), limit[..., None]], -1)


def clip(domains: Domains, half: Tensor, iterations: int) -> tuple[Domains, Tensor]:
    """Boxes shrunk to what half-spaces ``[D, G, R, m + 1]`` leave of them, and which clauses ``[D, G]`` are refuted.

    A counterexample to a clause lies in all its half-spaces; the new box is the hull over the open clauses. Computed in
    float64 and rounded outwards. Source: interface 7.8.
    """
    low, high = domains.lower.double()[:, None], domains.upper.double()[:, None]
    shape = half.shape[:2]
    low, high = low.expand(*shape, -1), high.expand(*shape, -1)
    half = half.double()
    for _ in range(iterations):
        low, high = _shrunk(low, high, half[..., :-1], half[..., -1])
    empty = (low > high).any(-1)
    alive = (domains.open & ~empty)[..., None]
    hull_low = torch.where(alive, low, torch.inf).amin(1)
    hull_high = torch.where(alive, high, -torch.inf).amax(1)
    any_alive = alive.any(1)
    lower, upper = domains.lower, domains.upper
    new_lower = torch.where(any_alive, torch.maximum(lower, _outward(hull_low, lower, down=True)), lower)
    new_upper = torch.where(any_alive, torch.minimum(upper, _outward(hull_high, upper, down=False)), upper)
    return replace(domains, lower=new_lower, upper=new_upper), empty


def _shrunk(low: Tensor, high: Tensor, a: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes ``[D, G, m]`` cut by each half-space ``a . x + d <= 0``: a ``[D, G, R, m]``, d ``[D, G, R]``."""
    low_r, high_r = low[:, :, None], high[:, :, None]
    least = torch.where(a >= 0, a * low_r, a * high_r)
    rest = least.sum(-1, keepdim=True) - least + d[..., None]  # least value of all other terms
    limit = -rest / torch.where(a == 0, 1.0, a)
    # the slack of the half-spaces covers what is rounded here
    top = torch.where(a > 0, limit, torch.inf).nan_to_num(nan=torch.inf).amin(2)
    bottom = torch.where(a < 0, limit, -torch.inf).nan_to_num(nan=-torch.inf).amax(2)
    # a row without coefficients that cannot hold anywhere
    never = ((a == 0).all(-1) & (d > 0)).any(2, keepdim=True)
    high = torch.where(never, -torch.inf, torch.minimum(high, top))
    return torch.maximum(low, bottom), high


def _outward(value: Tensor, like: Tensor, down: bool) -> Tensor:
    """float64 numbers in the dtype of ``like``, not above (``down``) or not below them."""
    near = value.to(like.dtype)
    towards = torch.full_like(near, -torch.inf if down else torch.inf)
    past = near.double() > value if down else near.double() < value
    return torch.where(past, torch.nextafter(near, towards), near)


def least_value(coef: Tensor, bias: Tensor, center: Tensor, radius: Tensor, half: Tensor) -> Tensor:
    """Lower bounds ``[N]`` of ``coef . x + bias`` over boxes cut by half-spaces ``half`` ``[N, C, m + 1]``.

    Dual coordinate ascent, one half-space after the other, each step exact: the dual function is concave and piecewise
    linear in its multiplier, with a breakpoint where a coefficient changes sign (interface 7.9). Any multiplier >= 0
    is sound.
    """
    for position in range(half.shape[1]):
        a, d = half[:, position, :-1], half[:, position, -1]
        beta = _multiplier(coef, a, d + (a * center).sum(-1), radius)
        coef = coef + beta[:, None] * a
        bias = bias + beta * d
    return (coef * center).sum(-1) - (coef.abs() * radius).sum(-1) + bias


def _multiplier(coef: Tensor, a: Tensor, at_center: Tensor, radius: Tensor) -> Tensor:
    """The maximiser over beta >= 0 of ``beta * at_center - sum_i |coef_i + beta a_i| r_i`` ``[N]``."""
    weight = a.abs() * radius
    flips = (coef * a < 0) & (weight > 0)
    breakpoints = torch.where(flips, -coef / torch.where(a == 0, 1.0, a), torch.inf)
    slope = at_center + torch.where(flips, weight, -weight).sum(-1)  # just above beta = 0
    ordered, index = breakpoints.sort(-1)
    after = slope[:, None] - 2 * torch.where(flips, weight, 0.0).gather(1, index).cumsum(-1)
    first = (after <= 0).to(torch.int8).argmax(-1, keepdim=True)
    beta = ordered.gather(1, first).squeeze(1)
    # no slope to climb, or one that never ends (no point of the box is in the half-space: the caller finds that out)
    usable = (slope > 0) & (after[:, -1] <= 0) & torch.isfinite(beta)
    return torch.where(usable, beta, 0.0)

"""Exp and Reciprocal: convex functions of one variable (Reciprocal on either side of 0)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from auto_LiRPA.errors import ModelError
from auto_LiRPA.operators.smooth import Curve, Power, SmoothOperator
from auto_LiRPA.values import Interval, Lines


@dataclass(frozen=True)
class Exp(SmoothOperator):
    """``exp(x)``. Where it overflows, the lines are constants."""

    def curve(self) -> Curve:
        return Curve(torch.exp, torch.exp, lambda lo: torch.full_like(lo, math.inf), math.inf)

    def lines(self, box: Interval, alpha: Tensor | None = None) -> Lines:
        # a chord to infinity has no slope: such an interval is one without an upper end
        finite = torch.exp(box.upper + 1).isfinite()
        lines = super().lines(Interval(box.lower, torch.where(finite | box.upper.isnan(), box.upper, math.inf)), alpha)
        assert lines.upper_offset is not None
        return replace(lines, upper_offset=torch.where(finite, lines.upper_offset, self.interval(box).upper))


@dataclass(frozen=True)
class Reciprocal(SmoothOperator):
    """``1 / x`` on boxes that lie on one side of 0.

    Raises:
        ModelError: by `interval` and `relax`, where a box reaches 0.
    """

    @property
    def partial(self) -> bool:
        return True

    def curve(self) -> Curve:
        return Power(-1.0).curve()

    def interval(self, *inputs: Interval) -> Interval:
        (x,) = inputs
        _check(x)
        return Interval(1 / x.upper, 1 / x.lower)

    def lines(self, box: Interval, alpha: Tensor | None = None) -> Lines:
        _check(box)
        # 1 / x = -(1 / -x): left of 0 the lines of the mirrored interval change places
        left = box.upper < 0
        positive = Interval(torch.where(left, -box.upper, box.lower), torch.where(left, -box.lower, box.upper))
        if alpha is not None:
            below, above = alpha.unbind(0)
            alpha = torch.stack([torch.where(left, above, below), torch.where(left, below, above)])
        found = Power(-1.0).lines(positive, alpha)
        low, high = found.lower_offset, found.upper_offset
        assert low is not None and high is not None
        return Lines(
            torch.where(left, found.upper_slope, found.lower_slope),
            torch.where(left, -high, low),
            torch.where(left, found.lower_slope, found.upper_slope),
            torch.where(left, -low, high),
        )

    def initial_alpha(self, box: Interval) -> Tensor:
        # the tangent starts in the middle of the interval, whichever side of 0 it is on
        return torch.full((2, *box.lower.shape), 0.5, dtype=box.lower.dtype, device=box.lower.device)


def _check(box: Interval) -> None:
    lower, upper = box.lower.detach(), box.upper.detach()
    wrong = (lower <= 0) & (upper >= 0)
    if bool(wrong.any()):
        raise ModelError(
            f"a quotient's divisor may be 0: its bounds reach from {lower[wrong].min().item():g} to"
            f" {upper[wrong].max().item():g}; tighten the input region"
        )

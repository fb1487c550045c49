"""Piecewise linear scalar functions besides ReLU: Abs, Sign, Clip."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from auto_LiRPA.errors import ModelError
from auto_LiRPA.operators.elementwise import ElementwiseOperator
from auto_LiRPA.tolerances import STEEPEST_SIGN_INTERVAL
from auto_LiRPA.values import Interval, Lines


@dataclass(frozen=True)
class Abs(ElementwiseOperator):
    """``|x|``. Above: the chord. Below: a line through 0 whose slope in [-1, 1] is optimisable."""

    alpha_count: ClassVar[int] = 1

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0].abs()

    def interval(self, *inputs: Interval) -> Interval:
        (x,) = inputs
        return Interval(torch.maximum(x.lower, -x.upper).clamp_min(0), torch.maximum(-x.lower, x.upper))

    def needs_tightening(self, *boxes: Interval) -> tuple[Tensor, ...]:
        return (~_one_sided(boxes[0]),)

    def lines(self, box: Interval, alpha: Tensor | None = None) -> Lines:
        lo, hi = box.lower, box.upper
        stable = _one_sided(box)
        start = self._start(box)
        # |x| = 2 relu(x) - x: the share of the interval that is positive gives the chord's slope in [-1, 1]
        positive = (hi / torch.where(stable, 1.0, hi - lo)).clamp(0, 1)
        chord = torch.where(stable, start, 2 * positive - 1)
        offset = torch.where(stable, 0.0, -2 * positive * lo)
        below = start if alpha is None else torch.where(stable, start, alpha[0])
        return Lines(below, None, chord, offset)

    def _start(self, box: Interval) -> Tensor:
        # the first test also serves a neuron whose upper bound is NaN
        return torch.where((box.lower >= 0) | (box.upper > -box.lower), 1.0, -1.0).to(box.lower)

    def initial_alpha(self, box: Interval) -> Tensor:
        return self._start(box).unsqueeze(0)

    def alpha_range(self, box: Interval) -> tuple[Tensor, Tensor]:
        start, stable = self._start(box), _one_sided(box)
        return torch.where(stable, start, -1.0).unsqueeze(0), torch.where(stable, start, 1.0).unsqueeze(0)

    def alpha_mask(self, box: Interval) -> Tensor:
        return ~_one_sided(box)


def _one_sided(box: Interval) -> Tensor:
    """Neurons that 0 does not split. A NaN bound proves nothing."""
    return (box.lower >= 0) | (box.upper <= 0)


@dataclass(frozen=True)
class Sign(ElementwiseOperator):
    """``sign(x)`` with ``sign(0) = 0``.

    Where the interval reaches across 0: above, a line through (0, 1) of slope ``alpha * 2 / |l|``, which meets -1 no
    earlier than at l; below, the mirror image. An interval that ends at 0 has a line through (0, 0) and its other end.
    """

    alpha_count: ClassVar[int] = 2

    def forward(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        return torch.where(x.isnan(), x, x.sign())  # torch calls the sign of NaN 0, which would look like a bound

    def interval(self, *inputs: Interval) -> Interval:
        (x,) = inputs
        low = torch.where(x.lower > 0, 1.0, torch.where(x.lower == 0, 0.0, -1.0)).to(x.lower)
        high = torch.where(x.upper < 0, -1.0, torch.where(x.upper == 0, 0.0, 1.0)).to(x.upper)
        return Interval(low, high)

    def needs_tightening(self, *boxes: Interval) -> tuple[Tensor, ...]:
        (x,) = boxes
        return (~((x.lower > 0) | (x.upper < 0)),)

    def lines(self, box: Interval, alpha: Tensor | None = None) -> Lines:
        lower_share, upper_share = (self.initial_alpha(box) if alpha is None else alpha).unbind(0)
        above, above_at_0 = _sign_above(box.lower, box.upper, upper_share)
        below, below_at_0 = _sign_above(-box.upper, -box.lower, lower_share)
        return Lines(below, -below_at_0, above, above_at_0)

    def initial_alpha(self, box: Interval) -> Tensor:
        # the steepest line pays if the side where it falls is the longer one (smaller area under the line)
        lo, hi = box.lower, box.upper
        return torch.stack([hi > -lo, hi < -lo]).to(lo)

    def alpha_range(self, box: Interval) -> tuple[Tensor, Tensor]:
        zero = torch.zeros_like(box.lower)
        return torch.stack([zero, zero]), torch.stack([zero + 1, zero + 1])

    def alpha_mask(self, box: Interval) -> Tensor:
        return (box.lower < 0) & (box.upper > 0)


def _sign_above(lo: Tensor, hi: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Slope, and value at 0, of a line above sign on ``[lo, hi]``."""
    # the floor only makes the line less steep: its value at lo stays at or above sign(lo)
    left = torch.where(lo < 0, -lo, 1.0).clamp_min(STEEPEST_SIGN_INTERVAL)
    at_zero = torch.where(hi < 0, -1.0, torch.where(hi == 0, 0.0, 1.0)).to(lo)
    fixed = torch.where((hi == 0) & (lo < 0), 1 / left, 0.0)
    return torch.where((lo < 0) & (hi > 0), 2 * share / left, fixed), at_zero


@dataclass(frozen=True)
class Clip(ElementwiseOperator):
    """``min(max(x, low), high)``; None (or an infinite number) leaves that side open.

    Above: a line that pivots in ``(p, p)``, p = min(u, high); below: one that pivots in ``(q, q)``, q = max(l, low). A
    side with its hinge inside the interval may take any share (alpha) in [0, 1] of the steepest sound slope.

    Raises:
        ModelError: low > high.
    """

    low: float | None
    high: float | None
    alpha_count: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self._low > self._high or math.isnan(self._low) or math.isnan(self._high):
            raise ModelError(f"Clip: low = {self.low} and high = {self.high} leave no interval")

    @property
    def _low(self) -> float:
        return -math.inf if self.low is None else self.low

    @property
    def _high(self) -> float:
        return math.inf if self.high is None else self.high

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0].clamp(self._low, self._high)

    def interval(self, *inputs: Interval) -> Interval:
        return Interval(self.forward(inputs[0].lower), self.forward(inputs[0].upper))

    def _settled(self, box: Interval) -> Tensor:
        """Neurons on which the function is linear."""
        lo, hi = box.lower, box.upper
        return (hi <= self._low) | (lo >= self._high) | ((lo >= self._low) & (hi <= self._high))

    def needs_tightening(self, *boxes: Interval) -> tuple[Tensor, ...]:
        return (~self._settled(boxes[0]),)

    def lines(self, box: Interval, alpha: Tensor | None = None) -> Lines:
        lower_share, upper_share = (self.initial_alpha(box) if alpha is None else alpha).unbind(0)
        lo, hi = box.lower, box.upper
        settled = self._settled(box)
        p, q = hi.clamp_max(self._high), lo.clamp_min(self._low)
        rise = torch.where(settled, 0.0, p - q)
        above = rise / torch.where(settled, 1.0, p - lo)
        below = rise / torch.where(settled, 1.0, hi - q)
        above = torch.where(hi > self._high, above * upper_share, above)
        below = torch.where(lo < self._low, below * lower_share, below)
        inside = (lo >= self._low) & (hi <= self._high)
        slope = torch.where(inside, 1.0, 0.0).to(lo)
        # on a settled neuron the function itself: x inside, else the constant that both of its ends have
        constant = torch.where(inside, 0.0, self.forward(hi))
        # the steepest line also meets the far end, where rounding at the pivot may be large beside the value: the outer
        # of both offsets (fmax: an infinite far end, with slope 0, says nothing)
        low_offset = torch.fmin(q - below * q, p - below * hi)
        high_offset = torch.fmax(p - above * p, q - above * lo)
        return Lines(
            torch.where(settled, slope, below),
            torch.where(settled, constant, low_offset),
            torch.where(settled, slope, above),
            torch.where(settled, constant, high_offset),
        )

    def initial_alpha(self, box: Interval) -> Tensor:
        # 1 where the part of the interval on which the line gains by its slope is the longer one
        p, q = box.upper.clamp_max(self._high), box.lower.clamp_min(self._low)
        below, above = box.upper - q > q - box.lower, box.upper - p < p - box.lower
        return torch.stack([below, above]).to(box.lower)

    def alpha_range(self, box: Interval) -> tuple[Tensor, Tensor]:
        zero = torch.zeros_like(box.lower)
        return torch.stack([zero, zero]), torch.stack([zero + 1, zero + 1])

    def alpha_mask(self, box: Interval) -> Tensor:
        return ~self._settled(box)

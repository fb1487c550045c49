"""Smooth scalar functions: Sigmoid, Tanh, and Power with a constant exponent. Chords and optimisable tangents.

Every lower and upper line of all of them comes from one rule, `line_above`, for a function that is convex left of an
inflection and concave right of it; mirror images make the other cases of it. alpha has two numbers per neuron (lower
line, upper line): the tangent point's position in [0, 1] between the first sound point and the end of the interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from auto_LiRPA.errors import ModelError
from auto_LiRPA.operators.elementwise import ElementwiseOperator
from auto_LiRPA.tolerances import LINE_ROUNDING_ULPS, ROOT_TANGENT_SHARE, SLOPE_ROUNDING_ULPS
from auto_LiRPA.values import Interval, Lines

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Curve:
    """A scalar function, convex left of ``inflection`` and concave right of it, and its derivative.

    ``touch``: for a point left of the inflection, the point right of it whose tangent meets the curve there. A curve
    with a finite inflection is symmetric about it and has it at 0, so `touch` serves the flipped curve too.
    """

    value: Function
    slope: Function
    touch: Function
    inflection: float

    def flipped(self) -> Curve:
        """``-f(-x)``: the same shape turned by half a circle about 0, so that lines above it are lines below f."""
        return Curve(lambda x: -self.value(-x), lambda x: self.slope(-x), self.touch, -self.inflection)


def line_above(curve: Curve, lo: Tensor, hi: Tensor, share: Tensor | None) -> tuple[Tensor, Tensor]:
    """Slope and offset of a line above ``curve`` on ``[lo, hi]``, differentiable by the box and by ``share``.

    The tangent at d lies above the concave part; it lies above the convex part too iff it does at lo, that is for d
    right of ``touch(lo)``. Where no such d is left the chord is the least line above. ``share`` in [0, 1] moves d from
    the first sound point to hi; None takes `first_share`.
    """
    bent = lo < curve.inflection
    start = torch.where(bent, torch.minimum(curve.touch(torch.where(bent, lo, curve.inflection - 1.0)), hi), lo)
    chord = start >= hi
    reach = torch.where(chord, 0.0, hi - start)
    point = torch.where(chord, lo, start) + (first_share(curve, lo) if share is None else share) * reach
    slope, offset = _tangent(curve, point, lo, bent)
    secant, level = _chord(curve, lo, hi)
    return torch.where(chord, secant, slope), torch.where(chord, level, offset)


def first_share(curve: Curve, lo: Tensor) -> Tensor:
    """The default tangent point: the middle of a concave interval, else the first sound point."""
    return torch.where(lo < curve.inflection, 0.0, 0.5).to(lo)


def _tangent(curve: Curve, point: Tensor, lo: Tensor, bent: Tensor) -> tuple[Tensor, Tensor]:
    """The tangent at ``point``, raised by what rounding may have taken from it.

    Its slope is raised too, so that right of its point it clears the curve; left of it that costs up to
    ``slope * (point - lo)`` units. ``bent`` intervals touch the curve at lo as well.
    """
    eps = torch.finfo(lo.dtype).eps
    slope, height = curve.slope(point), curve.value(point)
    slope = slope + SLOPE_ROUNDING_ULPS * eps * slope.abs()
    offset = height - slope * point
    with torch.no_grad():
        end = curve.value(lo)
        missed = (end - (slope * lo + offset)).clamp_min(0)
        size = height.abs() + 2 * slope.abs() * (point.abs() + lo.abs()) + torch.where(bent, end.abs(), 0.0)
        missed = missed + _rounding(size)
    return slope, offset + missed


def _chord(curve: Curve, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
    """The line through both ends, raised by what rounding may have taken from it; a constant over a single point."""
    wide = hi > lo
    low, high = curve.value(lo), curve.value(hi)
    slope = (high - low) / torch.where(wide, hi - lo, 1.0)
    # the mean value theorem bounds it; over a tiny width rounding would break that
    steep = curve.slope(lo), curve.slope(hi)
    slope = torch.minimum(torch.maximum(slope, torch.minimum(*steep)), torch.maximum(*steep))
    slope = torch.where(wide, slope, 0.0)
    offset = low - slope * lo
    with torch.no_grad():
        missed = (high - (slope * hi + offset)).clamp_min(0)
        missed = missed + _rounding(low.abs() + high.abs() + slope.abs() * (lo.abs() + hi.abs()))
    return slope, offset + missed


def _rounding(size: Tensor) -> Tensor:
    """Rounding error of a line whose parts add up to ``size``."""
    info = torch.finfo(size.dtype)
    return LINE_ROUNDING_ULPS * info.eps * size + info.tiny


class SmoothOperator(ElementwiseOperator):
    """A function with the shape of a `Curve`, or with the mirror image ``f(-x)`` of that shape (``mirrored``).

    Convex functions have their inflection at +inf, concave ones at -inf.
    """

    alpha_count: ClassVar[int] = 2

    def curve(self) -> Curve:
        """The function, mirrored if `mirrored` says so."""
        raise NotImplementedError

    @property
    def mirrored(self) -> bool:
        """True if `curve` is ``f(-x)``."""
        return False

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.curve().value(inputs[0])

    def interval(self, *inputs: Interval) -> Interval:
        return Interval(self.forward(inputs[0].lower), self.forward(inputs[0].upper))

    def lines(self, box: Interval, alpha: Tensor | None = None) -> Lines:
        below_share, above_share = (None, None) if alpha is None else alpha.unbind(0)
        # an unbounded neuron gets constants: no tangent or chord has an end there. NaN stays NaN
        bounded = box.lower.isfinite() & box.upper.isfinite()
        lo, hi = self._sides(Interval(torch.where(bounded, box.lower, 1.0), torch.where(bounded, box.upper, 1.0)))
        curve = self.curve()
        above_slope, above = line_above(curve, lo, hi, above_share)
        below_slope, below = line_above(curve.flipped(), -hi, -lo, below_share)
        turn = -1.0 if self.mirrored else 1.0
        image = self.interval(box)
        return Lines(
            torch.where(bounded, turn * below_slope, 0.0),
            torch.where(bounded, -below, image.lower),
            torch.where(bounded, turn * above_slope, 0.0),
            torch.where(bounded, above, image.upper),
        )

    def _sides(self, box: Interval) -> tuple[Tensor, Tensor]:
        """The box as the curve sees it."""
        return (-box.upper, -box.lower) if self.mirrored else (box.lower, box.upper)

    def initial_alpha(self, box: Interval) -> Tensor:
        lo, hi = self._sides(box)
        curve = self.curve()
        return torch.stack([first_share(curve.flipped(), -hi), first_share(curve, lo)])

    def alpha_range(self, box: Interval) -> tuple[Tensor, Tensor]:
        zero = torch.zeros_like(box.lower)
        return torch.stack([zero, zero]), torch.stack([zero + 1, zero + 1])

    def alpha_mask(self, box: Interval) -> Tensor:
        return box.lower < box.upper


@dataclass(frozen=True)
class Tanh(SmoothOperator):
    """``tanh(x)``."""

    def curve(self) -> Curve:
        return Curve(torch.tanh, _tanh_slope, _tanh_touch, 0.0)


@dataclass(frozen=True)
class Sigmoid(SmoothOperator):
    """``1 / (1 + exp(-x)) = 1/2 + tanh(x / 2) / 2``, so tangent points are those of tanh at half the scale."""

    def curve(self) -> Curve:
        return Curve(torch.sigmoid, _sigmoid_slope, lambda lo: 2 * _tanh_touch(lo / 2), 0.0)


def _sigmoid_slope(x: Tensor) -> Tensor:
    # by exp(-|x|), which keeps its relative accuracy where s (1 - s) would cancel
    e = torch.exp(-x.abs())
    return e / (1 + e) ** 2


def _tanh_slope(x: Tensor) -> Tensor:
    return 4 * _sigmoid_slope(2 * x)


# Convergence is quadratic: from the starting point below the tangent misses its end by 4e-5, 1e-10, 4e-15 after two,
# three, four steps.
_TOUCH_STEPS = 4


def _tanh_touch(lo: Tensor) -> Tensor:
    """The d > 0 whose tangent to tanh passes through ``(lo, tanh(lo))``, lo < 0.

    It maximises the slope of the secant from lo. Each step takes the point with the slope of the last secant
    (Dinkelbach 1967): it never falls short of d, so it is on the sound side up to rounding, which `line_above` adds.
    The derivative is the implicit one: ``(f'(d) - f'(lo)) / (f''(d) (d - lo))``.
    """
    with torch.no_grad():
        low = torch.tanh(lo)
        d = 0.5 * torch.log1p(-lo)  # right to first order at both ends: -lo / 2 near 0, log(-lo) / 2 far away
        for _ in range(_TOUCH_STEPS):
            secant = ((torch.tanh(d) - low) / (d - lo)).clamp(max=1.0)
            d = torch.log1p(torch.sqrt(1 - secant)) - 0.5 * torch.log(secant)
            d = torch.minimum(d, -lo)
    if not (torch.is_grad_enabled() and lo.requires_grad):
        return d
    with torch.no_grad():
        bend = -2 * torch.tanh(d) * _tanh_slope(d) * (d - lo)
        small = bend.abs() < torch.finfo(bend.dtype).tiny
        rate = (_tanh_slope(d) - _tanh_slope(lo)) / torch.where(small, 1.0, bend)
    return d + rate * (lo - lo.detach())


@dataclass(frozen=True)
class Power(SmoothOperator):
    """``x ** exponent``. Integers from 0 take any input, other exponents positive ones (0 too where 0 < exponent).

    Raises:
        ModelError: by `interval` and `relax`, where a box reaches inputs without a real (or finite) value.
    """

    exponent: float

    @property
    def partial(self) -> bool:
        return not self._whole

    @property
    def _whole(self) -> bool:
        return self.exponent >= 0 and float(self.exponent).is_integer()

    @property
    def _odd(self) -> bool:
        return self._whole and self.exponent % 2 == 1

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0] ** self.exponent

    def _check(self, box: Interval) -> None:
        if self._whole:
            return
        lowest = box.lower.detach()
        wrong = (lowest < 0) if self.exponent > 0 else (lowest <= 0)
        if bool(wrong.any()):
            need = "at or above 0" if self.exponent > 0 else "above 0"
            raise ModelError(
                f"Pow with exponent {self.exponent:g} needs inputs {need}, but its bounds reach"
                f" {lowest[wrong].min().item():g}: tighten the input region or clip the input of this node"
            )

    def interval(self, *inputs: Interval) -> Interval:
        (x,) = inputs
        self._check(x)
        if self._whole and not self._odd:
            x = Interval(torch.maximum(x.lower, -x.upper).clamp_min(0), torch.maximum(-x.lower, x.upper))
        if self.exponent < 0:
            x = Interval(x.upper, x.lower)
        return Interval(self.forward(x.lower), self.forward(x.upper))

    def needs_tightening(self, *boxes: Interval) -> tuple[Tensor, ...]:
        return (torch.full_like(boxes[0].lower, self.exponent not in (0, 1), dtype=torch.bool),)

    def alpha_mask(self, box: Interval) -> Tensor:
        return (box.lower < box.upper) & (self.exponent not in (0, 1))

    def initial_alpha(self, box: Interval) -> Tensor:
        return torch.maximum(super().initial_alpha(box), self.alpha_range(box)[0])

    def alpha_range(self, box: Interval) -> tuple[Tensor, Tensor]:
        low, high = super().alpha_range(box)
        # a root's tangent at 0 is vertical
        return (low + ROOT_TANGENT_SHARE if 0 < self.exponent < 1 else low), high

    def lines(self, box: Interval, alpha: Tensor | None = None) -> Lines:
        self._check(box)
        if self.exponent in (0, 1):
            slope = torch.full_like(box.lower, float(self.exponent))
            return Lines(slope, 1 - slope, slope, 1 - slope)
        return super().lines(box, alpha)

    @property
    def mirrored(self) -> bool:
        return self._odd

    def curve(self) -> Curve:
        p = self.exponent
        if self._odd:  # concave left of 0 and convex right of it: its mirror image has the curve's shape
            share = _odd_touch(int(p))
            return Curve(lambda x: -(x**p), lambda x: -p * x ** (p - 1), lambda lo: -share * lo, 0.0)
        inflection = -math.inf if 0 < p < 1 else math.inf
        return Curve(lambda x: x**p, lambda x: p * x ** (p - 1), lambda lo: torch.full_like(lo, math.inf), inflection)


@lru_cache(maxsize=64)
def _odd_touch(n: int) -> float:
    """The c in (0, 1] such that the tangent to ``x^n`` (n odd, n >= 3) at ``-c`` passes through ``(1, 1)``.

    That is the root of ``(n - 1) c^n + n c^(n - 1) = 1``, which rises in c; by bisection, from above.
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if (n - 1) * middle**n + n * middle ** (n - 1) >= 1:
            high = middle
        else:
            low = middle
    return high

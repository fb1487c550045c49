"""Softmax by pairwise differences: ``p_j = 1 / sum_k exp(x_k - x_j)``, which no common shift of x changes.

The differences are linear in x, so a backward pass bounds them better than the two entries' boxes can; `PairSoftmax`
takes them as its input, `Softmax` makes their boxes from those of x where there are too many of them to be neurons.

With t_k = x_k - x_j in [l_k, u_k], S = sum_k exp(t_k) and the chords c_k of exp (Wei et al. 2023, "Convex bounds on
the softmax function", ER below and LSE above):

    p >= 1 / C(t) >= 2 / S0 - C(t) / S0^2                        C = sum_k c_k(t_k), any S0 > 0
    p <= p_hi + kappa (log p - log p_hi)                         the chord of exp over [log p_lo, log p_hi]
      <= p_hi + kappa (-log p_hi - LSE(m) - s(m) . (t - m))      LSE is convex, s its gradient, any point m

alpha: where S0 lies between the least and the greatest C, and where m_k lies in [l_k, u_k]. Besides, the outputs sum
to 1: a row's coefficients a_j may all be lowered by one number whose product with 1 is added to the bias. The weighted
median of the a_j leaves the least error at the middle of the box.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from auto_LiRPA.operators.base import AlphaSpec, LinearBounds, LinearOperator, NonlinearOperator, Pulled, Relaxation
from auto_LiRPA.operators.local_gradient import LocalRelaxation, negative_part, positive_part
from auto_LiRPA.tolerances import LINE_ROUNDING_ULPS
from auto_LiRPA.values import Interval

# S0 is at least this share of the greatest C in the box.
_LEAST_TANGENT = 0.1
# Where the tangents of the convex bounds touch at the start, as shares of the way from the least to the greatest point:
# any share is sound, and these give the narrowest bounds of the two transformers of VNN-COMP.
START_BELOW, START_ABOVE = 0.6, 0.4


def pair_count(n: int) -> int:
    """How many pairs j < k there are."""
    return n * (n - 1) // 2


@lru_cache(maxsize=64)
def _pairs(n: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """All pairs (j, k), j < k, and where each entry (j, k) of the full matrix stands in ``[t, -t, 0]``: ``[n * n]``."""
    first, second = torch.triu_indices(n, n, 1)
    count = len(first)
    place = torch.full((n, n), 2 * count)
    place[first, second] = torch.arange(count)
    place[second, first] = torch.arange(count, 2 * count)
    return first.to(device), second.to(device), place.flatten().to(device)


@lru_cache(maxsize=64)
def _signs(n: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The matrix of `Differences`, ``[pairs, n]``. A product with it is faster than picking entries by index."""
    first, second, _ = _pairs(n, torch.device("cpu"))
    row = torch.arange(len(first))
    matrix = torch.zeros(len(first), n, dtype=dtype)
    matrix[row, second], matrix[row, first] = 1, -1
    return matrix.to(device)


@dataclass(frozen=True)
class Differences(LinearOperator):
    """``x_k - x_j`` of all pairs j < k of the last axis, which has ``length`` entries."""

    length: int

    def apply(self, *inputs: Tensor) -> Tensor:
        first, second, _ = _pairs(self.length, inputs[0].device)
        return inputs[0].index_select(-1, second) - inputs[0].index_select(-1, first)

    def apply_abs(self, *inputs: Tensor) -> Tensor:
        first, second, _ = _pairs(self.length, inputs[0].device)
        return inputs[0].index_select(-1, second) + inputs[0].index_select(-1, first)

    def transpose(self, coef: Tensor) -> tuple[Tensor, ...]:
        return (coef @ _signs(self.length, coef.device, coef.dtype),)


def _full(lower: Tensor, upper: Tensor, length: int) -> Tensor:
    """Lower ends of all ``t_jk`` ``[..., n, n]`` from both ends of the pairs j < k: ``t_kj = -t_jk``, ``t_jj = 0``."""
    place = _pairs(length, lower.device)[2]
    row = torch.cat([lower, -upper, lower.new_zeros(*lower.shape[:-1], 1)], -1)
    return row.index_select(-1, place).unflatten(-1, (length, length))


@dataclass(frozen=True)
class PairSoftmax(NonlinearOperator):
    """Softmax of ``length`` entries from the differences ``x_k - x_j`` of all pairs j < k (`Differences`)."""

    length: int
    on_simplex: ClassVar[bool] = True  # the last axis is at least 0 and sums to 1

    def forward(self, *inputs: Tensor) -> Tensor:
        (t,) = inputs
        return torch.softmax(-_full(t, t, self.length)[..., 0], -1)

    def interval(self, *inputs: Interval) -> Interval:
        return _image(_full_box(inputs[0], self.length))

    def relax(self, *boxes: Interval) -> Relaxation:
        return PairSoftmaxRelaxation(self.length, boxes[0])

    def needs_tightening(self, *boxes: Interval) -> tuple[Tensor, ...]:
        return (~(boxes[0].lower == boxes[0].upper),)


@dataclass(frozen=True)
class Softmax(NonlinearOperator):
    """Softmax over the last axis, which has ``length`` entries."""

    length: int
    on_simplex: ClassVar[bool] = True  # the last axis is at least 0 and sums to 1

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.softmax(inputs[0], -1)

    def interval(self, *inputs: Interval) -> Interval:
        return _image(_full_box(Differences(self.length).interval(inputs[0]), self.length))

    def relax(self, *boxes: Interval) -> Relaxation:
        return SoftmaxRelaxation(self.length, boxes[0])

    def needs_tightening(self, *boxes: Interval) -> tuple[Tensor, ...]:
        (x,) = boxes
        # all entries of a group go into each output; a single one is always 1
        loose = (~(x.lower == x.upper)).any(-1, keepdim=True)
        return (loose.expand(x.lower.shape) & (self.length > 1),)


def _full_box(pairs: Interval, length: int) -> Interval:
    return Interval(_full(pairs.lower, pairs.upper, length), _full(pairs.upper, pairs.lower, length))


def _image(t: Interval) -> Interval:
    """Bounds of ``1 / sum_k exp(t_jk)`` for independent differences."""
    return Interval(torch.exp(-torch.logsumexp(t.upper, -1)), torch.exp(-torch.logsumexp(t.lower, -1)))


@dataclass(frozen=True, slots=True)
class _Planes:
    """``p_j >= low . t_j + low_offset`` and ``p_j <= high . t_j + high_offset``; slopes ``[B, 1 or T, *lead, j, k]``.

    All slopes are at most 0.
    """

    low: Tensor
    low_offset: Tensor
    high: Tensor
    high_offset: Tensor


class PairSoftmaxRelaxation(LocalRelaxation):
    """Tangents of the convex bounds over the differences' boxes; one share for S0 and one for each m_k per output."""

    def __init__(self, length: int, box: Interval) -> None:
        self.boxes = (box,)
        self.length = length
        self.full = _full_box(box, length)
        self.planes = self._planes(None)
        self._gap = self._middle_gap()
        self._spec: AlphaSpec | None = None

    def over(self, boxes: tuple[Interval, ...]) -> LocalRelaxation:
        return type(self)(self.length, boxes[0])

    @property
    def alpha(self) -> AlphaSpec:  # type: ignore[override]
        """Built on first use: finding the outputs costs one host synchronisation."""
        if self._spec is None:
            wide = (self.full.lower != self.full.upper).any(-1).flatten(1)
            index = wide.any(0).nonzero().squeeze(-1) if self.pinned is None else self.pinned
            initial = self._starts()[:, None].expand(len(self.full.lower), -1, len(index)).clone()
            self._spec = AlphaSpec(index, initial, 0.0, 1.0)
        return self._spec

    def _starts(self) -> Tensor:
        """Where the shares of one output start, ``[P]``."""
        starts = self.full.lower.new_full((self.length + 1,), START_ABOVE)
        starts[0] = START_BELOW
        return starts

    def _dense(self, alpha: Tensor) -> Tensor:
        """``[B, T, P, u] -> [B, T, *lead, j, P]``, the start where no variable is."""
        shape = self.full.lower.shape[1:-1]
        index = self.alpha.index
        if len(index) != shape.numel():  # sorted, so otherwise it is the identity
            start = self._starts()[:, None].expand(*alpha.shape[:3], shape.numel())
            alpha = start.index_copy(3, index, alpha)
        return alpha.movedim(2, 3).unflatten(2, shape)

    def _planes(self, alpha: Tensor | None) -> _Planes:
        t = Interval(self.full.lower.unsqueeze(1), self.full.upper.unsqueeze(1))
        # unbounded, unknown or overflowing groups get constants: their lines have no end. NaN stays NaN
        total = torch.exp(t.upper.detach()).sum(-1)
        known = (t.lower.isfinite() & t.upper.isfinite()).all(-1)
        steady = known & (total < torch.finfo(total.dtype).max ** 0.25)
        image = _image(t)
        where = known.unsqueeze(-1)
        safe = Interval(torch.where(where, t.lower, 0.0), torch.where(where, t.upper, 0.0))
        calm = steady.unsqueeze(-1)
        small = Interval(torch.where(calm, t.lower, 0.0), torch.where(calm, t.upper, 0.0))
        share = None if alpha is None else self._dense(alpha)
        low, low_offset = _below(small, None if share is None else share[..., 0])
        high, high_offset = _above(safe, None if share is None else share[..., 1:])
        return _Planes(
            torch.where(calm, low, 0.0),
            torch.where(steady, low_offset, image.lower),
            torch.where(where, high, 0.0),
            torch.where(known, high_offset, image.upper),
        )

    def pull(self, coef: Tensor, alpha: Tensor | None = None, owned: bool = False) -> Pulled:
        full, bias = self._pull_full(coef, alpha)
        # t_kj = -t_jk: what stands below the diagonal counts against what stands above it, row of pairs by row
        folded = full - full.transpose(-1, -2)
        rows = [folded[..., j, j + 1 :] for j in range(self.length - 1)]
        return Pulled((torch.cat(rows, -1),), bias)

    def _pull_full(self, coef: Tensor, alpha: Tensor | None) -> tuple[Tensor, Tensor]:
        """Coefficients of all ``t_jk`` ``[B, T, *lead, j, k]``, and the bias ``[B, T]``."""
        planes = self.planes if alpha is None else self._planes(alpha)
        coef = coef.expand(max(coef.shape[0], self._gap.shape[0]), *coef.shape[1:])
        shift = coef.gather(-1, self._median(coef))
        rest = coef - shift
        up, down = positive_part(rest), negative_part(rest)
        slopes = up.unsqueeze(-1) * planes.low + down.unsqueeze(-1) * planes.high
        bias = (up * planes.low_offset + down * planes.high_offset).flatten(2).sum(-1)
        return slopes, bias + shift.flatten(2).sum(-1)

    def _middle_gap(self) -> Tensor:
        """Distance of the planes at the middle of the box: ``[B, *lead, j]``, 0 where it is unknown."""
        with torch.no_grad():
            middle = (self.full.lower + self.full.upper) / 2
            planes = self.planes
            tilt = ((planes.high - planes.low)[:, 0] * middle).sum(-1)
            gap = tilt + planes.high_offset[:, 0] - planes.low_offset[:, 0]
            return torch.nan_to_num(gap, nan=0.0, posinf=1.0, neginf=0.0).clamp_min(0)

    def _median(self, coef: Tensor) -> Tensor:
        """Position of the weighted median of each group's coefficients: ``[B, T, *lead, 1]``.

        The weights are the planes' distances, so that ``sum_j gap_j |coef_j - median|``, by which the bound misses at
        the middle of the box, is least.
        """
        with torch.no_grad():
            order = torch.sort(coef.detach(), dim=-1, stable=True).indices
            sums = self._gap.unsqueeze(1).expand(order.shape).gather(-1, order).cumsum(-1)
            middle = (sums < sums[..., -1:] / 2).sum(-1, keepdim=True).clamp_max(self.length - 1)
            return order.gather(-1, middle)

    def push(self, inputs: tuple[LinearBounds, ...]) -> LinearBounds:
        (x,) = inputs
        n, planes = self.length, self.planes
        # all slopes are at most 0: what is below takes the differences' upper side
        lower_w = (planes.low * _full(x.upper_w, x.lower_w, n)).sum(-1)
        lower_b = (planes.low[:, 0] * _full(x.upper_b, x.lower_b, n)).sum(-1) + planes.low_offset[:, 0]
        upper_w = (planes.high * _full(x.lower_w, x.upper_w, n)).sum(-1)
        upper_b = (planes.high[:, 0] * _full(x.lower_b, x.upper_b, n)).sum(-1) + planes.high_offset[:, 0]
        return LinearBounds(lower_w, lower_b, upper_w, upper_b)


class SoftmaxRelaxation(LocalRelaxation):
    """The relaxation over the differences' boxes, which are made from those of x."""

    def __init__(self, length: int, box: Interval) -> None:
        self.boxes = (box,)
        self.differences = Differences(length)
        self._pairs = PairSoftmaxRelaxation(length, self.differences.interval(box))

    @property
    def inner(self) -> PairSoftmaxRelaxation:
        """The relaxation by differences, with this one's pinned outputs."""
        self._pairs.pinned = self.pinned
        return self._pairs

    def over(self, boxes: tuple[Interval, ...]) -> LocalRelaxation:
        return type(self)(self.differences.length, boxes[0])

    @property
    def alpha(self) -> AlphaSpec:  # type: ignore[override]
        return self.inner.alpha

    def pull(self, coef: Tensor, alpha: Tensor | None = None, owned: bool = False) -> Pulled:
        full, bias = self.inner._pull_full(coef, alpha)
        return Pulled((full.sum(-2) - full.sum(-1),), bias)

    def push(self, inputs: tuple[LinearBounds, ...]) -> LinearBounds:
        return self.inner.push((self.differences.push(inputs),))


def _below(t: Interval, share: Tensor | None) -> tuple[Tensor, Tensor]:
    """Slopes and offset of a plane below ``1 / sum_k exp(t_k)``: ``[..., k]`` and ``[...]``."""
    low, high = torch.exp(t.lower), torch.exp(t.upper)
    wide = t.upper > t.lower
    slope = (high - low) / torch.where(wide, t.upper - t.lower, 1.0)
    slope = torch.where(wide, torch.minimum(torch.maximum(slope, low), high), 0.0)
    with torch.no_grad():
        size = low + high + slope * (t.lower.abs() + t.upper.abs())
        lift = (high - low - slope * (t.upper - t.lower)).clamp_min(0) + _rounding(size)
    # chord of each exp: slope * t + offset
    offset = (low - slope * t.lower + lift).sum(-1)
    least, most = (slope * t.lower).sum(-1) + offset, (slope * t.upper).sum(-1) + offset
    # tangents further left fall far below 0 at the other end, with slopes that only rounding errors gain from
    least = torch.maximum(least, _LEAST_TANGENT * most)
    point = least + (START_BELOW if share is None else share) * (most - least)
    with torch.no_grad():
        drop = _rounding(4 / point + ((slope * (t.lower.abs() + t.upper.abs())).sum(-1) + offset.abs()) / point**2)
    return -slope / point.unsqueeze(-1) ** 2, 2 / point - offset / point**2 - drop


def _above(t: Interval, share: Tensor | None) -> tuple[Tensor, Tensor]:
    """Slopes and offset of a plane above ``1 / sum_k exp(t_k)``: ``[..., k]`` and ``[...]``."""
    least, most = torch.logsumexp(t.lower, -1), torch.logsumexp(t.upper, -1)
    highest = torch.exp(-least)
    width = most - least
    wide = width > 0
    # (p_hi - p_lo) / (log p_hi - log p_lo)
    kappa = highest * torch.where(wide, -torch.expm1(-width) / torch.where(wide, width, 1.0), 1.0)
    point = t.lower + (START_ABOVE if share is None else share) * (t.upper - t.lower)
    level = torch.logsumexp(point, -1)
    weight = torch.exp(point - level.unsqueeze(-1))
    slope = -kappa.unsqueeze(-1) * weight
    offset = highest + kappa * (least - level + (weight * point).sum(-1))
    with torch.no_grad():
        size = highest + kappa * (least.abs() + level.abs() + 2 * (weight * (t.lower.abs() + t.upper.abs())).sum(-1))
        lift = _rounding(size)
    return slope, offset + lift


def _rounding(size: Tensor) -> Tensor:
    """Rounding error of a line whose parts add up to ``size``."""
    info = torch.finfo(size.dtype)
    return LINE_ROUNDING_ULPS * info.eps * size + info.tiny

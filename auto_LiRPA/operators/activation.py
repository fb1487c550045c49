"""ReLU and LeakyReLU: the relaxation that everything else waits for, with its gradient by hand (DESIGN 5)."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from auto_LiRPA.operators.base import (
    AlphaSpec,
    LinearBounds,
    NonlinearOperator,
    Pulled,
    Relaxation,
    RelaxationGradient,
    rows_dot,
)
from auto_LiRPA.operators.elementwise import push_lines
from auto_LiRPA.tolerances import DENOMINATOR_FLOOR
from auto_LiRPA.values import Interval, Lines, Window

SLOPE_RULES = ("adaptive", "same-slope", "zero-lb", "one-lb", "reversed-adaptive")


@dataclass(frozen=True)
class Relu(NonlinearOperator):
    """``max(x, leak * x)`` with 0 <= leak < 1; leak = 0 is the plain ReLU."""

    leak: float = 0.0
    slope_rule: str = "adaptive"
    recordable: ClassVar[bool] = True

    def forward(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        return torch.relu(x) if self.leak == 0 else torch.nn.functional.leaky_relu(x, self.leak)

    def interval(self, *inputs: Interval) -> Interval:
        (x,) = inputs
        return Interval(self.forward(x.lower), self.forward(x.upper))

    def relax(self, *boxes: Interval) -> Relaxation:
        return ReluRelaxation(self, boxes[0])

    def needs_tightening(self, *boxes: Interval) -> tuple[Tensor, ...]:
        (x,) = boxes
        # a NaN bound counts as unstable: it is never taken for a proof of stability
        return (~((x.lower >= 0) | (x.upper <= 0)),)

    def lines(self, box: Interval) -> Lines:
        """Upper: the chord. Lower: a line through 0 whose slope follows ``slope_rule`` (interface: CROWN's start)."""
        lo, hi = box.lower, box.upper
        # a NaN bound proves no stability: such a neuron's chord is NaN
        unstable = ~((lo >= 0) | (hi <= 0))
        width = torch.where(unstable, hi - lo, 1.0)  # > 0: no floor, which would tilt the chord of a tiny interval
        width = width.masked_fill(width.isinf(), torch.nan)  # or a chord of slope 0 would lie below the upper end
        # one operand a tensor: two plain numbers would pass through float32, and 0.1 does not survive that
        stable = torch.where(lo >= 0, torch.ones_like(lo), self.leak)
        # the share of the interval that is positive; taken from hi/width so that it stays within [0, 1]
        positive = (hi / width).clamp(0, 1)
        chord = torch.where(unstable, self.leak + (1 - self.leak) * positive, stable)
        offset = torch.where(unstable, -(1 - self.leak) * positive * lo, 0.0)
        start = self._start_slope(hi, lo, positive, chord)
        return Lines(torch.where(unstable, start, stable), None, chord, offset)

    def _start_slope(self, hi: Tensor, lo: Tensor, positive: Tensor, chord: Tensor) -> Tensor:
        if self.slope_rule == "same-slope":
            return chord
        if self.slope_rule == "zero-lb":
            return torch.full_like(lo, self.leak)
        if self.slope_rule == "one-lb":
            return torch.ones_like(lo)
        return torch.where(hi > -lo, torch.ones_like(lo), self.leak)


class ReluRelaxation(Relaxation):
    """Lines of a ReLU over one box; alpha is the lower slope of the unstable neurons, one per row."""

    def __init__(self, op: Relu, box: Interval) -> None:
        self.op = op
        self.box = box
        self.lines = op.lines(box)
        self._spec: AlphaSpec | None = None
        self._rows = _row_lines(self.lines)

    @property
    def alpha(self) -> AlphaSpec:  # type: ignore[override]
        """Built on first use: finding the unstable neurons costs one host synchronisation."""
        if self._spec is None:
            unstable = ((self.box.lower < 0) & (self.box.upper > 0)).flatten(1)
            index = unstable.any(0).nonzero().squeeze(-1) if self.pinned is None else self.pinned
            initial = self.lines.lower_slope.flatten(1)[:, index].unsqueeze(1)
            free = unstable[:, index].unsqueeze(1).unsqueeze(1)
            # a neuron that is unstable elsewhere in the batch but stable here keeps its exact slope
            fixed = initial.unsqueeze(1)
            low, high = torch.where(free, self.op.leak, fixed), torch.where(free, 1.0, fixed)
            self._spec = AlphaSpec(index, initial, low, high)
        return self._spec

    def cropped(self, window: Window) -> Relaxation | None:
        """Views of the same lines; no slopes, which are numbered over the whole map."""
        part = copy(self)
        part.box = Interval(window.crop(self.box.lower), window.crop(self.box.upper))
        assert self.lines.upper_offset is not None
        part.lines = Lines(
            window.crop(self.lines.lower_slope),
            None,
            window.crop(self.lines.upper_slope),
            window.crop(self.lines.upper_offset),
        )
        part._spec = None
        part._rows = _row_lines(part.lines)
        return part

    def apart(self) -> tuple[Relaxation, tuple[Tensor, ...]]:
        part, nothing = copy(self), self._rows.lower.new_empty(0)
        lower, offset, step = (tensor.clone() for tensor in self.read_by_pull())
        part._rows = _RowLines(lower, nothing, offset, step)
        # what else there is would be held as long as the recordings are
        part.box, part.lines = Interval(nothing, nothing), Lines(nothing, None, nothing, nothing)
        part._spec = part.pinned = None
        return part, part.read_by_pull()

    def read_by_pull(self) -> tuple[Tensor, ...]:
        return self._rows.lower, self._rows.offset, self._rows.step

    def _lower_slope(self, rows: int, alpha: Tensor | None) -> Tensor:
        """``[B, 1 or T, n]``."""
        dense = self._rows.lower
        if alpha is None:
            return dense
        spread = dense.expand(-1, rows, -1).clone()
        return spread.index_copy_(2, self.alpha.index, alpha[:, :, 0].expand(spread.shape[0], rows, -1))

    def pull(self, coef: Tensor, alpha: Tensor | None = None, owned: bool = False) -> Pulled:
        flat = coef.flatten(2)
        negative = flat.clamp_max(0)
        bias = rows_dot(negative, self._rows.offset.squeeze(1))
        # A * lower where A >= 0, A * upper where A < 0, written as two products so that no mask and no slope matrix is
        # made: half the memory of a where
        if alpha is None:
            lower, step = self._rows.lower, self._rows.step
        else:
            lower = self._lower_slope(flat.shape[1], alpha)
            step = self._rows.upper - lower
        if owned and flat.shape[0] == step.shape[0]:
            out = flat.mul_(lower).addcmul_(negative, step)
        else:
            out = torch.addcmul(flat * lower, negative, step)
        return Pulled((out.unflatten(2, coef.shape[2:]),), bias)

    def values(self, coef: Tensor, inputs: tuple[Tensor, ...], alpha: Tensor | None = None) -> Tensor:
        flat, z = coef.flatten(2), inputs[0].flatten(2)
        lower = self._lower_slope(flat.shape[1], alpha)
        above = torch.addcmul(self._rows.offset, self._rows.upper, z)
        return torch.where(flat >= 0, lower * z, above).unflatten(2, coef.shape[2:])

    def gradient(
        self,
        coef: Tensor,
        inputs: tuple[Tensor, ...],
        weight: Tensor,
        alpha: Tensor | None = None,
        with_boxes: bool = True,
    ) -> RelaxationGradient:
        """``d/dalpha_j = A_j+ z_j``; where A_j < 0 the chord moves with its ends:
        ``d/du = -A l (z - l) / (u - l)^2`` and ``d/dl = A u (z - u) / (u - l)^2`` (times 1 - leak)."""
        flat, z = coef.flatten(2), inputs[0].flatten(2)
        w = weight.unsqueeze(-1)
        d_alpha = None
        if alpha is not None:
            index = self.alpha.index
            d_alpha = (flat[:, :, index].clamp_min(0) * z[:, :, index] * w).unsqueeze(2)
        if not with_boxes:
            return RelaxationGradient(d_alpha, (None,))
        box = self.box.flat()
        negative = flat.clamp_max(0) * w
        with_z, plain = (negative * z).sum(1), negative.sum(1)
        if self.op.slope_rule == "same-slope":
            # the chord's slope is the lower line's too, except where alpha took its place
            positive = (flat.clamp_min(0) * z * w).sum(1)
            if alpha is not None:
                positive[:, self.alpha.index] = 0
            with_z = with_z + positive
        unstable = (box.lower < 0) & (box.upper > 0)
        width = torch.where(unstable, box.upper - box.lower, 1.0).clamp_min(DENOMINATOR_FLOOR)
        scale = torch.where(unstable, (1 - self.op.leak) / width**2, 0.0)
        d_upper = -box.lower * (with_z - plain * box.lower) * scale
        d_lower = box.upper * (with_z - plain * box.upper) * scale
        shape = self.box.lower.shape
        return RelaxationGradient(d_alpha, (Interval(d_lower.reshape(shape), d_upper.reshape(shape)),))

    def push(self, inputs: tuple[LinearBounds, ...]) -> LinearBounds:
        return push_lines(self.lines, inputs[0])


@dataclass(frozen=True, slots=True)
class _RowLines:
    """Lines as rows read them, ``[B, 1, n]``: made once a pass, not once a tile. ``step``: upper minus lower slope."""

    lower: Tensor
    upper: Tensor
    offset: Tensor
    step: Tensor


def _row_lines(lines: Lines) -> _RowLines:
    assert lines.upper_offset is not None
    lower, upper = lines.lower_slope.flatten(1).unsqueeze(1), lines.upper_slope.flatten(1).unsqueeze(1)
    return _RowLines(lower, upper, lines.upper_offset.flatten(1).unsqueeze(1), upper - lower)

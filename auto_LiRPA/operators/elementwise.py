"""Scalar functions applied neuron by neuron: one relaxation class for all of them, gradients by autograd of the lines.

An elementwise operator says only which lines bound it on an interval (`lines`) and, if it has optimisable parameters,
how many, where they start, their sound range and which neurons carry them. Only the tiny map (box, alpha) -> lines is
differentiated by autograd; coefficients and weights never are.
"""

from __future__ import annotations

from abc import abstractmethod
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
)
from auto_LiRPA.values import Interval, Lines


class ElementwiseOperator(NonlinearOperator):
    """A scalar function. ``alpha_count`` numbers per neuron are optimisable (0: none)."""

    alpha_count: ClassVar[int] = 0

    @abstractmethod
    def lines(self, box: Interval, alpha: Tensor | None = None) -> Lines:
        """Sound lines over ``box``; must be written with differentiable torch operations.

        Args:
            box: both sides of any broadcastable shape ``[...]``.
            alpha: None, or ``[P, ...]`` with the parameters first and then the box's (broadcast) shape.
        """

    def initial_alpha(self, box: Interval) -> Tensor:
        """Parameters that reproduce ``lines(box)``: ``[P, ...]`` over the box's shape."""
        raise NotImplementedError(type(self).__name__)

    def alpha_range(self, box: Interval) -> tuple[Tensor, Tensor]:
        """Least and greatest sound parameters, each ``[P, ...]``."""
        raise NotImplementedError(type(self).__name__)

    def alpha_mask(self, box: Interval) -> Tensor:
        """Neurons whose lines depend on the parameters (bool, box's shape)."""
        return torch.ones_like(box.lower, dtype=torch.bool)

    def relax(self, *boxes: Interval) -> Relaxation:
        return ElementwiseRelaxation(self, boxes[0])


class ElementwiseRelaxation(Relaxation):
    """Lines of a scalar function over one box, per row where alpha is given."""

    def __init__(self, op: ElementwiseOperator, box: Interval) -> None:
        self.op = op
        self.box = box
        self.lines = op.lines(box)
        self._spec: AlphaSpec | None = None

    @property
    def alpha(self) -> AlphaSpec | None:  # type: ignore[override]
        """Built on first use: finding the neurons costs one host synchronisation."""
        if self.op.alpha_count == 0:
            return None
        if self._spec is None:
            box = self.box.flat()
            index = self.op.alpha_mask(box).any(0).nonzero().squeeze(-1) if self.pinned is None else self.pinned
            part = Interval(box.lower[:, index], box.upper[:, index])
            low, high = self.op.alpha_range(part)
            self._spec = AlphaSpec(
                index,
                self.op.initial_alpha(part).transpose(0, 1),
                low.transpose(0, 1).unsqueeze(1),
                high.transpose(0, 1).unsqueeze(1),
            )
        return self._spec

    def _row_lines(self, alpha: Tensor) -> Lines:
        """Lines of the neurons with parameters, per row: ``[B, T, u]``."""
        spec = self.alpha
        assert spec is not None
        part = self.box.pick(spec.index)
        return self.op.lines(Interval(part.lower.unsqueeze(1), part.upper.unsqueeze(1)), alpha.movedim(2, 0))

    def _dense(self, rows: int, alpha: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four line tensors as ``[B, 1 or T, n]``."""
        base = self.lines
        parts = []
        for name in ("lower_slope", "lower_offset", "upper_slope", "upper_offset"):
            value = getattr(base, name)
            parts.append((torch.zeros_like(base.lower_slope) if value is None else value).flatten(1).unsqueeze(1))
        if alpha is None:
            return parts[0], parts[1], parts[2], parts[3]
        spec, row = self.alpha, self._row_lines(alpha)
        assert spec is not None
        out = []
        for name, dense in zip(("lower_slope", "lower_offset", "upper_slope", "upper_offset"), parts, strict=True):
            value = getattr(row, name)
            if value is None:
                out.append(dense)
                continue
            value = value.expand(dense.shape[0], rows, -1)
            if len(spec.index) == dense.shape[2]:  # sorted, so it is the identity
                out.append(value)
            else:
                out.append(dense.expand(-1, rows, -1).index_copy(2, spec.index, value))
        return out[0], out[1], out[2], out[3]

    def pull(self, coef: Tensor, alpha: Tensor | None = None, owned: bool = False) -> Pulled:
        flat = coef.flatten(2)
        lower_slope, lower_offset, upper_slope, upper_offset = self._dense(flat.shape[1], alpha)
        positive = flat >= 0
        bias = (flat * torch.where(positive, lower_offset, upper_offset)).sum(-1)
        out = flat * torch.where(positive, lower_slope, upper_slope)
        return Pulled((out.unflatten(2, coef.shape[2:]),), bias)

    def values(self, coef: Tensor, inputs: tuple[Tensor, ...], alpha: Tensor | None = None) -> Tensor:
        flat, z = coef.flatten(2), inputs[0].flatten(2)
        lower_slope, lower_offset, upper_slope, upper_offset = self._dense(flat.shape[1], alpha)
        positive = flat >= 0
        slope = torch.where(positive, lower_slope, upper_slope)
        return (slope * z + torch.where(positive, lower_offset, upper_offset)).unflatten(2, coef.shape[2:])

    def gradient(
        self,
        coef: Tensor,
        inputs: tuple[Tensor, ...],
        weight: Tensor,
        alpha: Tensor | None = None,
        with_boxes: bool = True,
    ) -> RelaxationGradient:
        flat, z = coef.flatten(2), inputs[0].flatten(2)
        w = weight.unsqueeze(-1)
        positive, negative = flat.clamp_min(0) * w, flat.clamp_max(0) * w
        adjoints = (positive * z, positive, negative * z, negative)
        box = self.box.flat()
        index = self.alpha.index if alpha is not None and self.alpha is not None else None
        d_alpha: Tensor | None = None
        # neurons without parameters share their lines over the rows
        summed = [a.sum(1) for a in adjoints]
        if index is not None and alpha is not None:
            for total in summed:
                total[:, index] = 0
        _, d_lower, d_upper = self._lines_vjp(box, None, summed)
        if index is not None and alpha is not None:
            part = Interval(box.lower[:, index].unsqueeze(1), box.upper[:, index].unsqueeze(1))
            d_alpha, low, high = self._lines_vjp(part, alpha, [a[:, :, index] for a in adjoints])
            d_lower[:, index], d_upper[:, index] = low.squeeze(1), high.squeeze(1)
        shape = self.box.lower.shape
        return RelaxationGradient(d_alpha, (Interval(d_lower.reshape(shape), d_upper.reshape(shape)),))

    def _lines_vjp(
        self, box: Interval, alpha: Tensor | None, adjoints: list[Tensor]
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Derivatives of ``sum adjoint . line`` by alpha, lower and upper, through the lines only."""
        with torch.enable_grad():
            lower = box.lower.detach().requires_grad_()
            upper = box.upper.detach().requires_grad_()
            leaf = None if alpha is None else alpha.detach().requires_grad_()
            lines = self.op.lines(Interval(lower, upper), None if leaf is None else leaf.movedim(2, 0))
            named = (lines.lower_slope, lines.lower_offset, lines.upper_slope, lines.upper_offset)
            total = sum(
                ((a * line).sum() for a, line in zip(adjoints, named, strict=True) if line is not None),
                start=(lower.sum() + upper.sum()) * 0,
            )
            leaves = [lower, upper] if leaf is None else [lower, upper, leaf]
            grads = torch.autograd.grad(total, leaves, allow_unused=True)
        filled = [torch.zeros_like(x) if g is None else torch.nan_to_num(g) for g, x in zip(grads, leaves, strict=True)]
        return (filled[2] if leaf is not None else None), filled[0], filled[1]

    def push(self, inputs: tuple[LinearBounds, ...]) -> LinearBounds:
        return push_lines(self.lines, inputs[0])


def push_lines(lines: Lines, x: LinearBounds) -> LinearBounds:
    """Forward mode through lines: a negative slope swaps which side of the input is used."""

    def side(slope: Tensor, offset: Tensor | None, low: LinearBounds, upper: bool) -> tuple[Tensor, Tensor]:
        pos, neg = slope.clamp_min(0), slope.clamp_max(0)
        first_w, second_w = (low.upper_w, low.lower_w) if upper else (low.lower_w, low.upper_w)
        first_b, second_b = (low.upper_b, low.lower_b) if upper else (low.lower_b, low.upper_b)
        weight = pos.unsqueeze(1) * first_w + neg.unsqueeze(1) * second_w
        bias = pos * first_b + neg * second_b
        return weight, bias if offset is None else bias + offset

    lower_w, lower_b = side(lines.lower_slope, lines.lower_offset, x, upper=False)
    upper_w, upper_b = side(lines.upper_slope, lines.upper_offset, x, upper=True)
    return LinearBounds(lower_w, lower_b, upper_w, upper_b)

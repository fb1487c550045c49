"""Relaxations of several entries at once: `pull` is their only rule, values and gradients are its local derivatives.

The bound ``sum coefs . x + bias`` is piecewise linear in the coefficient of a node, so its derivative by that
coefficient is the node's value on the piece that the row took. Autograd sees this one node of one tile, with the point
x held fixed (envelope theorem): no weight, no other node's coefficients, no graph over layers.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from auto_LiRPA.operators.base import Pulled, Relaxation, RelaxationGradient
from auto_LiRPA.values import Interval


class LocalRelaxation(Relaxation):
    """A relaxation over ``boxes`` (one per input) whose ``pull`` is written with differentiable torch operations.

    ``pull`` has to be linear in ``coef`` for fixed signs of its entries, and to choose pieces by `positive_part` and
    `negative_part`, whose derivatives at 0 belong to one piece only.
    """

    boxes: tuple[Interval, ...]

    @abstractmethod
    def over(self, boxes: tuple[Interval, ...]) -> LocalRelaxation:
        """The same relaxation over other boxes."""

    def values(self, coef: Tensor, inputs: tuple[Tensor, ...], alpha: Tensor | None = None) -> Tensor:
        batch = max(coef.shape[0], self.boxes[0].lower.shape[0])
        with torch.enable_grad():
            leaf = coef.detach().expand(batch, *coef.shape[1:]).requires_grad_()
            bound = _bound(self.pull(leaf, None if alpha is None else alpha.detach()), inputs)
            (found,) = torch.autograd.grad(bound.sum(), [leaf])
        return found

    def gradient(
        self,
        coef: Tensor,
        inputs: tuple[Tensor, ...],
        weight: Tensor,
        alpha: Tensor | None = None,
        with_boxes: bool = True,
    ) -> RelaxationGradient:
        if alpha is None and not with_boxes:
            return RelaxationGradient(None, (None,) * len(inputs))
        with torch.enable_grad():
            sides = [s.detach().requires_grad_(with_boxes) for b in self.boxes for s in (b.lower, b.upper)]
            moved = self.over(tuple(Interval(*sides[2 * i : 2 * i + 2]) for i in range(len(self.boxes))))
            moved.pinned = None if self.alpha is None else self.alpha.index
            leaf = None if alpha is None else alpha.detach().requires_grad_()
            total = (weight * _bound(moved.pull(coef.detach(), leaf), inputs)).sum()
            leaves = [*(sides if with_boxes else []), *([] if leaf is None else [leaf])]
            grads = torch.autograd.grad(total, leaves, allow_unused=True)
        filled = [torch.zeros_like(x) if g is None else torch.nan_to_num(g) for g, x in zip(grads, leaves, strict=True)]
        if not with_boxes:
            return RelaxationGradient(filled[0], (None,) * len(inputs))
        boxes = tuple(Interval(*filled[2 * i : 2 * i + 2]) for i in range(len(self.boxes)))
        return RelaxationGradient(None if leaf is None else filled[-1], boxes)


def _bound(pulled: Pulled, inputs: tuple[Tensor, ...]) -> Tensor:
    """The rows' bounds ``[B, T]`` at the points ``inputs[i]`` ``[B, T, *in_i]``."""
    parts = [(c * x).flatten(2).sum(-1) for c, x in zip(pulled.coefs, inputs, strict=True)]
    total = sum(parts[1:], start=parts[0])
    return total if pulled.bias is None else total + pulled.bias


def positive_part(coef: Tensor) -> Tensor:
    """``max(coef, 0)``, with derivative 1 at 0."""
    return torch.where(coef >= 0, coef, 0.0)


def negative_part(coef: Tensor) -> Tensor:
    """``min(coef, 0)``, with derivative 0 at 0. NaN belongs here, so that it stays NaN."""
    return torch.where(coef >= 0, 0.0, coef)

"""Elementwise affine maps whose constants are as large as blocks of weights, and live where the weights live."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from auto_LiRPA.operators.adjoint import linear_step
from auto_LiRPA.operators.base import LinearOperator
from auto_LiRPA.parallel.store import Weight


@dataclass(frozen=True)
class PlacedAffine(LinearOperator):
    """``y = scale * x + shift``, both of the per-sample shape (at least one axis); None means 1 and 0."""

    scale: Weight | None
    shift: Weight | None
    elementwise: ClassVar[bool] = True

    def bias_values(self) -> Tensor | None:
        return None if self.shift is None else torch.cat([block.data.clone() for block in self.shift.blocks()])

    def apply(self, *inputs: Tensor) -> Tensor:
        return self._scaled(inputs[0], absolute=False)

    def apply_abs(self, *inputs: Tensor) -> Tensor:
        return self._scaled(inputs[0], absolute=True)

    def transpose(self, coef: Tensor) -> tuple[Tensor, ...]:
        return (self._scaled(coef, absolute=False),)

    def bias_dot(self, coef: Tensor) -> Tensor | None:
        """Summed block by block; the constant is never in one piece."""
        if self.shift is None:
            return None
        return self._dot(coef) if self.shift.requires_grad else linear_step(coef, self._dot, self._times_shift)

    def _scaled(self, x: Tensor, absolute: bool) -> Tensor:
        if self.scale is None:
            return x
        step = partial(_times, self.scale, absolute=absolute)
        return step(x) if self.scale.requires_grad else linear_step(x, step, step)

    def _dot(self, coef: Tensor) -> Tensor:
        assert self.shift is not None
        parts = [(coef[:, b.start : b.stop] * b.data).flatten(1).sum(1) for b in self.shift.blocks()]
        return torch.stack(parts).sum(0)

    def _times_shift(self, gradient: Tensor) -> Tensor:
        """The adjoint of `_dot`: ``[N] -> [N, *shape]``."""
        assert self.shift is not None
        ones = gradient.reshape(-1, *([1] * len(self.shift.shape))).expand(-1, *self.shift.shape)
        return _times(self.shift, ones)


def _times(constant: Weight, x: Tensor, absolute: bool = False) -> Tensor:
    parts = [x[:, b.start : b.stop] * (b.data.abs() if absolute else b.data) for b in constant.blocks()]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

"""Elementwise affine maps and sums: Add, Sub, Mul, Div with constants, Neg, BatchNormalization, residual sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from auto_LiRPA.operators.base import LinearOperator
from auto_LiRPA.values import Window


@dataclass(frozen=True)
class Affine(LinearOperator):
    """``y = scale * x + shift``. ``scale`` and ``shift`` broadcast to the per-sample shape; None means 1 and 0."""

    scale: Tensor | None
    shift: Tensor | None
    elementwise: ClassVar[bool] = True
    recordable: ClassVar[bool] = True

    def bias_values(self) -> Tensor | None:
        return self.shift

    def apply(self, *inputs: Tensor) -> Tensor:
        return inputs[0] if self.scale is None else inputs[0] * self.scale

    def apply_abs(self, *inputs: Tensor) -> Tensor:
        return inputs[0] if self.scale is None else inputs[0] * self.scale.abs()

    def transpose(self, coef: Tensor) -> tuple[Tensor, ...]:
        return (coef if self.scale is None else coef * self.scale,)

    def transpose_window(self, coef: Tensor, window: Window) -> tuple[tuple[Tensor, Window], ...] | None:
        for value in (self.scale, self.shift):
            if value is not None and any(n != 1 for n in value.shape[-len(window.start) :]):
                return None
        return ((self.transpose(coef)[0], window),)


@dataclass(frozen=True)
class Add(LinearOperator):
    """``x + y`` of two branches of equal shape (broadcasts are written as Expand nodes)."""

    nonnegative: ClassVar[bool] = True
    recordable: ClassVar[bool] = True

    def apply(self, *inputs: Tensor) -> Tensor:
        return inputs[0] + inputs[1]

    def transpose(self, coef: Tensor) -> tuple[Tensor, ...]:
        return coef, coef

    def transpose_window(self, coef: Tensor, window: Window) -> tuple[tuple[Tensor, Window], ...] | None:
        return (coef, window), (coef, window)


@dataclass(frozen=True)
class Sub(LinearOperator):
    """``x - y`` of two branches of equal shape."""

    recordable: ClassVar[bool] = True

    def apply(self, *inputs: Tensor) -> Tensor:
        return inputs[0] - inputs[1]

    def apply_abs(self, *inputs: Tensor) -> Tensor:
        return inputs[0] + inputs[1]

    def transpose(self, coef: Tensor) -> tuple[Tensor, ...]:
        return coef, -coef

    def transpose_window(self, coef: Tensor, window: Window) -> tuple[tuple[Tensor, Window], ...] | None:
        return (coef, window), (-coef, window)

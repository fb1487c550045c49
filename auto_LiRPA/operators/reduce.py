"""Sums and means over per-sample axes (ReduceSum, ReduceMean, GlobalAveragePool). Exact everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from auto_LiRPA.operators.base import LinearOperator


@dataclass(frozen=True)
class ReduceSum(LinearOperator):
    """Sum over ``axes`` of the per-sample shape ``in_shape`` (axis 0 is the first one after the batch)."""

    axes: tuple[int, ...]
    keepdims: bool
    in_shape: tuple[int, ...]
    nonnegative: ClassVar[bool] = True

    def apply(self, *inputs: Tensor) -> Tensor:
        if not self.axes:  # torch reads an empty list of axes as all of them
            return inputs[0]
        return inputs[0].sum([a + 1 for a in self._positive()], keepdim=self.keepdims)

    def transpose(self, coef: Tensor) -> tuple[Tensor, ...]:
        kept = tuple(1 if a in self._positive() else n for a, n in enumerate(self.in_shape))
        spread = coef.reshape(coef.shape[0], *kept).expand(coef.shape[0], *self.in_shape)
        # entries of an expanded tensor share memory, and the next step may want to write in place
        return (spread.contiguous(),)

    def _positive(self) -> tuple[int, ...]:
        return tuple(a % len(self.in_shape) for a in self.axes)

    @property
    def count(self) -> int:
        """How many entries go into one sum."""
        n = 1
        for a in self._positive():
            n *= self.in_shape[a]
        return n


@dataclass(frozen=True)
class ReduceMean(ReduceSum):
    """Mean over ``axes``."""

    def apply(self, *inputs: Tensor) -> Tensor:
        return super().apply(*inputs) / self.count

    def transpose(self, coef: Tensor) -> tuple[Tensor, ...]:
        return super().transpose(coef / self.count)

"""Maps that copy entries: reshape, transpose, slice, gather, concatenation, padding, expansion. Exact everywhere.

All axes are per-sample axes: axis 0 is the first one after the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from auto_LiRPA.operators.base import LinearOperator


@dataclass(frozen=True)
class Reshape(LinearOperator):
    """Same entries, other shape (Flatten, Squeeze and Unsqueeze too)."""

    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    nonnegative: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True
    recordable: ClassVar[bool] = True

    def apply(self, *inputs: Tensor) -> Tensor:
        return inputs[0].reshape(inputs[0].shape[0], *self.out_shape)

    def transpose(self, coef: Tensor) -> tuple[Tensor, ...]:
        return (coef.reshape(coef.shape[0], *self.in_shape),)


@dataclass(frozen=True)
class Transpose(LinearOperator):
    """Per-sample axes permuted: output axis i is input axis ``perm[i]``."""

    perm: tuple[int, ...]
    nonnegative: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True
    recordable: ClassVar[bool] = True

    def apply(self, *inputs: Tensor) -> Tensor:
        return inputs[0].permute(0, *(p + 1 for p in self.perm))

    def transpose(self, coef: Tensor) -> tuple[Tensor, ...]:
        inverse = sorted(range(len(self.perm)), key=self.perm.__getitem__)
        return (coef.permute(0, *(p + 1 for p in inverse)),)


@dataclass(frozen=True)
class Select(LinearOperator):
    """Entries ``index`` along one axis, in that order, with repeats allowed (Slice, Gather, Split)."""

    axis: int
    index: Tensor
    in_shape: tuple[int, ...]
    nonnegative: ClassVar[bool] = True

    def apply(self, *inputs: Tensor) -> Tensor:
        return inputs[0].index_select(self.axis + 1, self.index)

    def transpose(self, coef: Tensor) -> tuple[Tensor, ...]:
        out = coef.new_zeros(coef.shape[0], *self.in_shape)
        return (out.index_add(self.axis + 1, self.index, coef),)


@dataclass(frozen=True)
class Cut(LinearOperator):
    """The contiguous entries ``start:stop`` along one axis (the common Slice and Split)."""

    axis: int
    start: int
    stop: int
    in_shape: tuple[int, ...]
    nonnegative: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True

    def apply(self, *inputs: Tensor) -> Tensor:
        return inputs[0].narrow(self.axis + 1, self.start, self.stop - self.start)

    def transpose(self, coef: Tensor) -> tuple[Tensor, ...]:
        out = coef.new_zeros(coef.shape[0], *self.in_shape)
        out.narrow(self.axis + 1, self.start, self.stop - self.start).copy_(coef)
        return (out,)


@dataclass(frozen=True)
class Concat(LinearOperator):
    """Branches joined along one axis. ``sizes``: each branch's length there."""

    axis: int
    sizes: tuple[int, ...]
    nonnegative: ClassVar[bool] = True

    def apply(self, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, dim=self.axis + 1)

    def transpose(self, coef: Tensor) -> tuple[Tensor, ...]:
        return tuple(coef.split(self.sizes, dim=self.axis + 1))


@dataclass(frozen=True)
class PadConstant(LinearOperator):
    """Constant entries around the value. ``before``/``after``: added entries per axis (not negative).

    ``fill`` is the constant term, ``[*out]``: zero where the input's own entries stand. It also serves Concat with
    constants: pad, then the constant as fill.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    fill: Tensor | None
    nonnegative: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True

    def bias_values(self) -> Tensor | None:
        return self.fill

    def apply(self, *inputs: Tensor) -> Tensor:
        pads = [p for pair in zip(reversed(self.before), reversed(self.after), strict=True) for p in pair]
        return torch.nn.functional.pad(inputs[0], pads)

    def transpose(self, coef: Tensor) -> tuple[Tensor, ...]:
        for axis, (before, after) in enumerate(zip(self.before, self.after, strict=True)):
            coef = coef.narrow(axis + 1, before, coef.shape[axis + 1] - before - after)
        return (coef,)


@dataclass(frozen=True)
class Expand(LinearOperator):
    """Entries repeated along axes of length 1. Both shapes have the same number of axes."""

    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    nonnegative: ClassVar[bool] = True

    def apply(self, *inputs: Tensor) -> Tensor:
        return inputs[0].expand(inputs[0].shape[0], *self.out_shape)

    def transpose(self, coef: Tensor) -> tuple[Tensor, ...]:
        axes = [i + 1 for i, (a, b) in enumerate(zip(self.in_shape, self.out_shape, strict=True)) if a != b]
        return (coef.sum(axes, keepdim=True) if axes else coef,)

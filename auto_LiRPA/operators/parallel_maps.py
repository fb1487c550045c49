"""Where a network enters and leaves the part whose neurons are spread over ranks (tensor parallelism, DESIGN 2.4).

Both maps are the identity of one rank's view: `Enter` forward, `Exit` on coefficients. The other way round they add up
what the ranks have: coefficients on a zone's input are partial sums, as the values behind its last weights are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from auto_LiRPA.operators.base import LinearBounds, LinearOperator
from auto_LiRPA.operators.linear import Linear
from auto_LiRPA.values import Interval, Window


class Ranks(Protocol):
    """The ranks that the neurons are spread over."""

    @property
    def rank(self) -> int:
        """Number of this one."""
        ...

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def total(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks, in place; the same bits on all of them."""
        ...

    def broadcast(self, tensor: Tensor, source: int) -> Tensor:
        """Rank ``source``'s content, in place."""
        ...

    def gather(self, part: Tensor) -> Tensor:
        """Every rank's tensor, all of one shape: ``[size, *shape]``."""
        ...


@dataclass(frozen=True)
class Enter(LinearOperator):
    """The same value on every rank; each reads it for its own neurons. Coefficients that come back are added up."""

    ranks: Ranks
    nonnegative: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True
    recordable: ClassVar[bool] = True

    def apply(self, *inputs: Tensor) -> Tensor:
        return _copied(inputs[0], self.ranks)

    def transpose(self, coef: Tensor) -> tuple[Tensor, ...]:
        """In place: what arrives was made by a product with this rank's weights, and nobody else has it."""
        return (_summed(coef, self.ranks),)

    def transpose_window(self, coef: Tensor, window: Window) -> tuple[tuple[Tensor, Window], ...] | None:
        return ((_summed(coef, self.ranks), window),)


@dataclass(frozen=True)
class Exit(LinearOperator):
    """The sum of what every rank's neurons contribute, and then the bias, once.

    ``bias``: one number per entry of the last axis, or per channel where ``spatial`` axes follow it; None for zero.
    """

    ranks: Ranks
    bias: Tensor | None
    spatial: int
    nonnegative: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True
    recordable: ClassVar[bool] = True

    def bias_values(self) -> Tensor | None:
        return None if self.bias is None else self.bias.reshape(-1, *([1] * self.spatial))

    def bias_dot(self, coef: Tensor) -> Tensor | None:
        if self.bias is None:
            return None
        if self.spatial:
            return coef.flatten(2).sum(2) @ self.bias
        dot = coef @ self.bias
        return dot if dot.ndim == 1 else dot.flatten(1).sum(1)

    def apply(self, *inputs: Tensor) -> Tensor:
        return _summed(inputs[0], self.ranks)

    def interval(self, *inputs: Interval) -> Interval:
        """Both ends in one sum."""
        bias = self.bias_values()
        both = _summed(torch.stack([inputs[0].lower, inputs[0].upper]), self.ranks)
        lower, upper = both.unbind(0)
        return Interval(lower, upper) if bias is None else Interval(lower + bias, upper + bias)

    def push(self, inputs: tuple[LinearBounds, ...]) -> LinearBounds:
        bias = self.bias_values()
        parts = (inputs[0].lower_w, inputs[0].lower_b, inputs[0].upper_w, inputs[0].upper_b)
        # the weights may be views that others read
        lower_w, lower_b, upper_w, upper_b = (_summed(part.clone(), self.ranks) for part in parts)
        if bias is not None:
            lower_b, upper_b = lower_b + bias, upper_b + bias
        return LinearBounds(lower_w, lower_b, upper_w, upper_b)

    def transpose(self, coef: Tensor) -> tuple[Tensor, ...]:
        return (_copied(coef, self.ranks),)

    def transpose_window(self, coef: Tensor, window: Window) -> tuple[tuple[Tensor, Window], ...] | None:
        if self.bias is not None and not self.spatial:
            return None  # the constant term varies along the last axis, of which the window has a part
        return ((_copied(coef, self.ranks), window),)


@dataclass(frozen=True)
class ColumnLinear(Linear):
    """This rank's rows of a weight, behind an `Enter`. ``whole_bias``: all ranks', for passes that start here."""

    whole_bias: Tensor | None = None


def _summed(part: Tensor, ranks: Ranks) -> Tensor:
    if torch.is_grad_enabled() and part.requires_grad:
        summed: Tensor = _Sum.apply(part, ranks)
        return summed
    return ranks.total(part if part.is_contiguous() else part.contiguous())


def _copied(value: Tensor, ranks: Ranks) -> Tensor:
    if torch.is_grad_enabled() and value.requires_grad:
        copied: Tensor = _Copy.apply(value, ranks)
        return copied
    return value


class _Sum(torch.autograd.Function):
    """Adds up forward; every rank's part has the sum's derivative."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, ranks: Ranks) -> Tensor:
        return ranks.total(part.contiguous().clone())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _Copy(torch.autograd.Function):
    """The same value forward; its derivative is the sum over the ranks that read it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.total(grads[0].contiguous().clone()), None

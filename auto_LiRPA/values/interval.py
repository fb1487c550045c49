"""An elementwise interval over a batch of values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Interval:
    """``lower <= x <= upper`` elementwise; both tensors have shape ``[B, *shape]``."""

    lower: Tensor
    upper: Tensor

    def intersect(self, other: Interval) -> Interval:
        """The tighter of both sides, element by element. A NaN side never wins over a number."""
        return Interval(torch.fmax(self.lower, other.lower), torch.fmin(self.upper, other.upper))

    def flat(self) -> Interval:
        """The same interval with the value's axes flattened: ``[B, n]``."""
        return Interval(self.lower.flatten(1), self.upper.flatten(1))

    def pick(self, index: Tensor) -> Interval:
        """Interval of the flattened neurons ``index`` only: ``[B, len(index)]``."""
        return Interval(self.lower.flatten(1)[:, index], self.upper.flatten(1)[:, index])

    def detach(self) -> Interval:
        """Without the graph that made it, so that it keeps nothing else alive."""
        return Interval(self.lower.detach(), self.upper.detach())

    def rows(self, start: int, stop: int) -> Interval:
        """The batch elements ``start:stop``."""
        return Interval(self.lower[start:stop], self.upper[start:stop])

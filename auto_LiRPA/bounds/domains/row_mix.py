"""The weights of a clause's rows, optimised along with alpha and beta (see `bounds.optimize.RowMix`)."""

from __future__ import annotations

import torch
from torch import Tensor

from auto_LiRPA.bounds.ascent import BETA1, BETA2, EPSILON
from auto_LiRPA.bounds.domains.batch import Batch

LR_MIX = 0.05  # weights live in [0, 1] and have to be able to cross it within one round


def mixed_row(batch: Batch, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients ``[D, *out]`` and constant ``[D]`` of each domain's weighted sum of rows."""
    if batch.c.shape[1] == 1:
        return batch.c[:, 0], -batch.rhs[:, 0]
    coef = torch.bmm(weight.unsqueeze(1), batch.c.flatten(2)).squeeze(1)
    return coef.reshape(-1, *batch.c.shape[2:]), -(weight * batch.rhs).sum(1)


class MixState:
    """Weights ``[D, R]`` with their Adam moments."""

    def __init__(self, batch: Batch) -> None:
        self.weight, self.best = batch.mix.clone(), batch.mix.clone()
        self._first, self._second = torch.zeros_like(self.weight), torch.zeros_like(self.weight)
        self.learns = batch.c.shape[1] > 1

    @property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Adam's running means."""
        return self._first, self._second

    def pick(self, index: Tensor) -> None:
        """Go on with some of the domains only."""
        for name in ("weight", "best", "_first", "_second"):
            setattr(self, name, getattr(self, name)[index])

    def keep(self, take: Tensor) -> None:
        """Remember the weights of the domains ``take`` ``[D]``."""
        if self.learns:
            torch.where(take.unsqueeze(1), self.weight, self.best, out=self.best)

    def ascend(self, batch: Batch, value: Tensor, active: Tensor, step: Tensor | int, rate: Tensor | float) -> None:
        """One Adam step along the simplex: ``value`` ``[D, *out]`` is the output at each row's minimising input.

        ``step`` and ``rate`` may be tensors without an axis, so that a captured graph can read them.
        """
        gap = torch.bmm(batch.c.flatten(2), value.flatten(1).unsqueeze(2)).squeeze(2) - batch.rhs
        gap = torch.where(batch.real, gap, 0.0)
        gradient = torch.where(batch.real, gap - (self.weight * gap).sum(1, keepdim=True), 0.0) * active.unsqueeze(1)
        self._first.lerp_(gradient, 1 - BETA1)
        self._second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        root = (1 - BETA2**step) ** 0.5
        move = self._first / (self._second.sqrt() + EPSILON * root) * (rate * root / (1 - BETA1**step))
        moved = (self.weight + move).clamp_min(0)
        total = moved.sum(1, keepdim=True)
        tiny = torch.finfo(moved.dtype).tiny
        # weights that momentum took to 0 all at once would make a row that is 0 everywhere, and look like a proof
        self.weight.copy_(torch.where(total > tiny, moved / total.clamp_min(tiny), self.weight))

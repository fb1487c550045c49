"""The steps of a pass over domains in plain torch operations: what the CPU runs, and a GPU without Triton."""

from __future__ import annotations

import torch
from torch import Tensor

from auto_LiRPA.bounds.ascent import BETA1, BETA2, EPSILON
from auto_LiRPA.bounds.domains.batch import Batch, split_box
from auto_LiRPA.bounds.domains.schedule import ReluStep


class EagerKernels:
    """State of one batch on flat ``[D, W]`` tensors, and the ReLU steps on them.

    Down (from the output): a coefficient A on a ReLU's output becomes one on its input, with the lower line where
    A >= 0 and the chord where A < 0. Up (from the input): the row's relaxed network at its minimising input, which
    gives the derivatives of the bound: ``A+ z`` by alpha and ``-sign z`` by beta (DESIGN 5).
    """

    def __init__(self, batch: Batch, learns: bool) -> None:
        lower, upper = split_box(batch.lower, batch.upper, batch.sign)
        on = lower >= 0
        self._free = ~(on | (upper <= 0))  # a NaN bound proves no stability
        width = torch.where(self._free, upper - lower, 1.0)
        positive = (upper / width).clamp(0, 1)
        self._chord = torch.where(self._free, positive, on.to(positive))
        self._offset = torch.where(self._free, -positive * lower, 0.0)
        self._cap = torch.where(self._free, 1.0, torch.inf).to(positive)
        # alpha lies in [0, 1] and beta is not negative, or the bound would be none
        self.value = torch.minimum(batch.value.clamp_min(0), self._cap)
        self.best = self.value
        if learns:
            self.best = self.value.clone()
            self._first, self._second = torch.zeros_like(self.value), torch.zeros_like(self.value)
            self._gradient = torch.zeros_like(self.value)
        self._sign = batch.sign.to(self.value.dtype)
        self._split = batch.sign != 0
        self.refresh()

    def refresh(self) -> None:
        """Slopes and shifts of the present variables; once an iteration."""
        self._low = torch.where(self._free, self.value, self._chord)
        self._step = self._chord - self._low
        self._shift = self.value * self._sign

    def pick(self, index: Tensor) -> None:
        """Go on with some of the domains only."""
        names = ("value", "best", "_first", "_second", "_gradient", "_free", "_chord", "_offset", "_sign", "_split")
        for name in (*names, "_cap", "_low", "_step", "_shift"):
            setattr(self, name, getattr(self, name)[index])

    def down(self, step: ReluStep, coef: Tensor, bias: Tensor) -> Tensor:
        """``[D, n] -> [D, n]``; what the step adds to the bound goes to ``bias`` ``[D]``."""
        columns = slice(step.start, step.start + step.width)
        low, rise, shift = self._low[:, columns], self._step[:, columns], self._shift[:, columns]
        out = torch.empty_like(coef) if step.prefix else coef * step.passes
        mine = coef[:, : step.width] if step.prefix else coef.index_select(1, step.index)
        negative = mine.clamp_max(0)
        bias.add_((negative * self._offset[:, columns]).sum(1))
        target = out[:, : step.width] if step.prefix else torch.empty_like(mine)
        torch.mul(mine, low, out=target)
        target.addcmul_(negative, rise).sub_(shift)
        if step.prefix:
            out[:, step.width :] = coef[:, step.width :]
        else:
            out.index_copy_(1, step.index, target)
        if step.bias is not None:
            bias.addmv_(out, step.bias)
        return out

    def up(self, step: ReluStep, coef: Tensor, z: Tensor, owned: bool) -> Tensor:
        """Values after the ReLU from those before it ``[D, n]``; leaves the derivatives of its columns behind."""
        columns = slice(step.start, step.start + step.width)
        a = coef[:, : step.width] if step.prefix else coef.index_select(1, step.index)
        mine = z[:, : step.width] if step.prefix else z.index_select(1, step.index)
        gradient = self._gradient[:, columns]
        torch.mul(a.clamp_min(0), self._free[:, columns], out=gradient)
        gradient.sub_(self._sign[:, columns]).mul_(mine)
        above = torch.addcmul(self._offset[:, columns], self._chord[:, columns], mine)
        result = torch.where(a >= 0, self._low[:, columns] * mine, above)
        if not step.prefix:
            return (z * step.passes).index_copy_(1, step.index, result)
        out = z if owned else z.clone()
        out[:, : step.width] = result
        return out

    def ascend(self, weight: Tensor, step: int, lr_alpha: float, lr_beta: float) -> None:
        """One Adam step of all variables (Kingma and Ba 2015, algorithm 1); ``step`` counts from 1."""
        gradient = self._gradient.mul_(weight.unsqueeze(1))
        self._first.lerp_(gradient, 1 - BETA1)
        self._second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        scale = (1 - BETA2**step) ** 0.5
        move = torch.sqrt(self._second, out=gradient).add_(EPSILON * scale)
        torch.div(self._first, move, out=move)
        move.mul_(torch.where(self._split, lr_beta, lr_alpha).to(move.dtype))
        self.value.add_(move, alpha=scale / (1 - BETA1**step)).clamp_(min=0)
        torch.minimum(self.value, self._cap, out=self.value)

    def keep(self, take: Tensor) -> None:
        """Remember the variables of the domains ``take`` ``[D]`` as their best."""
        torch.where(take.unsqueeze(1), self.value, self.best, out=self.best)

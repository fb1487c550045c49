"""A box of which half-spaces cut off parts: the bound engine's view of a clipped domain."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from auto_LiRPA.values import Box, Interval
from complete_verifier.input_bab.clip import least_value


@dataclass(frozen=True, slots=True)
class CutBox:
    """``box`` without what lies outside the half-spaces ``half`` ``[B, C, m + 1]``."""

    box: Box
    half: Tensor

    @property
    def is_box(self) -> bool:
        return True  # every neuron's interval over the box holds here too

    def interval(self) -> Interval:
        return self.box.interval()

    def center(self) -> Tensor:
        return self.box.center()

    def pick(self, index: Tensor) -> CutBox:
        return CutBox(self.box.pick(index), self.half[index])

    def minimum(self, coef: Tensor) -> Tensor:
        """Lower bounds of ``coef . x``: ``[B or 1, T, *shape]`` -> ``[B, T]``."""
        batch, rows = len(self.half), coef.shape[1]
        flat = coef.flatten(2).expand(batch, -1, -1).reshape(batch * rows, -1)
        center = self.box.center().flatten(1).repeat_interleave(rows, 0)
        radius = ((self.box.upper - self.box.lower) / 2).flatten(1).repeat_interleave(rows, 0)
        half = self.half.repeat_interleave(rows, 0)
        return least_value(flat, flat.new_zeros(len(flat)), center, radius, half).reshape(batch, rows)

    def minimizer(self, coef: Tensor) -> Tensor:
        """Where the whole box has its least value: a direction to climb, nothing that a bound rests on."""
        return self.box.minimizer(coef)

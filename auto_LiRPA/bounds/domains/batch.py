"""What is asked of a batch of domains, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from auto_LiRPA.values import Region


@dataclass(frozen=True, slots=True)
class Batch:
    """D domains, W columns, R rows a clause. Everything of a domain that its bound depends on.

    ``sign`` ``[D, W]`` int8. ``value`` ``[D, W]``: alpha of a neuron that is not split, beta of one that is.
    ``lower``, ``upper`` ``[D or 1, W]``: boxes of the columns before the splits. ``c`` ``[D, R, *out]``, ``rhs``
    ``[D, R]`` (0 on padding), ``real`` ``[D, R]`` bool, ``mix`` ``[D, R]``: the domain's one row is
    ``sum_r mix_r (c_r . y - rhs_r)``. ``strict`` ``[D]`` bool: a bound of exactly 0 refutes the clause as well.
    """

    sign: Tensor
    value: Tensor
    lower: Tensor
    upper: Tensor
    region: Region
    c: Tensor
    rhs: Tensor
    real: Tensor
    mix: Tensor
    strict: Tensor

    def __len__(self) -> int:
        return int(self.sign.shape[0])

    def pick(self, index: Tensor) -> Batch:
        """Some of the domains."""
        lower, upper, region = self.lower, self.upper, self.region
        if len(self) != 1 and lower.shape[0] != 1:
            lower, upper = lower[index], upper[index]
        if len(self) != 1 and region.center().shape[0] != 1:
            region = region.pick(index)
        return Batch(
            self.sign[index],
            self.value[index],
            lower,
            upper,
            region,
            self.c[index],
            self.rhs[index],
            self.real[index],
            self.mix[index],
            self.strict[index],
        )


@dataclass(frozen=True, slots=True)
class Bounded:
    """Best bound ``lower`` ``[D]`` of any iteration, and the variables of each domain's best: ``value``, ``mix``."""

    lower: Tensor
    value: Tensor
    mix: Tensor
    iterations: int


@dataclass(frozen=True, slots=True)
class ColumnFacts:
    """Per column ``[D, W]``: coefficient on the ReLU's output, and the neuron's box with the splits in it."""

    coef: Tensor
    lower: Tensor
    upper: Tensor


def split_box(lower: Tensor, upper: Tensor, sign: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes of the columns once the splits hold: sign +1 means z >= 0, -1 means z <= 0."""
    return torch.where(sign > 0, lower.clamp_min(0), lower), torch.where(sign < 0, upper.clamp_max(0), upper)


def proven(lower: Tensor, strict: Tensor) -> Tensor:
    """Which domains ``[D]`` a bound closes. A NaN or an infinity (sums that overflow) closes nothing."""
    return ((lower > 0) | (strict & (lower >= 0))) & torch.isfinite(lower)

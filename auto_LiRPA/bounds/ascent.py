"""Adam ascent over a list of tensors, all updated together, without a host synchronisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # torch.optim.Adam's defaults, which upstream keeps


@dataclass(frozen=True, slots=True)
class Moments:
    """Adam's running means of the gradient and of its square, one pair per variable."""

    first: list[Tensor]
    second: list[Tensor]

    @classmethod
    def zero(cls, variables: Sequence[Tensor]) -> Moments:
        """The moments before the first step."""
        return cls([torch.zeros_like(v) for v in variables], [torch.zeros_like(v) for v in variables])


def ascend(
    variables: Sequence[Tensor], gradients: Sequence[Tensor], moments: Moments, rates: Sequence[float], step: int
) -> None:
    """One Adam step uphill, in place (Kingma and Ba 2015, algorithm 1). ``step`` counts from 1."""
    if not variables:
        return
    torch._foreach_lerp_(moments.first, list(gradients), 1 - BETA1)
    torch._foreach_mul_(moments.second, BETA2)
    torch._foreach_addcmul_(moments.second, list(gradients), list(gradients), 1 - BETA2)
    scale = (1 - BETA2**step) ** 0.5
    denominators = torch._foreach_sqrt(moments.second)
    torch._foreach_add_(denominators, EPSILON * scale)
    factors = [rate * scale / (1 - BETA1**step) for rate in rates]
    torch._foreach_addcdiv_(list(variables), moments.first, denominators, factors)

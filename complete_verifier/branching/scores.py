"""BaBSR scores: the estimated effect of a split on the bound (Bunel et al. 2020; interface 7.6)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from complete_verifier.branching.columns import Columns

MAIN_FLOOR = 1e-4  # main scores at or below it say nothing (interface 7.6, kfsb)
BACKUP_FLOOR = -1e-4


@dataclass(frozen=True, slots=True)
class Scores:
    """Per domain and splittable neuron ``[D, U]``: ``main`` larger is better, ``backup`` more negative is better.

    Neurons that cannot be split any more have ``splittable`` False and must not be chosen.
    """

    main: Tensor
    backup: Tensor
    splittable: Tensor


def flat_scores(
    columns: Columns, coef: Tensor, lower: Tensor, upper: Tensor, sign: Tensor, reduceop: str
) -> Scores:
    """Scores of every splittable neuron from tensors over all layers at once, without waiting for the device.

    With s = u/(u-l), t = -l s, b the bias and A the coefficient on the ReLU's output:
    ``main = |reduceop(A b (s-1), A b s) + [A]- t|``, ``backup = [A]- t``.

    Args:
        coef: coefficient on each ReLU's output, ``[D, U]`` (of the row that bounds the domain).
        lower: pre-activation bounds ``[D, U]``, splits not counted (strides of 0 are fine); so is ``upper``.
        sign: splits ``[D, U]``, 0 where there is none.
        reduceop: which of the two children counts in ``main``: min, max or mean; auto is min.
    """
    splittable = (lower < 0) & (upper > 0) & (sign == 0)
    share = torch.where(splittable, upper / (upper - lower), 0.0)
    rise = coef if columns.leak is None else coef * (1 - columns.leak)
    down = rise.clamp_max(0) * torch.where(splittable, -lower * share, 0.0)
    ab = rise * columns.bias
    # A b s - A b is the least of the two where A b > 0, else A b s is: no second product has to be made
    match reduceop:
        case "max":
            step = ab.clamp_max(0)
        case "mean":
            step = ab / 2
        case _:
            step = ab.clamp_min(0)
    return Scores((ab * share - step + down).abs(), down, splittable)


def intercept_scores(coef: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Area of the relaxation's triangle under the coefficient, ``(-l u)/(u-l+1e-8) |A|`` ``[D, U]``; larger is better.

    Meaningful where the neuron is unstable only.
    """
    return -lower * upper / (upper - lower + 1e-8) * coef.abs()


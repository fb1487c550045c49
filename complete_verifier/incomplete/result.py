"""What the incomplete stage hands on: bounds of every clause, boxes per region, slopes to start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from auto_LiRPA.bounds.intermediate import Intermediate


@dataclass(frozen=True, slots=True)
class IncompleteResult:
    """``lower`` ``[K, R]``: row bounds of all clauses (of the problem, in its order); ``proven`` ``[K]``.

    ``intermediate``: boxes and relaxations with one batch element per region. ``slopes``: per nonlinear node the
    final rows' slopes ``[K, R, P, u]`` where alpha-CROWN ran (u indexes that node's ``relaxation.alpha.index`` of
    ``intermediate.relaxations``), else empty.
    """

    lower: Tensor
    proven: Tensor
    intermediate: Intermediate
    slopes: Mapping[int, Tensor]


def known_gap(gap: Tensor) -> Tensor:
    """What the incomplete stage knows of clauses that it left open: a bound that looks like a proof is none there.

    It did not trust such a bound (sums that overflow, boxes that cross), so it counts as unknown, -inf.
    """
    return torch.where(torch.isfinite(gap) & (gap < 0), gap, -torch.inf)

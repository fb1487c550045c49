"""A batch of sub-problems as a struct of tensors with a leading domain axis (DESIGN 2.5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Domains:
    """D boxes of m inputs (flattened), each with the clauses of its group that are still open there.

    ``id``, ``group``, ``depth`` ``[D]`` int64. ``lower``, ``upper`` ``[D, m]``: the box. ``open`` ``[D, G]`` bool.
    ``margin`` ``[D, G]``: best known lower bound of each clause's distance from being satisfied; above 0 refutes it.
    ``order`` ``[D, L]`` int16: dimensions to cut next, the best first; -1 where there is none left.
    ``phase`` ``[D, U]`` int8: 1 a ReLU known to be on all over the box, -1 off, 0 not known (U = 0: not kept).
    ``half`` ``[D, C, m + 1]``: half-spaces ``half[:m] . x + half[m] <= 0`` around all counterexamples of the only
    clause (C = 0: not kept).
    """

    id: Tensor
    group: Tensor
    depth: Tensor
    lower: Tensor
    upper: Tensor
    open: Tensor
    margin: Tensor
    order: Tensor
    phase: Tensor
    half: Tensor

    def __len__(self) -> int:
        return int(self.id.shape[0])

    def pick(self, index: Tensor) -> Domains:
        """Some of the domains, in the given order (repeats allowed)."""
        return Domains(*(t[index] for t in self.tensors()))

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors in the order of the fields."""
        return tuple(getattr(self, item.name) for item in fields(self))

    def rebuild(self, tensors: tuple[Tensor, ...]) -> Domains:
        """Inverse of `tensors`."""
        return Domains(*tensors)

    def worst(self) -> Tensor:
        """``[D]``: the least margin of any clause that is open; NaN counts as -inf."""
        known = torch.nan_to_num(self.margin, nan=-torch.inf)
        return torch.where(self.open, known, torch.inf).amin(1)


def concatenate(parts: Sequence[Domains]) -> Domains:
    """All batches, one after the other."""
    if len(parts) == 1:
        return parts[0]
    return Domains(*(torch.cat(group) for group in zip(*(p.tensors() for p in parts), strict=True)))

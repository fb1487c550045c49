"""Clauses over the same box, searched together: one set of intermediate bounds serves them all.

Shape letters: Q groups, G clauses of a group, R rows of a clause.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from complete_verifier.problem import Clauses

# More clauses than this in a group would be bounded long after the boxes are small enough for most of them.
MOST_CLAUSES = 8


@dataclass(frozen=True, slots=True)
class Groups:
    """``c`` ``[Q, G, R, n_out]``, ``rhs`` ``[Q, G, R]`` (0 on padding), ``real`` ``[Q, G, R]`` (a row, no padding),
    ``strict`` ``[Q, G, R]`` (a lower bound equal to rhs refutes it too), ``clause`` ``[Q, G]`` (of the problem; -1:
    none), ``region`` ``[Q]``."""

    c: Tensor
    rhs: Tensor
    real: Tensor
    strict: Tensor
    clause: Tensor
    region: Tensor

    def __len__(self) -> int:
        return len(self.region)

    @property
    def shape(self) -> tuple[int, int]:
        """(G, R)."""
        return self.rhs.shape[1], self.rhs.shape[2]


def make_groups(clauses: Clauses, chosen: Tensor, most: int = MOST_CLAUSES) -> Groups:
    """Groups of at most ``most`` of the clauses ``chosen`` (bool ``[K]``) that share a region."""
    members: list[list[int]] = []
    regions: list[int] = []
    index = chosen.nonzero().squeeze(-1)
    index = index[torch.argsort(clauses.region[index], stable=True)]
    for clause, region in zip(index.tolist(), clauses.region[index].tolist(), strict=True):
        if not members or regions[-1] != region or len(members[-1]) == most:
            members.append([])
            regions.append(region)
        members[-1].append(clause)
    width = max(len(group) for group in members)
    table = torch.tensor([group + [-1] * (width - len(group)) for group in members], device=index.device)
    picked = clauses.pick(table.clamp_min(0))
    real = torch.isfinite(picked.rhs) & (table >= 0).unsqueeze(-1)
    return Groups(
        c=torch.where(real.unsqueeze(-1), picked.c, 0.0),
        rhs=torch.where(real, picked.rhs, 0.0),
        real=real,
        strict=picked.attainable_rhs & real,
        clause=table,
        region=torch.tensor(regions, device=index.device),
    )

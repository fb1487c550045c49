"""How far a conjunction of rows is from holding, from linear lower bounds of its rows over a box.

Shape letters: D domains, G clauses, R rows of a clause, m inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Shares of the weight that move to another row in one step of the search for weights.
_SHARES = (0.0625, 0.125, 0.25, 0.5, 0.75, 0.9)
_SWEEPS = 2
# Clauses of more rows than this are judged by their best row alone.
_MOST_ROWS = 16


def mixed_margin(coef: Tensor, gap: Tensor, constant: Tensor, real: Tensor, center: Tensor, radius: Tensor) -> Tensor:
    """The largest lower bound ``[D, G]`` over the box of a weighted sum of rows that the search for weights meets.

    If all rows ``f_r(x) <= 0`` of a clause hold somewhere, so does every sum ``w . f <= 0`` with w >= 0, sum 1: one
    positive bound of such a sum refutes the clause. The rows' linear bounds are added before they are concretised.

    Args:
        coef: ``[D, G, R, m]``, constant: ``[D, G, R]``: ``coef . x + constant <= f_r(x)``.
        gap: ``[D, G, R]`` the rows' own bounds.
        real: ``[D, G, R]``, center, radius: ``[D, m]``.
    """
    alone = torch.where(real, gap, -torch.inf)
    best, row = alone.max(-1)
    rows = gap.shape[-1]
    if rows == 1 or rows > _MOST_ROWS:
        return best
    at_center = (coef * center[:, None, None]).sum(-1) + constant
    index = row[..., None]
    direction = coef.gather(2, index[..., None].expand(*index.shape, coef.shape[-1])).squeeze(2)
    value = at_center.gather(2, index).squeeze(2)
    reach = radius[:, None]
    bound = value - (direction.abs() * reach).sum(-1)
    for _ in range(_SWEEPS):
        for other in range(rows):
            for share in _SHARES:
                new_direction = direction + share * (coef[:, :, other] - direction)
                new_value = value + share * (at_center[:, :, other] - value)
                new_bound = new_value - (new_direction.abs() * reach).sum(-1)
                better = (new_bound > bound) & real[..., other]
                direction = torch.where(better[..., None], new_direction, direction)
                value = torch.where(better, new_value, value)
                bound = torch.where(better, new_bound, bound)
    return torch.fmax(best, bound)

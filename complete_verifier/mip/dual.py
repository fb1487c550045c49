"""A lower bound of a linear program from any multipliers, by weak duality: it does not rest on the solver.

Imports nothing but NumPy: solver processes use it too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Floats = NDArray[np.float64]


def safe_lower_bound(
    cost: Floats,
    rows: csr_array,
    limits: Floats,
    equality: NDArray[np.bool_],
    lower: Floats,
    upper: Floats,
    multipliers: Floats,
) -> float:
    """A number that ``cost . v`` never falls below where ``rows v <= limits`` (``==`` where ``equality``) in the box.

    For every ``w`` with ``w <= 0`` on the inequalities

        cost . v >= (cost - rows^T w) . v + w . limits >= min over the box of (cost - rows^T w) . v + w . limits

    Args:
        multipliers: ``w``, one per row, of any origin; a wrong sign is taken for 0. One that is not finite gives -inf.

    Returns:
        The bound less what rounding in float64 can have added (Higham, 2002, section 3.1: a sum of n products is off
        by at most n u / (1 - n u) times the sum of their absolute values).
    """
    if not np.isfinite(multipliers).all():
        return -np.inf
    w = np.where(equality, multipliers, np.minimum(multipliers, 0.0))
    reduced = cost - rows.T @ w
    size = np.abs(cost) + abs(rows).T @ np.abs(w)
    reach = np.maximum(np.abs(lower), np.abs(upper))
    total = np.minimum(reduced * lower, reduced * upper).sum() + w @ limits
    terms = sum(rows.shape) + 8
    slack = 2 * terms * np.finfo(np.float64).eps * (size @ reach + np.abs(w) @ np.abs(limits))
    bound = float(total - slack)
    return bound if np.isfinite(bound) else -np.inf

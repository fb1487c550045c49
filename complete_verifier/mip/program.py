"""Values of the mixed-integer stages: sparse affine functions of a program's columns, and the program itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Affine:
    """``matrix v + offset`` for n neurons; the matrix is as wide as the program was when it was made."""

    matrix: csr_array
    offset: Floats

    def plus(self, other: Affine, factor: float = 1.0) -> Affine:
        """``self + factor * other``."""
        width = max(self.matrix.shape[1], other.matrix.shape[1])
        matrix = widened(self.matrix, width) + factor * widened(other.matrix, width)
        return Affine(matrix.tocsr(), self.offset + factor * other.offset)

    def pick(self, index: NDArray[np.int64]) -> Affine:
        """Some of the neurons."""
        return Affine(self.matrix[index], self.offset[index])

    def masked(self, mask: NDArray[np.bool_]) -> Affine:
        """The same, with zero in place of the neurons outside ``mask``."""
        from scipy.sparse import diags_array

        matrix = (diags_array(mask.astype(np.float64)) @ self.matrix).tocsr()
        matrix.eliminate_zeros()
        return Affine(matrix, np.where(mask, self.offset, 0.0))


def widened(matrix: csr_array, width: int) -> csr_array:
    """The same rows over more columns, without copying."""
    from scipy.sparse import csr_array

    if matrix.shape[1] == width:
        return matrix
    return csr_array((matrix.data, matrix.indices, matrix.indptr), shape=(matrix.shape[0], width))


@dataclass(frozen=True, slots=True)
class Program:
    """``rows v <= limits`` (equal to where ``equality``), ``lower <= v <= upper``, ``integer`` columns whole numbers.

    ``rows``: CSR, [m, n]. All bounds of columns are finite.
    """

    rows: csr_array
    limits: Floats
    equality: NDArray[np.bool_]
    lower: Floats
    upper: Floats
    integer: NDArray[np.bool_]


class ProgramBuilder:
    """Appends columns and rows, one group after the other."""

    def __init__(self) -> None:
        self.width = 0
        self._lower: list[Floats] = []
        self._upper: list[Floats] = []
        self._integer: list[NDArray[np.bool_]] = []
        self._rows: list[csr_array] = []
        self._limits: list[Floats] = []
        self._equality: list[NDArray[np.bool_]] = []

    def columns(self, lower: Floats, upper: Floats, integer: bool = False) -> NDArray[np.int64]:
        """New columns; returns their numbers."""
        first, self.width = self.width, self.width + len(lower)
        self._lower.append(lower)
        self._upper.append(upper)
        self._integer.append(np.full(len(lower), integer))
        return np.arange(first, self.width, dtype=np.int64)

    def unit(self, size: int, place: NDArray[np.int64], column: NDArray[np.int64], value: Floats | float) -> Affine:
        """``size`` neurons that are zero, but ``value[i]`` times column ``column[i]`` at ``place[i]``."""
        from scipy.sparse import csr_array

        data = np.broadcast_to(np.asarray(value, dtype=np.float64), column.shape)
        return Affine(csr_array((data, (place, column)), shape=(size, self.width)), np.zeros(size))

    def at_most(self, terms: Affine, limits: Floats, equality: bool = False) -> None:
        """Rows ``terms <= limits``, or ``==``."""
        self._rows.append(terms.matrix)
        self._limits.append(limits - terms.offset)
        self._equality.append(np.full(len(limits), equality))

    def finish(self) -> Program:
        """Everything so far."""
        from scipy.sparse import csr_array, vstack

        rows = [widened(block, self.width) for block in self._rows]
        return Program(
            rows=vstack(rows, format="csr") if rows else csr_array((0, self.width)),
            limits=_joined(self._limits),
            equality=np.concatenate([np.zeros(0, dtype=np.bool_), *self._equality]),
            lower=_joined(self._lower),
            upper=_joined(self._upper),
            integer=np.concatenate([np.zeros(0, dtype=np.bool_), *self._integer]),
        )


def _joined(parts: Sequence[Floats]) -> Floats:
    return np.concatenate([np.zeros(0), *parts])

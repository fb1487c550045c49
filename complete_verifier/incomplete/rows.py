"""Clauses as batches of rows: one batch element per region, its clauses' rows side by side, padded to equal width.

Shape letters: K clauses, R rows of the largest clause, N rows laid out, B regions of a block, S columns of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from complete_verifier.problem import Clauses


@dataclass(frozen=True, slots=True)
class RowBlock:
    """Where the rows of some clauses stand: row ``row[i]`` of clause ``clause[i]`` is at ``[element[i], column[i]]``.

    ``regions`` ``[B]`` (ascending) says which region each batch element is. Places without a row hold zeros.
    """

    regions: Tensor
    element: Tensor
    column: Tensor
    clause: Tensor
    row: Tensor
    width: int

    def matrix(self, clauses: Clauses, repeat: bool = False) -> Tensor:
        """The rows as a specification ``[B, S, n_out]``. ``repeat``: places without a row hold the element's first row.

        Then a minimum or maximum over all places is one over the rows.
        """
        c = clauses.c.new_zeros(len(self.regions), self.width, clauses.c.shape[2])
        if repeat:
            first = self.column == 0
            c[self.element[first]] = clauses.c[self.clause[first], self.row[first]].unsqueeze(1)
        c[self.element, self.column] = clauses.c[self.clause, self.row]
        return c

    def scatter(self, block: Tensor, into: Tensor) -> Tensor:
        """``into`` ``[K, R, ...]`` with this block's values ``[B, S, ...]`` at the rows' own places."""
        out = into.clone()
        out[self.clause, self.row] = block[self.element, self.column]
        return out

    def regions_done(self, clauses: Clauses, lower: Tensor) -> Tensor:
        """Which batch elements ``[B]`` have all their clauses proved by the row bounds ``[B, S]``."""
        nothing = torch.full_like(clauses.rhs, -torch.inf)
        proven = clauses.proven(self.scatter(lower, nothing))
        missing = torch.zeros_like(self.regions).index_add(0, self.element, (~proven[self.clause]).to(self.regions))
        return missing == 0


def row_blocks(clauses: Clauses, chosen: Tensor, max_rows: int, max_regions: int) -> Iterator[RowBlock]:
    """Lay out the real rows of the clauses ``chosen`` (bool ``[K]``) in blocks of at most so many rows and regions.

    A block holds whole regions (``B * S <= max_rows``), or whole clauses of one region where that region alone has
    too many rows; a single clause is never cut.
    """
    real = (clauses.rhs < torch.inf) & chosen.unsqueeze(1)
    clause, row = real.nonzero(as_tuple=True)
    if len(clause) == 0:
        return
    order = torch.argsort(clauses.region[clause], stable=True)
    clause, row = clause[order], row[order]
    for start, stop in _cuts(clauses.region[clause].tolist(), clause.tolist(), max_rows, max_regions):
        yield _block(clauses, clause[start:stop], row[start:stop])


def _block(clauses: Clauses, clause: Tensor, row: Tensor) -> RowBlock:
    regions, element, counts = torch.unique(clauses.region[clause], return_inverse=True, return_counts=True)
    first = counts.cumsum(0) - counts
    column = torch.arange(len(clause), device=clause.device) - first[element]
    return RowBlock(regions, element, column, clause, row, int(counts.max()))


def _cuts(region: list[int], clause: list[int], max_rows: int, max_regions: int) -> Iterator[tuple[int, int]]:
    """Stretches ``start:stop`` of the sorted rows, one per block."""
    start = 0
    widest = count = 0  # of the block that grows: rows of its largest region, number of its regions
    for first, last in _runs(region, 0, len(region)):
        size = last - first
        if count and (count == max_regions or (count + 1) * max(widest, size) > max_rows):
            yield start, first
            start, widest, count = first, 0, 0
        if size > max_rows:
            yield from _cut_region(clause, first, last, max_rows)
            start = last
            continue
        widest, count = max(widest, size), count + 1
    if count:
        yield start, len(region)


def _cut_region(clause: list[int], first: int, last: int, max_rows: int) -> Iterator[tuple[int, int]]:
    start = first
    for begin, end in _runs(clause, first, last):
        if end - start > max_rows and begin > start:
            yield start, begin
            start = begin
    yield start, last


def _runs(values: list[int], start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Stretches of equal values."""
    first = start
    for at in range(start + 1, stop + 1):
        if at == stop or values[at] != values[first]:
            yield first, at
            first = at

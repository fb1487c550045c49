"""Laying clauses out as rows per region: every real row once, nothing lost, blocks within their limits."""

from __future__ import annotations

import pytest
import torch

from complete_verifier.incomplete.rows import row_blocks
from tests.driver.problems import sampled_problem


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("max_rows", "max_regions"), [(10**6, 10**6), (10**6, 1), (8, 10**6), (1, 1), (5, 2)])
def test_every_row_stands_once(seed: int, max_rows: int, max_regions: int) -> None:
    clauses = sampled_problem(seed, regions=4, clauses=11).problem.clauses
    chosen = torch.arange(len(clauses.region)) % 3 != 1
    seen = torch.zeros(clauses.rhs.shape, dtype=torch.int)
    for block in row_blocks(clauses, chosen, max_rows, max_regions):
        seen[block.clause, block.row] += 1
        assert len(block.regions) <= max_regions
        one_clause = len(block.clause.unique()) == 1
        assert len(block.regions) * block.width <= max_rows or one_clause
        c = block.matrix(clauses)
        assert c.shape[:2] == (len(block.regions), block.width)
        # what stands at a row's place is that row, in its own region's element
        assert torch.equal(c[block.element, block.column], clauses.c[block.clause, block.row])
        assert torch.equal(block.regions[block.element], clauses.region[block.clause])
        assert int((c != 0).any(2).sum()) == len(block.clause)
        back = block.scatter(c[..., 0], torch.full_like(clauses.rhs, 7.0))
        assert torch.equal(back[block.clause, block.row], clauses.c[block.clause, block.row, 0])
        assert int((back == 7.0).sum()) == clauses.rhs.numel() - len(block.clause)
    assert torch.equal(seen, ((clauses.rhs < torch.inf) & chosen.unsqueeze(1)).int())


def test_a_region_is_done_when_all_its_clauses_are(seed: int = 1) -> None:
    clauses = sampled_problem(seed, regions=3, clauses=9).problem.clauses
    (block,) = row_blocks(clauses, torch.ones(9, dtype=torch.bool), 10**6, 10**6)
    lower = torch.full((len(block.regions), block.width), -100.0, dtype=torch.float64)
    assert not block.regions_done(clauses, lower).any()
    first = block.regions[0]
    for clause in (clauses.region == first).nonzero().squeeze(1).tolist():
        assert not block.regions_done(clauses, lower).any()
        at = int((block.clause == clause).nonzero()[0])  # one row of a clause is enough
        lower[block.element[at], block.column[at]] = 100.0
    assert block.regions_done(clauses, lower).tolist() == [True] + [False] * (len(block.regions) - 1)
    lower[:] = torch.nan
    assert not block.regions_done(clauses, lower).any()


def test_no_clauses_make_no_block() -> None:
    clauses = sampled_problem(0).problem.clauses
    assert not list(row_blocks(clauses, torch.zeros(len(clauses.region), dtype=torch.bool), 10, 10))

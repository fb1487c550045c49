"""Thousands of clauses of unequal sizes, over one box or many: in time, in bounded memory, and right."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from auto_LiRPA.bounds.settings import AlphaSettings, BoundSettings, Reduction
from auto_LiRPA.graph.run import evaluate
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.settings import ParallelSettings
from auto_LiRPA.values import Box
from benchmarks.live_bytes import LiveBytes
from complete_verifier.incomplete import optimized_bounds
from complete_verifier.incomplete.rows import row_blocks
from complete_verifier.incomplete.settings import IncompleteSettings
from complete_verifier.incomplete.stage import run_incomplete
from complete_verifier.problem import Clauses, Clock, Problem
from tests.nets import dense_layers, mlp

HIDDEN, OUTPUTS = 96, 10
MIB = 2**20


def many(clauses: int, regions: int, seed: int = 0, timeout_s: float = 120.0) -> tuple[Problem, Tensor]:
    """Random clauses of 1 to 3 rows, and the least worst row that samples of each clause's box reach, ``[K]``."""
    gen = torch.Generator().manual_seed(seed)
    graph = mlp(dense_layers([8, HIDDEN, HIDDEN, OUTPUTS], seed, torch.float32))
    center = 0.4 * torch.rand(regions, 8, generator=gen) - 0.2
    box = Box(center - 0.1, center + 0.1)
    region = torch.arange(clauses) % regions
    size = torch.randint(1, 4, (clauses,), generator=gen)
    real = torch.arange(3) < size.unsqueeze(1)
    c = torch.randn(clauses, 3, OUTPUTS, generator=gen) * real.unsqueeze(-1)
    x = box.lower + torch.rand(64, regions, 8, generator=gen) * (box.upper - box.lower)
    y = evaluate(graph, x.flatten(0, 1)).unflatten(0, x.shape[:2])
    worst = _worst(y, c, region, real)
    rhs = torch.where(real, worst.unsqueeze(1) - 0.6 * torch.rand(clauses, 1, generator=gen), torch.inf)
    found = Clauses(c, rhs, region, torch.zeros_like(real))
    settings = BoundSettings(alpha=AlphaSettings(iterations=4, lr_alpha=0.2))
    context = DistributedContext.single(settings=ParallelSettings(threads=1))
    clock = Clock(time.monotonic(), timeout_s)
    return Problem(graph, box, found, context, settings, clock), worst


def _worst(y: Tensor, c: Tensor, region: Tensor, real: Tensor) -> Tensor:
    """min over samples of max over rows, clause by clause in parts."""
    parts = []
    for index in torch.arange(len(c)).split(500):
        rows = torch.einsum("skn,krn->skr", y[:, region[index]], c[index])
        parts.append(rows.masked_fill(~real[index], -torch.inf).amax(2).amin(0))
    return torch.cat(parts)


@pytest.mark.parametrize("regions", [1, 500])
def test_five_thousand_clauses(regions: int) -> None:
    problem, worst = many(5000, regions)
    began = time.process_time()
    result = run_incomplete(problem, IncompleteSettings())
    assert time.process_time() - began < 30
    assert 0 < int(result.proven.sum())
    # no bound is above what a sample reaches: of the best row, never of padding
    best = torch.where(torch.isfinite(problem.clauses.rhs), result.lower, -torch.inf).amax(1)
    assert bool((best <= worst + 1e-4).all())
    again = problem.clauses.pick(torch.arange(100))
    few = run_incomplete(replace(problem, clauses=again), IncompleteSettings(method="crown"))
    crown = run_incomplete(problem, IncompleteSettings(method="crown"))
    torch.testing.assert_close(few.lower, crown.lower[:100], atol=1e-4, rtol=1e-4)


def test_memory_does_not_grow_with_clauses_times_neurons(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slopes of a block are bounded, and those of all clauses are not kept where they would be too many."""
    monkeypatch.setattr(optimized_bounds, "_SLOPE_BYTES", 2 * MIB)
    monkeypatch.setattr(optimized_bounds, "_HANDED_ON_BYTES", MIB)
    peaks = []
    for clauses in (1000, 4000):
        problem, _ = many(clauses, 1)
        with LiveBytes() as meter:
            result = run_incomplete(problem, IncompleteSettings(prune_after_crown=False))
        assert not result.slopes
        peaks.append(meter.peak)
    own = 3000 * 3 * 4 * (OUTPUTS + 8)  # rows of the property, their bounds and masks
    assert peaks[1] - peaks[0] < 3 * own
    assert 3000 * 3 * 2 * HIDDEN * 4 > 2 * own  # what one number per clause, row and neuron would add


def test_blocks_hold_every_row_once_and_stay_below_the_limit() -> None:
    problem, _ = many(3000, 7)
    chosen = torch.rand(3000) < 0.7
    seen = torch.zeros(3000, 3, dtype=torch.int64)
    for block in row_blocks(problem.clauses, chosen, 200, 4):
        assert len(block.regions) * block.width <= 200 and len(block.regions) <= 4
        seen[block.clause, block.row] += 1
        torch.testing.assert_close(block.matrix(problem.clauses)[block.element, block.column],
                                   problem.clauses.c[block.clause, block.row])  # fmt: skip
    assert torch.equal(seen, (torch.isfinite(problem.clauses.rhs) & chosen.unsqueeze(1)).long())


def test_places_without_a_row_may_repeat_one() -> None:
    problem, _ = many(40, 3)
    (block,) = row_blocks(problem.clauses, torch.arange(40) < 38, 1000, 3)
    plain, repeated = block.matrix(problem.clauses), block.matrix(problem.clauses, repeat=True)
    empty = (plain == 0).all(2)
    assert empty.any() and not (repeated == 0).all(2).any()
    first = repeated[:, :1].expand_as(repeated)
    assert torch.equal(repeated[empty], first[empty]) and torch.equal(repeated[~empty], plain[~empty])


@pytest.mark.parametrize("reduction", ["sum", "mean", "min", "max"])
def test_every_way_to_sum_rows_up_is_sound_and_no_worse_than_crown(reduction: Reduction) -> None:
    problem, worst = many(60, 3)
    alpha = replace(problem.bounds.alpha, reduction=reduction, iterations=15)
    problem = replace(problem, bounds=replace(problem.bounds, alpha=alpha))
    crown = run_incomplete(problem, IncompleteSettings(method="crown"))
    found = run_incomplete(problem, IncompleteSettings(prune_after_crown=False))
    real = torch.isfinite(problem.clauses.rhs)
    assert bool((torch.where(real, found.lower, -torch.inf).amax(1) <= worst + 1e-4).all())
    gain = (found.lower - crown.lower)[real]
    assert bool((gain >= -1e-4).all()) and bool((gain > 1e-3).any())

"""Branch and bound against an exact MILP on random small networks of up to 30 neurons, the attack being off."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from complete_verifier.bab.settings import BabSettings
from tests.bab.problems import KINDS, decide, random_case

CHUNKS = 2  # so that workers can share the work


@pytest.mark.parametrize("chunk", range(CHUNKS))
@pytest.mark.parametrize("kind", KINDS)
def test_verdict_equals_milp(kind: str, chunk: int, count: Callable[[int, int], int]) -> None:
    """Closed exactly when no counterexample exists; an open end comes with a confirmed counterexample.

    60 networks in `make test` and 300 in `make soak`: MLPs, CNNs and residual ones, one to three clauses of one to
    three rows, every fifth time over three input boxes; both dtypes and branching methods, all orders of traversal.
    """
    each = count(60, 300) // (CHUNKS * len(KINDS))
    closed, split = 0, 0
    for seed in range(chunk * each, (chunk + 1) * each):
        case = random_case(kind, seed, regions=(1, 3)[seed % 5 == 3])
        settings = BabSettings(
            method="kfsb" if seed % 2 else "babsr",
            batch_size=32,
            min_batch_ratio=(0.1, 1.0)[seed % 5 == 0],
            iterations=8,
            lr_alpha=0.1,
            traversal=("worst_first", "depth_first", "breadth_first")[seed % 3],
            record_ledger=True,
        )
        result = decide(case.problem, settings)
        assert result.closed == case.holds, f"{kind} {seed}: {result}, exact {case.truth}"
        if not result.closed:
            assert result.stopped_by == "counterexample", f"{kind} {seed}"
        closed += result.closed
        split += result.rounds > 0
    assert 0 < closed < each, "only one verdict occurs: the test proves little"
    assert split >= each // 4, "bounds alone settle nearly all: the search hardly had to work"

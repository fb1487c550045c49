"""Splits of nonlinear inputs on several ranks: nothing is lost, nothing waits for ever, and checkpoints move.

That bits do not depend on the number of ranks is `test_matrix.py`'s business.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.parallel.launching import Launch, Outcome, launch
from tests.parallel.nonlinear_workers import SETTINGS, Run, Trace

WORKER = "tests.parallel.nonlinear_workers:searches"
SYNCHRONOUS = replace(SETTINGS, synchronous=True, pruning_in_iteration=False)
CLOSED = (True, "all domains closed")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Outcome]:
    """One search cut after two rounds at P = 2, gone on with at P = 3, and whole at P = 1; and searches at will."""
    folder = str(tmp_path_factory.mktemp("kept"))
    short = replace(SYNCHRONOUS, max_iterations=2)
    free = Run("free", domains="shard", dawdle=True)
    step = Run("free, weights shared", "fsdp", "shard", dawdle=True)
    runs = {
        2: [Run("cut", "fsdp", "shard", short, folder=folder), free, step,
            Run("faulty", domains="shard", plant="skips_a_domain")],
        3: [Run("resumed", domains="shard", settings=SYNCHRONOUS, folder=folder, resume=True)],
        1: [Run("whole", settings=SYNCHRONOUS)],
    }  # fmt: skip
    launches = [Launch(size, WORKER, mine, timeout_s=150) for size, mine in runs.items()]
    return dict(zip(runs, launch(launches, {"OMP_NUM_THREADS": "1"}), strict=True))


def _traces(outcomes: dict[int, Outcome], ranks: int, name: str) -> list[Trace]:
    return [found[name] for found in outcomes[ranks].results if found is not None and name in found]


def test_a_search_goes_on_at_another_number_of_ranks(outcomes: dict[int, Outcome]) -> None:
    outcomes[3].checked()
    cut, resumed, (whole,) = (_traces(outcomes, p, name) for p, name in ((2, "cut"), (3, "resumed"), (1, "whole")))
    assert len(cut) == 2 and all(trace.result[1] == "round limit 2" for trace in cut)
    assert whole.result[:2] == CLOSED and whole.result[3] > 3
    kept = resumed[0].resumed
    assert len(kept) > 1 and len(set(kept)) == len(kept)
    assert all(trace.result == whole.result for trace in resumed)
    for trace in [*cut, *resumed]:
        assert all(lower == whole.bounded[identity] for identity, lower in trace.bounded.items())
    assert set().union(*(trace.bounded for trace in [*cut, *resumed])) == set(whole.bounded)


@pytest.mark.parametrize("name", ["free", "free, weights shared"])
def test_ranks_that_dawdle_close_the_same_question(outcomes: dict[int, Outcome], name: str) -> None:
    outcomes[2].checked()
    first, second = _traces(outcomes, 2, name)
    assert first.result[:2] == second.result[:2] == CLOSED
    assert first.result == second.result
    # each domain is in the end stored on some rank; levelling may take it to the other
    assert min(len(first.bounded), len(second.bounded)) >= 1


def test_a_lost_domain_is_an_error(outcomes: dict[int, Outcome]) -> None:
    for trace in _traces(outcomes, 2, "faulty"):
        assert "domains were lost or doubled" in trace.error

"""Wrong answer 5: a search that ends at ``max_iterations`` with open domains was reported as proved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from complete_verifier.bab.settings import BabSettings
from tests.bab.problems import decide, incomplete, random_case
from tests.end_to_end.runs import Hard, run

SETTINGS = BabSettings(batch_size=8, iterations=5, lr_alpha=0.1, method="babsr", record_ledger=True)
HARD = Hard.make([3, 12, 12, 2], seed=3)
FLAGS = ("--pgd_order", "skip", "--init_iteration", "5", "--iteration", "5")


@pytest.mark.parametrize("kind", ["mlp", "residual"])
def test_every_limit_short_of_the_end_is_open(kind: str) -> None:
    """A search that needs n rounds is not closed after any smaller number, whatever the true answer is."""
    tried = 0
    for seed in range(10):
        case = random_case(kind, seed, neurons=10)
        if bool(incomplete(case.problem).proven.all()):
            continue
        rounds = decide(case.problem, SETTINGS).rounds
        for limit in sorted({0, 1, 2, rounds // 2, rounds - 1}):
            if 0 <= limit < rounds:
                result = decide(case.problem, replace(SETTINGS, max_iterations=limit))
                assert (result.closed, result.stopped_by) == (False, f"round limit {limit}"), f"{kind} {seed}"
                assert result.rounds == limit
                tried += 1
        assert decide(case.problem, replace(SETTINGS, max_iterations=rounds)).closed == case.holds
    assert tried > 5


@pytest.mark.parametrize("limit", [0, 1, 3])
@pytest.mark.parametrize("margin", [-0.2, 0.01])
def test_the_command_says_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], margin: float, limit: int
) -> None:
    """Both where the property holds (by 0.2) and where it does not."""
    flags = (*FLAGS, "--batch_size", "2", "--max_iterations", str(limit))
    done = run(capsys, tmp_path, HARD.write(tmp_path, margin), *flags)
    assert (done.code, done.results) == (0, "unknown")
    assert done.stats["verdict"] == "unknown" and done.stats["status"] == "unknown"
    assert "Result: unknown" in done.out and "unsat" not in done.out


def test_without_the_limit_it_is_decided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """So that the limit is what the above is about."""
    assert run(capsys, tmp_path, HARD.write(tmp_path, -0.2), *FLAGS).word == "unsat"

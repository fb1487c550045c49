"""Searches that clip decide as exact MILP does, with fewer domains, whatever the branching method and the bounder."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from complete_verifier.bab import search
from complete_verifier.bab.clip import ClipSettings
from complete_verifier.bab.general_bounding import GeneralBounder
from complete_verifier.bab.settings import BabSettings
from complete_verifier.branching.brancher import METHODS
from tests.bab.problems import KINDS, decide, random_case


@pytest.mark.parametrize("general", [False, True])
def test_verdicts_with_clipping_are_those_of_milp(
    general: bool, count: Callable[[int, int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if general:
        monkeypatch.setattr(search, "make_bounder", GeneralBounder)
    visited = {True: 0, False: 0}
    start = 101 if general else 100
    for seed in range(start, start + count(1, 200)):
        for kind in KINDS:
            case = random_case(kind, seed, regions=1 + seed % 2)
            for clips in (True, False):
                settings = BabSettings(
                    batch_size=8,
                    iterations=10,
                    method=METHODS[seed % len(METHODS)],
                    reduceop=("min", "max", "mean", "auto")[seed % 4],
                    record_ledger=True,
                    clip=ClipSettings(with_input=seed % 3 == 0, top=20 if seed % 2 else 3) if clips else None,
                )
                found = decide(case.problem, settings)
                assert found.closed == case.holds, f"{kind} {seed}: {found}, worst violations {case.truth}"
                if case.holds:
                    visited[clips] += found.domains_visited
    assert visited[True] < 0.95 * visited[False]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_decides_as_milp_does(method: str, count: Callable[[int, int], int]) -> None:
    for seed in range(200, 200 + count(2, 60)):
        case = random_case("mlp", seed)
        found = decide(case.problem, BabSettings(batch_size=8, iterations=10, method=method, record_ledger=True))
        assert found.closed == case.holds, f"{seed}: {found}, worst violations {case.truth}"

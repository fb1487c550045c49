"""200 rounds of branch and bound on ranks that sleep at random before collectives: no hang, always the same verdict.

Searches begin with one domain or few, so ranks without any take part from the first round on; the rank whose leaf gives
a counterexample first is another one from search to search, and so is the rank that is slow all the time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pytest

from tests.bab.problems import random_case
from tests.parallel.launching import Launch, Outcome, launch, once
from tests.parallel.skew import Case, Ended, Question, Setting

SIZES = [pytest.param(2, marks=pytest.mark.soak), 3]  # three ranks meet all that two do
PLAN = (
    (Setting("single", synchronous=False), 110),
    (Setting("single", synchronous=True), 70),
    (Setting("fsdp", synchronous=False), 12),
    (Setting("fsdp", synchronous=True), 8),
)
HURRIED = (Setting("single", synchronous=False, seconds=0.4), Setting("fsdp", synchronous=False, seconds=0.8))


@lru_cache(maxsize=1)
def questions() -> list[Question]:
    """Small problems that hold, and such that do not, exactly known; each takes a search some rounds."""
    found = []
    for seed, kind in ((1, "mlp"), (2, "mlp"), (5, "residual"), (3, "mlp"), (6, "residual"), (7, "mlp")):
        case = random_case(kind, seed, neurons=10)
        found.append(Question(case.problem.graph, case.problem.region, case.problem.clauses, case.holds))
    return found


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory, count: Callable[[int, int], int]) -> dict[int, Outcome]:
    """One launch for each number of ranks; ten times as many rounds in the long form."""
    times = count(1, 10)
    sizes = (3,) if times == 1 else (2, 3)

    def make() -> dict[int, Outcome]:
        plan = [(setting, rounds * times) for setting, rounds in PLAN] + [(hurry, 30 * times) for hurry in HURRIED]
        cases = [(size, Case(questions(), plan, seed=size)) for size in sizes]
        runs = launch([Launch(size, "tests.parallel.skew:run", case, timeout_s=100.0 * times) for size, case in cases])
        return dict(zip(sizes, runs, strict=True))

    return once(tmp_path_factory, "skew", make)


def searches(outcomes: dict[int, Outcome], size: int) -> list[list[Ended]]:
    """Every rank's searches."""
    return outcomes[size].checked()


@pytest.mark.parametrize("size", SIZES)
def test_no_hang_and_the_same_verdict(outcomes: dict[int, Outcome], size: int) -> None:
    ranks = searches(outcomes, size)
    for each in zip(*ranks, strict=True):
        first = each[0]
        told = {(one.closed, one.stopped_by, one.rounds, one.visited) for one in each}
        assert len(told) == 1, f"ranks disagree: {each}"
        if first.setting.seconds < 1e9:
            assert not first.closed or questions()[first.question].holds
            continue
        assert first.closed == questions()[first.question].holds, first
        if not first.closed:
            assert first.stopped_by == "counterexample", first
            assert all(one.confirmed for one in each), f"not every rank was told: {each}"


@pytest.mark.parametrize("size", SIZES)
def test_enough_happened(outcomes: dict[int, Outcome], size: int) -> None:
    ended = searches(outcomes, size)[0]
    patient = [one for one in ended if one.setting.seconds >= 1e9]
    assert sum(one.rounds for one in patient) >= 200
    assert sum(one.stopped_by == "counterexample" for one in patient) >= 5
    assert sum(one.closed for one in patient) >= 5
    assert any(one.stopped_by == "time limit" and one.rounds for one in ended if one.setting.seconds < 1e9)
    free = [one for one in ended if one.setting.mode == "single" and not one.setting.synchronous]
    assert sum(one.ahead for one in free) >= 30, "ranks waited for each other though they need not"
    assert all(one.ahead == 0 for one in ended if one not in free)


@pytest.mark.parametrize("size", SIZES)
def test_synchronous_searches_do_not_depend_on_the_skew(outcomes: dict[int, Outcome], size: int) -> None:
    """Rounds and domains of a question are the same every time, however ranks dawdle and wherever weights live."""
    seen: dict[int, set[tuple[int, int]]] = {}
    for one in searches(outcomes, size)[0]:
        if one.setting.synchronous and one.setting.seconds >= 1e9:
            seen.setdefault(one.question, set()).add((one.rounds, one.visited))
    assert seen and all(len(counts) == 1 for counts in seen.values()), seen

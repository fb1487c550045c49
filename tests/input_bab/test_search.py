"""Whole searches: limits are never proofs, memory and time run out without losing a box, candidates end the search."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import Tensor

import complete_verifier.input_bab.search as searching
import complete_verifier.input_bab.split as splitting
from auto_LiRPA.errors import OutOfTime
from auto_LiRPA.values import Box
from complete_verifier.input_bab.bounding import Bounded, Bounder
from complete_verifier.input_bab.domains import Domains
from complete_verifier.input_bab.groups import make_groups
from complete_verifier.input_bab.search import search_boxes
from complete_verifier.input_bab.settings import CheckSettings, InputBabProgress, InputBabSettings, ScoreSettings
from complete_verifier.input_bab.store import DomainStore
from complete_verifier.problem import Clock
from tests.bab.problems import Case
from tests.input_bab.cases import FAST, all_groups, covers, decide, domains_of, first_bounds, input_case

SLOW = replace(FAST, batch_size=16, min_batch_ratio=0.0, score=ScoreSettings(method="naive"), bound_method="crown-ibp")


@lru_cache(maxsize=4)
def _seed(holds: bool) -> int:
    for seed in range(60):
        case = input_case("mlp", seed)
        if case.holds == holds and decide(case.problem, replace(SLOW, max_iterations=4)).rounds >= 4:
            return seed
    raise AssertionError("no such problem")


def hard(holds: bool) -> Case:
    """A problem of that answer which takes several rounds."""
    return input_case("mlp", _seed(holds))


@pytest.mark.parametrize("holds", [True, False])
@pytest.mark.parametrize(
    ("limit", "reason"), [({"max_iterations": 1}, "round limit 1"), ({"max_domains": 0}, "domain limit 0")]
)
def test_a_limit_is_not_a_proof(holds: bool, limit: dict[str, int], reason: str) -> None:
    result = decide(hard(holds).problem, replace(SLOW, **limit))  # type: ignore[arg-type]
    assert (result.closed, result.stopped_by) == (False, reason)
    assert result.worst_bound < 0


def test_the_deadline_is_not_a_proof() -> None:
    problem = hard(True).problem
    late = replace(problem, clock=Clock(problem.clock.started - 1000, 900))
    result = search_boxes(late, first_bounds(problem), SLOW)
    assert (result.closed, result.stopped_by, result.rounds) == (False, "time limit", 0)


def test_running_out_of_time_within_a_round_keeps_its_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    bound, calls = Bounder.bound, [0]

    def late(self: Bounder, domains: Domains) -> Bounded:
        calls[0] += 1
        if calls[0] == 3:
            raise OutOfTime("the time limit was reached within a bounding pass")
        return bound(self, domains)

    monkeypatch.setattr(Bounder, "bound", late)
    result = decide(hard(True).problem, replace(SLOW, batch_size=10_000))
    assert (result.closed, result.stopped_by) == (False, "time limit") and result.worst_bound < 0


@pytest.mark.parametrize("reorder", [False, True])
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: x")]
)
def test_out_of_memory_halves_the_batch_and_loses_nothing(
    error: BaseException, reorder: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leaves still cover the root, and no round takes up more boxes than memory had room for."""
    case, bound, sizes = hard(True), Bounder.bound, []

    def small(self: Bounder, domains: Domains) -> Bounded:
        sizes.append(len(domains))
        if len(domains) > 2:
            raise error
        return bound(self, domains)

    monkeypatch.setattr(Bounder, "bound", small)
    start = first_bounds(case.problem)
    result = decide(case.problem, replace(SLOW, reorder=reorder), start)
    assert result.closed and max(sizes) > 2
    region = case.problem.region
    assert isinstance(region, Box)
    for clause in (~start.proven).nonzero().squeeze(-1).tolist():
        assert covers(result.leaves, clause, region.lower.flatten(), region.upper.flatten())


def test_another_error_is_none_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Bounder, domains: Domains) -> Bounded:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Bounder, "bound", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        decide(hard(True).problem, SLOW)


def test_one_box_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Bounder, domains: Domains) -> Bounded:
        raise MemoryError

    monkeypatch.setattr(Bounder, "bound", full)
    with pytest.raises(MemoryError):
        decide(hard(True).problem, SLOW)


def test_a_lost_child_shows_in_the_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of coverage that the other tests lean on sees a search that drops a box."""
    def careless(*words: object) -> Domains:
        children = splitting.cut(*words)  # type: ignore[arg-type]
        return children.pick(torch.arange(len(children) - 1))

    case = hard(True)
    start = first_bounds(case.problem)
    monkeypatch.setattr(searching, "cut", careless)
    result = decide(case.problem, SLOW, start)
    region = case.problem.region
    assert isinstance(region, Box)
    assert not all(
        covers(result.leaves, clause, region.lower.flatten(), region.upper.flatten())
        for clause in (~start.proven).nonzero().squeeze(-1).tolist()
    )


def test_boxes_that_cannot_be_cut_leave_the_answer_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """A counterexample that nothing confirms: boxes shrink to neighbouring numbers, and that is no proof."""
    case = hard(False)
    region = case.problem.region
    assert isinstance(region, Box)
    truth = decide(case.problem, SLOW)
    assert truth.stopped_by == "counterexample"
    found: list[np.ndarray] = []

    def remember(x: np.ndarray) -> bool:
        found.append(x)
        return True

    search_boxes(case.problem, first_bounds(case.problem), SLOW, on_candidate=remember)
    point = torch.from_numpy(found[0]).unsqueeze(0).to(region.lower)
    near = point
    for _ in range(3):
        near = torch.nextafter(near, near + 1)
    problem = replace(case.problem, region=Box(point, near))
    settings = replace(SLOW, max_iterations=500)
    result = search_boxes(problem, first_bounds(problem), settings, on_candidate=lambda x: False)
    assert not result.closed and "too small" in result.stopped_by


def test_the_attack_sees_the_worst_boxes_and_the_newest() -> None:
    """``from_visited`` holds it back; what it confirms ends the search; boxes lie in the root."""
    case = hard(True)
    region = case.problem.region
    assert isinstance(region, Box)
    seen: list[tuple[int, bool]] = []

    def attack(lower: Tensor, upper: Tensor, clause: Tensor, first: bool) -> bool:
        assert lower.shape == upper.shape == (len(clause), *case.problem.graph.input_shape)
        assert bool((lower >= region.lower).all() and (upper <= region.upper).all())
        seen.append((len(clause), first))
        return len(seen) == 3

    settings = replace(SLOW, first_attack=True, check=CheckSettings(boxes=2, from_visited=3))
    result = search_boxes(case.problem, first_bounds(case.problem), settings, on_boxes=attack)
    assert [first for _, first in seen][:2] == [True, False]
    assert result.stopped_by == "counterexample" or result.closed
    seen.clear()
    never = replace(settings, first_attack=False, check=CheckSettings(from_visited=float("inf")))
    assert search_boxes(case.problem, first_bounds(case.problem), never, on_boxes=attack).closed and not seen


def test_progress_and_volume() -> None:
    case = hard(True)
    found: list[InputBabProgress] = []
    result = search_boxes(
        case.problem, first_bounds(case.problem), replace(SLOW, show_volume=True), on_progress=found.append
    )
    volumes = [p.closed_volume for p in found if p.closed_volume is not None]
    assert volumes == sorted(volumes) and volumes[-1] == 1.0 and volumes[0] < 1.0
    assert [p.round for p in found] == list(range(1, result.rounds + 1))
    assert found[-1].domains_visited == result.domains_visited


def test_one_moving_input_is_cut_by_width() -> None:
    case = input_case("mlp", 1)
    region = case.problem.region
    assert isinstance(region, Box)
    upper = region.lower.clone()
    upper[..., 0] = region.upper[..., 0]
    problem = replace(case.problem, region=Box(region.lower, upper))
    searcher = searching._Search(problem, first_bounds(case.problem), InputBabSettings(), None, None, None)
    assert searcher.settings.score.method == "naive"
    searcher = searching._Search(case.problem, first_bounds(case.problem), InputBabSettings(), None, None, None)
    assert searcher.settings.score.method == "sb"


def test_levels_and_batches_fit_what_is_asked() -> None:
    case = hard(True)
    searcher = searching._Search(case.problem, first_bounds(case.problem), FAST, None, None, None)
    domains = domains_of(torch.zeros(3, 4), torch.ones(3, 4), torch.zeros(3, dtype=torch.int64), searcher.groups)
    domains = replace(domains, order=torch.arange(4).expand(3, 4).to(torch.int16))
    for ratio, partitions, levels in ((0.0, 2, 1), (0.5, 2, 3), (1.0, 2, 4), (1.0, 3, 2)):
        searcher.settings = replace(FAST, batch_size=64, min_batch_ratio=ratio, partitions=partitions)
        assert searcher._levels(domains) == levels
    short = replace(domains, order=torch.tensor([[0, -1, -1, -1]] * 3, dtype=torch.int16))
    assert searcher._levels(short) == 1
    searcher.settings = replace(FAST, batch_size=64, reorder=True)
    assert searcher._batch(1000) == 128 and searcher._batch(5) == 5
    searcher.settings = replace(FAST, batch_size=4096)
    searcher.state.batch, searcher.state.seconds = 2000, 100.0
    assert searcher._batch(4000) == 500
    searcher.state.batch = 400
    assert searcher._batch(4000) == 256  # a round that took so long is cut to the least batch
    searcher.state.memory_limit = 7
    assert searcher._batch(1000) == 7


def test_groups_keep_regions_apart_and_pad_rows() -> None:
    problem = input_case("mlp", 3, regions=3).problem
    chosen = torch.ones(len(problem.clauses.region), dtype=torch.bool)
    chosen[0] = False
    groups = make_groups(problem.clauses, chosen, 2)
    members = [c for row in groups.clause.tolist() for c in row if c >= 0]
    assert sorted(members) == list(range(1, len(chosen)))
    for q, row in enumerate(groups.clause.tolist()):
        for g, clause in enumerate(row):
            real = groups.real[q, g]
            if clause < 0:
                assert not bool(real.any())
                continue
            assert int(problem.clauses.region[clause]) == int(groups.region[q])
            assert torch.equal(real, torch.isfinite(problem.clauses.rhs[clause]))
            assert torch.equal(groups.rhs[q, g][real], problem.clauses.rhs[clause][real])
            assert torch.equal(groups.c[q, g][real], problem.clauses.c[clause][real])


@pytest.mark.parametrize(
    ("traversal", "expected"),
    [("worst_first", [3, 1, 4, 0, 2]), ("depth_first", [4, 3, 2, 1, 0]), ("breadth_first", [0, 1, 2, 3, 4])],
)
def test_the_order_of_the_store(traversal: str, expected: list[int]) -> None:
    """Worst first: a NaN is as bad as can be, ties by id, closed clauses do not count."""
    groups = all_groups(input_case("mlp", 2).problem)
    g = groups.shape[0]
    domains = domains_of(torch.zeros(5, 2), torch.ones(5, 2), torch.zeros(5, dtype=torch.int64), groups)
    margin = torch.full((5, g), 1.0)
    margin[:, 0] = torch.tensor([-1.0, -2.0, -1.0, torch.nan, -2.0])
    opened = torch.ones(5, g, dtype=torch.bool)
    store = DomainStore(domains, traversal)  # type: ignore[arg-type]
    for index in ([4, 2], [0, 1, 3]):
        part = torch.tensor(index)
        store.add(replace(domains, margin=margin, open=opened).pick(part))
    assert store.look(5).id.tolist() == expected and store.newest().id.tolist() == [4] and len(store) == 5
    assert store.take(2).id.tolist() == expected[:2]
    assert store.take(9).id.tolist() == expected[2:] and len(store) == 0 and store.worst() == float("inf")
    if g > 1:
        closed = replace(domains, margin=-margin, open=opened.index_fill(1, torch.tensor(1), False))
        assert torch.equal(closed.worst(), torch.nan_to_num(-margin[:, [0, *range(2, g)]], nan=-torch.inf).amin(1))

"""Whole searches: what each round splits, several levels at once, and that a limit never looks like a proof."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from torch import Tensor

import complete_verifier.bab.expansion as expanding
from auto_LiRPA.errors import ConfigError, ContractError, OutOfTime
from complete_verifier.bab.agreement import Agreed
from complete_verifier.bab.clip import ClipSettings
from complete_verifier.bab.domains import Domains
from complete_verifier.bab.expansion import Expander
from complete_verifier.bab.ledger import Ledger
from complete_verifier.bab.relu_bounding import ReluBounder
from complete_verifier.bab.rounds import Rounds
from complete_verifier.bab.search import search
from complete_verifier.bab.settings import BabResult, BabSettings
from complete_verifier.bab.split import split
from complete_verifier.bab.store import DomainStore
from complete_verifier.bab.subproblems import Expanded, Share
from complete_verifier.branching.brancher import METHODS
from complete_verifier.problem import Clock
from tests.bab.problems import KINDS, Case, decide, incomplete, random_case

FAST = BabSettings(batch_size=16, iterations=6, lr_alpha=0.1, record_ledger=True)


@pytest.fixture
def levels(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Levels of each round; every split of every round is checked on the way."""
    seen: list[int] = []

    def checked(parents: Domains, columns: Tensor, *ids: int) -> Domains:
        some = columns >= 0
        assert bool((some.all(1) | ~some.any(1)).all()), "a leaf is not split, all others at every level"
        assert bool((parents.sign.gather(1, columns.clamp_min(0)) == 0)[some].all()), "split already"
        columns_of_leaves = -1 - torch.arange(columns.shape[1])
        ordered = torch.where(some, columns, columns_of_leaves).sort(1).values
        assert bool((ordered[:, 1:] != ordered[:, :-1]).all()), "the same neuron twice"
        seen.append(columns.shape[1])
        return split(parents, columns, *ids)

    monkeypatch.setattr(expanding, "split", checked)
    yield seen


def hard(kind: str, holds: bool, neurons: int = 20) -> Case:
    """The first problem of that answer that takes the search several rounds."""
    return random_case(kind, _hard_seed(kind, holds, neurons), neurons)


@lru_cache(maxsize=8)
def _hard_seed(kind: str, holds: bool, neurons: int) -> int:
    for seed in range(100):
        case = random_case(kind, seed, neurons)
        if case.holds == holds and not bool(incomplete(case.problem).proven.all()):
            if decide(case.problem, replace(FAST, method="babsr", max_iterations=3)).rounds >= 3:
                return seed
    raise AssertionError("no such problem")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_round_splits_what_can_be_split(kind: str, method: str, levels: list[int]) -> None:
    """With a large batch to fill, the first rounds split several neurons at once; verdicts stay right."""
    for ratio in (0.1, 1.0):
        for seed in range(3):
            case = random_case(kind, seed, neurons=16)
            result = decide(case.problem, replace(FAST, method=method, min_batch_ratio=ratio))
            assert result.closed == case.holds, f"{kind} {seed}: {result}, exact {case.truth}"
    assert max(levels) >= 2 and min(levels) == 1


def test_levels_fill_the_batch(levels: list[int]) -> None:
    """One root and 16 domains to fill: 2^levels children of each parent, no more than fill the least batch."""
    case = hard("mlp", holds=True)
    settings = replace(FAST, min_batch_ratio=1.0, max_iterations=1)
    roots = int((~incomplete(case.problem).proven).sum())
    levels.clear()
    result = decide(case.problem, settings)
    assert result.domains_visited == roots * 2 ** levels[0]
    assert levels[0] > 1 and result.domains_visited <= 16


@pytest.mark.parametrize("holds", [True, False])
@pytest.mark.parametrize(
    ("limit", "reason"), [({"max_iterations": 1}, "round limit 1"), ({"max_domains": 0}, "domain limit 0")]
)
def test_a_limit_is_not_a_proof(holds: bool, limit: dict[str, int], reason: str) -> None:
    case = hard("mlp", holds)
    result = decide(case.problem, replace(FAST, **limit))  # type: ignore[arg-type]
    assert (result.closed, result.stopped_by) == (False, reason)


def test_the_deadline_is_not_a_proof() -> None:
    case = hard("mlp", holds=True)
    clock = case.problem.clock
    late = replace(case.problem, clock=Clock(clock.started - 1000, 900))
    result = search(late, incomplete(case.problem), FAST)
    assert (result.closed, result.stopped_by, result.rounds) == (False, "time limit", 0)


def test_running_out_of_time_within_a_round_keeps_its_domains(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last open domains are in the batch when the time ends: they are still open then."""
    case = hard("mlp", holds=True)
    bound = ReluBounder.bound
    rounds = [0]

    def late(self: ReluBounder, domains: Domains, seconds_left: object = None) -> Domains:
        rounds[0] += 1
        if rounds[0] == 3:
            raise OutOfTime("the time limit was reached within a bounding pass")
        return bound(self, domains)

    monkeypatch.setattr(ReluBounder, "bound", late)
    result = decide(case.problem, replace(FAST, batch_size=10_000, method="babsr", min_batch_ratio=0.0))
    assert (result.closed, result.stopped_by) == (False, "time limit")
    assert result.worst_bound < 0


def test_candidates_that_are_not_confirmed_leave_the_answer_open() -> None:
    """No counterexample may be reported, and none of the leaves counts as closed."""
    case = hard("residual", holds=False, neurons=12)
    result = search(case.problem, incomplete(case.problem), FAST, on_candidate=lambda x: False)
    assert not result.closed and "leaves" in result.stopped_by


def test_a_lost_domain_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queues are counted every round: a store that loses a child is found out then."""
    case = hard("mlp", holds=True)

    def careless(self: DomainStore[Domains], domains: Domains, margin: Tensor) -> None:
        rest = torch.arange(1, len(domains)) if int(domains.depth[0]) > 0 else torch.arange(len(domains))
        add(self, domains.pick(rest), margin[rest])

    add = DomainStore.add

    monkeypatch.setattr(DomainStore, "add", careless)
    with pytest.raises(ContractError, match="lost or doubled"):
        decide(case.problem, FAST)


@pytest.mark.parametrize("synchronous", [False, True])
def test_progress_tells_the_least_bound_of_what_is_open(synchronous: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is put together from the queue within a round and from the round's children."""
    case = hard("mlp", holds=True)
    told, stored = [], []
    one_round = Rounds._round

    def watched(self: Rounds[Domains], store: DomainStore[Domains], before: Agreed) -> Agreed:
        agreed = one_round(self, store, before)
        stored.append(store.worst_margin())
        return agreed

    monkeypatch.setattr(Rounds, "_round", watched)
    settings = replace(FAST, batch_size=4, min_batch_ratio=0.0, method="babsr", max_iterations=30)
    settings = replace(settings, synchronous=synchronous)
    search(case.problem, incomplete(case.problem), settings, lambda at: told.append(at.worst_bound))
    assert told == stored and len(set(told)) > 3


def test_a_child_that_nobody_counted_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger refuses a tree in which a child is missing, as a broken split would leave it."""
    case = hard("mlp", holds=True)
    sorted_out = Expander.sorted_out

    def careless(self: Expander, parts: Sequence[Expanded[Domains]]) -> Share[Domains]:
        share = sorted_out(self, parts)
        if share.left is not None and len(share.left) > 1:
            share.left = share.left.pick(torch.arange(1, len(share.left)))
        return share

    monkeypatch.setattr(Expander, "sorted_out", careless)
    with pytest.raises(ContractError, match="do not cover"):
        decide(case.problem, FAST)


def test_closed_leaves_are_all_in_the_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `covers` is asked about are the open clauses of the start, and every leaf has a reason."""
    asked: list[tuple[list[int], Ledger]] = []
    covers = Ledger.covers

    def spy(self: Ledger, wanted: list[int]) -> bool:
        asked.append((wanted, self))
        return covers(self, wanted)

    monkeypatch.setattr(Ledger, "covers", spy)
    case = hard("mlp", holds=True)
    asked.clear()
    assert decide(case.problem, FAST).closed
    ((wanted, ledger),) = asked
    assert wanted == (~incomplete(case.problem).proven).nonzero().squeeze(-1).tolist()
    assert {leaf.reason for leaf in ledger.leaves} <= {"bound", "lp"}


def test_an_unknown_method_is_refused() -> None:
    case = random_case("mlp", 0)
    with pytest.raises(ConfigError, match="babsr, fsb, kfsb"):
        decide(case.problem, replace(FAST, method="magic"))


def test_an_ended_search_is_gone_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in it refers back to it: buffers on a GPU do not wait for the collector while the next one begins."""
    seen: list[weakref.ref[Rounds[Domains]]] = []
    run = Rounds.run

    def noted(self: Rounds[Domains]) -> BabResult:
        seen.append(weakref.ref(self))
        return run(self)

    monkeypatch.setattr(Rounds, "run", noted)
    problem = hard("mlp", True).problem
    start = incomplete(problem)
    gc.disable()
    try:
        search(problem, start, replace(FAST, clip=ClipSettings(top=5), method="babsr"))
        assert seen and seen[0]() is None
    finally:
        gc.enable()

"""Domains of a search over ranks: the same tree and bits where that is promised, the same verdicts where it is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from auto_LiRPA.values import Box
from complete_verifier.bab.agreement import Status
from complete_verifier.bab.clip import ClipSettings
from complete_verifier.bab.settings import BabSettings
from tests.bab.problems import incomplete, random_case
from tests.parallel.domain_workers import Question, Run, Trace
from tests.parallel.launching import Launch, Outcome, launch, once

WORKER = "tests.parallel.domain_workers:searches"
RANKS = (1, 2, 3)
SYNCHRONOUS = BabSettings(batch_size=24, iterations=3, lr_alpha=0.1, synchronous=True, record_ledger=True)
FREE = BabSettings(batch_size=12, iterations=3, lr_alpha=0.1, record_ledger=True)
# without a ledger: to keep one every child is read
COUNTED = replace(FREE, batch_size=2, min_batch_ratio=0.0, record_ledger=False, max_iterations=24)
SHARDED = {"domains": "shard"}
WITH_WEIGHTS = {"mode": "fsdp", "domains": "shard", "block_mib": 1e-6}  # blocks of eight rows
SMALL_WEIGHTS = WITH_WEIGHTS | {"block_mib": 5e-4}  # all of a network in one block: every rank gets whole weights
CLOSED, FOUND = (True, "all domains closed"), (False, "counterexample")


@cache
def question(kind: str, seed: int) -> Question:
    """One of the random problems whose answer MILP knows, that takes some ten rounds of two dozen domains."""
    problem = random_case(kind, seed, 24).problem
    assert isinstance(problem.region, Box)
    return Question(problem.graph, problem.region, problem.clauses, incomplete(problem))


def synchronous() -> list[Run]:
    """Searches whose whole trees are compared: each bounder, look-ahead, clipping, LP leaves, and a round limit."""
    clip = replace(SYNCHRONOUS, clip=ClipSettings(top=5), method="babsr")
    return [
        Run("found", question("mlp", 19), replace(SYNCHRONOUS, batch_size=40)),
        Run("clipped", question("cnn", 27), clip),
        Run("general", question("residual", 45), replace(SYNCHRONOUS, max_iterations=4), general=True),
    ]


def free() -> list[Run]:
    """Searches of which the end is compared; ``tiny`` has more ranks than domains most of the time."""
    return [
        Run("free found", question("mlp", 19), FREE),
        Run("free closed", question("cnn", 27), replace(FREE, method="babsr")),
        Run("free limit", question("cnn", 17), replace(FREE, max_iterations=3)),
        Run("free tiny", question("residual", 4), replace(FREE, batch_size=1, min_batch_ratio=0.0)),
        Run("free ahead", question("residual", 45), replace(FREE, batch_size=2, min_batch_ratio=0.0)),
        Run("free counted", question("residual", 45), COUNTED, counts=True),
    ]


EXPECTED = {
    "free found": FOUND,
    "free closed": CLOSED,
    "free limit": (False, "round limit 3"),
    "free tiny": CLOSED,
    "free ahead": CLOSED,
    "free counted": (False, "round limit 24"),
}


def on(ranks: int, runs: Sequence[Run]) -> list[Run]:
    """The runs on so many ranks: with whole weights, and some with sharded ones (a gather takes a millisecond).

    Where sharded weights are small, a search gathers them once.
    """
    if ranks == 1:
        return list(runs)
    names = ("found", "free tiny") if ranks == 2 else ("general", "free limit")
    shared = [replace(r, name=f"{r.name}, sharded weights", parallel=WITH_WEIGHTS) for r in runs if r.name in names]
    shared += [replace(r, name=f"{r.name}, small weights", parallel=SMALL_WEIGHTS) for r in runs if r.name in names]
    return [replace(run, parallel=SHARDED) for run in runs] + shared


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Trace]]]:
    """By number of ranks and rank: what became of every run."""

    def make() -> list[Outcome]:
        return launch([Launch(ranks, WORKER, on(ranks, synchronous() + free()), timeout_s=150) for ranks in RANKS])

    outcomes = once(tmp_path_factory, "domains", make)
    return {ranks: outcome.checked() for ranks, outcome in zip(RANKS, outcomes, strict=True)}


def of_all(traces: Sequence[Trace]) -> tuple[Tensor, list[Tensor]]:
    """Ids of all children that some rank bounded, in order, and their bounds and variables."""
    ids = torch.cat([trace.ids for trace in traces])
    order = ids.argsort()
    numbers = zip(*(trace.numbers for trace in traces if trace.numbers), strict=True)
    return ids[order], [torch.cat(parts)[order] for parts in numbers]


@pytest.mark.parametrize("ranks", RANKS[1:])
def test_synchronous_trees_are_equal_bit_for_bit(traces: dict[int, list[dict[str, Trace]]], ranks: int) -> None:
    """Ids, bounds, slopes, signs, weights of rows, what is closed; counts, rounds, progress and counterexamples too."""
    for run in synchronous():
        alone = traces[1][0][run.name]
        for name in (run.name, f"{run.name}, sharded weights", f"{run.name}, small weights"):
            mine = [rank[name] for rank in traces[ranks] if name in rank]
            if not mine:
                continue
            assert all(trace.result == alone.result for trace in mine), name
            assert all(trace.progress == alone.progress for trace in mine), name
            ids, numbers = of_all(mine)
            wanted_ids, wanted = of_all([alone])
            assert torch.equal(ids, wanted_ids), name
            assert all(torch.equal(a, b) for a, b in zip(numbers, wanted, strict=True)), name
            # the last one is everybody's: another rank may have found one at a later leaf meanwhile
            points = [trace.candidates[-1:] for trace in [alone, *mine]]
            assert all(np.array_equal(found, points[0]) for found in points), name


@pytest.mark.parametrize("ranks", RANKS[1:])
def test_the_work_is_really_shared(traces: dict[int, list[dict[str, Trace]]], ranks: int) -> None:
    """Every rank bounds its part and stores its part; with sharded weights some are idle now and then."""
    for run in synchronous()[:2]:
        mine = [rank[run.name] for rank in traces[ranks]]
        children, stored = [len(trace.ids) for trace in mine], [trace.stored for trace in mine]
        assert max(children) <= 1.4 * sum(children) / ranks, (run.name, children)
        assert max(stored) <= 1.4 * sum(stored) / ranks, (run.name, stored)
        assert all(trace.collectives["gather"] > 0 and "weights" not in trace.collectives for trace in mine)
    with_weights = [trace for rank in traces[ranks] for name, trace in rank.items() if "sharded weights" in name]
    assert with_weights and all(trace.collectives["weights"] > 0 for trace in with_weights)
    assert sum(trace.idle for trace in with_weights) > 0


@pytest.mark.parametrize("ranks", RANKS[1:])
def test_small_weights_are_gathered_once(traces: dict[int, list[dict[str, Trace]]], ranks: int) -> None:
    """One fetch of each weight before the search, and no rank keeps step with another after it."""
    layers = {f"{run.name}, small weights": len(run.question.graph.weights) for run in synchronous() + free()}
    found = [(trace, layers[name]) for rank in traces[ranks] for name, trace in rank.items() if name in layers]
    assert found
    for trace, count in found:
        assert 0 < trace.collectives["weights"] <= count
        assert trace.idle == 0


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("name", EXPECTED)
def test_free_running_verdicts(traces: dict[int, list[dict[str, Trace]]], ranks: int, name: str) -> None:
    """The verdict that MILP gives, on every rank; no domain has two owners; the leaves of all ranks cover the root."""
    for full in (name, f"{name}, sharded weights", f"{name}, small weights"):
        mine = [rank[full] for rank in traces[ranks] if full in rank]
        if not mine:
            continue
        assert all(trace.result[:2] == EXPECTED[name] for trace in mine), (full, [t.result for t in mine])
        assert all(repr(trace.result) == repr(mine[0].result) for trace in mine)
        assert all(trace.progress == mine[0].progress for trace in mine)
        ids = torch.cat([trace.ids for trace in mine])
        assert len(ids.unique()) == len(ids)
        found = [len(trace.candidates) for trace in mine]
        assert min(found) > 0 if EXPECTED[name] == FOUND else max(found) == 0
        if name == "free closed":
            assert min(len(trace.ids) for trace in mine) > 0.5 * len(ids) / ranks


@pytest.mark.parametrize("ranks", RANKS)
def test_ranks_with_full_queues_do_not_wait(traces: dict[int, list[dict[str, Trace]]], ranks: int) -> None:
    """Most rounds begin before the last one is known, the same ones on every rank; never where weights are shared."""
    for name in ("free ahead", "free tiny, sharded weights"):
        ahead = [(trace.ahead, trace.result[3]) for rank in traces[ranks] for key, trace in rank.items() if key == name]
        assert len(set(ahead)) <= 1
        for count, rounds in ahead:
            assert count > rounds / 3 if ranks > 1 and name == "free ahead" else count == 0, (name, count, rounds)


@pytest.mark.parametrize("ranks", RANKS)
def test_a_round_says_and_waits_for_no_more_than_it_has_to(
    traces: dict[int, list[dict[str, Trace]]], ranks: int
) -> None:
    """One exchange of a row of numbers, whatever the data; of its own device a rank asks what one rank alone asks."""
    every = [rank["free counted"].counts for rank in traces[ranks]]
    assert len({len(counts) for counts in every}) == 1
    for number, each in enumerate(zip(*every, strict=True)):
        steady = ranks > 1 and each[0].steady
        assert all(one.steady == steady for one in each), number
        agrees = {one.collectives.get("agree", 0) for one in each}
        assert len(agrees) == 1 and agrees <= {0, 1, 2}, (number, agrees)  # two: the last round was waited for as well
        for one in each:
            assert one.worst[0] == one.worst[1], (number, one)
            assert set(one.collectives) <= {"agree", "send", "receive"}, (number, one)
            waits = one.waits
            assert waits["status"] == waits["worst_behind"] == waits["settle"] == waits["tell"] == 0, (number, one)
            assert waits["hear"] == one.collectives.get("agree", 0), (number, one)  # of what has come, in host memory
            # the first of the queue (on a CPU only), their slabs; the counts, which are open, which are leaves
            assert waits["pick"] <= 2 and waits["sorted_out"] <= (4 if waits["close_leaves"] else 2), (number, one)
            if steady:
                assert one.collectives == {"agree": 1} and one.bytes == 8 * ranks * len(fields(Status)), (number, one)
    assert ranks == 1 or sum(one.steady for one in every[0]) > len(every[0]) / 3


def test_a_counterexample_ends_all_though_they_do_not_wait() -> None:
    """In the middle of rounds that nobody waits for: all stop at the same one, and every other rank is told."""
    ahead = replace(FREE, batch_size=2, min_batch_ratio=0.0, record_ledger=False)
    run = Run("run", question("residual", 45), ahead, SHARDED, plant="stumbles_on_one")
    (found,) = (one.checked() for one in outcomes(3, run))
    traces = [rank["run"] for rank in found]
    assert all(trace.result == traces[0].result and trace.result[:2] == FOUND for trace in traces), traces
    assert traces[0].result[3] == 13, "all hear of the twelfth round at the end of the next one"
    assert all(trace.ahead > 1 for trace in traces)
    assert [trace.told for trace in traces] == [1, 1, 0]


def outcomes(size: int, *runs: Run, timeout_s: float = 60.0) -> list[Outcome]:
    """Each run in processes of its own, all forked from one."""
    return launch([Launch(size, WORKER, [run], timeout_s=timeout_s) for run in runs])


def test_faults_are_noticed() -> None:
    """A domain that is left out, one that two ranks have, a rank that does not make the passes others wait for.

    And a rank that strays from the one that searches the same part: without a word they would wait for each other.
    """
    base = Run("run", question("residual", 45), FREE, SHARDED)
    ahead = replace(base, settings=replace(FREE, batch_size=2, min_batch_ratio=0.0))
    tiny = Run("run", question("residual", 4), replace(FREE, batch_size=1, min_batch_ratio=0.0), WITH_WEIGHTS)
    twins = {**WITH_WEIGHTS, "domains": "replicate", "rows": "replicate"}
    skipped, late, doubled, idle, strayed = outcomes(
        2,
        replace(base, plant="skips_a_domain"),
        replace(ahead, plant="skips_a_domain"),
        replace(base, plant="doubles_a_domain"),
        replace(tiny, plant="is_not_idle"),
        replace(base, plant="a_twin_strays", parallel=twins),
        timeout_s=20,
    )
    for one in (skipped, late, doubled):
        assert not one.ok
        assert all("domains were lost or doubled" in log for log in one.logs), one.told()
    assert not idle.ok
    assert not strayed.ok
    assert all("ranks 0 and 1 search the same sub-problems" in log for log in strayed.logs), strayed.told()


def test_one_rank_without_memory_or_time_ends_or_slows_all() -> None:
    """The round is undone on all ranks: nothing is lost, and all go on with less, or end with the same reason."""
    base = Run("run", question("residual", 45), FREE, SHARDED, plant="is_short_of_memory")
    steady = replace(base, settings=replace(SYNCHRONOUS, batch_size=40), tile=1024)
    late = replace(base, plant="is_late")
    small, ended, timed = (one.checked() for one in outcomes(2, base, steady, late))
    assert all(rank["run"].result[:2] == CLOSED for rank in small)
    for ranks, reason in ((ended, "out of memory with"), (timed, "time limit")):
        results = [rank["run"].result for rank in ranks]
        assert results[0] == results[1]
        assert not results[0][0] and results[0][1].startswith(reason) and results[0][4] < 0, results


@pytest.mark.parametrize("schedule", ["synchronous", "free"])
def test_a_checkpoint_goes_from_any_number_of_ranks_to_any_other(schedule: str, tmp_path: Path) -> None:
    """Two ranks, one, three: the ledger of all parts covers the root, ids stay apart, the tree is the same."""
    settings = SYNCHRONOUS if schedule == "synchronous" else FREE
    settings = replace(settings, method="babsr", batch_size=16)
    base = Run("run", question("residual", 45), settings, folder=str(tmp_path / "saved"))
    parts = [
        replace(base, settings=replace(settings, max_iterations=4), parallel=SHARDED),
        replace(base, settings=replace(settings, max_iterations=7), resume=True),
        replace(base, resume=True, parallel=SHARDED),
    ]
    whole = replace(base, folder="")
    launches = [Launch(size, WORKER, [run]) for size, run in zip((2, 1, 3, 1), [*parts, whole], strict=True)]
    first, second, third, straight = ([rank["run"] for rank in one.checked()] for one in launch(launches))
    assert [part[0].result[1] for part in (first, second)] == ["round limit 4", "round limit 7"]
    assert all(trace.result[:2] == CLOSED for trace in [*third, *straight])
    for trace in [*second, *third]:
        assert len(trace.resumed) > 1 and len(set(trace.resumed)) == len(trace.resumed)
    bounded = torch.cat([trace.ids for trace in [*first, *second, *third]])
    assert len(bounded.unique()) == len(bounded)
    if schedule == "synchronous":
        assert all(trace.result == straight[0].result for trace in third)
        ids, numbers = of_all([*first, *second, *third])
        wanted_ids, wanted = of_all(straight)
        assert torch.equal(ids, wanted_ids)
        assert all(torch.equal(a, b) for a, b in zip(numbers, wanted, strict=True))


def test_refinement_is_shared_and_its_boxes_are_equal(count: Callable[[int, int], int]) -> None:
    """Every rank ends with the same boxes; none is looser than before."""
    asked = question("cnn", 17)
    runs = [Run(str(shared), asked, FREE, WITH_WEIGHTS if shared else SHARDED, refine=0.4) for shared in (0, 1)]
    for ranks in launch([Launch(2, WORKER, [run]) for run in runs]):
        ((first,), (second,)) = (list(rank.values()) for rank in ranks.checked())
        assert first.progress and first.progress == second.progress
        assert all(torch.equal(a, b) for a, b in zip(first.boxes, second.boxes, strict=True))
        before = [side for box in asked.start.intermediate.boxes.values() for side in (box.lower, box.upper)]
        for number, (old, new) in enumerate(zip(before, first.boxes, strict=True)):
            assert bool((new >= old).all() if number % 2 == 0 else (new <= old).all())

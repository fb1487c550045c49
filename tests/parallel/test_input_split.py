"""Input splits over ranks: one tree for every number of ranks, verdicts that stand, no box and no rank is lost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from auto_LiRPA.errors import ContractError
from auto_LiRPA.parallel.settings import ParallelSettings
from complete_verifier.input_bab.agreement import Report, numbers, status
from complete_verifier.input_bab.settings import CheckSettings, ClipSettings, InputBabSettings, ScoreSettings
from tests.parallel.input_split_workers import Run
from tests.parallel.launching import Launch, launch, once

SIZES = (1, 2, 3)
SYNC = InputBabSettings(
    batch_size=16, min_batch_ratio=0.5, score=ScoreSettings(method="naive"), bound_method="crown-ibp", synchronous=True
)
FREE = replace(SYNC, synchronous=False)
CROWN = replace(SYNC, bound_method="crown", score=ScoreSettings())
ALPHA = replace(SYNC, bound_method="alpha-crown")
CLIP = ClipSettings(enabled=True, complete=True)
FSDP = ParallelSettings(mode="fsdp", rows="shard", domains="shard", threads=1, block_mib=1e-6)
FSDP_DOMAINS = replace(FSDP, rows="replicate")
ROWS = ParallelSettings(mode="single", rows="shard", domains="replicate", threads=1, tile_rows=2)

# Searches whose tree is the same for every number of ranks: of several rounds each, of several tiles each.
SAME = [
    Run("naive", "residual", 1, SYNC),
    Run("reorder", "residual", 1, replace(SYNC, reorder=True)),
    Run("three parts", "mlp", 3, replace(SYNC, partitions=3), regions=3),
    Run("brute force", "mlp", 26, replace(SYNC, score=ScoreSettings(method="brute-force"), traversal="depth_first")),
    Run("clip", "mlp", 26, replace(SYNC, clip=CLIP)),
    Run("alpha", "residual", 1, ALPHA),
    Run("violated", "residual", 9, SYNC),
    Run("attacked", "residual", 1, replace(SYNC, check=CheckSettings(boxes=3, from_visited=3)), attacks=True),
    Run("fsdp", "residual", 1, CROWN, FSDP),
    Run("fsdp, weights apart", "residual", 1, CROWN, FSDP, whole_bytes=0),
    Run("fsdp, weights apart, plain", "mlp", 26, CROWN, FSDP, whole_bytes=0),
    Run("fsdp, weights apart, alpha", "residual", 1, ALPHA, FSDP, whole_bytes=0),
    Run("fsdp, rows replicated", "residual", 1, CROWN, FSDP_DOMAINS, whole_bytes=0),
    Run("rows", "residual", 1, CROWN, ROWS),
    Run("skewed", "residual", 1, SYNC, skew=True),
]
# Searches in which each rank goes its own way: what is asked is the verdict, and that nothing is lost.
FREELY = [
    Run("proved", "residual", 1, FREE),
    Run("proved, several regions", "mlp", 3, replace(FREE, reorder=True), regions=3),
    Run("violated", "residual", 9, FREE),
    Run("found by one rank only", "residual", 9, replace(FREE, max_iterations=40), only_rank=1),
    Run("attacked", "residual", 1, replace(FREE, check=CheckSettings(boxes=3, from_visited=3)), attacks=True),
    Run("fsdp", "residual", 1, replace(CROWN, synchronous=False), FSDP),
    Run("fsdp, weights apart", "residual", 1, replace(CROWN, synchronous=False), FSDP, whole_bytes=0),
    Run("skewed", "residual", 23, FREE, skew=True),
    Run("one clock ahead", "residual", 9, FREE, only_rank=9, late_rank=1),
    Run("one clock ahead, synchronous", "residual", 9, SYNC, only_rank=9, late_rank=1),
    Run("one clock ahead, weights apart", "residual", 9, CROWN, FSDP, whole_bytes=0, only_rank=9, late_rank=1),
    Run("a box is lost on its way", "residual", 23, FREE, fault="loses"),
    Run("a box arrives twice", "residual", 23, FREE, fault="doubles"),
]
WORKER = "tests.parallel.input_split_workers:searches"

Found = dict[str, dict[str, Any]]  # by the name of the run


def _launched(tmp_path_factory: pytest.TempPathFactory, name: str, runs: list[Run], sizes: tuple[int, ...]) -> Any:
    """By number of ranks: what every rank found."""

    def made() -> dict[int, list[Found]]:
        outcomes = launch([Launch(p, WORKER, runs, timeout_s=240) for p in sizes])
        return {p: one.checked() for p, one in zip(sizes, outcomes, strict=True)}

    return once(tmp_path_factory, name, made)


@pytest.fixture(scope="module")
def same(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Found]]:
    return _launched(tmp_path_factory, "input-splits", SAME, SIZES)


@pytest.fixture(scope="module")
def freely(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Found]]:
    return _launched(tmp_path_factory, "input-splits-free", FREELY, (2, 3))


@pytest.mark.parametrize("name", [run.name for run in SAME])
def test_one_tree_for_every_number_of_ranks(name: str, same: dict[int, list[Found]]) -> None:
    """Rounds, boxes, bounds after each round, and every leaf's box: equal bit for bit, on every rank."""
    alone = same[1][0][name]
    assert alone["rounds"] >= 4 and alone["visited"] > 20
    assert alone["closed"] == alone["holds"] and alone["covered"] == (name != "clip")
    for size in SIZES[1:]:
        for found in (rank[name] for rank in same[size]):
            for fact in ("closed", "stopped_by", "visited", "rounds", "worst", "history"):
                assert found[fact] == alone[fact], fact
            if name != "violated":
                assert found["attacks"] == alone["attacks"]
            apart = "apart" in name or name in ("rows", "fsdp, rows replicated")
            assert torch.equal(found["leaves"], alone["leaves"])
            assert apart == (found["own_leaves"] == alone["own_leaves"])


@pytest.mark.parametrize("name", ["proved", "proved, several regions", "violated", "attacked", "fsdp", "skewed"])
def test_verdicts_stand_where_ranks_go_their_own_way(name: str, freely: dict[int, list[Found]]) -> None:
    """A proof's leaves, of all ranks together, cover every clause's box; nobody does all the work."""
    for ranks in freely.values():
        every = [rank[name] for rank in ranks]
        for found in every:
            assert found["closed"] == found["holds"] and found["covered"]
            assert (found["stopped_by"] == "counterexample") == (not found["holds"])
            for fact in ("visited", "rounds", "worst", "history"):
                assert found[fact] == every[0][fact]
        assert all(found["own_leaves"] > 0 for found in every) and every[0]["calls"].keys() >= {"send", "receive"}


def test_what_one_rank_finds_ends_it_for_all(freely: dict[int, list[Found]]) -> None:
    for ranks in freely.values():
        every = [rank["found by one rank only"] for rank in ranks]
        assert {found["stopped_by"] for found in every} == {"counterexample"}
        assert len({found["rounds"] for found in every}) == 1


@pytest.mark.parametrize("kind", ["", ", synchronous", ", weights apart"])
def test_one_late_rank_ends_it_for_all(kind: str, freely: dict[int, list[Found]]) -> None:
    for ranks in freely.values():
        every = [rank[f"one clock ahead{kind}"] for rank in ranks]
        assert {(found["closed"], found["stopped_by"]) for found in every} == {(False, "time limit")}
        assert len({(found["rounds"], found["visited"]) for found in every}) == 1


def test_ranks_that_share_weights_search_side_by_side(freely: dict[int, list[Found]]) -> None:
    for ranks in freely.values():
        every = [rank["fsdp, weights apart"] for rank in ranks]
        assert all(found["closed"] and found["history"] == every[0]["history"] for found in every)
        assert all(found["own_leaves"] == every[0]["own_leaves"] for found in every)


@pytest.mark.parametrize("name", ["a box is lost on its way", "a box arrives twice"])
def test_a_box_that_is_lost_or_doubled_is_noticed_by_all(name: str, freely: dict[int, list[Found]]) -> None:
    for ranks in freely.values():
        for rank in ranks:
            assert "lost or doubled" in rank[name]["error"]


def _reports(*changes: dict[str, float]) -> list[Report]:
    """Two queues of 5 boxes, 2 of each in a round that makes 4 of them, 3 of which stay open."""
    return [replace(Report(open=3, taken=2, left=3, owed=4, visited=4, time_left=9), **c) for c in changes]


def test_a_round_that_bounds_too_little_is_noticed() -> None:
    for visited, owed in ((3, 4), (5, 4)):
        rows = [numbers(r) for r in _reports({}, {"visited": visited, "owed": owed})]
        with pytest.raises(ContractError, match="8 has bounded"):
            status(rows, (0, 1), (0,)).check([5, 5])
    status([numbers(r) for r in _reports({}, {})], (0, 1), (0,)).check([5, 5])


def test_a_round_counts_for_those_that_came_through_it() -> None:
    """Memory undoes one queue's part, time everybody's; twins of a rank without memory undo it too."""
    full = status([numbers(r) for r in _reports({"full": 1, "left": 0, "visited": 0}, {})], (0, 1), (0,))
    assert full.lengths == (5, 6) and full.visited == 4 and full.full and full.counts and not full.hopeless
    twins = status([numbers(r) for r in _reports({}, {"full": 1})], (0,), (0, 1))
    assert twins.full and twins.world[0].full == 0
    late = status([numbers(r) for r in _reports({"late": 1}, {"time_left": -1.0})], (0, 1), (1,))
    assert late.lengths == (5, 5) and late.visited == 0 and not late.counts and late.time_left == -1.0

"""Input splitting against an exact MILP on random small networks; the leaves of a proof cover the root exactly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from auto_LiRPA.values import Box
from complete_verifier.input_bab.settings import BoundMethod, ClipSettings, InputBabSettings, ScoreSettings
from tests.bab.problems import Case
from tests.input_bab.cases import covers, decide, first_bounds, input_case

SCORES = {
    "naive": ScoreSettings(method="naive"),
    "sb": ScoreSettings(method="sb"),
    "sb_sum": ScoreSettings(method="sb", sum_rows=True, touch_zero=0.1),
    "sb_primary": ScoreSettings(method="sb", primary_row=1, margin_weight=0.0),
    "brute-force": ScoreSettings(method="brute-force", bf_zero_crossing=True),
    "brute-force then sb": ScoreSettings(method="brute-force", bf_rounds=2, bf_backup_thresh=0.01),
}
BOUNDS: tuple[BoundMethod, ...] = ("crown", "forward+crown", "alpha-crown", "crown-ibp", "ibp", "forward")
CLIPS = (ClipSettings(), ClipSettings(enabled=True, iterations=2), ClipSettings(enabled=True, complete=True))


def settings(seed: int) -> InputBabSettings:
    """Every choice in turn; their numbers share no factors, so that all pairs occur."""
    names = tuple(SCORES)
    return InputBabSettings(
        bound_method=BOUNDS[seed % len(BOUNDS)],
        batch_size=(64, 256, 1024)[seed % 3],
        min_batch_ratio=(0.0, 0.3, 1.0)[seed // 2 % 3],
        reorder=seed % 4 == 1,
        partitions=(2, 2, 3)[seed // 5 % 3],
        hint=(0.0,) if seed % 5 == 2 else None,
        ibp_enhancement=seed % 7 != 3,
        compare_with_old=seed % 5 != 4,
        alpha_iterations=3,
        alpha_lr=0.2,
        traversal=("worst_first", "depth_first", "breadth_first")[seed // 3 % 3],
        score=SCORES[names[(seed + seed // 6) % len(names)]],
        clip=CLIPS[(seed // 4) % 3],
        record_leaves=True,
        max_iterations=2000,
    )


def check(case: Case, chosen: InputBabSettings, name: str) -> int:
    """Verdict and coverage; returns the rounds."""
    start = first_bounds(case.problem)
    result = decide(case.problem, chosen, start)
    assert result.closed == case.holds, f"{name}: {result.stopped_by}, exact {case.truth}, {chosen}"
    if not result.closed:
        assert result.stopped_by == "counterexample", f"{name}: {result.stopped_by} {chosen}"
        return result.rounds
    region = case.problem.region
    assert isinstance(region, Box)
    if not chosen.clip.enabled:
        for clause in (~start.proven).nonzero().squeeze(-1).tolist():
            at = int(case.problem.clauses.region[clause])
            sides: tuple[Tensor, Tensor] = (region.lower[at].flatten(), region.upper[at].flatten())
            assert covers(result.leaves, clause, *sides), name
    return result.rounds


CHUNKS = 2  # so that workers can share the work


@pytest.mark.parametrize("chunk", range(CHUNKS))
@pytest.mark.parametrize("kind", ["mlp", "residual", "cnn"])
def test_verdict_equals_milp(kind: str, chunk: int, count: Callable[[int, int], int]) -> None:
    """60 networks in `make test` and 300 in `make soak`, all methods in turn, one or three input boxes."""
    each = count(60, 300) // (CHUNKS * 3)
    worked = 0
    for seed in range(chunk * each, (chunk + 1) * each):
        case = input_case(kind, 200 + seed, neurons=18, regions=(1, 3)[seed % 5 == 3])
        worked += check(case, settings(seed), f"{kind} {seed}") > 1
    assert worked >= each // 4, "bounds alone settle nearly all: the search hardly had to work"


@pytest.mark.parametrize("name", list(SCORES))
def test_every_way_to_choose_a_dimension(name: str) -> None:
    """The same two problems, one that holds and one that does not."""
    seeds = {input_case("mlp", s).holds: s for s in range(2000, 2020)}
    assert set(seeds) == {True, False}
    for seed in seeds.values():
        chosen = InputBabSettings(batch_size=64, score=SCORES[name], record_leaves=True, min_batch_ratio=0.0)
        check(input_case("mlp", seed), chosen, name)


def test_both_precisions_occur() -> None:
    kinds = {input_case("mlp", s).problem.clauses.c.dtype for s in range(4)}
    assert kinds == {torch.float32, torch.float64}

"""Stages around the search over ranks: bounds that clocks end, and programs that one rank solves for all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from auto_LiRPA.bounds.settings import AlphaSettings
from tests.end_to_end.runs import Hard
from tests.parallel.launching import Launch, launch, once
from tests.parallel.stage_workers import MODES, Bounding, Programs

SIZES = (1, 2, 3)
LATE_S = 0.8
KEEP, FIXED, STREAM = (AlphaSettings(iterations=3, lr_alpha=0.2, mode=mode) for mode in ("keep", "fixed", "stream"))
ENDLESS = {name: AlphaSettings(iterations=100_000, lr_alpha=0.2, mode=name) for name in ("keep", "fixed", "stream")}

LATE = [("replicas", "keep"), ("replicas", "fixed"), ("replicas", "stream"), ("rows", "fixed"), ("fsdp", "keep")]

Found = dict[str, dict[str, Any]]


def _cases(folder: Path) -> list[Bounding | Programs]:
    small = Hard.make([3, 8, 8, 2], seed=3)
    holds, fails = folder / "holds", folder / "fails"
    files: dict[str, tuple[Path, Path]] = {}
    for place, margin in ((holds, -0.01), (fails, 0.01)):
        place.mkdir()
        network, specification = small.write(place, margin)
        files[place.name] = Path(network), Path(specification)
    cases: list[Bounding | Programs] = []
    for mode in MODES:
        cases += [Bounding(f"{mode} {alpha.mode}", mode, alpha) for alpha in (KEEP, FIXED, STREAM)]
    cases += [Bounding(f"{m} {a} late", m, ENDLESS[a], late=1, seconds=LATE_S) for m, a in LATE]
    cases += [Programs(f"mip {name}", mode, *files[name]) for name, mode in (("holds", "rows"), ("fails", "fsdp"))]
    return [*cases, Programs("fsdp refine", "fsdp", *files["holds"], refine=True)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Found]]:
    """By number of ranks: what every rank found."""

    def run() -> dict[int, list[Found]]:
        cases = _cases(tmp_path_factory.mktemp("stages"))
        alone = [case for case in cases if not case.name.endswith("late")]
        worker = "tests.parallel.stage_workers:stages"
        outcomes = launch([Launch(p, worker, cases if p > 1 else alone, timeout_s=150) for p in SIZES])
        return {p: one.checked() for p, one in zip(SIZES, outcomes, strict=True)}

    return once(tmp_path_factory, "stages", run)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


FACTS = ("lower", "proven", "boxes", "slopes", "alpha")


@pytest.mark.parametrize("mode", list(MODES))
@pytest.mark.parametrize("alpha", ["keep", "fixed", "stream"])
def test_bounds_are_those_of_one_process(mode: str, alpha: str, made: dict[int, list[Found]]) -> None:
    name = f"{mode} {alpha}"
    alone = made[1][0][name]
    for size in SIZES[1:]:
        for rank in made[size]:
            assert all(_equal(rank[name][fact], alone[fact]) for fact in FACTS)


@pytest.mark.parametrize(("mode", "alpha"), LATE)
def test_one_late_clock_ends_it_for_all_with_the_same_bounds(
    mode: str, alpha: str, made: dict[int, list[Found]]
) -> None:
    name = f"{mode} {alpha} late"
    for size in SIZES[1:]:
        every = [rank[name] for rank in made[size]]
        for found in every:
            assert all(_equal(found[fact], every[0][fact]) for fact in (*FACTS, "events"))
            assert found["seconds"] < LATE_S + 15


def test_one_rank_solves_programs_for_all(made: dict[int, list[Found]]) -> None:
    for size in SIZES:
        for name, holds in (("holds", True), ("fails", False)):
            every = [rank[f"mip {name}"] for rank in made[size]]
            assert all(bool(found["proven"].all()) == holds and found["confirmed"] != holds for found in every)
            assert all((found["found"] is None) == holds and found["found"] == every[0]["found"] for found in every)
            assert [found["processes"] for found in every] == [1] + [0] * (size - 1)


def test_refined_boxes_are_the_same_everywhere(made: dict[int, list[Found]]) -> None:
    alone = made[1][0]["fsdp refine"]
    for size in SIZES[1:]:
        for rank in made[size]:
            found = rank["fsdp refine"]
            assert found["boxes"].keys() == alone["boxes"].keys() and found["lower"].shape == alone["lower"].shape
            assert all(_equal(found[fact], made[size][0]["fsdp refine"][fact]) for fact in FACTS)

"""Which neurons are split: never a stable one, never one that is split already, never the same one twice."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from complete_verifier.branching.layout import root_columns
from complete_verifier.branching.lookahead import kfsb
from complete_verifier.branching.scores import Scores, babsr_scores, choose
from tests.bab.problems import KINDS, column_values, domains, random_case, sample, set_up

REDUCTIONS = ("min", "max", "mean")


def random_scores(count: int, width: int, seed: int) -> Scores:
    """Scores with ties, zeros, NaN, and neurons that must not be chosen (often with the best scores)."""
    gen = torch.Generator().manual_seed(seed)
    splittable = torch.rand(count, width, generator=gen) < 0.6
    main = torch.rand(count, width, generator=gen).mul(4).round() / 4 + 10 * ~splittable
    backup = -torch.rand(count, width, generator=gen).mul(4).round() / 4 - 10 * ~splittable
    if seed % 3 == 0:
        main = torch.where(torch.rand(count, width, generator=gen) < 0.2, torch.nan, main)
    if seed % 4 == 0:
        main[0] = 0.0
    return Scores(main, backup, splittable)


def check(chosen: Tensor, scores: Scores, levels: int) -> None:
    assert chosen.shape[0] == scores.main.shape[0]
    for row, columns in enumerate(chosen.tolist()):
        real = [c for c in columns if c >= 0]
        assert len(set(real)) == len(real), f"twice: {columns}"
        assert all(scores.splittable[row, c] for c in real), f"not splittable: {columns}"


@given(seed=st.integers(0, 10**6), levels=st.integers(1, 4), width=st.integers(1, 9))
def test_babsr_chooses_splittable_neurons(seed: int, levels: int, width: int) -> None:
    scores = random_scores(4, width, seed)
    chosen = choose(scores, levels)
    check(chosen, scores, levels)
    # as many as there are
    wanted = scores.splittable.sum(1).clamp_max(min(levels, width))
    assert torch.equal((chosen >= 0).sum(1), wanted)


@given(
    seed=st.integers(0, 10**6),
    levels=st.integers(1, 4),
    width=st.integers(1, 9),
    candidates=st.integers(1, 4),
    reduceop=st.sampled_from(REDUCTIONS),
    broken=st.booleans(),
)
def test_lookahead_chooses_splittable_neurons(
    seed: int, levels: int, width: int, candidates: int, reduceop: str, broken: bool
) -> None:
    scores = random_scores(4, width, seed)
    gen = torch.Generator().manual_seed(seed)
    margin = torch.randn(2, 4, width, generator=gen) * (10.0 ** (seed % 8))
    if broken:
        margin[torch.rand(margin.shape, generator=gen) < 0.3] = (torch.nan, torch.inf, -torch.inf)[seed % 3]

    def try_child(parent: Tensor, column: Tensor, sign: int) -> Tensor:
        return margin[(1 - sign) // 2, parent, column]

    chosen = kfsb(scores, candidates, levels, reduceop, try_child)
    check(chosen, scores, levels)


@pytest.mark.parametrize("reduceop", REDUCTIONS)
def test_lookahead_takes_the_best_of_those_it_tries(reduceop: str) -> None:
    """Three best by main and by backup score are tried; the one whose children are best is taken."""
    reductions: dict[str, Callable[[float, float], float]] = {
        "min": min,
        "max": max,
        "mean": lambda a, b: (a + b) / 2,
    }
    combine = reductions[reduceop]
    for seed in range(30):
        gen = torch.Generator().manual_seed(seed)
        main, backup = torch.rand(1, 12, generator=gen) + 0.1, -torch.rand(1, 12, generator=gen) - 0.1
        scores = Scores(main, backup, torch.rand(1, 12, generator=gen) < 0.8)
        margin = torch.randn(2, 12, generator=gen)
        allowed = [i for i in range(12) if scores.splittable[0, i]]
        tried = set(sorted(allowed, key=lambda i: -float(main[0, i]))[:3])
        tried |= set(sorted(allowed, key=lambda i: float(backup[0, i]))[:3])
        best = max(tried, key=lambda i: combine(float(margin[0, i]), float(margin[1, i])))

        def try_child(parent: Tensor, column: Tensor, sign: int, margin: Tensor = margin) -> Tensor:
            return margin[(1 - sign) // 2, column]

        chosen = kfsb(scores, 3, 1, reduceop, try_child)
        assert chosen.tolist() == [[best]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_neuron_that_is_stable_in_its_own_region_is_not_split(kind: str) -> None:
    """Columns are neurons that are unstable in some region; a domain may split those of its own region only."""
    stable = 0
    for seed in range(5):
        setup = set_up(random_case(kind, seed, neurons=20, regions=3).problem)
        if setup.layout.width == 0:
            continue
        count = len(setup.problem.clauses.region)
        sign = torch.zeros(count, setup.layout.width, dtype=torch.int8)
        batch = domains(setup, torch.arange(count), sign, torch.Generator().manual_seed(seed))
        with torch.no_grad():
            coefficients, relaxations = setup.bounder.coefficients(batch)
            scores = babsr_scores(setup.problem.graph, setup.layout, coefficients, relaxations, batch.sign, "min")
        box = root_columns(setup.layout, setup.root.intermediate)
        unstable = ((box.lower < 0) & (box.upper > 0))[setup.problem.clauses.region]
        assert torch.equal(scores.splittable, unstable)
        stable += int((~unstable).sum())
    assert stable > 0, "every neuron is unstable in every region: nothing is tested"


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_a_network_mark_what_can_be_split(kind: str) -> None:
    """Splittable: unstable in the domain's box and not split; a ReLU of both signs at sampled points is unstable."""
    for seed in range(5):
        setup = set_up(random_case(kind, seed, neurons=20).problem)
        if setup.layout.width == 0:
            continue
        gen = torch.Generator().manual_seed(seed)
        sign = torch.randint(-1, 2, (8, setup.layout.width), generator=gen).to(torch.int8)
        sign[0] = 0
        batch = domains(setup, torch.zeros(8, dtype=torch.long), sign, gen)
        with torch.no_grad():
            coefficients, relaxations = setup.bounder.coefficients(batch)
            scores = babsr_scores(
                setup.problem.graph, setup.layout, coefficients, relaxations, batch.sign, "min"
            )
        assert scores.main.shape == scores.backup.shape == sign.shape
        assert not bool((scores.splittable & (sign != 0)).any())
        assert bool(scores.main.isfinite().all() & scores.backup.isfinite().all())
        assert bool((scores.main >= 0).all() & (scores.backup <= 0).all())
        z = column_values(setup, sample(setup.problem.region, 500, gen))  # type: ignore[arg-type]
        both = ((z > 1e-5).any(0) & (z < -1e-5).any(0)).unsqueeze(0) & (sign == 0)
        assert bool((scores.splittable | ~both).all()), "a neuron that takes both signs cannot be left out"

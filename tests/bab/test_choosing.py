"""Which neurons are split: never a stable one, never one that is split already, never the same one twice."""

from __future__ import annotations

import pytest
import torch

from complete_verifier.bab.domains import Domains
from complete_verifier.branching.columns import make_columns
from complete_verifier.branching.layout import root_columns
from complete_verifier.branching.scores import Scores, flat_scores
from tests.bab.problems import KINDS, Setup, column_values, domains, random_case, sample, set_up


def scores_of(setup: Setup, batch: Domains) -> Scores:
    facts, dtype = setup.bounder.facts(batch), setup.problem.clauses.c.dtype
    columns = make_columns(setup.problem.graph, setup.layout, dtype, torch.device("cpu"))
    return flat_scores(columns, facts.coef, facts.lower, facts.upper, batch.sign, "min")


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
            scores = scores_of(setup, batch)
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
            scores = scores_of(setup, batch)
        assert scores.main.shape == scores.backup.shape == sign.shape
        assert not bool((scores.splittable & (sign != 0)).any())
        assert bool(scores.main.isfinite().all() & scores.backup.isfinite().all())
        assert bool((scores.main >= 0).all() & (scores.backup <= 0).all())
        z = column_values(setup, sample(setup.problem.region, 500, gen))  # type: ignore[arg-type]
        both = ((z > 1e-5).any(0) & (z < -1e-5).any(0)).unsqueeze(0) & (sign == 0)
        assert bool((scores.splittable | ~both).all()), "a neuron that takes both signs cannot be left out"

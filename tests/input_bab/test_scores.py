"""Which dimension is cut: the formulas by hand, and brute force against bounding every cut."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from complete_verifier.input_bab.bounding import Bounder
from complete_verifier.input_bab.choice import tried
from complete_verifier.input_bab.domains import Domains
from complete_verifier.input_bab.scores import best_dimensions, sensitivity, widths
from complete_verifier.input_bab.settings import ScoreSettings
from complete_verifier.input_bab.split import cut, cuttable
from tests.input_bab.cases import all_groups, domains_of, input_case, root_domains
from tests.input_bab.test_bounds import bounder_of


def margins(bounder: Bounder, domains: Domains) -> Tensor:
    """``[D, G]``."""
    return bounder.bound(domains).margin


GROUPS = all_groups(input_case("mlp", 2).problem)
# one box, one clause of two rows, three inputs
BOX = domains_of(torch.tensor([[0.0, -1.0, 2.0]]), torch.tensor([[4.0, 1.0, 2.5]]), torch.tensor([0]), GROUPS)
COEF = torch.tensor([[[[1.0, 6.0, 0.0], [-2.0, 1.0, 0.0]]]])
GAP = torch.tensor([[[-3.0, -0.5]]])
REAL = torch.ones(1, 1, 2, dtype=torch.bool)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # half widths 2, 1, 0.25; rows: (2, 6, thresh/4) - 3 and (4, 1, thresh/4) - 0.5
        (ScoreSettings(coeff_thresh=0.4), [3.5, 3.0, -0.4]),
        (ScoreSettings(coeff_thresh=0.4, margin_weight=0.0), [4.0, 6.0, 0.1]),
        (ScoreSettings(coeff_thresh=1.6, margin_weight=0.0), [4.0, 6.0, 0.4]),
        (ScoreSettings(coeff_thresh=0.4, sum_rows=True), [6.0, 7.0, 0.2]),
        (ScoreSettings(coeff_thresh=0.4, sum_rows=True, touch_zero=0.5), [8.0, 7.0, 0.2]),
        (ScoreSettings(coeff_thresh=0.4, primary_row=0), [-1.0, 3.0, -2.9]),
        (ScoreSettings(coeff_thresh=0.4, primary_row=7), [3.5, 3.0, -0.4]),
    ],
)
def test_sb_by_hand(settings: ScoreSettings, expected: list[float]) -> None:
    torch.testing.assert_close(sensitivity(BOX, COEF, GAP, REAL, settings)[0], torch.tensor(expected))


def test_padding_and_closed_clauses_do_not_count() -> None:
    real = torch.tensor([[[True, False]]])
    settings = ScoreSettings(coeff_thresh=0.4, margin_weight=0.0)
    torch.testing.assert_close(sensitivity(BOX, COEF, GAP, real, settings)[0], torch.tensor([2.0, 6.0, 0.1]))


def test_dimensions_come_in_order_and_only_if_they_can_be_cut() -> None:
    low, high = BOX.lower.clone(), BOX.upper.clone()
    high[0, 1] = low[0, 1]
    domains = replace(BOX, lower=low, upper=high)
    assert best_dimensions(domains, torch.tensor([[1.0, 9.0, 2.0]]), 3).tolist() == [[2, 0, -1]]
    assert best_dimensions(domains, torch.tensor([[torch.nan, 9.0, -2.0]]), 2).tolist() == [[0, 2]]
    assert best_dimensions(BOX, widths(BOX), 2).tolist() == [[0, 1]]


@pytest.mark.parametrize("partitions", [2, 3])
def test_brute_force_takes_the_cut_that_gains_most(partitions: int) -> None:
    """Each cut of each box by itself; a proof gains no more than what was missing."""
    gen = torch.Generator().manual_seed(0)
    moved = 0
    for seed in range(3):
        case = input_case("mlp", seed)
        bounder = bounder_of(case)
        domains = root_domains(case.problem, bounder, 6, gen)
        with torch.no_grad():
            domains = replace(domains, margin=bounder.bound(domains).margin)
            order = best_dimensions(domains, widths(domains), domains.lower.shape[1])
            settings = ScoreSettings(method="brute-force", bf_batch_size=7)
            found = tried(domains, order, settings, partial(margins, bounder), partitions, None)
            for i in range(6):
                one = domains.pick(torch.tensor([i]))
                gains = {}
                for j in (one_j for one_j in order[i].tolist() if one_j >= 0):
                    children = cut(
                        replace(one, order=torch.tensor([[j]], dtype=torch.int16)), 1, partitions, None, 0
                    )
                    worst = torch.where(children.open, bounder.bound(children).margin, torch.inf).amin(1).clamp_max(0)
                    gains[j] = float(worst.mean()) - float(one.worst())
                if gains:
                    assert gains[int(found[i, 0])] == pytest.approx(max(gains.values()), abs=1e-4)
        assert torch.equal(found.sort(1).values, order.sort(1).values), "an order is a permutation"
        moved += int((found != order).any(1).sum())
    assert moved > 0


def test_brute_force_gives_way_below_its_threshold() -> None:
    case = input_case("mlp", 1)
    bounder = bounder_of(case)
    domains = root_domains(case.problem, bounder, 6, torch.Generator().manual_seed(1))
    with torch.no_grad():
        domains = replace(domains, margin=bounder.bound(domains).margin)
        order = best_dimensions(domains, -widths(domains), 2)
        settings = ScoreSettings(method="brute-force", bf_backup_thresh=1e9)
        assert torch.equal(tried(domains, order, settings, lambda d: bounder.bound(d).margin, 2, None), order)


def test_only_candidates_are_tried() -> None:
    """The best by the order and the widest one: of four dimensions at most two are bounded."""
    case = input_case("mlp", 1)
    bounder = bounder_of(case)
    domains = root_domains(case.problem, bounder, 6, torch.Generator().manual_seed(2))
    sizes: list[int] = []

    def counted(children: Domains) -> Tensor:
        sizes.append(len(children))
        return bounder.bound(children).margin

    with torch.no_grad():
        domains = replace(domains, margin=bounder.bound(domains).margin)
        order = best_dimensions(domains, -widths(domains), domains.lower.shape[1])
        for count in (1, 1_000_000):
            found = tried(domains, order, ScoreSettings(method="brute-force", candidates=count), counted, 2, None)
            allowed = found[:, 0] == order[:, 0]
            assert count > 1 or bool((allowed | (found[:, 0] == widths(domains).argmax(1))).all())
    assert sizes[0] == 2 * 2 * 6 and sizes[1] == 2 * int(cuttable(domains.lower, domains.upper).sum())

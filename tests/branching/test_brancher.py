"""The branchers: what they may choose, what each method prefers (against plain loops), and that nothing waits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from auto_LiRPA.errors import ConfigError
from complete_verifier.branching.brancher import METHODS, BranchInput, make_brancher
from complete_verifier.branching.columns import Columns
from complete_verifier.branching.scores import flat_scores, intercept_scores
from tests.branching.inputs import (
    REDUCTIONS,
    Children,
    random_children,
    random_columns,
    random_input,
    without_values,
)

DTYPES = (torch.float32, torch.float64)


def setting(seed: int, widths: list[int], count: int = 6) -> tuple[torch.Generator, Columns, BranchInput, Children]:
    gen = torch.Generator().manual_seed(seed)
    dtype = DTYPES[seed % 2]
    columns = random_columns(gen, widths, dtype, leak=seed % 5 == 0)
    known = random_input(gen, count, columns.width, dtype)
    return gen, columns, known, random_children(gen, known, broken=seed % 3 == 0)


@pytest.mark.parametrize("method", METHODS)
@given(
    seed=st.integers(0, 10**6),
    levels=st.integers(1, 4),
    widths=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    candidates=st.integers(1, 4),
    reduceop=st.sampled_from(sorted(REDUCTIONS)),
)
def test_only_splittable_neurons_each_once_and_as_many_as_there_are(
    method: str, seed: int, levels: int, widths: list[int], candidates: int, reduceop: str
) -> None:
    _, columns, known, children = setting(seed, widths)
    if seed % 7 == 0:
        known = replace(known, coef=torch.where(known.coef > 0, torch.nan, known.coef))
    brancher = make_brancher(method, columns, candidates=candidates, reduceop=reduceop, seed=seed)
    chosen = brancher.choose(known, levels, children)
    assert chosen.shape == (6, levels)
    assert chosen.dtype == torch.int64
    splittable = known.splittable()
    assert torch.equal((chosen >= 0).sum(1), splittable.sum(1).clamp_max(levels))
    for row, found in enumerate(chosen.tolist()):
        real = [c for c in found if c >= 0]
        assert len(set(real)) == len(real), f"twice: {found}"
        assert all(splittable[row, c] for c in real), f"not splittable: {found}"
        assert found == real + [-1] * (levels - len(real)), "-1 comes last"
    assert len(children.asked) <= 1, "one pass for all candidates"


@pytest.mark.parametrize("method", METHODS)
def test_a_domain_is_chosen_for_alike_in_any_batch(method: str) -> None:
    for seed in range(10):
        _, columns, known, children = setting(seed, [4, 6, 3])
        brancher = make_brancher(method, columns, seed=3)
        whole = brancher.choose(known, 2, children)
        for row in range(len(known.id)):
            one = BranchInput(*(getattr(known, name)[row : row + 1] for name in BranchInput.__slots__))
            alone = Children(children.margins[:, row : row + 1])
            assert torch.equal(brancher.choose(one, 2, alone), whole[row : row + 1])


@pytest.mark.parametrize("method", METHODS)
def test_nothing_waits_for_the_device(method: str) -> None:
    _, columns, known, children = setting(5, [4, 6, 3])
    known, columns = without_values(known, columns)
    brancher = make_brancher(method, columns)
    children.margins = children.margins.to("meta")
    for levels in (1, 3):
        assert brancher.choose(known, levels, children).shape == (6, levels)


@pytest.mark.parametrize("reduceop", sorted(REDUCTIONS))
@pytest.mark.parametrize("method", ["kfsb", "kfsb-intercept-only", "fsb"])
def test_look_ahead_takes_the_best_of_those_it_tries(method: str, reduceop: str) -> None:
    """Candidates and the winner by plain loops over every domain."""
    decided = 0
    for seed in range(1, 60, 2):
        _, columns, known, children = setting(seed, [5, 7, 6])
        children.margins = torch.nan_to_num(children.margins, nan=0.1, posinf=9.0, neginf=-9.0)
        scores = flat_scores(columns, known.coef, known.lower, known.upper, known.sign, reduceop)
        chosen = make_brancher(method, columns, candidates=2, reduceop=reduceop).choose(known, 1, children)
        spans = columns.spans[1:] if method == "fsb" else ((0, columns.width),)
        for row in range(len(known.id)):
            tried: list[int] = []
            for start, stop in spans:
                free = [c for c in range(start, stop) if scores.splittable[row, c]]
                by_main = sorted(free, key=lambda c: -float(scores.main[row, c]))[:2]
                if method == "kfsb-intercept-only":
                    by_main = []
                others = [c for c in free if c not in by_main]
                by_backup = sorted(others, key=lambda c: float(scores.backup[row, c]))[:2]
                tried += [c for c in by_main if scores.main[row, c] > 1e-4]
                tried += [c for c in by_backup if scores.backup[row, c] < -1e-4]
            if not tried:
                continue
            margin = children.margins[:, row].tolist()
            value = {c: REDUCTIONS[reduceop](margin[0][c], margin[1][c]) for c in tried}
            best = max(value.values())
            assert chosen[row, 0].item() in [c for c in tried if value[c] == best]
            decided += 1
    assert decided > 50


def test_babsr_follows_its_backup_rules() -> None:
    """Against the rules of interface.md, section 7.6, by plain loops."""
    seen: set[str] = set()
    for seed in range(80):
        widths = [[3, 5, 4], [8]][seed % 4 == 3]
        _, columns, known, children = setting(seed, widths, count=12)
        scores = flat_scores(columns, known.coef, known.lower, known.upper, known.sign, "min")
        chosen = make_brancher("babsr", columns).choose(known, 1, children)
        for row in range(12):
            free = scores.splittable[row].nonzero().flatten().tolist()
            if not free:
                continue
            got = int(chosen[row, 0])
            main, backup = scores.main[row].tolist(), scores.backup[row].tolist()
            best = max(free, key=lambda c: main[c])
            if main[best] > 1e-3 and (len(widths) == 1 or columns.layer[best] > 0):
                assert main[got] == main[best]
                seen.add("main")
                continue
            tired = len(widths) > 1 and known.depth[row] % 3 == 2
            strong = [c for c in free if backup[c] < -1e-4 and not (tired and columns.layer[c] == 0)]
            if strong:
                last = max(int(columns.layer[c]) for c in strong)
                assert backup[got] == min(backup[c] for c in strong if columns.layer[c] == last)
                assert columns.layer[got] == last
                seen.add(f"backup {min(last, 1)}")
            else:
                seen.add("random")
    assert seen == {"main", "backup 0", "backup 1", "random"}


def test_intercept_takes_the_largest_weighted_triangle() -> None:
    for seed in range(20):
        _, columns, known, children = setting(seed, [5, 6])
        area = intercept_scores(known.coef, known.lower, known.upper)
        chosen = make_brancher("intercept", columns).choose(known, 1, children)
        for row in range(len(known.id)):
            free = known.splittable()[row].nonzero().flatten().tolist()
            if free:
                assert area[row, chosen[row, 0]] == max(area[row, c] for c in free)


def test_random_depends_on_seed_domain_and_depth_and_spreads() -> None:
    count, width = 4000, 8
    zero = torch.zeros(count, width)
    known = BranchInput(
        zero, zero - 1, zero + 1, zero.to(torch.int8), torch.arange(count), torch.zeros(count, dtype=torch.int64)
    )
    columns = random_columns(torch.Generator().manual_seed(0), [width], torch.float32)
    none = Children(torch.zeros(2, count, width))
    first = make_brancher("random", columns, seed=5).choose(known, 1, none)
    assert torch.equal(first, make_brancher("random", columns, seed=5).choose(known, 1, none))
    other = make_brancher("random", columns, seed=6).choose(known, 1, none)
    deeper = make_brancher("random", columns, seed=5).choose(replace(known, depth=known.depth + 1), 1, none)
    for chosen in (first, other, deeper):
        # 500 of each are expected, with a deviation of 21
        assert bool(((torch.bincount(chosen.flatten(), minlength=width) - 500).abs() < 120).all())
    for chosen in (other, deeper):
        assert abs(int((chosen == first).sum()) - 500) < 120, "not independent of the first choice"


def test_seeds_of_any_size() -> None:
    _, columns, known, children = setting(1, [4])
    for seed in (0, -1, 2**31, 2**63, 2**64 + 5):
        make_brancher("random", columns, seed=seed).choose(known, 1, children)


def test_an_unknown_method_is_named() -> None:
    _, columns, _, _ = setting(1, [4])
    with pytest.raises(ConfigError, match="nonlinear.*kfsb"):
        make_brancher("nonlinear", columns)


def test_a_candidate_without_a_bound_loses_to_all_others() -> None:
    for seed in range(1, 20, 2):
        _, columns, known, children = setting(seed, [5, 7])
        known = replace(known, coef=torch.where(known.coef.abs() < 0.1, 0.1, known.coef))
        children.margins = torch.full_like(children.margins, torch.nan)
        brancher = make_brancher("kfsb", columns, candidates=20)
        first = brancher.choose(known, 1, children)
        for row in range(len(known.id)):
            free = known.splittable()[row].nonzero().flatten().tolist()
            if len(free) < 2:
                continue
            last = next(c for c in reversed(free) if c != first[row, 0])
            children.margins[:, row, last] = -1e30
            assert brancher.choose(known, 1, children)[row, 0] == last

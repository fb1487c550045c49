"""Boxes and clauses as tensors: every float32 point of a tensor box lies in the exact one, rows mean the same."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from complete_verifier.attack.problems import Problems, on_float32_grid, project
from tests.attack.nets import box, prop, region, row

ANY = row({0: "1"}, "0")


@st.composite
def nasty_boxes(draw: st.DrawFn) -> list[tuple[str, str]]:
    """Decimals that no float holds, widths from zero over less than one float to large."""
    intervals = []
    for _ in range(draw(st.integers(1, 4))):
        lo = Decimal(draw(st.sampled_from(["0.1", "-0.1", "0", "1e-9", "0.3333333333333333333", "-7.7", "16777217.3"])))
        width = Decimal(draw(st.sampled_from(["0", "1e-30", "1e-9", "1e-8", "0.1", "2", "0.05"])))
        intervals.append((str(lo), str(lo + width)))
    return intervals


@given(nasty_boxes(), st.sampled_from([torch.float32, torch.float64]), st.integers(0, 100))
def test_points_between_the_ends_lie_in_the_exact_box(
    intervals: list[tuple[str, str]], dtype: torch.dtype, seed: int
) -> None:
    exact = box(*intervals)
    problems = Problems.from_property(prop(region(exact, [ANY])), (len(intervals),), dtype, "cpu")
    lower, upper = problems.lower[0], problems.upper[0]
    draws = torch.rand((50, len(intervals)), generator=torch.Generator().manual_seed(seed), dtype=dtype)
    points = project(lower + draws * 1.2 * (upper - lower) - 0.1 * (upper - lower), lower, upper)
    for x in (*points, lower, upper):
        as_float32 = x.numpy().astype(np.float32)
        assert (as_float32.astype(np.float64) == x.double().numpy()).all()
        decimals = exact.decimals_for(as_float32)
        assert decimals is not None
        assert exact.contains(decimals)
        for value, lo, hi in zip(as_float32.tolist(), exact.lo_exact, exact.hi_exact, strict=True):
            holds_a_float32 = lo <= Decimal(float(np.nextafter(np.float32(lo), np.float32(np.inf)))) <= hi
            if holds_a_float32:
                assert lo <= Decimal(value) <= hi


def test_rows_are_padded_and_padding_is_not_seen() -> None:
    clauses = [[row({0: "1"}, "3")], [row({0: "-1", 1: "2"}, "0.5"), row({1: "1"}, "-4", strict=True)], []]
    spec = prop(region(box(("0", "1")), *clauses, n_outputs=2), n_outputs=2)
    problems = Problems.from_property(spec, (1,), torch.float64, "cpu")
    y = torch.tensor([2.0, -5.0], dtype=torch.float64)
    values = problems.values(y.expand(3, 2))
    assert values.shape == (3, 2)
    assert values[0].tolist() == [-1.0, -torch.inf]
    assert values[1, 0] == -12.5
    assert values[1, 1] == pytest.approx(-1.0)
    assert problems.worst(values).tolist() == [-1.0, pytest.approx(-1.0), -torch.inf]
    assert problems.region == (0, 0, 0)
    assert problems.clause == (0, 1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equality_satisfies_a_row_only_if_it_is_not_strict(dtype: torch.dtype) -> None:
    clauses = [[row({0: "1"}, "0.5")], [row({0: "1"}, "0.5", strict=True)]]
    problems = Problems.from_property(prop(region(box(("0", "1")), *clauses)), (1,), dtype, "cpu")
    worst = problems.worst(problems.values(torch.full((2, 1), 0.5, dtype=dtype)))
    assert (worst <= 0).tolist() == [True, False]


def test_nan_is_never_a_violation() -> None:
    problems = Problems.from_property(prop(region(box(("0", "1")), [ANY])), (1,), torch.float32, "cpu")
    assert problems.worst(problems.values(torch.full((1, 1), torch.nan))).tolist() == [torch.inf]


def test_regions_keep_their_boxes() -> None:
    spec = prop(region(box(("0", "1")), [ANY], [row({0: "2"}, "1")]), region(box(("5", "6")), [ANY]))
    problems = Problems.from_property(spec, (1,), torch.float32, "cpu")
    assert problems.lower[problems.box].flatten().tolist() == [0, 0, 5]
    assert problems.region == (0, 0, 1)
    assert problems.clause == (0, 1, 0)
    chosen = problems.select(torch.tensor([2, 1]))
    assert chosen.lower[chosen.box].flatten().tolist() == [5, 0]
    assert (chosen.region, chosen.clause) == ((1, 0), (0, 1))


@given(st.integers(0, 1000), st.sampled_from([torch.float32, torch.float64]))
def test_parts_of_a_box_stay_in_it(seed: int, dtype: torch.dtype) -> None:
    """Sub-boxes stick out by a rounding, have float64 ends, or hold no float32 number: still inside."""
    spec = prop(region(box(("0.1", "0.7"), ("0.3", "0.3"), ("-1", "1e-9")), [ANY], [row({0: "3"}, "2")]))
    problems = Problems.from_property(spec, (3,), dtype, "cpu")
    rng = torch.Generator().manual_seed(seed)
    ends = torch.rand((2, 20, 3), generator=rng, dtype=torch.float64) * 2 - 1.2
    lower, upper = ends.amin(0), ends.amax(0)
    lower[0], upper[0] = torch.tensor([0.1, 0.3, -1.0]), torch.tensor([0.7, 0.3, 1e-9])
    upper[1] = lower[1]
    owner = torch.arange(20) % 2
    parts = problems.narrowed(lower, upper, owner)
    assert parts.count == 20
    assert (parts.lower >= problems.lower[0]).all()
    assert (parts.upper <= problems.upper[0]).all()
    assert (parts.lower <= parts.upper).all()
    assert torch.equal(on_float32_grid(parts.lower), parts.lower)
    assert torch.equal(on_float32_grid(parts.upper), parts.upper)
    # Where the part meets the box and holds a float32 number, it is not left.
    meets = (torch.maximum(lower, problems.lower[0]) + 1e-6 < torch.minimum(upper, problems.upper[0])).all(1)
    assert (parts.lower.double() >= lower)[meets].all()
    assert (parts.upper.double() <= upper)[meets].all()
    assert parts.clause == tuple(owner.tolist())
    assert torch.equal(parts.rhs, problems.rhs[owner])
    assert torch.equal(parts.mat, problems.mat[owner])

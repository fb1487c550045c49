"""The domain store against a plain list: what comes out, in which order, and how many slots that takes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from complete_verifier.bab.domains import Domains
from complete_verifier.bab.store import DomainStore, Traversal
from tests.bab.test_split import parents

TRAVERSALS: tuple[Traversal, ...] = ("worst_first", "depth_first", "breadth_first")
MARGINS = st.sampled_from([-3.0, -1.0, -1.0, -0.5, 0.0, math.nan, -math.inf])  # few values, so that there are ties


def batch(ids: list[int]) -> Domains:
    """Domains whose every field tells which domain it belongs to."""
    number = torch.tensor(ids)
    like = parents(len(ids), 3)
    return replace(
        like,
        id=number,
        clause=number % 7,
        depth=number % 5,
        sign=((number.unsqueeze(1) + torch.arange(3)) % 3 - 1).to(torch.int8),
        beta=number.unsqueeze(1) * 0.5 + torch.arange(3),
        lower=number * -1.0,
        mix=number.unsqueeze(1) + torch.tensor([0.25, 0.75]),
        slopes={k: number.reshape(-1, 1, 1, 1) + torch.zeros_like(v) for k, v in like.slopes.items()},
    )


def expected_order(open_ids: dict[int, float], traversal: Traversal) -> list[int]:
    """Ids in the order of the traversal. NaN counts as open as can be, more so than -inf; ties go by id."""
    if traversal == "depth_first":
        return sorted(open_ids, reverse=True)
    if traversal == "breadth_first":
        return sorted(open_ids)
    return sorted(open_ids, key=lambda i: (0, 0.0, i) if math.isnan(open_ids[i]) else (1, open_ids[i], i))


@pytest.mark.parametrize("traversal", TRAVERSALS)
@given(steps=st.lists(st.tuples(st.lists(MARGINS, max_size=6), st.integers(0, 5)), max_size=8))
def test_same_as_a_plain_list(traversal: Traversal, steps: list[tuple[list[float], int]]) -> None:
    store = DomainStore(batch([0]), traversal, capacity=2)
    open_ids: dict[int, float] = {}
    next_id, most = 0, 0
    for margins, count in steps:
        ids = list(range(next_id, next_id + len(margins)))
        next_id += len(margins)
        if ids:
            store.add(batch(ids), torch.tensor(margins))
        open_ids.update(zip(ids, margins, strict=True))
        most = max(most, len(open_ids))
        assert len(store) == len(open_ids)
        if not any(math.isnan(m) for m in open_ids.values()):
            assert store.worst_margin() == min(open_ids.values(), default=math.inf)
        wanted = expected_order(open_ids, traversal)[:count]
        taken = store.take(count)
        assert taken.id.tolist() == wanted
        for ours, theirs in zip(taken.tensors(), batch(wanted or [0]).tensors(), strict=True):
            assert torch.equal(ours, theirs[: len(wanted)])
        for i in wanted:
            del open_ids[i]
    assert store.capacity <= max(2, 2 * most), "slots of domains that were taken are not used again"


def test_nan_is_the_first_to_be_worked_on() -> None:
    store = DomainStore(batch([0]), "worst_first")
    store.add(batch([0, 1, 2]), torch.tensor([-5.0, math.nan, -1.0]))
    assert [int(store.take(1).id) for _ in range(3)] == [1, 0, 2]


def test_slots_are_used_again() -> None:
    store = DomainStore(batch([0]), "worst_first", capacity=4)
    for step in range(50):
        store.add(batch([3 * step, 3 * step + 1, 3 * step + 2]), torch.zeros(3))
        assert len(store.take(3)) == 3
    assert store.capacity == 4 and len(store) == 0


def test_growth_keeps_what_is_stored() -> None:
    store = DomainStore(batch([0]), "breadth_first", capacity=1)
    store.add(batch(list(range(9))), torch.zeros(9))
    assert store.capacity == 16
    for ours, theirs in zip(store.take(9).tensors(), batch(list(range(9))).tensors(), strict=True):
        assert torch.equal(ours, theirs)


def test_taking_from_nothing() -> None:
    store = DomainStore(batch([0]), "worst_first")
    assert len(store.take(5)) == 0 and len(store) == 0
    assert store.worst_margin() == math.inf

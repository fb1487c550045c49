"""Domains on their way between ranks, without ranks: bytes and back, the plan of moves, the keys of the next ones."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from complete_verifier.bab.agreement import Agreed, Status, least
from complete_verifier.bab.exchange import levelling, packed, row_bytes, unpacked
from complete_verifier.bab.store import DomainStore, StoreBudget, Traversal
from tests.bab.toys import assert_same, toy


@pytest.mark.parametrize("count", [0, 1, 2, 7])
@pytest.mark.parametrize("width", [1, 3, 8])
def test_bytes_and_back(count: int, width: int) -> None:
    """All dtypes, a tensor of width 0, rows that begin at odd bytes; what arrives shares no memory with the bytes."""
    sent = toy(range(count), width=width)
    rows = packed(sent)
    assert rows.shape == (count, row_bytes(sent)) and rows.dtype == torch.uint8
    arrived = unpacked(rows, toy([5], width=width))
    rows.fill_(0xFF)
    assert_same(arrived, sent)


def test_moves_lose_and_double_nothing() -> None:
    gen = random.Random(3)
    for _ in range(500):
        counts = [gen.choice([0, 1, 5, gen.randint(0, 10**6)]) for _ in range(gen.randint(1, 9))]
        most = gen.choice([1, 10, 10**7])
        after, received = list(counts), [0] * len(counts)
        for move in levelling(counts, most):
            assert move.count > 0 and move.source != move.target
            after[move.source] -= move.count
            after[move.target] += move.count
            received[move.target] += move.count
        assert sum(after) == sum(counts) and min(after) >= 0 and max(received) <= most
        share = sum(counts) // len(counts)
        assert all(min(have, share) <= now <= max(have, share + 1) for have, now in zip(counts, after, strict=True))
        if most == 10**7:
            assert max(after) - min(after) <= 1


@pytest.mark.parametrize("traversal", ["worst_first", "depth_first", "breadth_first"])
@pytest.mark.parametrize("slots", [10**6, 4])
def test_peek_shows_what_take_gives(traversal: Traversal, slots: int, tmp_path: Path) -> None:
    """Also where most domains lie in lower tiers, with ties and a NaN among the margins."""
    like = toy([0])
    budget = StoreBudget(slots * row_bytes(like), slots * row_bytes(like), tmp_path)
    with DomainStore(like, traversal, budget, slab_slots=4) as store:
        ids = torch.randperm(40, generator=torch.Generator().manual_seed(1)).tolist()
        margin = torch.tensor([float(i // 4) for i in ids])
        margin[3] = torch.nan
        store.add(toy(ids), margin)
        assert len(store.peek(0)) == 0
        for count in (1, 9, 100):
            keys = store.peek(count)
            assert len(keys) == min(count, len(store)) and len(store) == 40
        keys = store.peek(13)
        assert keys.id.tolist() == store.take(13).id.tolist()
        store.take(40)
        store.add(toy([50]), torch.tensor([2.0]))
        assert store.worst_margin() == 2.0


def test_the_least_of_numbers_with_a_nan_is_none() -> None:
    assert least([3.0, 1.0]) == 1.0 and least([]) == float("inf")
    assert least([3.0, float("nan"), 1.0]) != least([3.0])


def test_a_round_that_does_not_count_leaves_its_parents_open() -> None:
    """The last domains are in work on a rank where time ends: the queues are not empty then."""
    fine, late = Status(open=0, taken=3, done=3, left=0), Status(open=2, taken=4, left=2, late=1)
    assert Agreed((fine, fine), (fine, fine)).open == 0
    undone = Agreed((fine, late), (fine, late))
    assert not undone.counts_for and undone.counts == [3, 4]
    found = Agreed((fine, late, Status(found=2.0)), (fine, late, Status(found=2.0)))
    assert found.counts_for and found.finder == 2

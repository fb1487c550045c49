"""Cuts: children cover their parent exactly, share their cut points, and never come back as the parent."""

from __future__ import annotations

import pytest
import torch

from complete_verifier.input_bab.domains import Domains
from complete_verifier.input_bab.settings import Leaf
from complete_verifier.input_bab.split import cut, cuttable
from tests.input_bab.cases import all_groups, covers, domains_of, input_case

GROUPS = all_groups(input_case("mlp", 0).problem)


def parents(count: int, dtype: torch.dtype, seed: int = 0) -> Domains:
    """Random boxes of very different sizes, with a random order of their dimensions."""
    gen = torch.Generator().manual_seed(seed)
    lower = torch.randn(count, 4, generator=gen, dtype=torch.float64)
    width = torch.exp(-30 * torch.rand(count, 4, generator=gen, dtype=torch.float64))
    low, high = lower.to(dtype), (lower + width).to(dtype)
    made = domains_of(low, high, torch.zeros(count, dtype=torch.int64), GROUPS)
    order = torch.rand(count, 4, generator=gen).argsort(1)
    order = torch.where(cuttable(low, high).gather(1, order), order, -1)
    order = order.gather(1, (order < 0).to(torch.int8).argsort(dim=1, stable=True))
    return Domains(*(order.to(torch.int16) if n == "order" else getattr(made, n) for n in Domains.__slots__))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("levels", "partitions"), [(1, 2), (3, 2), (2, 3), (4, 2), (1, 5)])
@pytest.mark.parametrize("hint", [None, 0.1])
def test_children_cover_their_parent(levels: int, partitions: int, dtype: torch.dtype, hint: float | None) -> None:
    for seed in range(20):
        parent = parents(1, dtype, seed)
        where = None if hint is None else torch.full((4,), hint, dtype=dtype)
        children = cut(parent, levels, partitions, where, 5)
        leaves = [Leaf(0, low, high) for low, high in zip(children.lower, children.upper, strict=True)]
        assert covers(leaves, 0, parent.lower[0], parent.upper[0]), seed
        assert children.id.tolist() == list(range(5, 5 + len(children)))
        same = (children.lower == parent.lower).all(1) & (children.upper == parent.upper).all(1)
        assert not bool(same.any()) or not bool((parent.order >= 0).any())


def test_many_parents_at_once_are_cut_like_each_alone() -> None:
    many = parents(9, torch.float32)
    together = cut(many, 2, 2, None, 0)
    alone = [cut(many.pick(torch.tensor([i])), 2, 2, None, 0) for i in range(9)]
    found = sorted(map(tuple, torch.cat([together.lower, together.upper], 1).tolist()))
    assert found == sorted(tuple(row) for a in alone for row in torch.cat([a.lower, a.upper], 1).tolist())


def test_the_hint_is_used_where_it_lies_inside() -> None:
    low, high = torch.tensor([[0.0, -4.0], [2.0, 1.0]]), torch.tensor([[8.0, 4.0], [3.0, 2.0]])
    made = domains_of(low, high, torch.zeros(2, dtype=torch.int64), GROUPS)
    made = Domains(*(torch.zeros(2, 1, dtype=torch.int16) if n == "order" else getattr(made, n)
                     for n in Domains.__slots__))  # fmt: skip
    children = cut(made, 1, 2, torch.tensor([1.0, 0.5]), 0)
    assert children.upper[:2, 0].tolist() == [1.0, 2.5] and children.lower[2:, 0].tolist() == [1.0, 2.5]
    assert children.depth.tolist() == [1, 1, 1, 1]


def test_a_box_without_a_number_inside_cannot_be_cut() -> None:
    one = torch.tensor(1.0)
    low = torch.stack([one, one, one])
    high = torch.stack([one, torch.nextafter(one, one * 2), torch.nextafter(torch.nextafter(one, one * 2), one * 2)])
    assert cuttable(low, high).tolist() == [False, False, True]

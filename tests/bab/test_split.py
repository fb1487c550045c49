"""Children of a domain: every chosen neuron takes both signs, nothing else changes, and they cover the parent."""

from __future__ import annotations

import itertools

import pytest
import torch

from complete_verifier.bab.domains import Domains
from complete_verifier.bab.split import split


def parents(count: int, width: int, seed: int = 0) -> Domains:
    """Domains with random content; many neurons are split already, every fourth never is."""
    gen = torch.Generator().manual_seed(seed)
    sign = torch.randint(-1, 2, (count, width), generator=gen).to(torch.int8)
    sign[:, ::4] = 0
    return Domains(
        id=torch.arange(100, 100 + count),
        clause=torch.randint(0, 3, (count,), generator=gen),
        depth=(sign != 0).sum(1),
        sign=sign,
        value=torch.rand(count, width, generator=gen),
        lower=torch.randn(count, generator=gen),
        mix=torch.rand(count, 2, generator=gen),
        box_lower=torch.randn(count, width, generator=gen),
        box_upper=torch.randn(count, width, generator=gen) + 5,
        slopes={4: torch.rand(count, 1, 1, width, generator=gen), 7: torch.rand(count, 1, 2, 3, generator=gen)},
    )


def free_columns(family: Domains, levels: int) -> torch.Tensor:
    """For each parent, its first unsplit neurons ``[D, levels]``."""
    return torch.stack([(row == 0).nonzero().squeeze(-1)[:levels] for row in family.sign])


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_children_cover_the_parent_and_nothing_else_changes(levels: int) -> None:
    family = parents(5, 16)
    columns = free_columns(family, levels)
    children, parent = split(family, columns, 1000), torch.arange(5).repeat(2**levels)
    assert len(children) == len(parent) == 5 * 2**levels
    assert children.id.tolist() == list(range(1000, 1000 + 5 * 2**levels))
    for number in range(5):
        mine = children.pick((parent == number).nonzero().squeeze(-1))
        # each assignment of signs to the chosen neurons occurs exactly once
        signs = mine.sign[:, columns[number]].tolist()
        assert sorted(map(tuple, signs)) == sorted(itertools.product([-1, 1], repeat=levels))
        others = torch.ones(16, dtype=torch.bool)
        others[columns[number]] = False
        old = family.pick(torch.tensor([number]))
        assert (mine.sign[:, others] == old.sign[:, others]).all()
        assert (mine.depth == old.depth + levels).all()
        for name in ("clause", "lower", "mix", "box_lower", "box_upper"):
            assert (getattr(mine, name) == getattr(old, name)).all(), name
        assert (mine.value[:, others] == old.value[:, others]).all()
        assert all((mine.slopes[key] == old.slopes[key]).all() for key in old.slopes)


def test_new_splits_start_without_a_multiplier() -> None:
    """The parent's variable there was a slope; the child's is a multiplier, and starts at 0."""
    family = parents(4, 12)
    columns = free_columns(family, 2)
    children = split(family, columns, 0)
    assert (children.value.gather(1, columns.repeat(4, 1)) == 0).all()


def test_a_column_of_minus_one_splits_nothing() -> None:
    family = parents(3, 8)
    columns = torch.tensor([[-1], [4], [-1]])
    children = split(family, columns, 0)
    for number in (0, 2, 3, 5):
        assert torch.equal(children.sign[number], family.sign[number % 3])
        assert torch.equal(children.value[number], family.value[number % 3])
    assert children.sign[1, 4] == 1 and children.sign[4, 4] == -1


def test_the_first_block_is_the_plus_side() -> None:
    family = parents(3, 8)
    columns = free_columns(family, 1)
    children = split(family, columns, 0)
    assert torch.equal(children.lower, family.lower.repeat(2))
    assert children.sign.gather(1, columns.repeat(2, 1)).squeeze(1).tolist() == [1, 1, 1, -1, -1, -1]


def test_parents_are_left_as_they_are() -> None:
    family = parents(3, 8)
    before = [t.clone() for t in family.tensors()]
    split(family, free_columns(family, 2), 0)
    assert all(torch.equal(a, b) for a, b in zip(before, family.tensors(), strict=True))

"""The ledger says that leaves cover the root exactly when they do, compared with trying every sign assignment."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from complete_verifier.bab.ledger import Ledger
from tests.bab.test_split import parents

WIDTH = 4
Signs = list[int]


def closed(leaves: list[tuple[int, Signs]]) -> Ledger:
    """A ledger of leaves given as (clause, sign of every neuron, 0 for unsplit)."""
    ledger = Ledger()
    if leaves:
        batch = replace(
            parents(len(leaves), WIDTH),
            clause=torch.tensor([clause for clause, _ in leaves]),
            sign=torch.tensor([sign for _, sign in leaves], dtype=torch.int8),
        )
        ledger.close(batch, "bound")
    return ledger


def all_covered(leaves: list[Signs]) -> bool:
    """Every full assignment agrees with some leaf on that leaf's splits."""
    return all(
        any(all(s in (0, a) for s, a in zip(leaf, assignment, strict=True)) for leaf in leaves)
        for assignment in itertools.product([-1, 1], repeat=WIDTH)
    )


def tree(choices: list[int], sign: Signs, depth: int) -> list[Signs]:
    """Leaves of a binary tree that splits at the neurons that ``choices`` pick."""
    free = [i for i, s in enumerate(sign) if s == 0]
    if not free or depth == 0:
        return [sign]
    pick = choices[depth % len(choices)]
    if pick % 5 == 0:  # a leaf before the full depth
        return [sign]
    column = free[pick % len(free)]
    halves = []
    for side in (1, -1):
        child = list(sign)
        child[column] = side
        halves += tree(choices[1:] + choices[:1], child, depth - 1)
    return halves


LEAF = st.lists(st.sampled_from([-1, 0, 1]), min_size=WIDTH, max_size=WIDTH)


@given(st.lists(LEAF, max_size=12))
def test_any_set_of_leaves(leaves: list[Signs]) -> None:
    assert closed([(0, leaf) for leaf in leaves]).covers([0]) == all_covered(leaves)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=6), st.integers(0, 10**6))
def test_a_tree_covers_and_a_tree_without_one_leaf_does_not(choices: list[int], which: int) -> None:
    leaves = tree(choices, [0] * WIDTH, WIDTH)
    assert closed([(0, leaf) for leaf in leaves]).covers([0])
    del leaves[which % len(leaves)]
    assert not closed([(0, leaf) for leaf in leaves]).covers([0])


def test_every_clause_needs_leaves_of_its_own() -> None:
    plus, minus = [1, 0, 0, 0], [-1, 0, 0, 0]
    assert closed([(0, plus), (0, minus), (2, [0] * WIDTH)]).covers([0, 2])
    assert not closed([(0, plus), (0, minus)]).covers([0, 2])
    assert not closed([(0, plus), (2, minus)]).covers([0])
    assert not closed([(0, plus), (2, minus)]).covers([2])


def test_nothing_closed_covers_nothing() -> None:
    assert not Ledger().covers([0])
    assert Ledger().covers([])

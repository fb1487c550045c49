"""Adjoints of start nodes' boxes, of the neurons alone that are bounded again, whoever has the tiles."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from auto_LiRPA.bounds.sweep import Gradient
from auto_LiRPA.bounds.tile_sums import Layout, TileSums
from auto_LiRPA.parallel.counters import Counters
from auto_LiRPA.parallel.groups import Group
from auto_LiRPA.parallel.sharing import own
from auto_LiRPA.values import Interval
from tests.nets import dense_layers, residual

BATCH, COUNT = 2, 5
GRAPH = residual(dense_layers([4, 9, 9, 9, 3], 0), 16.0)
INPUTS = sorted({i for n in GRAPH.nodes if type(n.op).__name__ == "Relu" for i in n.inputs})


@dataclass(frozen=True, slots=True)
class _Asked(Group):
    """A group whose ranks are asked in turn: what they gave, the last one's answer is whole."""

    given: tuple[list[Tensor], ...] = ()

    def gather(self, part: Tensor) -> Tensor:
        self.given[self.rank].append(part)
        return torch.stack([parts[len(self.given[self.rank]) - 1] if parts else part for parts in self.given])


def _gradients(nodes: list[int]) -> list[Gradient]:
    gen = torch.Generator().manual_seed(0)
    found = []
    for _ in range(COUNT):
        boxes = {i: Interval(*torch.randn(2, BATCH, *GRAPH.nodes[i].shape, generator=gen).unbind(0)) for i in nodes}
        found.append(Gradient({nodes[0]: torch.randn(BATCH, 4, 1, 3, generator=gen)}, boxes, {}))
    return found


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_sums_of_some_neurons_are_those_of_all(ranks: int, first: int) -> None:
    """Bit for bit the sum in tile order; a node whose users lie above the start node has none."""
    start = INPUTS[-1]
    below = [i for i in INPUTS if i < start]
    neurons = {i: torch.arange(i % 3, GRAPH.nodes[i].size, 2) for i in INPUTS}
    tiles = _gradients(below)
    shared = {below[0]: torch.zeros(BATCH, 1, 1, 3)}
    layout = Layout.of(GRAPH, start, neurons, BATCH, shared)
    given: tuple[list[Tensor], ...] = tuple([] for _ in range(ranks))
    for rank in range(ranks):  # the last one has heard all others
        group = _Asked(rank, ranks, Counters(), tuple(range(ranks)), given=given)
        sums = TileSums(group)
        sums.begin()
        mine = [tiles[p] for p in own(group, COUNT, first)]
        for turn in range(-(-COUNT // ranks)):
            part = mine[turn] if turn < len(mine) else None
            sums.add(layout, part, COUNT - turn * ranks, torch.zeros(()), first)
    for node in below:
        found = sums.box(node)
        assert found is not None
        for side in ("lower", "upper"):
            total = getattr(tiles[0].boxes[node], side).clone()
            for tile in tiles[1:]:
                total += getattr(tile.boxes[node], side)
            assert torch.equal(getattr(found, side), total.flatten(1)[:, neurons[node]])
    assert sums.box(start) is None
    total = tiles[0].slopes[below[0]].sum(1, keepdim=True)
    for tile in tiles[1:]:
        total = total + tile.slopes[below[0]].sum(1, keepdim=True)
    assert torch.equal(sums.slopes()[below[0]], total)


def test_a_start_node_above_none_says_nothing() -> None:
    layout = Layout.of(GRAPH, INPUTS[0], {INPUTS[0]: torch.arange(2)}, BATCH, {})
    group = _Asked(0, 2, Counters(), (0, 1))  # a gather would find nobody
    TileSums(group).add(layout, None, COUNT, torch.zeros(()), 0)
    assert not layout.kept

"""Bounds of domains of a ReLU network whose neurons are spread over ranks: each works on the columns of its neurons.

A batch has all columns, the same on every rank. What comes back has too: variables and coefficients of columns are
gathered, everything else is the same on all ranks, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from auto_LiRPA.bounds.columns import Layer, Layout
from auto_LiRPA.bounds.domains.ascent import (
    Agree,
    AscentSettings,
    SecondsLeft,
    bound_eagerly,
    columns_eagerly,
    optimize_eagerly,
)
from auto_LiRPA.bounds.domains.batch import Batch, Bounded, ColumnFacts, split_box
from auto_LiRPA.bounds.domains.schedule import make_schedule
from auto_LiRPA.bounds.same_bits import check_same_bits
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.placements import Sharded, Spread
from auto_LiRPA.values import Interval


@dataclass(frozen=True, slots=True)
class _Shares:
    """Which columns are whose. ``mine``: those that this rank works on, ``[w]``, in its own order.

    ``sharded``: positions among ``mine`` of neurons that only this rank has; ``every``: the columns of all ranks'
    such neurons, rank after rank, ``[P, most]`` and -1 where a rank has fewer.
    """

    mine: Tensor
    sharded: Tensor
    every: Tensor
    layout: Layout


class SpreadEngine:
    """`DomainEngine` for a spread graph: plain operations, and the sums between the ranks' zones."""

    def __init__(
        self, graph: Graph, layout: Layout, boxes: Mapping[int, Interval], settings: AscentSettings
    ) -> None:
        spread = graph.spread
        assert spread is not None
        self._graph, self._spread, self._settings, self._width = graph, spread, settings, layout.width
        self._shares = _shares(graph, spread, layout)
        nodes = tuple(replace(n, shape=spread.shapes[n.id]) for n in graph.nodes)
        parts = {source: spread.part_of(source, box) for source, box in boxes.items()}
        here = make_schedule(replace(graph, nodes=nodes), self._shares.layout, parts)
        self._schedule = replace(here, spread=spread)

    def optimize(self, batch: Batch, seconds_left: SecondsLeft | None = None, agree: Agree = bool) -> Bounded:
        """Best bounds over alpha, beta and row weights."""
        found = optimize_eagerly(self._schedule, self._part(batch), self._settings, seconds_left, agree)
        check_same_bits(self._graph, (found.lower, found.mix))
        return replace(found, value=self._whole(found.value))

    def bound(self, batch: Batch) -> Tensor:
        """Bounds ``[D]`` by one pass."""
        lower = bound_eagerly(self._schedule, self._part(batch))
        check_same_bits(self._graph, (lower,))
        return lower

    def facts(self, batch: Batch) -> ColumnFacts:
        """Coefficients and boxes of all columns."""
        coef = self._whole(columns_eagerly(self._schedule, self._part(batch)).coef)
        return ColumnFacts(coef, *split_box(batch.lower, batch.upper, batch.sign))

    def _part(self, batch: Batch) -> Batch:
        mine = self._shares.mine
        return replace(
            batch,
            sign=batch.sign[:, mine],
            value=batch.value[:, mine],
            lower=batch.lower[:, mine],
            upper=batch.upper[:, mine],
        )

    def _whole(self, part: Tensor) -> Tensor:
        """All columns ``[D, W]`` from this rank's ``[D, w]``."""
        shares = self._shares
        out = part.new_empty(part.shape[0], self._width + 1)  # the last column takes what is no column
        out[:, shares.mine] = part
        if shares.every.numel():
            own = part.new_zeros(part.shape[0], shares.every.shape[1])
            own[:, : len(shares.sharded)] = part[:, shares.sharded]
            for columns, values in zip(shares.every, self._spread.ranks.gather(own), strict=True):
                out[:, columns] = values
        return out[:, : self._width].contiguous()


def _shares(graph: Graph, spread: Spread, layout: Layout) -> _Shares:
    device = layout.layers[0].index.device if layout.layers else torch.device("cpu")
    ranks = spread.ranks
    mine: list[Tensor] = []
    layers: list[Layer] = []
    every: list[list[Tensor]] = [[] for _ in range(ranks.size)]
    sharded: list[Tensor] = []
    start = 0
    for layer in layout.layers:
        columns = torch.arange(layer.start, layer.stop, device=device)
        index = layer.index
        if spread.sharded(layer.source):
            owner, place = _owners(graph, spread, layer.source, device)
            for rank in range(ranks.size):
                every[rank].append(columns[owner[index] == rank])
            own = owner[index] == ranks.rank
            columns, index = columns[own], place[index[own]]
            sharded.append(torch.arange(start, start + len(columns), device=device))
        layers.append(Layer(layer.node, layer.source, index, start, start + len(columns)))
        mine.append(columns)
        start += len(columns)
    none = torch.zeros(0, dtype=torch.long, device=device)
    lists = [torch.cat(parts) if parts else none for parts in every]
    most = max(len(one) for one in lists)
    padded = [torch.nn.functional.pad(one, (0, most - len(one)), value=-1) for one in lists]
    return _Shares(
        torch.cat(mine) if mine else none,
        torch.cat(sharded) if sharded else none,
        torch.stack(padded),
        Layout(tuple(layers), start, layout.complete),
    )


def _owners(graph: Graph, spread: Spread, node: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For every flat neuron of a node: the rank that has it, and its number there."""
    shape, where = graph.nodes[node].shape, spread.places[node]
    assert isinstance(where, Sharded)
    flat = torch.arange(graph.nodes[node].size, device=device).reshape(shape)
    owner, place = torch.empty_like(flat).flatten(), torch.empty_like(flat).flatten()
    for rank in range(spread.ranks.size):
        first, last = spread.range(node, rank)
        own = flat.narrow(where.axis, first, last - first).flatten()
        owner[own] = rank
        place[own] = torch.arange(len(own), device=device)
    return owner, place

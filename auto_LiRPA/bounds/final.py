"""Bounds of specification rows on the network's output, over finished intermediate boxes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from auto_LiRPA.bounds.backward import Relaxations, Rows, backward, concretize, spec_rows
from auto_LiRPA.bounds.intermediate import widest
from auto_LiRPA.bounds.interval import IntervalWalk
from auto_LiRPA.bounds.same_bits import check_same_bits
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.base import LinearOperator
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.sharing import each_tile
from auto_LiRPA.parallel.tiles import Tile, cut, tile_height
from auto_LiRPA.values import Box, Interval, Region


@dataclass(frozen=True, slots=True)
class SpecTiles:
    """A specification matrix ``[B or 1, S, n_out]`` cut into tiles of rows."""

    c: Tensor
    tiles: tuple[Tile, ...]

    def rows(self, graph: Graph, position: int, sign: int = 1) -> Rows:
        """Rows of one tile, padded by repeating the last row; ``sign`` -1 negates them (upper bounds)."""
        tile = self.tiles[position]
        part = self.c[:, tile.start : tile.stop]
        if part.shape[1] < tile.height:
            part = torch.cat([part, part[:, -1:].expand(-1, tile.height - part.shape[1], -1)], dim=1)
        return spec_rows(graph, part if sign > 0 else -part)

    def result_like(self, region: Region) -> Tensor:
        """A tensor as a tile's bounds are: ``[B, height]``."""
        center = region.center()
        return center.new_empty(center.shape[0], self.tiles[0].height)

    def join(self, parts: list[Tensor]) -> Tensor:
        """``[B, S]`` from each tile's ``[B, height]``."""
        return torch.cat([p[:, : t.stop - t.start] for t, p in zip(self.tiles, parts, strict=True)], dim=1)


def spec_tiles(graph: Graph, c: Tensor, context: DistributedContext, batch: int) -> SpecTiles:
    """Cut the rows of ``c``; the number of rows counts as the size of the start node."""
    height = tile_height(
        c.shape[1], widest(graph, graph.output), c.element_size(), batch, context.settings.tile_rows
    )
    return SpecTiles(c, cut(c.shape[1], height))


def identity_spec(graph: Graph, like: Tensor) -> Tensor:
    """One row per output: ``[1, n_out, n_out]``."""
    n = graph.nodes[graph.output].size
    return torch.eye(n, dtype=like.dtype, device=like.device).unsqueeze(0)


def final_lower(
    graph: Graph,
    spec: SpecTiles,
    region: Region,
    relaxations: Relaxations,
    context: DistributedContext,
    sign: int = 1,
) -> Tensor:
    """CROWN lower bounds of ``sign * c . y``: ``[B, S]``."""

    def compute(position: int) -> Tensor:
        return concretize(backward(graph, spec.rows(graph, position, sign), relaxations), region)

    lower = spec.join(each_tile(context, len(spec.tiles), compute, spec.result_like(region)))
    check_same_bits(graph, (lower,))
    return lower


def interval_lower(graph: Graph, c: Tensor, walk: IntervalWalk, sign: int = 1) -> Tensor:
    """Interval lower bounds of ``sign * c . y``: the rows are first pushed through the linear maps at the end.

    Pushing keeps what output neurons have in common; the intervals are taken where the linear tail begins.
    """
    frontier = frozenset(n.id for n in graph.nodes[1:] if not isinstance(n.op, LinearOperator))
    result = backward(graph, spec_rows(graph, c if sign > 0 else -c), {}, stop=frontier)
    total = result.bias
    if result.coef is not None:
        total = total + _box(walk.at(0)).minimum(result.coef)
    spread, partial = graph.spread, None
    for node_id, coef in result.saved.items():
        least = _box(walk.part(node_id)).minimum(coef)
        if spread is not None and spread.sharded(node_id):
            partial = least if partial is None else partial + least
        else:
            total = total + least
    if spread is not None and partial is not None:
        total = total + spread.ranks.total(partial.contiguous())
    return total


def _box(interval: Interval) -> Box:
    return Box(interval.lower, interval.upper)

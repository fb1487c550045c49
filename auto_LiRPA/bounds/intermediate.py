"""Boxes of all nonlinear nodes' inputs: interval first, then backward passes for the undecided neurons (DESIGN 2.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from auto_LiRPA.bounds.backward import NeuronList, Relaxations, Rows, neuron_rows
from auto_LiRPA.bounds.interval import IntervalWalk, affine_nodes, exact_nodes, nonlinear_inputs
from auto_LiRPA.bounds.same_bits import check_boxes
from auto_LiRPA.bounds.settings import BoundSettings
from auto_LiRPA.bounds.tile_passes import TilePasses
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.base import NonlinearOperator, Relaxation
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.sharing import each_tile
from auto_LiRPA.parallel.tiles import Tile, cut, pieces, tile_height
from auto_LiRPA.values import Interval, Region
from auto_LiRPA.values.windows import neighbour_order

Boxes = Mapping[int, Interval]


@dataclass(frozen=True, slots=True)
class StartNode:
    """A node with neurons that were bounded by backward passes: which ones (flat), in which tiles.

    The neurons are sorted, but on a feature map, where neighbours come together (`neighbour_order`). ``first``: the
    rank (modulo their number) that has the first tile.
    """

    node: int
    neurons: NeuronList
    tiles: tuple[Tile, ...]
    first: int = 0

    @property
    def index(self) -> Tensor:
        """The neurons on the device, ``[u]``."""
        return self.neurons.index

    def result_like(self, region: Region) -> Tensor:
        """A tensor as a tile's bounds are: ``[B, 2 * height]``."""
        center = region.center()
        return center.new_empty(center.shape[0], 2 * self.tiles[0].height)

    def rows(self, graph: Graph, position: int) -> Rows:
        """The rows of one tile."""
        tile = self.tiles[position]
        return neuron_rows(graph, self.node, self.neurons.cut(tile.start, tile.stop, tile.height))


@dataclass(frozen=True, slots=True)
class Intermediate:
    """Everything a final pass needs: boxes, the relaxations over them, and where they came from."""

    boxes: Boxes
    relaxations: Relaxations
    starts: tuple[StartNode, ...]


@dataclass(frozen=True, slots=True)
class Given:
    """What the caller knows already. ``fixed`` boxes are taken as they are, ``reference`` ones are intersected with."""

    fixed: Boxes
    reference: Boxes


NOTHING_GIVEN = Given({}, {})

Bounder = Callable[[Graph, StartNode, Region, Relaxations, DistributedContext], Interval]


def widest(graph: Graph, node_id: int) -> int:
    """Most neurons of any node that a backward pass from ``node_id`` can meet."""
    return max(graph.nodes[i].size for i in graph.ancestors[node_id] | {node_id})


def cut_rows(graph: Graph, node_id: int, count: int, batch: int, context: DistributedContext, itemsize: int) -> tuple[
    Tile, ...
]:
    """Tiles for ``count`` of a node's neurons: the height comes from the model, the dtype and the setting.

    With the setting `auto` also from ``count`` where that is small; never from the number of ranks.
    """
    node, most = graph.nodes[node_id], widest(graph, node_id)
    setting = context.settings.tile_rows
    on_map = len(node.shape) > 1
    height = tile_height(node.size, most, itemsize, batch, setting, on_map)
    if setting == "auto":
        height = min(height, -(-count // pieces(count, most, itemsize, batch)))
    return cut(count, height)


def interval_boxes(graph: Graph, region: Region, context: DistributedContext, given: Given = NOTHING_GIVEN) -> tuple[
    Boxes, Interval
]:
    """Boxes by interval propagation alone, and the output's interval.

    Over an Lp ball the maps before the first nonlinear node are bounded by an exact backward pass: taking the ball's
    bounding box through them would be sound but loose, taking its centre would be wrong.
    """
    walk = IntervalWalk(graph, region.interval())
    affine = frozenset() if region.is_box else affine_nodes(graph)
    boxes: dict[int, Interval] = {}
    for node_id in (*nonlinear_inputs(graph), graph.output):
        if node_id in given.fixed:
            box = given.fixed[node_id]
        elif node_id in affine and node_id != 0:
            every = torch.arange(graph.nodes[node_id].size, device=region.center().device)
            box = bound_neurons(graph, node_id, every, region, {}, context)
        else:
            box = walk.at(node_id)
        if node_id in given.reference:
            box = box.intersect(given.reference[node_id])
        walk.set(node_id, box)
        if node_id != graph.output or node_id in nonlinear_inputs(graph):
            boxes[node_id] = box
    return boxes, walk.at(graph.output)


def crown_boxes(
    graph: Graph,
    region: Region,
    context: DistributedContext,
    settings: BoundSettings,
    given: Given = NOTHING_GIVEN,
    bounder: Bounder | None = None,
) -> Intermediate:
    """Boxes by CROWN: one backward pass per tile of undecided neurons, node after node.

    ``bounder`` bounds a start node's neurons (``[B, u]``); the default is one plain CROWN pass per tile.
    """
    walk = IntervalWalk(graph, region.interval())
    settled = exact_nodes(graph) if region.is_box else frozenset({0})
    if graph.spread is not None and context.settings.tp_intermediate == "ibp":
        settled |= {node.id for node in graph.nodes if graph.spread.sharded(node.id)}
    # over a ball the rows of an affine node are exact, so its stable neurons gain too (as they do in `interval_boxes`)
    exact_rows = frozenset() if region.is_box else affine_nodes(graph)
    boxes: dict[int, Interval] = {}
    relaxations: dict[int, Relaxation] = {}
    starts: list[StartNode] = []
    for node in graph.nodes[1 : graph.output + 1]:
        if not isinstance(node.op, NonlinearOperator):
            continue
        for position, source in enumerate(node.inputs):
            if source in boxes:
                continue
            if source in given.fixed:
                boxes[source] = given.fixed[source]
            else:
                cheap = tuple(boxes.get(i, walk.at(i)) for i in node.inputs)
                mask = _undecided(graph, source, node.op.needs_tightening(*cheap)[position], walk)
                box, start = _tighten(
                    graph, source, cheap[position], mask, region, relaxations, context, settings,
                    source in settled, source in exact_rows, bounder or bound_tiles, sum(len(s.tiles) for s in starts),
                )
                if source in given.reference:
                    box = box.intersect(given.reference[source])
                boxes[source] = box
                if start is not None:
                    starts.append(start)
            walk.set(source, boxes[source])
        relaxations[node.id] = graph.relax(node, boxes)
    check_boxes(graph, boxes)
    return Intermediate(boxes, relaxations, tuple(starts))


def _undecided(graph: Graph, source: int, mask: Tensor, walk: IntervalWalk) -> Tensor:
    """Union over all nonlinear users of a node of the neurons that they want tightened."""
    for user in graph.users[source]:
        op = graph.nodes[user].op
        if isinstance(op, NonlinearOperator) and len(graph.nodes[user].inputs) == 1:
            mask = mask | op.needs_tightening(walk.at(source))[0]
    return mask


def _tighten(
    graph: Graph,
    node_id: int,
    cheap: Interval,
    mask: Tensor,
    region: Region,
    relaxations: Relaxations,
    context: DistributedContext,
    settings: BoundSettings,
    settled: bool,
    every: bool,
    bounder: Bounder,
    first: int,
) -> tuple[Interval, StartNode | None]:
    """Backward bounds where ``mask`` asks for them, or for ``every`` neuron; elsewhere the interval bounds stay."""
    if settled:
        return cheap, None
    if settings.sparse_intermediate and not every:
        index = mask.flatten(1).any(0).nonzero().squeeze(-1)
    else:
        index = torch.arange(graph.nodes[node_id].size, device=mask.device)
    if len(index) == 0:
        return cheap, None
    index = neighbour_order(graph.nodes[node_id].shape, index)
    batch = cheap.lower.shape[0]
    tiles = cut_rows(graph, node_id, len(index), batch, context, cheap.lower.element_size())
    neurons = NeuronList.of(index, cheap.lower.dtype)
    start = StartNode(node_id, neurons, tiles, first)
    found = bounder(graph, start, region, relaxations, context)
    return merge(cheap, index, found, settings.compare_with_ibp), start


def merge(base: Interval, index: Tensor, found: Interval, intersect: bool) -> Interval:
    """``base`` with the neurons ``index`` replaced by (or intersected with) ``found`` ``[B, u]``."""
    if intersect:
        found = found.intersect(base.pick(index))
    lower = base.lower.flatten(1).index_copy(1, index, found.lower).reshape(base.lower.shape)
    upper = base.upper.flatten(1).index_copy(1, index, found.upper).reshape(base.upper.shape)
    return Interval(lower, upper)


def bound_neurons(
    graph: Graph, node_id: int, index: Tensor, region: Region, relaxations: Relaxations, context: DistributedContext
) -> Interval:
    """Backward bounds of some neurons of a node, in the node's own shape if ``index`` is all of them."""
    center = region.center()
    tiles = cut_rows(graph, node_id, len(index), center.shape[0], context, center.element_size())
    start = StartNode(node_id, NeuronList.of(index, center.dtype), tiles)
    found = bound_tiles(graph, start, region, relaxations, context)
    node = graph.nodes[node_id]
    if len(index) != node.size:
        return found
    return Interval(found.lower.reshape(-1, *node.shape), found.upper.reshape(-1, *node.shape))


def bound_tiles(
    graph: Graph,
    start: StartNode,
    region: Region,
    relaxations: Relaxations,
    context: DistributedContext,
) -> Interval:
    """Bounds ``[B, u]`` of a start node's neurons, tile by tile."""
    compute = TilePasses(graph, start.node, start.neurons, start.tiles, region, relaxations, context)
    like = start.result_like(region)
    return join_tiles(start.tiles, each_tile(context, len(start.tiles), compute, like, first=start.first))


def join_tiles(tiles: tuple[Tile, ...], parts: list[Tensor]) -> Interval:
    """Lower and upper bounds ``[B, u]`` from each tile's ``[B, 2 * height]`` (rows, then negated rows)."""
    lower = [part[:, : t.stop - t.start] for t, part in zip(tiles, parts, strict=True)]
    upper = [-part[:, t.height : t.height + t.stop - t.start] for t, part in zip(tiles, parts, strict=True)]
    return Interval(torch.cat(lower, dim=1), torch.cat(upper, dim=1))

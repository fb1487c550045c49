"""Intermediate bounds of several regions: taking some of them out, putting groups together, telling which to trust."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from auto_LiRPA.bounds.backward import NeuronList, Relaxations
from auto_LiRPA.bounds.intermediate import Boxes, Intermediate, StartNode, cut_rows
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.base import NonlinearOperator
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.values import Interval


def relax_all(graph: Graph, boxes: Boxes) -> Relaxations:
    """Relaxations of every nonlinear node over the given boxes."""
    return {
        node.id: graph.relax(node, boxes)
        for node in graph.nodes[1 : graph.output + 1]
        if isinstance(node.op, NonlinearOperator)
    }


def pick(graph: Graph, whole: Intermediate, index: Tensor, context: DistributedContext) -> Intermediate:
    """The intermediate bounds of the regions ``index`` only."""
    boxes = {i: Interval(box.lower[index], box.upper[index]) for i, box in whole.boxes.items()}
    starts = []
    for start in whole.starts:
        itemsize = boxes[start.node].lower.element_size()
        tiles = cut_rows(graph, start.node, len(start.index), len(index), context, itemsize)
        starts.append(StartNode(start.node, start.neurons, tiles))
    return Intermediate(boxes, relax_all(graph, boxes), tuple(starts))


def join(graph: Graph, parts: Sequence[Intermediate], context: DistributedContext) -> Intermediate:
    """The regions of all parts in order. A start node has the neurons that any part had to bound."""
    if len(parts) == 1:
        return parts[0]
    boxes = {i: _cat([part.boxes[i] for part in parts]) for i in parts[0].boxes}
    nodes = sorted({start.node for part in parts for start in part.starts})
    starts = tuple(_join_start(graph, node, parts, boxes[node], context) for node in nodes)
    return Intermediate(boxes, relax_all(graph, boxes), starts)


def _join_start(
    graph: Graph, node: int, parts: Sequence[Intermediate], box: Interval, context: DistributedContext
) -> StartNode:
    index = torch.unique(torch.cat([s.index for part in parts for s in part.starts if s.node == node]))
    batch, itemsize = box.lower.shape[0], box.lower.element_size()
    tiles = cut_rows(graph, node, len(index), batch, context, itemsize)
    return StartNode(node, NeuronList.of(index, box.lower.dtype), tiles)


def tightened(graph: Graph, whole: Intermediate, regions: Tensor, boxes: Boxes) -> Intermediate:
    """``whole`` with the boxes of ``regions`` intersected with new ones ``[len(regions), *shape]``."""
    joined = {}
    for node_id, box in whole.boxes.items():
        better = Interval(box.lower[regions], box.upper[regions]).intersect(boxes[node_id])
        joined[node_id] = Interval(
            box.lower.index_copy(0, regions, better.lower), box.upper.index_copy(0, regions, better.upper)
        )
    return Intermediate(joined, relax_all(graph, joined), whole.starts)


def trusted(boxes: Boxes) -> Tensor | None:
    """Which regions ``[B]`` have boxes that bounds may rest on; None if there are no boxes at all (an affine network).

    A NaN (a network that overflows) or a lower bound above its upper one by more than rounding can do says that the
    numbers mean nothing, and a relaxation over such a box may look like a proof. Nothing is concluded from it. Nor from
    one whose width overflows: its chord would have slope 0.
    """
    good: Tensor | None = None
    for box in boxes.values():
        lower, upper = box.lower.flatten(1), box.upper.flatten(1)
        size = torch.maximum(lower.abs(), upper.abs()).nan_to_num(nan=0.0, posinf=0.0).amax(1, keepdim=True)
        slack = torch.finfo(lower.dtype).eps ** 0.5 * (1 + size)
        # written so that a NaN on either side makes it False
        fine = ((lower <= upper + slack) & ~((upper - lower).isinf() & lower.isfinite() & upper.isfinite())).all(1)
        good = fine if good is None else good & fine
    return good


def unstable_count(graph: Graph, intermediate: Intermediate) -> int:
    """Neurons, over all regions, whose relaxation has a choice to make."""
    total = 0
    for node_id, relaxation in intermediate.relaxations.items():
        node = graph.nodes[node_id]
        if graph.spread is not None and graph.spread.sharded(node_id):  # the relaxation is of this rank's neurons
            assert isinstance(node.op, NonlinearOperator)
            relaxation = node.op.relax(*(intermediate.boxes[i] for i in node.inputs))
        total += 0 if relaxation.alpha is None else len(relaxation.alpha.index)
    return total


def _cat(parts: Sequence[Interval]) -> Interval:
    return Interval(torch.cat([p.lower for p in parts]), torch.cat([p.upper for p in parts]))

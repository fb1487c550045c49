"""Which neurons a search can split, and where each layer's neurons lie in the flat vectors of a domain."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from auto_LiRPA.bounds.columns import Layer, Layout
from auto_LiRPA.bounds.domains.batch import split_box
from auto_LiRPA.bounds.intermediate import Intermediate
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.activation import Relu
from auto_LiRPA.operators.base import NonlinearOperator, Relaxation
from auto_LiRPA.values import Interval

__all__ = [
    "Layer",
    "Layout",
    "domain_boxes",
    "domain_relaxations",
    "make_layout",
    "root_columns",
]


def make_layout(graph: Graph, root: Intermediate) -> Layout:
    """Layout of the neurons that are not on in every region's root box, and not off in every one.

    Nodes that the output does not depend on have none.
    """
    layers: list[Layer] = []
    start, complete = 0, True
    reached = graph.ancestors[graph.output] | {graph.output}
    for node in graph.nodes[1 : graph.output + 1]:
        if node.id not in reached or not isinstance(node.op, NonlinearOperator):
            continue
        if not isinstance(node.op, Relu):
            complete = False
            continue
        (source,) = node.inputs
        if any(layer.source == source for layer in layers):
            continue
        box = root.boxes[source].flat()
        # a NaN bound proves no stability
        stable = (box.lower >= 0).all(0) | (box.upper <= 0).all(0)
        index = (~stable).nonzero().squeeze(-1)
        if len(index) == 0:
            continue
        stop = start + len(index)
        layers.append(Layer(node.id, source, index, start, stop))
        start = stop
    return Layout(tuple(layers), start, complete)


def root_columns(layout: Layout, root: Intermediate) -> Interval:
    """Root bounds of all splittable neurons: ``[n_regions, width]``."""
    if not layout.layers:
        some = next((box.lower for box in root.boxes.values()), torch.zeros(1))
        return Interval(some.new_zeros(some.shape[0], 0), some.new_zeros(some.shape[0], 0))
    picked = [root.boxes[layer.source].pick(layer.index) for layer in layout.layers]
    return Interval(torch.cat([p.lower for p in picked], 1), torch.cat([p.upper for p in picked], 1))


def domain_boxes(
    layout: Layout, root: Intermediate, region: Tensor, sign: Tensor, columns: Interval | None = None
) -> Mapping[int, Interval]:
    """Boxes ``[D, *shape]`` of every nonlinear input for domains of the given regions ``[D]`` and signs ``[D, width]``.

    Args:
        columns: the splittable neurons' bounds ``[D, width]`` before the splits where they are not the region's own.
    """
    boxes: dict[int, Interval] = {}
    by_source = {layer.source: layer for layer in layout.layers}
    for source, box in root.boxes.items():
        lower, upper = box.lower[region].flatten(1), box.upper[region].flatten(1)
        layer = by_source.get(source)
        if layer is not None:
            if columns is None:
                own = Interval(lower[:, layer.index], upper[:, layer.index])
            else:
                own = Interval(layout.of(columns.lower, layer), layout.of(columns.upper, layer))
            low, high = split_box(own.lower, own.upper, layout.of(sign, layer))
            lower, upper = lower.index_copy(1, layer.index, low), upper.index_copy(1, layer.index, high)
        shape = box.lower.shape[1:]
        boxes[source] = Interval(lower.reshape(-1, *shape), upper.reshape(-1, *shape))
    return boxes


def domain_relaxations(
    graph: Graph, root: Intermediate, boxes: Mapping[int, Interval], layout: Layout
) -> dict[int, Relaxation]:
    """Relaxations over the domains' boxes; slopes belong to the layout's columns, elsewhere to the root's neurons."""
    relaxations: dict[int, Relaxation] = {}
    columns = {layer.source: layer.index for layer in layout.layers}
    for node_id, base in root.relaxations.items():
        node = graph.nodes[node_id]
        assert isinstance(node.op, NonlinearOperator)
        relaxation = node.op.relax(*(boxes[i] for i in node.inputs))
        if isinstance(node.op, Relu):
            relaxation.pinned = columns.get(node.inputs[0], torch.zeros(0, dtype=torch.long))
        else:
            relaxation.pinned = None if base.alpha is None else base.alpha.index
        relaxations[node_id] = relaxation
    return relaxations

"""Forward-mode linear bounds: every node's value between two linear functions of the input, carried from the front.

Memory is (input neurons) x (node neurons) per node, so it suits low-dimensional inputs (input-split branch and bound).
"""

from __future__ import annotations

import torch

from auto_LiRPA.bounds.intermediate import NOTHING_GIVEN, Given, Intermediate
from auto_LiRPA.bounds.interval import IntervalWalk
from auto_LiRPA.bounds.settings import BoundSettings
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.base import LinearBounds, LinearOperator, NonlinearOperator, Relaxation
from auto_LiRPA.values import Interval, Region


def forward_boxes(
    graph: Graph, region: Region, settings: BoundSettings, given: Given = NOTHING_GIVEN
) -> tuple[Intermediate, Interval]:
    """Boxes of the nonlinear nodes' inputs by forward mode, and the output's bounds."""
    walk = IntervalWalk(graph, region.interval())
    values: dict[int, LinearBounds] = {0: _identity(graph, region)}
    last = {source: node.id for node in graph.nodes for source in node.inputs}
    boxes: dict[int, Interval] = {}
    relaxations: dict[int, Relaxation] = {}
    for node in graph.nodes[1 : graph.output + 1]:
        inputs = tuple(values[i] for i in node.inputs)
        if isinstance(node.op, NonlinearOperator):
            for source, value in zip(node.inputs, inputs, strict=True):
                if source not in boxes:
                    boxes[source] = _box(graph, source, value, region, walk, settings, given)
                    walk.set(source, boxes[source])
            relaxations[node.id] = graph.relax(node, boxes)
            values[node.id] = relaxations[node.id].push(inputs)
        elif isinstance(node.op, LinearOperator):
            values[node.id] = node.op.push(inputs)
        for source in set(node.inputs):
            if last[source] == node.id and source != graph.output:
                del values[source]
    output = _box(graph, graph.output, values[graph.output], region, walk, settings, NOTHING_GIVEN)
    return Intermediate(boxes, relaxations, ()), output


def _identity(graph: Graph, region: Region) -> LinearBounds:
    center = region.center()
    n = graph.nodes[0].size
    eye = torch.eye(n, dtype=center.dtype, device=center.device).reshape(1, n, *graph.input_shape)
    weight = eye.expand(center.shape[0], *eye.shape[1:])
    zero = torch.zeros_like(center)
    return LinearBounds(weight, zero, weight, zero)


def _box(
    graph: Graph,
    node_id: int,
    value: LinearBounds,
    region: Region,
    walk: IntervalWalk,
    settings: BoundSettings,
    given: Given,
) -> Interval:
    if node_id in given.fixed:
        return given.fixed[node_id]
    shape = graph.local_shape(node_id)

    def least(weight: torch.Tensor) -> torch.Tensor:
        rows = weight.flatten(2).transpose(1, 2).reshape(weight.shape[0], -1, *graph.input_shape)
        return region.minimum(rows).reshape(-1, *shape)

    box = Interval(least(value.lower_w) + value.lower_b, value.upper_b - least(-value.upper_w))
    if graph.spread is not None:
        box = graph.spread.whole_of(node_id, box)
    if settings.compare_with_ibp:
        box = box.intersect(walk.at(node_id))
    if node_id in given.reference:
        box = box.intersect(given.reference[node_id])
    return box

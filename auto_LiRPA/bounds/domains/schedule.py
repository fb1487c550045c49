"""The fixed order of steps in which domains pass through a ReLU network, and what each ReLU step reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from auto_LiRPA.bounds.columns import Layout
from auto_LiRPA.graph.ir import Graph, Node
from auto_LiRPA.graph.placements import Spread
from auto_LiRPA.operators.activation import Relu
from auto_LiRPA.operators.base import LinearOperator
from auto_LiRPA.operators.conv import Conv
from auto_LiRPA.operators.linear import Linear
from auto_LiRPA.values import Interval

PASSES, BLOCKED = -1, -2  # places of neurons that are on, or off, in every domain


@dataclass(frozen=True, slots=True)
class ReluStep:
    """One ReLU node of ``size`` neurons.

    ``start``, ``width``: its columns. ``prefix``: its neurons are the columns in order, then only neurons that are on.
    ``place`` ``[size]`` int32: each neuron's column within the layer, `PASSES` or `BLOCKED`. ``index`` ``[width]``:
    the neuron of each column. ``passes`` ``[size]``: 1 where a neuron is on in every domain, else 0.
    ``bias`` ``[size]``: constant term of the linear map below, where the step may add it to the bound itself.
    """

    node: int
    source: int
    size: int
    start: int
    width: int
    prefix: bool
    place: Tensor
    index: Tensor
    passes: Tensor
    bias: Tensor | None


@dataclass(frozen=True, slots=True)
class Schedule:
    """Steps of all ReLU nodes by id, and the nodes that a pass meets: ``down`` from the output, ``up`` from the input.

    ``alone``: nodes whose value only one other node reads. ``counted``: nodes whose constant term a ReLU step adds.
    ``before_relu``: nodes that some ReLU depends on, or that are one. ``last_use``: for each node the last one of
    ``up`` that reads it. ``spread``: where nodes have this rank's neurons only, how they are spread.
    """

    graph: Graph
    relus: Mapping[int, ReluStep]
    down: tuple[Node, ...]
    up: tuple[Node, ...]
    alone: frozenset[int]
    counted: frozenset[int]
    before_relu: frozenset[int]
    last_use: Mapping[int, int]
    width: int
    spread: Spread | None = None


def is_relu_network(graph: Graph) -> bool:
    """Whether every nonlinear node is a plain ReLU, and no two of them read the same value."""
    relus = [n for n in graph.nodes[1 : graph.output + 1] if not isinstance(n.op, LinearOperator)]
    sources = [n.inputs[0] for n in relus]
    plain = all(isinstance(n.op, Relu) and n.op.leak == 0 for n in relus)
    return plain and len(set(sources)) == len(sources) and all(n.shape for n in graph.nodes)


def make_schedule(graph: Graph, layout: Layout, boxes: Mapping[int, Interval]) -> Schedule:
    """Steps for domains whose splittable neurons ``layout`` lists.

    Args:
        boxes: root boxes ``[n_regions, *shape]`` of every ReLU's input. Each neuron without a column must be on in
            every region, or off in every region.
    """
    reached = graph.ancestors[graph.output] | {graph.output}
    alone = frozenset(n.id for n in graph.nodes if sum(u in reached for u in graph.users[n.id]) == 1)
    relus = {}
    for node in graph.nodes[1 : graph.output + 1]:
        if node.id in reached and isinstance(node.op, Relu):
            relus[node.id] = _relu_step(graph, node, layout, boxes[node.inputs[0]], node.inputs[0] in alone)
    up = tuple(n for n in graph.nodes[1 : graph.output + 1] if n.id in reached)
    return Schedule(
        graph,
        relus,
        down=tuple(reversed(up)),
        up=up,
        alone=alone,
        counted=frozenset(step.source for step in relus.values() if step.bias is not None),
        before_relu=frozenset().union(*(graph.ancestors[r] | {r} for r in relus)),
        last_use={source: node.id for node in up for source in node.inputs},
        width=layout.width,
    )


def _relu_step(graph: Graph, node: Node, layout: Layout, box: Interval, alone: bool) -> ReluStep:
    source = node.inputs[0]
    device = box.lower.device
    layer = next((x for x in layout.layers if x.source == source), None)
    index = torch.zeros(0, dtype=torch.long, device=device) if layer is None else layer.index
    on = (box.lower >= 0).all(0).flatten()
    place = torch.where(on, PASSES, BLOCKED).to(torch.int32)
    place[index] = torch.arange(len(index), dtype=torch.int32, device=device)
    passes = (place == PASSES).to(box.lower)
    rest = place[len(index) :]
    order = torch.arange(len(index), device=device)
    prefix = bool(torch.equal(index, order)) and bool((rest == PASSES).all())
    bias = None
    below = graph.nodes[source]
    if alone and isinstance(below.op, (Linear, Conv)):
        known = below.op.bias_values()
        bias = None if known is None else known.expand(below.shape).flatten().contiguous()
    start = 0 if layer is None else layer.start
    return ReluStep(node.id, source, node.size, start, len(index), prefix, place, index, passes, bias)

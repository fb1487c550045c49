"""Which neurons a search can split, and where each layer's neurons lie in the flat vectors of a domain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from auto_LiRPA.bounds.intermediate import Intermediate
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.activation import Relu
from auto_LiRPA.operators.base import NonlinearOperator, Relaxation
from auto_LiRPA.values import Interval


@dataclass(frozen=True, slots=True)
class Layer:
    """Splittable neurons of one pre-activation node: flat neurons ``index`` ``[u]``, columns ``start:stop``."""

    node: int  # the ReLU
    source: int  # its input, whose sign is split
    index: Tensor
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Layout:
    """All layers in order; ``width`` columns in all. ``complete``: splitting all of them leaves an affine network."""

    layers: tuple[Layer, ...]
    width: int
    complete: bool

    def of(self, flat: Tensor, layer: Layer) -> Tensor:
        """Columns of one layer: ``[..., width] -> [..., u]``."""
        return flat[..., layer.start : layer.stop]


def make_layout(graph: Graph, root: Intermediate) -> Layout:
    """Layout of the neurons that are unstable in some region's root box."""
    layers: list[Layer] = []
    start, complete = 0, True
    for node in graph.nodes[1 : graph.output + 1]:
        if not isinstance(node.op, NonlinearOperator):
            continue
        if not isinstance(node.op, Relu):
            complete = False
            continue
        (source,) = node.inputs
        if any(layer.source == source for layer in layers):
            continue
        spec = root.relaxations[node.id].alpha
        assert spec is not None
        if len(spec.index) == 0:
            continue
        stop = start + len(spec.index)
        layers.append(Layer(node.id, source, spec.index, start, stop))
        start = stop
    return Layout(tuple(layers), start, complete)


def root_columns(layout: Layout, root: Intermediate) -> Interval:
    """Root bounds of all splittable neurons: ``[n_regions, width]``."""
    picked = [root.boxes[layer.source].pick(layer.index) for layer in layout.layers]
    return Interval(torch.cat([p.lower for p in picked], 1), torch.cat([p.upper for p in picked], 1))


def split_columns(columns: Interval, sign: Tensor) -> Interval:
    """The columns' bounds once the splits hold: sign +1 means z >= 0, -1 means z <= 0."""
    lower = torch.where(sign > 0, columns.lower.clamp_min(0), columns.lower)
    upper = torch.where(sign < 0, columns.upper.clamp_max(0), columns.upper)
    return Interval(lower, upper)


def domain_boxes(layout: Layout, root: Intermediate, region: Tensor, sign: Tensor) -> Mapping[int, Interval]:
    """Boxes ``[D, *shape]`` of every nonlinear input for domains of the given regions ``[D]`` and signs ``[D, width]``.

    Nothing but the signs is stored per domain: everything else is the region's and is laid out here.
    """
    boxes: dict[int, Interval] = {}
    by_source = {layer.source: layer for layer in layout.layers}
    for source, box in root.boxes.items():
        lower, upper = box.lower[region].flatten(1), box.upper[region].flatten(1)
        layer = by_source.get(source)
        if layer is not None:
            mine = layout.of(sign, layer)
            part = split_columns(Interval(lower[:, layer.index], upper[:, layer.index]), mine)
            lower = lower.index_copy(1, layer.index, part.lower)
            upper = upper.index_copy(1, layer.index, part.upper)
        shape = box.lower.shape[1:]
        boxes[source] = Interval(lower.reshape(-1, *shape), upper.reshape(-1, *shape))
    return boxes


def domain_relaxations(graph: Graph, root: Intermediate, boxes: Mapping[int, Interval]) -> dict[int, Relaxation]:
    """Relaxations over the domains' boxes; the neurons that carry slopes stay those of the root."""
    relaxations: dict[int, Relaxation] = {}
    for node_id, base in root.relaxations.items():
        node = graph.nodes[node_id]
        assert isinstance(node.op, NonlinearOperator)
        relaxation = node.op.relax(*(boxes[i] for i in node.inputs))
        relaxation.pinned = None if base.alpha is None else base.alpha.index
        relaxations[node_id] = relaxation
    return relaxations

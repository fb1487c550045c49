"""The whole network again from the ranks' parts, for the few places that cannot work with a part of it."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from auto_LiRPA.graph.ir import Graph, Node
from auto_LiRPA.graph.placements import Sharded, Spread
from auto_LiRPA.operators.arithmetic import Affine
from auto_LiRPA.operators.base import Operator
from auto_LiRPA.operators.conv import Conv
from auto_LiRPA.operators.linear import Linear
from auto_LiRPA.operators.parallel_maps import ColumnLinear, Enter, Exit
from auto_LiRPA.operators.shape import PadConstant
from auto_LiRPA.parallel.store import LocalStore, ParameterStore
from auto_LiRPA.parallel.whole import whole


def whole_graph(graph: Graph, block_mib: float = 16.0) -> Graph:
    """The same network with all weights on every rank; nodes keep their numbers, names and shapes.

    All ranks that share the neurons have to ask, at the same place. A graph that is not spread is given back.
    """
    spread = graph.spread
    if spread is None:
        return graph
    store = LocalStore(block_mib)
    nodes = tuple(replace(node, op=_whole_op(graph, spread, node, store)) for node in graph.nodes)
    return replace(graph, nodes=nodes)


def _whole_op(graph: Graph, spread: Spread, node: Node, store: ParameterStore) -> Operator:
    op, place = node.op, spread.places[node.id]
    if isinstance(op, Enter):
        return Affine(None, None)
    if isinstance(op, Exit):
        return Affine(None, op.bias_values())
    source = spread.places[node.inputs[0]] if node.inputs else None
    if isinstance(op, Linear | Conv):
        if isinstance(place, Sharded):
            return _column(op, place, spread, store)
        if isinstance(source, Sharded):
            weight = store.place(spread.joined(source, whole(op.weight), 1))
            if isinstance(op, Conv):
                return replace(op, weight=weight, in_shape=graph.nodes[node.inputs[0]].shape)
            return Linear(weight, None)
    return _inner(graph, spread, node, place) if isinstance(place, Sharded) else op


def _column(op: Linear | Conv, place: Sharded, spread: Spread, store: ParameterStore) -> Operator:
    weight = store.place(spread.joined(place, whole(op.weight), 0))
    if isinstance(op, ColumnLinear):
        return Linear(weight, op.whole_bias)
    return replace(op, weight=weight, bias=None if op.bias is None else spread.joined(place, op.bias, 0))


def _inner(graph: Graph, spread: Spread, node: Node, place: Sharded) -> Operator:
    shapes = {"in_shape": node.inputs, "out_shape": (node.id,)}
    changes: dict[str, Any] = {}
    for item in fields(node.op):  # type: ignore[arg-type]
        value = getattr(node.op, item.name)
        if item.name in shapes:
            changes[item.name] = graph.nodes[shapes[item.name][0]].shape
        elif isinstance(value, Tensor) and isinstance(node.op, Affine | PadConstant):
            changes[item.name] = _whole_constant(spread, value, place, len(node.shape))
    return replace(node.op, **changes) if changes else node.op  # type: ignore[type-var]


def _whole_constant(spread: Spread, value: Tensor, place: Sharded, rank: int) -> Tensor:
    """A constant of which each rank has its neurons' entries, unless it is one number for all of them."""
    axis = place.axis - rank + value.ndim
    if axis < 0:
        return value
    sizes = spread.ranks.gather(torch.tensor([value.shape[axis]], device=value.device))
    most = max(b - a for a, b in (place.range(r, spread.ranks.size) for r in range(spread.ranks.size)))
    # a rank with one neuron cannot tell a number for all from its own
    return value if most > 1 and int(sizes.max()) == 1 else spread.joined(place, value, axis)

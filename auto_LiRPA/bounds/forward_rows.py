"""Forward-mode bounds of specification rows: linear bounds of the last nonlinear nodes, combined by the linear tail."""

from __future__ import annotations

import torch
from torch import Tensor

from auto_LiRPA.bounds.backward import Relaxations, backward, spec_rows
from auto_LiRPA.bounds.intermediate import Intermediate
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.base import LinearBounds, LinearOperator, NonlinearOperator
from auto_LiRPA.values import Region


def forward_rows(graph: Graph, region: Region, c: Tensor, middle: Intermediate, sign: int) -> Tensor:
    """Forward-mode lower bounds ``[B, S]`` of ``sign * c . y`` for rows c ``[B or 1, S, n_out]``.

    The rows are first pushed through the linear maps at the end, which keeps what the outputs have in common; there
    the nodes' linear bounds are combined into one function of the input, which is concretised once.
    """
    frontier = frozenset(n.id for n in graph.nodes[1:] if isinstance(n.op, NonlinearOperator))
    result = backward(graph, spec_rows(graph, c if sign > 0 else -c), {}, stop=frontier)
    values = _values(graph, region, middle.relaxations, frozenset(result.saved))
    weight, bias, spread = result.coef, result.bias, graph.spread
    for node_id, coef in result.saved.items():
        value, flat = values[node_id], coef.flatten(2)
        up, down = flat.clamp_min(0), flat.clamp_max(0)
        term = up @ _columns(value.lower_w) + down @ _columns(value.upper_w)
        low, high = value.lower_b.flatten(1).unsqueeze(-1), value.upper_b.flatten(1).unsqueeze(-1)
        constant = (up @ low + down @ high).squeeze(-1)
        if spread is not None and spread.sharded(node_id):  # of this rank's neurons only
            term, constant = (spread.ranks.total(x.contiguous()) for x in (term, constant))
        term = term.unflatten(2, graph.input_shape)
        weight = term if weight is None else weight + term
        bias = bias + constant
    if weight is None:
        return bias.expand(region.center().shape[0], -1)
    return region.minimum(weight) + bias


def _columns(weight: Tensor) -> Tensor:
    """``[B, n_in, *shape] -> [B, n, n_in]``."""
    return weight.flatten(2).transpose(1, 2)


def _values(graph: Graph, region: Region, relaxations: Relaxations, wanted: frozenset[int]) -> dict[int, LinearBounds]:
    """Linear bounds over the input of the nodes ``wanted``."""
    needed = wanted.union(*(graph.ancestors[i] for i in wanted)) if wanted else frozenset()
    values: dict[int, LinearBounds] = {0: _identity(graph, region)}
    for node in graph.nodes[1:]:
        if node.id not in needed:
            continue
        inputs = tuple(values[i] for i in node.inputs)
        if isinstance(node.op, LinearOperator):
            values[node.id] = node.op.push(inputs)
        else:
            values[node.id] = relaxations[node.id].push(inputs)
        for source in set(node.inputs) - wanted:
            if not any(user > node.id and user in needed for user in graph.users[source]):
                del values[source]
    return values


def _identity(graph: Graph, region: Region) -> LinearBounds:
    center = region.center()
    n = graph.nodes[0].size
    eye = torch.eye(n, dtype=center.dtype, device=center.device).reshape(1, n, *graph.input_shape)
    weight = eye.expand(center.shape[0], *eye.shape[1:])
    zero = torch.zeros_like(center)
    return LinearBounds(weight, zero, weight, zero)

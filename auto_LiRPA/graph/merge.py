"""`merge_batchnorm`: an Affine per channel folded into the Conv or Linear in front of it (flag ``merge_bn``)."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from auto_LiRPA.graph.assembler import kept_nodes, last_axis_vector
from auto_LiRPA.graph.ir import Graph, Node
from auto_LiRPA.operators.arithmetic import Affine
from auto_LiRPA.operators.conv import Conv
from auto_LiRPA.operators.linear import Linear
from auto_LiRPA.parallel.store import ParameterStore, Weight
from auto_LiRPA.parallel.whole import whole


def merge_batchnorm(graph: Graph, store: ParameterStore) -> Graph:
    """The same network with every per-channel Affine (BatchNormalization, or Mul and Add of constants) merged.

    An Affine is merged into the Conv or Linear that it alone reads, and keeps its own name. Merged weights are new
    numbers, placed in ``store``; weights that ask for gradients stay as they are, so that training still reaches them.
    All ranks that share weights call it together.
    """
    nodes = list(graph.nodes)
    users = graph.users
    for node in graph.nodes:
        if not isinstance(node.op, Affine):
            continue
        (source,) = node.inputs
        if len(users[source]) != 1 or source == graph.output:
            continue
        merged = _merged(nodes[source], node.op, store)
        if merged is not None:
            # the source is left without a reader; what read the Affine now reads the merged map under its name
            nodes[node.id] = replace(node, op=merged, inputs=nodes[source].inputs)
    kept, output = kept_nodes(nodes, graph.output)
    return replace(graph, nodes=kept, output=output)


def _merged(source: Node, affine: Affine, store: ParameterStore) -> Conv | Linear | None:
    op = source.op
    if not isinstance(op, Conv | Linear) or op.weight.requires_grad:
        return None
    bias = op.bias
    tensors = [t for t in (bias, affine.scale, affine.shift) if t is not None]
    if any(t.requires_grad for t in tensors):
        return None
    scale, shift = _per_channel(affine.scale, source), _per_channel(affine.shift, source)
    if (affine.scale is not None and scale is None) or (affine.shift is not None and shift is None):
        return None
    weight: Weight = op.weight
    if scale is not None:
        dense = whole(op.weight)
        weight = store.place(dense * scale.reshape(-1, *([1] * (dense.dim() - 1))))
        bias = None if bias is None else bias * scale
    if shift is not None:
        bias = shift.clone() if bias is None else bias + shift
    return replace(op, weight=weight, bias=bias)


def _per_channel(values: Tensor | None, source: Node) -> Tensor | None:
    """One number per output channel of ``source``; None if the values differ within a channel."""
    if values is None:
        return None
    if isinstance(source.op, Linear):
        return last_axis_vector(values, source.shape)
    # Conv: channels are per-sample axis 0
    channels, rank = source.shape[0], len(source.shape)
    values = values.reshape((1,) * (rank - values.dim()) + tuple(values.shape))
    return values.reshape(-1).expand(channels) if all(s == 1 for s in values.shape[1:]) else None

"""What does not change during a search, per splittable neuron: which layer it is in, and the bias that feeds it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.activation import Relu
from auto_LiRPA.operators.arithmetic import Add, Sub
from auto_LiRPA.operators.base import LinearOperator
from auto_LiRPA.operators.shape import Reshape
from complete_verifier.branching.layout import Layout


@dataclass(frozen=True, slots=True)
class Columns:
    """Constants of the U columns of a `Layout`, made once.

    ``bias`` ``[U]``: constant term of the linear layer that feeds the neuron. ``layer`` ``[U]`` int64: position of its
    layer, 0 nearest to the input. ``spans``: columns ``start, stop`` of each layer. ``leak`` ``[U]``: slope for
    negative inputs; None where all are plain ReLUs.
    """

    bias: Tensor
    layer: Tensor
    spans: tuple[tuple[int, int], ...]
    leak: Tensor | None

    @property
    def width(self) -> int:
        """Columns in all."""
        return int(self.bias.shape[0])


def make_columns(graph: Graph, layout: Layout, dtype: torch.dtype, device: torch.device) -> Columns:
    """The constants of a layout's columns."""
    biases, leaks = [torch.zeros(0, dtype=dtype, device=device)], [torch.zeros(0, dtype=dtype, device=device)]
    for layer in layout.layers:
        count = layer.stop - layer.start
        found = preactivation_bias(graph, layer.source)
        bias = torch.zeros(count) if found is None else found.detach()[layer.index]
        biases.append(bias.to(device, dtype))
        op = graph.nodes[layer.node].op
        assert isinstance(op, Relu)
        leaks.append(torch.full((count,), op.leak, dtype=dtype, device=device))
    widths = torch.tensor([layer.stop - layer.start for layer in layout.layers], dtype=torch.int64)
    number = torch.arange(len(layout.layers)).repeat_interleave(widths).to(device)
    leak = torch.cat(leaks)
    return Columns(
        bias=torch.cat(biases),
        layer=number,
        spans=tuple((layer.start, layer.stop) for layer in layout.layers),
        leak=leak if bool((leak != 0).any()) else None,
    )


def preactivation_bias(graph: Graph, source: int) -> Tensor | None:
    """Constant term of the linear layer that feeds a ReLU, flat ``[n]``; branches that meet in an Add are summed."""
    node = graph.nodes[source]
    if isinstance(node.op, (Add, Sub)):
        parts = [preactivation_bias(graph, i) for i in node.inputs]
        if isinstance(node.op, Sub) and parts[1] is not None:
            parts[1] = -parts[1]
        known = [p for p in parts if p is not None]
        return sum(known[1:], start=known[0]) if known else None
    if isinstance(node.op, Reshape):
        return preactivation_bias(graph, node.inputs[0])
    if not isinstance(node.op, LinearOperator):
        return None
    bias = node.op.bias_values()
    if bias is None:
        return None
    mine = bias.expand(graph.local_shape(source))
    return (mine if graph.spread is None else graph.spread.whole(source, mine, leading=0)).flatten()

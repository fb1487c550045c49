"""Concrete evaluation of a graph: plain values through every operator's forward rule."""

from __future__ import annotations

from torch import Tensor

from auto_LiRPA.graph.ir import Graph


def evaluate(graph: Graph, x: Tensor) -> Tensor:
    """Outputs for inputs ``x`` ``[N, *input_shape]`` -> ``[N, *output_shape]``; values are dropped after last use."""
    values: dict[int, Tensor] = {0: x}
    last_use = {source: node.id for node in graph.nodes for source in node.inputs}
    for node in graph.nodes[1 : graph.output + 1]:
        values[node.id] = node.op.forward(*(values[i] for i in node.inputs))
        for source in set(node.inputs):
            if last_use[source] == node.id and source != graph.output:
                del values[source]
    return values[graph.output]

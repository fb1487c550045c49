"""The same function on a region with fewer neurons: those that are off everywhere leave, the others are reordered.

Only hidden layers between plain matrix products are touched (Linear, ReLU, Linear): there a neuron is a row of one
matrix and a column of the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from auto_LiRPA.graph.ir import Graph, Node
from auto_LiRPA.operators.activation import Relu
from auto_LiRPA.operators.linear import Linear
from auto_LiRPA.parallel.store import ParameterStore
from auto_LiRPA.parallel.whole import whole


def hidden_layers(graph: Graph) -> dict[int, int]:
    """Input node -> ReLU node of every hidden layer whose neurons can be reordered or left out."""
    found: dict[int, int] = {}
    for node in graph.nodes[1:]:
        if not isinstance(node.op, Relu) or node.op.leak != 0 or len(node.shape) != 1 or node.id == graph.output:
            continue
        source = graph.nodes[node.inputs[0]]
        users = [graph.nodes[i] for i in graph.users[node.id]]
        plain = isinstance(source.op, Linear) and graph.users[source.id] == (node.id,) and source.id != graph.output
        if plain and users and all(isinstance(u.op, Linear) and len(u.shape) == 1 for u in users):
            found[source.id] = node.id
    return found


def compact(graph: Graph, kept: Mapping[int, Tensor], store: ParameterStore) -> Graph:
    """The graph with only the neurons ``kept`` (in that order, at least one) of some `hidden_layers` by input node.

    The function is the same on every input where the left-out neurons are off. All ranks that share weights call it
    together: each layer is whole here for a moment.
    """
    relus = hidden_layers(graph)
    after = {relus[source]: index for source, index in kept.items()}
    nodes: list[Node] = []
    for node in graph.nodes:
        op, shape = node.op, node.shape
        if isinstance(op, Linear) and (node.id in kept or node.inputs[0] in after):
            weight, bias = whole(op.weight), op.bias
            if node.inputs[0] in after:
                weight = weight[:, after[node.inputs[0]]]
            if node.id in kept:
                weight = weight[kept[node.id]]
                bias = None if bias is None else bias.expand(node.shape)[kept[node.id]]
            op = replace(op, weight=store.place(weight.contiguous()), bias=bias)
        index = kept.get(node.id, after.get(node.id))
        if index is not None:
            shape = (len(index),)
        nodes.append(replace(node, op=op, shape=shape))
    return replace(graph, nodes=tuple(nodes))

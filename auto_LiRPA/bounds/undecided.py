"""Which start neurons an optimisation has to bound again: those that CROWN's own boxes have not decided."""

from __future__ import annotations

from dataclasses import replace

import torch

from auto_LiRPA.bounds.backward import NeuronList
from auto_LiRPA.bounds.intermediate import Intermediate, StartNode, cut_rows
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.base import NonlinearOperator
from auto_LiRPA.parallel.context import DistributedContext


def undecided_starts(graph: Graph, base: Intermediate, context: DistributedContext) -> tuple[StartNode, ...]:
    """The start nodes with the neurons that some user still wants tightened after CROWN (a ReLU: the unstable ones).

    The relaxation of every other neuron is exact whatever its box, so that its bounds have no gradient either.
    """
    found: list[StartNode] = []
    for start in base.starts:
        box = base.boxes[start.node]
        mask = torch.zeros_like(box.lower, dtype=torch.bool)
        for user in graph.users[start.node]:
            op = graph.nodes[user].op
            if isinstance(op, NonlinearOperator):
                inputs = graph.nodes[user].inputs
                asked = op.needs_tightening(*(base.boxes[i] for i in inputs))
                for source, wanted in zip(inputs, asked, strict=True):
                    mask = mask | wanted if source == start.node else mask
        index = start.index[mask.flatten(1).any(0)[start.index]]
        dealt = sum(len(one.tiles) for one in found)
        if len(index) == len(start.index):
            found.append(replace(start, first=dealt))
        elif len(index):
            tiles = cut_rows(graph, start.node, len(index), box.lower.shape[0], context, box.lower.element_size())
            found.append(replace(start, neurons=NeuronList.of(index, start.neurons.dtype), tiles=tiles, first=dealt))
    return tuple(found)

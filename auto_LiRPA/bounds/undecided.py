"""Which start neurons an optimisation has to bound again: those that CROWN's own boxes have not decided."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from auto_LiRPA.bounds.backward import NeuronList
from auto_LiRPA.bounds.intermediate import Intermediate, StartNode, cut_rows
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.base import NonlinearOperator
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.sharing import Dealing
from auto_LiRPA.parallel.tiles import Tile


def undecided_starts(
    graph: Graph, base: Intermediate, context: DistributedContext, final: Sequence[Tile] = ()
) -> tuple[StartNode, ...]:
    """The start nodes with the neurons that some user still wants tightened after CROWN (a ReLU: the unstable ones).

    The relaxation of every other neuron is exact whatever its box, so that its bounds have no gradient either.
    ``final``: the tiles of the specification, which are dealt out from rank 0 on.
    """
    found: list[StartNode] = []
    dealing = Dealing(context.rows.size)
    dealing.first(len(final), sum(tile.height for tile in final[:1]) * _slopes_of_a_row(graph, base, graph.output))
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
        if len(index) == 0:
            continue
        neurons = start.neurons if len(index) == len(start.index) else NeuronList.of(index, start.neurons.dtype)
        batch, itemsize = box.lower.shape[0], box.lower.element_size()
        tiles = cut_rows(graph, start.node, len(index), batch, context, itemsize)
        cost = 2 * tiles[0].height * _slopes_of_a_row(graph, base, start.node)
        found.append(StartNode(start.node, neurons, tiles, dealing.first(len(tiles), cost)))
    return tuple(found)


def _slopes_of_a_row(graph: Graph, base: Intermediate, start: int) -> int:
    """How many slopes a row has that starts at a node: what is stored for it, and with it how deep its pass goes."""
    below = (graph.ancestors[start] | {start}) & set(base.relaxations)
    specs = (base.relaxations[j].alpha for j in below)
    return sum(spec.initial.shape[1] * len(spec.index) for spec in specs if spec is not None)

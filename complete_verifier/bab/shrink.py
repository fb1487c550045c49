"""The problem that a search works on: without the neurons that the root's boxes show to be off."""

from __future__ import annotations

from dataclasses import replace

import torch

from auto_LiRPA.bounds.intermediate import Intermediate
from auto_LiRPA.graph.compact import compact, hidden_layers
from auto_LiRPA.operators.base import NonlinearOperator
from auto_LiRPA.values import Interval
from complete_verifier.branching.layout import make_layout
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.problem import Problem

LARGEST_MIB = 256  # a larger network is not copied


def shrunk(problem: Problem, start: IncompleteResult) -> tuple[Problem, IncompleteResult]:
    """The same question about a smaller network; splittable neurons keep their columns.

    In each hidden layer come the splittable neurons first, in order, then those that are always on. The slopes of the
    root belong to the old neurons and are not handed on. All ranks that share weights call this together, with the same
    boxes; the weights of the smaller network are shared out as those of the whole one are.
    """
    graph, root = problem.graph, start.intermediate
    if graph.spread is not None:  # every rank has other neurons
        return problem, start
    size = sum(w.numel for n in graph.nodes if (w := getattr(n.op, "weight", None)) is not None)
    if size * problem.clauses.c.element_size() > LARGEST_MIB * 2**20:
        return problem, start
    splittable = {layer.source: layer.index for layer in make_layout(graph, root).layers}
    kept = {}
    for source in hidden_layers(graph):
        if source not in root.boxes:
            continue
        on = (root.boxes[source].lower >= 0).all(0).nonzero().squeeze(-1)
        mine = splittable.get(source, on[:0])
        index = torch.cat([mine, on])
        if len(index):
            kept[source] = index
    if not kept:
        return problem, start
    smaller = compact(graph, kept, problem.context.make_store())
    boxes = {
        source: box if source not in kept else Interval(box.lower[:, kept[source]], box.upper[:, kept[source]])
        for source, box in root.boxes.items()
    }
    relaxations = {}
    for node_id, old in root.relaxations.items():
        node = smaller.nodes[node_id]
        assert isinstance(node.op, NonlinearOperator)
        if kept.keys().isdisjoint(node.inputs):  # the domains' slopes are numbered as this one's are
            relaxations[node_id] = old
            continue
        relaxations[node_id] = node.op.relax(*(boxes[i] for i in node.inputs))
    return replace(problem, graph=smaller), replace(start, intermediate=Intermediate(boxes, relaxations, ()), slopes={})

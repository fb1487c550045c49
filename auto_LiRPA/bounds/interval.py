"""Interval bound propagation, and the facts about a graph that say where intervals are already exact."""

from __future__ import annotations

from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.base import LinearOperator
from auto_LiRPA.values import Interval


class IntervalWalk:
    """Intervals of the nodes in order, each made once from the best known boxes of its inputs, and dropped when done.

    A box that is set (tightened by CROWN, or given by the user) replaces the propagated one from there on. Boxes are
    whole; where neurons are spread over ranks each rank propagates its own.
    """

    def __init__(self, graph: Graph, start: Interval) -> None:
        self.graph = graph
        self._known: dict[int, Interval] = {0: start}  # this rank's neurons
        self._whole: dict[int, Interval] = {}  # all neurons, of nodes that are spread
        self._last = {source: node.id for node in graph.nodes for source in node.inputs}

    def at(self, node_id: int) -> Interval:
        """The interval of a node, all earlier ones being known."""
        found = self.part(node_id)
        spread = self.graph.spread
        if spread is None or not spread.sharded(node_id):
            return found
        if node_id not in self._whole:
            self._whole[node_id] = spread.whole_of(node_id, found)
        return self._whole[node_id]

    def part(self, node_id: int) -> Interval:
        """The interval of this rank's neurons of a node."""
        if node_id not in self._known:
            node = self.graph.nodes[node_id]
            self._known[node_id] = node.op.interval(*(self.part(i) for i in node.inputs))
        return self._known[node_id]

    def set(self, node_id: int, box: Interval) -> None:
        """Use ``box`` for this node from now on."""
        spread = self.graph.spread
        if spread is not None and spread.sharded(node_id):
            self._whole[node_id] = box
            box = spread.part_of(node_id, box)
        self._known[node_id] = box

    def release(self, done: int) -> None:
        """Forget the intervals that no node after ``done`` reads."""
        for node_id in [i for i in self._known if self._last.get(i, -1) <= done and i != self.graph.output]:
            del self._known[node_id]
            self._whole.pop(node_id, None)


def exact_nodes(graph: Graph) -> frozenset[int]:
    """Nodes whose interval rule is exact over a box: at most one mixing linear map above independent neurons."""
    independent, exact = {0}, {0}
    for node in graph.nodes[1:]:
        if not isinstance(node.op, LinearOperator) or len(node.inputs) != 1:
            continue
        (source,) = node.inputs
        if source in independent:
            exact.add(node.id)
            if node.op.elementwise:
                independent.add(node.id)
        elif source in exact and node.op.elementwise:
            exact.add(node.id)
    return frozenset(exact)


def affine_nodes(graph: Graph) -> frozenset[int]:
    """Nodes that depend on the input through linear maps only."""
    affine = {0}
    for node in graph.nodes[1:]:
        if isinstance(node.op, LinearOperator) and all(i in affine for i in node.inputs):
            affine.add(node.id)
    return frozenset(affine)


def nonlinear_inputs(graph: Graph) -> tuple[int, ...]:
    """Ids of the nodes whose boxes some relaxation needs, in order."""
    return tuple(
        sorted({i for n in graph.nodes[1:] if not isinstance(n.op, LinearOperator) for i in n.inputs})
    )

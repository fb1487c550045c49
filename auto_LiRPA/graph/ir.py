"""The network as a sorted, immutable graph of typed nodes with resolved per-sample shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from auto_LiRPA.graph.placements import Spread
from auto_LiRPA.operators.base import NonlinearOperator, Operator, Relaxation
from auto_LiRPA.parallel.store import LocalWeight, ParameterStore, Weight
from auto_LiRPA.values import Interval


@dataclass(frozen=True, slots=True)
class Node:
    """One operator application. ``inputs`` are positions of earlier nodes; ``shape`` is without the batch."""

    id: int
    name: str
    op: Operator
    inputs: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of neurons."""
        n = 1
        for s in self.shape:
            n *= s
        return n


@dataclass(frozen=True)
class Graph:
    """Nodes in topological order: ``nodes[i].id == i``; node 0 is the only input.

    ``output`` is the id of the result. ``input_batched``/``output_batched`` say whether the file's own tensors carry a
    batch axis in front (some nets are exported without one); ``input_shape``/``output_shape`` are per-sample.
    ``scalar_output``: the file's own result is one number per sample without an axis; the graph's has one of length 1.
    """

    nodes: tuple[Node, ...]
    output: int
    input_batched: bool = True
    output_batched: bool = True
    scalar_output: bool = False

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.nodes[0].shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self.nodes[self.output].shape

    @cached_property
    def users(self) -> tuple[tuple[int, ...], ...]:
        """For each node, the ids of the nodes that read it."""
        lists: list[list[int]] = [[] for _ in self.nodes]
        for node in self.nodes:
            for source in node.inputs:
                lists[source].append(node.id)
        return tuple(tuple(x) for x in lists)

    @cached_property
    def ancestors(self) -> tuple[frozenset[int], ...]:
        """For each node, the ids of all nodes that it depends on (itself not included)."""
        sets: list[frozenset[int]] = []
        for node in self.nodes:
            sets.append(frozenset(node.inputs).union(*(sets[i] for i in node.inputs)) if node.inputs else frozenset())
        return tuple(sets)

    @cached_property
    def spread(self) -> Spread | None:
        """How the neurons are spread over ranks (tensor parallelism); None where every rank has all of them."""
        return Spread.of(self.nodes)

    def local_shape(self, node_id: int) -> tuple[int, ...]:
        """Per-sample shape of what this rank has of a node."""
        return self.nodes[node_id].shape if self.spread is None else self.spread.shapes[node_id]

    def relax(self, node: Node, boxes: Mapping[int, Interval]) -> Relaxation:
        """The relaxation of a nonlinear node over the (whole) boxes of its inputs: of this rank's neurons."""
        assert isinstance(node.op, NonlinearOperator)
        if self.spread is None:
            return node.op.relax(*(boxes[i] for i in node.inputs))
        return node.op.relax(*(self.spread.part_of(i, boxes[i]) for i in node.inputs))

    def mapped(self, tensor: Callable[[Tensor], Tensor], weight: Callable[[Weight], Weight]) -> Graph:
        """The same graph with every constant and weight replaced (device, dtype or store changes)."""
        return replace(self, nodes=tuple(replace(n, op=n.op.mapped(tensor, weight)) for n in self.nodes))

    @property
    def weights(self) -> tuple[Weight, ...]:
        """All weights, each as often as a node holds it."""
        held = (value for node in self.nodes for value in vars(node.op).values())
        return tuple(value for value in held if isinstance(value, Weight))

    def stored(self, store: ParameterStore) -> Graph:
        """The same graph with the weights that lie whole on this device handed to a store that does not share them."""
        if store.shares:
            return self
        return self.mapped(lambda t: t, lambda w: store.place(w.tensor) if isinstance(w, LocalWeight) else w)

    def by_name(self, name: str) -> Node | None:
        """The node of that name, if there is one."""
        return next((n for n in self.nodes if n.name == name), None)

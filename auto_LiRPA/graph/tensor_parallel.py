"""Tensor parallelism on any graph: pairs of weights are found, and their neurons in between spread over the ranks.

A zone is a set of nodes between weights whose neurons can lie on different ranks: weights that make them (each rank
keeps its rows), operators that treat every neuron by itself, and weights that consume them (each rank keeps its
columns). Whatever is in no zone stays whole on every rank. Source: Shoeybi et al. 2019 (Megatron-LM), section 3.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from auto_LiRPA.graph.ir import Graph, Node
from auto_LiRPA.graph.placements import COPIED, Partial, Sharded, output_placement
from auto_LiRPA.operators.arithmetic import Affine
from auto_LiRPA.operators.base import Operator
from auto_LiRPA.operators.conv import Conv
from auto_LiRPA.operators.linear import Linear
from auto_LiRPA.operators.parallel_maps import ColumnLinear, Enter, Exit, Ranks
from auto_LiRPA.operators.placed import PlacedAffine
from auto_LiRPA.operators.shape import PadConstant
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.store import LocalStore, ParameterStore, Weight
from auto_LiRPA.parallel.whole import whole

_LOG = logging.getLogger(__name__)
MOST_CHOICES = 4096  # partial choices of zones that are followed at once; chains need two


@dataclass(frozen=True, slots=True)
class Zone:
    """Nodes whose neurons are spread, with where each lies: ``inner`` holds the ``columns`` too; ``rows`` end it."""

    columns: frozenset[int]
    inner: Mapping[int, Sharded]
    rows: frozenset[int]
    elements: int

    @property
    def nodes(self) -> frozenset[int]:
        """All of them: a node belongs to one zone at most."""
        return self.rows.union(self.inner)


def tensor_parallel(graph: Graph, context: DistributedContext, store: ParameterStore | None = None) -> Graph:
    """The same network for this rank of ``context.weights``, on ``context.device``: its own slices of weights in
    zones, and whatever else there is whole. One rank alone gets the graph as it is.

    Every rank has to call this with the same graph; which zones there are depends on the graph and the number of ranks
    alone. Slices have memory of their own. Shapes of nodes stay whole ones; see `Graph.spread`.

    Raises:
        ContractError: the result would let some operator see a partial sum.
    """
    if context.weights.size == 1:
        return graph
    zones = choose(find_zones(graph, context.weights.size))
    if not zones:
        _LOG.warning("parallel.mode tp: no pair of layers closes, so every rank has all weights; fsdp cuts them")
    rewriting = _Rewriting(graph, zones, context.weights, context.device, store or local_store(context))
    result = rewriting.run()
    _ = result.spread  # checks every node's placement
    return result


# Slices stay where they are and bits differ from one rank's anyway, so products are cut up less: fewer launches.
_LARGER_BLOCKS = 4


def local_store(context: DistributedContext) -> ParameterStore:
    """For the slices of this rank: what it has, it has on its device."""
    return LocalStore(_LARGER_BLOCKS * context.settings.block_mib)


def find_zones(graph: Graph, ranks: int) -> list[Zone]:
    """Every zone that closes, one per weight that could begin it, in the order of the graph. Zones may overlap."""
    found: dict[frozenset[int], Zone] = {}
    for node in graph.nodes[1:]:
        if isinstance(node.op, Linear | Conv):
            zone = _Closing(graph, ranks).from_column(node.id)
            if zone is not None and zone.columns not in found:
                found[zone.columns] = zone
    return list(found.values())


class _DoesNotClose(Exception):
    """Some user of the zone's neurons needs them together."""


class _Closing:
    """One zone, grown from the weight that makes its neurons until all that reads them is in it."""

    def __init__(self, graph: Graph, ranks: int) -> None:
        self.graph, self.ranks = graph, ranks
        self.inner: dict[int, Sharded] = {}
        self.columns: set[int] = set()
        self.rows: set[int] = set()
        self._todo: list[int] = []

    def from_column(self, node: int) -> Zone | None:
        """The zone, or None if it does not close."""
        try:
            self._place_column(node)
            while self._todo:
                source = self._todo.pop()
                if source == self.graph.output:
                    return None
                for user in self.graph.users[source]:
                    self._take_in(user)
        except _DoesNotClose:
            return None
        if not self.rows or self.rows & self.columns:
            return None
        if any(source in self.inner for c in self.columns for source in self.graph.nodes[c].inputs):
            return None
        return Zone(frozenset(self.columns), dict(self.inner), frozenset(self.rows), self._elements())

    def _elements(self) -> int:
        ops = [self.graph.nodes[i].op for i in (*self.columns, *self.rows)]
        return sum(op.weight.numel for op in ops if isinstance(op, Linear | Conv))

    def _place_column(self, node_id: int) -> None:
        node = self.graph.nodes[node_id]
        shapes = [self.graph.nodes[i].shape for i in node.inputs]
        place = output_placement(node.op, [COPIED], shapes, node.shape)
        if not isinstance(place, Sharded) or place.units < self.ranks:
            raise _DoesNotClose
        self.columns.add(node_id)
        self._put(node_id, place)

    def _put(self, node_id: int, place: Sharded) -> None:
        self.inner[node_id] = place
        self._todo.append(node_id)

    def _take_in(self, user: int) -> None:
        """Make a reader of spread neurons part of the zone, with whatever else it reads."""
        node = self.graph.nodes[user]
        if user in self.inner or user in self.rows:
            return
        if not isinstance(node.op, Linear | Conv):
            for source in node.inputs:
                self._need(source)
        places = [self.inner[i] for i in node.inputs]
        shapes = [self.graph.nodes[i].shape for i in node.inputs]
        place = output_placement(node.op, places, shapes, node.shape)
        if isinstance(place, Partial):
            self.rows.add(user)
        elif isinstance(place, Sharded):
            self._put(user, place)
        else:
            raise _DoesNotClose

    def _need(self, source: int) -> None:
        """A second input has to be spread in the same way: by a weight of its own, perhaps through other operators."""
        if source in self.inner:
            return
        node = self.graph.nodes[source]
        if isinstance(node.op, Linear | Conv):
            self._place_column(source)
        elif node.inputs:
            self._take_in(source)
        else:
            raise _DoesNotClose


def choose(zones: Sequence[Zone]) -> list[Zone]:
    """Zones that do not overlap, with as many weight elements as possible; the earlier ones among equals.

    Follows every choice whose zones still matter to a later one: of two that leave the same nodes taken the better
    one goes on. A chain of layers has two such choices at any place.
    """
    ordered = sorted(zones, key=lambda z: min(z.columns))
    states: dict[frozenset[int], tuple[int, tuple[Zone, ...]]] = {frozenset(): (0, ())}
    for position, zone in enumerate(ordered):
        later = frozenset[int]().union(*(z.nodes for z in ordered[position + 1 :]))
        following: dict[frozenset[int], tuple[int, tuple[Zone, ...]]] = {}
        for taken, (elements, chosen) in states.items():
            options = [(taken, elements, chosen)]
            if not taken & zone.nodes:
                options.insert(0, (taken | zone.nodes, elements + zone.elements, (*chosen, zone)))
            for used, total, picked in options:
                key = used & later
                if key not in following or following[key][0] < total:
                    following[key] = (total, picked)
        best = sorted(following.items(), key=lambda item: -item[1][0])[:MOST_CHOICES]
        states = dict(best)
    return list(max(states.values(), key=lambda state: state[0])[1])


class _Rewriting:
    """One rank's graph, node by node."""

    def __init__(
        self, graph: Graph, zones: Sequence[Zone], ranks: Ranks, device: torch.device, store: ParameterStore
    ) -> None:
        self.graph, self.ranks, self.device, self.store = graph, ranks, device, store
        self.places = {i: place for zone in zones for i, place in zone.inner.items()}
        self.columns = frozenset[int]().union(*(zone.columns for zone in zones))
        self.rows = frozenset[int]().union(*(zone.rows for zone in zones))
        self.nodes: list[Node] = []
        self.new: dict[int, int] = {}  # old node -> new one
        self.entered: dict[int, int] = {}  # new node -> its Enter
        # one copy of what several nodes share
        self._weights: dict[tuple[int, str, tuple[int, int]], Weight] = {}

    def run(self) -> Graph:
        """The new graph; nodes keep their names."""
        for node in self.graph.nodes:
            inputs = tuple(self.new[i] for i in node.inputs)
            if node.id in self.columns:
                inputs = (self._enter(inputs[0]),)
                op = self._column(node)
            elif node.id in self.rows:
                self._row(node, inputs)
                continue
            elif node.id in self.places:
                op = self._inner(node)
            else:
                op = self._whole(node.op)
            self.new[node.id] = self._append(node.name, op, inputs, node.shape)
        return replace(self.graph, nodes=tuple(self.nodes), output=self.new[self.graph.output])

    def _append(self, name: str, op: Operator, inputs: tuple[int, ...], shape: tuple[int, ...]) -> int:
        self.nodes.append(Node(len(self.nodes), name, op, inputs, shape))
        return len(self.nodes) - 1

    def _enter(self, source: int) -> int:
        if source not in self.entered:
            node = self.nodes[source]
            self.entered[source] = self._append(f"{node.name}/enter", Enter(self.ranks), (source,), node.shape)
        return self.entered[source]

    def _column(self, node: Node) -> Operator:
        place, op = self.places[node.id], node.op
        first, last = place.range(self.ranks.rank, self.ranks.size)
        assert isinstance(op, Linear | Conv)
        weight = self._slice(op.weight, 0, first, last)
        bias = None if op.bias is None else self._copy(op.bias.expand(node_width(node))[first:last])
        if isinstance(op, Conv):
            return replace(op, weight=weight, bias=bias)
        return ColumnLinear(weight, bias, None if op.bias is None else self._copy(op.bias.expand(node_width(node))))

    def _row(self, node: Node, inputs: tuple[int, ...]) -> None:
        place, op = self.places[node.inputs[0]], node.op
        first, last = place.range(self.ranks.rank, self.ranks.size)
        assert isinstance(op, Linear | Conv)
        weight = self._slice(op.weight, 1, first, last)
        if isinstance(op, Conv):
            part: Operator = replace(op, weight=weight, bias=None, in_shape=(last - first, *op.in_shape[1:]))
        else:
            part = Linear(weight, None)
        at = self._append(f"{node.name}/part", part, inputs, node.shape)
        spatial = len(node.shape) - 1 if isinstance(op, Conv) else 0
        bias = None if op.bias is None else self._copy(op.bias.expand(node_width(node)))
        self.new[node.id] = self._append(node.name, Exit(self.ranks, bias, spatial), (at,), node.shape)

    def _inner(self, node: Node) -> Operator:
        """An operator between the weights, on this rank's neurons."""
        place, op = self.places[node.id], node.op
        if isinstance(op, PlacedAffine):  # its constants are cut here, whatever they lie in
            values = (None if w is None else whole(w) for w in (op.scale, op.shift))
            op = Affine(*values)
        shapes = {"in_shape": node.inputs, "out_shape": (node.id,)}
        changes: dict[str, Any] = {}
        for item in fields(op):  # type: ignore[arg-type]
            if item.name in shapes:
                at = shapes[item.name][0]
                changes[item.name] = self.places[at].local(
                    self.graph.nodes[at].shape, self.ranks.rank, self.ranks.size
                )
        if isinstance(op, Affine):
            changes.update(scale=self._own(op.scale, place, node), shift=self._own(op.shift, place, node))
        elif isinstance(op, PadConstant):
            changes["fill"] = self._own(op.fill, place, node)
        return replace(op, **changes) if changes else op  # type: ignore[type-var]

    def _own(self, values: Tensor | None, place: Sharded, node: Node) -> Tensor | None:
        """This rank's entries of a constant that broadcasts to the node's shape."""
        if values is None:
            return None
        axis = place.axis - len(node.shape)
        if values.ndim < -axis or values.shape[axis] == 1:
            return self._copy(values)
        first, last = place.range(self.ranks.rank, self.ranks.size)
        return self._copy(values.narrow(axis, first, last - first))

    def _whole(self, op: Operator) -> Operator:
        return op.mapped(self._copy, lambda weight: self._slice(weight, 0, 0, weight.shape[0]))

    def _copy(self, tensor: Tensor) -> Tensor:
        """In memory of its own, on the device: a view would keep all of what it was cut from."""
        made = torch.empty(tensor.shape, dtype=tensor.dtype, device=self.device)
        return made.copy_(tensor.detach())

    def _slice(self, weight: Weight, axis: int, first: int, last: int) -> Weight:
        key = (id(weight), str(axis), (first, last))
        if key not in self._weights:
            self._weights[key] = self.store.place(self._copy(whole(weight).narrow(axis, first, last - first)))
        return self._weights[key]


def node_width(node: Node) -> int:
    """How many numbers a weight's bias has: channels of a Conv, entries of a Linear's last axis."""
    return node.shape[0] if isinstance(node.op, Conv) else node.shape[-1]


def shared_share(graph: Graph, ranks: int) -> float:
    """Share of a network's weights (in elements) of which each of ``ranks`` would keep its part only."""
    total = weight_elements(graph)
    return sum(zone.elements for zone in choose(find_zones(graph, ranks))) / total if total else 0.0


def weight_elements(graph: Graph) -> int:
    """Elements of all weights, each weight as often as a node has it."""
    return sum(weight.numel for weight in graph.weights)

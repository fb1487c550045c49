"""How each node's value lies on the ranks of tensor parallelism: declared per operator, checked for the whole graph.

Four types, and what a coefficient on such a value is (the type of the derivative; the four of `spmd_types`):

| value | means | a coefficient on it is |
| --- | --- | --- |
| Whole | the same on every rank, made by every rank from whole inputs | whole |
| Copied | the same on every rank, read by each for its own neurons | a partial sum |
| Sharded | each rank has its own neurons | sharded |
| Partial | the sum over the ranks is meant | whole |

A relaxation looks at signs and sizes of values and of coefficients, so it may meet neither a partial value nor a
partial coefficient: nonlinear operators take Whole and Sharded only. Constant terms may not be added to a partial
value, or every rank would add them. Whatever has no rule here takes whole values only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from auto_LiRPA.errors import ContractError
from auto_LiRPA.operators.activation import Relu
from auto_LiRPA.operators.arithmetic import Add, Affine, Sub
from auto_LiRPA.operators.base import LinearOperator, Operator
from auto_LiRPA.operators.conv import Conv
from auto_LiRPA.operators.elementwise import ElementwiseOperator
from auto_LiRPA.operators.linear import Linear
from auto_LiRPA.operators.parallel_maps import Enter, Exit, Ranks
from auto_LiRPA.operators.placed import PlacedAffine
from auto_LiRPA.operators.pooling import AveragePool, MaxPool
from auto_LiRPA.operators.shape import PadConstant, Reshape, Transpose
from auto_LiRPA.values import Interval

if TYPE_CHECKING:
    from auto_LiRPA.graph.ir import Node


@dataclass(frozen=True, slots=True)
class Whole:
    """The same on every rank."""


@dataclass(frozen=True, slots=True)
class Copied:
    """The same on every rank, where it enters the zone: coefficients on it are partial sums."""


@dataclass(frozen=True, slots=True)
class Partial:
    """The sum over the ranks is meant: coefficients on it are whole."""


@dataclass(frozen=True, slots=True)
class Sharded:
    """Each rank has a run of ``units`` neighbours of ``unit`` entries each, along a per-sample axis."""

    axis: int
    units: int
    unit: int = 1

    def range(self, rank: int, ranks: int) -> tuple[int, int]:
        """First entry of a rank's along the axis, and the one behind its last. Shares differ by one unit at most."""
        return self.unit * (self.units * rank // ranks), self.unit * (self.units * (rank + 1) // ranks)

    def local(self, shape: Sequence[int], rank: int, ranks: int) -> tuple[int, ...]:
        """A rank's part of a per-sample shape."""
        first, last = self.range(rank, ranks)
        return (*shape[: self.axis], last - first, *shape[self.axis + 1 :])


Placement = Whole | Copied | Partial | Sharded
WHOLE, COPIED, PARTIAL = Whole(), Copied(), Partial()

_POINTWISE = (ElementwiseOperator, Relu, Affine, PlacedAffine, Add, Sub)  # entry by entry: any axis
_CHANNELWISE = (AveragePool, MaxPool)  # channel by channel: axis 0


def output_placement(
    op: Operator, inputs: Sequence[Placement], shapes: Sequence[tuple[int, ...]], out: tuple[int, ...]
) -> Placement | None:
    """Where an operator's value lies, from where its inputs lie; None if it may not be used so.

    ``shapes``, ``out``: whole per-sample shapes of the inputs and the value.
    """
    if isinstance(op, Enter):
        return COPIED if list(inputs) == [WHOLE] else None
    if isinstance(op, Exit):
        return WHOLE if list(inputs) == [PARTIAL] else None
    if all(isinstance(p, Whole) for p in inputs):
        return WHOLE
    if isinstance(op, Linear | Conv):
        return _of_weights(op, inputs[0], shapes[0], out)
    first = inputs[0]
    if not isinstance(first, Sharded) or any(p != first for p in inputs):
        return None
    if isinstance(op, _POINTWISE):
        return first if all(shape == out for shape in shapes) else None
    if isinstance(op, _CHANNELWISE):
        return first if first.axis == 0 else None
    if isinstance(op, PadConstant):
        return first if op.before[first.axis] == op.after[first.axis] == 0 else None
    if isinstance(op, Transpose):
        return Sharded(op.perm.index(first.axis), first.units, first.unit)
    return _reshaped(first, shapes[0], out) if isinstance(op, Reshape) else None


def _of_weights(op: Linear | Conv, source: Placement, shape: tuple[int, ...], out: tuple[int, ...]) -> Placement | None:
    """Copied -> own rows of the weight -> Sharded -> ... -> own columns of the next weight, no bias -> Partial."""
    last = len(shape) - 1
    axis = 0 if isinstance(op, Conv) else last
    if isinstance(op, Conv) and op.groups != 1:
        return None
    if isinstance(source, Copied):
        return Sharded(axis, out[axis])
    return PARTIAL if isinstance(source, Sharded) and source.axis == axis else None


def _reshaped(source: Sharded, shape: tuple[int, ...], out: tuple[int, ...]) -> Sharded | None:
    """A reshape that leaves the sharded axis in front of its merged followers, as flattening channels does."""
    if source.axis != 0 or not out or out[0] % shape[0]:
        return None
    grown, size, merged = out[0] // shape[0], 1, 1
    for n in shape[1:]:
        if size == grown:
            break
        size *= n
        merged += 1
    return Sharded(0, source.units, source.unit * grown) if size == grown else None


def placements(nodes: Sequence[Node]) -> tuple[Placement, ...]:
    """The placement of every node's value.

    Raises:
        ContractError: an operator meets a value, or coefficients on it, that it must not see.
    """
    found: list[Placement] = []
    for node in nodes:
        inputs = [found[i] for i in node.inputs]
        shapes = [nodes[i].shape for i in node.inputs]
        place = output_placement(node.op, inputs, shapes, node.shape) if inputs else WHOLE
        if place is None:
            kinds = ", ".join(type(p).__name__.lower() for p in inputs)
            raise ContractError(f"{node.name} ({type(node.op).__name__}) must not be given values that are {kinds}")
        if isinstance(place, Partial) and _has_constant(node.op):
            raise ContractError(f"{node.name}: a constant term on a partial sum would be added by every rank")
        found.append(place)
    return tuple(found)


def _has_constant(op: Operator) -> bool:
    return not isinstance(op, LinearOperator) or op.bias_values() is not None


@dataclass(frozen=True, slots=True)
class Spread:
    """A graph whose neurons are spread over ``ranks``: where each node's value lies, and the two ways between a
    rank's part and the whole. Node shapes in the graph are whole ones."""

    ranks: Ranks
    places: tuple[Placement, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, nodes: Sequence[Node]) -> Spread | None:
        """None if nothing is spread.

        Raises:
            ContractError: see `placements`; or weights do not have the sizes that the placements say.
        """
        ranks = next((n.op.ranks for n in nodes if isinstance(n.op, Enter | Exit)), None)
        if ranks is None:
            return None
        places = placements(nodes)
        shapes = tuple(
            p.local(n.shape, ranks.rank, ranks.size) if isinstance(p, Sharded) else n.shape
            for n, p in zip(nodes, places, strict=True)
        )
        for node in nodes:
            if isinstance(node.op, Linear | Conv):
                _check_weight(node, places, shapes)
        return cls(ranks, places, shapes)

    def sharded(self, node: int) -> bool:
        """Whether each rank has its own neurons of a node."""
        return isinstance(self.places[node], Sharded)

    def sums(self, node: int) -> bool:
        """Whether constant terms of a node, met on the way down, are partial sums."""
        return isinstance(self.places[node], Sharded | Copied)

    def range(self, node: int, rank: int | None = None) -> tuple[int, int]:
        """Entries of a sharded node along its axis that a rank (this one) has."""
        place = self.places[node]
        assert isinstance(place, Sharded)
        return place.range(self.ranks.rank if rank is None else rank, self.ranks.size)

    def part(self, node: int, whole: Tensor, leading: int = 1) -> Tensor:
        """This rank's entries of a whole value with ``leading`` axes in front (a view)."""
        place = self.places[node]
        if not isinstance(place, Sharded):
            return whole
        first, last = self.range(node)
        return whole.narrow(leading + place.axis, first, last - first)

    def part_of(self, node: int, box: Interval) -> Interval:
        """This rank's part of a whole box, in memory of its own."""
        if not self.sharded(node):
            return box
        return Interval(self.part(node, box.lower).contiguous(), self.part(node, box.upper).contiguous())

    def whole(self, node: int, part: Tensor, leading: int = 1) -> Tensor:
        """The whole value from every rank's part. All ranks have to ask."""
        place = self.places[node]
        return self.joined(place, part, leading + place.axis) if isinstance(place, Sharded) else part

    def joined(self, place: Sharded, part: Tensor, axis: int) -> Tensor:
        """Every rank's part of a tensor that is cut along ``axis`` as ``place`` says. All ranks have to ask."""
        ranges = [place.range(r, self.ranks.size) for r in range(self.ranks.size)]
        missing = max(last - first for first, last in ranges) - part.shape[axis]
        if missing:  # shares may differ by one unit: all send the size of the largest
            part = torch.cat([part, part.new_zeros(*part.shape[:axis], missing, *part.shape[axis + 1 :])], axis)
        every = self.ranks.gather(part.contiguous())
        return torch.cat([every[r].narrow(axis, 0, b - a) for r, (a, b) in enumerate(ranges)], axis)

    def whole_of(self, node: int, part: Interval) -> Interval:
        """The whole box from every rank's part. All ranks have to ask."""
        if not self.sharded(node):
            return part
        lower, upper = self.whole(node, torch.stack([part.lower, part.upper]), leading=2).unbind(0)
        return Interval(lower, upper)


def _check_weight(node: Node, places: Sequence[Placement], shapes: Sequence[tuple[int, ...]]) -> None:
    """A weight's rows are the neurons of its output that this rank has, its columns those of its input."""
    op = node.op
    assert isinstance(op, Linear | Conv)
    axis = 0 if isinstance(op, Conv) else -1
    source = shapes[node.inputs[0]]
    fits = op.weight.shape[0] == shapes[node.id][axis]
    fits &= op.weight.shape[1] == source[axis] // (op.groups if isinstance(op, Conv) else 1)
    if isinstance(op, Conv):
        fits &= op.in_shape == source
    if not fits:
        raise ContractError(f"{node.name}: a weight {op.weight.shape} does not fit {source} -> {shapes[node.id]}")

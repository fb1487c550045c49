"""Where backward passes start: rows that pick neurons of a node, or that a specification gives.

Where the neurons of a node are spread over ranks, all of them work on the same tile of rows: a row begins on the rank
that has its neuron, and the others learn of it.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from auto_LiRPA.errors import ContractError
from auto_LiRPA.graph.ir import Graph, Node
from auto_LiRPA.graph.placements import Sharded, Spread, Whole
from auto_LiRPA.operators.linear import Linear
from auto_LiRPA.operators.parallel_maps import ColumnLinear, Exit
from auto_LiRPA.values import Window
from auto_LiRPA.values.windows import window_of


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows to be bounded from below: ``coef . value(node) + bias``.

    ``coef``: ``[B or 1, T, *shape]`` (this rank's part of the shape), ``bias``: ``[B or 1, T]`` or None for zero.
    """

    node: int
    coef: Tensor
    bias: Tensor | None = None
    owned: bool = False  # True: nobody else reads coef, it may be overwritten
    window: Window | None = None  # coef covers this window of the node's map only, and is zero outside


@dataclass(frozen=True, slots=True)
class NeuronList:
    """Flat neurons of a node: on the device, and on the host where blocks are chosen without waiting.

    ``dtype``: that of the rows which start there.
    """

    index: Tensor
    host: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, index: Tensor, dtype: torch.dtype) -> NeuronList:
        """Copies the indices to the host once (one synchronisation)."""
        return cls(index, tuple(index.tolist()), dtype)

    def __len__(self) -> int:
        return len(self.host)

    def cut(self, start: int, stop: int, height: int) -> NeuronList:
        """Neurons ``start:stop``, padded to ``height`` by repeating the last one, so that every tile has one shape."""
        index, host = self.index[start:stop], self.host[start:stop]
        missing = height - len(host)
        if missing > 0:
            index = torch.cat([index, index[-1:].expand(missing)])
            host = host + host[-1:] * missing
        return NeuronList(index, host, self.dtype)


def neuron_rows(
    graph: Graph, node_id: int, neurons: NeuronList, both: bool = True, out: Tensor | None = None
) -> Rows:
    """Rows that pick some neurons of a node and, below them, their negations.

    A plain linear layer starts at its weight's rows: the product with a one-hot matrix is never made. ``out``: where to
    put the coefficients; of the shape that the call would give.
    """
    rows = _neuron_rows(graph, node_id, neurons, both, out)
    if out is not None and rows.coef is not out:
        out.copy_(rows.coef)
        return Rows(rows.node, out, rows.bias, owned=True, window=rows.window)
    return rows


def _neuron_rows(graph: Graph, node_id: int, neurons: NeuronList, both: bool, out: Tensor | None) -> Rows:
    node, spread = graph.nodes[node_id], graph.spread
    place = Whole() if spread is None else spread.places[node_id]
    if spread is not None and isinstance(place, Sharded):
        if isinstance(node.op, ColumnLinear) and len(node.shape) == 1:
            return _column_rows(graph, node, node.op, neurons, both, out)
        return _own_neurons(node, place, spread, neurons, both)
    if not isinstance(place, Whole):
        raise ContractError(f"{node.name}: a pass cannot start at a value that is {type(place).__name__.lower()}")
    if isinstance(node.op, Linear) and len(node.shape) == 1:
        return _weight_rows(node.op, node.op.bias, node.inputs[0], neurons, both, out)
    if isinstance(node.op, Exit) and len(node.shape) == 1:
        last = graph.nodes[node.inputs[0]]
        if isinstance(last.op, Linear):  # this rank's columns of the rows
            return _weight_rows(last.op, node.op.bias, last.inputs[0], neurons, both, out)
    return _one_hot_rows(node, neurons, both)


def spec_rows(graph: Graph, c: Tensor) -> Rows:
    """Rows of a specification matrix ``[B or 1, S, n_out]`` (or ``[B or 1, S, *out]``) on the network's output."""
    rows, spread = c.reshape(*c.shape[:2], *graph.output_shape), graph.spread
    if spread is not None:
        place = spread.places[graph.output]
        if not isinstance(place, Whole | Sharded):
            name = graph.nodes[graph.output].name
            raise ContractError(f"{name}: a pass cannot start at a value that is {type(place).__name__.lower()}")
        rows = spread.part(graph.output, rows, leading=2)
    return Rows(graph.output, rows)


def _weight_rows(
    op: Linear, bias: Tensor | None, source: int, neurons: NeuronList, both: bool, out: Tensor | None
) -> Rows:
    if out is None:
        coef = op.rows(neurons.index, neurons.host)
        out = (torch.cat([coef, -coef]) if both else coef).unsqueeze(0)
    else:
        height = len(neurons)
        op.rows(neurons.index, neurons.host, out[0, :height])
        if both:
            torch.neg(out[0, :height], out=out[0, height:])
    return Rows(source, out, _picked(bias, neurons, both), owned=True)


def _picked(bias: Tensor | None, neurons: NeuronList, both: bool) -> Tensor | None:
    if bias is None:
        return None
    mine = bias[neurons.index].unsqueeze(0)
    return torch.cat([mine, -mine], dim=1) if both else mine


def _one_hot_rows(node: Node, neurons: NeuronList, both: bool) -> Rows:
    index = neurons.index
    window = window_of(node.shape, neurons.host)
    shape = node.shape if window is None else (node.shape[0], *window.size)
    if window is not None:
        index = _within(index, node.shape, window)
    one_hot = _one_hot(index, torch.ones_like(index, dtype=neurons.dtype), math.prod(shape), both)
    return Rows(node.id, one_hot.reshape(1, -1, *shape), None, owned=True, window=window)


def _one_hot(index: Tensor, value: Tensor, width: int, both: bool) -> Tensor:
    height = len(index)
    one_hot = torch.zeros(2 * height if both else height, width, dtype=value.dtype, device=index.device)
    row = torch.arange(height, device=index.device)
    one_hot[row, index] = value
    if both:
        one_hot[row + height, index] = -value
    return one_hot


def _within(index: Tensor, shape: tuple[int, ...], window: Window) -> Tensor:
    """Flat neurons of the whole value as flat neurons of the window."""
    positions = _positions(index, shape)
    inside = [positions[0], *(p - start for p, start in zip(positions[1:], window.start, strict=True))]
    return _flat(inside, (shape[0], *window.size))


def _positions(flat: Tensor, shape: Sequence[int]) -> list[Tensor]:
    """Flat neurons as positions along each axis. torch's own function pulls in a computer algebra system (a second),
    and an alarm in the middle of that import would leave it broken for the rest of the process."""
    positions = []
    for size in reversed(shape[1:]):
        positions.append(flat % size)
        flat = flat // size
    return [flat, *reversed(positions)]


def _flat(positions: list[Tensor], shape: tuple[int, ...]) -> Tensor:
    flat = positions[0]
    for position, size in zip(positions[1:], shape[1:], strict=True):
        flat = flat * size + position
    return flat


def _column_rows(
    graph: Graph, node: Node, op: ColumnLinear, neurons: NeuronList, both: bool, out: Tensor | None
) -> Rows:
    """Whole rows of a weight of which every rank has some: each sends its own. They start where the zone begins."""
    spread = graph.spread
    assert spread is not None
    height, host, ranks = len(neurons), neurons.host, spread.ranks
    if out is None:
        tall = 2 * height if both else height
        out = torch.empty(1, tall, op.weight.shape[1], dtype=neurons.dtype, device=neurons.index.device)
    coef = out[0]
    cuts = [bisect_left(host, spread.range(node.id, r)[0]) for r in range(ranks.size)] + [height]
    for owner, (start, stop) in enumerate(zip(cuts, cuts[1:], strict=False)):
        if start == stop:
            continue
        if owner == ranks.rank:
            first = spread.range(node.id)[0]
            coef[start:stop] = op.rows(neurons.index[start:stop] - first, tuple(i - first for i in host[start:stop]))
        ranks.broadcast(coef[start:stop], owner)
    if both:
        torch.neg(coef[:height], out=coef[height:])
    (source,) = graph.nodes[node.inputs[0]].inputs
    return Rows(source, out, _picked(op.whole_bias, neurons, both), owned=True)


def _own_neurons(node: Node, place: Sharded, spread: Spread, neurons: NeuronList, both: bool) -> Rows:
    """This rank's part of rows that pick neurons: zero in the rows of others."""
    first, last = spread.range(node.id)
    # the window depends on the whole tile, so that it is the same on every rank
    window = window_of(node.shape, neurons.host) if place.axis == 0 else None
    positions = _positions(neurons.index, node.shape)
    shape = list(spread.shapes[node.id])
    if window is not None:
        positions[1:] = [p - start for p, start in zip(positions[1:], window.start, strict=True)]
        shape[1:] = window.size
    along = positions[place.axis]
    own = ((along >= first) & (along < last)).to(neurons.dtype)
    positions[place.axis] = (along - first).clamp(0, last - first - 1)
    one_hot = _one_hot(_flat(positions, tuple(shape)), own, math.prod(shape), both)
    return Rows(node.id, one_hot.reshape(1, -1, *shape), None, owned=True, window=window)

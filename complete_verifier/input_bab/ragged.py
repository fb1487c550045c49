"""CROWN over a batch of boxes where every box bounds only its own undecided neurons.

The engine's tiles hold the same rows for every batch element, so over thousands of boxes they hold nearly every neuron:
each is undecided in some box. Here a row is a pair (domain, neuron). A linear map takes all rows in one product, since
its weight is the same for all domains; a nonlinear node looks its lines up by the row's domain.
Shape letters: D domains, M pairs, N rows, n neurons of a node, m inputs of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from auto_LiRPA.bounds.interval import IntervalWalk, exact_nodes
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.activation import Relu
from auto_LiRPA.operators.base import LinearOperator
from auto_LiRPA.operators.elementwise import ElementwiseOperator
from auto_LiRPA.operators.linear import Linear
from auto_LiRPA.parallel.whole import whole
from auto_LiRPA.values import Interval
from complete_verifier.bab.lockstep import is_whole

# Rows of one tile hold so many bytes of coefficients on the widest node: what the passes over them reread stays in a
# core's own cache. On a GPU launches count, not the cache.
_TILE_BYTES = 400 * 2**10
_TILE_BYTES_CUDA = 256 * 2**20

Least = Callable[[Tensor, Tensor, Tensor], Tensor]  # coef [N, m], bias [N], domain [N] -> least value [N]


def is_plain(graph: Graph) -> bool:
    """Whether the network is made of linear maps and functions of single neurons only."""
    return all(isinstance(n.op, LinearOperator | Relu | ElementwiseOperator) for n in graph.nodes[1 : graph.output + 1])


@dataclass(frozen=True, slots=True)
class NodeLines:
    """Lines of one nonlinear node for every domain, ``[D, n]``. ``lower_offset`` None: zero."""

    lower: Tensor
    lower_offset: Tensor | None
    step: Tensor  # upper slope minus lower slope
    upper_offset: Tensor | None


@dataclass(frozen=True, slots=True)
class Inner:
    """Boxes of the nonlinear nodes' inputs ``[D, *shape]``, and the lines over them."""

    boxes: Mapping[int, Interval]
    lines: Mapping[int, NodeLines]


class RaggedCrown:
    """CROWN for a graph that `is_plain`."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._settled = exact_nodes(graph)
        self._widest = max(node.size for node in graph.nodes)
        self._weights: dict[int, Tensor] = {}
        self._picks_rows = is_whole(graph)

    def inner(
        self,
        box: Interval,
        least: Least,
        seen: Mapping[int, Interval],
        tighten: bool = True,
        on_tile: Callable[[], None] | None = None,
    ) -> Inner:
        """Boxes and lines of all nonlinear nodes over the domains ``box`` ``[D, *in]``.

        Args:
            least: the least value of a linear function of the input over a domain.
            seen: boxes that are known already, ``[D, *shape]``; intersected with.
            tighten: False leaves the interval bounds (CROWN-IBP).
            on_tile: called before each tile.
        """
        walk = IntervalWalk(self.graph, box)
        boxes: dict[int, Interval] = {}
        lines: dict[int, NodeLines] = {}
        for node in self.graph.nodes[1 : self.graph.output + 1]:
            if isinstance(node.op, LinearOperator):
                continue
            (source,) = node.inputs
            if source not in boxes:
                known = walk.at(source)
                if source in seen:
                    known = known.intersect(seen[source])
                if tighten and source not in self._settled:
                    known = self._tightened(source, node.op, known, lines, least, on_tile)  # type: ignore[arg-type]
                boxes[source] = known
                walk.set(source, known)
            lines[node.id] = _node_lines(node.op, boxes[source])  # type: ignore[arg-type]
        return Inner(boxes, lines)

    def _tightened(
        self,
        source: int,
        op: Relu | ElementwiseOperator,
        known: Interval,
        lines: Mapping[int, NodeLines],
        least: Least,
        on_tile: Callable[[], None] | None,
    ) -> Interval:
        (wanted,) = op.needs_tightening(known)
        domain, neuron = wanted.flatten(1).nonzero(as_tuple=True)
        if len(domain) == 0:
            return known
        lower, upper = known.lower.flatten(1).clone(), known.upper.flatten(1).clone()
        for rows in torch.arange(len(domain), device=domain.device).split(self._rows_of_a_tile(lower)):
            if on_tile is not None:
                on_tile()
            d, j = domain[rows], neuron[rows]
            node, coef, bias = self._start(source, j, lower)
            low, high = self._pass(node, coef, bias, d, lines, least)
            lower[d, j] = torch.fmax(lower[d, j], low)
            upper[d, j] = torch.fmin(upper[d, j], -high)
        shape = known.lower.shape
        return Interval(lower.reshape(shape), upper.reshape(shape))

    def _rows_of_a_tile(self, like: Tensor) -> int:
        size = _TILE_BYTES_CUDA if like.is_cuda else _TILE_BYTES
        return max(16, size // (2 * self._widest * like.element_size()))

    def _start(self, node_id: int, neuron: Tensor, like: Tensor) -> tuple[int, Tensor, Tensor]:
        """Where a pass for single neurons starts: node, coefficients ``[M, *shape]``, constants ``[M]``."""
        node = self.graph.nodes[node_id]
        if isinstance(node.op, Linear) and len(node.shape) == 1 and self._picks_rows:
            if node_id not in self._weights:
                self._weights[node_id] = whole(node.op.weight)
            bias = like.new_zeros(len(neuron)) if node.op.bias is None else node.op.bias[neuron]
            return node.inputs[0], self._weights[node_id][neuron], bias
        coef = torch.nn.functional.one_hot(neuron, node.size).to(like.dtype).reshape(-1, *node.shape)
        return node_id, coef, like.new_zeros(len(neuron))

    def _pass(
        self, node: int, coef: Tensor, bias: Tensor, domain: Tensor, lines: Mapping[int, NodeLines], least: Least
    ) -> tuple[Tensor, Tensor]:
        """Lower bounds of rows and of their negations, ``[M]`` each."""
        both = torch.stack([coef, -coef], 1)
        found, constant = self.backward(node, both, torch.stack([bias, -bias], 1), domain, lines)
        rows = domain.repeat_interleave(2)
        values = least(found.flatten(0, 1), constant.flatten(), rows).reshape(-1, 2)
        return values[:, 0], values[:, 1]

    def backward(
        self, start: int, coef: Tensor, bias: Tensor, domain: Tensor | None, lines: Mapping[int, NodeLines]
    ) -> tuple[Tensor, Tensor]:
        """Rows ``[M, T, *shape]`` at node ``start`` pushed to the input: coefficients ``[M, T, m]``, constants.

        Args:
            domain: of each group of T rows, ``[M]``; None: group i is domain i's.
        """
        count = coef.shape[:2]
        pending = {start: coef}
        for node in reversed(self.graph.nodes[1 : start + 1]):
            at = pending.pop(node.id, None)
            if at is None:
                continue
            if isinstance(node.op, LinearOperator):
                flat = at.flatten(0, 1)
                dot = node.op.bias_dot(flat)
                if dot is not None:
                    bias = bias + dot.reshape(count)
                terms = tuple(t.unflatten(0, count) for t in node.op.transpose(flat))
            else:
                term, constant = _through(at.flatten(2), lines[node.id], domain)
                bias = bias + constant
                terms = (term.unflatten(2, node.shape),)
            for source, term in zip(node.inputs, terms, strict=True):
                pending[source] = pending[source] + term if source in pending else term
        last = pending.get(0)
        if last is None:
            last = coef.new_zeros(*count, self.graph.nodes[0].size)
        return last.flatten(2), bias


def _through(coef: Tensor, lines: NodeLines, domain: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows ``[M, T, n]`` through a nonlinear node: the lower line where they are >= 0, else the upper one."""

    def of_rows(value: Tensor) -> Tensor:
        return (value if domain is None else value.index_select(0, domain)).unsqueeze(1)

    negative = coef.clamp_max(0)
    constant = coef.new_zeros(coef.shape[:2])
    if lines.upper_offset is not None:
        constant = (negative * of_rows(lines.upper_offset)).sum(-1)
    if lines.lower_offset is not None:
        constant = constant + (coef.clamp_min(0) * of_rows(lines.lower_offset)).sum(-1)
    out = torch.addcmul(coef * of_rows(lines.lower), negative, of_rows(lines.step))
    return out, constant


def _node_lines(op: Relu | ElementwiseOperator, box: Interval) -> NodeLines:
    lines = op.lines(box)

    def flat(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.flatten(1)

    lower = lines.lower_slope.flatten(1)
    return NodeLines(lower, flat(lines.lower_offset), lines.upper_slope.flatten(1) - lower, flat(lines.upper_offset))

"""Sub-problems of a search that splits inputs of any nonlinear node, at points of its choice (GenBaB).

A domain is the root's boxes cut by a list of splits ``z_column >= point`` or ``z_column <= point``. Columns number the
neurons that feed nonlinear nodes, those of all nodes side by side. Source: Shi et al. 2024, "Neural network
verification with branch-and-bound for general nonlinearities".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from auto_LiRPA.bounds.backward import SplitTerm
from auto_LiRPA.bounds.intermediate import Intermediate
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.activation import Relu
from auto_LiRPA.operators.base import NonlinearOperator
from auto_LiRPA.operators.bilinear import MatMul, Mul
from auto_LiRPA.values import Interval


@dataclass(frozen=True, slots=True)
class Source:
    """One node whose neurons can be split: columns ``start:stop``, all of its neurons in order.

    ``kinked``: a user changes its shape at 0 (a ReLU), or is a product, whose planes gain most from a cut there.
    """

    node: int
    start: int
    stop: int
    kinked: bool


def make_sources(graph: Graph, root: Intermediate) -> tuple[Source, ...]:
    """All nodes that feed nonlinear nodes which the output depends on; the network's own input is none of them."""
    reached = graph.ancestors[graph.output] | {graph.output}
    users: dict[int, list[NonlinearOperator]] = {}
    for node in graph.nodes[1 : graph.output + 1]:
        if node.id in reached and isinstance(node.op, NonlinearOperator):
            for source in node.inputs:
                users.setdefault(source, []).append(node.op)
    found, start = [], 0
    for source in sorted(users):
        if source == 0 or source not in root.boxes:
            continue
        stop = start + graph.nodes[source].size
        kinked = any(isinstance(op, (Relu, MatMul, Mul)) for op in users[source])
        found.append(Source(source, start, stop, kinked))
        start = stop
    return tuple(found)


@dataclass(frozen=True, slots=True)
class NonlinearDomains:
    """D domains with up to L splits each.

    ``id``, ``clause``: ``[D]`` int64. ``lower`` ``[D]``: best bound of the weighted row (``mix`` ``[D, R]``).
    ``column`` ``[D, L]`` int64 (-1: none), ``side`` ``[D, L]`` (+1: z >= point, -1: z <= point), ``point`` and the
    multiplier ``beta`` ``[D, L]``. ``next_column`` ``[D]`` (-1: nothing can be split) and ``next_point`` ``[D]``: where
    it is to be split, chosen when it was bounded.
    """

    id: Tensor
    clause: Tensor
    lower: Tensor
    mix: Tensor
    column: Tensor
    side: Tensor
    point: Tensor
    beta: Tensor
    next_column: Tensor
    next_point: Tensor

    def __len__(self) -> int:
        return int(self.id.shape[0])

    def pick(self, index: Tensor) -> NonlinearDomains:
        """Some of the domains."""
        return NonlinearDomains(*(getattr(self, f.name)[index] for f in fields(self)))

    def widened(self, splits: int) -> NonlinearDomains:
        """With room for at least so many splits."""
        more = splits - self.column.shape[1]
        if more <= 0:
            return self
        pad = torch.nn.functional.pad
        return replace(
            self,
            column=pad(self.column, (0, more), value=-1),
            side=pad(self.side, (0, more)),
            point=pad(self.point, (0, more)),
            beta=pad(self.beta, (0, more)),
        )

    def children(self, first_id: int) -> NonlinearDomains:
        """Both halves of every domain, which together cover it: all ``z >= next_point`` first."""
        count = len(self)
        both = self.pick(torch.arange(count, device=self.id.device).repeat(2))
        side = both.side.new_ones(2 * count, 1)
        side[count:] = -1
        return replace(
            both,
            id=torch.arange(first_id, first_id + 2 * count, device=self.id.device),
            column=torch.cat([both.column, both.next_column.unsqueeze(1)], 1),
            side=torch.cat([both.side, side], 1),
            point=torch.cat([both.point, both.next_point.unsqueeze(1)], 1),
            beta=torch.cat([both.beta, both.beta.new_zeros(2 * count, 1)], 1),
        )


def joined(first: NonlinearDomains, second: NonlinearDomains) -> NonlinearDomains:
    """Both batches, the first one's domains first."""
    width = max(first.column.shape[1], second.column.shape[1])
    a, b = first.widened(width), second.widened(width)
    return NonlinearDomains(*(torch.cat([getattr(a, f.name), getattr(b, f.name)]) for f in fields(a)))


def cut_boxes(
    domains: NonlinearDomains, sources: tuple[Source, ...], root: Intermediate, region: Tensor
) -> dict[int, Interval]:
    """Boxes ``[D, *shape]`` of every nonlinear input under the domains' splits; ``region`` ``[D]``."""
    boxes = {k: Interval(box.lower[region], box.upper[region]) for k, box in root.boxes.items()}
    for source in sources:
        mine = (domains.column >= source.start) & (domains.column < source.stop)
        if not bool(mine.any()):
            continue
        box = boxes[source.node]
        lower, upper = box.lower.flatten(1), box.upper.flatten(1)
        at = torch.where(mine, domains.column - source.start, 0)
        above = torch.where(mine & (domains.side > 0), domains.point, -torch.inf)
        below = torch.where(mine & (domains.side < 0), domains.point, torch.inf)
        lower = lower.scatter_reduce(1, at, above, "amax")
        upper = upper.scatter_reduce(1, at, below, "amin")
        boxes[source.node] = Interval(lower.reshape(box.lower.shape), upper.reshape(box.upper.shape))
    return boxes


@dataclass(frozen=True, slots=True)
class SplitTerms:
    """Lagrangian terms of a tile of domains, and where each split's multiplier stands among a node's."""

    terms: Mapping[int, SplitTerm]
    place: Mapping[int, tuple[Tensor, Tensor]]  # per node: which splits are its own [D, L], and their positions

    def betas(self, found: Mapping[int, Tensor], like: Tensor) -> Tensor:
        """The splits' multipliers ``[D, L]`` from those per node."""
        beta = torch.zeros_like(like)
        for node, (mine, position) in self.place.items():
            beta = torch.where(mine, found[node].gather(1, position), beta)
        return beta


def split_terms(
    domains: NonlinearDomains, sources: tuple[Source, ...], boxes: Mapping[int, Interval]
) -> SplitTerms:
    """One term per node: every column that some domain split, once for each side, at the box's cut end."""
    terms: dict[int, SplitTerm] = {}
    place: dict[int, tuple[Tensor, Tensor]] = {}
    for source in sources:
        mine = (domains.column >= source.start) & (domains.column < source.stop)
        if not bool(mine.any()):
            continue
        index = torch.unique(domains.column[mine]) - source.start
        count = len(index)
        at = torch.searchsorted(index, torch.where(mine, domains.column - source.start, index[0]))
        position = torch.where(domains.side > 0, at, at + count)
        beta = domains.beta.new_zeros(len(domains), 2 * count)
        beta = beta.scatter_reduce(1, position, torch.where(mine, domains.beta, 0.0), "amax")
        used = torch.zeros_like(beta).scatter_reduce(1, position, mine.to(beta), "amax")
        sign = torch.cat([used[:, :count], -used[:, count:]], 1)
        picked = boxes[source.node].pick(index)
        ends = torch.cat([picked.lower, picked.upper], 1)
        terms[source.node] = SplitTerm(torch.cat([index, index]), beta, sign, torch.where(sign != 0, ends, 0.0))
        place[source.node] = (mine, position)
    return SplitTerms(terms, place)

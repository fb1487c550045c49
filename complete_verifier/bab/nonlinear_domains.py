"""Sub-problems of a search that splits inputs of any nonlinear node, at points of its choice (GenBaB).

A domain is the root's boxes cut by a list of splits ``z_column >= point`` or ``z_column <= point``. Columns number the
neurons that feed nonlinear nodes, those of all nodes side by side. Source: Shi et al. 2024, "Neural network
verification with branch-and-bound for general nonlinearities".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from complete_verifier.bab.subproblems import Numbering


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


# Splits that a domain has room for. One more takes the place of that with the least multiplier: what is bounded is then
# larger than the domain, which is sound.
MOST_SPLITS = 128


@dataclass(frozen=True, slots=True)
class NonlinearDomains:
    """D domains with up to L splits each.

    ``id``, ``clause``, ``depth`` ``[D]`` int64. ``lower`` ``[D]``: best bound of the weighted row (``mix`` ``[D, R]``).
    ``column`` ``[D, L]`` int64 (-1: none), ``side`` ``[D, L]`` int8 (+1: z >= point, -1: z <= point, 0: none),
    ``point`` and the multiplier ``beta`` ``[D, L]``; no two splits have the same column and side. ``next_column``
    ``[D]`` (-1: nothing can be split) and ``next_point`` ``[D]``: where to split, chosen when it was bounded.
    """

    id: Tensor
    clause: Tensor
    depth: Tensor
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
        """Some of the domains, in the given order (repeats allowed)."""
        return self.rebuild(tuple(t[index] for t in self.tensors()))

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors in a fixed order, for stores."""
        return tuple(getattr(self, f.name) for f in fields(self))

    def rebuild(self, tensors: tuple[Tensor, ...]) -> NonlinearDomains:
        """Inverse of `tensors`."""
        return NonlinearDomains(*tensors)

    def children(self, ids: Numbering) -> NonlinearDomains:
        """Both halves of every domain, which together cover it: all ``z >= next_point`` first.

        A split of the same column and side is narrowed; its multiplier is kept. New ones begin at 0. A domain whose
        ``next_column`` is -1 comes back twice as it is.
        """
        count, device = len(self), self.id.device
        both = self.pick(torch.arange(count, device=device).repeat(2))
        half = torch.arange(2, device=device).repeat_interleave(count)
        column, side = both.next_column.unsqueeze(1), (1 - 2 * half).to(both.side.dtype).unsqueeze(1)
        same, free = (both.column == column) & (both.side == side), both.column < 0
        known = same.any(1, keepdim=True)
        # the first free place; where there is none, that of the least multiplier
        spare = torch.where(free, -1.0, both.beta).argmin(1, keepdim=True)
        at = torch.where(known, same.to(torch.int8).argmax(1, keepdim=True), spare)
        beta = torch.where(known, both.beta.gather(1, at), 0.0)
        place = torch.arange(count, device=device).repeat(2) * ids.step + ids.first
        splits = {
            "column": both.column.scatter(1, at, column),
            "side": both.side.scatter(1, at, side),
            "point": both.point.scatter(1, at, both.next_point.unsqueeze(1)),
            "beta": both.beta.scatter(1, at, beta),
        }
        whole = column < 0
        kept = {name: torch.where(whole, getattr(both, name), value) for name, value in splits.items()}
        return replace(both, id=place + half * ids.block, depth=both.depth + 1, **kept)


def joined(parts: Sequence[NonlinearDomains]) -> NonlinearDomains | None:
    """All domains, part after part; None if there are no parts."""
    if len(parts) <= 1:
        return parts[0] if parts else None
    return parts[0].rebuild(tuple(torch.cat(tensors) for tensors in zip(*(p.tensors() for p in parts), strict=True)))


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

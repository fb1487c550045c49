"""Sums over tiles that ranks share out: every part is gathered and added in tile order, at any number of ranks.

So the bits of a sum do not depend on who computed which tile (DESIGN 5, Numerics).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from auto_LiRPA.bounds.sweep import Gradient
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.base import NonlinearOperator
from auto_LiRPA.parallel.groups import Group
from auto_LiRPA.parallel.sharing import owner
from auto_LiRPA.values import Interval

Key = tuple[str, int]  # what of which node: "lower" and "upper" of its box, "slopes"
Shapes = Mapping[Key, tuple[int, ...]]

# What a rank packs before it is gathered takes no more memory than this on all ranks together.
GATHERED_MIB = 64.0


@dataclass(frozen=True, slots=True)
class Layout:
    """The derivatives that the tiles of one start node have. All ranks know it beforehand: nobody has to be told.

    ``made``: shapes as a tile gives them; ``kept``: as they are summed; ``index``: the kept numbers among all that a
    tile gives, flat, or None for all of them.
    """

    made: Shapes
    kept: Shapes
    index: Tensor | None

    @classmethod
    def of(
        cls, graph: Graph, start: int, neurons: Mapping[int, Tensor], batch: int, shared: Mapping[int, Tensor]
    ) -> Layout:
        """Of rows that start at node ``start``.

        Args:
            neurons: of the nodes whose boxes are bounded again, the flat neurons that are ``[u]``; what is known of
                all others has no derivatives. Few neurons of a layer are, so little is sent.
            shared: slopes that all rows share, by node ``[B, 1, P, u]``.
        """
        below = graph.ancestors[start] | {start}
        made: dict[Key, tuple[int, ...]] = {}
        kept: dict[Key, tuple[int, ...]] = {}
        places: list[Tensor] = []
        at = 0
        for node, index in sorted(neurons.items()):
            if not any(u in below and isinstance(graph.nodes[u].op, NonlinearOperator) for u in graph.users[node]):
                continue
            shape = graph.local_shape(node)
            size = math.prod(shape)
            for side in ("lower", "upper"):
                made[side, node], kept[side, node] = (batch, *shape), (batch, len(index))
                elements = torch.arange(batch, device=index.device).unsqueeze(1) * size
                places.append((at + elements + index).flatten())
                at += batch * size
        for node, slopes in sorted(shared.items()):
            made["slopes", node] = kept["slopes", node] = tuple(slopes.shape)
            places.append(torch.arange(at, at + slopes.numel(), device=slopes.device))
            at += slopes.numel()
        if graph.spread is not None or not places:  # each rank has some of the neurons: picked once they are together
            return cls(made, made, None)
        return cls(made, kept, torch.cat(places))

    def packed(self, found: Gradient | None, like: Tensor) -> Tensor:
        """The kept numbers of one tile as a vector; zeros for a rank that has none."""
        size = sum(math.prod(shape) for shape in self.kept.values())
        if found is None or size == 0:
            return like.new_zeros(size)
        every = torch.cat(list(_parts(found, self.made, like)))
        return every if self.index is None else every.index_select(0, self.index)


def _parts(found: Gradient, shapes: Shapes, like: Tensor) -> Iterable[Tensor]:
    for (kind, node), shape in shapes.items():
        part: Tensor | None
        if kind == "slopes":
            every = found.slopes.get(node)
            part = None if every is None else every.sum(1, keepdim=True)
        else:
            box = found.boxes.get(node)
            part = None if box is None else box.lower if kind == "lower" else box.upper
        size = math.prod(shape)
        yield like.new_zeros(size) if part is None else part.reshape(size)


class TileSums:
    """Adjoints of boxes, and of slopes that rows share: first the sum over a start node's tiles, then over nodes."""

    def __init__(self, rows: Group) -> None:
        self._rows = rows
        self._totals: dict[Key, Tensor] = {}
        self._packed: list[Tensor] = []
        self._sum: Tensor | None = None

    def begin(self) -> None:
        """Forget the sums of the last iteration."""
        self._totals, self._packed, self._sum = {}, [], None

    def add(self, layout: Layout, found: Gradient | None, left: int, like: Tensor, first: int) -> None:
        """Take in this rank's tile of one turn, in which the ranks together have ``left`` tiles from here on.

        Args:
            found: None where the rank has no tile in this turn.
            like: of the parts' dtype and device.
            first: the rank that has the start node's first tile.
        """
        if not layout.kept:
            return  # nothing below is bounded again
        packed = layout.packed(found, like)
        self._packed.append(packed)
        bytes_of_turn = max(1, packed.numel() * packed.element_size() * self._rows.size)
        turns = max(1, int(GATHERED_MIB * 2**20) // bytes_of_turn) if self._rows.size > 1 else 1
        last = left <= self._rows.size
        if last or len(self._packed) == turns:
            self._gather((len(self._packed) - 1) * self._rows.size + min(left, self._rows.size), first)
        if last:
            self._finish(layout.kept)

    def _gather(self, present: int, first: int) -> None:
        """Add what all ranks have packed, in the tiles' order: turn by turn, in each from the ``first`` rank on."""
        every = self._rows.gather(torch.stack(self._packed))  # [P, turns, ...]
        self._packed = []
        for position in range(present):
            part = every[owner(self._rows, position, first), position // self._rows.size]
            self._sum = part.clone() if self._sum is None else self._sum.add_(part)

    def _finish(self, shapes: Shapes) -> None:
        assert self._sum is not None
        pieces = self._sum.split([math.prod(shape) for shape in shapes.values()])
        for (key, shape), piece in zip(shapes.items(), pieces, strict=True):
            part = piece.reshape(shape)
            self._totals[key] = self._totals[key] + part if key in self._totals else part
        self._sum = None

    def box(self, node: int) -> Interval | None:
        """Take the adjoint of a node's box out of the sums: of its kept neurons; None if no tile depends on it."""
        lower, upper = self._totals.pop(("lower", node), None), self._totals.pop(("upper", node), None)
        return None if lower is None or upper is None else Interval(lower, upper)

    def slopes(self) -> dict[int, Tensor]:
        """Take the derivatives of shared slopes out of the sums."""
        nodes = [node for kind, node in self._totals if kind == "slopes"]
        return {node: self._totals.pop(("slopes", node)) for node in nodes}

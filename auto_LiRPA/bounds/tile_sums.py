"""Sums over tiles that ranks share out: every part is gathered and added in tile order, at any number of ranks.

So the bits of a sum do not depend on who computed which tile (DESIGN 5, Numerics).
"""

from __future__ import annotations

import torch
from torch import Tensor

from auto_LiRPA.bounds.sweep import Gradient
from auto_LiRPA.parallel.groups import Group
from auto_LiRPA.parallel.sharing import owner
from auto_LiRPA.values import Interval

Key = tuple[str, int]  # what of which node: "lower" and "upper" of its box, "slopes"

# Tiles whose parts a rank packs before they are gathered together, while they take no more memory than this.
TURNS, GATHERED_MIB = 8, 64.0


class TileSums:
    """Adjoints of boxes, and of slopes that all rows share: first the sum over a start node's tiles, then over nodes.

    The parts of one start node's tiles have the same shapes in every iteration, so ranks without a tile ask for them
    once.
    """

    def __init__(self, rows: Group) -> None:
        self._rows = rows
        self._layouts: dict[int, list[tuple[Key, tuple[int, ...]]]] = {}
        self._totals: dict[Key, Tensor] = {}
        self._packed: list[Tensor] = []
        self._sum: Tensor | None = None

    def begin(self) -> None:
        """Forget the sums of the last iteration."""
        self._totals, self._packed, self._sum = {}, [], None

    def add(self, start: int, found: Gradient | None, left: int, shared: bool, like: Tensor, first: int) -> None:
        """Take in this rank's tile of one turn, in which the ranks together have ``left`` tiles from here on.

        Args:
            found: None where the rank has no tile in this turn.
            shared: whether slopes are summed too, over a tile's rows first.
            like: of the parts' dtype and device.
            first: the rank that has the start node's first tile.
        """
        mine = {} if found is None else _parts(found, shared)
        if start not in self._layouts:
            layout = [(key, tuple(part.shape)) for key, part in mine.items()]
            source = first % self._rows.size  # has a tile in every turn
            self._layouts[start] = self._rows.same_object(layout, source)
        size = sum(torch.Size(shape).numel() for _, shape in self._layouts[start])
        packed = like.new_zeros(size)
        if mine:
            torch.cat([part.flatten() for part in mine.values()], out=packed)
        self._packed.append(packed)
        bytes_of_turn = size * packed.element_size() * self._rows.size
        turns = max(1, min(TURNS, int(GATHERED_MIB * 2**20) // max(1, bytes_of_turn))) if self._rows.size > 1 else 1
        last = left <= self._rows.size
        if last or len(self._packed) == turns:
            self._gather((len(self._packed) - 1) * self._rows.size + min(left, self._rows.size), first)
        if last:
            self._finish(self._layouts[start])

    def _gather(self, present: int, first: int) -> None:
        """Add what all ranks have packed, in the tiles' order: turn by turn, in each from the ``first`` rank on."""
        every = self._rows.gather(torch.stack(self._packed))  # [P, turns, ...]
        self._packed = []
        for position in range(present):
            part = every[owner(self._rows, position, first), position // self._rows.size]
            self._sum = part.clone() if self._sum is None else self._sum.add_(part)

    def _finish(self, layout: list[tuple[Key, tuple[int, ...]]]) -> None:
        assert self._sum is not None
        pieces = self._sum.split([torch.Size(shape).numel() for _, shape in layout])
        for (key, shape), piece in zip(layout, pieces, strict=True):
            part = piece.reshape(shape)
            self._totals[key] = self._totals[key] + part if key in self._totals else part
        self._sum = None

    def box(self, node: int) -> Interval | None:
        """Take the adjoint of a node's box out of the sums; None if no tile depends on it."""
        lower, upper = self._totals.pop(("lower", node), None), self._totals.pop(("upper", node), None)
        return None if lower is None or upper is None else Interval(lower, upper)

    def slopes(self) -> dict[int, Tensor]:
        """Take the derivatives of shared slopes out of the sums."""
        nodes = [node for kind, node in self._totals if kind == "slopes"]
        return {node: self._totals.pop(("slopes", node)) for node in nodes}


def _parts(found: Gradient, shared: bool) -> dict[Key, Tensor]:
    parts: dict[Key, Tensor] = {}
    for node, box in sorted(found.boxes.items()):
        parts["lower", node], parts["upper", node] = box.lower, box.upper
    if shared:
        for node, slopes in sorted(found.slopes.items()):
            parts["slopes", node] = slopes.sum(1, keepdim=True)
    return parts

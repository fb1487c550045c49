"""Sums over tiles that ranks share out: every part is gathered and added in tile order, at any number of ranks.

So the bits of a sum do not depend on who computed which tile (DESIGN 5, Numerics).
"""

from __future__ import annotations

import torch
from torch import Tensor

from auto_LiRPA.bounds.sweep import Gradient
from auto_LiRPA.parallel.groups import Group
from auto_LiRPA.values import Interval

Key = tuple[str, int]  # what of which node: "lower" and "upper" of its box, "slopes"


class TileSums:
    """Adjoints of boxes, and of slopes that all rows share, added up tile by tile.

    The parts of one start node's tiles have the same shapes in every iteration, so ranks without a tile in the last
    round ask for them once.
    """

    def __init__(self, rows: Group) -> None:
        self._rows = rows
        self._layouts: dict[int, list[tuple[Key, tuple[int, ...]]]] = {}
        self.totals: dict[Key, Tensor] = {}

    def begin(self) -> None:
        """Forget the sums of the last iteration."""
        self.totals = {}

    def add(self, start: int, found: Gradient | None, present: int, shared: bool, like: Tensor) -> None:
        """Add one round: the tile of each of the first ``present`` ranks; ``found`` is this rank's, if it has one.

        Args:
            shared: whether slopes are summed too, over a tile's rows first.
            like: of the parts' dtype and device.
        """
        mine = {} if found is None else _parts(found, shared)
        if self._rows.size == 1:
            for key, part in mine.items():
                self._add(key, part)
            return
        if start not in self._layouts:
            layout = [(key, tuple(part.shape)) for key, part in mine.items()]
            self._layouts[start] = self._rows.same_object(layout)  # rank 0 has a tile in every round
        layout = self._layouts[start]
        sizes = [torch.Size(shape).numel() for _, shape in layout]
        packed = like.new_zeros(sum(sizes))
        if mine:
            torch.cat([part.flatten() for part in mine.values()], out=packed)
        for row in self._rows.gather(packed)[:present]:
            pieces = row.split(sizes)
            for (key, shape), piece in zip(layout, pieces, strict=True):
                self._add(key, piece.reshape(shape))

    def box(self, node: int) -> Interval | None:
        """Take the adjoint of a node's box out of the sums; None if no tile depends on it."""
        lower, upper = self.totals.pop(("lower", node), None), self.totals.pop(("upper", node), None)
        return None if lower is None or upper is None else Interval(lower, upper)

    def slopes(self) -> dict[int, Tensor]:
        """Take the derivatives of shared slopes out of the sums."""
        nodes = [node for kind, node in self.totals if kind == "slopes"]
        return {node: self.totals.pop(("slopes", node)) for node in nodes}

    def _add(self, key: Key, part: Tensor) -> None:
        self.totals[key] = self.totals[key] + part if key in self.totals else part


def _parts(found: Gradient, shared: bool) -> dict[Key, Tensor]:
    parts: dict[Key, Tensor] = {}
    for node, box in sorted(found.boxes.items()):
        parts["lower", node], parts["upper", node] = box.lower, box.upper
    if shared:
        for node, slopes in sorted(found.slopes.items()):
            parts["slopes", node] = slopes.sum(1, keepdim=True)
    return parts

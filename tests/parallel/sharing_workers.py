"""What a rank stores of a joint optimisation's rows, and what it says to the others."""

from __future__ import annotations

from dataclasses import dataclass
from unittest.mock import patch

from torch import Tensor

from auto_LiRPA.bounds import alpha, tile_sums
from auto_LiRPA.bounds.alpha import AlphaResult
from auto_LiRPA.parallel.groups import Group
from tests.parallel import matrix
from tests.parallel.matrix import ITERATIONS, Layout, Task


@dataclass(slots=True)
class Stored:
    """Of one rank: bytes of its slopes, and of the optimisation: start nodes, their tiles on all ranks, undecided
    neurons, calls, and numbers of adjoints that all ranks packed."""

    slopes: int = 0
    starts: int = 0
    tiles: int = 0
    undecided: int = 0
    gathers: int = 0
    objects: int = 0
    adjoint_numbers: int = 0
    iterations: int = ITERATIONS


def stored(net: str) -> Stored:
    """Of this rank."""
    found = Stored()
    run, gather = alpha._Joint.run, tile_sums.TileSums._gather

    def noted(self: alpha._Joint, *arguments: object) -> AlphaResult:
        tensors: list[Tensor] = [value for tile in self.slopes.values() for value in tile.values()]
        found.slopes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        found.starts, found.undecided = len(self.starts), sum(len(start.index) for start in self.starts)
        found.tiles = len(self.spec.tiles) + sum(len(start.tiles) for start in self.starts)
        before = _calls(self.context.rows)
        result = run(self, *arguments)  # type: ignore[arg-type]
        found.gathers, found.objects = (b - a for a, b in zip(before, _calls(self.context.rows), strict=True))
        return result

    def packed(self: tile_sums.TileSums, present: int, first: int) -> None:
        found.adjoint_numbers += present * self._packed[0].numel()
        gather(self, present, first)

    with patch.object(alpha._Joint, "run", noted), patch.object(tile_sums.TileSums, "_gather", packed):
        matrix.compute(Layout("rows", "single", (2,), rows="shard"), Task(net, "keep"))
    return found


def _calls(rows: Group) -> tuple[int, int]:
    kinds = rows.counters.collectives
    return tuple(kinds[kind].calls if kind in kinds else 0 for kind in ("gather", "objects"))  # type: ignore[return-value]

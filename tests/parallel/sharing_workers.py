"""What a rank stores of a joint optimisation's rows."""

from __future__ import annotations

from unittest.mock import patch

from torch import Tensor

from auto_LiRPA.bounds import alpha
from tests.parallel import matrix
from tests.parallel.matrix import Layout, Task


def stored(net: str) -> int:
    """Bytes of the slopes that this rank has."""
    sizes: list[int] = []
    original = alpha._Joint.run

    def run(self: alpha._Joint, *arguments: object) -> object:
        tensors: list[Tensor] = [value for tile in self.slopes.values() for value in tile.values()]
        sizes.append(sum(tensor.numel() * tensor.element_size() for tensor in tensors))
        return original(self, *arguments)  # type: ignore[arg-type]

    with patch.object(alpha._Joint, "run", run):
        matrix.compute(Layout("rows", "single", (2,), rows="shard"), Task(net, "keep"))
    return sizes[0]

"""Linear operators as sparse matrices: each one's rule is applied to unit vectors, so no operator needs a case here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from auto_LiRPA.graph.ir import Graph, Node
from auto_LiRPA.operators.base import LinearOperator
from auto_LiRPA.operators.linear import Linear
from auto_LiRPA.parallel.store import LocalStore
from auto_LiRPA.parallel.whole import whole
from complete_verifier.mip.program import Floats

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# Entries of the dense block that unit vectors are pushed through in at a time.
_CHUNK_ENTRIES = 2**22


@dataclass(frozen=True, slots=True)
class LinearMap:
    """``sum_i matrices[i] x_i + bias`` over flattened values."""

    matrices: tuple[csr_array, ...]
    bias: Floats


class LinearMaps:
    """The matrices of a graph's linear nodes, each made once, in float64 on the CPU.

    Ranks that share weights make theirs together.
    """

    def __init__(self, graph: Graph, check_time: Callable[[], None]) -> None:
        self.graph = _in_double(graph)
        self._check_time = check_time
        self._made: dict[int, LinearMap] = {}

    def of(self, node: Node) -> LinearMap:
        """The map of a linear node. Raises OutOfTime."""
        if node.id not in self._made:
            self._made[node.id] = self._make(self.graph.nodes[node.id])
        return self._made[node.id]

    def _make(self, node: Node) -> LinearMap:
        op = node.op
        assert isinstance(op, LinearOperator)
        shapes = [self.graph.nodes[i].shape for i in node.inputs]
        with torch.no_grad():
            if isinstance(op, Linear) and len(shapes[0]) == 1:
                matrices = [_sparse(whole(op.weight))]
            else:
                matrices = [self._applied(op, shapes, position, node.size) for position in range(len(shapes))]
            zeros = [torch.zeros(1, *shape, dtype=torch.float64) for shape in shapes]
            bias = op.forward(*zeros).reshape(-1).numpy()
        return LinearMap(tuple(matrices), bias)

    def _applied(self, op: LinearOperator, shapes: list[tuple[int, ...]], position: int, size: int) -> csr_array:
        from scipy.sparse import vstack

        shape = shapes[position]
        count = int(torch.Size(shape).numel())
        height = max(1, _CHUNK_ENTRIES // max(count, size))
        columns = []
        for start in range(0, count, height):
            self._check_time()
            stop = min(start + height, count)
            unit = torch.zeros(stop - start, count, dtype=torch.float64)
            unit[torch.arange(stop - start), torch.arange(start, stop)] = 1
            inputs = [
                unit.reshape(-1, *s) if i == position else torch.zeros(stop - start, *s, dtype=torch.float64)
                for i, s in enumerate(shapes)
            ]
            columns.append(_sparse(op.apply(*inputs).reshape(stop - start, size)))
        return vstack(columns, format="csr").T.tocsr()


def _in_double(graph: Graph) -> Graph:
    store = LocalStore()

    def double(tensor: Tensor) -> Tensor:
        return tensor.detach().cpu().double() if tensor.is_floating_point() else tensor.cpu()

    return graph.mapped(double, lambda w: store.place(whole(w, torch.float64, torch.device("cpu"))))


def _sparse(matrix: Tensor) -> csr_array:
    from scipy.sparse import csr_array

    return csr_array(np.ascontiguousarray(matrix.numpy()))

"""Small networks of every kind that tensor parallelism splits, and what is asked of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.arithmetic import Add, Affine
from auto_LiRPA.operators.conv import Conv
from auto_LiRPA.operators.linear import Linear
from auto_LiRPA.operators.pooling import AveragePool, MaxPool
from auto_LiRPA.operators.shape import Reshape
from auto_LiRPA.operators.smooth import Sigmoid
from auto_LiRPA.values import Box, LpBall
from tests.nets import Builder, dense_layers


class Layers(Builder):
    """Random layers one after the other."""

    def __init__(self, input_shape: tuple[int, ...], dtype: torch.dtype, seed: int = 5) -> None:
        super().__init__(input_shape)
        self.dtype, self.seed = dtype, seed

    def linear(self, source: int, n_out: int) -> int:
        self.seed += 1
        return self.dense(dense_layers([self.nodes[source].shape[-1], n_out], self.seed, self.dtype)[0], source)

    def tokens(self, source: int, n_out: int) -> int:
        """A linear layer for every row of a matrix."""
        self.seed += 1
        shape = self.nodes[source].shape
        layer = dense_layers([shape[-1], n_out], self.seed, self.dtype)[0]
        return self.add(Linear(self.store.place(layer.weight), layer.bias), (source,), (*shape[:-1], n_out))

    def conv(self, source: int, n_out: int, stride: int = 1) -> int:
        """3 x 3 with padding 1."""
        self.seed += 1
        gen = torch.Generator().manual_seed(self.seed)
        shape = self.nodes[source].shape
        weight = torch.randn(n_out, shape[0], 3, 3, generator=gen, dtype=torch.float64) / (9 * shape[0]) ** 0.5
        bias = 0.2 * torch.randn(n_out, generator=gen, dtype=torch.float64)
        placed = self.store.place(weight.to(self.dtype))
        op = Conv(placed, bias.to(self.dtype), (stride, stride), (1, 1), (1, 1), 1, shape)
        return self.add(op, (source,), op.out_shape)

    def affine(self, source: int, shape: tuple[int, ...]) -> int:
        self.seed += 1
        gen = torch.Generator().manual_seed(self.seed)
        scale, shift = 0.5 + torch.rand(2, *shape, generator=gen, dtype=torch.float64)
        return self.add(Affine(scale.to(self.dtype), shift.to(self.dtype) - 1), (source,), self.nodes[source].shape)

    def flat(self, source: int) -> int:
        shape = self.nodes[source].shape
        size = int(torch.Size(shape).numel())
        return self.add(Reshape(shape, (size,)), (source,), (size,))


def _mlp(depth: int) -> Callable[[torch.dtype], Graph]:
    def make(dtype: torch.dtype) -> Graph:
        build = Layers((6,), dtype, depth)
        at = 0
        for _ in range(depth):
            at = build.relu(build.linear(at, 11))
        build.linear(at, 3)
        return build.graph()

    return make


def _elementwise(dtype: torch.dtype) -> Graph:
    """Affine maps and other functions between the weights; two branches that meet inside the zone; a zone in rows."""
    build = Layers((6,), dtype, 30)
    at = build.affine(build.linear(0, 11), (11,))
    at = build.add(Sigmoid(), (at,), (11,))
    both = build.add(Add(), (at, build.relu(build.linear(0, 11))), (11,))
    at = build.relu(build.linear(both, 8))
    at = build.add(Reshape((8,), (2, 4)), (at,), (2, 4))
    at = build.tokens(build.relu(build.tokens(at, 7)), 5)
    build.linear(build.flat(build.relu(at)), 3)
    return build.graph()


def _cnn(side: int) -> Callable[[torch.dtype], Graph]:
    """A pair of convolutions with pooling inside, and one that ends in a linear layer behind a flattening."""

    def make(dtype: torch.dtype) -> Graph:
        build = Layers((2, side, side), dtype, 40)
        at = build.affine(build.conv(0, 5), (5, 1, 1))
        at = build.relu(at)
        half = side // 2
        op = AveragePool((2, 2), (2, 2), ((0, 0), (0, 0)), False, True, (5, side, side), (5, half, half))
        at = build.add(op, (at,), op.out_shape)
        at = build.relu(build.conv(at, 6))
        at = build.relu(build.conv(at, 7, 2))
        size = -(-half // 2)
        pool = MaxPool(
            (2, 2), (1, 1), ((0, 0), (0, 0)), (1, 1), False, (7, size, size), (7, size - 1, size - 1)
        )
        at = build.add(pool, (at,), pool.out_shape)
        at = build.relu(build.linear(build.flat(at), 9))
        build.linear(at, 3)
        return build.graph()

    return make


def _residual(dtype: torch.dtype) -> Graph:
    """A block whose pair closes and one (a single layer in the branch) whose pair does not."""
    build = Layers((2, 4, 4), dtype, 50)
    at = build.relu(build.conv(0, 5))
    branch = build.conv(build.relu(build.conv(at, 6)), 5)
    at = build.relu(build.add(Add(), (at, branch), build.nodes[at].shape))
    at = build.relu(build.linear(build.flat(at), 8))
    at = build.relu(build.add(Add(), (at, build.relu(build.linear(at, 8))), (8,)))
    build.linear(at, 3)
    return build.graph()


NETS: dict[str, Callable[[torch.dtype], Graph]] = {
    **{f"mlp{depth}": _mlp(depth) for depth in range(2, 7)},
    "elementwise": _elementwise,
    "cnn": _cnn(4),
    "wide": _cnn(12),
    "residual": _residual,
}


def question(graph: Graph, dtype: torch.dtype, ball: bool = False) -> Box | LpBall:
    """A small region, two samples."""
    gen = torch.Generator().manual_seed(3)
    x = torch.rand(2, *graph.input_shape, generator=gen, dtype=torch.float64).to(dtype)
    eps = torch.tensor([0.1, 0.2], dtype=dtype)
    if ball:
        return LpBall(x, 2 * eps, 2.0)
    wide = eps.reshape(-1, *([1] * len(graph.input_shape)))
    return Box(x - wide, x + wide)


def rows(graph: Graph, dtype: torch.dtype) -> Tensor:
    """Specification rows ``[1, 5, n_out]``."""
    gen = torch.Generator().manual_seed(4)
    return torch.randn(1, 5, graph.nodes[graph.output].size, generator=gen, dtype=torch.float64).to(dtype)



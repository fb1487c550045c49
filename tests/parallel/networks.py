"""Networks so small, with blocks and tiles smaller still, that every layer is cut and every rank has its share.

Blocks have 8 rows at least, so no layer has fewer than 17 outputs; none divides by the number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.arithmetic import Add, Affine
from auto_LiRPA.operators.bilinear import MatMul, Mul
from auto_LiRPA.operators.conv import Conv
from auto_LiRPA.operators.exponential import Exp, Reciprocal
from auto_LiRPA.operators.linear import Linear
from auto_LiRPA.operators.reduce import ReduceSum
from auto_LiRPA.operators.shape import Reshape, Transpose
from auto_LiRPA.operators.softmax import Differences, PairSoftmax, pair_count
from auto_LiRPA.parallel.store import ParameterStore
from tests.nets import Builder, dense_layers

BLOCK_MIB = 1e-6  # eight rows a block: the least that there is
OUTPUTS = 17


@dataclass(frozen=True)
class Net:
    """How a network is made in a store, how high its tiles are, and the box that it is bounded over."""

    make: Callable[[ParameterStore, torch.dtype], Graph]
    tile_rows: int
    eps: float


class Held(nn.Module):
    """A graph as a module that `BoundedModule` takes as it is."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph


class _Builder(Builder):
    """Random layers one after the other, their weights in a given store."""

    def __init__(self, input_shape: tuple[int, ...], store: ParameterStore, dtype: torch.dtype, seed: int) -> None:
        super().__init__(input_shape)
        self.store = store  # type: ignore[assignment]
        self.dtype, self.seed = dtype, seed

    def linear(self, source: int, n_out: int) -> int:
        self.seed += 1
        n_in = math.prod(self.nodes[source].shape)
        return self.dense(dense_layers([n_in, n_out], self.seed, self.dtype)[0], source)

    def conv(self, source: int, n_out: int, stride: int) -> int:
        """3 x 3 with padding 1."""
        self.seed += 1
        gen = torch.Generator().manual_seed(self.seed)
        shape = self.nodes[source].shape
        weight = torch.randn(n_out, shape[0], 3, 3, generator=gen, dtype=torch.float64) / (9 * shape[0]) ** 0.5
        bias = 0.2 * torch.randn(n_out, generator=gen, dtype=torch.float64)
        placed = self.store.place(weight.to(self.dtype))
        op = Conv(placed, bias.to(self.dtype), (stride, stride), (1, 1), (1, 1), 1, shape)
        return self.add(op, (source,), op.out_shape)

    def flat(self, source: int) -> int:
        shape = self.nodes[source].shape
        size = math.prod(shape)
        return self.add(Reshape(shape, (size,)), (source,), (size,))


def _mlp(store: ParameterStore, dtype: torch.dtype) -> Graph:
    build = _Builder((12,), store, dtype, 100)
    at = 0
    for width in (26, 26):
        at = build.relu(build.linear(at, width))
    build.linear(at, OUTPUTS)
    return build.graph()


def _cnn(store: ParameterStore, dtype: torch.dtype) -> Graph:
    build = _Builder((2, 6, 6), store, dtype, 200)
    at = build.relu(build.conv(0, 17, 2))
    at = build.relu(build.conv(at, 18, 2))
    at = build.relu(build.linear(build.flat(at), 20))
    build.linear(at, OUTPUTS)
    return build.graph()


def _residual(store: ParameterStore, dtype: torch.dtype) -> Graph:
    """Stem, one block of two convolutions with a shortcut, one linear layer."""
    build = _Builder((1, 4, 4), store, dtype, 300)
    at = build.relu(build.conv(0, 17, 2))
    branch = build.conv(build.relu(build.conv(at, 18, 1)), 17, 1)
    at = build.relu(build.add(Add(), (at, branch), build.nodes[at].shape))
    build.linear(build.flat(at), OUTPUTS)
    return build.graph()


def _attention(store: ParameterStore, dtype: torch.dtype) -> Graph:
    """One attention head of two tokens, a ReLU layer (a pair under tp), a gate: products, softmax, exp, a quotient."""
    tokens, width = 2, OUTPUTS
    build = _Builder((6,), store, dtype, 400)
    shape, turned, scores = (tokens, width), (width, tokens), (tokens, tokens)

    def dense(source: int) -> int:
        build.seed += 1
        layer = dense_layers([width, width], build.seed, dtype)[0]
        return build.add(Linear(store.place(layer.weight), layer.bias), (source,), shape)

    x = build.add(Reshape((tokens * width,), shape), (build.linear(0, tokens * width),), shape)
    keys = build.add(Transpose((1, 0)), (dense(x),), turned)
    product = build.add(MatMul(), (dense(x), keys), scores)
    differences = build.add(Differences(tokens), (product,), (tokens, pair_count(tokens)))
    shares = build.add(PairSoftmax(tokens), (differences,), scores)
    mixed = build.add(MatMul(averages=True), (shares, dense(x)), shape)
    middle = build.add(Add(), (dense(mixed), x), shape)
    hidden = build.add(Add(), (dense(build.relu(dense(middle))), middle), shape)
    grown = build.add(Exp(), (build.add(Affine(torch.tensor(0.2, dtype=dtype), None), (hidden,), shape),), shape)
    one = torch.tensor(1.0, dtype=dtype)
    total = build.add(ReduceSum((1,), False, shape), (grown,), (tokens,))
    weight = build.add(Reciprocal(), (build.add(Affine(None, one), (total,), (tokens,)),), (tokens,))
    column = build.add(Reshape((tokens,), (tokens, 1)), (weight,), (tokens, 1))
    wide = (tokens, tokens * width)
    row = build.add(Reshape((tokens * width,), (1, tokens * width)), (build.flat(grown),), (1, tokens * width))
    gate = build.add(ReduceSum((0,), False, wide), (build.add(MatMul(), (column, row), wide),), (tokens * width,))
    product = build.add(Mul(), (build.flat(hidden), gate), (tokens * width,))
    build.linear(product, OUTPUTS)
    return build.graph()


NETS = {
    "mlp": Net(_mlp, 3, 0.5),
    "cnn": Net(_cnn, 8, 0.5),
    "residual": Net(_residual, 7, 0.7),
    "attention": Net(_attention, 4, 0.1),
}
# those without other nonlinear nodes
RELU_NETS = ("mlp", "cnn", "residual")


def center(name: str, graph: Graph, dtype: torch.dtype, batch: int = 1) -> Tensor:
    """The middle of the box, always the same."""
    gen = torch.Generator().manual_seed(list(NETS).index(name))
    return torch.rand(batch, *graph.input_shape, generator=gen, dtype=torch.float64).to(dtype)


def blocks_of(graph: Graph, store: ParameterStore) -> dict[str, int]:
    """Blocks of each layer's weight, by the store's own rule."""
    found = {}
    for node in graph.nodes:
        weight = getattr(node.op, "weight", None)
        if weight is not None:
            rows = store.rows_per_block(weight.shape, weight.dtype.itemsize)
            found[node.name] = -(-weight.shape[0] // rows)
    return found

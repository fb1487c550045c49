"""Small random networks as graphs, built directly from operators, with the same weights as plain torch functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from auto_LiRPA.graph.ir import Graph, Node
from auto_LiRPA.operators.activation import Relu
from auto_LiRPA.operators.arithmetic import Add
from auto_LiRPA.operators.base import Input, Operator
from auto_LiRPA.operators.linear import Linear
from auto_LiRPA.parallel.store import LocalStore


@dataclass(frozen=True)
class Dense:
    """A dense layer: weight ``[out, in]`` and bias ``[out]``."""

    weight: Tensor
    bias: Tensor


def dense_layers(sizes: list[int], seed: int, dtype: torch.dtype = torch.float64) -> list[Dense]:
    """Random layers of the given widths."""
    gen = torch.Generator().manual_seed(seed)
    layers = []
    for n_in, n_out in zip(sizes, sizes[1:], strict=False):
        weight = torch.randn(n_out, n_in, generator=gen, dtype=torch.float64) / n_in**0.5
        bias = 0.3 * torch.randn(n_out, generator=gen, dtype=torch.float64)
        layers.append(Dense(weight.to(dtype), bias.to(dtype)))
    return layers


class Builder:
    """Appends nodes one after the other."""

    def __init__(self, input_shape: tuple[int, ...], block_mib: float = 16.0) -> None:
        self.store = LocalStore(block_mib)
        self.nodes = [Node(0, "input", Input(), (), input_shape)]

    def add(self, op: Operator, inputs: tuple[int, ...], shape: tuple[int, ...]) -> int:
        """Append a node; returns its id."""
        self.nodes.append(Node(len(self.nodes), f"n{len(self.nodes)}", op, inputs, shape))
        return len(self.nodes) - 1

    def dense(self, layer: Dense, source: int) -> int:
        """Append a dense layer."""
        op = Linear(self.store.place(layer.weight), layer.bias)
        return self.add(op, (source,), (layer.weight.shape[0],))

    def relu(self, source: int) -> int:
        """Append a ReLU."""
        return self.add(Relu(), (source,), self.nodes[source].shape)

    def graph(self) -> Graph:
        """The graph, its last node being the output."""
        return Graph(tuple(self.nodes), len(self.nodes) - 1)


def mlp(layers: list[Dense], block_mib: float = 16.0) -> Graph:
    """Dense layers with ReLUs between them."""
    build = Builder((layers[0].weight.shape[1],), block_mib)
    at = 0
    for i, layer in enumerate(layers):
        at = build.dense(layer, at)
        if i + 1 < len(layers):
            at = build.relu(at)
    return build.graph()


def residual(layers: list[Dense], block_mib: float = 16.0) -> Graph:
    """``layers[0]``, then blocks ``x + relu(W x + b)`` (square layers), then the last layer."""
    build = Builder((layers[0].weight.shape[1],), block_mib)
    at = build.relu(build.dense(layers[0], 0))
    for layer in layers[1:-1]:
        branch = build.relu(build.dense(layer, at))
        at = build.add(Add(), (at, branch), build.nodes[at].shape)
        at = build.relu(at)
    build.dense(layers[-1], at)
    return build.graph()


def run_mlp(layers: list[Dense]) -> Callable[[Tensor], Tensor]:
    """The MLP of `mlp` as a plain function of ``[N, n_in]``."""

    def forward(x: Tensor) -> Tensor:
        for i, layer in enumerate(layers):
            x = x @ layer.weight.T + layer.bias
            if i + 1 < len(layers):
                x = x.clamp_min(0)
        return x

    return forward

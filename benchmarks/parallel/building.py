"""Networks built tensor by tensor into a store, so that no device holds more weights than its mode keeps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from auto_LiRPA.graph.ir import Graph, Node
from auto_LiRPA.graph.tensor_parallel import local_store, tensor_parallel
from auto_LiRPA.operators.activation import Relu
from auto_LiRPA.operators.arithmetic import Add
from auto_LiRPA.operators.base import Input, Operator
from auto_LiRPA.operators.conv import Conv
from auto_LiRPA.operators.linear import Linear
from auto_LiRPA.operators.shape import Reshape
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.store import LocalStore, ParameterStore
from benchmarks import networks
from benchmarks.parallel import drawn


class _Builder:
    """Appends nodes; each layer's module is made on the host and dropped when the store has its weight."""

    def __init__(self, context: DistributedContext, shape: tuple[int, ...]) -> None:
        self.context, self.store = context, context.make_store()
        self.nodes = [Node(0, "input", Input(), (), shape)]

    def add(self, op: Operator, inputs: tuple[int, ...], shape: tuple[int, ...]) -> int:
        self.nodes.append(Node(len(self.nodes), f"n{len(self.nodes)}", op, inputs, shape))
        return len(self.nodes) - 1

    def _bias(self, module: nn.Linear | nn.Conv2d) -> Tensor:
        return module.bias.detach().to(self._device)

    def _weight(self, module: nn.Linear | nn.Conv2d) -> Tensor:
        # a store that keeps weights elsewhere takes its part from the host
        weight = module.weight.detach()
        return weight.to(self._device) if isinstance(self.store, LocalStore) else weight

    @property
    def _device(self) -> torch.device:
        """Tensor parallelism begins on the host, and each rank moves what is its own."""
        return torch.device("cpu") if self._starts_on_host else self.context.device

    @property
    def _starts_on_host(self) -> bool:
        return self.context.mode == "tp" and self.context.weights.size > 1

    def linear(self, at: int, module: nn.Linear) -> int:
        op = Linear(self.store.place(self._weight(module)), self._bias(module))
        return self.add(op, (at,), (module.out_features,))

    def conv(self, at: int, module: nn.Conv2d) -> int:
        shape = self.nodes[at].shape
        stride, padding = tuple(module.stride), tuple(int(p) for p in module.padding)
        op = Conv(self.store.place(self._weight(module)), self._bias(module), stride, padding, (1, 1), 1, shape)
        return self.add(op, (at,), op.out_shape)

    def relu(self, at: int) -> int:
        return self.add(Relu(), (at,), self.nodes[at].shape)

    def flat(self, at: int) -> int:
        shape = self.nodes[at].shape
        return self.add(Reshape(shape, (math.prod(shape),)), (at,), (math.prod(shape),))

    def built(self) -> tuple[Graph, ParameterStore]:
        """The graph, and the store that holds its weights on this rank."""
        graph = Graph(tuple(self.nodes), len(self.nodes) - 1)
        if not self._starts_on_host:
            return graph, self.store
        own = local_store(self.context)
        return tensor_parallel(graph, self.context, own), own


def mlp(
    context: DistributedContext,
    hidden: int,
    depth: int,
    input_dim: int = 784,
    outputs: int = 10,
    seed: int = 42,
    folder: Path | None = None,
) -> tuple[Graph, ParameterStore]:
    """The nets of experiment 5, with the numbers of `benchmarks.networks.mlp`: one layer on the host at a time.

    ``folder``: the numbers are kept there, and mapped into memory.
    """
    widths = [input_dim, *(hidden for _ in range(depth)), outputs]
    layers = _drawn_layers(widths, seed) if folder is None else _kept_layers(context, widths, seed, folder)
    build = _Builder(context, (input_dim,))
    at = 0
    for number, layer in enumerate(layers):
        at = build.linear(at, layer)
        at = at if number == depth else build.relu(at)
    return build.built()


def _drawn_layers(widths: Sequence[int], seed: int) -> Iterator[nn.Linear]:
    torch.manual_seed(seed)
    for inputs, outputs in pairwise(widths):
        yield nn.Linear(inputs, outputs)


def _kept_layers(context: DistributedContext, widths: Sequence[int], seed: int, folder: Path) -> Iterator[nn.Linear]:
    def draw() -> Iterator[Tensor]:
        for layer in _drawn_layers(widths, seed):
            yield layer.weight
            yield layer.bias

    shapes = [shape for inputs, outputs in pairwise(widths) for shape in ((outputs, inputs), (outputs,))]
    path = folder / f"mlp_{seed}_{'x'.join(str(width) for width in widths)}.bin"
    values = drawn.mapped(context, path, shapes, draw)
    for weight, bias in zip(values[::2], values[1::2], strict=True):
        layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        layer.bias = nn.Parameter(bias, requires_grad=False)
        yield layer


def mlp_bytes(hidden: int, depth: int, input_dim: int = 784, outputs: int = 10) -> int:
    """Bytes of its weight matrices in float32."""
    return 4 * hidden * (input_dim + (depth - 1) * hidden + outputs)


def wide(context: DistributedContext, first: nn.Linear, last: nn.Linear) -> tuple[Graph, ParameterStore]:
    """Two layers with a ReLU between them; their weights may be mapped from a file."""
    build = _Builder(context, (first.in_features,))
    build.linear(build.relu(build.linear(0, first)), last)
    return build.built()


def resnet(context: DistributedContext, width: int, classes: int = 100) -> tuple[Graph, ParameterStore, nn.Module]:
    """`benchmarks.networks.resnet`, without torch's exporter; the module itself stays on the host."""
    module = networks.resnet(width, classes)
    build = _Builder(context, (3, 32, 32))
    at = 0
    for layer in module.children():
        if isinstance(layer, nn.Conv2d):
            at = build.conv(at, layer)
        elif isinstance(layer, nn.Linear):
            at = build.linear(at, layer)
        elif isinstance(layer, nn.ReLU):
            at = build.relu(at)
        elif isinstance(layer, nn.Flatten):
            at = build.flat(at)
        else:
            at = _residual_block(build, at, layer)
    graph, store = build.built()
    return graph, store, module


def _residual_block(build: _Builder, at: int, block: nn.Module) -> int:
    first, second, shortcut = block.first, block.second, block.shortcut
    assert isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d)
    branch = build.conv(build.relu(build.conv(at, first)), second)
    side = build.conv(at, shortcut) if isinstance(shortcut, nn.Conv2d) else at
    return build.relu(build.add(Add(), (branch, side), build.nodes[branch].shape))

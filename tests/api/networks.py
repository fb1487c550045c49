"""Random torch modules that bring a hand-built graph over their own parameters.

The module's forward is torch's own code, so it is an independent account of what the graph must bound; and no exporter
runs, so a test can make hundreds of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.activation import Relu
from auto_LiRPA.operators.arithmetic import Add, Affine
from auto_LiRPA.operators.conv import Conv
from auto_LiRPA.operators.linear import Linear
from auto_LiRPA.operators.shape import Reshape
from tests.nets import Builder


class Scale(nn.Module):
    """``(x - shift) * factor``, the usual normalisation in front of a network."""

    def __init__(self, shift: float, factor: float) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(shift, dtype=torch.float64))
        self.register_buffer("factor", torch.tensor(factor, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.get_buffer("shift")) * self.get_buffer("factor")


class Residual(nn.Module):
    """``x + body(x)``."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Net(nn.Module):
    """Layers one after the other, and their graph (built anew when they were cast or moved)."""

    def __init__(self, input_shape: tuple[int, ...], layers: list[nn.Module], block_mib: float = 16.0) -> None:
        super().__init__()
        self.input_shape = input_shape
        self.layers = nn.Sequential(*layers)
        self._block_mib = block_mib
        self._built: tuple[tuple[object, ...], Graph] | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    @property
    def graph(self) -> Graph:
        places = tuple((t.dtype, t.device) for t in (*self.parameters(), *self.buffers()))
        if self._built is None or self._built[0] != places:
            build = Builder(self.input_shape, self._block_mib)
            append(build, self.layers, 0)
            self._built = (places, build.graph())
        return self._built[1]

    @property
    def n_out(self) -> int:
        return self.graph.nodes[self.graph.output].size


def append(build: Builder, layer: nn.Module, at: int) -> int:
    """Append a torch layer to a graph; returns its node."""
    shape = build.nodes[at].shape
    if isinstance(layer, nn.Sequential):
        for part in layer:
            at = append(build, part, at)
        return at
    if isinstance(layer, nn.Linear):
        bias = layer.bias
        return build.add(Linear(build.store.place(layer.weight), bias), (at,), (*shape[:-1], layer.out_features))
    if isinstance(layer, nn.Conv2d):
        assert isinstance(layer.padding, tuple)
        op = Conv(
            build.store.place(layer.weight),
            layer.bias,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
            shape,
        )
        return build.add(op, (at,), op.out_shape)
    if isinstance(layer, nn.ReLU):
        return build.add(Relu(), (at,), shape)
    if isinstance(layer, nn.LeakyReLU):
        return build.add(Relu(layer.negative_slope), (at,), shape)
    if isinstance(layer, nn.Flatten):
        return build.add(Reshape(shape, (build.nodes[at].size,)), (at,), (build.nodes[at].size,))
    if isinstance(layer, nn.Unflatten):
        size = tuple(int(n) for n in layer.unflattened_size)
        return build.add(Reshape(shape, size), (at,), size)
    if isinstance(layer, Scale):
        factor = layer.get_buffer("factor")
        return build.add(Affine(factor, -layer.get_buffer("shift") * factor), (at,), shape)
    if isinstance(layer, Residual):
        return build.add(Add(), (at, append(build, layer.body, at)), shape)
    raise AssertionError(f"no graph for {type(layer).__name__}")


def mlp(seed: int, block_mib: float = 16.0) -> Net:
    """Two to four dense layers, with a normalisation in front of every other one and a leaky ReLU now and then."""
    draw = _Draw(seed)
    sizes = [draw(2, 6), *(draw(3, 10) for _ in range(draw(1, 3))), draw(1, 4)]
    layers: list[nn.Module] = [Scale(0.3, 1.7)] if seed % 2 else []
    for i, (n_in, n_out) in enumerate(zip(sizes, sizes[1:], strict=False)):
        layers.append(nn.Linear(n_in, n_out, bias=draw(0, 3) > 0))
        if i + 2 < len(sizes):
            layers.append(nn.LeakyReLU(0.1) if draw(0, 4) == 0 else nn.ReLU())
    return _finished(Net((sizes[0],), layers, block_mib), seed)


def cnn(seed: int, block_mib: float = 16.0) -> Net:
    """One or two convolutions of any geometry, then one or two dense layers."""
    draw = _Draw(seed)
    shape = (draw(1, 2), draw(4, 6), draw(4, 6))
    layers: list[nn.Module] = [Scale(0.2, 0.9)] if seed % 3 == 0 else []
    channels = shape[0]
    for _ in range(draw(1, 2)):
        groups = channels if draw(0, 3) == 0 else 1
        out = groups * draw(1, 2)
        kernel, dilation, stride = draw(1, 3), draw(1, 2), draw(1, 2)
        padding = dilation * (kernel - 1) // 2 + draw(0, 1)  # so that no map is smaller than the next kernel
        conv = nn.Conv2d(channels, out, kernel, stride, padding, dilation, groups, bias=draw(0, 2) > 0)
        layers += [conv, nn.ReLU()]
        channels = out
    layers.append(nn.Flatten())
    with torch.no_grad():
        width = nn.Sequential(*layers).double()(torch.zeros(1, *shape, dtype=torch.float64)).shape[1]
    hidden = draw(3, 6)
    layers += [nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, draw(1, 3))]
    return _finished(Net(shape, layers, block_mib), seed)


def residual(seed: int, block_mib: float = 16.0) -> Net:
    """Dense residual blocks; every third net has one without a ReLU after its sum, and a linear branch."""
    draw = _Draw(seed)
    n_in, width = draw(2, 5), draw(3, 7)
    layers: list[nn.Module] = [nn.Linear(n_in, width), nn.ReLU()]
    for _ in range(draw(1, 2)):
        body = [nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)]
        layers += [Residual(*(body[:1] if draw(0, 2) == 0 else body))]
        if seed % 3:
            layers.append(nn.ReLU())
    layers.append(nn.Linear(width, draw(1, 3)))
    return _finished(Net((n_in,), layers, block_mib), seed)


KINDS: dict[str, Callable[..., Net]] = {"mlp": mlp, "cnn": cnn, "residual": residual}


class _Draw:
    """Whole numbers between two ends, both included."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=self._generator))


def _finished(net: Net, seed: int) -> Net:
    """Random weights, spread so that about half of the neurons of a wide input box are undecided."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            fan = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(1.5 * torch.randn(parameter.shape, generator=generator) / fan**0.5)
    return net.double()

"""Feed-forward networks of the verification literature: convolutions, then dense layers, ReLU between them.

Every network is one `nn.Sequential`, so that weights are called `0.weight`, `2.weight`, ... as in published files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, slots=True)
class ConvLayer:
    """A convolution with square kernel, followed by ReLU. ``before``: zeros added left, right, top, bottom."""

    channels: int
    kernel: int
    stride: int
    padding: int = 0
    before: tuple[int, int, int, int] | None = None


def conv_net(image: tuple[int, int], convs: Sequence[ConvLayer], dense: Sequence[int]) -> nn.Sequential:
    """Convolutions on an image of (channels, side), then dense layers of these widths; the last one is the output."""
    layers: list[nn.Module] = []
    channels, side = image
    for conv in convs:
        if conv.before is not None:
            layers.append(nn.ZeroPad2d(conv.before))
            side += conv.before[0] + conv.before[1]
        layers += [nn.Conv2d(channels, conv.channels, conv.kernel, conv.stride, conv.padding), nn.ReLU()]
        side = (side + 2 * conv.padding - conv.kernel) // conv.stride + 1
        channels = conv.channels
    return nn.Sequential(*layers, nn.Flatten(), *_dense(channels * side * side, dense))


def dense_net(inputs: int, widths: Sequence[int]) -> nn.Sequential:
    """Dense layers on a flattened input; the last width is the number of outputs."""
    return nn.Sequential(nn.Flatten(), *_dense(inputs, widths))


def _dense(inputs: int, widths: Sequence[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for number, width in enumerate(widths):
        layers.append(nn.Linear(inputs, width))
        if number + 1 < len(widths):
            layers.append(nn.ReLU())
        inputs = width
    return layers


MNIST, CIFAR = (1, 28), (3, 32)

# Dathathri et al., Enabling certification of verification-agnostic networks via memory-efficient semidefinite
# programming (2020): CNN-A (4x4 filters, stride 2, twice) and CNN-B (5x5, then 4x4).
CNN_A = (ConvLayer(16, 4, 2, 1), ConvLayer(32, 4, 2, 1))
CNN_B = (ConvLayer(32, 5, 2, before=(1, 2, 1, 2)), ConvLayer(128, 4, 2, 1))
# Bunel et al., Branch and bound for piecewise linear neural network verification (2020), and VNN-COMP's oval21.
OVAL_BASE = (ConvLayer(8, 4, 2, 1), ConvLayer(16, 4, 2, 1))
OVAL_WIDE = CNN_A
OVAL_DEEP = (ConvLayer(8, 4, 2, 1), ConvLayer(8, 3, 1, 1), ConvLayer(8, 3, 1, 1), ConvLayer(8, 4, 2, 1))
# Singh et al., An abstract domain for certifying neural networks (2019): ConvSmall, ConvBig.
ERAN_SMALL = (ConvLayer(16, 4, 2), ConvLayer(32, 4, 2))
ERAN_BIG = (ConvLayer(32, 3, 1, 1), ConvLayer(32, 4, 2, 1), ConvLayer(64, 3, 1, 1), ConvLayer(64, 4, 2, 1))

"""Residual networks: those of VNN-COMP's cifar10_resnet, ResNet-18 for small images, and Wong and Kolter's."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where shapes change."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=not norm)
        self.bn1 = nn.BatchNorm2d(outputs) if norm else nn.Identity()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=not norm)
        self.bn2 = nn.BatchNorm2d(outputs) if norm else nn.Identity()
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            parts: list[nn.Module] = [nn.Conv2d(inputs, outputs, 1, stride, bias=not norm)]
            self.shortcut = nn.Sequential(*parts, *([nn.BatchNorm2d(outputs)] if norm else []))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


def blocks(inputs: int, outputs: int, count: int, stride: int, norm: bool) -> nn.Sequential:
    """``count`` blocks; the first one has the stride."""
    parts = [Block(inputs if i == 0 else outputs, outputs, stride if i == 0 else 1, norm) for i in range(count)]
    return nn.Sequential(*parts)


class SmallResNet(nn.Module):
    """A first convolution and stages of blocks, each with stride 2, then two dense layers; no batch norm.

    VNN-COMP 2021's cifar10_resnet: 2b has 6.2 thousand neurons and 112 thousand weights, 4b 14.4 and 123.
    """

    def __init__(self, planes: int, stages: Sequence[int], num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, planes, 3, 2, 1)
        self._names = [f"layer{number}" for number in range(1, len(stages) + 1)]
        inputs, side = planes, 16
        for name, count in zip(self._names, stages, strict=True):
            self.add_module(name, blocks(inputs, 2 * planes, count, 2, norm=False))
            inputs, side = 2 * planes, side // 2
        self.linear1 = nn.Linear(inputs * side * side, 100)
        self.linear2 = nn.Linear(100, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        for name in self._names:
            x = self.get_submodule(name)(x)
        return self.linear2(F.relu(self.linear1(x.flatten(1))))


class ResNet18(nn.Module):
    """He et al. (2015) for 32x32 images: 3x3 stem, four stages of two blocks, average pooling, one dense layer."""

    def __init__(self, in_planes: int = 64, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, in_planes, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(in_planes)
        widths = [in_planes, in_planes, 2 * in_planes, 4 * in_planes, 8 * in_planes]
        self.layer1 = blocks(widths[0], widths[1], 2, 1, norm=True)
        self.layer2 = blocks(widths[1], widths[2], 2, 2, norm=True)
        self.layer3 = blocks(widths[2], widths[3], 2, 2, norm=True)
        self.layer4 = blocks(widths[3], widths[4], 2, 2, norm=True)
        self.linear = nn.Linear(widths[4], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(F.avg_pool2d(x, 4).flatten(1))


class Dense(nn.Module):
    """A sum of modules, each applied to the value so many steps back; its weights are called ``Ws.0``, ``Ws.1``."""

    def __init__(self, *branches: nn.Module | None) -> None:
        super().__init__()
        self.Ws = nn.ModuleList([branch if branch is not None else nn.Identity() for branch in branches])
        self.used = tuple(branch is not None for branch in branches)

    def forward(self, *values: Tensor) -> Tensor:
        """``values``: the last one, the one before, ..."""
        parts = [w(x) for w, x, used in zip(self.Ws, values, self.used, strict=False) if used]
        return sum(parts[1:], parts[0])


class WithSkips(nn.Sequential):
    """A sequence whose `Dense` parts also see earlier values."""

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for part in self:
            values.append(part(*reversed(values)) if isinstance(part, Dense) else part(values[-1]))
        return values[-1]


def model_resnet(in_ch: int = 3, in_dim: int = 32, width: int = 1, mult: int = 16, N: int = 1) -> nn.Module:
    """The residual network of Wong et al., Scaling provable adversarial defenses (2018)."""

    def stage(inputs: int, outputs: int, down: bool) -> list[nn.Module]:
        first, stride, skip = (4, 2, 2) if down else (3, 1, 1)
        return [
            Dense(nn.Conv2d(inputs, outputs, first, stride, 1)),
            nn.ReLU(),
            # the previous value, none, and the value before this stage: its skip
            Dense(nn.Conv2d(outputs, outputs, 3, 1, 1), None, nn.Conv2d(inputs, outputs, skip, stride, 0)),
            nn.ReLU(),
        ]

    layers: list[nn.Module] = [nn.Conv2d(in_ch, mult, 3, 1, 3 if in_dim == 28 else 1), nn.ReLU()]
    layers += stage(mult, mult * width, down=False)
    for _ in range(N - 1):
        layers += stage(mult * width, mult * width, down=False)
    layers += stage(mult * width, 2 * mult * width, down=True) + stage(2 * mult * width, 4 * mult * width, down=True)
    side = (in_dim + 4 if in_dim == 28 else in_dim) // 4
    features = 4 * mult * width * side * side
    layers += [nn.Flatten(), nn.Linear(features, 1000), nn.ReLU(), nn.Linear(1000, 10)]
    return WithSkips(*layers)



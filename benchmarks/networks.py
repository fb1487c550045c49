"""Networks for the benchmarks, as torch modules with fixed seeds."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def mlp(hidden: int, depth: int, seed: int = 42) -> nn.Module:
    """784 - hidden x depth - 10 with ReLUs between (the nets of the paper's experiment 5)."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(784, hidden), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [nn.Linear(hidden, hidden), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, 10)).eval()


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut (1x1 where the shape changes)."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(n_in, n_out, 3, stride, 1)
        self.second = nn.Conv2d(n_out, n_out, 3, 1, 1)
        self.shortcut = nn.Conv2d(n_in, n_out, 1, stride) if stride > 1 or n_in != n_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


def resnet(width: int = 32, classes: int = 100, seed: int = 0) -> nn.Module:
    """CIFAR-sized residual net: a stem, 8 blocks in 4 stages and two linear layers; 3.87 M parameters at width 32."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1), nn.ReLU()]
    n_in = width
    for stage in range(4):
        n_out = width * 2**stage
        layers += [_Block(n_in, n_out, 1 if stage == 0 else 2), _Block(n_out, n_out, 1)]
        n_in = n_out
    layers += [nn.Flatten(), nn.Linear(n_in * 16, 8 * width), nn.ReLU(), nn.Linear(8 * width, classes)]
    return nn.Sequential(*layers).eval()

"""The multi-layer perceptrons of experiments 2 to 5, for the configurations in this folder."""

from __future__ import annotations

import torch
from torch import nn


def mlp(hidden: int, depth: int, seed: int = 42) -> nn.Module:
    """784 - hidden x depth - 10, a ReLU after every hidden layer, weights as torch draws them after a fixed seed."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(784, hidden), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [nn.Linear(hidden, hidden), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, 10)).eval()

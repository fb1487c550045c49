"""The network and the inputs of experiment 1, for its configuration.

The first weight is drawn block by block, so that nobody has to hold it. Weights are uniform, within 1 / sqrt(inputs of
the layer) as torch draws them for a linear layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SEED = 42
DRAWN_ROWS = 1024  # neurons that are drawn at a time, each time from a generator of their own
AT_ONCE = 8  # such runs: a generator's numbers follow from each other, so that one thread draws each


def rows(hidden: int, inputs: int, seed: int = SEED) -> Iterator[Tensor]:
    """The first weight ``[hidden, inputs]`` in runs of rows."""

    def drawn(start: int) -> Tensor:
        gen = torch.Generator().manual_seed(1_000_003 * seed + start // DRAWN_ROWS)
        return torch.rand(min(DRAWN_ROWS, hidden - start), inputs, generator=gen)

    starts = range(0, hidden, DRAWN_ROWS)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for first in range(0, len(starts), AT_ONCE):
            for run in pool.map(drawn, starts[first : first + AT_ONCE]):
                yield _spread(run, inputs)


def small(hidden: int, inputs: int, seed: int = SEED) -> tuple[Tensor, Tensor, Tensor]:
    """The first bias ``[hidden]``, the last weight ``[1, hidden]`` and the last bias ``[1]``."""
    gen = torch.Generator().manual_seed(seed)
    first = _uniform((hidden,), inputs, gen)
    return first, _uniform((1, hidden), hidden, gen), _uniform((1,), hidden, gen)


def inputs(count: int, size: int, seed: int = 1) -> Tensor:
    """Points ``[count, size]`` of [0, 1]."""
    return torch.rand(count, size, generator=torch.Generator().manual_seed(seed))


def network(hidden: int, size: int) -> nn.Module:
    """size - ReLU(hidden) - 1 as a module, which holds all of it."""
    first, last = nn.Linear(size, hidden, device="meta"), nn.Linear(hidden, 1, device="meta")
    bias, weight, end = small(hidden, size)
    first.weight, first.bias = _fixed(torch.cat(list(rows(hidden, size)))), _fixed(bias)
    last.weight, last.bias = _fixed(weight), _fixed(end)
    return nn.Sequential(first, nn.ReLU(), last).eval()


def question(hidden: int, size: int, count: int, eps: float, *paths: str) -> tuple[nn.Module, list[int], list[Any]]:
    """The network, and whether its output is positive in every box around ``count`` points (no file is read)."""
    clause = (np.ones((1, 1)), np.zeros(1))  # y <= 0 would be a counterexample
    boxes = [np.stack([x - eps, x + eps], axis=1) for x in inputs(count, size).double().numpy()]
    return network(hidden, size), [-1, size], [(box, [clause]) for box in boxes]


def _uniform(shape: tuple[int, ...], fan_in: int, gen: torch.Generator) -> Tensor:
    return _spread(torch.rand(*shape, generator=gen), fan_in)


def _spread(shares: Tensor, fan_in: int) -> Tensor:
    return (2 * shares - 1) / math.sqrt(fan_in)


def _fixed(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)

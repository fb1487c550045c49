"""Random inputs of a brancher, a table of margins for its children, and inputs that have no values to wait for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from complete_verifier.branching.brancher import BranchInput
from complete_verifier.branching.columns import Columns


def random_columns(gen: torch.Generator, widths: list[int], dtype: torch.dtype, leak: bool = False) -> Columns:
    """Constants of layers of the given widths."""
    width, ends = sum(widths), torch.tensor(widths).cumsum(0).tolist()
    return Columns(
        bias=torch.randn(width, generator=gen, dtype=dtype),
        layer=torch.arange(len(widths)).repeat_interleave(torch.tensor(widths)),
        spans=tuple(zip([0, *ends[:-1]], ends, strict=True)),
        leak=torch.rand(width, generator=gen, dtype=dtype) if leak else None,
    )


def random_input(gen: torch.Generator, count: int, width: int, dtype: torch.dtype) -> BranchInput:
    """Domains with ties, zeros, small and large coefficients, stable and split neurons, now and then a leaf."""
    scale = 10.0 ** torch.randint(-6, 2, (count, 1), generator=gen)
    coef = (torch.randn(count, width, generator=gen).mul(2).round() / 2 * scale).to(dtype)
    lower = -torch.rand(1, width, generator=gen, dtype=dtype) + 0.2
    upper = torch.rand(1, width, generator=gen, dtype=dtype) - 0.1
    sign = torch.randint(-2, 3, (count, width), generator=gen).clamp(-1, 1)
    sign = torch.where(torch.rand(count, width, generator=gen) < 0.6, 0, sign)
    if count > 2:
        sign[1] = 1
        coef[2] = 0
    ids = torch.randint(0, 2**40, (count,), generator=gen)
    upper = torch.maximum(upper, lower)
    return BranchInput(
        coef,
        lower.expand(count, width),
        upper.expand(count, width),
        sign.to(torch.int8),
        ids,
        (sign != 0).sum(1),
    )


class Children:
    """Margins of both children of every neuron ``[2, D, U]``; notes what was asked for."""

    def __init__(self, margins: Tensor) -> None:
        self.margins = margins
        self.asked: list[tuple[Tensor, Tensor]] = []

    def __call__(self, parent: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        self.asked.append((parent, column))
        return self.margins[0, parent, column], self.margins[1, parent, column]


def random_children(gen: torch.Generator, known: BranchInput, broken: bool = False) -> Children:
    """Margins with ties; with ``broken`` some that are NaN or infinite."""
    margins = torch.randn(2, *known.sign.shape, generator=gen).mul(4).round().to(known.coef) / 4
    if broken:
        for value in (torch.nan, torch.inf, -torch.inf):
            margins[torch.rand(margins.shape, generator=gen) < 0.15] = value
    return Children(margins)


def without_values(known: BranchInput, columns: Columns) -> tuple[BranchInput, Columns]:
    """The same on the device `meta`, whose tensors have shapes but no values: whatever would wait for one fails."""
    shapes = BranchInput(*(getattr(known, name).to("meta") for name in BranchInput.__slots__))
    leak = None if columns.leak is None else columns.leak.to("meta")
    return shapes, Columns(columns.bias.to("meta"), columns.layer.to("meta"), columns.spans, leak)


Reduction = Callable[[float, float], float]
REDUCTIONS: dict[str, Reduction] = {
    "min": min,
    "max": max,
    "mean": lambda a, b: (a + b) / 2,
    "auto": min,
}

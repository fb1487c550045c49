"""Batches whose content tells which sub-problem each row belongs to, of every dtype and of width 0 too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Toy:
    """As a search's domains are: tensors with a leading axis."""

    id: Tensor
    sign: Tensor
    value: Tensor
    lower: Tensor
    box: Tensor
    slopes: Tensor

    def __len__(self) -> int:
        return len(self.id)

    def tensors(self) -> tuple[Tensor, ...]:
        return self.id, self.sign, self.value, self.lower, self.box, self.slopes

    def rebuild(self, tensors: tuple[Tensor, ...]) -> Toy:
        return Toy(*tensors)


def toy(ids: Sequence[int], device: torch.device | str = "cpu", width: int = 3) -> Toy:
    """The batch of these ids: equal ids, equal rows."""
    number = torch.tensor(list(ids), dtype=torch.int64, device=device)
    column = torch.arange(width, device=device)
    return Toy(
        id=number,
        sign=((number.unsqueeze(1) + column) % 3 - 1).to(torch.int8),
        value=((number.unsqueeze(1) * 7 + column) % 1000).to(torch.float16) / 8,
        lower=number * -0.5,
        box=torch.empty(len(number), 0, device=device),
        slopes=(number.reshape(-1, 1, 1, 1) * 0.25 + torch.arange(4, device=device).reshape(1, 1, 2, 2)).double(),
    )


def assert_same(ours: Toy, theirs: Toy) -> None:
    """Bit for bit, dtypes too."""
    for mine, other in zip(ours.tensors(), theirs.tensors(), strict=True):
        assert mine.dtype == other.dtype and mine.device == other.device
        assert torch.equal(mine, other)

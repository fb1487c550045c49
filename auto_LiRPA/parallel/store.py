"""Where weights live: operators ask a store for blocks and multiply by one block at a time (DESIGN 2.3).

A block is a run of rows of the weight's first axis, chosen from the shape, the dtype and `block_mib` alone, so every
store cuts a weight the same way and sums over blocks run in the same order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

MIB = 2**20

# A product summed over blocks of fewer rows than this loses speed (H100, fp32, 8192 wide: 43 TFLOP/s at 512 rows, 48 at
# 1024, 52 undivided), so a block may be up to twice `block_mib` to reach it.
FULL_RATE_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Block:
    """Rows ``start:stop`` of a weight's first axis."""

    start: int
    stop: int
    data: Tensor


class Weight(ABC):
    """Handle of one large parameter: its shape is known everywhere, its blocks are fetched on use."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @abstractmethod
    def blocks(self) -> Iterator[Block]:
        """The blocks in order. A block may be used until the next one is asked for, and must not be kept."""

    @property
    def requires_grad(self) -> bool:
        """True if gradients have to reach the parameter behind this handle."""
        return False

    @property
    def numel(self) -> int:
        """Number of elements of the whole parameter."""
        return int(torch.Size(self.shape).numel())


class ParameterStore(ABC):
    """Places parameters and hands out their handles."""

    def __init__(self, block_mib: float) -> None:
        self.block_mib = block_mib

    @abstractmethod
    def place(self, tensor: Tensor) -> Weight:
        """Take a parameter in. What the store keeps of it is the store's business."""

    @abstractmethod
    def weight_bytes(self) -> int:
        """Bytes of the storages that this rank keeps for weights, each storage counted once."""

    def rows_per_block(self, shape: tuple[int, ...], itemsize: int) -> int:
        """Rows of the first axis in one block: a function of shape, dtype and `block_mib` only."""
        row_bytes = itemsize * max(1, int(torch.Size(shape[1:]).numel()))
        rows = max(1, int(self.block_mib * MIB) // row_bytes)
        if rows < FULL_RATE_ROWS:
            rows = min(2 * rows, FULL_RATE_ROWS)
        # Whole groups of 8 rows keep every block's start aligned for vector loads.
        return min(shape[0], max(8, rows - rows % 8))


class LocalWeight(Weight):
    """All blocks on this device, as views of one tensor: shared with the module that owns it, never copied."""

    def __init__(self, tensor: Tensor, rows_per_block: int) -> None:
        self.tensor = tensor
        self.shape = tuple(tensor.shape)
        self.dtype = tensor.dtype
        self._rows = rows_per_block

    @property
    def requires_grad(self) -> bool:
        return self.tensor.requires_grad

    def blocks(self) -> Iterator[Block]:
        n = self.shape[0]
        for start in range(0, n, self._rows):
            stop = min(start + self._rows, n)
            yield Block(start, stop, self.tensor[start:stop])


class LocalStore(ParameterStore):
    """Mode `single`: everything on one device."""

    def __init__(self, block_mib: float = 16.0) -> None:
        super().__init__(block_mib)
        self._weights: list[LocalWeight] = []

    def place(self, tensor: Tensor) -> Weight:
        weight = LocalWeight(tensor, self.rows_per_block(tuple(tensor.shape), tensor.element_size()))
        self._weights.append(weight)
        return weight

    def weight_bytes(self) -> int:
        storages = {w.tensor.untyped_storage().data_ptr(): w.tensor.untyped_storage().nbytes() for w in self._weights}
        return sum(storages.values())

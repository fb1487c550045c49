"""Where weights live: operators ask a store for blocks and multiply by one block at a time (DESIGN 2.3).

A block is a run of rows of the weight's first axis, chosen from the shape, the dtype and `block_mib` alone, so every
store cuts a weight the same way and sums over blocks run in the same order.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

MIB = 2**20

# A product summed over blocks of fewer rows than this loses speed (H100, fp32, 8192 wide: 43 TFLOP/s at 512 rows, 48 at
# 1024, 52 undivided), so a block may be up to twice `block_mib` to reach it.
FULL_RATE_ROWS = 1024
# Blocks begin at whole multiples of so many bytes: kernels, and with them the last bits, are chosen by alignment too.
ALIGNMENT = {"cuda": 256}
HOST_ALIGNMENT = 64  # of the CPU's allocator, and what its matrix products ask for
# A weight smaller than this share of a block is kept whole by every rank: sending it takes longer than using it.
SMALL_SHARE = 256

Check = Callable[[Tensor], None]


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
    device: torch.device  # where its blocks appear

    @abstractmethod
    def blocks(self) -> Iterator[Block]:
        """The blocks in order. A block may be used until the next one is asked for, and must not be kept."""

    def blocks_where(self, needed: Callable[[int, int], bool]) -> Iterator[Block]:
        """Of the blocks those whose rows ``start, stop`` are ``needed`` here.

        Where a fetch is a collective all blocks are fetched: other ranks may need others.
        """
        return (block for block in self.blocks() if needed(block.start, block.stop))

    @property
    def requires_grad(self) -> bool:
        """True if gradients have to reach the parameter behind this handle."""
        return False

    @property
    def capturable(self) -> bool:
        """Whether a CUDA graph may hold multiplications by its blocks: they stay where they are."""
        return False

    @property
    def recordable(self) -> bool:
        """Whether a recorded pass may fetch its blocks: no other rank has to take part."""
        return False

    @property
    def numel(self) -> int:
        """Number of elements of the whole parameter."""
        return int(torch.Size(self.shape).numel())


class ParameterStore(ABC):
    """Places parameters and hands out their handles.

    ``shares``: what is placed stays the owner's, whose later changes are seen; else the numbers are copied.
    """

    shares: bool = False
    takes_constants: bool = True  # large ones that are no weights, too
    device: torch.device | None = None  # where blocks appear; None: where the parameters are

    def __init__(self, block_mib: float) -> None:
        self.block_mib = block_mib

    @abstractmethod
    def place(self, tensor: Tensor) -> Weight:
        """Take a parameter in. What the store keeps of it is the store's business."""

    @abstractmethod
    def load(self, source: Tensor, dtype: torch.dtype, device: torch.device, check: Check) -> Weight:
        """Take in numbers that lie elsewhere (a mapped file, a module on the host), as ``dtype``; always copied.

        Args:
            check: called with all that is read, piece by piece; refuses by raising a `UserError`.
        """

    def agree(self) -> None:
        """After the last `load` of a network: where each rank reads its own part, one that refuses ends it for all.

        Raises:
            UserError: what some rank's ``check`` said.
        """
        return None

    @abstractmethod
    def weight_bytes(self) -> int:
        """Bytes of the storages that this rank keeps for weights, each storage counted once."""

    def rows_per_block(self, shape: tuple[int, ...], itemsize: int) -> int:
        """Rows of the first axis in one block: a function of shape, dtype and `block_mib` only."""
        row_bytes = itemsize * max(1, int(torch.Size(shape[1:]).numel()))
        rows = max(1, int(self.block_mib * MIB) // row_bytes)
        if rows < FULL_RATE_ROWS:
            rows = min(2 * rows, FULL_RATE_ROWS)
        # With whole groups of 64 rows every block of a contiguous weight is aligned as it lies.
        group = 64 if rows >= 128 else 8
        return min(shape[0], max(8, rows - rows % group))

    def cuts(self, shape: tuple[int, ...], itemsize: int) -> Iterator[tuple[int, int]]:
        """First row and end of each block."""
        rows = self.rows_per_block(shape, itemsize)
        return ((start, min(start + rows, shape[0])) for start in range(0, shape[0], rows))

    def is_small(self, shape: tuple[int, ...], itemsize: int) -> bool:
        """Whether a weight is not worth being cut up."""
        return int(torch.Size(shape).numel()) * itemsize * SMALL_SHARE <= self.block_mib * MIB


class LocalWeight(Weight):
    """All blocks on this device: views of one tensor, which is shared with the module that owns it, never copied.

    A block that is not contiguous there (a transposed parameter), or begins at an odd address, is copied on use, so
    that it has the form that it has in every other store.
    """

    def __init__(self, tensor: Tensor, rows_per_block: int) -> None:
        self.tensor = tensor
        self.shape = tuple(tensor.shape)
        self.dtype, self.device = tensor.dtype, tensor.device
        self._rows = rows_per_block
        self._contiguous = tensor.is_contiguous()
        self._row_bytes = tensor.element_size() * max(1, math.prod(self.shape[1:]))
        step = ALIGNMENT.get(tensor.device.type, HOST_ALIGNMENT)
        self._step, self._offset = step, 0 if tensor.is_meta else tensor.data_ptr() % step

    @property
    def requires_grad(self) -> bool:
        return self.tensor.requires_grad

    @property
    def capturable(self) -> bool:
        return True

    @property
    def recordable(self) -> bool:
        return True

    def blocks(self) -> Iterator[Block]:
        n = self.shape[0]
        for start in range(0, n, self._rows):
            stop = min(start + self._rows, n)
            data = self.tensor[start:stop]
            if not self._contiguous or (self._offset + start * self._row_bytes) % self._step:
                data = data.clone(memory_format=torch.contiguous_format)
            yield Block(start, stop, data)


class LocalStore(ParameterStore):
    """Mode `single`: everything on one device."""

    shares = True

    def __init__(self, block_mib: float = 16.0) -> None:
        super().__init__(block_mib)
        self._weights: list[LocalWeight] = []

    def place(self, tensor: Tensor) -> Weight:
        weight = LocalWeight(tensor, self.rows_per_block(tuple(tensor.shape), tensor.element_size()))
        self._weights.append(weight)
        return weight

    def load(self, source: Tensor, dtype: torch.dtype, device: torch.device, check: Check) -> Weight:
        own = as_own(source, dtype, device)
        check(own)
        return self.place(own)

    def weight_bytes(self) -> int:
        storages = {w.tensor.untyped_storage().data_ptr(): w.tensor.untyped_storage().nbytes() for w in self._weights}
        return sum(storages.values())


def as_own(source: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A contiguous copy with a storage of its own (a `contiguous` view would keep the whole storage alive)."""
    return torch.empty(source.shape, dtype=dtype, device=device).copy_(source.detach())


def rows_of(source: Tensor, start: int, stop: int) -> Tensor:
    """Rows of a tensor that may be stored by columns: read in long runs there, so that copying them is fast."""
    rows = source[start:stop]
    if rows.dim() == 2 and rows.stride(0) == 1 and rows.stride(1) > 1:
        return rows.t().contiguous().t()
    return rows


def accepted(numbers: Tensor) -> None:
    """The check of numbers that come from a place where they have been checked."""

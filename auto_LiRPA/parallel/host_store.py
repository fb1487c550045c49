"""Mode `offload`: blocks lie in the host's memory, pinned where there is a GPU, and are copied in for use."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from auto_LiRPA.parallel.block_buffers import BlockBuffers, FetchedWeight, Part
from auto_LiRPA.parallel.counters import Counters
from auto_LiRPA.parallel.store import Check, LocalWeight, ParameterStore, Weight, accepted, as_own, rows_of


@dataclass(frozen=True, slots=True)
class HostPart(Part):
    """One block in host memory; see `block_buffers.Part`."""

    data: Tensor
    counters: Counters

    def fetch(self, buffer: Tensor) -> None:
        """Copy the block in. From pinned memory the host does not wait for it."""
        with self.counters.fetch("from host", self.bytes, self.device):
            buffer.copy_(self.data.view(-1).view(torch.uint8), non_blocking=True)


class HostStore(ParameterStore):
    """Each block is one piece of host memory: pinning rounds sizes up to powers of two, and so wastes little."""

    def __init__(
        self, block_mib: float, buffers: BlockBuffers, device: torch.device, counters: Counters, prefetch: bool = True
    ) -> None:
        super().__init__(block_mib)
        self.device: torch.device = device
        self._buffers, self._counters, self._prefetch = buffers, counters, prefetch
        self._kept: list[Tensor] = []

    def place(self, tensor: Tensor) -> Weight:
        return self.load(tensor, tensor.dtype, self.device, accepted)

    def load(self, source: Tensor, dtype: torch.dtype, device: torch.device, check: Check) -> Weight:
        shape, itemsize = tuple(source.shape), dtype.itemsize
        source = source.detach()
        if self.is_small(shape, itemsize):
            own = as_own(source, dtype, self.device)
            check(own)
            self._kept.append(own)
            return LocalWeight(own, self.rows_per_block(shape, itemsize))
        pinned = self.device.type == "cuda"
        parts = []
        for start, stop in self.cuts(shape, itemsize):
            data = torch.empty(stop - start, *shape[1:], dtype=dtype, pin_memory=pinned)
            data.copy_(rows_of(source, start, stop))
            check(data)
            self._kept.append(data)
            size = data.numel() * itemsize
            parts.append(HostPart(start, stop, tuple(data.shape), dtype, self.device, size, data, self._counters))
        return FetchedWeight(shape, tuple(parts), self._buffers, self._counters, self._prefetch)

    def weight_bytes(self) -> int:
        """Wherever they lie: nearly all of them in the host's memory."""
        return sum(kept.untyped_storage().nbytes() for kept in self._kept)

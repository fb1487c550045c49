"""Mode `offload`: blocks lie in the host's memory, pinned where there is a GPU, and are copied in for use.

The ranks of one host hold one copy together (`host_memory`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from auto_LiRPA.errors import ModelError, UserError
from auto_LiRPA.parallel.block_buffers import BlockBuffers, FetchedWeight, Part
from auto_LiRPA.parallel.counters import Counters
from auto_LiRPA.parallel.groups import Group, alone
from auto_LiRPA.parallel.host_memory import HostMemory
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
    """The ranks of ``group`` load the same weights in the same order, together: each fills a part of the host's copy.

    A rank that is alone, or whose host's memory cannot be shared, has each block in a piece of memory of its own:
    pinning rounds sizes up to powers of two, and so wastes little.
    """

    def __init__(
        self,
        block_mib: float,
        buffers: BlockBuffers,
        device: torch.device,
        counters: Counters,
        prefetch: bool = True,
        group: Group | None = None,
    ) -> None:
        """``group``: None: this rank alone."""
        super().__init__(block_mib)
        self.device: torch.device = device
        self._buffers, self._counters, self._prefetch = buffers, counters, prefetch
        self._group = alone(counters) if group is None else group
        self._shared = HostMemory(self._group, device)
        self._kept: list[Tensor] = []
        self._filled = 0  # bytes of the host's copy that this rank has filled
        self._refusal: str | None = None

    def place(self, tensor: Tensor) -> Weight:
        return self.load(tensor, tensor.dtype, self.device, accepted)

    def load(self, source: Tensor, dtype: torch.dtype, device: torch.device, check: Check) -> Weight:
        shape, itemsize = tuple(source.shape), dtype.itemsize
        source = source.detach()
        if self.is_small(shape, itemsize):
            own = as_own(source, dtype, self.device)
            self._checked(own, check)
            self._kept.append(own)
            return LocalWeight(own, self.rows_per_block(shape, itemsize))
        cuts = list(self.cuts(shape, itemsize))
        width = int(torch.Size(shape[1:]).numel()) * itemsize
        pieces = self._shared.pieces([(stop - start) * width for start, stop in cuts])
        parts = []
        for number, (start, stop) in enumerate(cuts):
            block, size = (stop - start, *shape[1:]), (stop - start) * width
            if pieces is None:
                data = torch.empty(block, dtype=dtype, pin_memory=self.device.type == "cuda")
                self._kept.append(data)
            else:
                data = pieces[number].memory.view(dtype).view(block)
                self._filled += size if pieces[number].own else 0
            if pieces is None or pieces[number].own:
                data.copy_(rows_of(source, start, stop))
                self._checked(data, check)
            parts.append(HostPart(start, stop, block, dtype, self.device, size, data, self._counters))
        if pieces is not None:
            self._shared.filled()
        return FetchedWeight(shape, tuple(parts), self._buffers, self._counters, self._prefetch)

    def agree(self) -> None:
        for line in self._group.objects(self._refusal):
            if line is not None:
                raise ModelError(line)

    def weight_bytes(self) -> int:
        """Wherever they lie: nearly all of them in the host's memory. Of what ranks share, each counts a part."""
        return self._filled + sum(kept.untyped_storage().nbytes() for kept in self._kept)

    def _checked(self, numbers: Tensor, check: Check) -> None:
        """Keeps a refusal for `agree` where other ranks, which see other numbers, must not wait for one that left."""
        try:
            check(numbers)
        except UserError as error:
            if self._group.size == 1:
                raise
            self._refusal = self._refusal or str(error)

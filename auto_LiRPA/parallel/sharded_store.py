"""Mode `fsdp`: each rank keeps 1/P of every block's bytes; a block is gathered just before its use (DESIGN 2.3)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from auto_LiRPA.errors import ModelError, UserError
from auto_LiRPA.parallel.block_buffers import BlockBuffers, FetchedWeight, Part
from auto_LiRPA.parallel.groups import WEIGHTS, Group
from auto_LiRPA.parallel.peer_memory import open_peers
from auto_LiRPA.parallel.store import Check, LocalWeight, ParameterStore, Weight, accepted, as_own, rows_of

_PART_BYTES = 16  # parts are whole multiples of this, so that each lies aligned in the gathered block


@dataclass(frozen=True, slots=True)
class ShardedPart(Part):
    """One block of which every rank keeps ``shard``, the same number of bytes; see `block_buffers.Part`."""

    shard: Tensor
    group: Group
    peers: tuple[Tensor, ...] | None = None  # all ranks' parts, where this rank's GPU can read them

    @property
    def together(self) -> bool:
        return self.peers is None and self.group.size > 1

    def fetch(self, buffer: Tensor) -> None:
        """Gather the block from all ranks, or copy what they keep of it from their memory."""
        if self.peers is None:
            self.group.gather_into(buffer, self.shard, kind=WEIGHTS)
            return
        with self.group.counters.fetch(WEIGHTS, self.bytes, self.device):
            for piece, peer in zip(buffer.view(self.dtype).chunk(self.group.size), self.peers, strict=True):
                piece.copy_(peer, non_blocking=True)


class ShardedStore(ParameterStore):
    """Every block is cut into P equal parts (the last ones padded), wherever its rows end."""

    def __init__(
        self,
        block_mib: float,
        group: Group,
        buffers: BlockBuffers,
        device: torch.device,
        prefetch: bool = True,
        reads_peers: bool = False,
    ) -> None:
        super().__init__(block_mib)
        self.device: torch.device = device
        self._reads_peers = reads_peers
        self._group, self._buffers, self._prefetch = group, buffers, prefetch
        self._kept: list[Tensor] = []
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
        group, unit = self._group, max(1, _PART_BYTES // itemsize)
        width = int(torch.Size(shape[1:]).numel())
        cuts = list(self.cuts(shape, itemsize))
        sizes = [-(-(stop - start) * width // (group.size * unit)) * unit for start, stop in cuts]
        kept = torch.zeros(sum(sizes), dtype=dtype, device=self.device)
        self._kept.append(kept)
        parts: list[ShardedPart] = []
        at = 0
        for (start, stop), size in zip(cuts, sizes, strict=True):
            shard = kept[at : at + size]
            at += size
            numbers = _slice(source[start:stop], group.rank * size, (group.rank + 1) * size)
            shard[: numbers.numel()].copy_(numbers)
            self._checked(shard, check)
            block = (stop - start, *shape[1:])
            gathered = group.size * size * itemsize
            parts.append(ShardedPart(start, stop, block, dtype, self.device, gathered, shard, group))
        peers = open_peers(group, kept) if self._reads_peers else None
        if peers is not None:
            at = 0
            for i, size in enumerate(sizes):
                parts[i] = replace(parts[i], peers=tuple(peer[at : at + size] for peer in peers))
                at += size
        return FetchedWeight(shape, tuple(parts), self._buffers, group.counters, self._prefetch)

    def agree(self) -> None:
        for line in self._group.objects(self._refusal):
            if line is not None:
                raise ModelError(line)

    def weight_bytes(self) -> int:
        return sum(kept.untyped_storage().nbytes() for kept in self._kept)

    def _checked(self, numbers: Tensor, check: Check) -> None:
        """Keeps a refusal for `agree`: the other ranks, which see other numbers, must not wait for one that left."""
        try:
            check(numbers)
        except UserError as error:
            self._refusal = self._refusal or str(error)


def _slice(rows: Tensor, first: int, last: int) -> Tensor:
    """Elements ``first:last`` of a block in row order; only the rows that they lie in are read."""
    width = max(1, rows[0].numel())
    last = min(last, rows.numel())
    if first >= last:
        return rows.new_empty(0)
    top = first // width
    taken = rows_of(rows, top, -(-last // width)).reshape(-1)
    return taken[first - top * width : last - top * width]

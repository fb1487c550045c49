"""Slots in memory: payload in slabs that are added, never copied, and filled again as soon as a slot is free.

A slot holds one row: the fields of a sub-problem side by side. Rows move whole, so that a pick of rows from tens of
slabs costs one launch a slab and not one for each of their fields.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from complete_verifier.bab.tiers.keys import UNUSED

SLAB_SLOTS = 4096
_FIRST_SLOTS = 256  # a small search does not pay for a large slab
_GROWTH = 8  # a tier of many slabs grows by an eighth, so that a pick touches tens of slabs and not thousands


def slots_held(count: int, slab_slots: int = SLAB_SLOTS) -> int:
    """Slots that memory is held for where so many are filled, and came a few at a time."""
    held = 0
    while held < count:
        held += _next_slab(held, slab_slots)
    return held


def _next_slab(held: int, slab_slots: int) -> int:
    if held >= _GROWTH * slab_slots:
        return held // _GROWTH // slab_slots * slab_slots
    return min(max(held, _FIRST_SLOTS), slab_slots)


@dataclass(slots=True)
class _Slab:
    """Some slots: rows ``[slots, words]`` of one piece of memory, and a stack of the free ones (``free[:count]``).

    ``fields``: views of the rows, by field.
    """

    start: int
    slots: int
    rows: Tensor
    fields: tuple[Tensor, ...]
    free: Tensor
    count: int


@dataclass(frozen=True, slots=True)
class Reserved:
    """Slots ``[N]`` that are no longer free: per slab its own slots and the rows that go there."""

    slots: Tensor
    parts: tuple[tuple[_Slab, Tensor, int, int], ...]  # slab, slots within it, first and last row


class Slabs:
    """One tier in memory. Slots are numbered over all slabs; how many are free is known on the host.

    ``like`` gives dtype and shape (behind the leading axis) of each field.
    """

    def __init__(
        self, like: Sequence[Tensor], device: torch.device, pinned: bool, budget: int, slab_slots: int = SLAB_SLOTS
    ) -> None:
        self._device, self._pinned, self._budget, self._slab_slots = device, pinned, budget, slab_slots
        self._kinds = tuple((t.dtype, tuple(t.shape[1:])) for t in like)
        self._row_bytes = [math.prod(shape) * dtype.itemsize for dtype, shape in self._kinds]
        # a slot begins where the widest number may begin
        word = max((dtype.itemsize for dtype, _ in self._kinds), default=1)
        self._word = {1: torch.uint8, 2: torch.int16, 4: torch.int32}.get(word, torch.int64)
        self.slot_bytes = max(1, -(-sum(self._row_bytes) // word)) * word
        self._slabs: list[_Slab] = []
        self._starts = torch.zeros(0, dtype=torch.int64, device=device)
        self.capacity = 0  # slots that memory is held for
        self.free = 0  # of these
        self.bytes = 0

    @property
    def room(self) -> int:
        """Rows that fit before the budget is used up."""
        return self.free + max(0, self._budget - self.bytes) // self.slot_bytes

    def stop_growing(self) -> None:
        """Be content with the memory that is held already."""
        self._budget = min(self._budget, self.bytes)

    def reserve(self, count: int) -> Reserved:
        """Slots for so many rows; no more than `room`."""
        while self.free < count:
            self._grow(count - self.free)
        parts: list[tuple[_Slab, Tensor, int, int]] = []
        slots: list[Tensor] = []
        done = 0
        for slab in sorted(self._slabs, key=lambda s: -s.count):
            take = min(slab.count, count - done)
            if take == 0:
                break
            slab.count -= take
            index = slab.free[slab.count : slab.count + take]
            parts.append((slab, index, done, done + take))
            slots.append(index + slab.start)
            done += take
        self.free -= count
        return Reserved(torch.cat(slots) if slots else self._starts.new_zeros(0), tuple(parts))

    def write(self, place: Reserved, rows: Sequence[Tensor]) -> None:
        """Fill reserved slots with rows on this tier's device."""
        if len(place.parts) == 1:
            slab, index, begin, end = place.parts[0]
            for field, row in zip(slab.fields, rows, strict=True):
                field.index_copy_(0, index, row[begin:end])
            return
        packed = self._rows(len(place.slots))
        for field, row in zip(self._views(packed), rows, strict=True):
            field.copy_(row)
        for slab, index, begin, end in place.parts:
            slab.rows.index_copy_(0, index, packed[begin:end])

    def remove(self, slots: Tensor) -> tuple[Tensor, ...]:
        """The rows of these slots, in this order; the slots are free then."""
        parts = self._by_slab(slots)
        rows = self._gather(parts, len(slots))
        for slab, index, _ in parts:
            slab.free[slab.count : slab.count + len(index)] = index
            slab.count += len(index)
        self.free += len(slots)
        return rows

    def pieces(self, rank: Tensor) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
        """The rows of each slab whose ``rank`` (by slot) is not `UNUSED`, with their slots."""
        for slab in self._slabs:
            used = (rank[slab.start : slab.start + slab.slots] != UNUSED).nonzero().squeeze(-1)
            if len(used):
                index = used.to(self._device)
                yield used + slab.start, tuple(field[index] for field in slab.fields)

    def close(self) -> None:
        """Give all memory back."""
        self._slabs.clear()
        self.capacity = self.free = self.bytes = 0

    def _gather(self, parts: Sequence[tuple[_Slab, Tensor, Tensor | None]], count: int) -> tuple[Tensor, ...]:
        if len(parts) == 1 and parts[0][2] is None:
            slab, index, _ = parts[0]
            if not self._pinned:
                return tuple(field[index] for field in slab.fields)
            out = self._empty(count)
            for target, field in zip(out, slab.fields, strict=True):
                torch.index_select(field, 0, index, out=target)
            return out
        packed, at = self._rows(count), 0
        for slab, index, _ in parts:
            torch.index_select(slab.rows, 0, index, out=packed[at : at + len(index)])
            at += len(index)
        out = self._empty(count)
        if parts:
            position = torch.cat([position for *_, position in parts if position is not None])
            packed = torch.empty_like(packed).index_copy_(0, position, packed)
        for target, field in zip(out, self._views(packed), strict=True):
            target.copy_(field)
        return out

    def _empty(self, count: int) -> tuple[Tensor, ...]:
        """Memory for so many rows, field by field."""
        return tuple(
            torch.empty(count, *shape, dtype=dtype, device=self._device, pin_memory=self._pinned)
            for dtype, shape in self._kinds
        )

    def _rows(self, count: int, pinned: bool = False) -> Tensor:
        """Memory for so many whole rows ``[count, words]``."""
        size = count * self.slot_bytes
        flat = torch.empty(size, dtype=torch.uint8, device=self._device, pin_memory=pinned)
        return flat.view(self._word).view(count, self.slot_bytes // self._word.itemsize)

    def _views(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The fields of whole rows. The widest numbers come first: every field is aligned then."""
        count, data = len(rows), rows.view(torch.uint8)
        fields: dict[int, Tensor] = {}
        at = 0
        for number in sorted(range(len(self._kinds)), key=lambda k: -self._kinds[k][0].itemsize):
            dtype, shape = self._kinds[number]
            size = self._row_bytes[number]
            fields[number] = data[:, at : at + size].view(dtype).view(count, *shape)
            at += size
        return tuple(fields[number] for number in range(len(self._kinds)))

    def _by_slab(self, slots: Tensor) -> list[tuple[_Slab, Tensor, Tensor | None]]:
        """For each slab concerned: slots within it and their places in ``slots`` (None: all, as they are)."""
        if len(slots) == 0:
            return []
        if len(self._slabs) == 1:
            return [(self._slabs[0], slots, None)]
        ordered, position = slots.sort()
        borders = torch.searchsorted(ordered, self._starts)
        edges = [*borders.tolist(), len(slots)]  # the one host sync of a pick
        local = ordered - self._starts[torch.searchsorted(self._starts, ordered, right=True) - 1]
        return [
            (slab, local[begin:end], position[begin:end])
            for slab, begin, end in zip(self._slabs, edges, edges[1:], strict=False)
            if end > begin
        ]

    def _grow(self, missing: int) -> None:
        """One more slab; those that exist stay where they are, so nothing is ever held twice."""
        wanted = _next_slab(self.capacity, self._slab_slots)
        affordable = max(0, self._budget - self.bytes) // self.slot_bytes
        assert affordable >= missing, "more rows than there is room for"
        slots = min(max(wanted, min(missing, self._slab_slots)), affordable)
        if self._pinned:  # pinned memory comes in powers of two: fill what is paid for
            whole = 1 << max(0, (slots * self.slot_bytes - 1).bit_length())
            slots = min(whole // self.slot_bytes, affordable) if whole <= self._budget - self.bytes else slots
        self._add(slots)

    def _add(self, slots: int) -> None:
        rows = self._rows(slots, self._pinned)
        free = torch.arange(slots - 1, -1, -1, device=self._device)
        self._slabs.append(_Slab(self.capacity, slots, rows, self._views(rows), free, slots))
        self._starts = torch.cat([self._starts, self._starts.new_full((1,), self.capacity)])
        self.capacity += slots
        self.free += slots
        self.bytes += slots * self.slot_bytes

"""Open domains: a struct of tensors in tiers. The order is a key, not a position, and the same for any budget.

Keys of all domains stay on the device; payload lies in device memory, then (pinned) host memory, then files. Where a
tier is full the last domains of the order go down, and while a round is bounded the next ones come up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from complete_verifier.bab.oom import is_out_of_memory
from complete_verifier.bab.tiers.budget import StoreBudget
from complete_verifier.bab.tiers.keys import Keys, KeyTable, Traversal, first, in_order, joined
from complete_verifier.bab.tiers.lane import Arriving, Lane, Rows
from complete_verifier.bab.tiers.runs import Runs
from complete_verifier.bab.tiers.slabs import SLAB_SLOTS, Reserved, Slabs

__all__ = ["Batch", "DomainStore", "StoreBudget", "StoreUse", "Traversal"]

_SLACK = 8  # a tier that is full gives up this share of its slots at once, so that it is not asked every round


class Batch(Protocol):
    """Sub-problems as tensors with a leading axis; ``id`` ``[D]`` int64 is unique over a search."""

    @property
    def id(self) -> Tensor: ...

    def __len__(self) -> int: ...

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors in a fixed order."""

    def rebuild(self, tensors: tuple[Tensor, ...]) -> Self:
        """Inverse of `tensors`."""


B = TypeVar("B", bound=Batch)


@dataclass(frozen=True, slots=True)
class StoreUse:
    """Bytes of payload that each tier holds memory (or files) for, and how many domains went down and came up."""

    device_bytes: int
    host_bytes: int
    disk_bytes: int
    moved_down: int
    moved_up: int


@dataclass(slots=True)
class _Level:
    """One tier: keys by slot on the device, payload, and how many domains it has (known on the host)."""

    keys: KeyTable
    payload: Slabs | Runs
    count: int = 0

    @property
    def room(self) -> int | None:
        """Rows that still fit; None: any number."""
        return self.payload.room if isinstance(self.payload, Slabs) else None


class DomainStore(Generic[B]):
    """Keeps open domains of the kind of ``like`` (dtypes and shapes; its content is not stored).

    Order: ``worst_first`` by margin (least first, NaN before all), ``depth_first`` newest first, ``breadth_first``
    oldest first; ties by id. Payload that comes in another dtype is stored in that of ``like``.
    """

    def __init__(
        self, like: B, traversal: Traversal, budget: StoreBudget | None = None, slab_slots: int = SLAB_SLOTS
    ) -> None:
        device = like.id.device
        budget = budget or StoreBudget.of(device)
        self._like, self._traversal, self._device = like, traversal, device
        kinds = like.tensors()
        self._dtypes = tuple(t.dtype for t in kinds)
        pinned = device.type == "cuda"
        host = torch.device("cpu")
        self._fast = Slabs(kinds, device, False, budget.device_bytes, slab_slots)
        self._host = Slabs(kinds, host, pinned, budget.host_bytes, slab_slots)
        self._disk = Runs(kinds, budget.folder, slab_slots)
        self._levels = [_Level(KeyTable(device), tier) for tier in (self._fast, self._host, self._disk)]
        self._lane = Lane(device)
        self._arriving: list[tuple[Reserved, Arriving]] = []
        self._count = self._down = self._up = 0

    def __len__(self) -> int:
        return self._count

    def add(self, domains: B, margin: Tensor) -> None:
        """Store domains with their distance from being proved ``[D]`` (negative: open)."""
        self._lane.join()
        rows = tuple(t.to(dtype) for t, dtype in zip(domains.tensors(), self._dtypes, strict=True))
        keys = Keys.of(self._traversal, domains.id, margin)
        self._place(0, rows, keys)
        self._count += len(domains)

    def take(self, count: int) -> B:
        """Remove and return the next ``count`` domains (or all, if there are fewer), first one first."""
        count = min(count, self._count)
        if count <= 0:
            return self._like.rebuild(tuple(t[:0].clone() for t in self._like.tensors()))
        self._lane.join()
        fast, everything = self._levels[0], self._count
        self._count -= count
        if fast.count == everything:
            return self._like.rebuild(self._remove(0, fast.keys.first(count)))
        # the round after this one is likely to want as many again: those that are far come up meanwhile
        level, slot = self._first(min(2 * count, everything))
        level_now, slot_now = level[:count].cpu(), slot[:count]
        rows = self._collect(level_now, slot_now)
        self._bring_up(level[count:].cpu(), slot[count:])
        return self._like.rebuild(rows)

    def peek(self, count: int) -> Keys:
        """Keys of the domains that ``take(count)`` would return, in that order. They stay where they are."""
        count = min(count, self._count)
        parts = [level.keys.pick(level.keys.first(min(count, level.count))) for level in self._levels if level.count]
        if count <= 0 or not parts:
            return Keys.of(self._traversal, self._like.id[:0], self._like.id[:0])
        keys = joined(parts)
        return keys if len(parts) == 1 else keys.pick(in_order(keys)[:count])

    def worst_margin(self) -> float:
        """The least margin of all open domains (+inf when there are none, NaN if one of them is)."""
        return self.worst_margin_later()()

    def worst_margin_later(self) -> Callable[[], float]:
        """`worst_margin` as it is now, for later: who reads it after a wait for the device waits for nothing more."""
        if not self._count:
            return lambda: float("inf")
        least = torch.stack([level.keys.least_margin() for level in self._levels]).amin()
        arriving = self._lane.to_host((least,))
        return lambda: float(arriving.wait()[0])

    def pieces(self) -> Iterator[tuple[B, Tensor]]:
        """All open domains with their margins ``[D]`` (float64), in host memory, some at a time and in no order.

        For checkpoints. The store must not change meanwhile.
        """
        self._lane.join()
        self._settle()
        for level in self._levels:
            if level.count:
                for slots, rows in level.payload.pieces(level.keys.rank):
                    margin = level.keys.pick(slots).margin.cpu()
                    yield self._like.rebuild(tuple(row.cpu() for row in rows)), margin

    def bytes(self) -> int:
        """Bytes of payload of the open domains, wherever they lie."""
        return self._count * self._fast.slot_bytes

    def use(self) -> StoreUse:
        """What the tiers hold."""
        return StoreUse(self._fast.bytes, self._host.bytes, self._disk.bytes, self._down, self._up)

    def close(self) -> None:
        """Give back memory and files; open domains are gone."""
        self._lane.join()
        self._settle()
        for level in self._levels:
            level.payload.close()
            level.keys, level.count = KeyTable(self._device), 0
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- down ------------------------------------------------------------------------------------------------------
    def _place(self, number: int, rows: Rows, keys: Keys) -> None:
        """Put rows (on the device for tier 0, else in host memory) into a tier, or further down what it cannot hold."""
        room = self._levels[number].room
        if room is not None and len(keys) > room:
            rows, keys = self._spill(number, rows, keys, len(keys) - room)
        count = len(keys)
        if count == 0:
            return
        level = self._levels[number]
        if isinstance(level.payload, Runs):
            slots = level.payload.put(rows, count)
        else:
            place = _reserved(level.payload, count)
            if place is None:
                self._place(number, rows, keys)
                return
            level.payload.write(place, rows)
            slots = place.slots
        self._note(number, slots, keys)

    def _note(self, number: int, slots: Tensor, keys: Keys) -> None:
        level = self._levels[number]
        level.keys.reserve(level.payload.capacity)
        level.keys.set(slots.to(self._device, non_blocking=True), keys)
        level.count += len(keys)

    def _spill(self, number: int, rows: Rows, keys: Keys, over: int) -> tuple[Rows, Keys]:
        """Move the last domains of the tier and the new ones together one tier down; returns the new ones that stay."""
        level = self._levels[number]
        total = level.count + len(keys)
        count = min(total, over + level.payload.capacity // _SLACK)
        slots = level.keys.last(min(count, level.count)) if level.count else keys.id.new_zeros(0)
        resident = len(slots)
        both = joined([level.keys.pick(slots), keys])
        chosen = first(~both.rank, ~both.id, count).cpu()  # the very last one first
        old, new = chosen[chosen < resident], chosen[chosen >= resident] - resident
        if len(old):
            old = old.to(self._device)
            leaving = level.keys.pick(slots[old])
            self._sink(number, self._remove(number, slots[old]), leaving)
        stays = torch.ones(len(keys), dtype=torch.bool)
        stays[new] = False
        stay = stays.nonzero().squeeze(-1)
        if len(new):
            self._sink(number, _picked(rows, new), keys.pick(new.to(self._device)))
            self._down += len(new)
            rows, keys = _picked(rows, stay), keys.pick(stay.to(self._device))
        self._down += len(old)
        return rows, keys

    def _sink(self, number: int, rows: Rows, keys: Keys) -> None:
        """Give rows of a tier to the one below it."""
        if number > 0 or self._device.type != "cuda":
            self._place(number + 1, rows, keys)
            return
        room = self._levels[1].room
        if room is None or len(keys) > room:
            self._settle()
            self._place(1, self._lane.to_host(rows).wait(), keys)
            return
        # the copy runs while the host goes on; the rows are put into their slots when somebody asks for them
        self._settle()
        place = _reserved(self._host, len(keys))
        if place is None:
            self._sink(number, rows, keys)
            return
        self._arriving.append((place, self._lane.to_host(rows)))
        self._note(1, place.slots, keys)

    def _settle(self) -> None:
        """Wait for rows that are on their way to the host."""
        for place, arriving in self._arriving:
            self._host.write(place, arriving.wait())
        self._arriving.clear()

    # -- up --------------------------------------------------------------------------------------------------------
    def _first(self, count: int) -> tuple[Tensor, Tensor]:
        """Tier and slot of the first domains over all tiers, in order: both ``[count]``, on the device."""
        slots, numbers, keys = [], [], []
        for number, level in enumerate(self._levels):
            if level.count:
                mine = level.keys.first(min(count, level.count))
                slots.append(mine)
                numbers.append(torch.full_like(mine, number))
                keys.append(level.keys.pick(mine))
        order = in_order(joined(keys))[:count]
        return torch.cat(numbers)[order], torch.cat(slots)[order]

    def _collect(self, level: Tensor, slot: Tensor) -> Rows:
        """Remove domains of several tiers: their rows on the device, in order."""
        out: Rows | None = None
        for number in range(len(self._levels)):
            position = (level == number).nonzero().squeeze(-1)
            if len(position) == 0:
                continue
            position = position.to(self._device)
            rows = self._lane.to_device(self._remove(number, slot[position]))
            if len(position) == len(level):
                return rows
            if out is None:
                out = tuple(t.new_empty(len(level), *t.shape[1:]) for t in rows)
            for target, row in zip(out, rows, strict=True):
                target.index_copy_(0, position, row)
        assert out is not None
        return out

    def _bring_up(self, level: Tensor, slot: Tensor) -> None:
        """Move those of the given domains that lie in lower tiers into the fast one, as far as there is room."""
        far = (level > 0).nonzero().squeeze(-1)[: self._fast.room]
        for number in range(1, len(self._levels)):
            position = far[level[far] == number].to(self._device)
            if len(position) == 0:
                continue
            slots = slot[position]
            place = _reserved(self._fast, len(slots))
            if place is None:
                return
            keys = self._levels[number].keys.pick(slots)
            rows = self._remove(number, slots)
            self._note(0, place.slots, keys)
            with self._lane.beside():
                self._fast.write(place, self._lane.to_device(rows))
            self._up += len(keys)

    def _remove(self, number: int, slots: Tensor) -> Rows:
        """Rows of a tier's slots (given on the device), in the tier's own memory."""
        level = self._levels[number]
        if number == 0:
            rows = self._fast.remove(slots)
        else:
            self._settle()
            rows = level.payload.remove(slots.cpu())
        level.keys.clear(slots)
        level.count -= len(slots)
        return rows


def _picked(rows: Rows, index: Tensor) -> Rows:
    """Rows ``index`` (given on the host)."""
    index = index.to(rows[0].device)
    return tuple(row[index] for row in rows)


def _reserved(tier: Slabs, count: int) -> Reserved | None:
    """Slots for so many rows; None where the budget was more than there is: the tier keeps to what it holds then."""
    try:
        return tier.reserve(count)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    tier.stop_growing()
    return None

"""Open domains: fixed slots that are filled and freed by tensor operations; the order is a key, not a position."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from complete_verifier.bab.domains import Domains

Traversal = Literal["worst_first", "depth_first", "breadth_first"]


class DomainStore:
    """Keeps open domains. Slots double when they run out; a slot is reused as soon as its domain is taken."""

    def __init__(self, like: Domains, traversal: Traversal, capacity: int = 1024) -> None:
        self._like = like
        self._traversal = traversal
        self._slots = [t.new_empty(capacity, *t.shape[1:]) for t in like.tensors()]
        device = like.id.device
        self._margin = torch.zeros(capacity, dtype=like.lower.dtype, device=device)
        self._used = torch.zeros(capacity, dtype=torch.bool, device=device)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def capacity(self) -> int:
        """Slots, used or free."""
        return int(self._used.shape[0])

    def add(self, domains: Domains, margin: Tensor) -> None:
        """Store domains with their distance from being proved ``[D]`` (negative: open)."""
        new = len(domains)
        while self._count + new > self.capacity:
            self._grow()
        slots = (~self._used).nonzero().squeeze(-1)[:new]
        for kept, value in zip(self._slots, domains.tensors(), strict=True):
            kept.index_copy_(0, slots, value.to(kept.dtype))
        self._margin.index_copy_(0, slots, margin)
        self._used[slots] = True
        self._count += new

    def take(self, count: int) -> Domains:
        """Remove and return the next ``count`` domains in the order of the traversal; ties by id."""
        count = min(count, self._count)
        slots = self._order()[:count]
        taken = self._like.rebuild(tuple(t[slots] for t in self._slots))
        self._used[slots] = False
        self._count -= count
        return taken

    def worst_margin(self) -> float:
        """The least margin of all open domains (+inf when there are none)."""
        if self._count == 0:
            return float("inf")
        return float(torch.where(self._used, self._margin, torch.inf).amin())

    def _order(self) -> Tensor:
        """Used slots, first one first."""
        slots = self._used.nonzero().squeeze(-1)
        ids = self._slots[0][slots]
        if self._traversal == "depth_first":
            return slots[ids.argsort(descending=True)]
        slots = slots[ids.argsort()]
        if self._traversal == "breadth_first":
            return slots
        # NaN sorts last, but a NaN bound is as open as can be: it comes first
        keys = torch.nan_to_num(self._margin[slots], nan=-torch.inf)
        return slots[keys.argsort(stable=True)]

    def _grow(self) -> None:
        extra = self.capacity
        self._slots = [torch.cat([t, t.new_empty(extra, *t.shape[1:])]) for t in self._slots]
        self._margin = torch.cat([self._margin, self._margin.new_zeros(extra)])
        self._used = torch.cat([self._used, self._used.new_zeros(extra)])

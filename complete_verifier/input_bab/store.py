"""Open domains: fixed slots that are filled and freed by tensor operations; the order is a key, not a position."""

from __future__ import annotations

import torch
from torch import Tensor

from complete_verifier.bab.tiers.keys import Keys, Traversal
from complete_verifier.input_bab.domains import Domains


class DomainStore:
    """Slots double when they run out. ``like`` gives the kinds of tensors."""

    def __init__(self, like: Domains, traversal: Traversal) -> None:
        self._slots = [t.new_empty(0, *t.shape[1:]) for t in like.tensors()]
        self._used = torch.zeros(0, dtype=torch.bool, device=like.id.device)
        self._worst = like.margin.new_empty(0)
        self._traversal = traversal
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, domains: Domains, worst: Tensor | None = None) -> None:
        """Store domains. ``worst``: their own, as it is asked for where domains move between ranks."""
        while self._count + len(domains) > len(self._used):
            self._grow(max(1024, len(domains)))
        slots = (~self._used).nonzero().squeeze(-1)[: len(domains)]
        for slot, tensor in zip(self._slots, domains.tensors(), strict=True):
            slot[slots] = tensor
        self._used[slots] = True
        self._worst[slots] = domains.worst()
        self._count += len(domains)

    def take(self, count: int) -> Domains:
        """Remove and return the first ``count`` (or all) in the order of the traversal; ties by id."""
        slots = self.first(count)
        taken = Domains(*(t[slots] for t in self._slots))
        self._used[slots] = False
        self._count -= len(taken)
        return taken

    def look(self, count: int) -> Domains:
        """The first ``count`` (or all), which stay."""
        slots = self.first(count)
        return Domains(*(t[slots] for t in self._slots))

    def first(self, count: int) -> Tensor:
        """Their slots."""
        slots = self._used.nonzero().squeeze(-1)
        ids = self._slots[0][slots]
        if self._traversal == "depth_first":
            return slots[ids.argsort(descending=True)[:count]]
        slots = slots[ids.argsort()]
        if self._traversal == "breadth_first":
            return slots[:count]
        return slots[self._worst[slots].argsort(stable=True)[:count]]

    def peek(self, count: int) -> Keys:
        """The keys of the first ``count`` (or all), first one first."""
        slots = self.first(count)
        return Keys.of(self._traversal, self._slots[0][slots], self._worst[slots])

    def newest(self) -> Domains:
        """The domain that was made last."""
        ids = torch.where(self._used, self._slots[0], -1)
        return Domains(*(t[ids.argmax().unsqueeze(0)] for t in self._slots))

    def worst(self) -> float:
        """The least margin of all open clauses (+inf when there are none)."""
        if self._count == 0:
            return float("inf")
        return float(self._worst[self._used].amin())

    def _grow(self, least: int) -> None:
        extra = max(len(self._used), least)
        self._slots = [torch.cat([t, t.new_empty(extra, *t.shape[1:])]) for t in self._slots]
        self._worst = torch.cat([self._worst, self._worst.new_zeros(extra)])
        self._used = torch.cat([self._used, self._used.new_zeros(extra)])

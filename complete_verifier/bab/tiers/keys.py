"""The order of open sub-problems: keys of all of them, on the device, whatever tier their payload lies in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Traversal = Literal["worst_first", "depth_first", "breadth_first"]

UNUSED = torch.iinfo(torch.int64).max  # rank of a slot without a domain: behind every other one
_NAN = torch.iinfo(torch.int64).min + 1  # before -inf; not the least integer, so that it can be negated


@dataclass(frozen=True, slots=True)
class Keys:
    """What the order of N domains follows from: ascending ``rank`` ``[N]`` int64, ties by ``id`` ``[N]``.

    ``margin`` ``[N]`` float64 is kept beside them for reports; float64 holds every float16 and float32 exactly.
    """

    rank: Tensor
    id: Tensor
    margin: Tensor

    def __len__(self) -> int:
        return int(self.rank.shape[0])

    @classmethod
    def of(cls, traversal: Traversal, ids: Tensor, margin: Tensor) -> Keys:
        """Keys of domains with these ids and distances from being proved."""
        margin = margin.to(torch.float64)
        match traversal:
            case "worst_first":
                rank = _sortable(margin)
            case "depth_first":
                rank = -ids
            case "breadth_first":
                rank = ids.clone()
        return cls(rank, ids.clone(), margin)

    def pick(self, index: Tensor) -> Keys:
        """Some of the keys."""
        return Keys(self.rank[index], self.id[index], self.margin[index])


def joined(parts: Sequence[Keys]) -> Keys:
    """All keys, part after part."""
    if len(parts) == 1:
        return parts[0]
    return Keys(*(torch.cat([getattr(p, name) for p in parts]) for name in ("rank", "id", "margin")))


def in_order(keys: Keys) -> Tensor:
    """Positions ``[N]`` of all keys, first one first."""
    by_id = keys.id.argsort()
    return by_id[keys.rank[by_id].argsort(stable=True)]


def first(rank: Tensor, ids: Tensor, count: int) -> Tensor:
    """Positions ``[count]`` of the first keys in order; ``count`` is at most the number of keys. No host sync on a GPU.

    Top-k breaks ties as it likes, so those at its border are chosen again by id.
    """
    values, chosen = rank.topk(count, largest=False, sorted=True)
    if count and (rank.device.type == "cuda" or int((rank <= values[-1]).sum()) > count):
        last = values[-1:]
        tied = torch.where(rank == last, ids, UNUSED).topk(count, largest=False, sorted=True).indices
        position = torch.arange(count, device=rank.device)
        below = (values < last).sum()
        chosen = torch.where(position < below, chosen, tied[(position - below).clamp_min(0)])
    by_id = chosen[ids[chosen].argsort()]
    return by_id[rank[by_id].argsort(stable=True)]


class KeyTable:
    """Keys by slot of a tier. Slots are numbers that the tier gives out; a slot without a domain is `UNUSED`."""

    def __init__(self, device: torch.device) -> None:
        self._keys = Keys(
            torch.empty(0, dtype=torch.int64, device=device),
            torch.empty(0, dtype=torch.int64, device=device),
            torch.empty(0, dtype=torch.float64, device=device),
        )

    @property
    def rank(self) -> Tensor:
        """Of every slot, used or not."""
        return self._keys.rank

    def pick(self, slots: Tensor) -> Keys:
        """Keys of some slots."""
        return self._keys.pick(slots)

    def first(self, count: int) -> Tensor:
        """Slots of the first domains in order; there must be so many."""
        return first(self._keys.rank, self._keys.id, count)

    def last(self, count: int) -> Tensor:
        """Slots of the last domains, the very last one first."""
        rank = self._keys.rank
        return first(torch.where(rank == UNUSED, UNUSED, ~rank), ~self._keys.id, count)

    def least_margin(self) -> Tensor:
        """The least margin of all domains, a NaN if there is one, +inf if there are none."""
        keys = self._keys
        if len(keys) == 0:
            return torch.full((), torch.inf, dtype=torch.float64, device=keys.rank.device)
        return torch.where(keys.rank == UNUSED, torch.inf, keys.margin).amin()

    def set(self, slots: Tensor, keys: Keys) -> None:
        """Note the domains that now lie in these slots."""
        for mine, new in zip((self._keys.rank, self._keys.id, self._keys.margin), _fields(keys), strict=True):
            mine.index_copy_(0, slots, new)

    def clear(self, slots: Tensor) -> None:
        """Note that these slots are free."""
        self._keys.rank.index_fill_(0, slots, UNUSED)

    def reserve(self, slots: int) -> None:
        """Have room for slots up to this number. Keys are small beside the payload: they may be copied to grow."""
        have = len(self._keys)
        if slots <= have:
            return
        extra = max(slots, have + have // 2) - have
        fills = (UNUSED, 0, 0.0)
        self._keys = Keys(
            *(torch.cat([t, t.new_full((extra,), v)]) for t, v in zip(_fields(self._keys), fills, strict=True))
        )


def _fields(keys: Keys) -> tuple[Tensor, Tensor, Tensor]:
    return keys.rank, keys.id, keys.margin


def _sortable(value: Tensor) -> Tensor:
    """Integers that sort like these float64 numbers, NaN before all: a bound that is NaN is as open as can be."""
    bits = (value + 0.0).view(torch.int64)  # + 0.0 makes one zero of the two
    ordered = bits ^ ((bits >> 63) & torch.iinfo(torch.int64).max)
    return torch.where(torch.isnan(value), _NAN, ordered)

"""A batch of sub-problems as a struct of tensors with a leading domain axis (DESIGN 2.5)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from auto_LiRPA.values import Interval
from complete_verifier.bab.store import B

PLAIN_FIELDS = ("id", "clause", "depth", "sign", "value", "lower", "mix", "box_lower", "box_upper")
REST = 4096  # domains that are not cut further than the height asks for


@dataclass(frozen=True, slots=True)
class Domains:
    """D domains. R rows of a clause, U splittable neurons in all.

    A domain is bounded through one row: the sum of its clause's rows (minus their rhs) under the weights ``mix``
    ``[D, R]``. ``lower`` ``[D]`` is the best lower bound of such a sum so far: above 0 it refutes the clause there.

    ``id`` ``[D]`` int64 (unique, in order of creation), ``clause`` ``[D]`` int64, ``depth`` ``[D]`` int64,
    ``sign`` ``[D, U]`` int8 (+1: z >= 0, -1: z <= 0, 0: not split), ``value`` ``[D, U]``: the one variable of each
    neuron, its alpha while it is not split and its beta once it is. ``box_lower``, ``box_upper`` ``[D, U]``: bounds of
    the neurons before their own splits where they are tighter than the root's, or ``[D, 0]`` where all domains have the
    root's. ``slopes``: of nonlinear nodes that are never split, per node ``[D, 1, P, u]``.
    """

    id: Tensor
    clause: Tensor
    depth: Tensor
    sign: Tensor
    value: Tensor
    lower: Tensor
    mix: Tensor
    box_lower: Tensor
    box_upper: Tensor
    slopes: Mapping[int, Tensor]

    def __len__(self) -> int:
        return int(self.id.shape[0])

    def pick(self, index: Tensor) -> Domains:
        """Some of the domains, in the given order (repeats allowed)."""
        return self.rebuild(tuple(t[index] for t in self.tensors()))

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors in a fixed order, for stores."""
        return (*(getattr(self, name) for name in PLAIN_FIELDS), *(self.slopes[k] for k in sorted(self.slopes)))

    def rebuild(self, tensors: tuple[Tensor, ...]) -> Domains:
        """Inverse of `tensors` for a batch of the same kind."""
        keys = sorted(self.slopes)
        plain = dict(zip(PLAIN_FIELDS, tensors, strict=False))
        return Domains(**plain, slopes=dict(zip(keys, tensors[len(PLAIN_FIELDS) :], strict=True)))

    def bytes(self) -> int:
        """Bytes that these domains occupy."""
        return sum(t.numel() * t.element_size() for t in self.tensors())


def cuts(count: int, height: int) -> list[tuple[int, int]]:
    """First and end of each tile: ``height`` at a time; a rest of more than `REST` is cut at halves of the height.

    Buffers on a GPU have few sizes: a rest of just over half of one would be padded to double. One that fills three
    quarters is not cut: a tile more takes longer than the padding.
    """
    found, start = [], 0
    while start < count:
        size = height
        while size > REST and 4 * (count - start) < 3 * size:
            size //= 2
        found.append((start, min(start + size, count)))
        start += size
    return found


def tiles(domains: B, height: int) -> Iterator[B]:
    """The domains in order, by `cuts` (the batch itself where it is one tile)."""
    parts = cuts(len(domains), height)
    if len(parts) <= 1:
        yield domains
        return
    for start, stop in parts:
        yield domains.rebuild(tuple(t[start:stop] for t in domains.tensors()))


def own_columns(domains: Domains) -> Interval | None:
    """The neurons' bounds before their splits where the domains have their own, else None."""
    if domains.box_lower.shape[1] == 0:
        return None
    return Interval(domains.box_lower, domains.box_upper)


def concatenate(first: Domains, second: Domains) -> Domains:
    """Both batches, the first one's domains first."""
    pairs = zip(first.tensors(), second.tensors(), strict=True)
    return first.rebuild(tuple(torch.cat(pair) for pair in pairs))

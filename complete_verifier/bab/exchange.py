"""Domains on their way between ranks: as bytes, so that what arrives is bit for bit what was sent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from auto_LiRPA.parallel.groups import Group
from complete_verifier.bab.store import B, DomainStore
from complete_verifier.bab.tiers.keys import UNUSED, Keys, in_order

# Bytes that are on their way together: what moves needs this much memory on both sides, however much it is.
CHUNK_BYTES = 2**26


@dataclass(frozen=True, slots=True)
class Move:
    """``count`` domains go from rank ``source`` to rank ``target``."""

    source: int
    target: int
    count: int


def packed(domains: B) -> Tensor:
    """One row of bytes per domain: ``[D, bytes]``."""
    present = [t for t in domains.tensors() if math.prod(t.shape[1:])]
    rows = [(t if t.ndim > 1 else t.unsqueeze(1)).flatten(1).contiguous() for t in present]
    return torch.cat([row.view(torch.uint8) for row in rows], 1)


def unpacked(rows: Tensor, like: B) -> B:
    """Inverse of `packed` for domains of the kind of ``like``."""
    tensors, at = [], 0
    for kind in like.tensors():
        shape = (len(rows), *kind.shape[1:])
        size = math.prod(kind.shape[1:]) * kind.element_size()
        if size == 0:
            tensors.append(kind.new_empty(shape))
            continue
        mine = rows[:, at : at + size].clone(memory_format=torch.contiguous_format)  # numbers have to be aligned
        tensors.append(mine.flatten().view(kind.dtype).reshape(shape))
        at += size
    return like.rebuild(tuple(tensors))


def row_bytes(like: B) -> int:
    """Bytes of one packed domain."""
    return sum(math.prod(t.shape[1:]) * t.element_size() for t in like.tensors())


def first_of_all(group: Group, store: DomainStore[B], like: B, count: int) -> tuple[B, B]:
    """Take the first ``count`` domains of all ranks' queues together, by key and id; there must be so many.

    Returns:
        Those that this rank had, and all of them in order. On every rank they are a prefix of its own queue.
    """
    if group.size == 1:
        own = store.take(count)
        return own, own
    keys = store.peek(count)
    mine = torch.full((2, count), UNUSED, dtype=torch.int64, device=like.id.device)
    mine[0, : len(keys)], mine[1, : len(keys)] = keys.rank, keys.id
    every = group.gather(mine)  # [P, 2, count]
    rank, ids = every[:, 0].flatten(), every[:, 1].flatten()
    order = in_order(Keys(rank, ids, rank))[:count]
    source, place = order // count, order % count
    counts = torch.bincount(source, minlength=group.size).tolist()
    own = store.take(counts[group.rank])
    height = max(counts)
    rows = packed(own)
    padded = rows.new_zeros(height, row_bytes(like))
    padded[: len(rows)] = rows
    gathered = group.gather(padded).flatten(0, 1)
    return own, unpacked(gathered[source * height + place], like)


def levelling(counts: Sequence[int], most: int) -> list[Move]:
    """Moves that bring ranks with ``counts`` domains nearer to equal shares, at most ``most`` domains to each rank.

    From the counts alone, so that every rank makes the same plan.
    """
    total, size = sum(counts), len(counts)
    shares = [total // size + (rank < total % size) for rank in range(size)]
    surplus = [max(0, have - share) for have, share in zip(counts, shares, strict=True)]
    moves = []
    for target in sorted(range(size), key=lambda rank: (counts[rank], rank)):
        wanted = min(most, max(0, shares[target] - counts[target]))
        for source in sorted(range(size), key=lambda rank: (-surplus[rank], rank)):
            count = min(wanted, surplus[source])
            if count > 0:
                moves.append(Move(source, target, count))
                surplus[source] -= count
                wanted -= count
    return moves


def carry_out(
    moves: Sequence[Move], group: Group, store: DomainStore[B], like: B, margin: Callable[[B], Tensor]
) -> None:
    """Move domains; every rank of the group goes through the same list in the same order, so that no two wait forever.

    ``margin``: of domains ``[D]``, what the store orders them by.
    """
    most = max(1, CHUNK_BYTES // max(1, row_bytes(like)))
    for step in moves:
        for count in _chunks(step.count, most):
            if group.rank == step.source:
                group.send(packed(store.take(count)).contiguous(), step.target)
            elif group.rank == step.target:
                rows = torch.empty(count, row_bytes(like), dtype=torch.uint8, device=like.id.device)
                arrived = unpacked(group.receive(rows, step.source), like)
                store.add(arrived, margin(arrived))


def _chunks(count: int, most: int) -> Iterator[int]:
    for begin in range(0, count, most):
        yield min(most, count - begin)

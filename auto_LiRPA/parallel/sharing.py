"""Tiles shared out over the ranks of an axis, and their results put together in tile order (DESIGN 2.2, 4).

Tiles are dealt out one after the other, beginning with rank ``first`` (of the axis, modulo its size): where one list's
last tile went the next list goes on, so that what is left over does not always fall to the same rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from auto_LiRPA.errors import ConfigError, OutOfTime
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.groups import Group

OUT_OF_TIME = "the time limit was reached within a bounding pass"


def own(group: Group, count: int, first: int = 0) -> range:
    """Positions of ``range(count)`` that this rank computes: round-robin."""
    return range((group.rank - first) % group.size, count, group.size)


def owner(group: Group, position: int, first: int = 0) -> int:
    """The rank that computes a position."""
    return (position + first) % group.size


def slots(group: Group, count: int, first: int = 0) -> Iterator[tuple[int, bool]]:
    """This rank's turn in each round over ``range(count)``: position and whether it is its own to compute.

    A rank that has nothing left in the last round gets the last position, to be computed only where ranks that share
    weights have to make the same passes.
    """
    turn = (group.rank - first) % group.size
    for start in range(0, count, group.size):
        position = start + turn
        yield (position, True) if position < count else (count - 1, False)


def check_time_together(context: DistributedContext) -> None:
    """`check_time` where ranks work together: one that is late ends it for all, at the same place.

    Raises:
        OutOfTime: some rank's deadline has passed.
    """
    if context.seconds_left is not None and context.world.some(context.out_of_time()):
        raise OutOfTime(OUT_OF_TIME)


def each_tile(
    context: DistributedContext,
    count: int,
    compute: Callable[[int], Tensor],
    like: Tensor,
    idle: Callable[[], object] | None = None,
    first: int = 0,
) -> list[Tensor]:
    """Results of ``count`` tiles in tile order; each rank of the row axis computes its share, and all get all.

    Args:
        compute: the result of a tile by its position.
        like: a tensor of every result's shape, dtype and device; its content is not read.
        idle: a pass that fetches the same weights as `compute`, for ranks without a tile in lockstep; None: `compute`
            of the last tile.
        first: the rank that has the first tile.

    Raises:
        OutOfTime: some rank's deadline has passed; all ranks raise it.
    """
    rows = context.rows
    found: list[Tensor] = []
    late = False
    for position, mine in slots(rows, count, first):
        if context.weights.size > 1:
            check_time_together(context)  # all make the same gathers, so all stop before the same tile
        elif late := context.out_of_time():
            break
        if mine:
            context.counters.tiles += 1
            found.append(compute(position))
        elif context.lockstep:
            context.counters.idle_tiles += 1
            if idle is None:
                compute(position)
            else:
                idle()
    if context.weights.size == 1 and context.seconds_left is not None and context.world.some(late):
        raise OutOfTime(OUT_OF_TIME)
    return in_order(rows, found, count, like, first)


def in_order(rows: Group, found: Sequence[Tensor], count: int, like: Tensor, first: int = 0) -> list[Tensor]:
    """All ``count`` tiles' results in tile order, each rank having ``found`` its own; the rest as in `each_tile`."""
    if rows.size == 1 or count == 0:
        return list(found)
    if any(part.requires_grad for part in found):
        raise ConfigError("gradients of bounds do not pass between ranks: set parallel.rows to replicate")
    rounds = -(-count // rows.size)
    mine = torch.stack([*found, *[torch.zeros_like(like)] * (rounds - len(found))])
    every = rows.gather(mine)  # [P, rounds, ...]
    return [every[owner(rows, position, first), position // rows.size] for position in range(count)]

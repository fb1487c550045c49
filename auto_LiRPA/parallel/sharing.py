"""Tiles shared out over the ranks of an axis, and their results put together in tile order (DESIGN 2.2, 4).

Tiles are dealt out one after the other, beginning with rank ``first`` (of the axis, modulo its size): where one list's
last tile went the next list goes on, or, where tiles keep memory, with the rank that has least (`Dealing`). So what is
left over does not always fall to the same rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from auto_LiRPA.errors import ConfigError, OutOfTime
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.groups import Group

OUT_OF_TIME = "the time limit was reached within a bounding pass"
# Turns at tiles between two looks at the deadline that ranks have in common: on a GPU, where tiles are short and a look
# means waiting for the other hosts, and on a CPU.
TURNS_CUDA, TURNS_CPU = 8, 4


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


class CommonClock:
    """The deadline of ranks that take turns at many lists of tiles: they agree on it once in some turns.

    Turns are counted on from list to list, and all ranks have equally many of each: many short lists, such as layers
    with few undecided neurons, cost no agreement each.
    """

    def __init__(self, context: DistributedContext) -> None:
        self._context = context
        self._every = TURNS_CUDA if context.device.type == "cuda" else TURNS_CPU
        self._turns = 0

    def turn(self) -> None:
        """Before every turn, also that of a rank which has no tile left.

        Raises:
            OutOfTime: some rank's deadline has passed; all ranks raise it before the same turn, and before every one
                that they begin after it.
        """
        if self._turns % self._every == 0:
            check_time_together(self._context)
        self._turns += 1


class Dealing:
    """Which rank begins with a list of tiles, so that all come to have as much: who has least gets what is left over.

    Every rank deals all lists, by itself and alike.
    """

    def __init__(self, ranks: int) -> None:
        self.held = [0.0] * ranks

    def first(self, count: int, cost: float) -> int:
        """The rank that gets the first of ``count`` tiles, each of which costs as much (in any unit, but one)."""
        ranks = len(self.held)
        each, more = divmod(count, ranks)
        runs = [sum(self.held[(start + i) % ranks] for i in range(more)) for start in range(ranks)] if more else [0.0]
        first = runs.index(min(runs))
        for rank in range(ranks):
            self.held[rank] += cost * (each + ((rank - first) % ranks < more))
        return first


def each_tile(
    context: DistributedContext,
    count: int,
    compute: Callable[[int], Tensor],
    like: Tensor,
    idle: Callable[[], object] | None = None,
    first: int = 0,
    clock: CommonClock | None = None,
) -> list[Tensor]:
    """Results of ``count`` tiles in tile order; each rank of the row axis computes its share, and all get all.

    Args:
        compute: the result of a tile by its position.
        like: a tensor of every result's shape, dtype and device; its content is not read.
        idle: a pass that fetches the same weights as `compute`, for ranks without a tile in lockstep; None: `compute`
            of the last tile.
        first: the rank that has the first tile.
        clock: the deadline of ranks that have many lists to bound; None: they agree in every one.

    Raises:
        OutOfTime: some rank's deadline has passed; all ranks raise it.
    """
    rows = context.rows
    found: list[Tensor] = []
    late = False
    for position, mine in slots(rows, count, first):
        if clock is not None:
            clock.turn()
        elif context.weights.size > 1:
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
    agreed = clock is not None or context.weights.size > 1 or context.seconds_left is None
    if not agreed and context.world.some(late):
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

"""What ranks tell each other between two rounds of a search, and what all of them make of it (DESIGN 2.5).

One exchange of numbers over the host's channel a round. Every decision that a clock, memory or a rank's own queue has
a say in is made from these numbers, so that all ranks make the same one. An exchange need not be waited for at once:
ranks whose queues are full go on, and hear of a round at the end of the next one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, replace

from torch import Tensor

from auto_LiRPA.errors import ContractError
from auto_LiRPA.parallel.context import DistributedContext

NOWHERE = float("inf")
_MIXES = -7046029254386353131  # an odd number without pattern: the golden ratio of 2^64
_EXACT = 2**52 - 1  # digests are sent as floats


@dataclass(frozen=True, slots=True)
class Status:
    """One rank's round in numbers.

    ``open``: domains in its queue once the round counts. ``taken``: parents that left the queue; ``done``: parents that
    the rank's share has dealt with; ``left``: children still open; ``visited``, ``undecided``: what the round adds to
    the totals. ``next_id``: above all ids given so far. ``effort``: parents, as if each had been split once.
    ``late``: time ended within the round. ``short``: parents for which memory was not enough (0: it was). ``found``:
    place of a confirmed counterexample. ``room``: there is memory for larger rounds. ``due``: a checkpoint is.
    ``seconds``: of the round. ``time_left``: until the deadline. ``worst``: the least bound of the open domains.
    ``queue``: number of the part of the domains that the rank searches; ranks of a mesh may have the same one, and
    ``digest`` is over the ids of the round's domains then (0: the rank has its queue for itself).
    """

    open: float = 0
    taken: float = 0
    done: float = 0
    left: float = 0
    visited: float = 0
    undecided: float = 0
    next_id: float = 0
    effort: float = 0
    late: float = 0
    short: float = 0
    found: float = NOWHERE
    room: float = 0
    due: float = 0
    seconds: float = 0
    time_left: float = float("inf")
    worst: float = float("inf")
    queue: float = 0
    digest: float = 0


@dataclass(frozen=True, slots=True)
class Agreed:
    """The same on every rank. ``world``: all ranks; ``queues``: one rank for each part of the domains.

    ``apart``: each rank has already let its own round count, or undone it; else all do so together, from this.
    """

    world: tuple[Status, ...]
    queues: tuple[Status, ...]
    apart: bool = False

    @property
    def counts(self) -> list[int]:
        """Open domains of each queue; with its parents again where the round does not count."""
        if self.apart or self.counts_for:
            return [int(status.open) for status in self.queues]
        return [int(status.open - status.left + status.taken) for status in self.queues]

    @property
    def open(self) -> int:
        """Open domains of all queues."""
        return sum(self.counts)

    @property
    def late(self) -> bool:
        """Time ended within some rank's round."""
        return any(status.late for status in self.world)

    @property
    def short(self) -> int:
        """The fewest parents that some rank's memory was not enough for; 0: it was enough everywhere."""
        return min((int(status.short) for status in self.world if status.short), default=0)

    @property
    def finder(self) -> int | None:
        """The rank (in the world) of the first counterexample, None if there is none."""
        place, rank = min((status.found, rank) for rank, status in enumerate(self.world))
        return rank if place < NOWHERE else None

    @property
    def counts_for(self) -> bool:
        """Whether the round counts: a counterexample, or every rank came through it. Else all of it is undone.

        Where ranks go apart, it counts for those that came through, and at all if there is one.
        """
        if self.finder is not None:
            return True
        failed = [bool(status.late or status.short) for status in self.world]
        return not all(failed) if self.apart else not any(failed)

    @property
    def visited(self) -> int:
        """Domains that the round bounded."""
        return int(sum(status.visited for status in self.queues))

    @property
    def undecided(self) -> int:
        """Leaves that nothing could decide."""
        return int(sum(status.undecided for status in self.queues))

    @property
    def next_id(self) -> int:
        """Above the ids of all ranks."""
        return int(max(status.next_id for status in self.queues))

    @property
    def effort(self) -> int:
        """Of the rank that did most."""
        return int(max(status.effort for status in self.world))

    @property
    def room(self) -> bool:
        """Every rank has memory for larger rounds."""
        return all(status.room for status in self.world)

    @property
    def due(self) -> bool:
        """The rank that publishes checkpoints wants one."""
        return bool(self.world[0].due)

    @property
    def seconds(self) -> float:
        """Of the slowest rank's round."""
        return max(status.seconds for status in self.world)

    @property
    def time_left(self) -> float:
        """By the clock that is ahead."""
        return min(status.time_left for status in self.world)

    @property
    def worst(self) -> float:
        """The least bound of all open domains, a NaN if there is one."""
        return least(status.worst for status in self.queues)

    def check(self, before: int) -> None:
        """That no domain was lost or doubled since ``before`` domains were open in all.

        Raises:
            ContractError: one was.
        """
        if not self.counts_for or self.finder is not None:
            return
        taken, done, left = (int(sum(getattr(s, name) for s in self.queues)) for name in ("taken", "done", "left"))
        if taken != done or self.open != before - taken + left:
            raise ContractError(
                f"domains were lost or doubled: {before} were open, {taken} were taken and {done} dealt with,"
                f" {left} children stayed open, and now {self.open} are"
            )

    def check_twins(self, number: int) -> None:
        """That ranks which search the same part of the domains have dealt with the same ones in round ``number``.

        Raises:
            ContractError: they have not: from here on they would make different decisions, and wait for ever.
        """
        if not self.counts_for or self.finder is not None or self.time_left <= 0:  # a clock may end a pass anywhere
            return
        first: dict[float, int] = {}
        for rank, status in enumerate(self.world):
            other = first.setdefault(status.queue, rank)
            if _part(status) != _part(self.world[other]):
                raise ContractError(
                    f"ranks {other} and {rank} search the same sub-problems, and what they made of them differs in"
                    f" round {number} ({int(self.world[other].open)} and {int(status.open)} are open):"
                    " do they compute with different devices, libraries or settings?"
                )


def tell(context: DistributedContext, mine: Status, apart: bool = False) -> Callable[[], Agreed]:
    """Send this rank's status to all; what is returned waits for theirs. All ranks call both in the same order."""
    later = context.world.numbers_later(astuple(replace(mine, queue=context.domains.rank)))
    group = context.domains
    members = (context.world.rank,) if group.size == 1 else group.members

    def heard() -> Agreed:
        world = tuple(Status(*row) for row in later())
        return Agreed(world, tuple(world[rank] for rank in members), apart)

    return heard


def agree(context: DistributedContext, mine: Status) -> Agreed:
    """Every rank's status, on every rank."""
    return tell(context, mine)()


def digest(*ids: Tensor | None) -> int:
    """Of some sets of ids, each ``[N]`` in any order: equal where they are equal, else almost certainly not."""
    found = 0
    for number, one in enumerate(ids):
        if one is not None and len(one):
            mixed = (one + number) * _MIXES
            mixed = (mixed ^ (mixed >> 29)) * _MIXES
            found += int((mixed ^ (mixed >> 32)).sum())
    return found & _EXACT


def _part(status: Status) -> tuple[float, ...]:
    """What ranks with the same queue have in common."""
    return (status.open, status.taken, status.done, status.left, status.visited, status.next_id, status.digest)


def least(values: Iterable[float]) -> float:
    """The least number, NaN if one of them is."""
    numbers = list(values)
    return math.nan if any(math.isnan(x) for x in numbers) else min(numbers, default=math.inf)

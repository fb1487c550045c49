"""What the ranks of a search tell each other once a round, and what all of them make of it (DESIGN 2.5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from auto_LiRPA.errors import ContractError


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One rank's part of a round, in numbers.

    ``open``: boxes in its queue, without the round's. ``taken``: boxes that left it for the round; ``left``: boxes of
    its part that stay open. ``owed``: boxes of the round that some rank has to bound, told once; ``visited``: those
    that this one did. ``stuck``: boxes too small to cut. ``candidates``: points to be confirmed by all ranks together.
    ``seconds``: of the round. ``late``: time ended within it; ``full``: memory did.
    """

    open: float
    taken: float = 0
    left: float = 0
    owed: float = 0
    visited: float = 0
    stuck: float = 0
    candidates: float = 0
    worst: float = math.inf
    seconds: float = 0
    elapsed: float = 0
    attack_seconds: float = 0
    time_left: float = math.inf
    confirmed: float = 0
    late: float = 0
    full: float = 0


@dataclass(frozen=True, slots=True)
class Status:
    """The same on every rank. ``world``: all ranks; ``queues``: one rank for each queue; ``twins``: with this one's."""

    world: tuple[Report, ...]
    queues: tuple[Report, ...]
    twins: tuple[Report, ...]

    @property
    def late(self) -> bool:
        """Time ended within some rank's round: it is undone everywhere."""
        return any(r.late for r in self.world)

    @property
    def full(self) -> bool:
        """Memory ended within the round of a rank that has the same boxes: this queue's part is undone."""
        return any(r.full for r in self.twins)

    @property
    def full_somewhere(self) -> bool:
        """Memory ended within some rank's round."""
        return any(r.full for r in self.world)

    @property
    def hopeless(self) -> bool:
        """Memory is not enough for a single box."""
        return any(r.full and r.taken <= 1 for r in self.world)

    @property
    def counts(self) -> bool:
        """Whether some queue has come further."""
        return any(self._counts(r) for r in self.queues)

    @property
    def confirmed(self) -> bool:
        """Some rank has a counterexample."""
        return any(r.confirmed for r in self.world)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of all queues, once the round counts."""
        return tuple(int(r.open + (r.left if self._counts(r) else r.taken)) for r in self.queues)

    @property
    def visited(self) -> int:
        """Boxes that the round bounded."""
        return int(sum(r.visited for r in self.queues if self._counts(r)))

    @property
    def stuck(self) -> int:
        return int(sum(r.stuck for r in self.queues if self._counts(r)))

    @property
    def candidates(self) -> int:
        return int(sum(r.candidates for r in self.queues))

    @property
    def taken(self) -> int:
        """Boxes of the largest round of any rank."""
        return int(max(r.taken for r in self.world))

    @property
    def worst(self) -> float:
        return min(r.worst for r in self.queues)

    @property
    def seconds(self) -> float:
        """Of the slowest rank's round."""
        return max(r.seconds for r in self.world)

    @property
    def elapsed(self) -> float:
        return max(r.elapsed for r in self.world)

    @property
    def attack_seconds(self) -> float:
        return max(r.attack_seconds for r in self.world)

    @property
    def time_left(self) -> float:
        """By the clock that is ahead."""
        return min(r.time_left for r in self.world)

    def check(self, before: Sequence[int]) -> None:
        """That no box was lost or doubled since the queues were ``before`` long.

        Raises:
            ContractError: one was.
        """
        have = [int(r.open + r.taken) for r in self.queues]
        if have != list(before):
            raise ContractError(f"boxes were lost or doubled: queues of {list(before)} have become {have}")
        owed, visited = (sum(getattr(r, name) for r in self.queues) for name in ("owed", "visited"))
        if not self.late and not self.full_somewhere and owed != visited:
            raise ContractError(f"boxes were lost or doubled: a round of {owed:.0f} has bounded {visited:.0f}")

    def _counts(self, report: Report) -> bool:
        return not (self.late or report.full)


def status(rows: Sequence[Sequence[float]], queues: Sequence[int], twins: Sequence[int]) -> Status:
    """From every rank's numbers; ``queues``, ``twins``: which ranks those are."""
    world = tuple(Report(**dict(zip(Report.__slots__, row, strict=True))) for row in rows)
    return Status(world, tuple(world[r] for r in queues), tuple(world[r] for r in twins))


def numbers(report: Report) -> tuple[float, ...]:
    """A report as it travels."""
    return astuple(report)

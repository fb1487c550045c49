"""How the ranks of a run share an attack: which random starts are whose, and what they agree on."""

from __future__ import annotations

from dataclasses import dataclass

from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.counters import Counters
from auto_LiRPA.parallel.groups import Group, alone


@dataclass(frozen=True, slots=True)
class Team:
    """``group``: all ranks, which take the same number of steps. This one has every ``count``-th start from ``index``.

    Ranks that hold parts of one computation (tensor parallelism) have the same starts. Where weights are gathered for
    every step, steps have to be as many on every rank anyway.
    """

    group: Group
    index: int = 0
    count: int = 1

    @classmethod
    def of(cls, context: DistributedContext | None) -> Team:
        """The team of a run's ranks; None: this process by itself."""
        if context is None:
            return cls(alone(Counters()))
        together = context.weights.size if context.mode == "tp" else 1
        count = context.world.size // together
        # the weights' axis is the slowest in a mesh: ranks that share weights have the same remainder
        return cls(context.world, context.world.rank % count, count)

    def starts(self, first: int, height: int) -> range:
        """This rank's ``height`` of the ``count * height`` starts from ``first`` on."""
        return range(first + self.index, first + self.count * height, self.count)

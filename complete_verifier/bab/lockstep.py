"""Ranks that fetch the same weights: each of them makes as many passes as the busiest, in the same order (DESIGN 2.5).

A fetch of a shared weight is a collective. So every loop around bounding passes runs as often as on the rank that has
most to do: a rank without a tile of its own bounds a single domain and drops the result. What a tile computes never
depends on the passes that are made for others. Where weights are not shared nothing is asked and nothing is added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.groups import Group
from auto_LiRPA.parallel.store import LocalWeight, Weight
from complete_verifier.bab.domains import cuts, tiles
from complete_verifier.bab.subproblems import D

Agree = Callable[[bool], bool]  # a wish to stop -> whether all stop


@dataclass(frozen=True, slots=True)
class Lockstep:
    """``group``: the ranks that fetch together; None: this rank's passes are its own affair."""

    group: Group | None = None

    def __bool__(self) -> bool:
        return self.group is not None

    def turns(self, count: int) -> int:
        """How often a loop runs that this rank has ``count`` turns of."""
        return count if self.group is None else int(self.group.largest(count))

    def least(self, value: float) -> float:
        """The least of all ranks' numbers."""
        return value if self.group is None else self.group.smallest(value)

    def all_agree(self, wish: bool) -> bool:
        """Whether every rank wants to stop."""
        return wish if self.group is None else self.group.every(wish)

    def nothing_left(self, wish: bool) -> bool:
        """`all_agree` in a pass whose result is dropped: it prolongs nothing."""
        return self.all_agree(True)

    def tiles(self, domains: D, height: int) -> Iterator[tuple[D, bool]]:
        """The domains (at least one) by ``height``, then as many idle turns as others need: ``(tile, mine)``."""
        turns = self.turns(len(cuts(len(domains), height)))
        for tile in tiles(domains, height):
            turns -= 1
            yield tile, True
        if turns > 0:
            spare = domains.pick(torch.zeros(1, dtype=torch.long, device=domains.id.device))
            for _ in range(turns):
                yield spare, False


ALONE = Lockstep()


def lockstep_of(context: DistributedContext, graph: Graph) -> Lockstep:
    """With whom this rank bounds domains of ``graph`` in step: those that share its weights, if any are shared."""
    if context.weights.size == 1:
        return ALONE
    return ALONE if context.mode != "tp" and is_whole(graph) else Lockstep(context.weights)


def is_whole(graph: Graph) -> bool:
    """Whether all weights lie on this device, where they stay: nothing is fetched in a pass."""
    held = (value for node in graph.nodes for value in _attributes(node.op))
    return all(isinstance(value, LocalWeight) for value in held if isinstance(value, Weight))


def _attributes(op: object) -> tuple[object, ...]:
    names = getattr(type(op), "__dataclass_fields__", None) or getattr(op, "__dict__", {})
    return tuple(getattr(op, name) for name in names)

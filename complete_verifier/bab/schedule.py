"""What a search asks of a schedule: which domains a round takes, and what this rank does for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol

from torch import Tensor

from complete_verifier.bab.agreement import Agreed
from complete_verifier.bab.exchange import Move
from complete_verifier.bab.lockstep import Lockstep
from complete_verifier.bab.settings import BabSettings
from complete_verifier.bab.store import DomainStore
from complete_verifier.bab.subproblems import D, Expanded, Numbering, Share


@dataclass(frozen=True, slots=True)
class Work(Generic[D]):
    """One round. ``own``: what it took from this rank's queue, and goes back there if the round does not count.

    ``parents``: the domains that it is about, of all ranks if they are chosen together.
    """

    own: D
    parents: D


class Expands(Protocol[D]):
    """How a schedule has domains split and bounded. ``width``: the columns that can be split, in all."""

    @property
    def settings(self) -> BabSettings: ...

    @property
    def lockstep(self) -> Lockstep: ...

    @property
    def width(self) -> int: ...

    def levels(self, parents: D, own: bool = True) -> int:
        """Levels split at once. ``own``: False on a rank without parents, which has no say."""
        ...

    def expand(self, parents: D, place: Tensor, levels: int, ids: Numbering) -> Expanded[D]:
        """All children of some parents."""
        ...

    def sorted_out(self, parts: Sequence[Expanded[D]]) -> Share[D]:
        """What is left of all parts."""
        ...

    def close_leaves(self, leaves: D, places: Sequence[int], share: Share[D]) -> None:
        """Decide domains that cannot be split, or count them as undecided."""
        ...


class Schedule(Protocol[D]):
    """One of the two schedules of DESIGN 2.5."""

    def moves(self, agreed: Agreed) -> list[Move]:
        """Domains that go from one queue to another before the next round; the same on every rank."""
        ...

    def pick(self, store: DomainStore[D], agreed: Agreed) -> Work[D]:
        """Take the next round's domains. All ranks do so together."""
        ...

    def run(self, work: Work[D], first_id: int, number: int) -> Share[D]:
        """This rank's part of round ``number``: nothing is changed but what is returned. Raises OutOfTime."""
        ...

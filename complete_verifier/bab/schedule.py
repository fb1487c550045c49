"""What a search asks of a schedule: which domains a round takes, and what this rank does for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from complete_verifier.bab.agreement import Agreed
from complete_verifier.bab.domains import Domains
from complete_verifier.bab.exchange import Move
from complete_verifier.bab.expansion import Share
from complete_verifier.bab.store import DomainStore


@dataclass(frozen=True, slots=True)
class Work:
    """One round. ``own``: what it took from this rank's queue, and goes back there if the round does not count.

    ``parents``: the domains that it is about, of all ranks if they are chosen together.
    """

    own: Domains
    parents: Domains


class Schedule(Protocol):
    """One of the two schedules of DESIGN 2.5."""

    def moves(self, agreed: Agreed) -> list[Move]:
        """Domains that go from one queue to another before the next round; the same on every rank."""
        ...

    def pick(self, store: DomainStore[Domains], agreed: Agreed) -> Work:
        """Take the next round's domains. All ranks do so together."""
        ...

    def run(self, work: Work, first_id: int, number: int) -> Share:
        """This rank's part of round ``number``: nothing is changed but what is returned. Raises OutOfTime."""
        ...

"""Rounds of equal length on ranks of unequal speed, where each has a queue of its own (the free-running schedule).

Ranks read each other's numbers a round late, so nobody gets more than a round ahead: with equal batches all of them go
as fast as the slowest. A second process on a host is slower than the first by several percent as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from complete_verifier.bab.agreement import Agreed
from complete_verifier.bab.domains import REST

MEMORY = 0.8  # of what is known of a rank's speed, how much outlasts a round
LEAST_SHARE = 0.6
NOISE = 0.02  # speeds that differ by less are equal
# A rank saves no time by fewer parents as long as their children need as many rows of a GPU's buffers.
_STEP = REST // 2


@dataclass(slots=True)
class EvenRounds:
    """Seconds that a parent takes each rank, averaged over its rounds so far."""

    seconds: list[float] = field(default_factory=list)

    def heard(self, agreed: Agreed) -> None:
        """Take note of a round that all ranks have told of, if all of them have worked in it."""
        if not agreed.apart or not all(status.effort > 0 and status.seconds > 0 for status in agreed.queues):
            return
        now = [status.seconds / status.effort for status in agreed.queues]
        if len(self.seconds) != len(now):
            self.seconds = now
        self.seconds = [MEMORY * old + (1 - MEMORY) * new for old, new in zip(self.seconds, now, strict=True)]

    def parents(self, rank: int, most: int) -> int:
        """Of ``most`` parents those that this rank takes: a number whose two children each leave no tile half full."""
        wanted = math.ceil(most * self.share(rank) / _STEP) * _STEP
        return min(most, wanted)

    def share(self, rank: int) -> float:
        """The part of a full batch that takes this rank as long as the fastest one takes for all of it."""
        if not self.seconds:
            return 1.0
        share = min(self.seconds) / self.seconds[rank]
        return 1.0 if share >= 1 - NOISE else max(LEAST_SHARE, share)

"""The free-running schedule: each rank bounds its own queue as fast as it can; queues that drift apart are levelled."""

from __future__ import annotations

from typing import Generic

import torch

from auto_LiRPA.parallel.groups import Group
from complete_verifier.bab.agreement import Agreed
from complete_verifier.bab.even_rounds import EvenRounds
from complete_verifier.bab.exchange import Move, levelling
from complete_verifier.bab.pace import Pace
from complete_verifier.bab.schedule import Expands, Work
from complete_verifier.bab.store import DomainStore
from complete_verifier.bab.subproblems import D, Numbering, Share

# A queue is levelled when it fills less than this share of a round that its fair share would fill, or holds less than
# that share of its fair share. It receives so many rounds at most at a time.
FILL_SHARE, DRIFT_SHARE = 0.8, 0.5
ROUNDS_MOVED = 4


class FreeRunning(Generic[D]):
    """See `schedule.Schedule`. ``batch_size`` parents a round are each rank's own."""

    def __init__(self, group: Group, expander: Expands[D], pace: Pace, spare: D) -> None:
        """``spare``: what a rank without domains bounds where others need its fetches."""
        self._group, self._expander, self._pace, self._spare = group, expander, pace, spare
        self._even = EvenRounds()

    def moves(self, agreed: Agreed) -> list[Move]:
        """See `schedule.Schedule`."""
        counts, batch = agreed.counts, self._expander.settings.batch_size
        share = sum(counts) // len(counts)
        fewest = min(counts)
        enough = max(FILL_SHARE * min(batch, share), DRIFT_SHARE * share)
        return levelling(counts, ROUNDS_MOVED * batch) if fewest < enough else []

    def pick(self, store: DomainStore[D], agreed: Agreed) -> Work[D]:
        """See `schedule.Schedule`."""
        self._even.heard(agreed)
        count = self._pace.batch(len(store), agreed.time_left)
        if count < len(store):  # a queue that ends with this round is not made to last longer
            count = self._even.parents(self._group.rank, count)
        own = store.take(count)
        return Work(own, own)

    def run(self, work: Work[D], first_id: int, number: int) -> Share[D]:
        """See `schedule.Schedule`."""
        parents, expander = work.parents, self._expander
        if len(parents) == 0:
            self._idle()
            return Share[D](next_id=first_id)
        place = torch.zeros_like(parents.id)
        if expander.width == 0:  # nothing is unstable: every root is a leaf
            share = Share[D](len(parents), next_id=first_id)
            expander.close_leaves(parents, place.tolist(), share)
            return share
        levels = expander.levels(parents)
        step = self._group.size
        expanded = expander.expand(parents, place, levels, Numbering(first_id, len(parents) * step, step))
        share = expander.sorted_out([expanded])
        share.next_id = first_id + len(expanded.children) * step
        share.effort = len(parents) * 2 ** (levels - 1)
        return share

    def _idle(self) -> None:
        """Make the passes that ranks with domains make, where they fetch weights from this one."""
        expander = self._expander
        if not expander.lockstep or expander.width == 0:
            return
        levels = expander.levels(self._spare, own=False)
        if levels > expander.width:  # on a mesh: none of those that fetch together has domains
            return
        expander.expand(self._spare, torch.zeros_like(self._spare.id), levels, Numbering(0, 1))

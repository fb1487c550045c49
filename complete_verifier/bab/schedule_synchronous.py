"""The synchronous schedule: each round takes and makes the same domains on any number of ranks, bit for bit.

A round takes the first `batch_size` domains of all queues together. They are dealt into jobs, by their number alone;
a job is bounded by itself, so that its bits don't depend on who does it or what else is done. Jobs go round the ranks,
beginning with another one each round, so that queues grow alike.
"""

from __future__ import annotations

from typing import Generic

import torch

from auto_LiRPA.parallel.groups import Group
from complete_verifier.bab.agreement import Agreed
from complete_verifier.bab.exchange import Move, first_of_all, levelling
from complete_verifier.bab.schedule import Expands, Work
from complete_verifier.bab.store import DomainStore
from complete_verifier.bab.subproblems import D, Numbering, Share

SYNCHRONOUS_TILE = 1024  # children of a job at most, unless its kind of search says otherwise
# Queues are levelled when the longest one is longer than its fair share by this share and by so many domains.
DRIFT_SHARE, LEAST_DRIFT = 0.02, 64
ROUNDS_MOVED = 1


class Synchronous(Generic[D]):
    """See `schedule.Schedule`. ``batch_size`` parents a round are those of all ranks together."""

    def __init__(self, group: Group, expander: Expands[D], like: D, tile: int) -> None:
        """``tile``: children of a job at most, a number that settings and network decide."""
        self._group, self._expander, self._like, self._tile = group, expander, like, tile

    def moves(self, agreed: Agreed) -> list[Move]:
        """See `schedule.Schedule`. What is taken next does not depend on where it lies."""
        counts = agreed.counts
        share = -(-sum(counts) // len(counts))
        over = max(counts) - share
        wanted = len(counts) > 1 and over > max(LEAST_DRIFT, DRIFT_SHARE * share)
        return levelling(counts, ROUNDS_MOVED * self._expander.settings.batch_size) if wanted else []

    def pick(self, store: DomainStore[D], agreed: Agreed) -> Work[D]:
        """See `schedule.Schedule`."""
        count = min(self._expander.settings.batch_size, agreed.open)
        return Work(*first_of_all(self._group, store, self._like, count))

    def run(self, work: Work[D], first_id: int, number: int) -> Share[D]:
        """See `schedule.Schedule`."""
        parents, expander, size = work.parents, self._expander, self._group.size
        turn = (self._group.rank - number) % size
        order = torch.arange(len(parents), device=parents.id.device)
        if expander.width == 0:  # nothing is unstable: every root is a leaf
            mine = order[turn::size]
            share = Share[D](len(mine), next_id=first_id)
            expander.close_leaves(parents.pick(mine), mine.tolist(), share)
            return share
        levels = expander.levels(parents)
        jobs = min(len(parents), -(-len(parents) * 2**levels // self._tile))
        parts = []
        for job in range(turn, -(-jobs // size) * size, size):
            place = order[job::jobs] if job < jobs else order[:1]
            if job >= jobs and not expander.lockstep:
                break
            batch = parents if jobs == 1 else parents.pick(place)
            # ids by place in the round: the same wherever the job is done
            ids = Numbering(first_id + job, len(parents), jobs)
            expanded = expander.expand(batch, place, levels, ids)
            if job < jobs:
                parts.append(expanded)
        share = expander.sorted_out(parts)
        share.next_id = first_id + len(parents) * 2**levels
        return share

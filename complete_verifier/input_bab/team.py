"""How the ranks of a run share one search: who has which boxes, and how boxes get from one to another.

Along the domains' axis ranks have queues of their own. All other ranks go through the same boxes side by side, and so
have to decide alike: whatever a clock, a counterexample or memory decides goes through `Team.status`, which every rank
calls at the same places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch

from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.groups import alone
from complete_verifier.bab.exchange import carry_out, first_of_all, levelling, packed, row_bytes, unpacked
from complete_verifier.bab.lockstep import is_whole
from complete_verifier.bab.store import DomainStore as TieredStore
from complete_verifier.bab.whole_weights import with_small_weights
from complete_verifier.input_bab.agreement import Report, Status, numbers, status
from complete_verifier.input_bab.domains import Domains
from complete_verifier.input_bab.store import DomainStore
from complete_verifier.problem import Problem

# Networks with few inputs are small, as a rule. Weights of no more than this are brought together on every rank, which
# then bounds its boxes at its own pace; larger ones stay where they are, and all ranks that share them bound the same
# boxes side by side. From the model alone.
WHOLE_WEIGHT_BYTES = 2**30
# Queues are levelled where the shortest has less than this share of the mean.
_LEVEL_BELOW = 0.5


def prepared(problem: Problem) -> Problem:
    """The problem as its boxes are searched: with whole weights, or else with a context that shares out no boxes.

    How many passes a box takes depends on the box. Where a weight is gathered from the ranks on every use they would
    have to make the same passes, so either no weight is, or all these ranks bound the same boxes. All ranks call it.
    """
    problem = with_small_weights(problem, WHOLE_WEIGHT_BYTES)
    context = problem.context
    if context.mode == "tp" or is_whole(problem.graph):
        return problem
    if context.lockstep:
        context = replace(context, domains=alone(context.counters), lockstep=context.rows.size > 1)
    return replace(problem, context=context)


def own_passes(context: DistributedContext) -> DistributedContext:
    """For passes over the boxes of a rank's own queue, and attacks on them."""
    return context.within_domains() if context.domains.size > 1 else context


def attack_context(context: DistributedContext, synchronous: bool) -> DistributedContext:
    """Of the ranks that attack the same boxes of a search together (`Team.together`: all of them)."""
    return context if synchronous else own_passes(context)


class Team:
    """The ranks of one search."""

    def __init__(self, context: DistributedContext, synchronous: bool, like: Domains) -> None:
        """``like``: domains of the kind that is searched."""
        self.context = context
        self.world, self.queues = context.world, context.domains
        self.index, self.count = context.domains.rank, context.domains.size
        self.synchronous = synchronous
        self._like = like
        me = self.world.rank
        self._peers = self.queues.members if self.count > 1 else (me,)
        # a mesh has the domains' axis last, so its coordinate is the remainder; joined axes have all ranks on it
        self._twins = [r for r in range(self.world.size) if r % self.count == me % self.count]

    @property
    def together(self) -> bool:
        """Whether all ranks know the same boxes, and handle candidates and attacks as one."""
        return self.synchronous or self.count == 1

    def status(self, report: Report) -> Status:
        """What all ranks know, from what each of them tells."""
        return status(self.world.numbers(numbers(report)), self._peers, self._twins)

    def mine(self, domains: Domains) -> Domains:
        """This rank's share of domains that all ranks have in the same order."""
        if self.count == 1:
            return domains
        return domains.pick(torch.arange(len(domains), device=domains.id.device)[self.index :: self.count])

    def take(self, store: DomainStore, count: int) -> tuple[Domains, Domains]:
        """The next domains: those that left this rank's queue, and all that the round is about."""
        if self.synchronous:
            return first_of_all(self.queues, _tiered(store), self._like, count)
        own = store.take(count)
        return own, own

    def look(self, store: DomainStore, count: int) -> Domains:
        """The first domains of all queues (synchronous: on every rank the same), or of this rank's; they stay."""
        if not self.synchronous:
            return store.look(count)
        own, every = first_of_all(self.queues, _tiered(store), self._like, count)
        store.add(own)
        return every

    def all_of(self, domains: Domains) -> Domains:
        """Every rank's domains, in the order of their ids."""
        if self.count > 1:
            counts = [int(row[0]) for row in self.queues.numbers([len(domains)])]
            padded = torch.zeros(max(counts), row_bytes(self._like), dtype=torch.uint8, device=self._like.id.device)
            if len(domains):
                padded[: len(domains)] = packed(domains)
            every = self.queues.gather(padded)
            domains = unpacked(torch.cat([every[r, :n] for r, n in enumerate(counts)]), self._like)
        return domains.pick(domains.id.argsort())

    def level(self, store: DomainStore, lengths: Sequence[int]) -> tuple[int, ...]:
        """Move domains from long queues to short ones; the queues' lengths afterwards."""
        share = sum(lengths) // self.count
        if self.count == 1 or min(lengths) >= _LEVEL_BELOW * share:
            return tuple(lengths)
        moves = levelling(lengths, max(lengths))
        carry_out(moves, self.queues, _tiered(store), self._like, Domains.worst)
        after = list(lengths)
        for step in moves:
            after[step.source] -= step.count
            after[step.target] += step.count
        return tuple(after)

    def lengths(self, store: DomainStore) -> tuple[int, ...]:
        """Of all queues."""
        return tuple(int(row[0]) for row in self.queues.numbers([len(store)]))


def _tiered(store: DomainStore) -> TieredStore[Domains]:
    """The queue as the exchange of domains sees it: both kinds of store have what it asks for."""
    return cast("TieredStore[Domains]", store)

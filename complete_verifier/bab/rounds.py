"""Rounds of branch and bound as all ranks agree on them, whatever is split.

A round is a transaction: it counts if every rank comes through it, or all of them undo it. Ranks that go *apart* (the
free-running schedule, where no rank fetches weights with another) settle their rounds by themselves. As long as their
queues are full they do not even wait for each other's numbers: those are on their way while the next round is bounded,
so that all ranks decide at the end of a round by what was so at the end of the one before.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic

import numpy as np
import torch

from auto_LiRPA.errors import ContractError
from auto_LiRPA.parallel.context import DistributedContext
from complete_verifier.bab.agreement import NOWHERE, Agreed, Status, agree, digest, least, tell
from complete_verifier.bab.attempt import Attempt, attempt
from complete_verifier.bab.exchange import carry_out
from complete_verifier.bab.keeper import Keeper
from complete_verifier.bab.ledger import Ledger
from complete_verifier.bab.lockstep import Lockstep
from complete_verifier.bab.pace import Pace
from complete_verifier.bab.schedule import Schedule, Work
from complete_verifier.bab.settings import BabProgress, BabResult, BabSettings
from complete_verifier.bab.store import DomainStore
from complete_verifier.bab.subproblems import D, OnCandidate, Share
from complete_verifier.problem import Clock

_LOG = logging.getLogger(__name__)
# Ranks go on without waiting while their queues last for so many rounds, a round is so large a part of what the pace
# allows (it grows before that), and the time left is that of so many rounds.
_FULL_ROUNDS, _GROWN, _ROUNDS_LEFT = 2, 0.75, 3

OnProgress = Callable[[BabProgress], None]


@dataclass(slots=True)
class SearchState:
    """Counters of one search. All but ``next_id`` and ``ledger`` are those of all ranks."""

    started: float
    visited: int = 0
    rounds: int = 0
    next_id: int = 0
    undecided_leaves: int = 0
    ledger: Ledger = field(default_factory=Ledger)


class Rounds(Generic[D]):
    """One search: a queue on each rank, a schedule that makes rounds of them, and the loop around it.

    ``roots``: the same on every rank. ``stuck``: words for an end as soon as a sub-problem is left that nothing can
    decide; empty: the search goes on, as another one may still be a counterexample.
    """

    context: DistributedContext
    clock: Clock
    settings: BabSettings
    keeper: Keeper
    on_progress: OnProgress | None
    on_candidate: OnCandidate | None
    roots: D
    lockstep: Lockstep
    pace: Pace
    schedule: Schedule[D]
    state: SearchState
    stuck: str = ""
    _flying: Callable[[], Agreed] | None = None  # the last round's numbers, which nobody has waited for
    _found: tuple[int, np.ndarray] | None = None  # this rank's first counterexample, and its place

    @property
    def apart(self) -> bool:
        """Whether ranks settle their rounds by themselves: no other rank has the same queue or fetches weights."""
        world = self.context.world
        return not self.settings.synchronous and not self.lockstep and 1 < world.size == self.context.domains.size

    def run(self) -> BabResult:
        """Rounds until nothing is open or a limit is reached."""
        with DomainStore(self.roots, self.settings.traversal) as store:
            return self._run(store)

    def _run(self, store: DomainStore[D]) -> BabResult:
        agreed = self._begin(store)
        reason = ""
        while agreed.open:
            reason = self._limit(agreed)
            if reason:
                break
            agreed = self._round(store, agreed)
            if agreed.finder is not None:
                self._tell_candidate(agreed.finder)
                return self._result(False, "counterexample", store)
            if not agreed.counts_for:  # the parents are back in the queues; the next round is smaller, or there is none
                continue
            if agreed.due:
                self.keeper.save(store, self.state, agreed.next_id, self.context)
        if reason:
            world = self.context.world
            if world.some(world.rank == 0 and self.keeper.affords_last(store.bytes(), agreed.time_left)):
                self.keeper.save(store, self.state, agreed.next_id, self.context)
            return self._result(False, reason, store)
        if self.state.undecided_leaves:
            words = self.stuck or f"{self.state.undecided_leaves} leaves with all neurons split"
            return self._result(False, words, store)
        if self.settings.record_ledger and not self._covered(self._ledger()):
            raise ContractError("the closed leaves do not cover the root")
        return self._result(True, "all domains closed", store)

    # -- one round ---------------------------------------------------------------------------------------------------
    def _begin(self, store: DomainStore[D]) -> Agreed:
        """Fill the queues: from a checkpoint, or with the roots."""
        group = self.context.domains
        resumed = self.keeper.restore(store, self.roots, self.state, self.context)
        if not resumed:
            mine = self.roots.pick(self._numbers(group.rank, len(self.roots), group.size))
            store.add(mine, mine.lower)
            self.state.next_id = len(self.roots)
        first_id = self.state.next_id
        if not self.settings.synchronous:
            self.state.next_id += group.rank  # every rank has ids of its own
        left = self.clock.left()
        agreed = agree(self.context, Status(len(store), next_id=first_id, time_left=left))
        if not resumed:
            if agreed.open != len(self.roots):
                raise ContractError(f"{agreed.open} of {len(self.roots)} sub-problems are in the ranks' queues")
            self.keeper.save(store, self.state, first_id, self.context)
        return agreed

    def _round(self, store: DomainStore[D], before: Agreed) -> Agreed:
        """One round of all ranks. Returns the last one that all have told of."""
        began = time.monotonic()
        number = self.state.rounds + 1 + (self._flying is not None)
        self.context.at(f"round {number} of branch and bound")
        if self._flying is None:
            moves = self.schedule.moves(before)
            carry_out(moves, self.context.domains, store, self.roots, lambda domains: domains.lower)
        work = self.schedule.pick(store, before) if self._found is None else self._nothing(store)
        behind = self._worst_behind(store)
        tried = attempt(lambda: self.schedule.run(work, self.state.next_id, number), not self.lockstep)
        if self.apart:
            self._settle(store, work, tried.value)
        status = self._status(store, work, tried, time.monotonic() - began, behind)
        told = tell(self.context, status, self.apart)
        if self.apart:
            return self._hear(told, before)
        agreed = told()
        self._settle(store, work, tried.value if agreed.counts_for else None)
        return self._note(agreed, before, tried.shortage)

    def _nothing(self, store: DomainStore[D]) -> Work[D]:
        """A round of a rank that has found what all look for."""
        none = store.take(0)
        return Work(none, none)

    def _settle(self, store: DomainStore[D], work: Work[D], share: Share[D] | None) -> None:
        """Let this rank's part of a round count: its children go into the queue. Or undo it: its parents go back."""
        if share is None:
            store.add(work.own, work.own.lower)
            return
        self.state.next_id = share.next_id
        self.state.ledger.leaves += share.ledger.leaves
        if share.left is not None:
            store.add(share.left, share.left.lower)
        if share.candidate is not None:
            self._found = (share.place, share.candidate)

    def _hear(self, told: Callable[[], Agreed], before: Agreed) -> Agreed:
        """What all ranks have told: up to the round before, if there is nothing to be done together, or up to now."""
        flying, self._flying = self._flying, None
        if flying is not None:
            before = self._note(flying(), before)
        if self._steady(before):
            self._flying = told
            return before
        return self._note(told(), before)

    def _steady(self, agreed: Agreed) -> bool:
        """Whether the next round can begin before the last one is known; from numbers that all ranks know."""
        if agreed.late or agreed.short or agreed.due or agreed.finder is not None or self._limit(agreed):
            return False
        if 0 <= self.settings.max_iterations < self.state.rounds + 2:
            return False
        wanted = self.pace.batch(max(agreed.counts), agreed.time_left)
        grown = agreed.effort >= _GROWN * wanted and agreed.time_left > _ROUNDS_LEFT * agreed.seconds
        return grown and min(agreed.counts) >= _FULL_ROUNDS * wanted and not self.schedule.moves(agreed)

    def _note(self, agreed: Agreed, before: Agreed, shortage: str = "") -> Agreed:
        """Add a round that all have told of to the totals."""
        agreed.check(before.open)
        agreed.check_twins(self.state.rounds + 1)
        if agreed.short and not agreed.late and self.pace.ran_out_of_memory(agreed.short):
            words = f" ({shortage})" if shortage else ""
            _LOG.warning("out of memory with %d domains in a round%s: going on with fewer", agreed.short, words)
        if agreed.counts_for:
            self.state.rounds += 1
            self.state.visited += agreed.visited
            self.state.undecided_leaves += agreed.undecided
            if not agreed.short:
                self.pace.ended(agreed.effort, agreed.seconds, agreed.room)
            self._report(agreed)
        return agreed

    def _worst_behind(self, store: DomainStore[D]) -> Callable[[], float]:
        """The least bound of what the round has left in the queue, if anybody asks for it.

        On a GPU it is on its way while the round is bounded, and is there when the round's counts are: the status of a
        round waits for nothing more.
        """
        asked = self.context.world.size > 1 or self.on_progress is not None
        return store.worst_margin_later() if asked else lambda: NOWHERE

    def _status(
        self,
        store: DomainStore[D],
        work: Work[D],
        tried: Attempt[Share[D]],
        seconds: float,
        behind: Callable[[], float],
    ) -> Status:
        """What this rank has to say of its part of a round; ``behind``: the least bound of the queue within it."""
        share = tried.value or Share[D](next_id=self.state.next_id)
        left = 0 if share.left is None else len(share.left)
        found = self._found if share.candidate is None else (share.place, share.candidate)
        undone = self.apart and tried.value is None  # the parents are back in the queue
        alone = self.context.domains.size == self.context.world.size
        return Status(
            open=len(store) + (0 if self.apart else left),
            taken=0 if undone else len(work.own),
            done=share.parents,
            left=left,
            visited=share.visited,
            undecided=share.undecided,
            next_id=share.next_id,
            effort=share.effort,
            late=tried.late,
            short=len(work.parents) if tried.shortage else 0,
            found=NOWHERE if found is None else found[0],
            room=self.pace.has_room(),
            due=self.keeper.due(store.bytes(), self.clock.left()),
            seconds=seconds,
            time_left=self.clock.left(),
            worst=store.worst_margin() if undone else least((behind(), share.worst)),
            digest=0 if alone else digest(work.own.id, None if share.left is None else share.left.id),
        )

    # -- the rest ----------------------------------------------------------------------------------------------------
    def _limit(self, agreed: Agreed) -> str:
        """Why the search has to stop now; empty if it may go on."""
        if agreed.late or agreed.time_left <= 0:
            return "time limit"
        if agreed.short and not self.pace.can_shrink(agreed.short):
            more = "; lower solver.batch_size" if agreed.short > 1 else ""
            return f"out of memory with {agreed.short} domains in a round{more}"
        if 0 <= self.settings.max_iterations <= self.state.rounds:
            return f"round limit {self.settings.max_iterations}"
        if agreed.open > self.settings.max_domains:
            return f"domain limit {self.settings.max_domains:.0f}"
        return self.stuck if self.state.undecided_leaves else ""

    def _tell_candidate(self, finder: int) -> None:
        """All ranks learn of the first counterexample."""
        world = self.context.world
        found = world.same_object(None if self._found is None else self._found[1], finder)
        if world.rank != finder and found is not None and self.on_candidate is not None:
            self.on_candidate(found)

    def _covered(self, ledger: Ledger) -> bool:
        """Whether the closed leaves cover all that was to be searched."""
        return ledger.covers(sorted(set(self.roots.clause.tolist())))

    def _report(self, agreed: Agreed) -> None:
        if self.on_progress is not None:
            seconds = time.monotonic() - self.state.started
            self.on_progress(BabProgress(self.state.rounds, agreed.open, self.state.visited, agreed.worst, seconds))

    def _result(self, closed: bool, reason: str, store: DomainStore[D]) -> BabResult:
        worst = least(row[0] for row in self.context.world.numbers([store.worst_margin()]))
        if closed and worst != float("inf"):
            raise ContractError("domains are open at the end of a search that closed all of them")
        seconds = time.monotonic() - self.state.started
        return BabResult(closed, reason, self.state.visited, self.state.rounds, worst, seconds)

    def _ledger(self) -> Ledger:
        """The closed leaves of all ranks."""
        return Ledger([leaf for part in self.context.domains.objects(self.state.ledger.leaves) for leaf in part])

    def _numbers(self, first: int, stop: int, step: int = 1) -> torch.Tensor:
        return torch.arange(min(first, stop), stop, step, device=self.roots.id.device)

"""The branch-and-bound loop on activation splits: rounds that one schedule makes, on one rank or on many."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from auto_LiRPA.bounds.columns import Layout
from auto_LiRPA.bounds.domains.ascent import AscentSettings
from auto_LiRPA.errors import ContractError
from auto_LiRPA.parallel.numerics import full_precision
from complete_verifier.bab.agreement import NOWHERE, Agreed, Status, agree, least
from complete_verifier.bab.attempt import Attempt, attempt
from complete_verifier.bab.bounding import make_bounder
from complete_verifier.bab.clip import Clipper, ClipSettings, make_clipper
from complete_verifier.bab.domains import Domains
from complete_verifier.bab.exchange import carry_out
from complete_verifier.bab.expansion import Expander, OnCandidate, Share
from complete_verifier.bab.keeper import Keeper
from complete_verifier.bab.leaves import LeafSolver
from complete_verifier.bab.ledger import Ledger
from complete_verifier.bab.lockstep import lockstep_of
from complete_verifier.bab.pace import Pace
from complete_verifier.bab.roots import root_domains
from complete_verifier.bab.same_start import check_same_start
from complete_verifier.bab.schedule import Schedule, Work
from complete_verifier.bab.schedule_free import FreeRunning
from complete_verifier.bab.schedule_synchronous import SYNCHRONOUS_TILE, Synchronous
from complete_verifier.bab.settings import BabProgress, BabResult, BabSettings, Tiling
from complete_verifier.bab.shrink import shrunk
from complete_verifier.bab.spread_search import for_search, with_whole_weights
from complete_verifier.bab.store import DomainStore
from complete_verifier.branching.brancher import make_brancher
from complete_verifier.branching.columns import make_columns
from complete_verifier.branching.layout import make_layout
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.problem import Problem

# Domains bounded together in the free-running schedule: as fits caches, or a GPU's width. On a GPU a candidate of
# look-ahead costs two thirds of a domain's memory and one pass.
GPU_TILE = 4096
CPU_TILE_ELEMENTS = 2**17
# Iterations between two looks at what is proved: looking makes a GPU wait.
LOOK_EVERY_CUDA = 5

_LOG = logging.getLogger(__name__)

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


def search(
    problem: Problem,
    start: IncompleteResult,
    settings: BabSettings,
    on_progress: OnProgress | None = None,
    on_candidate: OnCandidate | None = None,
    keeper: Keeper | None = None,
) -> BabResult:
    """Try to close every clause that the incomplete stage left open. Ranks that share domains call it together.

    Args:
        start: the same on every rank.
        on_progress: told after each round where all ranks together stand.
        on_candidate: called with an input (``[*input]``) that an LP leaf found to violate its clause; where it is
            confirmed, it is called on all other ranks too.
        keeper: writes checkpoints, and may have one to go on from (``start`` is what that search began with, then).

    Returns:
        The same on every rank. ``closed`` only if every leaf of every clause's tree was proved. Any limit leaves it
        False.

    Raises:
        ConfigError: a branching method that is not available.
    """
    with torch.no_grad(), full_precision():
        problem, start = for_search(problem, start)
        return _Search(problem, start, settings, on_progress, on_candidate, keeper or Keeper(None, None)).run()


class _Search:
    """One search: what it owns, and a round as all ranks agree on it."""

    def __init__(
        self,
        problem: Problem,
        start: IncompleteResult,
        settings: BabSettings,
        on_progress: OnProgress | None,
        on_candidate: OnCandidate | None,
        keeper: Keeper,
    ) -> None:
        self.context, self.keeper, self.settings = problem.context, keeper, settings
        self.on_progress, self.on_candidate = on_progress, on_candidate
        self.device, dtype = start.lower.device, start.lower.dtype
        stored = torch.float16 if settings.half_variables and dtype == torch.float32 else dtype
        self.roots = root_domains(problem, start, make_layout(problem.graph, start.intermediate), stored)
        check_same_start(problem, start, self.roots, settings.synchronous)
        own = replace(problem, context=problem.context.within_domains())
        self.problem, self.start = shrunk(own, start)
        self.layout: Layout = make_layout(self.problem.graph, self.start.intermediate)
        self.lockstep = lockstep_of(self.context, self.problem.graph)
        tiling = make_tiling(self.problem, settings, self.device)
        clipper = None if settings.clip is None else self._clipper(settings.clip)
        if clipper is not None:
            self.roots = clipper.opened(self.roots)
        self._solver: LeafSolver | None = None
        if self.lockstep and self.layout.complete and self.problem.graph.spread is None:
            self._leaf_solver()  # it copies the weights: all ranks at once, or never
        expander = Expander(
            settings=settings,
            layout=self.layout,
            bounder=make_bounder(
                self.problem, self.start, self.layout, ascent_settings(settings, self.device), tiling, self.lockstep
            ),
            brancher=make_brancher(
                settings.method,
                make_columns(self.problem.graph, self.layout, dtype, self.device),
                candidates=settings.candidates,
                reduceop=settings.reduceop,
                seed=settings.seed,
            ),
            clipper=clipper,
            lockstep=self.lockstep,
            height=tiling.height,
            leaf_solver=self._leaf_solver,
            on_candidate=on_candidate,
            seconds_left=problem.clock.left,
            told=lambda step: self.context.at(step, patient=True),
        )
        self.pace = Pace(settings, self.device)
        group = self.context.domains
        self.schedule: Schedule = (
            Synchronous(group, expander, self.roots)
            if settings.synchronous
            else FreeRunning(group, expander, self.pace, self.roots.pick(self._numbers(0, min(1, len(self.roots)))))
        )
        self.state = SearchState(time.monotonic())

    def run(self) -> BabResult:
        """Rounds until nothing is open or a limit is reached."""
        with DomainStore(self.roots, self.settings.traversal) as store:
            return self._run(store)

    def _run(self, store: DomainStore[Domains]) -> BabResult:
        agreed = self._begin(store)
        reason = ""
        while agreed.open:
            reason = self._limit(agreed)
            if reason:
                break
            agreed = self._round(store, agreed)
            if agreed.finder is not None:
                return self._result(False, "counterexample", store)
            if not agreed.counts_for:  # the parents are back in the queues; the next round is smaller, or there is none
                continue
            if agreed.due:
                self.keeper.save(store, self.state, agreed.next_id, self.context)
            self._report(agreed)
        if reason:
            world = self.context.world
            if world.some(world.rank == 0 and self.keeper.affords_last(store.bytes(), agreed.time_left)):
                self.keeper.save(store, self.state, agreed.next_id, self.context)
            return self._result(False, reason, store)
        if self.state.undecided_leaves:
            return self._result(False, f"{self.state.undecided_leaves} leaves with all neurons split", store)
        if self.settings.record_ledger and not self._ledger().covers(sorted(set(self.roots.clause.tolist()))):
            raise ContractError("the closed leaves do not cover the root")
        return self._result(True, "all domains closed", store)

    # -- one round ---------------------------------------------------------------------------------------------------
    def _begin(self, store: DomainStore[Domains]) -> Agreed:
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
        left = self.problem.clock.left()
        agreed = agree(self.context, Status(len(store), next_id=first_id, time_left=left))
        if not resumed:
            if agreed.open != len(self.roots):
                raise ContractError(f"{agreed.open} of {len(self.roots)} sub-problems are in the ranks' queues")
            self.keeper.save(store, self.state, first_id, self.context)
        return agreed

    def _round(self, store: DomainStore[Domains], before: Agreed) -> Agreed:
        """One round of all ranks. It counts if all came through it; else it is undone on all of them."""
        began = time.monotonic()
        number = self.state.rounds + 1
        self.context.at(f"round {number} of branch and bound")
        moves = self.schedule.moves(before)
        carry_out(moves, self.context.domains, store, self.roots, lambda domains: domains.lower)
        work = self.schedule.pick(store, before)
        tried = attempt(lambda: self.schedule.run(work, self.state.next_id, number), not self.lockstep)
        agreed = agree(self.context, self._status(store, work, tried, time.monotonic() - began))
        agreed.check(before.open)
        if not agreed.counts_for:
            store.add(work.own, work.own.lower)
            if agreed.short and not agreed.late and self.pace.ran_out_of_memory(agreed.short):
                words = f" ({tried.shortage})" if tried.shortage else ""
                _LOG.warning("out of memory with %d domains in a round%s: going on with fewer", agreed.short, words)
            return agreed
        self._count(store, agreed, tried.value or Share(next_id=self.state.next_id))
        return agreed

    def _status(self, store: DomainStore[Domains], work: Work, tried: Attempt[Share], seconds: float) -> Status:
        """What this rank has to say of its part of a round."""
        share = tried.value or Share(next_id=self.state.next_id)
        left = 0 if share.left is None else len(share.left)
        worst = NOWHERE
        if self.context.world.size > 1 or self.on_progress is not None:
            worst = store.worst_margin(None if share.left is None else share.left.lower)
        return Status(
            open=len(store) + left,
            taken=len(work.own),
            done=share.parents,
            left=left,
            visited=share.visited,
            undecided=share.undecided,
            next_id=share.next_id,
            effort=share.effort,
            late=tried.late,
            short=len(work.parents) if tried.shortage else 0,
            found=NOWHERE if share.candidate is None else share.place,
            room=self.pace.has_room(),
            due=self.keeper.due(store.bytes(), self.problem.clock.left()),
            seconds=seconds,
            time_left=self.problem.clock.left(),
            worst=worst,
        )

    def _count(self, store: DomainStore[Domains], agreed: Agreed, share: Share) -> None:
        """Let a round count: its children go into the queue, its numbers into the totals."""
        self.state.rounds += 1
        self.state.visited += agreed.visited
        self.state.undecided_leaves += agreed.undecided
        self.state.next_id = share.next_id
        self.state.ledger.leaves += share.ledger.leaves
        if share.left is not None:
            store.add(share.left, share.left.lower)
        self.pace.ended(agreed.effort, agreed.seconds, agreed.room)
        if agreed.finder is not None:
            world = self.context.world
            found = world.same_object(share.candidate, agreed.finder)
            if world.rank != agreed.finder and found is not None and self.on_candidate is not None:
                self.on_candidate(found)

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
        return ""

    def _report(self, agreed: Agreed) -> None:
        if self.on_progress is not None:
            seconds = time.monotonic() - self.state.started
            self.on_progress(BabProgress(self.state.rounds, agreed.open, self.state.visited, agreed.worst, seconds))

    def _result(self, closed: bool, reason: str, store: DomainStore[Domains]) -> BabResult:
        worst = least(row[0] for row in self.context.world.numbers([store.worst_margin()]))
        if closed and worst != float("inf"):
            raise ContractError("domains are open at the end of a search that closed all of them")
        seconds = time.monotonic() - self.state.started
        return BabResult(closed, reason, self.state.visited, self.state.rounds, worst, seconds)

    def _ledger(self) -> Ledger:
        """The closed leaves of all ranks."""
        return Ledger([leaf for part in self.context.domains.objects(self.state.ledger.leaves) for leaf in part])

    def _clipper(self, settings: ClipSettings) -> Clipper | None:
        """All ranks clip, or none does: one of them may have had no time to prepare."""
        made = make_clipper(with_whole_weights(self.problem), self.start, self.layout, settings)
        return None if self.context.world.some(made is None) else made

    def _leaf_solver(self) -> LeafSolver:
        if self._solver is None:
            self._solver = LeafSolver(with_whole_weights(self.problem), self.start, self.layout)
        return self._solver

    def _numbers(self, first: int, stop: int, step: int = 1) -> torch.Tensor:
        return torch.arange(min(first, stop), stop, step, device=self.device)


def ascent_settings(settings: BabSettings, device: torch.device) -> AscentSettings:
    """How a batch of domains is optimised."""
    prunes = settings.pruning_in_iteration and not settings.synchronous
    return AscentSettings(
        iterations=settings.iterations,
        lr_alpha=settings.lr_alpha,
        lr_beta=settings.lr_beta,
        decay=settings.decay,
        patience=float("inf") if settings.synchronous else settings.patience,
        start_save_best=settings.start_save_best,
        prune_above=settings.pruning_ratio if prunes else float("inf"),
        look_every=LOOK_EVERY_CUDA if device.type == "cuda" else 1,
        ends_early=not settings.synchronous,
    )


def make_tiling(problem: Problem, settings: BabSettings, device: torch.device) -> Tiling:
    """Heights come from the model and the settings alone."""
    # the fused kernels run in every mode, or the bits would differ; the engine captures them where weights stay put
    if settings.synchronous:
        return Tiling(SYNCHRONOUS_TILE, True)
    if device.type == "cuda":
        return Tiling(GPU_TILE, True)
    widest = max(node.size for node in problem.graph.nodes[1:])
    height = 2 ** max(5, min(12, (CPU_TILE_ELEMENTS // max(1, widest)).bit_length() - 1))
    return Tiling(height, False)

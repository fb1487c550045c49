"""The branch-and-bound loop on activation splits: pick, choose neurons, split, bound, close, store."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from auto_LiRPA.bounds.columns import Layout
from auto_LiRPA.bounds.domains.ascent import AscentSettings
from auto_LiRPA.errors import ContractError, OutOfTime
from auto_LiRPA.parallel.numerics import full_precision
from complete_verifier.bab.bounding import make_bounder, try_children
from complete_verifier.bab.clip import make_clipper
from complete_verifier.bab.domains import Domains, tiles
from complete_verifier.bab.keeper import Keeper
from complete_verifier.bab.leaves import LeafSolver
from complete_verifier.bab.ledger import Ledger
from complete_verifier.bab.oom import MemoryGuard
from complete_verifier.bab.pace import Pace
from complete_verifier.bab.roots import root_domains
from complete_verifier.bab.settings import BabProgress, BabResult, BabSettings, Tiling
from complete_verifier.bab.shrink import shrunk
from complete_verifier.bab.split import split
from complete_verifier.bab.store import DomainStore
from complete_verifier.branching.brancher import Brancher, BranchInput, make_brancher
from complete_verifier.branching.columns import make_columns
from complete_verifier.branching.layout import make_layout
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.problem import Problem

# Domains bounded together: fixed where every rank must make the same tiles (DESIGN 2.5); else as fits caches, or a
# GPU's width. On a GPU a candidate of look-ahead costs two thirds of a domain's memory and one pass.
SYNCHRONOUS_TILE = 1024
GPU_TILE = 4096
CPU_TILE_ELEMENTS = 2**17
CHOOSE_TILE = 2048  # parents whose neurons are scored together
# Iterations between two looks at what is proved: looking makes a GPU wait.
LOOK_EVERY_CUDA = 5

OnProgress = Callable[[BabProgress], None]
OnCandidate = Callable[[np.ndarray], bool]  # an input that may violate; True: confirmed, the search can stop


@dataclass(slots=True)
class SearchState:
    """Counters of one search."""

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
    """Try to close every clause that the incomplete stage left open.

    Args:
        on_candidate: called with an input (``[*input]``) that an LP leaf found to violate its clause.
        keeper: writes checkpoints, and may have one to go on from (``start`` is what that search began with, then).

    Returns:
        ``closed`` only if every leaf of every clause's tree was proved. Any limit leaves it False.

    Raises:
        ConfigError: a branching method that is not available.
    """
    with torch.no_grad(), full_precision():
        return _Search(problem, start, settings, on_progress, on_candidate, keeper or Keeper(None, None)).run()


class _Search:
    """One search: what it owns and the steps of a round."""

    def __init__(
        self,
        problem: Problem,
        start: IncompleteResult,
        settings: BabSettings,
        on_progress: OnProgress | None,
        on_candidate: OnCandidate | None,
        keeper: Keeper,
    ) -> None:
        self.keeper = keeper
        self.settings, self.on_progress, self.on_candidate = settings, on_progress, on_candidate
        self.device, dtype = start.lower.device, start.lower.dtype
        stored = torch.float16 if settings.half_variables and dtype == torch.float32 else dtype
        self.roots = root_domains(problem, start, make_layout(problem.graph, start.intermediate), stored)
        self.problem, self.start = shrunk(problem, start)
        self.layout: Layout = make_layout(self.problem.graph, self.start.intermediate)
        self.tiling = make_tiling(self.problem, settings, self.device)
        self.bounder = make_bounder(
            self.problem, self.start, self.layout, ascent_settings(settings, self.device), self.tiling
        )
        columns = make_columns(self.problem.graph, self.layout, dtype, self.device)
        self.brancher: Brancher = make_brancher(
            settings.method, columns, candidates=settings.candidates, reduceop=settings.reduceop, seed=settings.seed
        )
        clip = settings.clip
        self.clipper = None if clip is None else make_clipper(self.problem, self.start, self.layout, clip)
        if self.clipper is not None:
            self.roots = self.clipper.opened(self.roots)
        self.pace = Pace(settings, self.device)
        self.guard = MemoryGuard(self.pace.ran_out_of_memory)
        self._leaf_solver: LeafSolver | None = None
        self.state = SearchState(time.monotonic())

    def run(self) -> BabResult:
        """Rounds until nothing is open or a limit is reached."""
        with DomainStore(self.roots, self.settings.traversal) as store:
            return self._run(store)

    def _run(self, store: DomainStore[Domains]) -> BabResult:
        roots = self.roots
        self.state.next_id = len(roots)
        if not self.keeper.restore(store, roots, self.state):
            store.add(roots, roots.lower)
            self.keeper.save(store, self.state)
        reason = ""
        while len(store):
            reason = self._limit(len(store))
            if reason:
                break
            self.state.rounds += 1
            parents = store.take(self.pace.batch(len(store), self.problem.clock.left()))
            try:
                done = self.guard.run(
                    parents, lambda batch: self._round(batch, store), lambda batch: store.add(batch, batch.lower)
                )
            except OutOfTime:
                store.add(parents, parents.lower)
                reason = "time limit"
                break
            if done is None:  # the parents are back in the store; the next batch is smaller, or there is none
                reason = self.guard.reason
                if reason:
                    break
                continue
            if done.value:
                return self._result(False, "counterexample", store)
            self.keeper.save_if_due(store, self.state, self.problem.clock.left())
            self._report(store)
        if reason or len(store):
            self.keeper.save_last(store, self.state, self.problem.clock.left())
            return self._result(False, reason, store)
        if self.state.undecided_leaves:
            return self._result(False, f"{self.state.undecided_leaves} leaves with all neurons split", store)
        if self.settings.record_ledger and not self.state.ledger.covers(sorted(set(roots.clause.tolist()))):
            raise ContractError("the closed leaves do not cover the root")
        return self._result(True, "all domains closed", store)

    def _round(self, parents: Domains, store: DomainStore[Domains]) -> bool:
        """Split, bound and sort one batch; True if a counterexample was confirmed."""
        began = time.monotonic()
        if self.layout.width == 0:  # nothing is unstable: every root is a leaf
            return self._close_leaves(parents)
        levels = self._levels(parents)
        columns, ready, coef = self._choose(parents, levels)
        children = split(parents, columns, self.state.next_id)
        self.state.next_id += len(children)
        empty = torch.zeros_like(children.lower, dtype=torch.bool)
        if self.clipper is not None:
            children, empty = self.clipper.clip(children, None if coef is None else coef.repeat(2**levels, 1))
        children = self.bounder.bound(children, self.problem.clock.left)
        # a parent without a neuron to split has no children: it is a leaf, and what stands in their place is dropped
        real = ready.repeat(2**levels)
        closed = (self.bounder.proven(children, children.lower) | empty) & real
        still_open = real & ~closed
        leaves, visited, left = torch.stack([(~ready).sum(), real.sum(), still_open.sum()]).tolist()
        self.state.visited += visited
        if self.settings.record_ledger:
            self.state.ledger.close(children.pick((closed & ~empty).nonzero().squeeze(-1)), "bound")
            self.state.ledger.close(children.pick((closed & empty).nonzero().squeeze(-1)), "empty")
        # before the children go into the store: if time or memory ends here, the parents go back there instead
        if leaves and self._close_leaves(parents.pick((~ready).nonzero().squeeze(-1))):
            return True
        if left:
            remaining = children if left == len(children) else children.pick(still_open.nonzero().squeeze(-1))
            store.add(remaining, remaining.lower)
        self.pace.ended(len(parents) * 2 ** (levels - 1), time.monotonic() - began)
        return False

    def _choose(self, parents: Domains, levels: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Columns to split ``[D, levels]``, which parents have one ``[D]``, and the coefficients where clipping asks.

        Tile by tile: scores take a dozen tensors as wide as all columns.
        """
        parts = [self._choose_tile(tile, levels) for tile in tiles(parents, CHOOSE_TILE)]
        coef = None if self.clipper is None else torch.cat([part[2] for part in parts])
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]), coef

    def _choose_tile(self, parents: Domains, levels: int) -> tuple[Tensor, Tensor, Tensor]:
        facts = self.bounder.facts(parents)
        known = BranchInput(facts.coef, facts.lower, facts.upper, parents.sign, parents.id, parents.depth)

        def tried(parent: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
            return try_children(self.bounder, parents, parent, column, self.tiling.height)

        return self.brancher.choose(known, levels, tried), known.splittable().any(1), facts.coef

    def _levels(self, parents: Domains) -> int:
        """Levels split at once: as many as fill the least batch, but no more than every parent has neurons for."""
        target = min(self.settings.min_batch_ratio * self.settings.batch_size, self.settings.batch_size)
        levels = 1
        while len(parents) * 2 ** (levels + 1) <= target:
            levels += 1
        if levels == 1:
            return 1
        facts = self.bounder.facts(parents)
        splittable = ((facts.lower < 0) & (facts.upper > 0) & (parents.sign == 0)).sum(1)
        # leaves among the parents are no reason to go slowly
        return max(1, min(levels, int(torch.where(splittable > 0, splittable, levels).amin())))

    def _close_leaves(self, leaves: Domains) -> bool:
        """Decide domains without a splittable neuron by LP; what it cannot decide stays undecided for good."""
        if not self.layout.complete:
            self.state.undecided_leaves += len(leaves)
            return False
        if self._leaf_solver is None:
            self._leaf_solver = LeafSolver(self.problem, self.start, self.layout)
        for position in range(len(leaves)):
            if self.problem.clock.left() <= 0:
                raise OutOfTime
            leaf = leaves.pick(torch.tensor([position], device=leaves.id.device))
            found = self._leaf_solver.solve(leaf)
            if found.closed:
                if self.settings.record_ledger:
                    self.state.ledger.close(leaf, "lp")
                continue
            if found.candidate is not None and self.on_candidate is not None and self.on_candidate(found.candidate):
                return True
            self.state.undecided_leaves += 1
        return False

    def _limit(self, open_domains: int) -> str:
        """Why the search has to stop now; empty if it may go on."""
        if self.problem.clock.left() <= 0:
            return "time limit"
        if 0 <= self.settings.max_iterations <= self.state.rounds:
            return f"round limit {self.settings.max_iterations}"
        if open_domains > self.settings.max_domains:
            return f"domain limit {self.settings.max_domains:.0f}"
        return ""

    def _report(self, store: DomainStore[Domains]) -> None:
        if self.on_progress is not None:
            self.on_progress(
                BabProgress(
                    self.state.rounds,
                    len(store),
                    self.state.visited,
                    store.worst_margin(),
                    time.monotonic() - self.state.started,
                )
            )

    def _result(self, closed: bool, reason: str, store: DomainStore[Domains]) -> BabResult:
        return BabResult(
            closed,
            reason,
            self.state.visited,
            self.state.rounds,
            store.worst_margin(),
            time.monotonic() - self.state.started,
        )


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
    if settings.synchronous:
        return Tiling(SYNCHRONOUS_TILE, True)
    if device.type == "cuda":
        return Tiling(GPU_TILE, True)
    widest = max(node.size for node in problem.graph.nodes[1:])
    height = 2 ** max(5, min(12, (CPU_TILE_ELEMENTS // max(1, widest)).bit_length() - 1))
    return Tiling(height, False)

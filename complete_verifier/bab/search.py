"""The branch-and-bound loop on activation splits: pick, choose neurons, split, bound, close, store."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from auto_LiRPA.bounds.settings import AlphaSettings
from auto_LiRPA.errors import ConfigError, ContractError, OutOfTime
from auto_LiRPA.parallel.numerics import full_precision
from complete_verifier.bab.bounding import Bounder
from complete_verifier.bab.domains import Domains
from complete_verifier.bab.leaves import LeafSolver
from complete_verifier.bab.ledger import Ledger
from complete_verifier.bab.settings import BabProgress, BabResult, BabSettings
from complete_verifier.bab.split import split
from complete_verifier.bab.store import DomainStore
from complete_verifier.branching.layout import Layout, make_layout
from complete_verifier.branching.lookahead import kfsb
from complete_verifier.branching.scores import Scores, babsr_scores, choose
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.problem import Problem

# Shares of the time left that one round may be planned to take: a long round cannot look at the clock everywhere.
ROUND_SHARE = 0.2
LONGEST_ROUND_S = 10.0
METHODS = ("babsr", "kfsb")

OnProgress = Callable[[BabProgress], None]
OnCandidate = Callable[[np.ndarray], bool]  # an input that may violate; True: confirmed, the search can stop


@dataclass(slots=True)
class _Run:
    """Counters of one search."""

    started: float
    visited: int = 0
    rounds: int = 0
    next_id: int = 0
    undecided_leaves: int = 0
    last_batch: int = 0  # parents of the round before, and how long it took
    last_seconds: float = 0.0
    ledger: Ledger = field(default_factory=Ledger)


def search(
    problem: Problem,
    start: IncompleteResult,
    settings: BabSettings,
    on_progress: OnProgress | None = None,
    on_candidate: OnCandidate | None = None,
) -> BabResult:
    """Try to close every clause that the incomplete stage left open.

    Args:
        on_candidate: called with an input (``[*input]``) that an LP leaf found to violate its clause.

    Returns:
        ``closed`` only if every leaf of every clause's tree was proved. Any limit leaves it False.

    Raises:
        ConfigError: a branching method that is not available.
    """
    if settings.method not in METHODS:
        raise ConfigError(f"bab.branching.method = {settings.method}: expected one of {', '.join(METHODS)}")
    with torch.no_grad(), full_precision():
        return _Search(problem, start, settings, on_progress, on_candidate).run()


class _Search:
    """One search: what it owns and the steps of a round."""

    def __init__(
        self,
        problem: Problem,
        start: IncompleteResult,
        settings: BabSettings,
        on_progress: OnProgress | None,
        on_candidate: OnCandidate | None,
    ) -> None:
        self.problem, self.start, self.settings = problem, start, settings
        self.on_progress, self.on_candidate = on_progress, on_candidate
        self.layout: Layout = make_layout(problem.graph, start.intermediate)
        alpha = AlphaSettings(
            mode="fixed",
            iterations=settings.iterations,
            lr_alpha=settings.lr_alpha,
            lr_beta=settings.lr_beta,
            decay=settings.decay,
            patience=settings.patience,
            start_save_best=settings.start_save_best,
            disabled=problem.bounds.alpha.disabled,
        )
        self.bounder = Bounder(problem, start, self.layout, alpha)
        self._leaf_solver: LeafSolver | None = None
        self.state = _Run(time.monotonic())

    def run(self) -> BabResult:
        """Rounds until nothing is open or a limit is reached."""
        roots = self._roots()
        self.state.next_id = len(roots)
        store = DomainStore(roots, self.settings.traversal)
        store.add(roots, roots.lower)
        reason = ""
        while len(store):
            reason = self._limit(len(store))
            if reason:
                break
            self.state.rounds += 1
            parents = store.take(self._batch(len(store)))
            try:
                confirmed = self._round(parents, store)
            except OutOfTime:
                store.add(parents, parents.lower)
                reason = "time limit"
                break
            if confirmed:
                return self._result(False, "counterexample", store)
            self._report(store)
        if reason or len(store):
            return self._result(False, reason, store)
        if self.state.undecided_leaves:
            return self._result(False, f"{self.state.undecided_leaves} leaves with all neurons split", store)
        if self.settings.record_ledger and not self.state.ledger.covers(sorted(set(roots.clause.tolist()))):
            raise ContractError("the closed leaves do not cover the root")
        return self._result(True, "all domains closed", store)

    def _round(self, parents: Domains, store: DomainStore) -> bool:
        """Split, bound and sort one batch; True if a counterexample was confirmed."""
        began = time.monotonic()
        if self.layout.width == 0:  # nothing is unstable: every root is a leaf
            return self._close_leaves(parents)
        scores = self._scores(parents)
        ready = scores.splittable.any(1)
        if not bool(ready.all()):
            if self._close_leaves(parents.pick((~ready).nonzero().squeeze(-1))):
                return True
            keep = ready.nonzero().squeeze(-1)
            if len(keep) == 0:
                return False
            parents = parents.pick(keep)
            scores = Scores(scores.main[keep], scores.backup[keep], scores.splittable[keep])
        levels = self._levels(len(parents), scores)
        columns = self._choose(parents, scores, levels)
        children, _ = split(parents, columns, self.state.next_id)
        self.state.next_id += len(children)
        children = self.bounder.bound(children, self.problem.clock.left)
        self.state.visited += len(children)
        proven = self.bounder.proven(children, children.lower)
        if self.settings.record_ledger:
            self.state.ledger.close(children.pick(proven.nonzero().squeeze(-1)), "bound")
        open_children = children.pick((~proven).nonzero().squeeze(-1))
        if len(open_children):
            store.add(open_children, open_children.lower)
        self.state.last_batch = max(self.state.last_batch // 2, len(parents) * 2 ** (levels - 1))
        self.state.last_seconds = time.monotonic() - began
        return False

    def _roots(self) -> Domains:
        """One domain for every clause that is not proved yet."""
        clause = (~self.start.proven).nonzero().squeeze(-1)
        like = self.start.lower
        count, width = len(clause), self.layout.width
        picked = self.problem.clauses.pick(clause)
        gaps = like[clause] - picked.rhs
        best = gaps.argmax(1)
        return Domains(
            id=torch.arange(count, device=like.device),
            clause=clause,
            depth=torch.zeros_like(clause),
            sign=torch.zeros(count, width, dtype=torch.int8, device=like.device),
            beta=torch.zeros(count, width, dtype=like.dtype, device=like.device),
            lower=gaps.gather(1, best.unsqueeze(1)).squeeze(1),
            mix=_first_mix(torch.isfinite(picked.rhs), best).to(like),
            slopes=self._root_slopes(clause, best),
        )

    def _root_slopes(self, clause: Tensor, row: Tensor) -> Mapping[int, Tensor]:
        """Slopes ``[D, 1, P, u]`` to start from: those of each clause's best row."""
        region = self.problem.clauses.region[clause]
        slopes = {}
        for node_id, relaxation in self.start.intermediate.relaxations.items():
            spec = relaxation.alpha
            if spec is None or len(spec.index) == 0:
                continue
            if node_id in self.start.slopes:
                slopes[node_id] = self.start.slopes[node_id][clause, row].unsqueeze(1)
            else:
                slopes[node_id] = spec.initial[region].unsqueeze(1).clone()
        return slopes

    def _scores(self, parents: Domains) -> Scores:
        coefficients, relaxations = self.bounder.coefficients(parents)
        return babsr_scores(
            self.problem.graph, self.layout, coefficients, relaxations, parents.sign, self.settings.reduceop
        )

    def _levels(self, count: int, scores: Scores) -> int:
        """Levels split at once: as many as fill the least batch, but no more than every parent has neurons for."""
        target = min(self.settings.min_batch_ratio * self.settings.batch_size, self.settings.batch_size)
        levels = 1
        while count * 2 ** (levels + 1) <= target:
            levels += 1
        return max(1, min(levels, int(scores.splittable.sum(1).amin())))

    def _choose(self, parents: Domains, scores: Scores, levels: int) -> Tensor:
        if self.settings.method == "babsr":
            return choose(scores, levels)

        def try_child(parent: Tensor, column: Tensor, sign: int) -> Tensor:
            family = parents.pick(parent)
            signs = family.sign.scatter(1, column.unsqueeze(1), sign)
            return self.bounder.quick(replace(family, sign=signs))

        columns = kfsb(scores, self.settings.candidates, levels, self.settings.reduceop, try_child)
        # too few candidates tried: fill up by the plain scores
        if bool((columns < 0).any()):
            columns = torch.where((columns < 0).any(1, keepdim=True), choose(scores, levels), columns)
        return columns

    def _close_leaves(self, leaves: Domains) -> bool:
        """Decide domains without a splittable neuron by LP; what it cannot decide stays undecided for good."""
        if not self.layout.complete:
            self.state.undecided_leaves += len(leaves)
            return False
        if self._leaf_solver is None:
            self._leaf_solver = LeafSolver(self.problem, self.start, self.layout)
        for position in range(len(leaves)):
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

    def _batch(self, open_domains: int) -> int:
        """Parents of the next round: the batch size, cut down so that a round fits the time left."""
        batch = self.settings.batch_size
        if self.state.last_seconds > 0:
            # grown from what the last round showed, by at most double: with few domains a round is all overhead, so
            # seconds per domain would say far too little
            planned = min(ROUND_SHARE * max(self.problem.clock.left(), 0.1), LONGEST_ROUND_S)
            growth = min(max(planned / self.state.last_seconds, 0.25), 2.0)
            batch = min(batch, max(1, int(self.state.last_batch * growth)))
        return min(batch, open_domains)

    def _limit(self, open_domains: int) -> str:
        """Why the search has to stop now; empty if it may go on."""
        if self.problem.clock.left() <= 0:
            return "time limit"
        if 0 <= self.settings.max_iterations <= self.state.rounds:
            return f"round limit {self.settings.max_iterations}"
        if open_domains > self.settings.max_domains:
            return f"domain limit {self.settings.max_domains:.0f}"
        return ""

    def _report(self, store: DomainStore) -> None:
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

    def _result(self, closed: bool, reason: str, store: DomainStore) -> BabResult:
        return BabResult(
            closed,
            reason,
            self.state.visited,
            self.state.rounds,
            store.worst_margin(),
            time.monotonic() - self.state.started,
        )


# Share of the weight that the best single row gets at the start; the rest is spread over the clause's other rows.
BEST_ROW_SHARE = 0.7


def _first_mix(real: Tensor, best: Tensor) -> Tensor:
    """Row weights ``[K, R]`` to start from: mostly each clause's best row, so that the known bound is near."""
    one_hot = torch.nn.functional.one_hot(best, real.shape[1]).to(torch.float64)
    others = real.to(torch.float64) * (1 - one_hot)
    spread = others / others.sum(1, keepdim=True).clamp_min(1)
    has_others = others.sum(1, keepdim=True) > 0
    return torch.where(has_others, BEST_ROW_SHARE * one_hot + (1 - BEST_ROW_SHARE) * spread, one_hot)

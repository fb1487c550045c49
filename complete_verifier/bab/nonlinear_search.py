"""Branch and bound for networks with other nonlinear operators than ReLU: splits of any nonlinear node's inputs.

The rounds are those of every search (`rounds.Rounds`), so are the queues of several ranks and the checkpoints.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from auto_LiRPA.errors import OutOfTime
from auto_LiRPA.operators.activation import Relu
from auto_LiRPA.operators.base import NonlinearOperator
from auto_LiRPA.operators.piecewise import Abs, Clip, Sign
from auto_LiRPA.operators.pooling import MaxPool
from auto_LiRPA.parallel.numerics import full_precision
from complete_verifier.bab.agreement import least
from complete_verifier.bab.keeper import Keeper
from complete_verifier.bab.lockstep import ALONE, Lockstep, lockstep_of
from complete_verifier.bab.nonlinear_bounding import NonlinearBounder
from complete_verifier.bab.nonlinear_domains import MOST_SPLITS, NonlinearDomains, joined
from complete_verifier.bab.pace import Pace
from complete_verifier.bab.roots import first_mix
from complete_verifier.bab.rounds import OnProgress, Rounds, SearchState
from complete_verifier.bab.same_start import check_same
from complete_verifier.bab.schedule_free import FreeRunning
from complete_verifier.bab.schedule_synchronous import Synchronous
from complete_verifier.bab.settings import BabResult, BabSettings
from complete_verifier.bab.spread_search import for_search
from complete_verifier.bab.subproblems import Expanded, Numbering, Share
from complete_verifier.incomplete.result import IncompleteResult, known_gap
from complete_verifier.problem import Problem

# Children of a synchronous job: so many, or as many as make eight jobs of a full round where that is more. A round of
# fewer parents than that is two jobs when it is full.
JOB_CHILDREN = 32
JOBS = 8

STUCK = "neurons that cannot be split further"
PIECEWISE_LINEAR = (Relu, Abs, Clip, Sign, MaxPool)


def splits_nonlinear(problem: Problem) -> bool:
    """Whether there is a curve or a product to split, not only pieces that are linear."""
    graph = problem.graph
    reached = graph.ancestors[graph.output] | {graph.output}
    ops = [graph.nodes[i].op for i in reached]
    return any(isinstance(op, NonlinearOperator) and not isinstance(op, PIECEWISE_LINEAR) for op in ops)


def nonlinear_search(
    problem: Problem,
    start: IncompleteResult,
    settings: BabSettings,
    on_progress: OnProgress | None = None,
    keeper: Keeper | None = None,
) -> BabResult:
    """Try to close every clause that the incomplete stage left open. Ranks that share domains call it together.

    Args:
        start: the same on every rank.
        on_progress: told after each round where all ranks together stand.
        keeper: writes checkpoints, and may have one to go on from (``start`` is what that search began with, then).

    Returns:
        The same on every rank. ``closed`` only if every leaf of every clause's tree was proved. Any limit leaves it
        False.
    """
    with torch.no_grad(), full_precision():
        problem, start = for_search(problem, start)
        # a ledger names neurons and signs; where one was cut it cannot say
        settings = replace(settings, record_ledger=False)
        began = time.monotonic()
        try:
            search = _Search(problem, start, settings, on_progress, keeper or Keeper(None, None))
        except OutOfTime:
            return BabResult(False, "time limit", 0, 0, -float("inf"), time.monotonic() - began)
        return search.run()


class _Search(Rounds[NonlinearDomains]):
    """A search over splits of nonlinear inputs: what its rounds are made of."""

    stuck = STUCK  # whatever the others do, a tree with such a leaf closes no more

    def __init__(
        self,
        problem: Problem,
        start: IncompleteResult,
        settings: BabSettings,
        on_progress: OnProgress | None,
        keeper: Keeper,
    ) -> None:
        """All ranks bound the roots, the same ones.

        Raises:
            OutOfTime: meanwhile; all ranks raise it.
        """
        context, device = problem.context, start.lower.device
        self.context, self.clock, self.keeper, self.settings = context, problem.clock, keeper, settings
        self.on_progress, self.on_candidate = on_progress, None
        self.state = SearchState(time.monotonic())
        self.lockstep = lockstep_of(context, problem.graph)
        self.bounder = NonlinearBounder(problem, start, settings, self.lockstep)
        expander = _Expander(settings, self.bounder, self.lockstep)
        spare = self.roots = root_domains(problem, start, self.bounder.real)
        if len(spare) and keeper.resumed is None:
            everyone = ALONE if context.world_size == 1 else Lockstep(context.world)
            found = expander.sorted_roots(self.bounder.bound(spare, everyone))
            self.roots, self.state.undecided_leaves = found.left or spare.pick(spare.id[:0]), found.undecided
        numbers = [self.roots.clause, *(self.roots.tensors() if settings.synchronous else ())]
        check_same(context.world, len(self.roots), numbers)
        self.pace = Pace(settings, device)
        group = context.domains
        batch = settings.batch_size
        job = min(max(min(batch, JOB_CHILDREN), 2 * batch // JOBS), self.bounder.tile)
        self.schedule = (
            Synchronous(group, expander, self.roots, job)
            if settings.synchronous
            else FreeRunning(group, expander, self.pace, spare.pick(spare.id[:1]))
        )


@dataclass(frozen=True, slots=True)
class _Expander:
    """What a round does with parents: split, bound, sort out what is closed."""

    settings: BabSettings
    bounder: NonlinearBounder
    lockstep: Lockstep

    @property
    def width(self) -> int:
        """All columns that can be split."""
        return self.bounder.width

    def levels(self, parents: NonlinearDomains, own: bool = True) -> int:
        """One: where to split next is known once a domain has been bounded."""
        return int(self.lockstep.least(1 if own else self.width + 1))

    def expand(
        self, parents: NonlinearDomains, place: Tensor, levels: int, ids: Numbering
    ) -> Expanded[NonlinearDomains]:
        """Both children of some parents."""
        children = self.bounder.bound(parents.children(ids))
        real = torch.ones_like(children.id, dtype=torch.bool)
        closed = self.bounder.proven(children, children.lower)
        return Expanded(parents, place, torch.ones_like(place, dtype=torch.bool), children, real, closed, ~real)

    def sorted_out(self, parts: Sequence[Expanded[NonlinearDomains]]) -> Share[NonlinearDomains]:
        """What is left of all parts: open ones that can be split go on, the others are counted."""
        share = Share[NonlinearDomains](sum(len(part.parents) for part in parts))
        left = []
        for part in parts:
            open_ = ~part.closed
            stuck = open_ & (part.children.next_column < 0)
            goes_on = open_ & ~stuck
            share.visited += len(part.children)
            worst = torch.where(goes_on, part.children.lower, torch.inf).amin()
            count, bound = torch.stack([stuck.sum().to(torch.float64), worst.to(torch.float64)]).tolist()
            share.undecided += int(count)
            share.worst = least((share.worst, bound))
            left.append(part.children.pick(goes_on.nonzero().squeeze(-1)))
        share.left = joined(left)
        return share

    def sorted_roots(self, roots: NonlinearDomains) -> Share[NonlinearDomains]:
        """What is left of the roots, numbered anew."""
        real = torch.ones_like(roots.id, dtype=torch.bool)
        closed = self.bounder.proven(roots, roots.lower)
        share = self.sorted_out([Expanded(roots, roots.id, real, roots, real, closed, ~real)])
        if share.left is not None:
            share.left = replace(share.left, id=torch.arange(len(share.left), device=roots.id.device))
        return share

    def close_leaves(
        self, leaves: NonlinearDomains, places: Sequence[int], share: Share[NonlinearDomains]
    ) -> None:
        """Where there is nothing to split nothing can be decided."""
        share.undecided += len(leaves)


def root_domains(problem: Problem, start: IncompleteResult, real: Tensor) -> NonlinearDomains:
    """One domain for every clause that the incomplete stage left open, not bounded yet."""
    clause = (~start.proven).nonzero().squeeze(-1)
    like = start.lower
    gaps = like[clause] - problem.clauses.rhs[clause]
    best = gaps.argmax(1)
    none = like.new_zeros(len(clause), MOST_SPLITS)
    return NonlinearDomains(
        id=torch.arange(len(clause), device=like.device),
        clause=clause,
        depth=torch.zeros_like(clause),
        lower=known_gap(gaps.gather(1, best.unsqueeze(1)).squeeze(1)),
        mix=first_mix(real[clause], best).to(like),
        column=torch.full_like(none, -1, dtype=torch.int64),
        side=none.to(torch.int8),
        point=none,
        beta=none,
        next_column=torch.full_like(clause, -1),
        next_point=like.new_zeros(len(clause)),
    )

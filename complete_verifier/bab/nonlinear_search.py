"""Branch and bound for networks with other nonlinear operators than ReLU: splits of any nonlinear node's inputs.

Where to split is told by the derivative of the domain's bound by every box: moving one end to the split point changes
the bound, to first order, by derivative times distance. The sweep that gives it costs one pass for all neurons.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from auto_LiRPA.bounds.backward import Rows, SplitTerm, backward
from auto_LiRPA.bounds.domains.batch import proven
from auto_LiRPA.bounds.optimize import Optimized, RowMix, optimize_rows
from auto_LiRPA.bounds.settings import AlphaSettings
from auto_LiRPA.bounds.sweep import sweep
from auto_LiRPA.errors import OutOfTime
from auto_LiRPA.operators.activation import Relu
from auto_LiRPA.operators.base import NonlinearOperator, Relaxation
from auto_LiRPA.operators.piecewise import Abs, Clip, Sign
from auto_LiRPA.operators.pooling import MaxPool
from auto_LiRPA.parallel.numerics import full_precision
from auto_LiRPA.values import Interval, Region
from complete_verifier.bab.lockstep import ALONE, Lockstep, is_whole
from complete_verifier.bab.nonlinear_domains import (
    NonlinearDomains,
    cut_boxes,
    joined,
    make_sources,
    split_terms,
)
from complete_verifier.bab.roots import first_mix
from complete_verifier.bab.settings import BabProgress, BabResult, BabSettings
from complete_verifier.bab.spread_search import for_search
from complete_verifier.incomplete.result import IncompleteResult, known_gap
from complete_verifier.problem import Problem

# Numbers of coefficients that one tile of domains may have at all nonlinear nodes together.
TILE_ELEMENTS = 2**24
# A cut at 0 has to leave at least this share of the interval on either side; else the middle is taken.
LEAST_SHARE = 0.1
# An interval narrower than this, relative to its ends, is not split.
LEAST_WIDTH = 1e-5
# Share of the better child's gain in a neuron's score (the other child's counts in full).
BETTER_CHILD = 0.1

STUCK = "neurons that cannot be split further"
PIECEWISE_LINEAR = (Relu, Abs, Clip, Sign, MaxPool)

OnProgress = Callable[[BabProgress], None]


def splits_nonlinear(problem: Problem) -> bool:
    """Whether there is a curve or a product to split, not only pieces that are linear."""
    graph = problem.graph
    reached = graph.ancestors[graph.output] | {graph.output}
    ops = [graph.nodes[i].op for i in reached]
    return any(isinstance(op, NonlinearOperator) and not isinstance(op, PIECEWISE_LINEAR) for op in ops)


def nonlinear_search(
    problem: Problem, start: IncompleteResult, settings: BabSettings, on_progress: OnProgress | None = None
) -> BabResult:
    """Try to close every clause that the incomplete stage left open.

    Every rank searches the whole tree. Those that fetch weights together make the same passes: what a clock decides
    they decide together.

    Returns:
        ``closed`` only if every leaf of every clause's tree was proved. Any limit leaves it False.
    """
    with torch.no_grad(), full_precision():
        problem, start = for_search(problem, start)
        return _Search(problem, start, settings, on_progress).run()


@dataclass(frozen=True, slots=True)
class _Choice:
    column: Tensor
    point: Tensor


class _Search:
    """One search: what it owns and the steps of a round."""

    def __init__(
        self, problem: Problem, start: IncompleteResult, settings: BabSettings, on_progress: OnProgress | None
    ) -> None:
        self.problem, self.start, self.settings, self.on_progress = problem, start, settings, on_progress
        self.began = time.monotonic()
        self.lockstep = ALONE if is_whole(problem.graph) else Lockstep(problem.context.weights)
        self.sources = make_sources(problem.graph, start.intermediate)
        self.alpha = AlphaSettings(
            mode="fixed",
            iterations=settings.iterations,
            lr_alpha=settings.lr_alpha,
            lr_beta=settings.lr_beta,
            decay=settings.decay,
            patience=settings.patience,
            start_save_best=settings.start_save_best,
            disabled=problem.bounds.alpha.disabled,
        )
        clauses = problem.clauses
        self.real = torch.isfinite(clauses.rhs)
        # a clause without rows holds everywhere, and its sum is 0: that refutes nothing
        self.strict = (clauses.attainable_rhs | ~self.real).all(1) & self.real.any(1)
        relaxations = start.intermediate.relaxations
        per_domain = sum(problem.graph.nodes[j].size for j in relaxations) + problem.graph.nodes[0].size
        self.tile = max(1, TILE_ELEMENTS // max(1, per_domain))
        self.visited = self.rounds = self.next_id = self.undecided = 0

    def run(self) -> BabResult:
        """Rounds until nothing is open or a limit is reached."""
        store = self._roots()
        self.next_id = len(store)
        reason = ""
        try:
            if len(store):
                store = self._kept(self._bound(store))
            while len(store) and not (reason := self._limit(len(store))):
                self.rounds += 1
                order = torch.argsort(store.lower, stable=True)
                store = store.pick(order)
                count = max(1, min(self.settings.batch_size, len(store)))
                parents, rest = store.pick(torch.arange(count)), store.pick(torch.arange(count, len(store)))
                # until the children are bounded the parents stand in the store: an end by time loses none of them
                children = self._bound(parents.children(self.next_id))
                self.next_id += len(children)
                self.visited += len(children)
                store = joined(rest, self._kept(children))
                self._report(store)
        except OutOfTime:
            reason = "time limit"
        closed = not reason and not len(store) and not self.undecided
        stopped = reason or ("" if closed else STUCK)
        worst = float(store.lower.min()) if len(store) else float("inf")
        return BabResult(closed, stopped, self.visited, self.rounds, worst, time.monotonic() - self.began)

    def _limit(self, count: int) -> str:
        if self.undecided:  # whatever the others do, this tree closes no more
            return STUCK
        if self._late():
            return "time limit"
        if 0 <= self.settings.max_iterations <= self.rounds:
            return "max_iterations"
        return "max_domains" if self.visited >= self.settings.max_domains else ""

    def _late(self) -> bool:
        """Whether the time is over, on any of the ranks that go step by step."""
        return not self.lockstep.all_agree(self.problem.clock.left() > 0)

    def _report(self, store: NonlinearDomains) -> None:
        if self.on_progress is None:
            return
        worst = float(store.lower.min()) if len(store) else float("inf")
        passed = time.monotonic() - self.began
        self.on_progress(BabProgress(self.rounds, len(store), self.visited, worst, passed))

    def _roots(self) -> NonlinearDomains:
        """One domain for every clause that the incomplete stage left open."""
        clause = (~self.start.proven).nonzero().squeeze(-1)
        like = self.start.lower
        gaps = like[clause] - self.problem.clauses.rhs[clause]
        best = gaps.argmax(1)
        none = like.new_zeros(len(clause), 0)
        return NonlinearDomains(
            id=torch.arange(len(clause), device=like.device),
            clause=clause,
            lower=known_gap(gaps.gather(1, best.unsqueeze(1)).squeeze(1)),
            mix=first_mix(self.real[clause], best).to(like),
            column=none.long(),
            side=none,
            point=none,
            beta=none,
            next_column=torch.full_like(clause, -1),
            next_point=like.new_zeros(len(clause)),
        )

    def _kept(self, domains: NonlinearDomains) -> NonlinearDomains:
        """Those that are not proved. What is open and cannot be split is counted and dropped."""
        still = ~proven(domains.lower, self.strict[domains.clause])
        stuck = still & (domains.next_column < 0)
        self.undecided += int(stuck.sum())
        return domains.pick((still & ~stuck).nonzero().squeeze(-1))

    # -- bounds -----------------------------------------------------------------------------------------------------

    def _bound(self, domains: NonlinearDomains) -> NonlinearDomains:
        """The same domains with better bounds, and where each is to be split next."""
        found: NonlinearDomains | None = None
        for at in range(0, len(domains), self.tile):
            if self._late():
                raise OutOfTime("branch and bound")
            part = self._tile(domains.pick(torch.arange(at, min(at + self.tile, len(domains)))))
            found = part if found is None else joined(found, part)
        assert found is not None
        return found

    def _tile(self, domains: NonlinearDomains) -> NonlinearDomains:
        where = self.problem.clauses.region[domains.clause]
        boxes = cut_boxes(domains, self.sources, self.start.intermediate, where)
        relaxations = self._relaxations(boxes)
        splits = split_terms(domains, self.sources, boxes)
        region, mix = self._region(domains), self._mix(domains)
        best = optimize_rows(
            self.problem.graph,
            Rows(self.problem.graph.output, *mix.row(mix.weight)),
            region,
            relaxations,
            self.alpha,
            slopes=self._slopes(domains),
            splits=splits.terms,
            proven=lambda lower: proven(lower.squeeze(1), self.strict[domains.clause]),
            # a clock that ended it here alone would give this rank another tree
            seconds_left=None if self.lockstep else self.problem.clock.left,
            mix=mix,
        )
        assert best.weight is not None
        terms = {k: replace(t, beta=best.betas[k]) for k, t in splits.terms.items()}
        choice = self._choice(boxes, relaxations, region, mix, best, terms)
        return replace(
            domains,
            lower=torch.fmax(domains.lower, best.lower.squeeze(1)),
            mix=best.weight,
            beta=splits.betas(best.betas, domains.beta),
            next_column=choice.column,
            next_point=choice.point,
        )

    def _relaxations(self, boxes: Mapping[int, Interval]) -> dict[int, Relaxation]:
        """Relaxations over the domains' boxes, with the slopes of the root's neurons."""
        found: dict[int, Relaxation] = {}
        for node_id, base in self.start.intermediate.relaxations.items():
            node = self.problem.graph.nodes[node_id]
            assert isinstance(node.op, NonlinearOperator)
            found[node_id] = node.op.relax(*(boxes[i] for i in node.inputs))
            found[node_id].pinned = None if base.alpha is None else base.alpha.index
        return found

    def _slopes(self, domains: NonlinearDomains) -> dict[int, Tensor]:
        """The incomplete stage's slopes of each clause's first row, else CROWN's own: ``[D, 1, P, u]``."""
        gaps = self.start.lower[domains.clause] - self.problem.clauses.rhs[domains.clause]
        row, where = gaps.argmax(1), self.problem.clauses.region[domains.clause]
        slopes: dict[int, Tensor] = {}
        for node_id, relaxation in self.start.intermediate.relaxations.items():
            spec = relaxation.alpha
            if spec is None or len(spec.index) == 0:
                continue
            if node_id in self.start.slopes:
                slopes[node_id] = self.start.slopes[node_id][domains.clause, row].unsqueeze(1)
            else:
                slopes[node_id] = spec.initial[where].unsqueeze(1)
        return slopes

    def _mix(self, domains: NonlinearDomains) -> RowMix:
        clauses = self.problem.clauses.pick(domains.clause)
        real = self.real[domains.clause]
        c = clauses.c.reshape(*clauses.c.shape[:2], *self.problem.graph.output_shape)
        return RowMix(c, torch.where(real, clauses.rhs, 0.0), real, domains.mix)

    def _region(self, domains: NonlinearDomains) -> Region:
        region = self.problem.region
        if region.center().shape[0] == 1:
            return region.pick(torch.zeros_like(domains.clause))
        return region.pick(self.problem.clauses.region[domains.clause])

    # -- where to split ---------------------------------------------------------------------------------------------

    def _choice(
        self,
        boxes: Mapping[int, Interval],
        relaxations: Mapping[int, Relaxation],
        region: Region,
        mix: RowMix,
        best: Optimized,
        terms: Mapping[int, SplitTerm],
    ) -> _Choice:
        """The neuron whose children gain most, by the first-order estimate; ties go to the first column."""
        graph, slopes = self.problem.graph, best.slopes
        weight = mix.weight if best.weight is None else best.weight
        rows = Rows(graph.output, *mix.row(weight))
        result = backward(graph, rows, relaxations, slopes, terms, save=True)
        ones = torch.ones(weight.shape[0], 1, dtype=weight.dtype, device=weight.device)
        gradient = sweep(graph, rows.node, result, region, relaxations, ones, slopes, terms)
        scores, points = [], []
        for source in self.sources:
            box = boxes[source.node].flat()
            slope = gradient.boxes.get(source.node)
            point = split_points(box, source.kinked)
            if slope is None:
                scores.append(torch.full_like(point, -torch.inf))
            else:
                scores.append(split_scores(box, point, slope.flat()))
            points.append(point)
        score, point = torch.cat(scores, 1), torch.cat(points, 1)
        at = score.argmax(1, keepdim=True)
        column = torch.where(score.gather(1, at) > -torch.inf, at, -1).squeeze(1)
        return _Choice(column, point.gather(1, at).squeeze(1))


def split_points(box: Interval, kinked: bool) -> Tensor:
    """Where each neuron's interval ``[D, n]`` is cut: the middle, or 0 where a kink or a product asks for it."""
    middle = (box.lower + box.upper) / 2
    if not kinked:
        return middle
    room = LEAST_SHARE * (box.upper - box.lower)
    return torch.where((box.lower < -room) & (box.upper > room), 0.0, middle)


def split_scores(box: Interval, point: Tensor, slope: Interval) -> Tensor:
    """Estimated gain of the two children ``[D, n]``; -inf where an interval is too narrow (or unknown) to be cut."""
    above = (slope.lower * (point - box.lower)).clamp_min(0)
    below = (-slope.upper * (box.upper - point)).clamp_min(0)
    score = torch.minimum(above, below) + BETTER_CHILD * torch.maximum(above, below)
    wide = (box.upper - box.lower) > LEAST_WIDTH * (1e-3 + box.lower.abs() + box.upper.abs())
    inside = (point > box.lower) & (point < box.upper) & wide & torch.isfinite(box.upper - box.lower)
    return torch.where(inside, torch.nan_to_num(score, nan=0.0), -torch.inf)

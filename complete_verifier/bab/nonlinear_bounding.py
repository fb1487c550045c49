"""Bounds of domains whose splits are of any nonlinear node's inputs, and where each of them is to be split next.

Where to split is told by the derivative of the domain's bound by every box: moving one end to the split point changes
the bound, to first order, by derivative times distance. The sweep that gives it costs one pass for all neurons.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from auto_LiRPA.bounds.backward import Rows, SplitTerm, backward
from auto_LiRPA.bounds.domains.batch import proven
from auto_LiRPA.bounds.optimize import Optimized, RowMix, optimize_rows
from auto_LiRPA.bounds.settings import AlphaSettings
from auto_LiRPA.bounds.sweep import sweep
from auto_LiRPA.errors import OutOfTime
from auto_LiRPA.operators.base import NonlinearOperator, Relaxation
from auto_LiRPA.values import Interval, Region
from complete_verifier.bab.lockstep import Lockstep
from complete_verifier.bab.nonlinear_domains import NonlinearDomains, cut_boxes, joined, make_sources, split_terms
from complete_verifier.bab.settings import BabSettings
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.problem import Problem

# Numbers of coefficients that one tile of domains may have at all nonlinear nodes together.
TILE_ELEMENTS = 2**24
# A cut at 0 has to leave at least this share of the interval on either side; else the middle is taken.
LEAST_SHARE = 0.1
# An interval narrower than this, relative to its ends, is not split.
LEAST_WIDTH = 1e-5
# Share of the better child's gain in a neuron's score (the other child's counts in full).
BETTER_CHILD = 0.1


@dataclass(frozen=True, slots=True)
class _Choice:
    column: Tensor
    point: Tensor


class NonlinearBounder:
    """Everything that does not change during a search."""

    def __init__(self, problem: Problem, start: IncompleteResult, settings: BabSettings, lockstep: Lockstep) -> None:
        self.problem, self.start, self._lockstep = problem, start, lockstep
        self.sources = make_sources(problem.graph, start.intermediate)
        self._alpha = AlphaSettings(
            mode="fixed",
            iterations=settings.iterations,
            lr_alpha=settings.lr_alpha,
            lr_beta=settings.lr_beta,
            decay=settings.decay,
            # a round of the synchronous schedule does the same work on any machine
            patience=10**9 if settings.synchronous else settings.patience,
            start_save_best=settings.start_save_best,
            disabled=problem.bounds.alpha.disabled,
        )
        self._ends_early = not settings.synchronous
        clauses = problem.clauses
        self.real = torch.isfinite(clauses.rhs)
        # a clause without rows holds everywhere, and its sum is 0: that refutes nothing
        self._strict = (clauses.attainable_rhs | ~self.real).all(1) & self.real.any(1)
        relaxations = start.intermediate.relaxations
        per_domain = sum(problem.graph.nodes[j].size for j in relaxations) + problem.graph.nodes[0].size
        self.tile = max(1, TILE_ELEMENTS // max(1, per_domain))

    @property
    def width(self) -> int:
        """All columns."""
        return self.sources[-1].stop if self.sources else 0

    def bound(self, domains: NonlinearDomains, same_on: Lockstep | None = None) -> NonlinearDomains:
        """The same domains with better bounds, and where each is to be split next.

        Args:
            same_on: ranks that all bound these domains, for the same bits on each; None: they are this rank's own.

        Raises:
            OutOfTime: between two tiles; of ranks that go step by step, all raise it.
        """
        steps = self._lockstep if same_on is None else same_on
        context, clock = self.problem.context, self.problem.clock.left
        # ranks that do the same work: one whose clock stopped it would have other bounds
        alone = context.world.size == context.domains.size and not same_on
        parts = []
        for tile, mine in steps.tiles(domains, self.tile):
            if not steps.all_agree(clock() > 0):
                raise OutOfTime("branch and bound")
            found = self._tile(tile, steps, mine, self._ends_early and alone)
            if mine:
                parts.append(found)
        whole = joined(parts)
        assert whole is not None
        return whole

    def proven(self, domains: NonlinearDomains, lower: Tensor) -> Tensor:
        """Which domains ``[D]`` the bounds ``[D]`` close."""
        return proven(lower, self._strict[domains.clause])

    def relaxations(self, boxes: Mapping[int, Interval]) -> dict[int, Relaxation]:
        """Relaxations over the domains' boxes, with the slopes of the root's neurons."""
        found: dict[int, Relaxation] = {}
        for node_id, base in self.start.intermediate.relaxations.items():
            node = self.problem.graph.nodes[node_id]
            assert isinstance(node.op, NonlinearOperator)
            found[node_id] = node.op.relax(*(boxes[i] for i in node.inputs))
            found[node_id].pinned = None if base.alpha is None else base.alpha.index
        return found

    def region(self, domains: NonlinearDomains) -> Region:
        """The input region of each domain."""
        region = self.problem.region
        if region.center().shape[0] == 1:
            return region.pick(torch.zeros_like(domains.clause))
        return region.pick(self.problem.clauses.region[domains.clause])

    def _tile(self, domains: NonlinearDomains, steps: Lockstep, mine: bool, clocked: bool) -> NonlinearDomains:
        """``mine``: False where the result is dropped, and the passes are made for other ranks."""
        where = self.problem.clauses.region[domains.clause]
        boxes = cut_boxes(domains, self.sources, self.start.intermediate, where)
        relaxations = self.relaxations(boxes)
        splits = split_terms(domains, self.sources, boxes)
        region, mix = self.region(domains), self._mix(domains)
        best = optimize_rows(
            self.problem.graph,
            Rows(self.problem.graph.output, *mix.row(mix.weight)),
            region,
            relaxations,
            self._alpha,
            slopes=self._slopes(domains),
            splits=splits.terms,
            proven=lambda lower: self.proven(domains, lower.squeeze(1)),
            seconds_left=self.problem.clock.left if clocked else None,
            mix=mix,
            agree=(steps.all_agree if mine else steps.nothing_left) if steps else None,
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

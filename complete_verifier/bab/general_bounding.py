"""Domains of any network: alpha and beta optimised by the engine that bounds all graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from auto_LiRPA.bounds.backward import Rows, SplitTerm, backward
from auto_LiRPA.bounds.columns import Layout
from auto_LiRPA.bounds.domains.ascent import AscentSettings
from auto_LiRPA.bounds.domains.batch import ColumnFacts, proven, split_box
from auto_LiRPA.bounds.optimize import Optimized, RowMix, optimize_rows
from auto_LiRPA.bounds.settings import AlphaSettings
from auto_LiRPA.operators.base import Relaxation
from auto_LiRPA.values import Interval, Region
from complete_verifier.bab.domains import Domains, concatenate, own_columns
from complete_verifier.bab.lockstep import ALONE, Lockstep
from complete_verifier.bab.settings import Tiling
from complete_verifier.branching.layout import domain_boxes, domain_relaxations, root_columns
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.problem import Problem


class GeneralBounder:
    """Everything that does not change during a search."""

    def __init__(
        self,
        problem: Problem,
        root: IncompleteResult,
        layout: Layout,
        settings: AscentSettings,
        tiling: Tiling,
        lockstep: Lockstep = ALONE,
    ) -> None:
        self.problem, self.root, self.layout, self._tiling, self._lockstep = problem, root, layout, tiling, lockstep
        self._settings = AlphaSettings(
            mode="fixed",
            iterations=settings.iterations,
            lr_alpha=settings.lr_alpha,
            lr_beta=settings.lr_beta,
            decay=settings.decay,
            patience=int(min(settings.patience, 10**9)),
            start_save_best=settings.start_save_best,
            disabled=problem.bounds.alpha.disabled,
        )
        self._ends_early = settings.ends_early
        clauses = problem.clauses
        self._real = torch.isfinite(clauses.rhs)
        # a clause without rows holds everywhere, and its sum is 0: that refutes nothing
        self._strict = (clauses.attainable_rhs | ~self._real).all(1) & self._real.any(1)

    def bound(self, domains: Domains, seconds_left: Callable[[], float] | None = None) -> Domains:
        """The same domains with better bounds and variables. A bound never gets looser than before."""
        joined: Domains | None = None
        for tile, mine in self._lockstep.tiles(domains, self._tiling.height):
            part = self._tile(tile, seconds_left if self._ends_early else None, mine)
            if mine:
                joined = part if joined is None else concatenate(joined, part)
        assert joined is not None
        return joined

    def quick(self, domains: Domains) -> Tensor:
        """Bounds ``[D]`` by one pass with the domains' variables, nothing optimised."""
        once = replace(self._settings, iterations=1)
        parts = []
        for tile, mine in self._lockstep.tiles(domains, self._tiling.height):
            lower = self._optimize(tile, once, None, mine).lower.squeeze(1)
            if mine:
                parts.append(lower)
        return torch.cat(parts)

    def facts(self, domains: Domains) -> ColumnFacts:
        """Coefficients and boxes of all columns at the domains' own variables; one pass, whatever their number."""
        mix = self.mix(domains)
        rows = Rows(self.problem.graph.output, *mix.row(mix.weight))
        slopes = self._slopes(domains)
        result = backward(self.problem.graph, rows, self.relaxations(domains), slopes, self._splits(domains), save=True)
        coef = domains.mix.new_zeros(len(domains), self.layout.width)
        for layer in self.layout.layers:
            if layer.node in result.saved:
                coef[:, layer.start : layer.stop] = result.saved[layer.node].flatten(2)[:, 0, layer.index]
        columns = own_columns(domains)
        if columns is None:
            root = root_columns(self.layout, self.root.intermediate)
            where = self.problem.clauses.region[domains.clause]
            columns = Interval(root.lower[where], root.upper[where])
        return ColumnFacts(coef, *split_box(columns.lower, columns.upper, domains.sign))

    def proven(self, domains: Domains, lower: Tensor) -> Tensor:
        """Which domains ``[D]`` the bounds ``[D]`` close."""
        return proven(lower, self._strict[domains.clause])

    def mix(self, domains: Domains) -> RowMix:
        """The clause's rows of each domain with the domain's weights."""
        clauses = self.problem.clauses.pick(domains.clause)
        real = self._real[domains.clause]
        c = clauses.c.reshape(*clauses.c.shape[:2], *self.problem.graph.output_shape)
        return RowMix(c, torch.where(real, clauses.rhs, 0.0), real, domains.mix)

    def region(self, domains: Domains) -> Region:
        """The input region of each domain."""
        region = self.problem.region
        if region.center().shape[0] == 1:
            return region.pick(torch.zeros_like(domains.clause))
        return region.pick(self.problem.clauses.region[domains.clause])

    def relaxations(self, domains: Domains) -> Mapping[int, Relaxation]:
        """Relaxations over the domains' boxes."""
        root = self.root.intermediate
        index = self.problem.clauses.region[domains.clause]
        boxes = domain_boxes(self.layout, root, index, domains.sign, own_columns(domains))
        return domain_relaxations(self.problem.graph, root, boxes, self.layout)

    def _tile(self, domains: Domains, seconds_left: Callable[[], float] | None, mine: bool) -> Domains:
        found = self._optimize(domains, self._settings, seconds_left, mine)
        assert found.weight is not None
        value = domains.value.clone()
        for layer in self.layout.layers:
            split = self.layout.of(domains.sign, layer) != 0
            alpha = found.slopes[layer.node][:, 0, 0]
            variable = torch.where(split, found.betas[layer.source], alpha)
            value[:, layer.start : layer.stop] = variable.to(value.dtype)
        lower = torch.fmax(domains.lower, found.lower.squeeze(1))
        rest = {node: found.slopes[node] for node in domains.slopes}
        return replace(domains, lower=lower, value=value, slopes=rest, mix=found.weight)

    def _optimize(
        self, domains: Domains, settings: AlphaSettings, seconds_left: Callable[[], float] | None, mine: bool
    ) -> Optimized:
        """``mine``: False where the result is dropped, and the passes are made for other ranks."""
        mix, lockstep = self.mix(domains), self._lockstep
        if lockstep and not self.problem.context.lockstep:
            seconds_left = None  # ranks that do the same work: one whose clock stopped it would have other bounds
        return optimize_rows(
            self.problem.graph,
            Rows(self.problem.graph.output, *mix.row(mix.weight)),
            self.region(domains),
            self.relaxations(domains),
            settings,
            slopes=self._slopes(domains),
            splits=self._splits(domains),
            proven=lambda lower: self.proven(domains, lower.squeeze(1)),
            seconds_left=seconds_left,
            mix=mix,
            agree=(lockstep.all_agree if mine else lockstep.nothing_left) if lockstep else None,
        )

    def _slopes(self, domains: Domains) -> dict[int, Tensor]:
        """Slopes ``[D, 1, P, u]`` of every nonlinear node. A split neuron has its box instead, whatever stands here."""
        slopes = dict(domains.slopes)
        alpha = torch.where(domains.sign == 0, domains.value, 0.0).to(domains.mix.dtype)
        for layer in self.layout.layers:
            slopes[layer.node] = self.layout.of(alpha, layer).unsqueeze(1).unsqueeze(1)
        return slopes

    def _splits(self, domains: Domains) -> Mapping[int, SplitTerm]:
        """Lagrangian terms of the domains' splits, per pre-activation node."""
        beta = torch.where(domains.sign != 0, domains.value, 0.0).to(domains.mix.dtype)
        return {
            layer.source: SplitTerm(
                layer.index, self.layout.of(beta, layer), self.layout.of(domains.sign, layer).to(beta)
            )
            for layer in self.layout.layers
        }

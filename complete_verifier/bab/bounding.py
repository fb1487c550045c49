"""Bounds of a batch of domains: alpha and beta optimised jointly over boxes that the splits have fixed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from auto_LiRPA.bounds.backward import Rows, SplitTerm, backward
from auto_LiRPA.bounds.optimize import Optimized, RowMix, optimize_rows
from auto_LiRPA.bounds.settings import AlphaSettings
from auto_LiRPA.operators.base import Relaxation
from auto_LiRPA.parallel.tiles import cut
from auto_LiRPA.values import Box, Region
from complete_verifier.bab.domains import Domains, concatenate
from complete_verifier.branching.layout import Layout, domain_boxes, domain_relaxations
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.problem import Problem

DOMAIN_TILE = 1024  # domains bounded together; a larger batch is cut into such tiles (DESIGN 2.5)


@dataclass(frozen=True, slots=True)
class Bounder:
    """Everything that does not change during a search."""

    problem: Problem
    root: IncompleteResult
    layout: Layout
    settings: AlphaSettings

    def bound(self, domains: Domains, seconds_left: Callable[[], float] | None = None) -> Domains:
        """The same domains with better bounds, slopes and multipliers. A bound never gets looser than before."""
        parts = []
        for tile in cut(len(domains), DOMAIN_TILE):
            index = torch.arange(tile.start, tile.stop, device=domains.id.device)
            parts.append(self._tile(domains.pick(index), seconds_left))
        joined = parts[0]
        for part in parts[1:]:
            joined = concatenate(joined, part)
        return joined

    def _tile(self, domains: Domains, seconds_left: Callable[[], float] | None) -> Domains:
        found = self._optimize(domains, self.settings, seconds_left)
        beta = torch.cat([found.betas[layer.source] for layer in self.layout.layers], dim=1)
        assert found.weight is not None
        lower = torch.fmax(domains.lower, found.lower.squeeze(1))
        return replace(domains, lower=lower, beta=beta, slopes=found.slopes, mix=found.weight)

    def _optimize(
        self, domains: Domains, settings: AlphaSettings, seconds_left: Callable[[], float] | None
    ) -> Optimized:
        mix = self.mix(domains)
        return optimize_rows(
            self.problem.graph,
            Rows(self.problem.graph.output, *mix.row(mix.weight)),
            self.region(domains),
            self.relaxations(domains),
            settings,
            slopes=domains.slopes,
            splits=self.splits(domains),
            proven=lambda lower: self.proven(domains, lower.squeeze(1)),
            seconds_left=seconds_left,
            mix=mix,
        )

    def proven(self, domains: Domains, lower: Tensor) -> Tensor:
        """Which domains ``[D]`` the bounds ``[D]`` close. A NaN or an infinity (sums that overflow) closes nothing."""
        clauses = self.problem.clauses.pick(domains.clause)
        # where every row is strict in the file, a counterexample makes the sum negative: a bound of 0 refutes it too
        all_strict = (clauses.attainable_rhs | ~torch.isfinite(clauses.rhs)).all(1)
        return ((lower > 0) | (all_strict & (lower >= 0))) & torch.isfinite(lower)

    def coefficients(self, domains: Domains) -> tuple[Mapping[int, Tensor], Mapping[int, Relaxation]]:
        """Coefficient on each nonlinear node's output ``[D, 1, *shape]`` at the domains' own slopes, for branching."""
        relaxations = self.relaxations(domains)
        mix = self.mix(domains)
        rows = Rows(self.problem.graph.output, *mix.row(mix.weight))
        result = backward(
            self.problem.graph, rows, relaxations, domains.slopes, self.splits(domains), save=True
        )
        return result.saved, relaxations

    def quick(self, domains: Domains) -> Tensor:
        """Bounds ``[D]`` by one pass with the domains' slopes and multipliers, nothing optimised."""
        once = replace(self.settings, iterations=1)
        parts = []
        for tile in cut(len(domains), DOMAIN_TILE):
            index = torch.arange(tile.start, tile.stop, device=domains.id.device)
            parts.append(self._optimize(domains.pick(index), once, None).lower.squeeze(1))
        return torch.cat(parts)

    def mix(self, domains: Domains) -> RowMix:
        """The clause's rows of each domain with the domain's weights."""
        clauses = self.problem.clauses.pick(domains.clause)
        real = torch.isfinite(clauses.rhs)
        c = clauses.c.reshape(*clauses.c.shape[:2], *self.problem.graph.output_shape)
        return RowMix(c, torch.where(real, clauses.rhs, 0.0), real, domains.mix)

    def region(self, domains: Domains) -> Region:
        """The input box of each domain, ``[D, *input]`` (a view where there is one region)."""
        region = self.problem.region
        assert isinstance(region, Box)
        index = self.problem.clauses.region[domains.clause]
        if region.lower.shape[0] == 1:
            shape = (len(domains), *region.lower.shape[1:])
            return Box(region.lower.expand(shape), region.upper.expand(shape))
        return Box(region.lower[index], region.upper[index])

    def relaxations(self, domains: Domains) -> Mapping[int, Relaxation]:
        """Relaxations over the domains' boxes."""
        root = self.root.intermediate
        index = self.problem.clauses.region[domains.clause]
        boxes = domain_boxes(self.layout, root, index, domains.sign)
        return domain_relaxations(self.problem.graph, root, boxes)

    def splits(self, domains: Domains) -> Mapping[int, SplitTerm]:
        """Lagrangian terms of the domains' splits, per pre-activation node."""
        return {
            layer.source: SplitTerm(
                layer.index, self.layout.of(domains.beta, layer), self.layout.of(domains.sign, layer).to(domains.beta)
            )
            for layer in self.layout.layers
        }

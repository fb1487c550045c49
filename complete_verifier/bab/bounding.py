"""Bounds of a batch of domains: alpha and beta optimised jointly over boxes that the splits have fixed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from auto_LiRPA.bounds.backward import Rows, SplitTerm, backward
from auto_LiRPA.bounds.optimize import optimize_rows
from auto_LiRPA.bounds.settings import AlphaSettings
from auto_LiRPA.operators.base import Relaxation
from auto_LiRPA.parallel.tiles import cut
from auto_LiRPA.values import Box, Region
from complete_verifier.bab.domains import Domains, concatenate
from complete_verifier.bab.layout import Layout, domain_boxes, domain_relaxations
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
        clauses = self.problem.clauses.pick(domains.clause)
        found = optimize_rows(
            self.problem.graph,
            self.rows(domains),
            self.region(domains),
            self.relaxations(domains),
            self.settings,
            slopes=domains.slopes,
            splits=self.splits(domains),
            proven=clauses.proven,
            seconds_left=seconds_left,
        )
        beta = domains.beta
        if found.betas:
            beta = torch.cat([found.betas[layer.source] for layer in self.layout.layers], dim=1)
        return replace(domains, lower=torch.fmax(domains.lower, found.lower), beta=beta, slopes=found.slopes)

    def coefficients(self, domains: Domains) -> tuple[Mapping[int, Tensor], Mapping[int, Relaxation]]:
        """Coefficient on each nonlinear node's output ``[D, R, *shape]`` at the domains' own slopes, for branching."""
        relaxations = self.relaxations(domains)
        result = backward(
            self.problem.graph,
            self.rows(domains),
            relaxations,
            domains.slopes,
            self.splits(domains),
            save=True,
        )
        return result.saved, relaxations

    def quick(self, domains: Domains) -> Tensor:
        """Row bounds ``[D, R]`` by one pass with the domains' slopes and multipliers, nothing optimised."""
        parts = []
        once = replace(self.settings, iterations=1)
        for tile in cut(len(domains), DOMAIN_TILE):
            index = torch.arange(tile.start, tile.stop, device=domains.id.device)
            part = domains.pick(index)
            found = optimize_rows(
                self.problem.graph,
                self.rows(part),
                self.region(part),
                self.relaxations(part),
                once,
                slopes=part.slopes,
                splits=self.splits(part),
            )
            parts.append(found.lower)
        return torch.cat(parts)

    def rows(self, domains: Domains) -> Rows:
        """The clause's rows of each domain on the network's output."""
        graph = self.problem.graph
        c = self.problem.clauses.c[domains.clause]
        return Rows(graph.output, c.reshape(*c.shape[:2], *graph.output_shape))

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

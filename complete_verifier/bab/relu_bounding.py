"""Domains of a ReLU network: the lean way, on flat tensors of splittable neurons (auto_LiRPA.bounds.domains)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from auto_LiRPA.bounds.columns import Layout
from auto_LiRPA.bounds.domains.ascent import AscentSettings
from auto_LiRPA.bounds.domains.batch import Batch, Bounded, ColumnFacts, proven
from auto_LiRPA.bounds.domains.engine import DomainEngine
from auto_LiRPA.bounds.domains.schedule import make_schedule
from complete_verifier.bab.domains import Domains, tiles
from complete_verifier.bab.settings import Tiling
from complete_verifier.branching.layout import root_columns
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.problem import Problem


class ReluBounder:
    """Everything that does not change during a search."""

    def __init__(
        self, problem: Problem, root: IncompleteResult, layout: Layout, settings: AscentSettings, tiling: Tiling
    ) -> None:
        self._problem, self._tiling = problem, tiling
        self._columns = root_columns(layout, root.intermediate)
        self._engine = DomainEngine(
            make_schedule(problem.graph, layout, root.intermediate.boxes), settings, tiling.graphs
        )
        clauses = problem.clauses
        real = torch.isfinite(clauses.rhs)
        self._c = clauses.c.reshape(*clauses.c.shape[:2], *problem.graph.output_shape)
        self._rhs, self._real = torch.where(real, clauses.rhs, 0.0), real
        # where every row is strict in the file, a counterexample makes the sum negative: a bound of 0 refutes it too.
        # A clause without rows holds everywhere, and its sum is 0
        self._strict = (clauses.attainable_rhs | ~real).all(1) & real.any(1)
        self._one_region = problem.region.center().shape[0] == 1

    def bound(self, domains: Domains, seconds_left: Callable[[], float] | None = None) -> Domains:
        """The same domains with better bounds and variables. A bound never gets looser than before."""
        parts = [self._bound(tile, seconds_left) for tile in self._tiles(domains)]
        lower = torch.cat([p.lower for p in parts])
        value = torch.cat([p.value.to(domains.value.dtype) for p in parts])
        mix = torch.cat([p.mix for p in parts])
        return replace(domains, lower=torch.fmax(domains.lower, lower), value=value, mix=mix)

    def quick(self, domains: Domains) -> Tensor:
        """Bounds ``[D]`` by one pass with the domains' variables, nothing optimised."""
        return torch.cat([self._engine.bound(self._batch(tile)) for tile in self._tiles(domains)])

    def facts(self, domains: Domains) -> ColumnFacts:
        """Coefficients and boxes of all columns at the domains' own variables."""
        parts = [self._engine.facts(self._batch(tile)) for tile in self._tiles(domains)]
        return ColumnFacts(
            torch.cat([p.coef for p in parts]), torch.cat([p.lower for p in parts]), torch.cat([p.upper for p in parts])
        )

    def proven(self, domains: Domains, lower: Tensor) -> Tensor:
        """Which domains ``[D]`` the bounds ``[D]`` close."""
        return proven(lower, self._strict[domains.clause])

    def _bound(self, domains: Domains, seconds_left: Callable[[], float] | None) -> Bounded:
        return self._engine.optimize(self._batch(domains), seconds_left)

    def _tiles(self, domains: Domains) -> Iterator[Domains]:
        return tiles(domains, self._tiling.height)

    def _batch(self, domains: Domains) -> Batch:
        clause = domains.clause
        region, columns = self._problem.region, self._columns
        lower, upper = columns.lower, columns.upper
        if not self._one_region:
            where = self._problem.clauses.region[clause]
            region, lower, upper = region.pick(where), lower[where], upper[where]
        if domains.box_lower.shape[1]:
            lower, upper = domains.box_lower, domains.box_upper
        return Batch(
            sign=domains.sign,
            value=domains.value.to(self._c.dtype),
            lower=lower,
            upper=upper,
            region=region,
            c=self._c[clause],
            rhs=self._rhs[clause],
            real=self._real[clause],
            mix=domains.mix,
            strict=self._strict[clause],
        )

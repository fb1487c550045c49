"""Domains of a ReLU network: the lean way, on flat tensors of splittable neurons (auto_LiRPA.bounds.domains)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from auto_LiRPA.bounds.columns import Layout
from auto_LiRPA.bounds.domains.ascent import AscentSettings
from auto_LiRPA.bounds.domains.batch import Batch, ColumnFacts, proven
from auto_LiRPA.bounds.domains.engine import DomainEngine
from auto_LiRPA.bounds.domains.schedule import make_schedule
from auto_LiRPA.bounds.domains.spread_engine import SpreadEngine
from complete_verifier.bab.domains import Domains
from complete_verifier.bab.lockstep import ALONE, Agree, Lockstep
from complete_verifier.bab.settings import Tiling
from complete_verifier.branching.layout import root_columns
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.problem import Problem

T = TypeVar("T")


class ReluBounder:
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
        self._problem, self._tiling, self._lockstep = problem, tiling, lockstep
        self._columns = root_columns(layout, root.intermediate)
        graph, boxes = problem.graph, root.intermediate.boxes
        self._engine = (
            DomainEngine(make_schedule(graph, layout, boxes), settings, tiling.graphs)
            if graph.spread is None
            else SpreadEngine(graph, layout, boxes, settings)
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
        parts = self._each(domains, lambda batch, agree: self._engine.optimize(batch, seconds_left, agree))
        lower = torch.cat([p.lower for p in parts])
        value = torch.cat([p.value.to(domains.value.dtype) for p in parts])
        mix = torch.cat([p.mix for p in parts])
        return replace(domains, lower=torch.fmax(domains.lower, lower), value=value, mix=mix)

    def quick(self, domains: Domains) -> Tensor:
        """Bounds ``[D]`` by one pass with the domains' variables, nothing optimised."""
        return torch.cat(self._each(domains, lambda batch, agree: self._engine.bound(batch)))

    def facts(self, domains: Domains) -> ColumnFacts:
        """Coefficients and boxes of all columns at the domains' own variables."""
        parts = self._each(domains, lambda batch, agree: self._engine.facts(batch))
        return ColumnFacts(
            torch.cat([p.coef for p in parts]), torch.cat([p.lower for p in parts]), torch.cat([p.upper for p in parts])
        )

    def proven(self, domains: Domains, lower: Tensor) -> Tensor:
        """Which domains ``[D]`` the bounds ``[D]`` close."""
        return proven(lower, self._strict[domains.clause])

    def _each(self, domains: Domains, step: Callable[[Batch, Agree], T]) -> list[T]:
        """``step`` of every tile, and of what others wait for."""
        found = []
        for tile, mine in self._lockstep.tiles(domains, self._tiling.height):
            one = step(self._batch(tile), self._lockstep.all_agree if mine else self._lockstep.nothing_left)
            if mine:
                found.append(one)
        return found

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

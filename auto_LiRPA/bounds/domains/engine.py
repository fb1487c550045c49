"""The door to bounds of domains: fused kernels where there are some, else plain operations.

Fused kernels run in captured CUDA graphs. Where a step fetches weights or speaks to other ranks it cannot be captured:
then the same kernels run one by one, and give the same bits.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from auto_LiRPA.bounds.domains.ascent import (
    Agree,
    AscentSettings,
    bound_eagerly,
    columns_eagerly,
    columns_of,
    optimize_eagerly,
)
from auto_LiRPA.bounds.domains.batch import Batch, Bounded, ColumnFacts, split_box
from auto_LiRPA.bounds.domains.schedule import Schedule
from auto_LiRPA.values import Box

if TYPE_CHECKING:
    from auto_LiRPA.bounds.domains.fused import FusedDomains, Shape

# Rows of the buffers: few sizes, so that few graphs are captured; a batch takes the least one that holds it.
SIZES = tuple(2**k for k in (6, 8, 10, 12, 13, 14, 16, 18, 20))


@dataclass(frozen=True, slots=True)
class Fusing:
    """Whether fused kernels run, and why not: agreed once, the same on every rank (DESIGN 5, Numerics)."""

    enabled: bool
    reason: str


def fusing(device: torch.device, dtype: torch.dtype) -> Fusing:
    """What this device and number format allow."""
    if device.type != "cuda":
        return Fusing(False, "no CUDA device")
    if dtype != torch.float32:
        return Fusing(False, "fused kernels compute in float32")
    if importlib.util.find_spec("triton") is None:
        return Fusing(False, "Triton is not installed")
    return Fusing(True, "")


class DomainEngine:
    """Bounds batches of domains of one network with one set of settings."""

    def __init__(self, schedule: Schedule, settings: AscentSettings, graphs: bool) -> None:
        self._schedule, self._settings, self._graphs = schedule, settings, graphs
        self._fused: dict[Shape, FusedDomains] = {}
        self._pool: Any = None
        graph = schedule.graph
        self._captured = graph.spread is None and all(weight.capturable for weight in graph.weights)

    def optimize(self, batch: Batch, seconds_left: Callable[[], float] | None = None, agree: Agree = bool) -> Bounded:
        """Best bounds over alpha, beta and row weights.

        ``agree``: whether all ranks that fetch the same weights want to end early.
        """
        fused = self._fused_for(batch)
        if fused is not None:
            return fused.optimize(batch, seconds_left, agree)
        return optimize_eagerly(self._schedule, batch, self._settings, seconds_left, agree)

    def bound(self, batch: Batch) -> Tensor:
        """Bounds ``[D]`` by one pass."""
        fused = self._fused_for(batch)
        return bound_eagerly(self._schedule, batch) if fused is None else fused.bound(batch)

    def facts(self, batch: Batch) -> ColumnFacts:
        """Coefficients and boxes of all columns."""
        fused = self._fused_for(batch)
        if fused is None:
            return columns_eagerly(self._schedule, batch)
        coef = columns_of(self._schedule, fused.saved_coefficients(batch), batch)
        return ColumnFacts(coef, *split_box(batch.lower, batch.upper, batch.sign))

    def _fused_for(self, batch: Batch) -> FusedDomains | None:
        """The buffers that hold a batch; None where plain operations are to run."""
        usable = self._graphs and fusing(batch.value.device, batch.c.dtype).enabled
        if not usable or not isinstance(batch.region, Box) or self._schedule.width == 0:
            return None
        from auto_LiRPA.bounds.domains.fused import FusedDomains, Shape

        rows = next((size for size in SIZES if size >= len(batch)), len(batch))
        shape = Shape(rows, batch.lower.shape[0] != 1, batch.region.lower.shape[0] != 1)
        if shape not in self._fused:
            if self._pool is None and self._captured:
                self._pool = torch.cuda.graph_pool_handle()
            self._fused[shape] = FusedDomains(self._schedule, batch, self._settings, shape, self._pool)
        return self._fused[shape]

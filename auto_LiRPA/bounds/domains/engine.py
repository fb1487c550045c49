"""The door to bounds of domains: fused kernels in a captured CUDA graph where there are some, else plain operations."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from auto_LiRPA.bounds.domains.ascent import AscentSettings, bound_eagerly, columns_eagerly, optimize_eagerly
from auto_LiRPA.bounds.domains.batch import Batch, Bounded, ColumnFacts
from auto_LiRPA.bounds.domains.schedule import Schedule


class DomainEngine:
    """Bounds batches of domains of one network with one set of settings."""

    def __init__(self, schedule: Schedule, settings: AscentSettings, graphs: bool) -> None:
        self._schedule, self._settings = schedule, settings

    def optimize(self, batch: Batch, seconds_left: Callable[[], float] | None = None) -> Bounded:
        """Best bounds over alpha, beta and row weights."""
        return optimize_eagerly(self._schedule, batch, self._settings, seconds_left)

    def bound(self, batch: Batch) -> Tensor:
        """Bounds ``[D]`` by one pass."""
        return bound_eagerly(self._schedule, batch)

    def facts(self, batch: Batch) -> ColumnFacts:
        """Coefficients and boxes of all columns."""
        return columns_eagerly(self._schedule, batch)

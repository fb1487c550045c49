"""What the deciding stages work on: one network, boxes and clauses as tensors, limits and settings."""

from __future__ import annotations

import time
from dataclasses import dataclass

from torch import Tensor

from auto_LiRPA.bounds.settings import BoundSettings
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.values import Region


@dataclass(frozen=True, slots=True)
class Clock:
    """The run's deadline, counted from process start. ``timeout_s`` is the limit, ``started`` a monotonic time."""

    started: float
    timeout_s: float

    def left(self) -> float:
        """Seconds until the deadline (negative when it has passed)."""
        return self.timeout_s - (time.monotonic() - self.started)

    def elapsed(self) -> float:
        """Seconds since process start."""
        return time.monotonic() - self.started


@dataclass(frozen=True, slots=True)
class Clauses:
    """Clauses that a counterexample may satisfy, one per entry: ``c @ y <= rhs`` on all rows of an entry is one.

    Shapes: ``c`` ``[K, R, n_out]``, ``rhs`` ``[K, R]``, ``region`` ``[K]`` (which box each clause belongs to).
    A clause is proved impossible if any row's lower bound is above its rhs. Padding rows have c = 0 and rhs = +inf and
    never prove anything. ``attainable_rhs`` ``[K, R]`` bool: the row is strict in the file (``c @ y < rhs`` is a
    counterexample), so a lower bound equal to rhs proves it as well.
    """

    c: Tensor
    rhs: Tensor
    region: Tensor
    attainable_rhs: Tensor

    def proven(self, lower: Tensor) -> Tensor:
        """Which clauses ``[K]`` the row bounds ``[K, R]`` prove. A NaN proves nothing."""
        above = (lower > self.rhs) | (self.attainable_rhs & (lower >= self.rhs))
        return above.any(1)

    def margin(self, lower: Tensor) -> Tensor:
        """How far each clause is from being proved: max over rows of lower - rhs, ``[K]`` (positive: proved)."""
        return (lower - self.rhs).amax(1)

    def pick(self, index: Tensor) -> Clauses:
        """Some of the clauses."""
        return Clauses(self.c[index], self.rhs[index], self.region[index], self.attainable_rhs[index])


@dataclass(frozen=True, slots=True)
class Problem:
    """One verification problem. ``region`` holds ``[n_regions, *input]``; the property fails if any clause can hold."""

    graph: Graph
    region: Region
    clauses: Clauses
    context: DistributedContext
    bounds: BoundSettings
    clock: Clock

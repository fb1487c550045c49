"""Bounds of a graph by every method, for the wrong answers that concern bounds."""

from __future__ import annotations

import torch
from torch import Tensor

from auto_LiRPA.bounds.methods import Method, Query, compute
from auto_LiRPA.bounds.settings import AlphaSettings, BoundSettings
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.values import Region

METHODS = tuple(Method)
INTERSECTED = BoundSettings(alpha=AlphaSettings(iterations=6))
PLAIN = BoundSettings(compare_with_ibp=False, alpha=AlphaSettings(iterations=6))


def bound(
    graph: Graph, region: Region, method: Method, settings: BoundSettings = INTERSECTED, c: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds ``[B, S]`` of the rows ``c``, or of every output."""
    with torch.no_grad():
        found = compute(graph, region, Query(c=c), method, DistributedContext.single(), settings)
    assert found.lower is not None and found.upper is not None
    return found.lower.bound, found.upper.bound

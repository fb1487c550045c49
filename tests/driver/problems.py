"""Random problems as the incomplete stage sees them: several regions, clauses of unequal size, with sampled truth."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from auto_LiRPA.bounds.settings import AlphaSettings, BoundSettings
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.run import evaluate
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.settings import ParallelSettings
from auto_LiRPA.values import Box
from complete_verifier.problem import Clauses, Clock, Problem
from tests.nets import dense_layers, mlp, residual


@dataclass(frozen=True)
class Sampled:
    """A problem and the least value of each row that samples of its region reach, ``[K, R]`` (+inf for padding)."""

    problem: Problem
    least: Tensor


def sampled_problem(
    seed: int,
    regions: int = 3,
    clauses: int = 7,
    rows: int = 3,
    dtype: torch.dtype = torch.float64,
    alpha: AlphaSettings | None = None,
    timeout_s: float = 60.0,
) -> Sampled:
    """A random network (plain or residual) with random clauses; thresholds near what samples reach."""
    gen = torch.Generator().manual_seed(seed)
    layers = dense_layers([4, 10, 10, 3], seed, dtype)
    graph = (residual if seed % 2 else mlp)(layers)
    center = torch.randn(regions, 4, generator=gen, dtype=torch.float64)
    radius = 0.1 + 0.5 * torch.rand(regions, 4, generator=gen, dtype=torch.float64)
    box = Box((center - radius).to(dtype), (center + radius).to(dtype))
    size = torch.randint(1, rows + 1, (clauses,), generator=gen)
    size[0] = rows
    real = torch.arange(rows) < size.unsqueeze(1)
    region = torch.randint(0, regions, (clauses,), generator=gen)
    c = torch.randn(clauses, rows, 3, generator=gen, dtype=torch.float64).to(dtype) * real.unsqueeze(-1)
    least = _least(graph, box, c, region, gen)
    below = 2 * torch.rand(clauses, 1, generator=gen, dtype=torch.float64)
    below[0] = 1e-3  # nothing but a search can prove that clause
    rhs = torch.where(real, least - below, torch.inf)
    found = Clauses(c, rhs.to(dtype), region, torch.zeros(clauses, rows, dtype=torch.bool))
    settings = BoundSettings(alpha=alpha or AlphaSettings(iterations=8, lr_alpha=0.2))
    context = DistributedContext.single(settings=ParallelSettings(threads=1))
    problem = Problem(graph, box, found, context, settings, Clock(time.monotonic(), timeout_s))
    return Sampled(problem, torch.where(real, least, torch.inf))


def _least(graph: Graph, box: Box, c: Tensor, region: Tensor, gen: torch.Generator) -> Tensor:
    share = torch.rand(500, *box.lower.shape, generator=gen, dtype=torch.float64).to(box.lower)
    x = box.lower + share * (box.upper - box.lower)  # [500, regions, 4]
    y = evaluate(graph, x.flatten(0, 1)).unflatten(0, x.shape[:2])[:, region]  # [500, K, 3]
    return torch.einsum("skn,krn->skr", y, c).amin(0).double()

"""Cheap looks for counterexamples: the centre of each box, and the corner where its rows' linear bounds are least."""

from __future__ import annotations

import torch
from torch import Tensor

from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.run import evaluate
from complete_verifier.input_bab.bounding import Bounded
from complete_verifier.input_bab.domains import Domains
from complete_verifier.input_bab.groups import Groups


def candidates(
    graph: Graph, groups: Groups, domains: Domains, bounded: Bounded, most: int
) -> tuple[Tensor, Tensor]:
    """Points ``[N, *in]``, N <= ``most``, that satisfy all rows of an open clause by the graph's own arithmetic.

    The deepest come first; how deep they are, ``[N]``, is the largest row of their best clause.
    """
    center = domains.lower + (domains.upper - domains.lower) / 2
    rows = (groups.real[domains.group] & domains.open[..., None])[..., None]
    # one corner a box: where the sum of the open rows' linear bounds is least
    direction = torch.where(rows, bounded.coef, 0.0).sum((1, 2))
    corner = torch.where(direction >= 0, domains.lower, domains.upper)
    points = torch.cat([center, corner]).reshape(-1, *graph.input_shape)
    worst = violation(graph, groups, domains.group.repeat(2), domains.open.repeat(2, 1), points)
    found = (worst <= 0).nonzero().squeeze(-1)
    best = found[worst[found].argsort(stable=True)[:most]]
    return points[best], worst[best]


def violation(graph: Graph, groups: Groups, group: Tensor, opened: Tensor, points: Tensor) -> Tensor:
    """``[N]``: the least, over open clauses, of a clause's largest ``c . y - rhs`` at each point. NaN: +inf."""
    y = evaluate(graph, points).flatten(1)
    value = torch.einsum("ngro,no->ngr", groups.c[group], y) - groups.rhs[group]
    real = groups.real[group]
    worst = torch.where(real, value.nan_to_num(nan=torch.inf), -torch.inf).amax(-1)
    # a clause without rows would hold everywhere: it is none
    return torch.where(opened & real.any(-1), worst, torch.inf).amin(1)

"""The domains that a search starts from: one for every clause that the incomplete stage left open."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from auto_LiRPA.bounds.columns import Layout
from auto_LiRPA.operators.activation import Relu
from complete_verifier.bab.domains import Domains
from complete_verifier.incomplete.result import IncompleteResult, known_gap
from complete_verifier.problem import Problem

# Share of the weight that the best single row gets at the start; the rest is spread over the clause's other rows.
BEST_ROW_SHARE = 0.7


def root_domains(problem: Problem, start: IncompleteResult, layout: Layout, stored: torch.dtype) -> Domains:
    """One domain per open clause, with the incomplete stage's slopes; variables are stored as ``stored``."""
    clause = (~start.proven).nonzero().squeeze(-1)
    like = start.lower
    count, width = len(clause), layout.width
    picked = problem.clauses.pick(clause)
    gaps = like[clause] - picked.rhs
    best = gaps.argmax(1)
    region = problem.clauses.region[clause]
    value = torch.zeros(count, width, dtype=like.dtype, device=like.device)
    for layer in layout.layers:
        value[:, layer.start : layer.stop] = _root_slopes(problem, start, layer.node, clause, best)[:, layer.index]
    return Domains(
        id=torch.arange(count, device=like.device),
        clause=clause,
        depth=torch.zeros_like(clause),
        sign=torch.zeros(count, width, dtype=torch.int8, device=like.device),
        value=value.to(stored),
        lower=known_gap(gaps.gather(1, best.unsqueeze(1)).squeeze(1)),
        mix=first_mix(torch.isfinite(picked.rhs), best).to(like),
        box_lower=like.new_zeros(count, 0),
        box_upper=like.new_zeros(count, 0),
        slopes=_other_slopes(problem, start, clause, best, region),
    )


def _root_slopes(problem: Problem, start: IncompleteResult, node: int, clause: Tensor, row: Tensor) -> Tensor:
    """Lower slopes ``[D, n]`` of all neurons of a ReLU: those of each clause's best row, else CROWN's own."""
    relaxation = start.intermediate.relaxations[node]
    spec = relaxation.alpha
    assert spec is not None
    op = problem.graph.nodes[node].op
    assert isinstance(op, Relu)
    box = start.intermediate.boxes[problem.graph.nodes[node].inputs[0]].flat()
    slopes = op.lines(box).lower_slope[problem.clauses.region[clause]]
    if node in start.slopes:
        slopes = slopes.index_copy(1, spec.index, start.slopes[node][clause, row][:, 0].to(slopes))
    return slopes


def _other_slopes(
    problem: Problem, start: IncompleteResult, clause: Tensor, row: Tensor, region: Tensor
) -> Mapping[int, Tensor]:
    """Slopes ``[D, 1, P, u]`` of nonlinear nodes that are never split."""
    slopes = {}
    for node_id, relaxation in start.intermediate.relaxations.items():
        spec = relaxation.alpha
        if isinstance(problem.graph.nodes[node_id].op, Relu) or spec is None or len(spec.index) == 0:
            continue
        if node_id in start.slopes:
            slopes[node_id] = start.slopes[node_id][clause, row].unsqueeze(1)
        else:
            slopes[node_id] = spec.initial[region].unsqueeze(1).clone()
    return slopes


def first_mix(real: Tensor, best: Tensor) -> Tensor:
    """Row weights ``[K, R]`` to start from: mostly each clause's best row, so that the known bound is near."""
    one_hot = torch.nn.functional.one_hot(best, real.shape[1]).to(torch.float64)
    others = real.to(torch.float64) * (1 - one_hot)
    spread = others / others.sum(1, keepdim=True).clamp_min(1)
    has_others = others.sum(1, keepdim=True) > 0
    return torch.where(has_others, BEST_ROW_SHARE * one_hot + (1 - BEST_ROW_SHARE) * spread, one_hot)

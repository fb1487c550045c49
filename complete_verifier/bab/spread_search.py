"""What a search of a network starts from whose neurons are spread over ranks: all of it is about whole layers.

Ranks that share the neurons search the same tree, step by step, and only their bounding passes are parts of one.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import Tensor

from auto_LiRPA.bounds.domains.schedule import is_relu_network
from auto_LiRPA.bounds.intermediate import Intermediate
from auto_LiRPA.graph.placements import Sharded, Spread
from auto_LiRPA.graph.reassembly import whole_graph
from auto_LiRPA.operators.base import NonlinearOperator, Relaxation
from complete_verifier.bab.whole_weights import with_small_weights
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.problem import Problem

_LOG = logging.getLogger(__name__)


def for_search(problem: Problem, start: IncompleteResult) -> tuple[Problem, IncompleteResult]:
    """The problem and its root with relaxations and slopes of all neurons on every rank.

    A network of plain ReLUs stays spread: its domains are bounded by parts (`SpreadEngine`). Any other network gets all
    its weights on every rank for the search. Where nothing is spread, small weights become whole and the rest stays.
    """
    spread = problem.graph.spread
    if spread is None:
        return with_small_weights(problem), start
    root = start.intermediate
    relaxations: dict[int, Relaxation] = {}
    for node_id in root.relaxations:
        node = problem.graph.nodes[node_id]
        assert isinstance(node.op, NonlinearOperator)
        relaxations[node_id] = node.op.relax(*(root.boxes[i] for i in node.inputs))
    slopes = {}
    for node_id in sorted(root.relaxations):
        # a rank without undecided neurons in a layer has no slopes of it
        known = torch.tensor([float(node_id in start.slopes)], device=start.lower.device)
        if float(spread.ranks.total(known)) > 0:
            slopes[node_id] = _whole_slopes(spread, node_id, start, root.relaxations[node_id], relaxations[node_id])
    found = replace(start, intermediate=Intermediate(root.boxes, relaxations, root.starts), slopes=slopes)
    if is_relu_network(problem.graph):
        return problem, found
    _LOG.warning("parallel.mode tp: every rank gets all weights for branch and bound: not a network of plain ReLUs")
    return with_whole_weights(problem), found


def with_whole_weights(problem: Problem) -> Problem:
    """The problem with all weights on every rank; all that share the neurons have to ask, at the same place."""
    return replace(problem, graph=whole_graph(problem.graph, problem.context.settings.block_mib))


def _whole_slopes(spread: Spread, node: int, start: IncompleteResult, part: Relaxation, whole: Relaxation) -> Tensor:
    """Slopes ``[K, R, P, u]`` of a node's neurons, numbered as the whole relaxation numbers them."""
    place, value = spread.places[node], start.slopes.get(node)
    assert part.alpha is not None and whole.alpha is not None
    if not isinstance(place, Sharded):
        assert value is not None
        return value
    shape, count = spread.shapes[node], whole.alpha.initial.shape[1]
    dense = start.lower.new_zeros(*start.lower.shape, count, int(torch.Size(shape).numel()))
    if value is not None:
        dense[..., part.alpha.index] = value
    every = spread.whole(node, dense.unflatten(3, shape), leading=3)
    return every.flatten(3)[..., whole.alpha.index]

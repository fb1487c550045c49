"""Branch and bound on ranks that split a network, beside the same search on the whole one."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from auto_LiRPA.bounds.settings import AlphaSettings, BoundSettings
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.run import evaluate
from auto_LiRPA.graph.tensor_parallel import tensor_parallel
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.values import Box
from complete_verifier.bab.search import search
from complete_verifier.bab.settings import BabSettings
from complete_verifier.incomplete.settings import IncompleteSettings
from complete_verifier.incomplete.stage import run_incomplete
from complete_verifier.problem import Clauses, Clock, Problem
from tests.parallel.tp_networks import NETS, question, rows
from tests.parallel.tp_workers import Case, settings

BAB = BabSettings(
    batch_size=8,
    min_batch_ratio=1.0,
    iterations=4,
    lr_alpha=0.1,
    lr_beta=0.1,
    synchronous=True,
    auto_enlarge=False,
    pruning_in_iteration=False,
    half_variables=False,
)


@dataclass(frozen=True)
class SearchCase:
    """A branch and bound to compare: network, radius of the box, slack of the thresholds, most rounds."""

    net: str
    radius: float
    slack: float
    rounds: int = 4


def _problem(graph: Graph, case: SearchCase, whole: Graph, context: DistributedContext) -> Problem:
    """Three clauses of one row each whose thresholds lie below the centre's outputs."""
    dtype = torch.float64
    box = question(whole, dtype)
    x = box.center()[:1]
    y = evaluate(whole, x).flatten()
    c = rows(whole, dtype)[0, :3].unsqueeze(1)
    rhs = (c[:, 0] @ y - case.slack).unsqueeze(1)
    clauses = Clauses(c, rhs, torch.zeros(3, dtype=torch.int64), torch.zeros(3, 1, dtype=torch.bool))
    region = Box(x - case.radius, x + case.radius)
    alpha = BoundSettings(alpha=AlphaSettings(iterations=4, lr_alpha=0.25))
    return Problem(graph, region, clauses, context, alpha, Clock(time.monotonic(), 1e6))


def searched(case: tuple[tuple[SearchCase, ...], tuple[tuple[str, int], ...]]) -> dict[str, Any]:
    """Per search what came out of it, single and here (on a mesh, if one is given)."""
    searches, mesh = case
    context = DistributedContext.from_env(settings(Case((), (), mesh=mesh)))
    report: dict[str, Any] = {}
    for one in searches:
        whole = NETS[one.net](torch.float64)
        found = []
        for graph, where in ((whole, context.alone()), (tensor_parallel(whole, context), context)):
            problem = _problem(graph, one, whole, where)
            start = run_incomplete(problem, IncompleteSettings())
            result = search(problem, start, replace(BAB, max_iterations=one.rounds))
            found.append((result.closed, result.stopped_by, result.domains_visited, result.rounds, result.worst_bound))
        report[one.net] = found
    context.close()
    return report



"""The mixed-integer stages of a run with several ranks: the first one solves, with all its processes; all know.

The solver's processes are many as it is, and its programs need whole weights in the host's memory, once is enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from auto_LiRPA.bounds.intermediate import Intermediate
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.parallel.store import LocalStore, Weight
from auto_LiRPA.parallel.whole import whole
from auto_LiRPA.values import Interval
from complete_verifier.incomplete.regions import relax_all
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.mip.encode import Unsuitable
from complete_verifier.problem import Problem


def for_first_rank(problem: Problem) -> Problem:
    """The problem with whole weights and a context of one rank, for the first rank; all ranks call it together.

    Other ranks help to bring the weights together and keep nothing of them.

    Raises:
        Unsuitable: the network is cut up over the ranks.
    """
    context = problem.context
    if context.world.size == 1:
        return problem
    if context.mode == "tp" and context.weights.size > 1:
        raise Unsuitable("the network is cut up over the ranks (parallel.mode: tp)")
    graph = problem.graph if context.weights.size == 1 else _brought_together(problem, context.world.rank == 0)
    return replace(problem, graph=graph, context=context.alone())


def _brought_together(problem: Problem, keep: bool) -> Graph:
    store = LocalStore(problem.context.settings.block_mib)

    def place(weight: Weight) -> Weight:
        if keep:
            return store.place(whole(weight))
        for _ in weight.blocks():
            pass
        return weight

    return problem.graph.mapped(lambda tensor: tensor, place)


@dataclass(frozen=True, slots=True)
class Portable:
    """An `IncompleteResult` on its way to other ranks: numbers only, in the host's memory."""

    lower: Tensor
    boxes: Mapping[int, tuple[Tensor, Tensor]]
    slopes: Mapping[int, Tensor]

    @classmethod
    def of(cls, result: IncompleteResult) -> Portable:
        """``result``, ready to be sent."""
        boxes = {i: (box.lower.cpu(), box.upper.cpu()) for i, box in result.intermediate.boxes.items()}
        return cls(result.lower.cpu(), boxes, {i: s.cpu() for i, s in result.slopes.items()})

    def unpacked(self, problem: Problem, start: IncompleteResult) -> IncompleteResult:
        """The result that was sent; ``start``: what it was made from, which every rank has."""
        device = start.lower.device
        with torch.no_grad():
            boxes = {i: Interval(a.to(device), b.to(device)) for i, (a, b) in self.boxes.items()}
            middle = Intermediate(boxes, relax_all(problem.graph, boxes), start.intermediate.starts)
            lower = self.lower.to(device)
            slopes = {i: s.to(device) for i, s in self.slopes.items()}
            return IncompleteResult(lower, problem.clauses.proven(lower), middle, slopes)

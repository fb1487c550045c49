"""Ranks that all make the same bounds: they work apart, and where a clock ends one of them earlier, all go on alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from auto_LiRPA.bounds.intermediate import Intermediate
from auto_LiRPA.errors import OutOfTime
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.groups import Group, alone
from auto_LiRPA.parallel.sharing import OUT_OF_TIME
from auto_LiRPA.values import Interval
from complete_verifier.incomplete.regions import relax_all
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.problem import Problem

T = TypeVar("T")


def sharers(context: DistributedContext) -> DistributedContext:
    """The context of those ranks alone that share rows or weights: with others there is nothing to agree on."""
    rows, weights = context.rows, context.weights
    if rows.size == context.world.size or weights.size == context.world.size or min(rows.size, weights.size) > 1:
        return context
    together = rows if rows.size > 1 else weights if weights.size > 1 else alone(context.counters)
    return replace(context, world=together, domains=alone(context.counters))


def on_time(world: Group, make: Callable[[], T]) -> T:
    """What ``make`` returns, if it came in time on all ranks.

    Raises:
        OutOfTime: it did not, on some rank.
    """
    found: list[T] = []
    try:
        found.append(make())
    except OutOfTime:
        if world.size == 1:
            raise
    if world.some(not found):
        raise OutOfTime(OUT_OF_TIME)
    return found[0]


def shared(problem: Problem, result: IncompleteResult) -> IncompleteResult:
    """``result`` as the first of the ranks has it that bounded the same rows.

    An optimisation that runs out of time stops where the clock of its rank says so. Ranks that share rows gather the
    outcome, so they have the same; ranks along the domains' axis repeat each other's work.
    """
    context = problem.context
    if context.domains.size == 1 or context.rows.size == context.world.size:
        return result

    def of_first(value: Tensor) -> Tensor:
        return context.domains.broadcast(value.clone(memory_format=torch.contiguous_format), 0)

    lower = of_first(result.lower)
    boxes = {
        i: Interval(of_first(box.lower), of_first(box.upper)) for i, box in sorted(result.intermediate.boxes.items())
    }
    middle = Intermediate(boxes, relax_all(problem.graph, boxes), result.intermediate.starts)
    # a rank that had no time for any may have none
    shapes = context.domains.same_object({i: tuple(value.shape) for i, value in sorted(result.slopes.items())})
    slopes = {i: of_first(result.slopes.get(i, lower.new_empty(shape))) for i, shape in shapes.items()}
    return replace(result, lower=lower, proven=problem.clauses.proven(lower), intermediate=middle, slopes=slopes)

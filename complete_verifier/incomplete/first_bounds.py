"""First bounds of every clause: boxes by the chosen method, then one pass for all rows, group of regions by group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from auto_LiRPA.bounds.final import final_lower, interval_lower, spec_tiles
from auto_LiRPA.bounds.forward import forward_boxes
from auto_LiRPA.bounds.forward_rows import forward_rows
from auto_LiRPA.bounds.intermediate import (
    NOTHING_GIVEN,
    Boxes,
    Given,
    Intermediate,
    crown_boxes,
    interval_boxes,
    widest,
)
from auto_LiRPA.bounds.interval import IntervalWalk
from auto_LiRPA.values import Interval, Region
from complete_verifier.incomplete.regions import join, pick, relax_all, trusted
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.incomplete.rows import RowBlock, row_blocks
from complete_verifier.incomplete.settings import IncompleteSettings, Method
from complete_verifier.problem import Clauses, Problem

# Regions that are bounded together: so many that a handful of rows of all of them stay within this much memory.
_GROUP_BYTES = 64 * 2**20
_ROWS_OF_A_REGION = 8


def first_bounds(
    problem: Problem, settings: IncompleteSettings, given: Given = NOTHING_GIVEN
) -> IncompleteResult:
    """Row bounds of all clauses by one pass of the method's first part (alpha-CROWN's is plain CROWN).

    ``given``: boxes of nodes that the caller knows, one batch element per region.

    Raises:
        OutOfTime: the deadline passed before every clause was bounded.
    """
    region = problem.region
    clauses = problem.clauses
    lower = torch.full_like(clauses.rhs, -torch.inf)
    parts = []
    for index in _region_groups(problem):
        part = _boxes(problem, region.pick(index), settings.method, _part(given, index))
        inside = (clauses.region >= index[0]) & (clauses.region <= index[-1])
        for block in row_blocks(clauses, inside, settings.max_rows, len(index)):
            at = block.regions - index[0]
            whole = len(at) == len(index)
            middle = part if whole else pick(problem.graph, part, at, problem.context)
            found = _rows(problem, clauses, block, region.pick(block.regions), middle, settings.method)
            lower = block.scatter(found, lower)
        parts.append(part)
    intermediate = join(problem.graph, parts, problem.context)
    return finished(problem, lower, intermediate, {})


def finished(
    problem: Problem, lower: Tensor, intermediate: Intermediate, slopes: Mapping[int, Tensor]
) -> IncompleteResult:
    """The result with everything struck out that proves nothing: NaN, infinities, and bounds over broken boxes."""
    lower = torch.where(torch.isfinite(lower), lower, -torch.inf)
    good = trusted(intermediate.boxes)
    if good is not None:
        lower = torch.where(good[problem.clauses.region].unsqueeze(1), lower, -torch.inf)
    return IncompleteResult(lower, problem.clauses.proven(lower), intermediate, slopes)


def intersect_with_intervals(problem: Problem, c: Tensor, region: Region, boxes: Boxes, lower: Tensor) -> Tensor:
    """``lower`` ``[B, S]``, or the interval bound of the row where that is better: CROWN can lose to it."""
    if not problem.bounds.compare_with_ibp:
        return lower
    return torch.fmax(lower, _interval_rows(problem, c, region, boxes))


def _region_groups(problem: Problem) -> Iterator[Tensor]:
    region = problem.region
    center = region.center()
    row_bytes = 2 * widest(problem.graph, problem.graph.output) * center.element_size()
    size = max(1, _GROUP_BYTES // (_ROWS_OF_A_REGION * row_bytes))
    yield from torch.arange(center.shape[0], device=center.device).split(size)


def _part(given: Given, index: Tensor) -> Given:
    """What is known of some of the regions."""
    fixed, reference = (
        {node: Interval(box.lower[index], box.upper[index]) for node, box in boxes.items()}
        for boxes in (given.fixed, given.reference)
    )
    return Given(fixed, reference)


def _boxes(problem: Problem, region: Region, method: Method, given: Given) -> Intermediate:
    if method in ("ibp", "crown-ibp"):
        boxes, _ = interval_boxes(problem.graph, region, problem.context, given)
        return Intermediate(boxes, relax_all(problem.graph, boxes), ())
    if method in ("forward", "forward+crown"):
        return forward_boxes(problem.graph, region, problem.bounds, given)[0]
    return crown_boxes(problem.graph, region, problem.context, problem.bounds, given)


def _rows(
    problem: Problem, clauses: Clauses, block: RowBlock, region: Region, middle: Intermediate, method: Method
) -> Tensor:
    """Row bounds ``[B, S]`` of one block."""
    c = block.matrix(clauses)
    if method == "ibp":
        return _interval_rows(problem, c, region, middle.boxes)
    if method == "forward":
        found = forward_rows(problem.graph, region, c, middle, 1)
    else:
        spec = spec_tiles(problem.graph, c, problem.context, len(c))
        found = final_lower(problem.graph, spec, region, middle.relaxations, problem.context)
    return intersect_with_intervals(problem, c, region, middle.boxes, found)


def _interval_rows(problem: Problem, c: Tensor, region: Region, boxes: Boxes) -> Tensor:
    walk = IntervalWalk(problem.graph, region.interval())
    for node_id, box in boxes.items():
        walk.set(node_id, box)
    tiles = spec_tiles(problem.graph, c, problem.context, len(c)).tiles
    return torch.cat([interval_lower(problem.graph, c[:, t.start : t.stop], walk) for t in tiles], dim=1)

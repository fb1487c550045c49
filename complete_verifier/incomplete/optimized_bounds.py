"""alpha-CROWN for the clauses that are still open: block by block, the bounds merged, the slopes kept for BaB."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from auto_LiRPA.bounds.alpha import AlphaResult, alpha_crown
from auto_LiRPA.bounds.final import spec_tiles
from auto_LiRPA.bounds.intermediate import Intermediate
from auto_LiRPA.bounds.settings import BoundSettings
from auto_LiRPA.errors import OutOfTime
from auto_LiRPA.parallel.context import DistributedContext
from complete_verifier.events import Listener, Note
from complete_verifier.incomplete.first_bounds import finished, intersect_with_intervals
from complete_verifier.incomplete.regions import pick, tightened
from complete_verifier.incomplete.replicas import shared, sharers
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.incomplete.rows import RowBlock, row_blocks
from complete_verifier.problem import Clauses, Problem

# What the slopes of one block may take, Adam's two moments and the gradient included. A constant, not the memory that
# happens to be free: the same problem is cut the same way everywhere.
_SLOPE_BYTES = 2 * 2**30
_COPIES = 4
# Slopes of all clauses that are handed to branch and bound; without them it starts from CROWN's.
_HANDED_ON_BYTES = 2**30
# A joint iteration costs about so many CROWN passes; fewer iterations than this are not worth a start.
_PASSES_PER_ITERATION = 4.0
_LEAST_ITERATIONS = 5


@dataclass(frozen=True, slots=True)
class _Plan:
    """How the open clauses are cut into blocks, and how each block is optimised."""

    settings: BoundSettings
    max_rows: int
    max_regions: int
    hand_on: bool  # whether the slopes of all clauses are few enough to be kept for branch and bound


@dataclass(slots=True)
class _Gathered:
    """What the blocks have given so far. ``slopes`` are per block and node, over that block's own neurons."""

    lower: Tensor
    intermediate: Intermediate
    slopes: list[tuple[RowBlock, Mapping[int, Tensor], Mapping[int, Tensor]]]
    iterations: int = 0


def optimized_bounds(
    problem: Problem,
    start: IncompleteResult,
    open_clauses: Tensor,
    max_rows: int,
    seconds_left: Callable[[], float],
    crown_seconds: float,
    on_event: Listener,
) -> tuple[IncompleteResult, int]:
    """Better bounds for the clauses ``open_clauses`` (bool ``[K]``), and the most iterations that a block took.

    Args:
        seconds_left: for this stage; when it is used up, on any rank, the best bounds so far count.
        crown_seconds: what the CROWN pass over all regions took; the same on all ranks.
    """
    world = problem.context.world
    concerned = len(torch.unique(problem.clauses.region[open_clauses])) / problem.region.center().shape[0]
    left = world.smallest(seconds_left())
    plan = _plan(problem, start.intermediate, max_rows, left, crown_seconds * concerned, on_event)
    context = replace(sharers(problem.context), seconds_left=seconds_left)
    late = False
    gathered = _Gathered(start.lower, start.intermediate, [])
    for block in row_blocks(problem.clauses, open_clauses, plan.max_rows, plan.max_regions):
        if world.some(late or seconds_left() <= 0):
            break
        try:
            _optimize(problem, context, plan, block, gathered, seconds_left)
        except OutOfTime:
            late = True  # perhaps here alone
    slopes = _slopes_of_clauses(problem.clauses, gathered)
    found = finished(problem, gathered.lower, gathered.intermediate, slopes)
    return shared(problem, found), int(world.largest(gathered.iterations))


def _optimize(
    problem: Problem,
    context: DistributedContext,
    plan: _Plan,
    block: RowBlock,
    gathered: _Gathered,
    seconds_left: Callable[[], float],
) -> None:
    summed = plan.settings.alpha.reduction == "sum"
    c, region = block.matrix(problem.clauses, repeat=not summed), problem.region.pick(block.regions)
    base = pick(problem.graph, gathered.intermediate, block.regions, context)
    found = alpha_crown(
        problem.graph,
        region,
        c,
        context,
        plan.settings,
        proven=lambda lower: block.regions_done(problem.clauses, lower),
        seconds_left=seconds_left,
        intermediate=base,
    )
    lower = intersect_with_intervals(problem, c, region, found.intermediate.boxes, found.lower)
    nothing = torch.full_like(gathered.lower, -torch.inf)
    gathered.lower = torch.fmax(gathered.lower, block.scatter(lower, nothing))
    gathered.intermediate = tightened(problem.graph, gathered.intermediate, block.regions, found.intermediate.boxes)
    gathered.iterations = max(gathered.iterations, found.iterations)
    if plan.hand_on:
        neurons = {i: r.alpha.index for i, r in base.relaxations.items() if r.alpha is not None}
        gathered.slopes.append((block, neurons, _joined_slopes(problem, context, c, found)))


def _joined_slopes(problem: Problem, context: DistributedContext, c: Tensor, found: AlphaResult) -> dict[int, Tensor]:
    """The final rows' slopes ``[B, S, P, u]`` per node, from the tiles' ``[B, height, P, u]``."""
    spec = spec_tiles(problem.graph, c, context, len(c))
    tiles = found.all_slopes(context, len(spec.tiles))
    return {node: spec.join([tile[node] for tile in tiles]) for node in tiles[0]} if tiles else {}


def _slopes_of_clauses(clauses: Clauses, gathered: _Gathered) -> dict[int, Tensor]:
    """Slopes ``[K, R, P, u]`` over the final relaxations' neurons: CROWN's own, where alpha-CROWN has none."""
    out: dict[int, Tensor] = {}
    for node, relaxation in gathered.intermediate.relaxations.items():
        spec = relaxation.alpha
        if spec is None or not any(node in slopes for _, _, slopes in gathered.slopes):
            continue
        value = spec.initial[clauses.region].unsqueeze(1).repeat(1, clauses.rhs.shape[1], 1, 1)
        for block, neurons, slopes in gathered.slopes:
            if node in slopes:
                _fill(value, spec.index, block, neurons[node], slopes[node])
        out[node] = value
    return out


def _fill(value: Tensor, index: Tensor, block: RowBlock, neurons: Tensor, slopes: Tensor) -> None:
    """Copy a block's slopes over its ``neurons`` into ``value`` ``[K, R, P, u]`` over ``index`` (both sorted)."""
    if len(index) == 0 or len(neurons) == 0:
        return
    place = torch.searchsorted(neurons, index).clamp_max(len(neurons) - 1)
    known = neurons[place] == index
    mine = slopes[block.element, block.column]
    old = value[block.clause, block.row]
    value[block.clause, block.row] = torch.where(known, mine[:, :, place], old)


def _plan(
    problem: Problem,
    intermediate: Intermediate,
    max_rows: int,
    seconds: float,
    crown_seconds: float,
    on_event: Listener,
) -> _Plan:
    """Block sizes that keep the slopes within bounds, and the mode of the intermediate bounds."""
    alpha = problem.bounds.alpha
    itemsize = problem.clauses.c.element_size() * _COPIES
    of_a_row = _slope_count(problem, intermediate, problem.graph.output)
    per_row = itemsize * of_a_row
    hand_on = problem.clauses.rhs.numel() * of_a_row * problem.clauses.c.element_size() <= _HANDED_ON_BYTES
    per_region = 0
    if alpha.mode == "keep" and crown_seconds * _PASSES_PER_ITERATION * _LEAST_ITERATIONS > seconds:
        on_event(Note("alpha-CROWN leaves the intermediate bounds fixed: a joint iteration takes too long"))
        alpha = replace(alpha, mode="fixed")
    if alpha.mode == "keep" and not alpha.share_alphas:
        starts = intermediate.starts
        per_region = itemsize * sum(2 * len(s.index) * _slope_count(problem, intermediate, s.node) for s in starts)
        if per_region > _SLOPE_BYTES:
            need = f"{per_region / 2**30:.1f} GiB"
            on_event(Note(f"alpha-CROWN shares slopes among the neurons of a layer: they would take {need}"))
            alpha, per_region = replace(alpha, share_alphas=True), 0
    return _Plan(
        replace(problem.bounds, alpha=alpha),
        max_rows=max(1, min(max_rows, _SLOPE_BYTES // max(1, per_row))),
        max_regions=max(1, _SLOPE_BYTES // max(1, per_region)),
        hand_on=hand_on,
    )


def _slope_count(problem: Problem, intermediate: Intermediate, node: int) -> int:
    """Slopes of one row that starts at ``node``."""
    total = 0
    for below in problem.graph.ancestors[node] | {node}:
        relaxation = intermediate.relaxations.get(below)
        spec = None if relaxation is None else relaxation.alpha
        if spec is not None:
            total += spec.initial.shape[1] * len(spec.index)
    if problem.graph.spread is not None:  # each rank has slopes of its own neurons; all plan for the most
        total = int(problem.context.weights.largest(total))
    return total

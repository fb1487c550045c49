"""alpha-CROWN for a whole specification: `fixed`, `stream` and joint (`keep`) intermediate bounds (DESIGN 5).

`keep` optimises the slopes of every start node jointly for the final objective. Its gradient goes tile by tile: the
final rows give the adjoints of the boxes, and these weigh the rows of the start nodes, from the last one to the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from auto_LiRPA.bounds.ascent import Moments, ascend
from auto_LiRPA.bounds.backward import Pass, Relaxations, Rows, Slopes, backward, concretize
from auto_LiRPA.bounds.final import SpecTiles, spec_tiles
from auto_LiRPA.bounds.intermediate import (
    NOTHING_GIVEN,
    Given,
    Intermediate,
    StartNode,
    crown_boxes,
    join_tiles,
    merge,
)
from auto_LiRPA.bounds.optimize import (
    LOOK_EVERY_CUDA,
    Proven,
    SecondsLeft,
    _Best,
    initial_slopes,
    optimize_rows,
    project,
)
from auto_LiRPA.bounds.settings import AlphaSettings, BoundSettings
from auto_LiRPA.bounds.sweep import objective_weight, sweep
from auto_LiRPA.bounds.undecided import undecided_starts
from auto_LiRPA.errors import OutOfTime
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.base import Relaxation
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.values import Interval, Region

FINAL = -1  # the key of the specification's own rows among the start nodes

TileSlopes = dict[int, Tensor]

# Coefficients of all tiles together that may be kept from the bounding pass to the gradient; above it each tile's
# pass is run again. Decided from the model's sizes alone, and the numbers are the same either way.
KEEP_PASSES_MIB = 256


@dataclass(frozen=True, slots=True)
class AlphaResult:
    """Bounds of ``sign * c . y`` ``[B, S]``; the best boxes met on the way; the final rows' slopes, per tile."""

    lower: Tensor
    intermediate: Intermediate
    slopes: tuple[Mapping[int, Tensor], ...]
    iterations: int


def alpha_crown(
    graph: Graph,
    region: Region,
    c: Tensor,
    context: DistributedContext,
    settings: BoundSettings,
    sign: int = 1,
    given: Given = NOTHING_GIVEN,
    proven: Proven | None = None,
    seconds_left: SecondsLeft | None = None,
    intermediate: Intermediate | None = None,
) -> AlphaResult:
    """Optimised lower bounds of ``sign * c . y`` for the rows of ``c`` ``[B or 1, S, n_out]``.

    ``intermediate``: boxes of an earlier CROWN pass over the same region, to start from.
    """
    with torch.no_grad():
        spec = spec_tiles(graph, c, context, region.center().shape[0])
        if settings.alpha.mode == "stream":
            base = _stream_boxes(graph, region, context, settings, given, seconds_left)
        else:
            base = intermediate or crown_boxes(graph, region, context, settings, given)
        if settings.alpha.mode == "keep" and base.starts:
            return _Joint(graph, region, spec, sign, base, context, settings.alpha, given).run(proven, seconds_left)
        return _final_rows(graph, region, spec, sign, base, context, settings.alpha, proven, seconds_left)


def _final_rows(
    graph: Graph,
    region: Region,
    spec: SpecTiles,
    sign: int,
    base: Intermediate,
    context: DistributedContext,
    settings: AlphaSettings,
    proven: Proven | None,
    seconds_left: SecondsLeft | None,
) -> AlphaResult:
    """The rows of the specification alone, tile by tile, over fixed boxes."""
    parts: dict[int, Tensor] = {}
    slopes = []
    iterations = 0
    # `proven` speaks of all rows of an element, so it can only stop the loop where one tile holds them all
    check = proven if len(spec.tiles) == 1 else None
    for position in context.share(len(spec.tiles)):
        rows = spec.rows(graph, position, sign)
        found = optimize_rows(
            graph, rows, region, base.relaxations, settings, proven=check, seconds_left=seconds_left
        )
        parts[position] = found.lower
        slopes.append(found.slopes)
        iterations = max(iterations, found.iterations)
        context.counters.tiles += 1
    return AlphaResult(spec.join(context.gather_tiles(parts, len(spec.tiles))), base, tuple(slopes), iterations)


def _stream_boxes(
    graph: Graph,
    region: Region,
    context: DistributedContext,
    settings: BoundSettings,
    given: Given,
    seconds_left: SecondsLeft | None,
) -> Intermediate:
    """CROWN's pass, but each tile optimises its own rows and then drops its slopes: memory of one tile at any width.

    Iteration 0 is CROWN's own bound of the row, so the best over the iterations is never looser than it.
    """
    one_by_one = replace(settings.alpha, reduction="sum")

    def bounder(
        graph: Graph, start: StartNode, region: Region, relaxations: Relaxations, context: DistributedContext
    ) -> Interval:
        parts: dict[int, Tensor] = {}
        for position in context.share(len(start.tiles)):
            rows = start.rows(graph, position)
            found = optimize_rows(graph, rows, region, relaxations, one_by_one, seconds_left=seconds_left)
            parts[position] = found.lower
            context.counters.tiles += 1
        return join_tiles(start.tiles, context.gather_tiles(parts, len(start.tiles)))

    return crown_boxes(graph, region, context, settings, given, bounder)


class _Joint:
    """The joint optimisation: one run's variables, keyed by (start node, tile); FINAL is the specification."""

    def __init__(
        self,
        graph: Graph,
        region: Region,
        spec: SpecTiles,
        sign: int,
        base: Intermediate,
        context: DistributedContext,
        settings: AlphaSettings,
        given: Given,
    ) -> None:
        self.graph, self.region, self.spec, self.sign = graph, region, spec, sign
        self.base, self.context, self.settings, self.given = base, context, settings, given
        self.batch = region.center().shape[0]
        self.pinned = {j: r.alpha.index for j, r in base.relaxations.items() if r.alpha is not None}
        # a start node below every optimisable one has nothing to optimise: its bounds stay as they are
        self.starts = tuple(s for s in undecided_starts(graph, base, context) if self._optimisable(s.node))
        self.slopes: dict[tuple[int, int], TileSlopes] = {}
        for start in self.starts:
            for position in context.share(len(start.tiles)):
                rows = 1 if settings.share_alphas else 2 * start.tiles[position].height
                key = self._key(start.node, position)
                if key not in self.slopes:
                    self.slopes[key] = self._initial(start.node, rows)
        for position in context.share(len(spec.tiles)):
            self.slopes[(FINAL, position)] = self._initial(graph.output, spec.tiles[position].height)
        self.keep_passes = self._pass_bytes() <= KEEP_PASSES_MIB * 2**20
        self.passes: dict[tuple[int, int], Pass] = {}
        self.moments = {key: Moments.zero(list(value.values())) for key, value in self.slopes.items()}
        self.best_boxes: dict[int, Interval] = dict(base.boxes)
        self.won: dict[int, Interval] = {}  # of boxes that stay inside the base's: where the new bounds are tighter

    def _pass_bytes(self) -> int:
        """Bytes of the coefficients at all nonlinear nodes, over all tiles of all start nodes."""
        itemsize = self.spec.c.element_size()

        def per_row(node_id: int) -> int:
            below = (self.graph.ancestors[node_id] | {node_id}) & set(self.base.relaxations)
            return itemsize * self.batch * (self.graph.nodes[0].size + sum(self.graph.nodes[j].size for j in below))

        total = per_row(self.graph.output) * sum(t.height for t in self.spec.tiles)
        for start in self.starts:
            total += per_row(start.node) * 2 * sum(t.height for t in start.tiles)
        return total

    def _key(self, start: int, tile: int) -> tuple[int, int]:
        return start, 0 if self.settings.share_alphas else tile

    def _optimisable(self, node_id: int) -> bool:
        return any(j in self.pinned for j in self.graph.ancestors[node_id] | {node_id})

    def _initial(self, start: int, rows: int) -> TileSlopes:
        return initial_slopes(
            self.graph, start, self.base.relaxations, self.batch, rows, self.settings.disabled
        )

    def run(self, proven: Proven | None, seconds_left: SecondsLeft | None) -> AlphaResult:
        best = _Best()
        relaxations = self.base.relaxations
        final = {p: self.slopes[(FINAL, p)] for p in self.context.share(len(self.spec.tiles))}
        look = LOOK_EVERY_CUDA if self.spec.c.is_cuda else 1
        done = 0
        first = self._final_bounds(relaxations)  # CROWN's own, with the intersected boxes: never looser than it
        for iteration in range(self.settings.iterations):
            try:
                relaxations = self._refresh()
                lower = self._final_bounds(relaxations)
            except OutOfTime:
                if iteration == 0:
                    raise
                break
            last = iteration + 1 == self.settings.iterations
            keep = iteration == 0 or last or iteration >= int(
                self.settings.iterations * self.settings.start_save_best
            )
            flat = {self._flat(p, j): v for p, tile in final.items() for j, v in tile.items()}
            best.update(lower, self.settings.reduction, flat, {}, keep)
            done = iteration + 1
            weight = objective_weight(lower, self.settings.reduction)
            if proven is not None:
                finished = proven(best.lower)
                weight = weight * (~finished).to(weight).unsqueeze(1)
                if iteration % look == look - 1 and bool(finished.all()):
                    break
            if last or best.patience_over(self.settings.patience, iteration, look):
                break
            if seconds_left is not None and iteration % look == look - 1 and seconds_left() <= 0:
                break
            try:
                self._step(relaxations, weight, iteration)
            except OutOfTime:
                break
        intermediate = self._best_intermediate()
        slopes = tuple({j: best.slopes[self._flat(p, j)] for j in tile} for p, tile in final.items())
        # one more look with the best boxes of all iterations together: sound, and often tighter than any one of them
        try:
            lower = torch.fmax(best.lower, self._final_bounds(intermediate.relaxations, slopes))
        except OutOfTime:
            lower = best.lower
        return AlphaResult(torch.fmax(lower, first), intermediate, slopes, done)

    def _flat(self, tile: int, node_id: int) -> int:
        return tile * len(self.graph.nodes) + node_id

    def _refresh(self) -> dict[int, Relaxation]:
        """Boxes of all start nodes under the present slopes, not intersected with anything.

        Where an interval bound or an earlier box won an intersection, the slopes would lose their gradient: on
        256x6, eps 0.05, that cost a sixth of the gain at rate 0.1 and nearly all of it at 0.5. The best boxes met on
        the way are kept apart and used at the end.
        """
        boxes = dict(self.base.boxes)
        by_node = {s.node: s for s in self.starts}
        relaxations: dict[int, Relaxation] = {}
        for node in self.graph.nodes[1 : self.graph.output + 1]:
            if node.id not in self.base.relaxations:
                continue
            for source in node.inputs:
                start = by_node.pop(source, None)
                if start is None:
                    continue
                found = self._bound_start(start, relaxations)
                if self._partial(source):
                    found = self._inside_base(start, found)
                boxes[source] = merge(self.base.boxes[source], start.index, found, intersect=False)
                self.best_boxes[source] = self.best_boxes[source].intersect(boxes[source])
            changed = any(boxes[i] is not self.base.boxes[i] for i in node.inputs)
            if not changed:
                relaxations[node.id] = self.base.relaxations[node.id]
                continue
            relaxation = node.op.relax(*(boxes[i] for i in node.inputs))  # type: ignore[attr-defined]
            relaxation.pinned = self.pinned.get(node.id)
            relaxations[node.id] = relaxation
        return relaxations

    def _partial(self, node_id: int) -> bool:
        """Whether something that reads the node is not defined everywhere (a quotient, a root)."""
        return any(getattr(self.graph.nodes[user].op, "partial", False) for user in self.graph.users[node_id])

    def _inside_base(self, start: StartNode, found: Interval) -> Interval:
        """Bounds intersected with the base's; where the base won, the rows get no weight in the gradient."""
        base = self.base.boxes[start.node].pick(start.index)
        better = found.intersect(base)
        self.won[start.node] = Interval((better.lower == found.lower).detach(), (better.upper == found.upper).detach())
        return better

    def _bound_start(self, start: StartNode, relaxations: Relaxations) -> Interval:
        """Bounds of one start node's neurons under the present slopes."""
        parts = {}
        for position in self.context.share(len(start.tiles)):
            rows = start.rows(self.graph, position)
            slopes = self.slopes[self._key(start.node, position)]
            parts[position] = self._pass(rows, relaxations, slopes, (start.node, position))
        return join_tiles(start.tiles, self.context.gather_tiles(parts, len(start.tiles)))

    def _pass(self, rows: Rows, relaxations: Relaxations, slopes: Slopes, key: tuple[int, int]) -> Tensor:
        """One tile's bounds ``[B, T]``; its coefficients are kept for the gradient where memory allows."""
        self.context.check_time()
        self.context.counters.tiles += 1
        result = backward(self.graph, rows, relaxations, slopes, save=self.keep_passes)
        if self.keep_passes:
            self.passes[key] = result
        return concretize(result, self.region)

    def _final_bounds(
        self, relaxations: Relaxations, slopes: tuple[Mapping[int, Tensor], ...] | None = None
    ) -> Tensor:
        parts = {}
        for mine, position in enumerate(self.context.share(len(self.spec.tiles))):
            rows = self.spec.rows(self.graph, position, self.sign)
            variables = self.slopes[(FINAL, position)] if slopes is None else slopes[mine]
            parts[position] = self._pass(rows, relaxations, variables, (FINAL, position))
        return self.spec.join(self.context.gather_tiles(parts, len(self.spec.tiles)))

    def _step(self, relaxations: Relaxations, weight: Tensor, iteration: int) -> None:
        """Gradient of the objective by every slope, last start node first, then one Adam step."""
        gradients: dict[tuple[int, int], dict[int, Tensor]] = {}
        adjoint: dict[int, Interval] = {}
        parts: dict[int, dict[int, Interval]] = {}
        for position in self.context.share(len(self.spec.tiles)):
            tile = self.spec.tiles[position]
            rows = self.spec.rows(self.graph, position, self.sign)
            w = _padded(weight[:, tile.start : tile.stop], tile.height)
            parts[position] = self._tile_gradient(rows, relaxations, w, (FINAL, position), position, gradients)
        self._add_adjoints(adjoint, parts, len(self.spec.tiles))
        for start in reversed(self.starts):
            seed = adjoint.pop(start.node, None)
            if seed is None:
                continue
            picked = seed.pick(start.index)
            lower_w, upper_w = picked.lower, picked.upper
            if start.node in self.won:
                lower_w, upper_w = lower_w * self.won[start.node].lower, upper_w * self.won[start.node].upper
            parts = {}
            for position in self.context.share(len(start.tiles)):
                tile = start.tiles[position]
                cut = slice(tile.start, tile.stop)
                w = torch.cat([_padded(lower_w[:, cut], tile.height), _padded(-upper_w[:, cut], tile.height)], 1)
                rows = start.rows(self.graph, position)
                key = self._key(start.node, position)
                parts[position] = self._tile_gradient(rows, relaxations, w, key, position, gradients)
            self._add_adjoints(adjoint, parts, len(start.tiles))
        rate = self.settings.lr_alpha * self.settings.decay**iteration
        for key, found in gradients.items():
            variables = self.slopes[key]
            ordered = [found.get(j, torch.zeros_like(v)) for j, v in variables.items()]
            ascend(list(variables.values()), ordered, self.moments[key], [rate] * len(ordered), iteration + 1)
            project(relaxations, variables, {})

    def _tile_gradient(
        self,
        rows: Rows,
        relaxations: Relaxations,
        weight: Tensor,
        key: tuple[int, int],
        tile: int,
        gradients: dict[tuple[int, int], dict[int, Tensor]],
    ) -> dict[int, Interval]:
        """Sweep one tile, its pass run again where its coefficients were not kept. Returns its box adjoints."""
        self.context.check_time()
        slopes = self.slopes[key]
        result = self.passes.pop((key[0], tile), None)
        if result is None:
            result = backward(self.graph, replace(rows, owned=False), relaxations, slopes, save=True)
        found = sweep(self.graph, rows.node, result, self.region, relaxations, weight, slopes)
        mine = gradients.setdefault(key, {})
        for node_id, value in found.slopes.items():
            if slopes[node_id].shape[1] == 1 and value.shape[1] > 1:
                value = value.sum(1, keepdim=True)
            mine[node_id] = mine[node_id] + value if node_id in mine else value
        return dict(found.boxes)

    def _add_adjoints(
        self, total: dict[int, Interval], parts: Mapping[int, Mapping[int, Interval]], count: int
    ) -> None:
        """Sum the tiles' box adjoints in tile order, so that the bits do not depend on who computed which tile."""
        for position in range(count):
            for node_id, part in sorted(parts[position].items()):
                if node_id in total:
                    part = Interval(total[node_id].lower + part.lower, total[node_id].upper + part.upper)
                total[node_id] = part

    def _best_intermediate(self) -> Intermediate:
        relaxations: dict[int, Relaxation] = {}
        for node in self.graph.nodes[1 : self.graph.output + 1]:
            if node.id in self.base.relaxations:
                relaxation = node.op.relax(*(self.best_boxes[i] for i in node.inputs))  # type: ignore[attr-defined]
                relaxation.pinned = self.pinned.get(node.id)
                relaxations[node.id] = relaxation
        return Intermediate(self.best_boxes, relaxations, self.base.starts)


def _padded(weight: Tensor, height: int) -> Tensor:
    """Row weights of a tile; the padding rows weigh nothing."""
    return torch.nn.functional.pad(weight, (0, height - weight.shape[1]))

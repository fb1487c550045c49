"""alpha-CROWN for a whole specification: `fixed`, `stream` and joint (`keep`) intermediate bounds (DESIGN 5).

`keep` optimises the slopes of every start node jointly for the final objective. Its gradient goes tile by tile: the
final rows give the adjoints of the boxes, and these weigh the rows of the start nodes, from the last one to the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
    Agree,
    Proven,
    SecondsLeft,
    _Best,
    initial_slopes,
    optimize_rows,
    project,
)
from auto_LiRPA.bounds.same_bits import check_boxes, check_same_bits
from auto_LiRPA.bounds.settings import AlphaSettings, BoundSettings
from auto_LiRPA.bounds.sweep import Gradient, objective_weight, sweep
from auto_LiRPA.bounds.tile_sums import Layout, TileSums
from auto_LiRPA.bounds.undecided import undecided_starts
from auto_LiRPA.errors import OutOfTime
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.base import Relaxation
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.sharing import CommonClock, each_tile, in_order, own, slots
from auto_LiRPA.values import Interval, Region

FINAL = -1  # the key of the specification's own rows among the start nodes

TileSlopes = dict[int, Tensor]
TileGradient = tuple[tuple[int, int], Mapping[int, Tensor]]  # of which start node and tile, by node

# Coefficients of all tiles together that may be kept from the bounding pass to the gradient; above it each tile's
# pass is run again. Decided from the model's sizes alone, and the numbers are the same either way.
KEEP_PASSES_MIB = 256


@dataclass(frozen=True, slots=True)
class AlphaResult:
    """Bounds of ``sign * c . y`` ``[B, S]``; the best boxes met on the way; the slopes of the final rows.

    ``slopes``: by tile and node, of the tiles that this rank computed; `all_slopes` fetches the others'.
    """

    lower: Tensor
    intermediate: Intermediate
    slopes: Mapping[int, Mapping[int, Tensor]]
    iterations: int

    def all_slopes(self, context: DistributedContext, count: int) -> list[dict[int, Tensor]]:
        """The slopes of all ``count`` tiles, by node ``[B, height, P, u]``. Every rank of the row axis has to ask."""
        rows = context.rows
        facts = {n: (tuple(v.shape), v.dtype) for n, v in sorted(self.slopes.get(0, {}).items())}
        every: list[dict[int, Tensor]] = [{} for _ in range(count)]
        for node, (shape, dtype) in rows.same_object(facts).items():
            like = torch.empty(shape, dtype=dtype, device=self.lower.device)
            mine = [self.slopes[p][node] for p in own(rows, count)]
            for position, value in enumerate(in_order(rows, mine, count, like)):
                every[position][node] = value
        return every


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
            joint = _Joint(graph, region, spec, sign, base, context, settings.alpha, given)
            found = joint.run(proven, seconds_left)
            check_boxes(graph, found.intermediate.boxes)
        else:
            found = _final_rows(graph, region, spec, sign, base, context, settings.alpha, proven, seconds_left)
        check_same_bits(graph, (found.lower,))
        return found


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
    slopes: dict[int, Mapping[int, Tensor]] = {}
    iterations, clock = 0, _clock(context, seconds_left)
    # `proven` speaks of all rows of an element, so it can only stop the loop where one tile holds them all
    check = proven if len(spec.tiles) == 1 else None

    def compute(position: int) -> Tensor:
        nonlocal iterations
        found = optimize_rows(
            graph,
            spec.rows(graph, position, sign),
            region,
            base.relaxations,
            settings,
            proven=check,
            seconds_left=clock,
            agree=_agree(context),
        )
        slopes[position] = found.slopes
        iterations = max(iterations, found.iterations)
        return found.lower

    def idle() -> None:
        # an idle rank stops when the others do: it prolongs nothing
        every = context.weights.every
        optimize_rows(
            graph, spec.rows(graph, 0, sign), region, base.relaxations, settings, agree=lambda wish: every(True)
        )

    lower = spec.join(each_tile(context, len(spec.tiles), compute, spec.result_like(region), idle))
    return AlphaResult(lower, base, slopes, int(context.world.largest(iterations)))


def _agree(context: DistributedContext) -> Agree | None:
    """How ranks that share weights agree to stop; None where this rank decides for itself."""
    return context.weights.every if context.weights.size > 1 else None


def _clock(context: DistributedContext, seconds_left: SecondsLeft | None) -> SecondsLeft | None:
    """Of ranks that fetch weights for the same tile: one that stopped earlier would go on with other bounds."""
    weights = context.weights
    if seconds_left is None or weights.size == 1 or (context.lockstep and context.rows.size > 1):
        return seconds_left
    left = seconds_left
    return lambda: weights.smallest(left())


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
    one_by_one, clock = replace(settings.alpha, reduction="sum"), _clock(context, seconds_left)

    def bounder(
        graph: Graph, start: StartNode, region: Region, relaxations: Relaxations, context: DistributedContext
    ) -> Interval:
        def compute(position: int) -> Tensor:
            rows = start.rows(graph, position)
            return optimize_rows(
                graph, rows, region, relaxations, one_by_one, seconds_left=clock, agree=_agree(context)
            ).lower

        like = start.result_like(region)
        return join_tiles(start.tiles, each_tile(context, len(start.tiles), compute, like, first=start.first))

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
        undecided = undecided_starts(graph, base, context, spec.tiles)
        self.starts = tuple(s for s in undecided if self._optimisable(s.node))
        self.slopes: dict[tuple[int, int], TileSlopes] = {}
        for start in self.starts:
            # shared slopes belong to all ranks: each has its copy, and they go the same way
            shared = settings.share_alphas
            for position in range(1) if shared else own(context.rows, len(start.tiles), start.first):
                rows = 1 if shared else 2 * start.tiles[position].height
                self.slopes[(start.node, position)] = self._initial(start.node, rows)
        for position in own(context.rows, len(spec.tiles)):
            self.slopes[(FINAL, position)] = self._initial(graph.output, spec.tiles[position].height)
        self.keep_passes = self._pass_bytes() <= KEEP_PASSES_MIB * 2**20
        self.passes: dict[tuple[int, int], Pass] = {}
        self.moments = {key: Moments.zero(list(value.values())) for key, value in self.slopes.items()}
        self.best_boxes: dict[int, Interval] = dict(base.boxes)
        self.sums = TileSums(context.rows)
        self.layouts = {start: self._layout(start) for start in (FINAL, *(s.node for s in self.starts))}
        alone = context.rows.size == 1 and context.weights.size == 1
        self.clock = None if alone else CommonClock(context)
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

    def _layout(self, start: int) -> Layout:
        """What the tiles of a start node have derivatives by, beside their own slopes."""
        neurons = {s.node: s.index for s in self.starts}
        shared = self.settings.share_alphas and start != FINAL
        node = self.graph.output if start == FINAL else start
        return Layout.of(self.graph, node, neurons, self.batch, self.slopes[(start, 0)] if shared else {})

    def _key(self, start: int, tile: int) -> tuple[int, int]:
        return start, 0 if self.settings.share_alphas and start != FINAL else tile

    def _optimisable(self, node_id: int) -> bool:
        return any(j in self.pinned for j in self.graph.ancestors[node_id] | {node_id})

    def _initial(self, start: int, rows: int) -> TileSlopes:
        return initial_slopes(
            self.graph, start, self.base.relaxations, self.batch, rows, self.settings.disabled
        )

    def run(self, proven: Proven | None, seconds_left: SecondsLeft | None) -> AlphaResult:
        best = _Best()
        relaxations = self.base.relaxations
        final = {p: self.slopes[(FINAL, p)] for p in own(self.context.rows, len(self.spec.tiles))}
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
            if seconds_left is not None and iteration % look == look - 1:
                if self.context.world.some(seconds_left() <= 0):
                    break
            try:
                self._step(relaxations, weight, iteration)
            except OutOfTime:
                break
        intermediate = self._best_intermediate()
        slopes = {p: {j: best.slopes[self._flat(p, j)] for j in tile} for p, tile in final.items()}
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
            relaxation = self.graph.relax(node, boxes)
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

        def compute(position: int) -> Tensor:
            slopes = self.slopes[self._key(start.node, position)]
            return self._pass(start.rows(self.graph, position), relaxations, slopes, (start.node, position))

        def idle() -> None:  # the gradient's idle turn needs the pass of the last tile, as if it were this rank's
            self._pass(start.rows(self.graph, last), relaxations, {}, (start.node, last))

        last = len(start.tiles) - 1
        like = start.result_like(self.region)
        count = len(start.tiles)
        return join_tiles(start.tiles, each_tile(self.context, count, compute, like, idle, start.first, self.clock))

    def _pass(self, rows: Rows, relaxations: Relaxations, slopes: Slopes, key: tuple[int, int]) -> Tensor:
        """One tile's bounds ``[B, T]``; its coefficients are kept for the gradient where memory allows."""
        result = backward(self.graph, rows, relaxations, slopes, save=self.keep_passes)
        if self.keep_passes:
            self.passes[key] = result
        return concretize(result, self.region)

    def _final_bounds(
        self, relaxations: Relaxations, slopes: Mapping[int, Mapping[int, Tensor]] | None = None
    ) -> Tensor:
        def compute(position: int) -> Tensor:
            variables = self.slopes[(FINAL, position)] if slopes is None else slopes[position]
            rows = self.spec.rows(self.graph, position, self.sign)
            return self._pass(rows, relaxations, variables, (FINAL, position))

        def idle() -> None:
            self._pass(self.spec.rows(self.graph, last, self.sign), relaxations, {}, (FINAL, last))

        last = len(self.spec.tiles) - 1
        like = self.spec.result_like(self.region)
        return self.spec.join(each_tile(self.context, len(self.spec.tiles), compute, like, idle, clock=self.clock))

    def _step(self, relaxations: Relaxations, weight: Tensor, iteration: int) -> None:
        """One Adam step of all slopes that this rank has.

        A tile's slopes move as soon as their derivatives are known, and these go: no other tile's depend on them.
        """
        rate = self.settings.lr_alpha * self.settings.decay**iteration
        for key, found in self._gradients(relaxations, weight):
            variables = self.slopes[key]
            ordered = [found.get(j, torch.zeros_like(v)) for j, v in variables.items()]
            ascend(list(variables.values()), ordered, self.moments[key], [rate] * len(ordered), iteration + 1)
            project(relaxations, variables, {})
            del found, ordered  # while the next tile's are made

    def _gradients(self, relaxations: Relaxations, weight: Tensor) -> Iterator[TileGradient]:
        """Derivatives of the objective by every slope that this rank has, the last start node's first."""
        self.sums.begin()

        def final_tile(position: int) -> tuple[Rows, Tensor]:
            tile = self.spec.tiles[position]
            w = _padded(weight[:, tile.start : tile.stop], tile.height)
            return self.spec.rows(self.graph, position, self.sign), w

        yield from self._start_gradients(FINAL, len(self.spec.tiles), 0, final_tile, relaxations)
        for start in reversed(self.starts):
            seed = self.sums.box(start.node)
            if seed is None:
                continue
            picked = seed
            if self.graph.spread is not None:
                picked = self.graph.spread.whole_of(start.node, seed).pick(start.index)
            if start.node in self.won:
                won = self.won[start.node]
                picked = Interval(picked.lower * won.lower, picked.upper * won.upper)

            def tile_of(position: int, start: StartNode = start, picked: Interval = picked) -> tuple[Rows, Tensor]:
                tile = start.tiles[position]
                cut = slice(tile.start, tile.stop)
                sides = (picked.lower[:, cut], -picked.upper[:, cut])
                w = torch.cat([_padded(side, tile.height) for side in sides], 1)
                return start.rows(self.graph, position), w

            yield from self._start_gradients(start.node, len(start.tiles), start.first, tile_of, relaxations)

    def _start_gradients(
        self,
        start: int,
        count: int,
        first: int,
        tile_of: Callable[[int], tuple[Rows, Tensor]],
        relaxations: Relaxations,
    ) -> Iterator[TileGradient]:
        """Derivatives of one start node's tiles by its slopes; those by boxes go to the sums."""
        rows = self.context.rows
        shared = start != FINAL and self.settings.share_alphas
        for turn, (position, mine) in enumerate(slots(rows, count, first)):
            if self.clock is None:
                self.context.check_time()
            else:
                self.clock.turn()
            found: Gradient | None = None
            if mine or self.context.lockstep:
                found = self._tile_gradient(start, position, tile_of(position), relaxations, mine)
            self.sums.add(self.layouts[start], found, count - turn * rows.size, self.spec.c, first)
            if found is not None and not shared:
                yield (start, position), found.slopes
        if shared:
            yield (start, 0), self.sums.slopes()

    def _tile_gradient(
        self, start: int, position: int, tile: tuple[Rows, Tensor], relaxations: Relaxations, mine: bool
    ) -> Gradient | None:
        """Sweep one tile, its pass run again where its coefficients were not kept; None if it is another rank's."""
        rows, weight = tile
        slopes = self.slopes[self._key(start, position)] if mine else {}
        result = self.passes.pop((start, position), None)
        if result is None:
            result = backward(self.graph, replace(rows, owned=False), relaxations, slopes, save=True)
        found = sweep(self.graph, rows.node, result, self.region, relaxations, weight, slopes)
        return found if mine else None

    def _best_intermediate(self) -> Intermediate:
        relaxations: dict[int, Relaxation] = {}
        for node in self.graph.nodes[1 : self.graph.output + 1]:
            if node.id in self.base.relaxations:
                relaxation = self.graph.relax(node, self.best_boxes)
                relaxation.pinned = self.pinned.get(node.id)
                relaxations[node.id] = relaxation
        return Intermediate(self.best_boxes, relaxations, self.base.starts)


def _padded(weight: Tensor, height: int) -> Tensor:
    """Row weights of a tile; the padding rows weigh nothing."""
    return torch.nn.functional.pad(weight, (0, height - weight.shape[1]))

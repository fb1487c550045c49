"""A bounding call without numbers: one tile of every start node runs on tensors that have shapes and no data.

What a tile makes, fetches, computes and exchanges is counted where it happens, so the memory model follows the engine
by itself. Which neurons are undecided is not known without weights: a share of every layer, evenly spread, stands for
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from auto_LiRPA.bounds.backward import Slopes, backward, concretize
from auto_LiRPA.bounds.final import spec_tiles
from auto_LiRPA.bounds.intermediate import cut_rows
from auto_LiRPA.bounds.interval import IntervalWalk, exact_nodes
from auto_LiRPA.bounds.methods import Method, Query, wide_of
from auto_LiRPA.bounds.optimize import initial_slopes
from auto_LiRPA.bounds.rows import NeuronList, Rows, neuron_rows
from auto_LiRPA.bounds.settings import BoundSettings
from auto_LiRPA.bounds.sweep import sweep
from auto_LiRPA.bounds.wide import WideLayer, WideLoop, largest_radius
from auto_LiRPA.graph.ir import Graph, Node
from auto_LiRPA.graph.tensor_parallel import tensor_parallel
from auto_LiRPA.operators.base import NonlinearOperator, Relaxation
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.counters import Counters
from auto_LiRPA.parallel.groups import Group
from auto_LiRPA.parallel.memory_model import (
    AlphaMode,
    AscentFacts,
    Count,
    Facts,
    PassFacts,
    Tiles,
    WeightFacts,
    WideFacts,
)
from auto_LiRPA.parallel.meter import Meter
from auto_LiRPA.parallel.settings import ParallelSettings
from auto_LiRPA.parallel.store import Block, Check, ParameterStore, Weight
from auto_LiRPA.parallel.tiles import Tile
from auto_LiRPA.values import Box, Interval
from auto_LiRPA.values.windows import neighbour_order

META = torch.device("meta")
_Start = tuple[Tiles, Callable[[], Rows]]


@dataclass(slots=True)
class Fetches:
    """Blocks that were asked for, and their bytes; ``needed``: bytes without those that only other ranks may need."""

    count: int = 0
    size: int = 0
    needed: int = 0


class ShapeWeight(Weight):
    """A weight of which only the shape is known."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, store: ShapeStore) -> None:
        self.shape, self.dtype, self.device = shape, dtype, META
        self._data = torch.empty(shape, dtype=dtype, device=META)
        self._store = store

    def blocks(self) -> Iterator[Block]:
        return self.blocks_where(lambda start, stop: True)

    def blocks_where(self, needed: Callable[[int, int], bool]) -> Iterator[Block]:
        fetches = self._store.fetches
        for start, stop in self._store.cuts(self.shape, self.dtype.itemsize):
            data = self._data[start:stop]
            size = data.numel() * self.dtype.itemsize
            fetches.count += 1
            fetches.size += size
            if needed(start, stop):
                fetches.needed += size
                yield Block(start, stop, data)

    def facts(self) -> WeightFacts:
        """Its bytes, and those of its largest block."""
        itemsize = self.dtype.itemsize
        cuts = list(self._store.cuts(self.shape, itemsize))
        row = itemsize * self.numel // max(1, self.shape[0])
        largest = max((stop - start for start, stop in cuts), default=0)
        return WeightFacts(row * self.shape[0], row * largest, len(cuts), self._store.is_small(self.shape, itemsize))


class ShapeStore(ParameterStore):
    """Takes note of shapes and reads no number."""

    device: torch.device | None = META

    def __init__(self, block_mib: float = 16.0) -> None:
        super().__init__(block_mib)
        self.fetches = Fetches()

    def place(self, tensor: Tensor) -> Weight:
        return ShapeWeight(tuple(tensor.shape), tensor.dtype, self)

    def load(self, source: Tensor, dtype: torch.dtype, device: torch.device, check: Check) -> Weight:
        return ShapeWeight(tuple(source.shape), dtype, self)

    def weight_bytes(self) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class AbsentGroup(Group):
    """A group whose other ranks are not there: counts what would be said to them."""

    def gather_into(self, out: Tensor, part: Tensor, kind: str = "gather") -> None:
        self._note(kind, out)

    def broadcast(self, tensor: Tensor, source: int) -> Tensor:
        return self._note("broadcast", tensor)

    def total(self, tensor: Tensor) -> Tensor:
        return self._note("reduce", tensor)

    def numbers(self, values: Sequence[float]) -> list[list[float]]:
        return [list(values)] * self.size

    def _note(self, kind: str, tensor: Tensor) -> Tensor:
        with self.counters.collective(kind, tensor.numel() * tensor.element_size(), torch.device("cpu")):
            return tensor


@dataclass(frozen=True, slots=True)
class ShapeGraph:
    """A network on tensors without data, as one rank has it; ``weights``: the ranks that share its weights."""

    graph: Graph
    store: ShapeStore
    context: DistributedContext

    @classmethod
    def of(cls, graph: Graph, settings: ParallelSettings) -> ShapeGraph:
        """``graph`` may be anywhere, or have been read into a `ShapeStore`."""
        store = ShapeStore(settings.block_mib)
        shapes = graph.mapped(
            lambda tensor: tensor.to(META),
            lambda weight: store.place(torch.empty(weight.shape, dtype=weight.dtype, device=META)),
        )
        context = DistributedContext.single(META, replace(settings, mode="single", mesh=None))
        return cls(shapes, store, context)

    def split(self, ranks: int) -> ShapeGraph:
        """What the last of so many ranks has in mode tp: none has more."""
        if ranks == 1:
            return self
        counters = Counters()
        group = AbsentGroup(ranks - 1, ranks, counters, tuple(range(ranks)))
        context = replace(self.context, counters=counters, weights=group, world=group)
        store = ShapeStore(self.store.block_mib)
        return ShapeGraph(tensor_parallel(self.graph, context, store), store, context)

    @property
    def weights(self) -> tuple[ShapeWeight, ...]:
        """Every weight once."""
        found = {id(w): w for w in self.graph.weights if isinstance(w, ShapeWeight)}
        return tuple(found.values())

    def constants(self) -> int:
        """Bytes of the tensors outside of the store."""
        sizes: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            sizes[storage._cdata] = storage.nbytes()
            return tensor

        self.graph.mapped(note, lambda weight: weight)
        return sum(sizes.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the call is about. ``spec_rows`` None: both bounds of every output.

    ``undecided``: the share of a layer's neurons that get a backward pass; ``known``: their numbers by node, where
    those are known. ``unstable``: the same of the neurons that carry slopes after it. ``boxes``: as in `Query`;
    ``one_radius``: the batch's boxes differ in their centres only.
    """

    batch: int = 1
    spec_rows: int | None = None
    undecided: float = 1.0
    known: Mapping[int, int] = field(default_factory=dict)
    unstable: Mapping[int, int] = field(default_factory=dict)
    alpha: AlphaMode = "none"
    share_slopes: bool = False
    boxes: bool = True
    one_radius: bool = True
    bounds: BoundSettings = field(default_factory=BoundSettings)


def examine(shapes: ShapeGraph, dtype: torch.dtype, asked: Asked) -> Facts:
    """Counts of one call."""
    return _DryRun(shapes, dtype, asked).facts()


class _DryRun:
    """Boxes and lines as `crown_boxes` makes them, and one tile of every start node."""

    def __init__(self, shapes: ShapeGraph, dtype: torch.dtype, asked: Asked) -> None:
        self.shapes, self.graph, self.dtype, self.asked = shapes, shapes.graph, dtype, asked
        self.meter = Meter()
        self.relaxations: dict[int, Relaxation] = {}
        self.passes: list[PassFacts] = []

    def facts(self) -> Facts:
        with torch.no_grad(), self.meter:
            lower, upper = (
                torch.empty(self.asked.batch, *self.graph.input_shape, dtype=self.dtype, device=META) for _ in range(2)
            )
            self.region = Box(lower, upper)
            del lower, upper
            wide = self._wide_layer()
            if wide is not None:
                return self._walks(wide)
            walk, boxes, interval = self._layers()
            state = self.meter.live
            self._final()
            del walk, boxes
        return self._found(state, interval)

    def _found(self, state: int, interval: Count, wide: WideFacts | None = None) -> Facts:
        return Facts(
            weights=tuple(weight.facts() for weight in self.shapes.weights),
            constants=self.shapes.constants(),
            state=state,
            interval=interval,
            passes=tuple(self.passes),
            alpha=self.asked.alpha,
            share_slopes=self.asked.share_slopes,
            wide=wide,
        )

    # -- a very wide layer ---------------------------------------------------------------------------------------------
    def _wide_layer(self) -> WideLayer | None:
        """The layer that the engine would bound block by block."""
        if self.asked.alpha != "none":
            return None
        with self.meter.paused():
            return wide_of(self.graph, self.region, Query(boxes=self.asked.boxes), Method.CROWN, self.asked.bounds)

    def _walks(self, wide: WideLayer) -> Facts:
        """What a call keeps, and walks of up to three tiles: more of them only hold more."""
        loops: list[WideLoop] = []
        start = self._counted(lambda: loops.append(self._loop(wide)), kept=True)
        (loop,) = loops
        state = self.meter.live
        one = self._counted(lambda: loop.bounded(loop.tiles[:1]))
        self._cut_off(loop)
        two, three = (self._counted(partial(loop.bounded, loop.tiles[:count])) for count in (2, 3))
        tiles = Tiles(self.asked.batch, loop.tiles[0].height, len(loop.tiles))
        results = tiles.height * loop.rows * len(loop.signs) * self.dtype.itemsize
        more = three.peak - two.peak
        return self._found(state, start, WideFacts(tiles, loop.tiles_a_walk(), results, one, two, more))

    def _cut_off(self, loop: WideLoop) -> None:
        """From now on it walks over the first two blocks: the others make the same."""
        weight, store = loop.layer.weight, self.shapes.store
        first = min(weight.shape[0], 2 * store.rows_per_block(weight.shape, weight.dtype.itemsize))
        loop.layer = replace(loop.layer, weight=ShapeWeight((first, *weight.shape[1:]), weight.dtype, store))

    def _loop(self, wide: WideLayer) -> WideLoop:
        """As the engine makes it. Whether radii are alike are numbers, which nobody has here."""
        count, one_radius = self.asked.spec_rows, self.asked.one_radius

        def radius(boxes: Interval) -> Tensor | None:
            largest, _ = largest_radius(boxes)
            return largest if one_radius else None

        c = None
        if count is not None:
            c = torch.empty(1, count, self.graph.nodes[self.graph.output].size, dtype=self.dtype, device=META)
        signs = (-1, 1) if count is None else (1,)
        intersects = self.asked.bounds.compare_with_ibp
        return WideLoop(self.graph, wide, self.region, c, self.shapes.context, signs, intersects, radius)

    def _layers(self) -> tuple[IntervalWalk, dict[int, Interval], Count]:
        """All that a call keeps, and what the interval steps are, the most that one makes beside it."""
        walk = IntervalWalk(self.graph, self.region.interval())
        settled, interval = exact_nodes(self.graph), Count()
        boxes: dict[int, Interval] = {}
        for node in self.graph.nodes[1 : self.graph.output + 1]:
            if not isinstance(node.op, NonlinearOperator):
                continue
            for source in node.inputs:
                if source in boxes:
                    continue
                step = self._counted(partial(walk.at, source), kept=True)
                interval, box = interval.after(step), walk.at(source)
                if source not in settled:
                    self._start(self.graph.nodes[source])
                    box = Interval(box.lower.clone(), box.upper.clone())
                boxes[source] = box
                walk.set(source, box)
            relaxation = self.graph.relax(node, boxes)
            with self.meter.paused():
                relaxation.pinned = self._spread(node.inputs[0], self.asked.unstable, own=True).to(META)
            self.relaxations[node.id] = relaxation
        return walk, boxes, interval

    def _spread(self, node: int, known: Mapping[int, int], own: bool = False) -> Tensor:
        """Flat neurons that stand for those of which only the number is known, evenly spread."""
        whole = self.graph.nodes[node].size
        size = torch.Size(self.graph.local_shape(node)).numel() if own else whole
        share = known[node] / whole if node in known else self.asked.undecided
        count = min(size, max(1, round(share * size)))
        return torch.div(torch.arange(count) * size, count, rounding_mode="floor")

    def _start(self, node: Node) -> None:
        """One start node: its neurons that are undecided at first, and those that alpha-CROWN goes on with."""
        with self.meter.paused():
            plain = self._neurons(node, self.asked.known)
            later = self._neurons(node, self.asked.unstable) if self.asked.alpha == "keep" else plain
        learns = self.asked.alpha in ("keep", "stream")
        self._tile(
            node.name,
            node.id,
            (plain[0], lambda: neuron_rows(self.graph, node.id, plain[1])),
            (later[0], lambda: neuron_rows(self.graph, node.id, later[1])) if learns else None,
        )

    def _neurons(self, node: Node, known: Mapping[int, int]) -> tuple[Tiles, NeuronList]:
        """How a start node is cut, and the tile in the middle."""
        index = neighbour_order(node.shape, self._spread(node.id, known))
        tiles = cut_rows(self.graph, node.id, len(index), self.asked.batch, self.shapes.context, self.dtype.itemsize)
        tile = tiles[len(tiles) // 2]
        listed = NeuronList.of(index, self.dtype).cut(tile.start, tile.stop, tile.height)
        return _tiles(len(index), tiles), NeuronList(listed.index.to(META), listed.host, self.dtype)

    def _final(self) -> None:
        """Rows of the specification on the output."""
        graph, count = self.graph, self.asked.spec_rows
        output, context = graph.nodes[graph.output], self.shapes.context
        if count is None:
            tiles = cut_rows(graph, output.id, output.size, self.asked.batch, context, self.dtype.itemsize)
            host = tuple(range(tiles[0].height))
            listed = NeuronList(torch.empty(len(host), dtype=torch.long, device=META), host, self.dtype)
            start = (_tiles(output.size, tiles), lambda: neuron_rows(graph, output.id, listed))
        else:
            c = torch.empty(1, count, output.size, dtype=self.dtype, device=META)
            spec = spec_tiles(graph, c, context, self.asked.batch)
            start = (_tiles(count, spec.tiles), lambda: spec.rows(graph, 0))
        self._tile("specification", output.id, start, None if self.asked.alpha == "none" else start)

    def _tile(self, name: str, node: int, plain: _Start, later: _Start | None) -> None:
        """Count one tile: its plain pass and, for alpha-CROWN, its pass with slopes and its gradient."""
        final = node == self.graph.output
        tiles, rows = plain
        bounded = self._counted(lambda: self._bound(rows, None))
        results = 2 * tiles.height * self.asked.batch * self.dtype.itemsize
        ascent = None if later is None else self._ascent(node, *later, one_set=self.asked.share_slopes and not final)
        self.passes.append(PassFacts(name, tiles, results, bounded, ascent, final))

    def _ascent(self, node: int, tiles: Tiles, rows: Callable[[], Rows], one_set: bool) -> AscentFacts:
        with self.meter.paused():
            started = rows()
            height = started.coef.shape[1]
            variables = initial_slopes(self.graph, node, self.relaxations, self.asked.batch, 1 if one_set else height)
            slopes = sum(v.numel() * v.element_size() for v in variables.values()) * (height if one_set else 1)
            del started
        bounded = self._counted(lambda: self._bound(rows, variables))
        swept = self._counted(lambda: self._sweep(rows, variables))
        return AscentFacts(tiles, bounded, swept, slopes, self._saved)

    def _bound(self, rows: Callable[[], Rows], slopes: Slopes | None) -> Tensor:
        # as `bound_tiles` does it: nobody holds the rows once the pass is over
        return concretize(backward(self.graph, rows(), self.relaxations, slopes), self.region)

    def _sweep(self, rows: Callable[[], Rows], slopes: Slopes) -> object:
        """The gradient of one tile, its pass run again."""
        started = rows()
        weight = torch.empty(self.asked.batch, started.coef.shape[1], dtype=self.dtype, device=META)
        result = backward(self.graph, replace(started, owned=False), self.relaxations, slopes, save=True)
        kept = [*result.saved.values(), *(() if result.coef is None else (result.coef,))]
        self._saved = sum(tensor.numel() * tensor.element_size() for tensor in kept)
        return sweep(self.graph, started.node, result, self.region, self.relaxations, weight, slopes)

    def _counted(self, body: Callable[[], object], kept: bool = False) -> Count:
        """What ``body`` makes; ``kept``: its result stays, and the peak is that beside it."""
        before = self._now()
        self.meter.mark()
        live = self.meter.live
        body()
        after = self._now()
        live = self.meter.live if kept else live
        return Count(self.meter.peak - live, *(b - a for a, b in zip(before, after, strict=True)))

    def _now(self) -> tuple[int, ...]:
        fetches, said = self.shapes.store.fetches, self.shapes.context.counters.collectives.values()
        exchanged, exchanges = sum(t.bytes for t in said), sum(t.calls for t in said)
        meter = self.meter
        return fetches.size, fetches.count, meter.flops, meter.operations, exchanged, exchanges, fetches.needed


def _tiles(rows: int, tiles: Sequence[Tile]) -> Tiles:
    return Tiles(rows, tiles[0].height, len(tiles))

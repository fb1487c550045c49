"""One very wide hidden layer over a large batch: the loop over blocks of hidden neurons is outermost (DESIGN 2.3).

The usual order makes a layer's boxes for the whole batch, then rows; both have the size batch x layer. Here a block of
neurons is fetched once and used up: its boxes, its relaxation, the rows' coefficients on it and what those add to the
coefficients on the layer's input. What is kept is one matrix per row, of the input's size. Shape letters: B batch, b
elements of a tile of the batch, S rows, R rows with both signs, n what the layer reads, k neurons of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from auto_LiRPA.bounds.backward import backward, concretize, spec_rows
from auto_LiRPA.bounds.final import identity_spec
from auto_LiRPA.bounds.interval import IntervalWalk, exact_nodes
from auto_LiRPA.bounds.rows import Rows
from auto_LiRPA.bounds.same_bits import check_same_bits
from auto_LiRPA.errors import OutOfTime
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.activation import Relu
from auto_LiRPA.operators.base import NonlinearOperator, rows_dot
from auto_LiRPA.operators.elementwise import ElementwiseOperator
from auto_LiRPA.operators.linear import Linear
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.sharing import OUT_OF_TIME, in_order
from auto_LiRPA.parallel.store import MIB, Block
from auto_LiRPA.parallel.tiles import Tile, cut, walks
from auto_LiRPA.values import Interval, Region

# Rows of one sign that a tile of the batch has under `tile_rows: auto`, and the neurons of one step: products of this
# size fill a GPU, and what a step makes takes about 100 MiB in float32.
TILE_ROWS, STEP_NEURONS = 1024, 2048
# Tiles of the batch that share one walk over the weights keep this much; further ones walk over them again.
KEPT_MIB = 256
# The rows' coefficients on the layer, shared by the batch, are whole on every rank; larger ones ask for tiles of rows.
ROWS_MIB = 256
# Radii of a batch that differ by so many roundings of their boxes' ends are one radius: the largest serves all.
SAME_RADIUS_ROUNDINGS = 4
_BLOCKS_BETWEEN_CLOCKS = 8


@dataclass(frozen=True, slots=True)
class WideLayer:
    """A linear layer over independent neurons whose boxes only one activation reads, and behind which all is linear."""

    source: int
    layer: int
    activation: int


def wide_layer(graph: Graph, region: Region, above_mib: float) -> WideLayer | None:
    """The layer that is to be bounded block by block: its boxes take more than ``above_mib``; None if there is none.

    Says the same on every rank and in every mode: sizes of the whole network, the batch and the setting decide.
    """
    if not region.is_box or torch.is_grad_enabled():
        return None
    found = _only_layer(graph)
    if found is None:
        return None
    center = region.center()
    size, outputs = graph.nodes[found.layer].size, graph.nodes[graph.output].size
    boxes = 2 * center.shape[0] * size * center.element_size()
    rows = outputs * size * center.element_size()
    return found if boxes > above_mib * MIB and rows <= ROWS_MIB * MIB else None


def _only_layer(graph: Graph) -> WideLayer | None:
    """The one wide layer of a network with one activation and no way around it."""
    used = [graph.nodes[i] for i in sorted(graph.ancestors[graph.output] | {graph.output})]
    curved = [node for node in used if isinstance(node.op, NonlinearOperator)]
    if len(curved) != 1 or not isinstance(curved[0].op, Relu | ElementwiseOperator):
        return None
    if any(isinstance(value, Tensor) for value in vars(curved[0].op).values()):
        return None  # its neurons are not all alike
    if curved[0].op.partial:
        return None  # boxes beyond its domain are an error, which all ranks have to meet
    layer = graph.nodes[curved[0].inputs[0]]
    if not isinstance(layer.op, Linear) or len(layer.shape) != 1 or layer.id not in exact_nodes(graph):
        return None
    below = graph.ancestors[layer.id] | {layer.id}
    around = any(i in below for n in used if n.id not in below and n.id != curved[0].id for i in n.inputs)
    return None if around else WideLayer(layer.inputs[0], layer.id, curved[0].id)


def wide_bounds(
    graph: Graph,
    wide: WideLayer,
    region: Region,
    c: Tensor | None,
    context: DistributedContext,
    signs: tuple[int, ...],
    with_intervals: bool,
) -> dict[int, Tensor]:
    """CROWN bounds ``[B, S]`` by sign: a lower bound of ``sign * row``, turned upright.

    Args:
        c: rows ``[B or 1, S, n_out]``; None: every output.
        signs: of 1 (lower) and -1 (upper), those that are wanted.
        with_intervals: intersect with interval bounds of the same rows.

    Raises:
        OutOfTime: some rank's deadline has passed; all ranks raise it.
    """
    lower = WideLoop(graph, wide, region, c, context, signs, with_intervals).run()
    check_same_bits(graph, (lower,))
    parts = lower.chunk(len(signs), dim=1)
    return {sign: part if sign > 0 else -part for sign, part in zip(signs, parts, strict=True)}


@dataclass(slots=True)
class _Tile:
    """Elements of the batch, and what the blocks so far have added to their rows."""

    index: Tensor  # [b], padded by repeating the last
    center: Tensor  # [b, n]
    radius: Tensor | None  # [b, n]; None: the batch has one
    coef: Tensor  # [b * R, n]
    bias: Tensor  # [b, R]
    least: Tensor  # [b, R]: interval bounds


class WideLoop:
    """One call: the rows' coefficients behind the layer are made once, then blocks are walked over."""

    def __init__(
        self,
        graph: Graph,
        wide: WideLayer,
        region: Region,
        c: Tensor | None,
        context: DistributedContext,
        signs: tuple[int, ...],
        with_intervals: bool,
        radius: Callable[[Interval], Tensor | None] | None = None,
    ) -> None:
        """``radius``: says which one all boxes of the batch have, if they have one; None: `common_radius`."""
        self.graph, self.wide, self.region, self.c = graph, wide, region, c
        self.context, self.signs, self.with_intervals = context, signs, with_intervals
        like = region.center()
        self.like = like.new_empty(0)
        layer, activation = graph.nodes[wide.layer].op, graph.nodes[wide.activation].op
        assert isinstance(layer, Linear) and isinstance(activation, NonlinearOperator)
        self.layer, self.activation = layer, activation
        behind = backward(graph, spec_rows(graph, identity_spec(graph, like)), {}, stop=frozenset({wide.activation}))
        assert behind.coef is None
        self.behind, self.constant = behind.saved[wide.activation][0], behind.bias  # [n_out, neurons], [1, n_out]
        self.rows = len(self.behind) if c is None else c.shape[1]
        self.tiles = batch_tiles(len(like), self.rows, context)
        self.inputs = IntervalWalk(graph, region.interval()).part(wide.source).flat()
        self.common = (radius or common_radius)(self.inputs)

    def run(self) -> Tensor:
        """Every element's lower bounds ``[B, signs * S]``."""
        ranks, count = self.context.rows, len(self.tiles)
        mine = range(ranks.rank, count, ranks.size)
        turns = -(-count // ranks.size)
        _, each = walks(turns, self.tiles_a_walk())
        found: list[Tensor] = []
        for first in range(0, turns, each):
            found += self.bounded(self.tiles[position] for position in mine[first : first + each])
        like = self.like.new_empty(self.tiles[0].height, len(self.signs) * self.rows)
        parts = in_order(ranks, found, count, like)
        return torch.cat([part[: t.stop - t.start] for t, part in zip(self.tiles, parts, strict=True)])

    def bounded(self, positions: Iterable[Tile]) -> list[Tensor]:
        """Lower bounds of some tiles, by one walk."""
        tiles = [self._begun(tile) for tile in positions]
        self.context.counters.tiles += len(tiles)
        late = not self._walk(tiles)
        if self.context.seconds_left is not None and self.context.world.some(late):
            raise OutOfTime(OUT_OF_TIME)
        found = []
        while tiles:
            found.append(self._ended(tiles.pop(0)))
        return found

    def tiles_a_walk(self) -> int:
        """So many at most."""
        height, rows = self.tiles[0].height, self.rows * len(self.signs)
        kept = height * (rows + 2) * self.inputs.lower.shape[1] * self.like.element_size()
        return max(1, int(KEPT_MIB * MIB) // kept)

    # -- one walk over the weights -------------------------------------------------------------------------------------
    def _walk(self, tiles: list[_Tile]) -> bool:
        """Add every block to every tile; False: the time was over before.

        A rank without tiles walks along where ranks fetch together.
        """
        if not tiles and not self.context.lockstep:
            return True
        for number, block in enumerate(self.layer.weight.blocks()):
            if number % _BLOCKS_BETWEEN_CLOCKS == 0 and self._out_of_time():
                return False
            for start, stop in _steps(block):
                if tiles:
                    self._step(tiles, block.data[start - block.start : stop - block.start], start, stop)
        return True

    def _out_of_time(self) -> bool:
        """Of those that fetch the same blocks all or none stop; of split layers each rank has blocks of its own."""
        if self.context.seconds_left is None:
            return False
        late, spread = self.context.out_of_time(), self.graph.spread
        apart = spread is not None and spread.sharded(self.wide.layer)
        return late if apart else self.context.weights.some(late)

    def _step(self, tiles: list[_Tile], weight: Tensor, start: int, stop: int) -> None:
        """Neurons ``start:stop``, for all tiles: three products with the weight a tile, four without one radius."""
        size = weight.abs()
        spread = None if self.common is None else size @ self.common
        bias = None if self.layer.bias is None else self.layer.bias[start:stop]
        shared = self.behind[:, start:stop]
        rows = None if self.c is not None and self.c.shape[0] > 1 else self._signed(shared, self.c)
        if spread is not None:
            del size
        for tile in tiles:
            middle = tile.center @ weight.T
            if bias is not None:
                middle += bias
            half = spread if tile.radius is None else tile.radius @ size.T
            assert half is not None
            own = rows
            if own is None:
                assert self.c is not None
                own = self._signed(shared, self.c[tile.index])
            upper = middle + half
            coef = self._pulled(tile, own, Interval(middle.sub_(half), upper))
            if bias is not None:
                tile.bias += (coef @ bias).reshape(tile.bias.shape)
            tile.coef.addmm_(coef, weight)

    def _pulled(self, tile: _Tile, rows: Tensor, box: Interval) -> Tensor:
        """Coefficients ``[b * R, k]`` on the layer, over its boxes ``[b, k]``; constants go to the tile.

        ``rows``: those on the activation, ``[b or 1, R, k]``. The boxes are overwritten.
        """
        if self.activation == Relu():
            coef = self._through_relu(tile, rows, box)
        else:
            if self.with_intervals:
                self._add_interval(tile, rows, self.activation.interval(box))
            pulled = self.activation.relax(box).pull(rows)
            (coef,) = pulled.coefs
            if pulled.bias is not None:
                tile.bias += pulled.bias
        return coef.expand(len(tile.bias), -1, -1).reshape(-1, coef.shape[-1])

    def _through_relu(self, tile: _Tile, rows: Tensor, box: Interval) -> Tensor:
        """The same for a plain ReLU and its usual lines, in half as many steps over the boxes.

        With p, q the function's values at the ends u, l of an interval, the chord has slope (p - q) / (u - l) and the
        value q at l, whether 0 is inside or not.
        """
        upper, lower = box.upper, box.lower
        reached = Interval(lower.clamp_min(0), upper.clamp_min(0))
        if self.with_intervals:
            self._add_interval(tile, rows, reached)
        start = (upper + lower).gt_(0)  # the lower line's slope: 1 if u > -l, else 0
        chord = reached.upper.sub_(reached.lower)
        width = upper.sub_(lower).clamp_min_(torch.finfo(upper.dtype).tiny)
        chord /= width
        chord += width.sub_(width)  # 0, or NaN where the width overflows: a chord of slope 0 would lie below u
        offset = reached.lower.addcmul_(chord, lower, value=-1)
        negative = rows.clamp_max(0)
        tile.bias += rows_dot(negative, offset)
        return (negative * chord.unsqueeze(1)).addcmul_(rows.clamp_min(0), start.unsqueeze(1))

    def _add_interval(self, tile: _Tile, rows: Tensor, reached: Interval) -> None:
        tile.least += rows_dot(rows.clamp_min(0), reached.lower) + rows_dot(rows.clamp_max(0), reached.upper)

    def _signed(self, shared: Tensor, c: Tensor | None) -> Tensor:
        """Rows ``[b or 1, R, ...]`` from coefficients of all outputs ``[n_out, ...]``, negated for upper bounds."""
        rows = shared.unsqueeze(0) if c is None else c @ shared
        return torch.cat([rows if sign > 0 else -rows for sign in self.signs], dim=1)

    # -- tiles of the batch --------------------------------------------------------------------------------------------
    def _begun(self, tile: Tile) -> _Tile:
        device, last = self.like.device, tile.stop - 1
        index = torch.arange(tile.start, tile.start + tile.height, device=device).clamp_max(last)
        lower, upper = self.inputs.lower[index], self.inputs.upper[index]
        center = (lower + upper) / 2
        radius = (upper - lower) / 2 if self.common is None else None
        del lower, upper
        rows = self.rows * len(self.signs)
        coef = self.like.new_zeros(len(index) * rows, center.shape[1])
        bias, least = self.like.new_zeros(2, len(index), rows).unbind(0)
        return _Tile(index, center, radius, coef, bias, least)

    def _ended(self, tile: _Tile) -> Tensor:
        """Lower bounds ``[b, R]`` once every block has been added."""
        c = self.c if self.c is None or self.c.shape[0] == 1 else self.c[tile.index]
        constant = self._signed(self.constant[0].unsqueeze(-1), c).squeeze(-1)
        bias, least = tile.bias, tile.least
        spread = self.graph.spread
        if spread is not None and spread.sharded(self.wide.layer):  # this rank's neurons were met
            both = spread.ranks.total(torch.stack([bias, least]))
            bias, least = both.unbind(0)
        shape = self.graph.local_shape(self.wide.source)
        rows = Rows(self.wide.source, tile.coef.reshape(*bias.shape, *shape), bias + constant, owned=True)
        tile.coef = self.like
        lower = concretize(backward(self.graph, rows, {}), self.region.pick(tile.index))
        return torch.fmax(lower, least + constant) if self.with_intervals else lower


def batch_tiles(batch: int, rows: int, context: DistributedContext) -> tuple[Tile, ...]:
    """The batch in tiles of equal height; model, batch and setting decide, never the number of ranks."""
    setting = context.settings.tile_rows
    most = max(1, (TILE_ROWS if setting == "auto" else setting) // rows)
    return cut(batch, -(-batch // -(-batch // most)))


def common_radius(boxes: Interval) -> Tensor | None:
    """The radius ``[n]`` of a batch ``[B, n]`` of boxes that differ in their centres only; None if they have several.

    Ends of boxes are rounded, so radii part by a rounding of the ends; the largest makes boxes that hold the others.
    """
    most, alike = largest_radius(boxes)
    return most if bool(alike) else None


def largest_radius(boxes: Interval) -> tuple[Tensor, Tensor]:
    """The largest radius ``[n]`` of a batch ``[B, n]``, and whether it may serve all."""
    radius = (boxes.upper - boxes.lower) / 2
    most, least = radius.amax(0), radius.amin(0)
    reach = torch.maximum(-boxes.lower.amin(0), boxes.upper.amax(0))
    slack = SAME_RADIUS_ROUNDINGS * torch.finfo(reach.dtype).eps * reach
    return most, (most - least <= slack).all()


def _steps(block: Block) -> Iterator[tuple[int, int]]:
    """Runs of neurons of a block: first and end."""
    return ((s, min(s + STEP_NEURONS, block.stop)) for s in range(block.start, block.stop, STEP_NEURONS))

"""What a run needs of each rank: memory at its peak, and traffic, for every mode (DESIGN 6).

Arithmetic on counts that a dry run gives (`bounds.dry_run`): bytes that one tile makes, weights that one pass fetches,
operations. No weights, no ranks, no GPU. What was measured stands in `Machine` and in the constants below.

    peak = weights of the mode + two blocks + what every rank holds (boxes, lines, biases)
           + the largest tile + what is stored per row (alpha-CROWN) and per domain (branch and bound)

Bytes are those of torch's allocator; the process has the device's own context beside them (`Machine.context`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal, Protocol

from auto_LiRPA.parallel.axes import Axes, Mode
from auto_LiRPA.parallel.tiles import walks

MIB = 2**20
AlphaMode = Literal["none", "fixed", "keep", "stream"]

# Joint alpha-CROWN (`keep`): the slopes and Adam's two moments. Of the gradient there is one tile's at a time.
JOINT_COPIES = 3
# `stream` and `fixed`, one tile: the same, the best so far, and the gradient.
TILE_COPIES = 5
# Coefficients of all tiles that joint alpha-CROWN keeps for the gradient (`bounds.alpha.KEEP_PASSES_MIB`).
KEPT_PASSES = 256 * MIB
# Boxes and lines of joint alpha-CROWN: those it starts from, the present ones and the best ones.
JOINT_STATES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Figures of one kind of machine; the defaults were measured on two H100s with NVLink, in float32 without TF32.

    ``workspace``: what the matrix library takes for every stream that it runs on; ``context``: what a process takes of
    the device's memory beside torch's allocator.
    """

    flops: float = 51e12  # a second, large matrix products
    host: float = 52e9  # bytes a second between pinned host memory and the device
    call: float = 62e-6  # seconds of a collective at least
    gather: float = 500e9  # bytes a second of the gathered tensor
    reduce: float = 300e9  # bytes a second of the summed tensor
    launch: float = 10e-6  # seconds of one operation, started from Python
    workspace: int = 32 * MIB
    context: int = 600 * MIB


H100 = Machine()
CPU = Machine(flops=5e10, host=1e10, call=3e-4, gather=1e9, reduce=5e8, launch=5e-6, workspace=0, context=0)


@dataclass(frozen=True, slots=True)
class WeightFacts:
    """One weight of the store: its bytes and those of its largest block; ``small`` ones every rank keeps whole."""

    size: int
    block: int
    blocks: int
    small: bool


@dataclass(frozen=True, slots=True)
class Count:
    """One piece of work as a dry run counted it.

    ``peak``: most bytes that it makes; ``fetched``, ``fetches``: weight bytes and blocks where ranks fetch together, so
    that all blocks are; ``copied``: weight bytes where only those are that are needed; ``exchanged``, ``exchanges``:
    bytes and calls between ranks of mode tp; ``operations``: those that make new memory, as many kernels at least.
    """

    peak: int = 0
    fetched: int = 0
    fetches: int = 0
    flops: int = 0
    operations: int = 0
    exchanged: int = 0
    exchanges: int = 0
    copied: int = 0

    def after(self, other: Count) -> Count:
        """Both, one after the other."""
        return Count(
            max(self.peak, other.peak),
            self.fetched + other.fetched,
            self.fetches + other.fetches,
            self.flops + other.flops,
            self.operations + other.operations,
            self.exchanged + other.exchanged,
            self.exchanges + other.exchanges,
            self.copied + other.copied,
        )

    def times(self, count: int) -> Count:
        """So many times the same."""
        sums = (self.fetched, self.fetches, self.flops, self.operations, self.exchanged, self.exchanges, self.copied)
        return Count(self.peak, *(count * value for value in sums))


NOTHING = Count()


@dataclass(frozen=True, slots=True)
class Tiles:
    """Rows of one start node, cut into tiles of ``height`` rows (neurons, each with both signs)."""

    rows: int
    height: int
    count: int

    def share(self, ranks: int) -> int:
        """Tiles of the busiest rank."""
        return -(-self.count // ranks)


@dataclass(frozen=True, slots=True)
class AscentFacts:
    """What alpha-CROWN adds at one start node: a pass with slopes and its gradient, each of one tile.

    ``slopes``: bytes of one tile's slopes; ``saved``: bytes of the coefficients that its gradient reads (and makes
    again, in ``gradient``).
    """

    tiles: Tiles
    bound: Count
    gradient: Count
    slopes: int
    saved: int


@dataclass(frozen=True, slots=True)
class PassFacts:
    """One start node: its plain pass (``bound``: of one tile) and ``ascent``, if alpha-CROWN works on its rows.

    ``final``: its rows are the specification's; ``results``: bytes of one tile's bounds.
    """

    name: str
    tiles: Tiles
    results: int
    bound: Count
    ascent: AscentFacts | None = None
    final: bool = False


@dataclass(frozen=True, slots=True)
class WideFacts:
    """A very wide layer that is bounded block by block (`bounds.wide`): tiles are the batch's, and share walks.

    ``most``: tiles of one walk at most; ``results``: bytes of one tile's bounds; ``one``, ``two``: walks of one tile
    and of two, where what a step has made lasts until the next tile's is there; ``more``: bytes of each further tile.
    """

    tiles: Tiles
    most: int
    results: int
    one: Count
    two: Count
    more: int

    def peak(self, ranks: int) -> int:
        """Most bytes that a walk of the busiest rank makes."""
        _, each = walks(self.tiles.share(ranks), self.most)
        return self.one.peak if each == 1 else self.two.peak + (each - 2) * self.more

    def walked(self, ranks: int) -> Count:
        """All walks of the busiest rank: each fetches the weights once, for all of its tiles."""
        turns = self.tiles.share(ranks)
        count, _ = walks(turns, self.most)
        once = replace(self.one.times(count), exchanged=0, exchanges=0, flops=0, operations=0)
        each = replace(self.one.times(turns), fetched=0, fetches=0, copied=0)
        return once.after(each)


class SearchFacts(Protocol):
    """Branch and bound as a plan counts it: `complete_verifier.driver.search_memory`."""

    @property
    def tile(self) -> int:
        """Sub-problems bounded together."""

    @property
    def iterations(self) -> int:
        """Passes down and up for a tile."""

    @property
    def small(self) -> float:
        """A network with weights of so many bytes at most is whole on every rank for the search."""

    @property
    def fused(self) -> bool:
        """Whether passes are captured where no weight is fetched."""

    def parents(self, ranks: int) -> int:
        """Sub-problems that a rank splits in a full round."""

    def moved(self, ranks: int) -> int:
        """Bytes that ranks gather in a full round."""

    def moments(self, ranks: int, recorded: bool, workspace: int) -> Iterable[tuple[int, int]]:
        """Bytes of what is stored, and of all that is beside it, at each moment that may be the one with the most."""


@dataclass(frozen=True, slots=True)
class Facts:
    """A network as one rank has it, and what bounding it needs, found by a dry run.

    ``weights``: of the store (under tp this rank's slices); ``constants``: bytes of tensors outside of it; ``state``:
    boxes, intervals and lines; ``interval``: the interval bounds, which every rank makes for itself (with ``wide``: all
    that comes before the first walk).
    """

    weights: tuple[WeightFacts, ...]
    constants: int
    state: int
    interval: Count
    passes: tuple[PassFacts, ...]
    alpha: AlphaMode = "none"
    share_slopes: bool = False  # one set of slopes for all rows of a start node
    domains: SearchFacts | None = None
    wide: WideFacts | None = None  # then there are no passes

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights of this rank, before the store places them."""
        return sum(w.size for w in self.weights)

    def ascents(self) -> Iterator[tuple[PassFacts, AscentFacts]]:
        """The start nodes whose rows alpha-CROWN works on."""
        return ((p, p.ascent) for p in self.passes if p.ascent is not None)

    def kept_passes(self) -> int:
        """Bytes of all tiles' coefficients where joint alpha-CROWN keeps them for the gradient, else 0."""
        total = sum(a.saved * a.tiles.count for _, a in self.ascents())
        return total if self.alpha == "keep" and total <= KEPT_PASSES else 0


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of work of the busiest rank: bytes ``gathered`` from ranks, ``exchanged`` with them, ``copied`` from the
    host, ``calls`` of collectives, and seconds of computing and of traffic, if none of it is hidden."""

    gathered: float
    exchanged: float
    copied: float
    calls: float
    compute_s: float
    traffic_s: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """One placement: bytes of one rank by what they are for, and work by kind.

    ``work``: ``crown`` is one pass over all tiles, ``alpha`` one iteration, ``bab`` one full round. ``growth``: bytes
    that the store of a search without a limit of rounds may take beside ``parts``, where they are free.
    """

    mode: Mode
    world: int
    axes: Axes
    parts: Mapping[str, int]
    work: Mapping[str, Work] = field(default_factory=lambda: MappingProxyType({}))
    host: int = 0  # pinned bytes of a host, which its ranks share
    growth: int = 0

    @property
    def peak(self) -> int:
        """Most bytes of torch's allocator at once, the workspace included."""
        return sum(self.parts.values())

    def fits(self, memory: float, machine: Machine = H100, margin: float = 1.15) -> bool:
        """Whether a device of ``memory`` bytes holds it, with the device's context and the model's own error."""
        return self.peak * margin + machine.context <= memory


def predict(facts: Facts, axes: Axes, world: int, machine: Machine = H100) -> Prediction:
    """Peak and traffic of one rank. For mode tp ``facts`` have to be those of a rank's own slices."""
    rows, tile = _rows_and_tile(facts, axes.rows)
    parts = {
        "weights": _resident(facts, axes),
        "blocks": _buffers(facts, axes),
        "constants": facts.constants,
        "bounds": facts.state * (JOINT_STATES if facts.alpha == "keep" else 1),
        "rows": rows,
        "domains": 0,
        "tile": tile,
        "workspace": machine.workspace,
    }
    work = {"crown": _plain_pass(facts, axes, machine)}
    if facts.alpha != "none":
        work["alpha"] = _iteration(facts, axes, machine)
    if facts.domains is not None:
        _add_search(parts, facts, facts.domains, axes)
        work["bab"] = _round(facts, facts.domains, axes, machine)
    host = sum(w.size for w in facts.weights if not w.small) if axes.mode == "offload" else 0
    return Prediction(axes.mode, world, axes, MappingProxyType(parts), MappingProxyType(work), host)


def _resident(facts: Facts, axes: Axes) -> int:
    """Bytes of weights that stay on the device."""
    if axes.mode == "fsdp":
        return sum(w.size if w.small else -(-w.size // axes.weights) for w in facts.weights)
    if axes.mode == "offload":
        return sum(w.size for w in facts.weights if w.small)
    return facts.weight_bytes


def _buffers(facts: Facts, axes: Axes) -> int:
    """Two pieces of memory for the largest block that is fetched."""
    if axes.mode not in ("fsdp", "offload"):
        return 0
    return 2 * max((w.block for w in facts.weights if not w.small), default=0)


def _rows_and_tile(facts: Facts, ranks: int) -> tuple[int, int]:
    """What alpha-CROWN stores for rows, and the largest transient beside it: those of the costliest moment."""
    walk = 0 if facts.wide is None else facts.wide.peak(ranks)
    moments = [(0, max(facts.interval.peak, walk, *(p.bound.peak for p in facts.passes)))]
    if facts.alpha == "keep":
        moments.append(_joint(facts, ranks))
    else:
        moments += [(TILE_COPIES * a.slopes, a.gradient.peak) for _, a in facts.ascents()]
    return max(moments, key=sum)


def _joint(facts: Facts, ranks: int) -> tuple[int, int]:
    """Joint alpha-CROWN while gradients are made, the last start node's first.

    One tile's derivatives live at a time, as part of its sweep. Where coefficients are kept no pass is run again.
    """
    kept = facts.kept_passes() > 0
    slopes, saved, tile = 0, 0, 0
    for p, a in facts.ascents():
        shared = facts.share_slopes and not p.final
        slopes += a.slopes // (2 * a.tiles.height) if shared else a.slopes * a.tiles.share(ranks)
        saved += a.saved * a.tiles.share(ranks) if kept else 0
        tile = max(tile, a.bound.peak, a.gradient.peak - (a.saved if kept else 0))
    return JOINT_COPIES * slopes + saved, tile


def _add_search(parts: dict[str, int], facts: Facts, search: SearchFacts, axes: Axes) -> None:
    """Branch and bound begins when the rows' slopes are gone and the last tile of them is done."""
    copy = facts.weight_bytes if _made_whole(facts, search, axes) else 0
    recorded = search.fused and (axes.mode == "single" or copy > 0)
    stored, beside = max(search.moments(axes.domains, recorded, parts["workspace"]), key=sum)
    if stored + copy + beside > parts["rows"] + parts["tile"]:
        parts["rows"], parts["tile"], parts["domains"] = 0, copy + beside, stored


def _made_whole(facts: Facts, search: SearchFacts, axes: Axes) -> bool:
    """Whether a search whose weights would be fetched has them all on every rank instead."""
    moves = axes.mode == "offload" or (axes.mode == "fsdp" and axes.weights > 1)
    return moves and facts.weight_bytes <= search.small


def _plain_pass(facts: Facts, axes: Axes, machine: Machine) -> Work:
    """One CROWN pass over all tiles, as the busiest rank does it, with the interval bounds before."""
    once = (facts.interval, Tiles(0, 1, 1), 0)
    if facts.wide is not None:
        results = facts.wide.results * facts.wide.tiles.share(axes.rows)
        walked = (facts.wide.walked(axes.rows), Tiles(0, 1, axes.rows), results)
        return _tiles_of((once, walked), axes, machine)
    return _tiles_of((once, *((p.bound, p.tiles, p.results) for p in facts.passes)), axes, machine)


def _iteration(facts: Facts, axes: Axes, machine: Machine) -> Work:
    """One iteration of alpha-CROWN: bounds and gradients of the tiles that it works on."""
    return _tiles_of(((a.bound.after(a.gradient), a.tiles, p.results) for p, a in facts.ascents()), axes, machine)


def _tiles_of(parts: Iterable[tuple[Count, Tiles, int]], axes: Axes, machine: Machine) -> Work:
    total, results, calls, seconds = NOTHING, 0, 0, 0.0
    for one, tiles, result in parts:
        count = tiles.share(axes.rows)
        seconds += count * max(one.flops / machine.flops, one.operations * machine.launch)
        total = total.after(one.times(count))
        if axes.rows > 1 and result:
            results, calls = results + result * count * axes.rows, calls + 1
    return _work(total, results, calls, seconds, axes, machine)


def _round(facts: Facts, search: SearchFacts, axes: Axes, machine: Machine) -> Work:
    """One full round of branch and bound: every iteration goes down and up, for two children of every parent."""
    final = next(p for p in reversed(facts.passes) if p.final)
    children = 2 * search.parents(axes.domains)
    passes = 0 if _made_whole(facts, search, axes) else 2 * search.iterations * -(-children // search.tile)
    flops = 2 * search.iterations * children * final.bound.flops // max(1, final.tiles.height)
    total = replace(final.bound.times(passes), flops=flops)
    moved, calls = search.moved(axes.domains), 2 if axes.domains > 1 else 0
    return _work(total, moved, calls, flops / machine.flops, axes, machine)


def _work(total: Count, results: int, calls: int, seconds: float, axes: Axes, machine: Machine) -> Work:
    sharded = axes.mode == "fsdp" and axes.weights > 1
    gathered = results + (total.fetched if sharded else 0)
    copied = total.copied if axes.mode == "offload" else 0
    count = calls + total.exchanges + (total.fetches if sharded else 0)
    wire = count * machine.call + gathered / machine.gather + total.exchanged / machine.reduce + copied / machine.host
    return Work(gathered, total.exchanged, copied, count, seconds, wire)


def rows_that_hide(mode: Mode, itemsize: int, machine: Machine = H100) -> int:
    """Rows in flight (both signs counted) above which a block's product takes longer than its fetch.

    A block of b bytes holds b / itemsize weights; r rows need 2 r b / itemsize operations, the fetch b / bandwidth
    seconds. So r >= itemsize * flops / (2 * bandwidth), whatever the layer's width.
    """
    bandwidth = machine.host if mode == "offload" else machine.gather
    return -int(-itemsize * machine.flops // (2 * bandwidth))

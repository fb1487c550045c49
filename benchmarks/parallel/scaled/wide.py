"""Experiment 1 over ranks: one very wide layer over a large batch, bounded block by block of its neurons.

`abcrown --plan` is about the command, which keeps the layer's boxes; the planner's model of this order of work
(`plan_check.wide_prediction`) takes seconds a point. So what is predicted here for hundreds of ranks is this file's own
count of `auto_LiRPA/bounds/wide.py`: for a tile of b inputs a block of k neurons costs 6 b n k operations (one product
for the boxes, two for both signs' coefficients), and every walk fetches each block once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from auto_LiRPA.bounds.dry_run import ShapeStore
from benchmarks.parallel.experiments.kinds import Options
from benchmarks.parallel.scaled.kinds import MIB, Ahead, Measured, Point, Predicted, Study, Task, number
from benchmarks.parallel.starting import Figures, Job

ALONE, TOGETHER = ("single", "offload"), ("rows", "fsdp+rows", "tp", "offload+rows", "fsdp")
HIDDEN, BASE, INPUTS, BATCH, TILE, BLOCK_MIB = 262144, 65536, 4096, 2048, 256, 32.0
ENOUGH_S = 5  # no further pass is measured after so many seconds of them
SMALL_HIDDEN, SMALL_BASE, SMALL_INPUTS, SMALL_BATCH, SMALL_TILE, SMALL_BLOCK_MIB = 2048, 512, 64, 64, 8, 0.02
STEP, SIGNS, SIZE, WORKSPACE = 2048, 2, 4, 32 * MIB
# Counted on a CPU (`benchmarks/live_bytes.py`): tensors of tile x step while a block is used up (boxes, relaxation,
# coefficients of both signs). Before them, and not with them, the step's weights are there as absolute values.
STEP_COPIES = 9
# Before the walk: centres of all boxes, their widths and radii. Three are counted on a CPU; H100s had a fourth.
BOX_COPIES = 4


def tasks(options: Options) -> Iterator[Task]:
    """One process a mode and width; the wide layer's weight is drawn into a file once."""
    small = options.reduced
    strong = SMALL_HIDDEN if small else HIDDEN
    words: tuple[str, ...] = ("--models", str(options.models), "--config", str(options.configs / "exp1_wide.yaml"))
    if small:
        words = (*words, "--inputs", str(SMALL_INPUTS), "--batch", str(SMALL_BATCH), "--tile", str(SMALL_TILE))
        words = (*words, "--block-mib", str(SMALL_BLOCK_MIB), "--above-mib", "0", "--repeats", "1")
    else:
        often = str(2 * options.repeats + 1)  # passes of half a second scatter
        words = (*words, "--tile", str(TILE), "--repeats", often, "--enough-s", str(ENOUGH_S))
    for world in options.worlds:
        for mode in TOGETHER if world > 1 else ALONE:
            extra = mode in ("offload+rows", "fsdp")
            grows = mode in ("single", "fsdp+rows", "tp")
            sizes = tuple(dict.fromkeys((strong, _grown(world, small)))) if grows else (strong,)
            for hidden in sizes:
                own = (*words, "--mode", mode, "--hidden", str(hidden))
                yield Task(1, Job("wide_time.py", world, own, 300.0), world, extra or hidden != strong)


def measured(figures: Iterable[Figures]) -> Iterator[Measured]:
    """Lines of `wide_time.py`."""
    for one in figures:
        if one.get("what") != "wide_time" or one.get("exp") != 1 or one.get("ms") is None:
            continue
        inputs, hidden, _ = (int(part) for part in one["net"].split("-"))
        mode = one["mode"]
        yield Measured(
            point=Point(exp=1, setting=f"tile {one['tile']}", size=f"h {hidden}", mode=mode, world=one["world"]),
            seconds=one["ms"] / 1e3,
            share=number(one, "traffic_share"),
            traffic_mib=max(number(rank, "traffic_mib") or 0.0 for rank in one["ranks"]),
            peak_mib=number(one, "peak_mib"),
            weight_mib=number(one, "weight_mib"),
            work=_operations(one["batch"], inputs, hidden),
            bits=None if mode.startswith("tp") else tuple(one["digests"]),
            near=(one["lb_sum"], one["ub_sum"]),
            told=f"{one['outside']} sampled outputs outside",
            shared_host=bool(one.get("shared_host")),
            source=one,
        )


def weak(setting: str, world: int, reduced: bool) -> str:
    """The layer grows with P."""
    return f"h {_grown(world, reduced)}"


def _grown(world: int, reduced: bool) -> int:
    return (SMALL_BASE if reduced else BASE) * world


def _operations(batch: int, inputs: int, hidden: int) -> float:
    return 2.0 * (1 + SIGNS) * batch * inputs * hidden


@dataclass(frozen=True)
class Layer:
    """What is bounded: the layer's inputs, the batch, its tiles' height, the size of blocks."""

    inputs: int
    batch: int
    tile: int
    block_mib: float


FULL = Layer(INPUTS, BATCH, TILE, BLOCK_MIB)
SMALL = Layer(SMALL_INPUTS, SMALL_BATCH, SMALL_TILE, SMALL_BLOCK_MIB)


def predict(layer: Layer, point: Point) -> Predicted:
    """Of the busiest rank."""
    inputs, batch, tile = layer.inputs, layer.batch, layer.tile
    hidden, world, mode = int(point.size.removeprefix("h ")), point.world, point.mode
    name = mode.partition("/")[0]
    tiles = -(-batch // tile)
    mine = -(-tiles // world) if "rows" in name else tiles
    own = hidden // world if name == "tp" else hidden
    weight = SIZE * inputs * hidden
    cuts = list(ShapeStore(layer.block_mib).cuts((own, inputs), SIZE))
    most = max(stop - start for start, stop in cuts)
    fetched = weight if name.startswith(("fsdp", "offload")) else 0
    rows = (1 + SIGNS) * SIZE * mine * tile * inputs  # centres and coefficients of its tiles
    step = SIZE * min(STEP, most) * max(inputs, STEP_COPIES * tile)
    parts = {
        "weights": weight // world if name.startswith(("fsdp", "tp")) else 0 if name.startswith("offload") else weight,
        "blocks": 2 * SIZE * most * inputs if fetched else 0,
        "bounds": 2 * SIZE * batch * inputs,  # the input boxes, whole on every rank
        "rows": rows,
        "tile": max(step, BOX_COPIES * SIZE * batch * inputs - rows),
        "workspace": WORKSPACE,
    }
    summed = 2 * SIZE * SIGNS * batch + SIZE * batch * SIGNS * inputs if name == "tp" else 0
    return Predicted(
        peak=sum(parts.values()),
        parts=parts,
        work=_operations(mine * tile, inputs, own),
        gathered=fetched if name.startswith("fsdp") else 0.0,
        exchanged=summed,
        copied=fetched if name.startswith("offload") else 0.0,
        calls=(len(cuts) if name.startswith("fsdp") else 0) + (2 * tiles if summed else 0) + ("rows" in name),
    )


def ahead(reduced: bool) -> Iterator[Ahead]:
    """What the tables on paper are about."""
    if reduced:
        return
    for mode in ("rows", "fsdp+rows", "tp"):
        yield Ahead(setting=f"tile {TILE}", mode=mode, size=_strong, weak=False)
        yield Ahead(setting=f"tile {TILE}", mode=mode, size=_weak, weak=True)


def _strong(world: int) -> str:
    return f"h {HIDDEN}"


def _weak(world: int) -> str:
    return weak("", world, reduced=False)


def study(reduced: bool) -> Study:
    """The study at one of both sizes."""
    return Study(
        exp=1,
        title=f"CROWN on 4096 - ReLU(h) - 1, batch {BATCH}, eps 0.01, blocks of neurons outermost",
        grows="width h with P: weights and operations of a rank stay the same under fsdp and tp",
        unit="operations of the busiest rank",
        tasks=tasks,
        measured=measured,
        weak=weak,
        predict=partial(predict, SMALL if reduced else FULL),
        ahead=partial(ahead, reduced),
    )

"""Experiment 5 over ranks: CROWN on wide MLPs, every placement of weights and rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache, partial

from benchmarks.parallel.experiments.kinds import Options
from benchmarks.parallel.scaled.kinds import Ahead, Measured, Point, Predicted, Study, Task, number
from benchmarks.parallel.scaled.predicting import Shapes, counted
from benchmarks.parallel.starting import Figures, Job

ALONE = ("single", "offload")
TOGETHER = ("rows", "fsdp+rows", "tp", "offload+rows", "fsdp")
MESHES = ("fsdp+rows/2", "tp+rows/2")  # from P = 4 on
NETS, TILES, BASE = ("8192x4", "16384x4"), ("512", "2048"), 8192
SMALL_NETS, SMALL_TILES, SMALL_BASE = ("64x3",), ("8",), 64
BLOCK_MIB, SMALL_BLOCK_MIB = 16.0, 0.004
INPUTS, SMALL_INPUTS = 784, 32
ENOUGH_S = 1  # no further pass is measured after so many seconds of them: they hardly scatter


def tasks(options: Options) -> Iterator[Task]:
    """One process a mode and number of ranks, with all nets; of modes that matter less one height of tiles."""
    nets, tiles = (SMALL_NETS, SMALL_TILES) if options.reduced else (NETS, TILES)
    common: tuple[str, ...] = ("--block-mib", str(BLOCK_MIB), "--repeats", str(options.repeats))
    common = (*common, "--enough-s", str(ENOUGH_S))
    if options.reduced:
        common = ("--block-mib", str(SMALL_BLOCK_MIB), "--repeats", "1", "--input-dim", str(SMALL_INPUTS))
    for world in options.worlds:
        several = (*TOGETHER, *(MESHES if world > 2 and world % 2 == 0 else ()))
        for mode in ALONE if world == 1 else several:
            extra = mode in several[3:] and world > 1
            every = nets if extra else tuple(dict.fromkeys((*nets, weak("", world, options.reduced))))
            heights = tiles[:1] if extra else tiles
            words = ("--models", str(options.models), "--mode", mode, "--nets", *every, "--tiles", *heights, *common)
            yield Task(5, Job("mem_time.py", world, words, 300.0), world, extra)


def weak(setting: str, world: int, reduced: bool) -> str:
    """Weights of a rank stay as large: the width grows with the root of P."""
    base, step, depth = (SMALL_BASE, 8, 3) if reduced else (BASE, 64, 4)
    return f"{round(base * world**0.5 / step) * step}x{depth}"


def measured(figures: Iterable[Figures]) -> Iterator[Measured]:
    """Lines of `mem_time.py`."""
    for one in figures:
        if one.get("what") != "mem_time" or one.get("exp") != 5:
            continue
        size, tile, mode = f"{one['h']}x{one['d']}", f"tile {one['tile']}", one["mode"]
        yield Measured(
            point=Point(exp=5, setting=tile, size=size, mode=mode, world=one["world"]),
            seconds=one["ms"] / 1e3,
            share=number(one, "traffic_share"),
            traffic_mib=max(number(rank, "traffic_mib") or 0.0 for rank in one["ranks"]),
            peak_mib=number(one, "peak_mib"),
            weight_mib=number(one, "weight_mib"),
            work=work(size, tile),
            bits=None if mode.startswith("tp") else tuple(one["digests"]),
            near=(one["lb_sum"], one["ub_sum"]),
            shared_host=bool(one.get("shared_host")),
            source=one,
        )


@cache
def predict(point: Point) -> Predicted:
    """The planner's model of `abcrown --plan`, on the net's shapes."""
    hidden, depth = _sizes(point.size)
    small = depth == 3
    return counted(
        Shapes(_shapes, (hidden, depth, SMALL_INPUTS if small else INPUTS)),
        point.mode,
        point.world,
        tile=int(point.setting.removeprefix("tile ")),
        block_mib=SMALL_BLOCK_MIB if small else BLOCK_MIB,
    )


def _shapes(hidden: int, depth: int, inputs: int) -> object:
    from benchmarks.parallel.plan_check import mlp_shapes

    return mlp_shapes(hidden, depth, inputs)


def work(size: str, setting: str) -> float:
    """Operations of the whole pass."""
    return predict(Point(exp=5, setting=setting, size=size, mode="single", world=1)).work


def _sizes(size: str) -> tuple[int, int]:
    hidden, depth = size.split("x")
    return int(hidden), int(depth)


def ahead() -> Iterator[Ahead]:
    """What the tables on paper are about."""
    modes = ("rows", "fsdp+rows", "fsdp+rows/8", "tp", "tp+rows/8")
    for net in NETS:
        for mode in modes:
            yield Ahead(setting="tile 512", mode=mode, size=partial(_same, net), weak=False)
    for mode in modes:
        yield Ahead(setting="tile 2048", mode=mode, size=_grown, weak=True)


def _same(net: str, world: int) -> str:
    return net


def _grown(world: int) -> str:
    return weak("", world, reduced=False)


STUDY = Study(
    exp=5,
    title="CROWN on MLPs 784 - h x d - 10, eps 0.02, batch 1",
    grows="width h with the root of P: weight bytes of a rank stay the same, its operations grow with the root of P",
    unit="operations of the busiest rank",
    tasks=tasks,
    measured=measured,
    weak=weak,
    predict=predict,
    ahead=ahead,
)

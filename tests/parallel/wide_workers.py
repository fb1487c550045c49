"""What a rank does for the tests of a very wide layer: the loop over blocks of hidden neurons in every placement."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch._dynamo  # what counts live bytes imports it: once, before the ranks are forked
from torch import Tensor

from auto_LiRPA.bounds import wide
from auto_LiRPA.bounds.methods import Method, Query, compute
from auto_LiRPA.bounds.settings import BoundSettings
from auto_LiRPA.errors import OutOfTime
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.tensor_parallel import tensor_parallel
from auto_LiRPA.operators.activation import Relu
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.numerics import full_precision
from auto_LiRPA.parallel.settings import ParallelSettings
from auto_LiRPA.parallel.store import ParameterStore
from auto_LiRPA.values import Box
from tests.nets import Builder, dense_layers

BATCH, INPUTS, HIDDEN, OUTPUTS = 23, 12, 49, 3  # two or three ranks' shares of 49 have different numbers of blocks
TILE_ROWS = 6  # of 3 rows: 12 tiles of 2 elements of the batch, of 2 rows: 8 tiles of 3; the last one is ragged
BLOCK_MIB = 1e-6  # eight rows a block
STEP = 3  # neurons of a step: blocks are cut once more, raggedly
KEPT_MIB = 0  # a walk for each tile; `ONE_WALK` keeps all tiles
ONE_WALK = 256
ALONE = ("single", "offload", "fsdp", "fsdp+rows", "rows", "tp")
TOGETHER = ("fsdp", "fsdp+rows", "rows", "offload+rows", "tp")


@dataclass(frozen=True)
class Asked:
    """One call: which rows, and what the boxes are like."""

    rows: str = "outputs"  # or: shared, own
    one_radius: bool = True
    dtype: torch.dtype = torch.float32
    kept_mib: int = ONE_WALK
    intersected: bool = True
    slope_rule: str = "adaptive"  # another one takes the general way through the activation


CALLS = (
    Asked(),
    Asked(kept_mib=KEPT_MIB),
    Asked(rows="shared", one_radius=False, slope_rule="same-slope"),
    Asked(rows="own", dtype=torch.float64, intersected=False),
    Asked(rows="own", one_radius=False, kept_mib=KEPT_MIB),
)


def network(store: ParameterStore, asked: Asked) -> Graph:
    """12 - 49 - 3, its weights in ``store``."""
    build = Builder((INPUTS,))
    build.store = store  # type: ignore[assignment]
    first, last = dense_layers([INPUTS, HIDDEN, OUTPUTS], 5, asked.dtype)
    on = build.add(Relu(slope_rule=asked.slope_rule), (build.dense(first, 0),), (HIDDEN,))
    build.dense(last, on)
    return build.graph()


def region(asked: Asked, batch: int = BATCH) -> Box:
    """Boxes around random points; all of one radius, or cut at 0 and 1."""
    x = torch.rand(batch, INPUTS, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(asked.dtype)
    if asked.one_radius:
        return Box(x - 0.1, x + 0.1)
    return Box((x - 0.3).clamp(0, 1), (x + 0.3).clamp(0, 1))


def rows(asked: Asked) -> Tensor | None:
    """The specification."""
    gen = torch.Generator().manual_seed(8)
    shape = {"shared": (1, 2, OUTPUTS), "own": (BATCH, 2, OUTPUTS)}.get(asked.rows)
    return None if shape is None else torch.randn(*shape, generator=gen, dtype=torch.float64).to(asked.dtype)


def settings(layout: str) -> ParallelSettings:
    """Small blocks, small tiles."""
    mode, _, axis = layout.partition("+")
    return ParallelSettings(
        mode="single" if mode == "rows" else mode,  # type: ignore[arg-type]
        rows="shard" if "rows" in (mode, axis) else "replicate",
        domains="replicate",
        tile_rows=TILE_ROWS,
        block_mib=BLOCK_MIB,
        threads=1,
        timeout_s=20,
    )


def bounds(graph: Graph, asked: Asked, context: DistributedContext, streamed: bool = True) -> tuple[Tensor, Tensor]:
    """Both sides of the rows."""
    chosen = BoundSettings(compare_with_ibp=asked.intersected, wide_mib=0.0 if streamed else 1e9)
    query = Query(c=rows(asked), boxes=False)
    with torch.no_grad(), full_precision():
        found = compute(graph, region(asked), query, Method.CROWN, context, chosen)
    assert found.lower is not None and found.upper is not None
    assert streamed is not bool(found.boxes)
    return found.lower.bound, found.upper.bound


def bound_everywhere(layouts: tuple[str, ...]) -> dict[tuple[str, str | int], Any]:
    """By layout and call: both bounds. And facts that say that blocks, tiles and ranks were many."""
    report: dict[tuple[str, str | int], Any] = {}
    wide.STEP_NEURONS, wide._BLOCKS_BETWEEN_CLOCKS = STEP, 1
    for layout in layouts:
        context = DistributedContext.from_env(settings(layout))
        context.buffers.debug = True  # a block that is used too late is NaN
        if layout == "tp":
            context = replace(context, seconds_left=lambda: 60.0)
        for number, asked in enumerate(CALLS):
            wide.KEPT_MIB = asked.kept_mib
            if layout == "tp":
                graph = tensor_parallel(network(context.alone().make_store(), asked), context)
            else:
                graph = network(context.make_store(), asked)
            before = _fetches(context)
            report[layout, number] = bounds(graph, asked, context)
            report[f"{layout} fetches", number] = _fetches(context) - before
        report[layout, "tiles"] = context.counters.tiles
        report[layout, "alive"] = context.counters.live_blocks_max
        report[layout, "late"] = _late(context)
    return report


def _fetches(context: DistributedContext) -> int:
    found = context.counters.collectives.get("weights")
    return 0 if found is None else found.calls


def _late(context: DistributedContext) -> bool:
    """Whether the last rank's deadline, which it alone has seen, ends a call on this one."""
    asked = CALLS[0]
    late = context.rank == context.world_size - 1
    ending = replace(context, seconds_left=lambda: -1.0 if late else 60.0)
    graph = network(context.make_store(), asked)
    if context.mode == "tp":
        graph = tensor_parallel(network(context.alone().make_store(), asked), context)
    try:
        bounds(graph, asked, ending)
    except OutOfTime:
        return True
    return False

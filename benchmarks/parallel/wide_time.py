"""Experiment 1: CROWN on n - ReLU(hidden) - 1 for a large batch of inputs in one mode: memory, time, bits.

    python benchmarks/parallel/wide_time.py --mode single --models out/models --out figures.jsonl
    torchrun --nproc_per_node=2 benchmarks/parallel/wide_time.py --mode tp --models out/models --out figures.jsonl

Sizes, radius and the section `parallel` come from exp_configs/parallel/exp1_wide.yaml. The first weight is written to a
file below --models once, a run of neurons at a time, and mapped into memory: each rank reads what it keeps. --ordinary
keeps the layer's boxes, as a pass does that is asked for them: memory of the size of the batch times the layer.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from auto_LiRPA.bounds.methods import Bounds, Method, Query, compute  # noqa: E402
from auto_LiRPA.bounds.settings import BoundSettings  # noqa: E402
from auto_LiRPA.graph.ir import Graph  # noqa: E402
from auto_LiRPA.graph.run import evaluate  # noqa: E402
from auto_LiRPA.parallel.context import DistributedContext  # noqa: E402
from auto_LiRPA.parallel.numerics import full_precision  # noqa: E402
from auto_LiRPA.parallel.settings import ParallelSettings  # noqa: E402
from auto_LiRPA.values import Box  # noqa: E402
from benchmarks.parallel import building, drawn, measuring  # noqa: E402
from complete_verifier.config import CustomizedRef, load_config, parse_reference  # noqa: E402

MIB = measuring.MIB
CONFIG = Path(__file__).resolve().parent.parent.parent / "exp_configs" / "parallel" / "exp1_wide.yaml"
EVALUATED = 256  # inputs whose outputs are compared with their bounds at once


@dataclass(frozen=True, slots=True)
class Asked:
    """What the configuration says, and the module with its numbers."""

    hidden: int
    inputs: int
    eps: float
    tile: int | str
    block_mib: float
    prefetch: bool
    compare: bool
    numbers: ModuleType


def main() -> None:
    """Measure one mode."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modes", "--mode", nargs="+", choices=measuring.MODES, required=True)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--models", type=Path, required=True, help="folder for the first weight and the bounds")
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--hidden", type=int, help="instead of the configuration's")
    parser.add_argument("--inputs", type=int, help="instead of the configuration's")
    parser.add_argument("--tile", help="instead of the configuration's")
    parser.add_argument("--block-mib", type=float, help="instead of the configuration's")
    parser.add_argument("--ordinary", action="store_true", help="keep the layer's boxes")
    parser.add_argument("--clamped", action="store_true", help="cut the boxes at 0 and 1, so that radii differ")
    parser.add_argument("--above-mib", type=float, help="boxes from which on a layer is bounded block by block")
    measuring.add_repeats(parser)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if len(options.modes) > 1 and torch.cuda.is_available():
        parser.error("one mode per process where memory is measured")
    one = asked(options)
    context = None
    with torch.no_grad(), full_precision():
        for mode in options.modes:
            context = measuring.join(settings(one, mode))
            _measured(context, options, one, mode)
            measuring.release(context)
    assert context is not None
    context.close()


def asked(options: argparse.Namespace) -> Asked:
    """The configuration, with what the command line puts in its place."""
    config = load_config(["--config", str(options.config)]).config
    reference = parse_reference(config.model.onnx_loader)
    assert isinstance(reference, CustomizedRef)
    hidden, inputs, _, eps = (str(word) for word in reference.args)
    spec = importlib.util.spec_from_file_location("wide_network", options.config.parent / "wide_network.py")
    assert spec is not None and spec.loader is not None
    numbers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(numbers)
    own = config.parallel.settings()
    return Asked(
        hidden=options.hidden or int(hidden),
        inputs=options.inputs or int(inputs),
        eps=float(eps),
        tile=options.tile or own.tile_rows,
        block_mib=options.block_mib or own.block_mib,
        prefetch=own.prefetch,
        compare=config.solver.crown.compare_crown_with_ibp,
        numbers=numbers,
    )


def settings(one: Asked, mode: str) -> ParallelSettings:
    """The section `parallel` in a mode."""
    return measuring.settings_of(mode, one.tile, one.block_mib, one.prefetch)


def first_weight(one: Asked, folder: Path, context: DistributedContext) -> Tensor:
    """``[hidden, inputs]`` float32, mapped from a file that the first rank of a machine writes if it is missing."""
    path, shape = folder / f"exp1_{one.inputs}x{one.hidden}.bin", (one.hidden, one.inputs)
    (weight,) = drawn.mapped(context, path, [shape], lambda: one.numbers.rows(*shape))
    return weight


def layers(one: Asked, first: Tensor) -> tuple[nn.Linear, nn.Linear]:
    """Both layers as modules; the first one's weight stays where it is mapped."""
    bias, weight, end = one.numbers.small(one.hidden, one.inputs)
    made = []
    for values, offsets in ((first, bias), (weight, end)):
        layer = nn.Linear(values.shape[1], values.shape[0], device="meta")
        layer.weight = nn.Parameter(values, requires_grad=False)
        layer.bias = nn.Parameter(offsets, requires_grad=False)
        made.append(layer)
    return made[0], made[1]


def _measured(context: DistributedContext, options: argparse.Namespace, one: Asked, mode: str) -> None:
    began = time.perf_counter()
    graph, store = building.wide(context, *layers(one, first_weight(one, options.models, context)))
    measuring.wait(context)
    build_s = time.perf_counter() - began
    measuring.release(context)
    built = measuring.allocated(context)
    region = _region(context, options, one)
    chosen = BoundSettings(compare_with_ibp=one.compare)
    if options.above_mib is not None:
        chosen = BoundSettings(compare_with_ibp=one.compare, wide_mib=options.above_mib)
    query = Query(boxes=options.ordinary)

    def run() -> Bounds:
        return compute(graph, region, query, Method.CROWN, context, chosen)

    head: measuring.Figures = {
        "what": "wide_time",
        "exp": 1,
        "net": f"{one.inputs}-{one.hidden}-1",
        "mode": mode,
        "loop": "rows" if options.ordinary else "blocks",
        "batch": options.batch,
        "eps": one.eps,
        "clamped": options.clamped,
        "tile": one.tile,
        "block_mib": one.block_mib,
        "build_s": round(build_s, 2),
        "weights_mib": round(4 * one.hidden * (one.inputs + 1) / MIB, 2),
        "resident_built_mib": built,
    }
    mine: measuring.Figures = {}
    first = measuring.FirstBounds()
    try:
        mine |= measuring.measure(context, run, options.repeats, options.warmup, options.enough_s, first.look)
        head |= _numbers(context, options, one, mode, (graph, region), first, mine)
    except torch.OutOfMemoryError as error:
        if context.world_size > 1:
            raise
        head["out_of_memory"] = str(error).splitlines()[0][:160]
        mine["ms"] = None
    mine["weight_mib"] = round(store.weight_bytes() / MIB, 2)
    gathered = [slot.memory for slot in context.buffers._slots if slot.memory is not None]
    mine["gathered_mib"] = round(measuring.storage_bytes(gathered) / MIB, 2)
    mine["region_mib"] = round(measuring.storage_bytes(region) / MIB, 2)
    measuring.tell(context, head, mine, options.out)


def _region(context: DistributedContext, options: argparse.Namespace, one: Asked) -> Box:
    x = one.numbers.inputs(options.batch, one.inputs).to(context.device)
    lower, upper = x - one.eps, x + one.eps
    return Box(lower.clamp_(0, 1), upper.clamp_(0, 1)) if options.clamped else Box(lower, upper)


def _numbers(
    context: DistributedContext,
    options: argparse.Namespace,
    one: Asked,
    mode: str,
    network: tuple[Graph, Box],
    found: measuring.FirstBounds,
    mine: measuring.Figures,
) -> measuring.Figures:
    """The bounds' bits and sums, sampled outputs that lie outside, and how far they are from those of one GPU."""
    lower, upper = found.lower, found.upper
    mine["digest"] = measuring.digest((lower, upper))
    told: measuring.Figures = {"lb_sum": float(lower.double().sum()), "ub_sum": float(upper.double().sum())}
    told["outside"] = _outside(*network, lower, upper)
    loop = "-rows" if options.ordinary else ""
    cut = f"{'-clamped' if options.clamped else ''}-{one.tile}-{one.block_mib:g}"
    folder = options.models / "exp1_bounds"
    name = f"{one.inputs}x{one.hidden}-{len(lower)}{cut}"
    if context.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        both = torch.stack([lower, upper]).cpu()
        torch.save(both, folder / f"{name}-{mode}{loop}-{context.world_size}.pt")
        reference = folder / f"{name}-single-1.pt"
        if reference.exists():
            single: Any = torch.load(reference)
            told["relative"] = float(((both - single).abs() / (1 + single.abs())).max())
    return told


def _outside(graph: Graph, region: Box, lower: Tensor, upper: Tensor) -> int:
    """How many outputs, one of a random point and one of a random corner for each input, are not between its bounds."""
    gen, count = torch.Generator().manual_seed(2), torch.zeros((), dtype=torch.long, device=lower.device)
    for start in range(0, len(lower), EVALUATED):
        part = slice(start, start + EVALUATED)
        share = torch.rand(region.lower[part].shape, generator=gen).to(region.lower)
        for at in (share, share.round()):
            y = evaluate(graph, region.lower[part] + at * (region.upper[part] - region.lower[part])).flatten(1)
            slack = 1e-5 * (1 + y.abs())
            count += ((y < lower[part] - slack) | (y > upper[part] + slack)).sum()
    return int(count)


if __name__ == "__main__":
    main()

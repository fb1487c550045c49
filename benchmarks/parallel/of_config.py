"""Bounds of the outputs that configurations of experiments 2 to 5 ask for, in one mode: numbers, memory and time.

    python benchmarks/parallel/of_config.py --exp 5 --mode single --configs exp_configs/parallel/exp5_4096x4.yaml \
        --tiles 512 2048 --out figures.jsonl
    torchrun --nproc_per_node=2 benchmarks/parallel/of_config.py --exp 2 --mode tp --configs \
        exp_configs/parallel/exp2_onnx_256x6.yaml

One mode per process. Only without a GPU several may be given (`--modes`): no memory is measured there. A figure has the
bounds themselves (ten outputs), the smallest and largest outputs at sampled inputs, and what memory is used for.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from auto_LiRPA.bounds.methods import Bounds, Method, Query, compute  # noqa: E402
from auto_LiRPA.errors import UserError  # noqa: E402
from auto_LiRPA.graph.ir import Graph  # noqa: E402
from auto_LiRPA.graph.run import evaluate  # noqa: E402
from auto_LiRPA.parallel.context import DistributedContext  # noqa: E402
from auto_LiRPA.parallel.numerics import full_precision  # noqa: E402
from auto_LiRPA.parallel.store import ParameterStore  # noqa: E402
from auto_LiRPA.values import Box  # noqa: E402
from benchmarks.parallel import asking, building, measuring  # noqa: E402
from benchmarks.parallel.parts import parts  # noqa: E402

MIB = measuring.MIB


def main() -> None:
    """Every mode, configuration, method and tile height."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--exp", type=int, required=True)
    parser.add_argument("--modes", "--mode", nargs="+", choices=measuring.MODES, required=True)
    parser.add_argument("--configs", nargs="+", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", help="default: what the configuration says")
    parser.add_argument("--tiles", nargs="+", help="default: what the configuration says")
    parser.add_argument("--block-mib", type=float, help="default: what the configuration says")
    parser.add_argument("--data", type=Path, help="VNN-COMP folders, if not where the configuration says")
    parser.add_argument("--hidden", type=int, help="width of drawn networks instead of the configuration's")
    parser.add_argument("--samples", type=int, default=0, help="inputs at which the network is evaluated, too")
    parser.add_argument("--split", action="store_true", help="say what the memory is used for")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if len(options.modes) > 1 and torch.cuda.is_available():
        parser.error("one mode per process where memory is measured")
    held = [asking.asked(path, options.data, options.hidden) for path in options.configs]
    context = None
    with torch.no_grad(), full_precision():
        for mode in options.modes:
            for one in held:
                context = measuring.join(one.settings(mode, None, options.block_mib))
                _one_net(context, options, mode, one)
                measuring.release(context)
    assert context is not None
    context.close()


def _one_net(context: DistributedContext, options: argparse.Namespace, mode: str, one: asking.Asked) -> None:
    """All methods and tile heights on one network."""
    began = time.perf_counter()
    graph, store = one.built(context)
    measuring.wait(context)
    build_s = time.perf_counter() - began
    measuring.release(context)
    region = one.region(graph, context.device)
    head: measuring.Figures = {
        "what": "of_config",
        "exp": options.exp,
        "net": one.name,
        "mode": mode,
        "build_s": round(build_s, 2),
        "resident_built_mib": measuring.allocated(context),
    }
    if one.size is not None:
        weights = building.mlp_bytes(*one.size) / MIB
        head |= {"h": one.size[0], "d": one.size[1], "weights_mib": round(weights, 2)}
    if mode.startswith("tp"):
        head["pairs"] = asking.pairs(graph)
    if options.samples:
        head |= _sampled(graph, region, options.samples)
    for name in options.methods or [one.method.value]:
        for tile in options.tiles or [None]:
            _one_height(context, options, one, head, (graph, store, region), mode, Method.named(name), tile)


def _one_height(
    context: DistributedContext,
    options: argparse.Namespace,
    one: asking.Asked,
    head: measuring.Figures,
    network: tuple[Graph, ParameterStore, Box],
    mode: str,
    method: Method,
    tile: str | None,
) -> None:
    graph, store, region = network
    settings = one.settings(mode, tile, options.block_mib)
    at_height = asking.in_mode(context, settings)

    def run(where: DistributedContext = at_height) -> Bounds:
        return compute(graph, region, Query(), method, where, one.bounds)

    lower, upper = _both(run())
    mine: measuring.Figures = {"digest": measuring.digest((lower, upper))}
    numbers = {"lower": lower.flatten().tolist(), "upper": upper.flatten().tolist()}
    del lower, upper
    mine |= measuring.measure(at_height, run, options.repeats, options.warmup)
    mine["weight_mib"] = round(store.weight_bytes() / MIB, 4)
    mine["whole_mib"] = round(asking.whole_bytes(graph) / MIB, 4)
    if options.split:
        mine["parts_mib"] = parts(at_height, run, store, mine.get("peak_mib"))
    told = {
        **head,
        "method": method.name,
        "tile": settings.tile_rows,
        "block_mib": settings.block_mib,
        "prefetch": settings.prefetch,
        **numbers,
    }
    measuring.tell(context, told, mine, options.out)


def _both(found: Bounds) -> tuple[Tensor, Tensor]:
    assert found.lower is not None and found.upper is not None
    return found.lower.bound, found.upper.bound


def _sampled(graph: Graph, region: Box, count: int) -> measuring.Figures:
    """Smallest and largest outputs at random inputs of the box and of its corners."""
    gen = torch.Generator().manual_seed(2)
    share = torch.rand(count, *graph.input_shape, generator=gen).to(region.lower)
    share[: count // 2] = share[: count // 2].round()
    y = evaluate(graph, region.lower + share * (region.upper - region.lower)).flatten(1)
    return {"samples": count, "sampled_min": y.amin(0).tolist(), "sampled_max": y.amax(0).tolist()}


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")

"""Tensor parallelism against one GPU: how far output bounds part, and that they hold at sampled inputs.

    torchrun --nproc_per_node=2 benchmarks/parallel/tp_error.py --nets 1024x4 4096x4 8192x4 4096x8 --out figures.jsonl

Every rank also bounds the whole network by itself, after the shared run has been released.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from auto_LiRPA.bounds.methods import Method, Query, compute  # noqa: E402
from auto_LiRPA.bounds.settings import AlphaSettings, BoundSettings  # noqa: E402
from auto_LiRPA.graph.ir import Graph  # noqa: E402
from auto_LiRPA.graph.run import evaluate  # noqa: E402
from auto_LiRPA.parallel.context import DistributedContext  # noqa: E402
from auto_LiRPA.parallel.numerics import full_precision  # noqa: E402
from auto_LiRPA.values import Box  # noqa: E402
from benchmarks.parallel import building, measuring  # noqa: E402


def main() -> None:
    """Every net and method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", default=["1024x4", "4096x4", "8192x4", "4096x8"])
    parser.add_argument("--methods", nargs="+", default=["IBP", "CROWN"])
    parser.add_argument("--interm", choices=("exact", "ibp"), default="exact")
    parser.add_argument("--tile", default="512")
    parser.add_argument("--eps", type=float, default=0.02)
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    mode = "tp" if options.interm == "exact" else "tp-ibp"
    context = measuring.join(measuring.settings_of(mode, options.tile))
    alone = replace(context.alone(), settings=measuring.settings_of("single", options.tile))
    with torch.no_grad(), full_precision():
        for net in options.nets:
            hidden, depth = (int(part) for part in net.split("x"))
            x = torch.rand(1, 784, generator=torch.Generator().manual_seed(1)).to(context.device)
            region = Box(x - options.eps, x + options.eps)
            shared = _bounds(context, hidden, depth, region, options.methods)[0]
            measuring.release(context)
            single, graph = _bounds(alone, hidden, depth, region, options.methods)
            gen = torch.Generator().manual_seed(2)
            share = torch.rand(options.samples, 784, generator=gen).to(x)
            y = evaluate(graph, region.lower + share.round() * (region.upper - region.lower)).flatten(1)
            for method in options.methods:
                _tell(context, options, net, method, shared[method], single[method], y)
            del graph, shared, single
            measuring.release(context)
    context.close()


def _bounds(
    context: DistributedContext, hidden: int, depth: int, region: Box, methods: list[str]
) -> tuple[dict[str, tuple[Tensor, Tensor]], Graph]:
    graph, _ = building.mlp(context, hidden, depth)
    settings = BoundSettings(compare_with_ibp=False, alpha=AlphaSettings(lr_alpha=0.1))
    found = {}
    for name in methods:
        one = compute(graph, region, Query(), Method.named(name), context, settings)
        assert one.lower is not None and one.upper is not None
        found[name] = (one.lower.bound, one.upper.bound)
    return found, graph


def _tell(
    context: DistributedContext,
    options: argparse.Namespace,
    net: str,
    method: str,
    shared: tuple[Tensor, Tensor],
    single: tuple[Tensor, Tensor],
    y: Tensor,
) -> None:
    pairs = list(zip(shared, single, strict=True))
    slack = 1e-5 * (1 + y.abs())
    head = {
        "what": "tp_error",
        "net": net,
        "method": method,
        "interm": options.interm,
        "error": max(float(((a - b).abs() / (1 + b.abs())).max()) for a, b in pairs),
        "relative_error": max(float(((a - b).abs() / b.abs()).max()) for a, b in pairs),
        "width_ratio": float((shared[1] - shared[0]).sum() / (single[1] - single[0]).sum()),
        "violations": int(((y < shared[0] - slack) | (y > shared[1] + slack)).sum()),
        "samples": options.samples,
    }
    measuring.tell(context, head, {"digest": measuring.digest(shared)}, options.out)


if __name__ == "__main__":
    main()

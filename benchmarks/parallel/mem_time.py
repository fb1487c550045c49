"""Memory and time of one bounding call in one mode (DESIGN 6): CROWN on the MLPs of experiment 5.

    python benchmarks/parallel/mem_time.py --mode single --h 4096 --d 4 --tile 512 --out figures.jsonl
    torchrun --nproc_per_node=2 benchmarks/parallel/mem_time.py --mode fsdp+rows --nets 1024x4 4096x4 --tiles 512 2048

Modes: single, offload (one process or more), fsdp, rows, fsdp+rows, offload+rows, tp, tp-ibp (the paper's). One mode
per process; several nets and tile heights may be measured in it one after the other. Weights are made layer by layer on
the host, so no GPU ever holds more of them than its mode keeps. `digests` has one entry if all ranks have equal bits.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from auto_LiRPA.bounds.methods import Method, Query, compute  # noqa: E402
from auto_LiRPA.bounds.settings import AlphaSettings, BoundSettings  # noqa: E402
from auto_LiRPA.parallel.context import DistributedContext  # noqa: E402
from auto_LiRPA.parallel.numerics import full_precision  # noqa: E402
from auto_LiRPA.parallel.recording import NoRecorder  # noqa: E402
from auto_LiRPA.values import Box  # noqa: E402
from benchmarks.parallel import building, measuring  # noqa: E402

MIB = measuring.MIB


def main() -> None:
    """Measure every net at every tile height."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", choices=measuring.MODES, required=True)
    parser.add_argument("--h", type=int, default=4096)
    parser.add_argument("--d", type=int, default=4)
    parser.add_argument("--tile", default="512")
    parser.add_argument("--nets", nargs="+", help="several, as 4096x4 (h x d), instead of --h and --d")
    parser.add_argument("--tiles", nargs="+", help="several, instead of --tile")
    parser.add_argument("--input-dim", type=int, default=784)
    parser.add_argument("--eps", type=float, default=0.02)
    parser.add_argument("--method", default="CROWN")
    parser.add_argument("--iterations", type=int, default=20, help="of alpha-CROWN")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--compare", action="store_true", help="intersect with interval bounds")
    parser.add_argument("--no-recording", action="store_true", help="launch every tile's work anew")
    parser.add_argument("--models", type=Path, help="folder where weights are kept, and mapped from")
    parser.add_argument("--save", type=Path, help="folder for the bounds themselves")
    measuring.add_common(parser)
    options = parser.parse_args()
    first = measuring.settings_of(options.mode, "auto", options.block_mib, not options.no_prefetch)
    context = measuring.join(first)
    with torch.no_grad(), full_precision():
        for net in options.nets or [f"{options.h}x{options.d}"]:
            one_net(context, options, *(int(part) for part in net.split("x")))
            measuring.release(context)
    context.close()


def one_net(context: DistributedContext, options: argparse.Namespace, hidden: int, depth: int) -> None:
    """All tile heights on one network."""
    # buffers as large as this net's blocks, not as those of the net before
    context = context.with_new_buffers()
    if options.no_recording:
        context = replace(context, recorder=NoRecorder())
    began = time.perf_counter()
    graph, store = building.mlp(context, hidden, depth, options.input_dim, seed=options.seed, folder=options.models)
    measuring.wait(context)
    build_s = time.perf_counter() - began
    measuring.release(context)
    built = measuring.allocated(context)
    gen = torch.Generator().manual_seed(1)
    x = torch.rand(1, options.input_dim, generator=gen).to(context.device)
    region = Box(x - options.eps, x + options.eps)
    alpha = AlphaSettings(iterations=options.iterations, lr_alpha=0.1)
    settings = BoundSettings(compare_with_ibp=options.compare, alpha=alpha)
    method = Method.named(options.method)
    for tile in options.tiles or [options.tile]:
        chosen = measuring.settings_of(options.mode, tile, options.block_mib, not options.no_prefetch)
        at_height = replace(context, settings=chosen)

        def run(at_height: DistributedContext = at_height) -> Any:
            return compute(graph, region, Query(), method, at_height, settings)

        first = measuring.FirstBounds()
        mine = measuring.measure(at_height, run, options.repeats, options.warmup, options.enough_s, first.look)
        lower, upper = first.lower, first.upper
        mine["digest"] = measuring.digest((lower, upper))
        sums = {"lb_sum": float(lower.double().sum()), "ub_sum": float(upper.double().sum())}
        if options.save and context.rank == 0:
            options.save.mkdir(parents=True, exist_ok=True)
            name = f"{options.mode}-{context.world_size}-{hidden}x{depth}-{tile}.pt"
            torch.save({"lower": lower.cpu(), "upper": upper.cpu()}, options.save / name)
        mine["resident_built_mib"] = built
        mine["weight_mib"] = round(store.weight_bytes() / MIB, 2)
        head = {
            "what": "mem_time",
            "mode": options.mode,
            "h": hidden,
            "d": depth,
            "tile": tile,
            "method": options.method,
            "block_mib": options.block_mib,
            "prefetch": not options.no_prefetch,
            "recorded": not options.no_recording,
            "weights_mib": round(building.mlp_bytes(hidden, depth, options.input_dim) / MIB, 2),
            "build_s": round(build_s, 2),
            **sums,
        }
        measuring.tell(context, head, mine, options.out)


if __name__ == "__main__":
    main()

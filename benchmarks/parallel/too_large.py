"""A network whose weights are 1.3 times the memory that a GPU may use, bounded by CROWN all the same.

    python benchmarks/parallel/too_large.py --mode offload --out figures.jsonl
    torchrun --nproc_per_node=2 benchmarks/parallel/too_large.py --mode fsdp+rows --out figures.jsonl
    python benchmarks/parallel/too_large.py --mode single          # has to run out of memory

The memory of each process is capped by `torch.cuda.set_per_process_memory_fraction` before anything is made. Without a
GPU nothing is capped, and the run only shows that the script works.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from auto_LiRPA.bounds.methods import Method, Query, compute  # noqa: E402
from auto_LiRPA.bounds.settings import BoundSettings  # noqa: E402
from auto_LiRPA.graph.run import evaluate  # noqa: E402
from auto_LiRPA.parallel.numerics import full_precision  # noqa: E402
from auto_LiRPA.values import Box  # noqa: E402
from benchmarks.parallel import building, measuring  # noqa: E402

MIB = measuring.MIB


def main() -> None:
    """One bounding call under the cap."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", choices=measuring.MODES, required=True)
    parser.add_argument("--h", type=int, default=16384)
    parser.add_argument("--d", type=int, default=6)
    parser.add_argument("--tile", default="512")
    parser.add_argument("--excess", type=float, default=1.3, help="weights as a multiple of the memory allowed")
    parser.add_argument("--eps", type=float, default=0.001)
    measuring.add_common(parser)
    options = parser.parse_args()
    context = measuring.join(
        measuring.settings_of(options.mode, options.tile, options.block_mib, not options.no_prefetch)
    )
    weights = building.mlp_bytes(options.h, options.d)
    cap = weights / options.excess
    head: measuring.Figures = {
        "what": "too_large",
        "mode": options.mode,
        "h": options.h,
        "d": options.d,
        "tile": options.tile,
        "weights_mib": round(weights / MIB, 1),
        "cap_mib": round(cap / MIB, 1),
    }
    if context.device.type == "cuda":
        total = torch.cuda.get_device_properties(context.device).total_memory
        torch.cuda.set_per_process_memory_fraction(cap / total, context.device)
        torch.cuda.reset_peak_memory_stats(context.device)
    mine: measuring.Figures = {}
    try:
        with torch.no_grad(), full_precision():
            began = time.perf_counter()
            graph, store = building.mlp(context, options.h, options.d)
            head["build_s"] = round(time.perf_counter() - began, 2)
            x = torch.rand(1, 784, generator=torch.Generator().manual_seed(1)).to(context.device)
            began = time.perf_counter()
            region = Box(x - options.eps, x + options.eps)
            found = compute(graph, region, Query(), Method.CROWN, context, BoundSettings())
            measuring.wait(context)
            mine["ms"] = round(1e3 * (time.perf_counter() - began), 1)
            assert found.lower is not None and found.upper is not None
            lower, upper = found.lower.bound, found.upper.bound
            gen = torch.Generator().manual_seed(2)
            inside = x + options.eps * (2 * torch.rand(64, 784, generator=gen).to(x) - 1)
            y = evaluate(graph, inside).flatten(1)
            slack = 1e-4 * (1 + y.abs())
            head["sound"] = bool(((y >= lower - slack) & (y <= upper + slack)).all())
            head["width"] = round(float((upper - lower).max()), 4)
            mine |= {"digest": measuring.digest([lower, upper]), "weight_mib": round(store.weight_bytes() / MIB, 1)}
            mine["live_blocks_max"] = context.counters.live_blocks_max
    except torch.OutOfMemoryError as error:
        head["out_of_memory"] = str(error).splitlines()[0][:160]
    if context.device.type == "cuda":
        mine["peak_mib"] = round(torch.cuda.max_memory_allocated(context.device) / MIB, 1)
        mine["reserved_mib"] = round(torch.cuda.max_memory_reserved(context.device) / MIB, 1)
        free, whole = torch.cuda.mem_get_info(context.device)
        mine["process_mib"] = round((whole - free) / MIB, 1)
    measuring.tell(context, head, mine, options.out)
    context.close()


if __name__ == "__main__":
    main()

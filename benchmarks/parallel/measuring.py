"""What every measurement does alike (DESIGN 6): warm-up, repeats, peaks, traffic, digests; rank 0 writes the figures.

One mode per process. Results are dropped between repeats. Peak: `max_memory_allocated` after a reset; reserved:
`max_memory_reserved`; process: what the driver counts on the GPU, the CUDA context included.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.settings import ParallelSettings

ROOT = Path(__file__).resolve().parent.parent.parent
MIB = 2**20
Figures = dict[str, Any]
MODES = ("single", "offload", "fsdp", "rows", "fsdp+rows", "offload+rows", "tp", "tp-ibp", "fsdp+rows/2", "tp+rows/2")


def settings_of(
    mode: str, tile: int | str = "auto", block_mib: float = 16.0, prefetch: bool = True
) -> ParallelSettings:
    """The `parallel:` section that a mode's name stands for. MODE/N: a mesh, groups of N ranks share the weights."""
    name, _, group = mode.partition("/")
    weights, _, rows = name.partition("+")
    where: Any = {"rows": "single", "tp-ibp": "tp"}.get(weights, weights)
    return ParallelSettings(
        mode=where,
        rows="shard" if "rows" in (weights, rows) else "replicate",
        domains="replicate",
        mesh={"weights": int(group), "rows": world_size() // int(group)} if group else None,
        tile_rows=tile if tile == "auto" else int(tile),
        block_mib=block_mib,
        prefetch=prefetch,
        tp_intermediate="ibp" if mode == "tp-ibp" else "exact",
        timeout_s=120,
        threads=cpu_threads(),
        backend=backend(int(os.environ.get("LOCAL_WORLD_SIZE", "1"))),
    )


def join(settings: ParallelSettings) -> DistributedContext:
    """This process's context, on its GPU if there is one; CUDA and cuBLAS exist afterwards."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    context = DistributedContext.from_env(settings, "cuda" if torch.cuda.is_available() else "cpu")
    if context.device.type == "cuda":
        torch.zeros(8, 8, device=context.device) @ torch.zeros(8, 8, device=context.device)
        torch.cuda.synchronize()
    return context


def add_common(parser: argparse.ArgumentParser) -> None:
    """Options of every script."""
    add_repeats(parser)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--block-mib", type=float, default=16.0)
    parser.add_argument("--no-prefetch", action="store_true")
    parser.add_argument("--out", type=Path, default=None, help="figures are appended to this file, one JSON a line")


def add_repeats(parser: argparse.ArgumentParser) -> None:
    """How often a pass is measured."""
    parser.add_argument("--repeats", type=int, default=3, help="passes that are measured, at most")
    parser.add_argument("--enough-s", type=float, default=math.inf,
                        help="no further pass once they have taken so long together")  # fmt: skip


def measure(
    context: DistributedContext,
    run: Callable[[], Any],
    repeats: int,
    warmup: int,
    enough_s: float = math.inf,
    look: Callable[[Any], None] | None = None,
) -> Figures:
    """Times, peaks and traffic of ``run``, this rank's own.

    The peak is that of the warm-up too, in which passes are recorded: what replays use is not allocated any more. Time
    within recorded collectives is not known, so traffic and its share are those of one more run that records nothing.

    Args:
        repeats, enough_s: how many passes are measured at most (`repeated`).
        look: is given the result of the first pass, which then is one of the warm-up. What it allocates counts as well.
    """
    recorder = context.recorder
    recorder.forget()
    wait(context)
    release(context)
    if context.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(context.device)
    least = warmup if look is None else max(1, warmup)
    for number in range(max(2, least) if warmup and recorder.works else least):
        result = run()
        if look is not None and number == 0:
            look(result)
        del result
    wait(context)
    release(context)
    resident = allocated(context)
    before, replays = traffic(context), context.counters.replays

    def one() -> float:
        return timed(context, run)

    times = repeated(context, one, repeats, enough_s)
    watched, replayed = times, context.counters.replays - replays
    moved = moved_since(context, before, len(times))
    # a run of all ranks, so all make it or none
    if context.world.some(replayed > 0 and any(kind["calls"] for kind in moved.values())):
        with recorder.paused():
            before = traffic(context)
            watched = repeated(context, one, 1)
        moved = moved_since(context, before, 1)
    busy_ms = sum(kind["ms"] for kind in moved.values())
    figures: Figures = {
        "ms": round(1e3 * statistics.median(times), 2),
        "all_ms": [round(1e3 * t, 2) for t in times],
        "traffic": moved,
        "traffic_mib": round(sum(kind["mib"] for kind in moved.values()), 1),
        "traffic_share": round(busy_ms / (1e3 * sum(watched) / len(watched)), 3),
        "live_blocks_max": context.counters.live_blocks_max,
        "replays": replayed / len(times),
        "resident_mib": resident,
    }
    if context.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(context.device)
        figures["peak_mib"] = round(torch.cuda.max_memory_allocated(context.device) / MIB, 1)
        figures["reserved_mib"] = round(torch.cuda.max_memory_reserved(context.device) / MIB, 1)
        figures["process_mib"] = round((total - free) / MIB, 1)
        release(context)
        figures["resident_after_mib"] = allocated(context)
    return figures


class FirstBounds:
    """Keeps the bounds of the first pass, and nothing else of it, while others are measured."""

    lower: Tensor
    upper: Tensor

    def look(self, found: Any) -> None:
        """See `measure`."""
        self.lower, self.upper = found.lower.bound.clone(), found.upper.bound.clone()


def repeated(
    context: DistributedContext, one: Callable[[], float], most: int, enough_s: float = math.inf
) -> list[float]:
    """What ``one`` returns, its seconds: ``most`` times, or until all together took ``enough_s`` on some rank.

    Before each all ranks wait for each other, by asking whether it is enough: the same answer, and the same passes.
    """
    times: list[float] = []
    while len(times) < max(1, most) and not context.world.some(sum(times) >= enough_s > 0):
        times.append(one())
    return times


def timed(context: DistributedContext, run: Callable[[], Any]) -> float:
    """Seconds until this rank's GPU is done; the result is dropped."""
    wait(context)
    began = time.perf_counter()
    result = run()
    wait(context)
    seconds = time.perf_counter() - began
    del result
    return seconds


def moved_since(context: DistributedContext, before: dict[str, tuple[int, int, float]], runs: int) -> Figures:
    """By kind of collective: calls, MiB and milliseconds of each of so many runs."""
    moved: Figures = {}
    for kind, (calls, size, busy) in traffic(context).items():
        old = before.get(kind, (0, 0, 0.0))
        moved[kind] = {
            "calls": (calls - old[0]) / runs,
            "mib": round((size - old[1]) / runs / MIB, 2),
            "ms": round(1e3 * (busy - old[2]) / runs, 2),
        }
    return moved


def traffic(context: DistributedContext) -> dict[str, tuple[int, int, float]]:
    """Calls, bytes and seconds by kind so far; waits for the GPU."""
    context.counters.settle()
    return {kind: (one.calls, one.bytes, one.seconds) for kind, one in context.counters.collectives.items()}


def wait(context: DistributedContext) -> None:
    """Until the GPU is done."""
    if context.device.type == "cuda":
        torch.cuda.synchronize(context.device)


def release(context: DistributedContext) -> None:
    """Give cached memory back."""
    if context.device.type == "cuda":
        torch.cuda.empty_cache()


def allocated(context: DistributedContext) -> float | None:
    """MiB of tensors on the GPU now, cuBLAS's workspace included."""
    return round(torch.cuda.memory_allocated(context.device) / MIB, 1) if context.device.type == "cuda" else None


def digest(tensors: Iterable[Tensor]) -> str:
    """The first 16 letters of the SHA-256 of the tensors' bytes: equal digests mean equal bits."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def storage_bytes(found: object) -> int:
    """Bytes of all storages that tensors below ``found`` use, each storage once."""
    sizes: dict[int, int] = {}
    seen: set[int] = set()
    pending = [found]
    while pending:
        one = pending.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, Tensor):
            sizes[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
        elif isinstance(one, dict):
            pending += one.values()
        elif isinstance(one, list | tuple | set):
            pending += one
        elif hasattr(one, "__slots__") or hasattr(one, "__dict__"):
            names = [name for kind in type(one).__mro__ for name in getattr(kind, "__slots__", ())]
            pending += [getattr(one, name, None) for name in [*names, *getattr(one, "__dict__", {})]]
    return sum(sizes.values())


def tell(context: DistributedContext, head: Figures, mine: Figures, out: Path | None) -> Figures | None:
    """Rank 0 prints and appends ``head`` with every rank's figures; the slowest rank's time counts. Others: None."""
    every = context.world.objects(mine)
    if context.rank:
        return None
    worst = {
        key: max(one[key] for one in every)
        for key in ("ms", "peak_mib", "reserved_mib", "process_mib", "resident_mib", "weight_mib", "traffic_share")
        if all(isinstance(one.get(key), int | float) for one in every)
    }
    told = {
        **head,
        "world": context.world_size,
        "device": torch.cuda.get_device_name(context.device) if context.device.type == "cuda" else "cpu",
        "gpus": torch.cuda.device_count(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "command": command(context.world_size),
        **worst,
        "digests": sorted({one["digest"] for one in every if "digest" in one}),
        "ranks": every,
    }
    line = json.dumps(told)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with open(out, "a", encoding="utf-8") as file:
            file.write(line + "\n")
    left_out = ("ranks", "torch", "device", "gpus", "date", "command")
    shown = {key: value for key, value in told.items() if key not in left_out}
    print(json.dumps(shown), flush=True)
    return told


def command(ranks: int) -> str:
    """What to type in the repository to measure this again, with the networks where the configurations say."""
    words = [os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]]
    for option in ("--out", "--data"):
        if option in words:
            at = words.index(option)
            del words[at : at + 2]
    words = [word.removeprefix(f"{ROOT}{os.sep}") for word in words]
    head = f"torchrun --nproc_per_node={ranks}" if ranks > 1 else "python"
    return f"{head} {shlex.join(words)}"


def world_size() -> int:
    """How many ranks torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def backend(local_ranks: int) -> Any:
    """Ranks that share a GPU talk through gloo: their times say nothing, but their bits and bytes do."""
    return "gloo" if 0 < torch.cuda.device_count() < local_ranks else "auto"


def cpu_threads() -> Any:
    """One on a machine without GPUs: bits on a CPU depend on the number, which ranks would otherwise divide."""
    return "auto" if torch.cuda.is_available() else 1

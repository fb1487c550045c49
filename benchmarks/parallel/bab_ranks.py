"""Branch and bound of one instance on ranks that share its domains: counts, bounds, stored bytes, domains a second.

    python benchmarks/parallel/bab_ranks.py --config exp_configs/parallel/exp6_bab_512.yaml
    torchrun --nproc_per_node=2 benchmarks/parallel/bab_ranks.py --config exp_configs/parallel/exp6_bab_512.yaml \
        --mode fsdp+domains
    torchrun --nproc_per_node=2 benchmarks/parallel/bab_ranks.py --onnx N.onnx --vnnlib P.vnnlib --schedule free

The settings are those of ``--config``, or the paper's fair ones (20 iterations, lr_alpha 0.1, lr_beta 0.03, kFSB, no
pruning). Synchronous: as many rounds as these say; the warm-up is a whole search, and `digests` is over the ids and
bounds of all domains that came into any rank's store in it, so equal digests mean the same tree with the same bounds.
With ``--repeats 1`` two rounds are the warm-up, and one search gives both, for placements whose searches take long.
Free-running: the same rates, early ends, until ``--seconds`` are over. Stored bytes are the most that a rank's store
held after any round (``open``: domains, of ``columns`` splittable neurons each; ``slabs_mib``: with the slots that are
free); the transient of a tile is the peak without what was there before the search and without those.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from auto_LiRPA.parallel.context import DistributedContext  # noqa: E402
from auto_LiRPA.parallel.numerics import full_precision  # noqa: E402
from auto_LiRPA.parallel.settings import ParallelSettings  # noqa: E402
from benchmarks.bab import FAIR  # noqa: E402
from benchmarks.parallel import measuring  # noqa: E402
from complete_verifier.bab import schedule_synchronous  # noqa: E402
from complete_verifier.bab import search as searching  # noqa: E402
from complete_verifier.bab.search import search  # noqa: E402
from complete_verifier.bab.settings import BabResult, BabSettings  # noqa: E402
from complete_verifier.bab.store import DomainStore  # noqa: E402
from complete_verifier.config import Config, load_config  # noqa: E402
from complete_verifier.driver.choices import bab_settings, bound_settings, incomplete_settings  # noqa: E402
from complete_verifier.driver.questions import FileReader  # noqa: E402
from complete_verifier.incomplete.result import IncompleteResult  # noqa: E402
from complete_verifier.incomplete.stage import run_incomplete  # noqa: E402
from complete_verifier.problem import Clock, Problem  # noqa: E402

MIB = measuring.MIB
Where = Literal["single", "fsdp", "offload"]
# Where weights live, and whether domains are shared out.
PLACEMENTS: dict[str, tuple[Where, Literal["shard", "replicate"]]] = {
    "single": ("single", "replicate"),
    "offload": ("offload", "replicate"),
    "fsdp": ("fsdp", "replicate"),
    "domains": ("single", "shard"),
    "fsdp+domains": ("fsdp", "shard"),
    "offload+domains": ("offload", "shard"),
}


def main() -> None:
    """For each placement the incomplete stage and a warm-up, then the searches."""
    options = _options()
    several = measuring.world_size() > 1
    given = options.placements or [_placement(options.mode, several)]
    with ExitStack() as stack:
        if options.job:
            stack.enter_context(mock.patch.object(schedule_synchronous, "SYNCHRONOUS_TILE", options.job))
            stack.enter_context(mock.patch.object(searching, "SYNCHRONOUS_TILE", options.job))
        for name in given:
            where, domains = PLACEMENTS[name]
            settings = ParallelSettings(
                mode=where,
                rows="replicate",
                domains=domains,
                block_mib=options.block_mib,
                prefetch=not options.no_prefetch,
                timeout_s=120,
                threads=measuring.cpu_threads(),
                backend=measuring.backend(int(os.environ.get("LOCAL_WORLD_SIZE", "1"))),
            )
            context = measuring.join(settings)
            label = options.mode if options.placements is None else name
            _search(context, options, label)
    context.close()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, help="question and settings; --onnx, --vnnlib and --batch replace its")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of the configuration")
    parser.add_argument("--onnx")
    parser.add_argument("--vnnlib")
    parser.add_argument("--schedule", choices=("synchronous", "free"), default="synchronous")
    parser.add_argument("--batch", type=int, nargs="+")
    parser.add_argument("--rounds", type=int, default=10, help="of the synchronous schedule without --config")
    parser.add_argument("--seconds", type=float, default=20.0, help="of the free-running schedule")
    parser.add_argument("--mode", choices=("single", "fsdp", "offload"), default="single",
                        help="of the weights; several ranks share domains out")  # fmt: skip
    parser.add_argument("--placements", nargs="+", choices=tuple(PLACEMENTS),
                        help="instead of --mode; several only where no memory is measured")  # fmt: skip
    parser.add_argument("--job", type=int, help="children of a job of the synchronous schedule, instead of 1024")
    measuring.add_common(parser)
    options = parser.parse_args()
    if options.config is None and (options.onnx is None or options.vnnlib is None):
        parser.error("give --config, or --onnx and --vnnlib")
    return options


def _placement(mode: str, several: bool) -> str:
    if not several:
        return mode
    return "domains" if mode == "single" else f"{mode}+domains"


def _search(context: DistributedContext, options: argparse.Namespace, label: str) -> None:
    config = _config(options, context)
    problem, start = _start(config, context)
    free = options.schedule == "free"
    if options.config is None:
        chosen = replace(FAIR, synchronous=not free, max_iterations=-1 if free else options.rounds)
    else:
        chosen = bab_settings(config)
        chosen = replace(chosen, synchronous=False, max_iterations=-1) if free else chosen
    with torch.no_grad(), full_precision():
        first = options.batch or [chosen.batch_size]
        if options.config is None or free or options.repeats == 1:
            search(_with_seconds(problem, 600.0), start, replace(chosen, max_iterations=2, batch_size=first[0]))
        gc.collect()
        gc.freeze()  # as the command does: what was imported is not looked through while a round waits
        for batch in first:
            _measure(problem, start, replace(chosen, batch_size=batch), options, label)


def _config(options: argparse.Namespace, context: DistributedContext) -> Config:
    words = ["--device", context.device.type]
    for name, value in (("--onnx_path", options.onnx), ("--vnnlib_path", options.vnnlib)):
        words += [] if value is None else [name, value]
    for pair in options.set:
        words += ["--set", pair]
    if options.config is None:
        words += ["--init_iteration", "20", "--lr_init_alpha", "0.1"]
    else:
        words += ["--config", str(options.config)]
    return load_config(words).config


def _start(config: Config, context: DistributedContext) -> tuple[Problem, IncompleteResult]:
    clock = Clock(time.monotonic(), 1e6)
    assert config.model.onnx_path is not None and config.specification.vnnlib_path is not None
    network, specification = Path(config.model.onnx_path), Path(config.specification.vnnlib_path)
    question = FileReader(network, specification)(config, context, bound_settings(config), clock)
    with full_precision():
        return question.problem, run_incomplete(question.problem, incomplete_settings(config, 1e6))


def _with_seconds(problem: Problem, seconds: float) -> Problem:
    return replace(problem, clock=Clock(time.monotonic(), seconds))


@dataclass
class _Seen:
    """What came into this rank's store."""

    ids: list[Tensor] = field(default_factory=list)
    lower: list[Tensor] = field(default_factory=list)
    most: int = 0
    most_bytes: int = 0
    slab_bytes: int = 0
    columns: int = 0


def _measure(
    problem: Problem, start: IncompleteResult, settings: BabSettings, options: argparse.Namespace, label: str
) -> None:
    context = problem.context
    free = options.schedule == "free"
    seconds, repeats = options.seconds if free else 600.0, 1
    seen = _Seen()
    # a search for the warm-up and the digest, others for the figures
    apart = options.config is not None and not free and options.repeats > 1
    if apart:
        repeats = options.repeats
        context.world.barrier()
        _timed(problem, start, settings, seconds, seen, keep=True)
        digest = _digest(context, seen)
        seen = _Seen()
    gc.collect()
    measuring.release(context)
    before = 0.0
    if context.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(context.device)
        before = torch.cuda.memory_allocated(context.device) / MIB
    moved_before = measuring.traffic(context)
    results: list[BabResult] = []

    def one_search() -> float:
        found, took = _timed(problem, start, settings, seconds, seen, keep=not (free or apart))
        results.append(found)
        gc.collect()  # nothing that is left over counts with the next search
        return took

    times = measuring.repeated(context, one_search, repeats, options.enough_s)
    found, took = results[-1], statistics.median(times)
    moved = measuring.traffic(context)
    busy = {kind: (one[2] - moved_before.get(kind, (0, 0, 0.0))[2]) / len(times) for kind, one in moved.items()}
    size = sum(one[1] for one in moved.values()) - sum(one[1] for one in moved_before.values())
    mine: measuring.Figures = {
        "ms": round(1e3 * took, 1),
        "all_ms": [round(1e3 * one, 1) for one in times],
        "stored_mib": round(seen.most_bytes / MIB, 3),
        "slabs_mib": round(seen.slab_bytes / MIB, 3),
        "open": seen.most,
        "columns": seen.columns,
        "traffic_mib": round(size / len(times) / MIB, 2),
        "traffic_s": {kind: round(one, 3) for kind, one in busy.items()},
        "traffic_share": round(min(1.0, sum(busy.values()) / took), 3),
        "resident_mib": measuring.allocated(context),
        "weight_mib": round(measuring.storage_bytes(problem.graph.weights) / MIB, 3),
    }
    if context.device.type == "cuda":
        mine |= _device_memory(context.device, before + mine["stored_mib"])
    if not free:
        mine["digest"] = digest if apart else _digest(context, seen)
    head = {
        "what": "bab_ranks",
        "exp": 6,
        "schedule": options.schedule,
        "mode": label,
        "batch": settings.batch_size,
        "rounds": found.rounds,
        "domains": found.domains_visited,
        "domains_per_s": round(found.domains_visited / took),
        "worst_bound": found.worst_bound,
        "closed": found.closed,
        "stopped_by": found.stopped_by,
        "verdict": "unsat" if found.closed else "unknown",
    }
    told = measuring.tell(context, head, mine, options.out)
    if told is not None:
        print("stored MiB a rank:", [one["stored_mib"] for one in told["ranks"]])


def _device_memory(device: torch.device, lasting_mib: float) -> measuring.Figures:
    """Peaks of the device; ``lasting_mib``: of what was there before, and of what the search stores."""
    free_bytes, total = torch.cuda.mem_get_info(device)
    peak = round(torch.cuda.max_memory_allocated(device) / MIB, 1)
    return {
        "peak_mib": peak,
        "reserved_mib": round(torch.cuda.max_memory_reserved(device) / MIB, 1),
        "process_mib": round((total - free_bytes) / MIB, 1),
        "transient_mib": round(peak - lasting_mib, 1),
    }


def _timed(
    problem: Problem, start: IncompleteResult, settings: BabSettings, seconds: float, seen: _Seen, keep: bool
) -> tuple[BabResult, float]:
    """One search and its seconds; nothing of it but counts is left."""
    context = problem.context
    measuring.wait(context)
    with _watched(seen, keep):
        began = time.perf_counter()
        found = search(_with_seconds(problem, seconds), start, settings)
        measuring.wait(context)
        return found, time.perf_counter() - began


def _digest(context: DistributedContext, seen: _Seen) -> str:
    """Over all ranks' domains by id, each once; a domain that two ranks hold with different bounds spoils it."""
    mine = (torch.cat(seen.ids), torch.cat(seen.lower)) if seen.ids else (torch.zeros(0), torch.zeros(0))
    every = context.world.objects(mine)
    pairs = sorted({pair for ids, lower in every for pair in zip(ids.tolist(), lower.tolist(), strict=True)})
    return measuring.digest([torch.tensor(pairs, dtype=torch.float64)])


def _held(store: DomainStore[Any]) -> int:
    """Bytes of the device that a store holds for domains, taken or free."""
    return store.use().device_bytes


@contextmanager
def _watched(seen: _Seen, keep: bool) -> Iterator[None]:
    """Notes how much the stores hold, and (``keep``) the id and bound of every domain that is added."""
    original = DomainStore.add

    def add(self: DomainStore[Any], domains: Any, margin: Tensor) -> None:
        original(self, domains, margin)
        seen.most, seen.columns = max(seen.most, len(self)), int(domains.sign.shape[1])
        seen.most_bytes, seen.slab_bytes = max(seen.most_bytes, self.bytes()), max(seen.slab_bytes, _held(self))
        if keep:
            # to the host: the GPU's memory is what is measured
            seen.ids.append(domains.id.to("cpu", copy=True))
            seen.lower.append(domains.lower.to("cpu", copy=True))

    DomainStore.add = add  # type: ignore[method-assign]
    try:
        yield
    finally:
        DomainStore.add = original  # type: ignore[method-assign]


if __name__ == "__main__":
    main()

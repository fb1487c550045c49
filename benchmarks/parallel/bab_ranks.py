"""Branch and bound of one instance on ranks that share its domains: counts, bounds, stored bytes, domains a second.

    python benchmarks/parallel/bab_ranks.py --onnx N.onnx --vnnlib P.vnnlib --schedule synchronous --batch 4096
    torchrun --nproc_per_node=2 benchmarks/parallel/bab_ranks.py --onnx N.onnx --vnnlib P.vnnlib --schedule free

Synchronous: the paper's fair settings (20 iterations, lr_alpha 0.1, lr_beta 0.03, kFSB, no pruning) for ``--rounds``;
`digests` is over the ids and bounds of all domains that came into any rank's store, so equal digests mean the same tree
with the same bounds. Free-running: the same rates, early ends, until ``--seconds`` are over. Stored bytes are the most
that a rank's store held after any round; the transient of a tile is the peak without what was there before the search
and without those.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from auto_LiRPA.parallel.context import DistributedContext  # noqa: E402
from auto_LiRPA.parallel.numerics import full_precision  # noqa: E402
from auto_LiRPA.parallel.settings import ParallelSettings  # noqa: E402
from benchmarks.bab import FAIR  # noqa: E402
from benchmarks.parallel import measuring  # noqa: E402
from complete_verifier.bab.search import search  # noqa: E402
from complete_verifier.bab.settings import BabSettings  # noqa: E402
from complete_verifier.bab.store import DomainStore  # noqa: E402
from complete_verifier.config import load_config  # noqa: E402
from complete_verifier.driver.choices import bound_settings  # noqa: E402
from complete_verifier.driver.questions import FileReader  # noqa: E402
from complete_verifier.incomplete.result import IncompleteResult  # noqa: E402
from complete_verifier.incomplete.settings import IncompleteSettings  # noqa: E402
from complete_verifier.incomplete.stage import run_incomplete  # noqa: E402
from complete_verifier.problem import Clock, Problem  # noqa: E402

MIB = measuring.MIB


def main() -> None:
    """The incomplete stage, a warm-up of two rounds, one search a batch size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--onnx", required=True)
    parser.add_argument("--vnnlib", required=True)
    parser.add_argument("--schedule", choices=("synchronous", "free"), required=True)
    parser.add_argument("--batch", type=int, nargs="+", default=[4096])
    parser.add_argument("--rounds", type=int, default=10, help="of the synchronous schedule")
    parser.add_argument("--seconds", type=float, default=20.0, help="of the free-running schedule")
    parser.add_argument("--mode", choices=("single", "fsdp", "offload"), default="single", help="of the weights")
    measuring.add_common(parser)
    options = parser.parse_args()
    several = measuring.world_size() > 1
    settings = ParallelSettings(
        mode=options.mode,
        rows="replicate",
        domains="shard" if several else "replicate",
        block_mib=options.block_mib,
        prefetch=not options.no_prefetch,
        timeout_s=120,
        threads=measuring.cpu_threads(),
    )
    context = measuring.join(settings)
    problem, start = _start(options.onnx, options.vnnlib, context)
    chosen = FAIR if options.schedule == "synchronous" else replace(FAIR, synchronous=False)
    with torch.no_grad(), full_precision():
        warm = replace(chosen, max_iterations=2, batch_size=options.batch[0])
        search(_with_seconds(problem, 600.0), start, warm)
        for batch in options.batch:
            _measure(problem, start, replace(chosen, batch_size=batch), options)
    context.close()


def _start(onnx: str, vnnlib: str, context: DistributedContext) -> tuple[Problem, IncompleteResult]:
    words = ["--onnx_path", onnx, "--vnnlib_path", vnnlib, "--init_iteration", "20", "--lr_init_alpha", "0.1"]
    config = load_config([*words, "--device", context.device.type]).config
    clock = Clock(time.monotonic(), 1e6)
    question = FileReader(Path(onnx), Path(vnnlib))(config, context, bound_settings(config), clock)
    with full_precision():
        return question.problem, run_incomplete(question.problem, IncompleteSettings())


def _with_seconds(problem: Problem, seconds: float) -> Problem:
    return replace(problem, clock=Clock(time.monotonic(), seconds))


@dataclass
class _Seen:
    """What came into this rank's store."""

    ids: list[Tensor] = field(default_factory=list)
    lower: list[Tensor] = field(default_factory=list)
    most_bytes: int = 0


def _measure(problem: Problem, start: IncompleteResult, settings: BabSettings, options: argparse.Namespace) -> None:
    context = problem.context
    free = options.schedule == "free"
    seconds = options.seconds if free else 600.0
    settings = replace(settings, max_iterations=-1 if free else options.rounds)
    seen = _Seen()
    measuring.release(context)
    before = 0.0
    if context.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(context.device)
        before = torch.cuda.memory_allocated(context.device) / MIB
    moved_before = measuring.traffic(context)
    context.world.barrier()
    measuring.wait(context)
    with _watched(seen, keep=not free):
        began = time.perf_counter()
        found = search(_with_seconds(problem, seconds), start, settings)
        measuring.wait(context)
        took = time.perf_counter() - began
    busy = {kind: one[2] - moved_before.get(kind, (0, 0, 0.0))[2] for kind, one in measuring.traffic(context).items()}
    mine: measuring.Figures = {
        "ms": round(1e3 * took, 1),
        "stored_mib": round(seen.most_bytes / MIB, 2),
        "traffic_s": {kind: round(seconds, 3) for kind, seconds in busy.items()},
    }
    if context.device.type == "cuda":
        mine["peak_mib"] = round(torch.cuda.max_memory_allocated(context.device) / MIB, 1)
        mine["reserved_mib"] = round(torch.cuda.max_memory_reserved(context.device) / MIB, 1)
        mine["transient_mib"] = round(mine["peak_mib"] - before - mine["stored_mib"], 1)
    if not free:
        mine["digest"] = _digest(context, seen)
    head = {
        "what": "bab_ranks",
        "schedule": options.schedule,
        "mode": options.mode,
        "batch": settings.batch_size,
        "rounds": found.rounds,
        "domains": found.domains_visited,
        "domains_per_s": round(found.domains_visited / took),
        "worst_bound": found.worst_bound,
        "closed": found.closed,
        "stopped_by": found.stopped_by,
    }
    told = measuring.tell(context, head, mine, options.out)
    if told is not None:
        print("stored MiB a rank:", [one["stored_mib"] for one in told["ranks"]])


def _digest(context: DistributedContext, seen: _Seen) -> str:
    """Over all ranks' domains by id, each once; a domain that two ranks hold with different bounds spoils it."""
    mine = (torch.cat(seen.ids).cpu(), torch.cat(seen.lower).cpu()) if seen.ids else (torch.zeros(0), torch.zeros(0))
    every = context.world.objects(mine)
    pairs = sorted({pair for ids, lower in every for pair in zip(ids.tolist(), lower.tolist(), strict=True)})
    return measuring.digest([torch.tensor(pairs, dtype=torch.float64)])


@contextmanager
def _watched(seen: _Seen, keep: bool) -> Iterator[None]:
    """Notes how much the stores hold, and (``keep``) the id and bound of every domain that is added."""
    original = DomainStore.add

    def add(self: DomainStore[Any], domains: Any, margin: Tensor) -> None:
        original(self, domains, margin)
        seen.most_bytes = max(seen.most_bytes, self.bytes())
        if keep:
            seen.ids.append(domains.id.clone())
            seen.lower.append(domains.lower.clone())

    DomainStore.add = add  # type: ignore[method-assign]
    try:
        yield
    finally:
        DomainStore.add = original  # type: ignore[method-assign]


if __name__ == "__main__":
    main()

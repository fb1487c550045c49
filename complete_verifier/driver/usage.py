"""Memory and work of a rank, for the statistics."""

from __future__ import annotations

import os
import resource

import torch

from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.store import MIB, ParameterStore
from complete_verifier.reporting.report import Collective, Placement, RankUse


def start_measuring(device: torch.device) -> None:
    """Peaks count from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def resident_mib(device: torch.device) -> float | None:
    """Memory held now: allocated tensors on a GPU, the process's resident set on the CPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / MIB
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB
    except (OSError, IndexError, ValueError):
        return None


def rank_use(context: DistributedContext, store: ParameterStore | None, resident: float | None) -> RankUse:
    """What this rank used. On the CPU the process's largest resident set stands for both peaks."""
    device = context.device
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        allocated, reserved = (
            torch.cuda.max_memory_allocated(device) / MIB,
            torch.cuda.max_memory_reserved(device) / MIB,
        )
        process: float | None = (total - free) / MIB  # as the driver reports it: the context and all processes included
    else:
        allocated, reserved, process = largest, largest, largest
    counters = context.counters
    counters.settle()
    return RankUse(
        rank=context.rank,
        device=str(device),
        resident_mib=resident,
        weight_mib=0.0 if store is None else store.weight_bytes() / MIB,
        peak_allocated_mib=allocated,
        peak_reserved_mib=reserved,
        process_mib=process,
        tiles=counters.tiles,
        live_blocks_max=counters.live_blocks_max,
        collectives={
            kind: Collective(traffic.calls, traffic.bytes / MIB, traffic.seconds)
            for kind, traffic in counters.collectives.items()
        },
    )


def placement(context: DistributedContext) -> Placement:
    """The parallel section as it acted."""
    settings = context.settings
    return Placement(
        world_size=context.world_size,
        mode=context.mode,
        rows="shard" if context.rows.size > 1 else "replicate",
        domains="shard" if context.domains.size > 1 else "replicate",
        tile_rows=settings.tile_rows,
        block_mib=settings.block_mib,
    )

"""Contexts over ranks that the caller has brought together itself (`torch.distributed.init_process_group`)."""

from __future__ import annotations

import torch
import torch.distributed as dist

from auto_LiRPA.errors import ConfigError
from auto_LiRPA.parallel.axes import AXES, resolve_axes
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.counters import Counters
from auto_LiRPA.parallel.groups import Group, alone
from auto_LiRPA.parallel.settings import ParallelSettings


def existing_world(world_size: int, rank: int | None = None, counters: Counters | None = None) -> Group:
    """All ranks of the process group that there is.

    Raises:
        ConfigError: there is none, or one of other size or order.
    """
    counters = counters or Counters()
    if world_size == 1:
        return alone(counters)
    if not dist.is_available() or not dist.is_initialized():
        raise ConfigError(
            f"world_size = {world_size}: these ranks have not met; call torch.distributed.init_process_group first"
        )
    mine, size = dist.get_rank(), dist.get_world_size()
    if size != world_size or rank not in (None, mine):
        raise ConfigError(
            f"world_size = {world_size}, rank = {rank}: the process group has {size} ranks, and this is number {mine}"
        )
    through_host = dist.get_backend() == "gloo"
    return Group(mine, size, counters, tuple(range(size)), dist.group.WORLD, through_host=through_host)


def existing_context(
    settings: ParallelSettings, device: torch.device, world_size: int, rank: int | None = None
) -> DistributedContext:
    """A context over those ranks, every axis over all of them or none. The number of threads stays the caller's.

    Raises:
        ConfigError: as `existing_world`, or the settings contradict the number of ranks.
    """
    if world_size == 1:
        return DistributedContext.single(device, settings)
    if settings.mesh is not None:
        raise ConfigError("parallel.mesh: not for a process group of the caller's; use DistributedContext.from_env")
    axes = resolve_axes(settings, world_size)
    counters = Counters()
    world = existing_world(world_size, rank, counters)
    one = alone(counters)
    weights, rows, domains = (world if getattr(axes, axis) > 1 else one for axis in AXES)
    return DistributedContext(
        rank=world.rank,
        world_size=world_size,
        local_rank=device.index or 0,
        device=device,
        settings=settings,
        counters=counters,
        mode=axes.mode,
        world=world,
        weights=weights,
        rows=rows,
        domains=domains,
        lockstep=axes.weights > 1 and (axes.rows > 1 or axes.domains > 1),
    )

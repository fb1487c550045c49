"""Which store a mode means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from auto_LiRPA.parallel.host_copies import HostCopies
from auto_LiRPA.parallel.host_store import HostStore
from auto_LiRPA.parallel.sharded_store import ShardedStore
from auto_LiRPA.parallel.store import LocalStore, ParameterStore

if TYPE_CHECKING:
    from auto_LiRPA.parallel.context import DistributedContext


def make_store(context: DistributedContext) -> ParameterStore:
    """An empty store of the context's mode. Tensor parallelism begins with whole weights, which it cuts up itself."""
    settings, buffers = context.settings, context.buffers
    if context.mode == "fsdp":
        reads_peers = settings.backend != "nccl" and context.device.type == "cuda"
        return ShardedStore(
            settings.block_mib, context.weights, buffers, context.device, settings.prefetch, reads_peers
        )
    if context.mode == "offload":
        return HostStore(
            settings.block_mib, buffers, context.device, context.counters, settings.prefetch, context.world
        )
    if context.mode == "tp" and context.weights.size > 1:
        return HostCopies(settings.block_mib)
    return LocalStore(settings.block_mib)

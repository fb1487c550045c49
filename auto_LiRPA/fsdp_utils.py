"""Sharded weights under the names of an earlier code base; `BoundedModule(..., parallel=...)` is ours."""

from __future__ import annotations

import logging

from torch import Tensor

from auto_LiRPA.bounded_module import BoundedModule
from auto_LiRPA.node_views import BoundNode
from auto_LiRPA.parallel.existing import existing_context
from auto_LiRPA.parallel.settings import ParallelSettings
from auto_LiRPA.parallel.store import LocalWeight, Weight

_LOG = logging.getLogger(__name__)
_MIB = 2**20


def fsdp_shard_bounded_module(
    model: BoundedModule, world_size: int, rank: int, dummy_input: Tensor | None = None
) -> None:
    """Keep 1/P of every large weight of ``model`` on each rank of the present process group, in place.

    The module's own parameters move to the host's memory, or the device would hold them as before. Every rank bounds
    all rows, as it did there.

    Args:
        dummy_input: not needed.

    Raises:
        ConfigError: there is no process group of ``world_size`` ranks in which this is number ``rank``.
    """
    settings = ParallelSettings(mode="fsdp", rows="replicate", domains="replicate")
    context = existing_context(settings, model.device, world_size, rank)
    if world_size == 1:
        return
    model.to("cpu")
    model.distribute(context)
    weights = {id(w): w for w in (getattr(node.op, "weight", None) for node in model.nodes()) if isinstance(w, Weight)}
    sizes = [w.numel * w.dtype.itemsize for w in weights.values() if not isinstance(w, LocalWeight)]
    saved = sum(sizes) * (world_size - 1) / world_size / _MIB
    _LOG.info("[FSDP] Sharded %d weight tensors across %d GPUs (saved %.1f MB / rank)", len(sizes), world_size, saved)


def fsdp_gather_node(node: BoundNode) -> None:
    """Does nothing: the blocks of a weight are gathered when they are multiplied by."""
    _LOG.warning("fsdp_gather_node: does not act: weights are gathered block by block when they are used")


def fsdp_free_node(node: BoundNode) -> None:
    """Does nothing: a block is given back as soon as the next one is asked for."""


def fsdp_free_gathered_weights(model: BoundedModule) -> None:
    """Does nothing: no gathered block outlives its use."""

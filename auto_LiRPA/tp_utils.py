"""Tensor parallelism under the name of an earlier code base; `BoundedModule(..., parallel=...)` is ours."""

from __future__ import annotations

from torch import Tensor

from auto_LiRPA.bounded_module import BoundedModule
from auto_LiRPA.operators.conv import Conv
from auto_LiRPA.operators.linear import Linear
from auto_LiRPA.parallel.existing import existing_context
from auto_LiRPA.parallel.settings import ParallelSettings
from auto_LiRPA.parallel.store import Weight

_PART = "/part"  # what the graph's rewriting calls the product before its sum


def tp_shard_bounded_module(
    model: BoundedModule, world_size: int, rank: int, dummy_input: Tensor | None = None
) -> list[str]:
    """Split the pairs of weights of ``model`` over the ranks of the present process group, in place.

    Bounds inside the pairs are exact, not intervals as they were there.

    Args:
        dummy_input: not needed.

    Returns:
        The names of the nodes whose weights are split.

    Raises:
        ConfigError: there is no process group of ``world_size`` ranks in which this is number ``rank``.
    """
    context = existing_context(ParallelSettings(mode="tp"), model.device, world_size, rank)
    if world_size == 1:
        return []
    whole = {node.name: weight.shape for node in model.nodes() if (weight := _weight(node.op)) is not None}
    model.to("cpu")
    model.distribute(context)
    names = []
    for node in model.nodes():
        weight, name = _weight(node.op), node.name.removesuffix(_PART)
        if weight is not None and weight.shape != whole[name]:
            names.append(name)
    return names


def _weight(op: object) -> Weight | None:
    return op.weight if isinstance(op, Linear | Conv) else None

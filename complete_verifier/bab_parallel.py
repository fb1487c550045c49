"""Batches of sub-problems as an earlier code base shared them out; `parallel.domains: shard` is ours.

A batch is a dictionary of tensors and lists with the sub-problems along axis 0; slopes (`alphas`) have them on axis 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from auto_LiRPA.errors import ConfigError
from auto_LiRPA.parallel.existing import existing_world

_SLOPES, _SLOPES_AXIS = "alphas", 2


def scatter_domain_dict(d: Mapping[str, Any], rank: int, world_size: int) -> dict[str, Any]:
    """This rank's run of the sub-problems: as equal as they can be, the first ranks have one more.

    Raises:
        ConfigError: there is nothing in it to count sub-problems by, or entries disagree on their number.
    """
    count = _count(d)
    start, stop = (count * i // world_size for i in (rank, rank + 1))
    return {key: _cut(value, slice(start, stop), count, _axis(key)) for key, value in d.items()}


def gather_result_dict(local_ret: Mapping[str, Any], world_size: int) -> dict[str, Any]:
    """The results of all ranks, in their order; every rank of the present process group has to call it.

    Raises:
        ConfigError: there is no process group of ``world_size`` ranks.
    """
    parts = existing_world(world_size).objects(dict(local_ret))
    return {key: _join([part[key] for part in parts], _axis(key)) for key in local_ret}


def _axis(key: str) -> int:
    return _SLOPES_AXIS if key == _SLOPES else 0


def _count(d: Mapping[str, Any]) -> int:
    sizes = {size for key, value in d.items() for size in _sizes(value, _axis(key))}
    if len(sizes) != 1:
        raise ConfigError(f"scatter_domain_dict: entries have {sorted(sizes) or 'no'} sub-problems; expected one")
    return sizes.pop()


def _sizes(value: Any, axis: int) -> Iterator[int]:
    if isinstance(value, Tensor):
        if value.ndim > axis:
            yield value.shape[axis]
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _sizes(entry, axis)
    elif isinstance(value, list | tuple):
        yield len(value)


def _cut(value: Any, rows: slice, count: int, axis: int) -> Any:
    if isinstance(value, Tensor):
        return value.narrow(axis, rows.start, rows.stop - rows.start) if value.ndim > axis else value
    if isinstance(value, Mapping):
        return {key: _cut(entry, rows, count, axis) for key, entry in value.items()}
    return value[rows] if isinstance(value, list | tuple) else value


def _join(parts: Sequence[Any], axis: int) -> Any:
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat([part.to(first.device) for part in parts], axis) if first.ndim > axis else first
    if isinstance(first, Mapping):
        return {key: _join([part[key] for part in parts], axis) for key in first}
    if isinstance(first, list | tuple):
        kind: Callable[[list[Any]], Any] = type(first)
        return kind([entry for part in parts for entry in part])
    return first

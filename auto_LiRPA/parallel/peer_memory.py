"""GPUs of one host that read each other's memory: a copy takes no part of the other's time, and none of its cores.

NCCL's collectives run as kernels that compete with the products they are meant to be hidden behind; copies between
peers are made by the copy engines (measured in docs/parallel.md).
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from auto_LiRPA.parallel.groups import Group


def open_peers(group: Group, own: Tensor) -> tuple[Tensor, ...] | None:
    """Every rank's tensor as seen from this rank's GPU; None where some rank cannot read another's memory.

    All ranks of the group have to ask, with tensors of one shape and dtype whose content does not change any more.
    """
    if group.size == 1 or not own.is_cuda or own.numel() == 0:
        return None
    place: tuple[str, str] = socket.gethostname(), str(torch.cuda.get_device_properties(own.device).uuid)
    places = group.objects(place)
    if len({host for host, _ in places}) > 1:
        return None
    if not group.every(_reaches(own.device, [uuid for _, uuid in places])):
        return None
    # the other ranks open it as if it were on their own device: so no rank sets foot on another's GPU
    handles = group.objects(_handles(group, own))
    found: list[Tensor] = []
    failed = False
    for given in handles:
        handle = given[group.rank]
        if handle is None:
            found.append(own)
            continue
        try:
            found.append(_opened(handle, own))
        except RuntimeError:
            failed = True
            break
    return None if group.some(failed) else tuple(found)


def _reaches(device: torch.device, uuids: Sequence[str]) -> bool:
    index = {str(torch.cuda.get_device_properties(i).uuid): i for i in range(torch.cuda.device_count())}
    own = device.index
    return all(
        uuid in index and (index[uuid] == own or torch.cuda.can_device_access_peer(own, index[uuid])) for uuid in uuids
    )


def _handles(group: Group, own: Tensor) -> list[tuple[Any, ...] | None]:
    """One for every other rank, by rank: each gives its own back, and only then is the memory free for other use."""
    storage = own.untyped_storage()
    return [None if rank == group.rank else storage._share_cuda_() for rank in range(group.size)]


def _opened(handle: tuple[Any, ...], like: Tensor) -> Tensor:
    storage = torch.UntypedStorage._new_shared_cuda(like.device.index, *handle[1:])
    empty = torch.empty(0, dtype=like.dtype, device=like.device)
    return empty.set_(storage, like.storage_offset(), like.shape, like.stride())

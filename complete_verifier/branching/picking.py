"""Picking the best columns of each domain on the device: ties go to the first column, nothing waits for a result."""

from __future__ import annotations

import torch
from torch import Tensor

# Odd multipliers and shifts of splitmix64 (Steele, Lea, Flood 2014), as signed numbers: int64 products wrap around.
_STEP = -0x61C8864680B583EB
_MIX = ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15))
_LAST_SHIFT = 31


def best_columns(key: Tensor, count: int) -> Tensor:
    """The ``count`` largest entries of each row of ``key`` ``[D, U]``, best first: ``[D, count]``.

    There must be no NaN. Entries that are -inf are never picked: -1 stands where a row has too few. `argmax` names the
    first of equal entries, which a top-k does not promise; the few that are wanted cost one reduction each.
    """
    rest, picked = key, []
    for number in range(min(count, key.shape[1])):
        at = rest.argmax(1, keepdim=True)
        picked.append(torch.where(rest.gather(1, at) > -torch.inf, at, -1))
        if number + 1 < count:
            rest = rest.scatter(1, at, -torch.inf)
    missing = count - len(picked)
    if missing:
        picked.append(torch.full((key.shape[0], missing), -1, dtype=torch.int64, device=key.device))
    return torch.cat(picked, 1)


def open_keys(values: Tensor, allowed: Tensor) -> Tensor:
    """Keys for `best_columns`: ``values`` where ``allowed``, finite there (NaN counts as 0), and -inf elsewhere."""
    return torch.where(allowed, torch.nan_to_num(values), -torch.inf)


def without(mask: Tensor, columns: Tensor) -> Tensor:
    """``mask`` ``[D, U]`` with the named columns ``[D, K]`` (-1: none) cleared."""
    # one spare column takes what -1 names
    wide = torch.cat([mask, mask[:, :1]], 1)
    target = torch.where(columns < 0, mask.shape[1], columns)
    return wide.scatter(1, target, False)[:, :-1]


def random_keys(seed: int, ids: Tensor, depth: Tensor, width: int) -> Tensor:
    """Numbers in [0, 1) ``[D, width]`` that depend on the seed, the domain and the column alone.

    So a search picks the same neurons however its domains are batched, on any number of ranks and after a restart; a
    generator's state would depend on all of that.
    """
    column = torch.arange(width, dtype=torch.int64, device=ids.device)
    state = _mix(_mix(_mix(ids.long() + _wrapped(seed * _STEP)).unsqueeze(1) + depth.long().unsqueeze(1)) + column)
    # 24 bits are exact in float32
    return ((state >> 40) & 0xFFFFFF).to(torch.float32) / 2**24


def _wrapped(number: int) -> int:
    """The number modulo 2^64 as a signed one."""
    return (number + 2**63) % 2**64 - 2**63


def _mix(x: Tensor) -> Tensor:
    x = x + _STEP
    for shift, factor in _MIX:
        x = (x ^ _shifted(x, shift)) * factor
    return x ^ _shifted(x, _LAST_SHIFT)


def _shifted(x: Tensor, by: int) -> Tensor:
    """Shift to the right that brings in zeros, not the sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)

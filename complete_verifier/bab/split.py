"""Children of domains: every chosen neuron takes both signs; the children of a domain cover it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from complete_verifier.bab.domains import Domains


def split(parents: Domains, columns: Tensor, first_id: int, block_ids: int | None = None, step: int = 1) -> Domains:
    """Split each parent at the neurons ``columns`` ``[D, L]`` (every one a splittable neuron of its parent).

    Returns 2^L blocks of children, each block holding one child of every parent in order, the "+" half first. New
    splits start at beta 0; slopes and bounds are inherited. A column of -1 splits nothing: such a parent comes back
    2^L times, for the caller to sort out.

    Ids lie ``step`` apart within a block, which begins ``block_ids`` (None: all of a block's ids) after the one before.
    """
    count, levels = columns.shape
    blocks = 2**levels
    parent = torch.arange(count, device=columns.device).repeat(blocks)
    children = parents.pick(parent)
    block = torch.arange(blocks, device=columns.device).repeat_interleave(count)
    sign, value = children.sign, children.value  # picked: nobody else's
    for level in range(levels):
        bit = ((block >> (levels - 1 - level)) & 1).to(sign.dtype)
        sign, value = with_split(sign, value, columns[:, level].repeat(blocks), 1 - 2 * bit)
    place = torch.arange(count, device=columns.device) * step + first_id
    ids = (torch.arange(blocks, device=columns.device) * (block_ids or count * step)).unsqueeze(1) + place
    return replace(children, id=ids.flatten(), depth=children.depth + levels, sign=sign, value=value)


def with_split(sign: Tensor, value: Tensor, column: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
    """One more split in each domain, in place: ``column`` ``[D]`` (-1: none) takes ``side`` ``[D]``, with beta 0."""
    at = column.clamp_min(0).unsqueeze(1)
    none = (column < 0).unsqueeze(1)
    new_sign = torch.where(none, sign.gather(1, at), side.unsqueeze(1).to(sign.dtype))
    new_value = torch.where(none, value.gather(1, at), 0.0)
    return sign.scatter_(1, at, new_sign), value.scatter_(1, at, new_value.to(value.dtype))

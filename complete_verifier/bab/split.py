"""Children of domains: every chosen neuron takes both signs; the children of a domain cover it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from complete_verifier.bab.domains import Domains


def split(parents: Domains, columns: Tensor, first_id: int) -> tuple[Domains, Tensor]:
    """Split each parent at the neurons ``columns`` ``[D, L]`` (every one a splittable neuron of its parent).

    Returns 2^L blocks of children, each block holding one child of every parent, the "+" half first, and the parents'
    positions ``[2^L * D]``. New splits start at beta 0; slopes and bounds are inherited.
    """
    count, levels = columns.shape
    blocks = 2**levels
    parent = torch.arange(count, device=columns.device).repeat(blocks)
    children = parents.pick(parent)
    block = torch.arange(blocks, device=columns.device).repeat_interleave(count)
    sign = children.sign.clone()
    for level in range(levels):
        bit = (block >> (levels - 1 - level)) & 1
        sign.scatter_(1, columns[:, level][parent].unsqueeze(1), (1 - 2 * bit).to(sign.dtype).unsqueeze(1))
    ids = torch.arange(first_id, first_id + blocks * count, device=columns.device)
    return replace(children, id=ids, depth=children.depth + levels, sign=sign), parent

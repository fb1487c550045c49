"""A weight in one piece, for the few places that cannot work block by block."""

from __future__ import annotations

import torch
from torch import Tensor

from auto_LiRPA.parallel.store import LocalWeight, Weight


def whole(weight: Weight, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Tensor:
    """All rows of a weight, without gradient; converted and moved block by block if asked.

    A collective where weights are sharded: all ranks that share them call it, at the same place. What comes back may
    be the parameter itself, so it is not to be written to.
    """
    dtype, device = dtype or weight.dtype, device or weight.device
    if isinstance(weight, LocalWeight):
        return weight.tensor.detach().to(device, dtype)
    out = torch.empty(weight.shape, dtype=dtype, device=device)
    for block in weight.blocks():
        out[block.start : block.stop] = block.data
    return out

"""Whole weights in the host's memory: tensor parallelism cuts each rank's slices from them, so no GPU holds all."""

from __future__ import annotations

import torch
from torch import Tensor

from auto_LiRPA.parallel.store import Check, LocalStore, Weight, as_own


class HostCopies(LocalStore):
    """Copies of a network's weights on the host, for as long as it is being cut up."""

    shares = False
    takes_constants = False
    device = torch.device("cpu")

    def place(self, tensor: Tensor) -> Weight:
        return super().place(as_own(tensor, tensor.dtype, self.device))

    def load(self, source: Tensor, dtype: torch.dtype, device: torch.device, check: Check) -> Weight:
        own = as_own(source, dtype, self.device)
        check(own)
        return super().place(own)

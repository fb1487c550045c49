"""Linear maps of the last axis by a constant matrix: Gemm and MatMul with constants."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from auto_LiRPA.operators.base import LinearOperator
from auto_LiRPA.parallel.store import Weight


@dataclass(frozen=True)
class Linear(LinearOperator):
    """``y = x W^T + b`` over the last axis. ``weight``: ``[out, in]`` in row blocks; ``bias``: ``[out]`` or None."""

    weight: Weight
    bias: Tensor | None = None

    def bias_values(self) -> Tensor | None:
        return self.bias

    def apply(self, *inputs: Tensor) -> Tensor:
        return self._times(inputs[0], absolute=False)

    def apply_abs(self, *inputs: Tensor) -> Tensor:
        return self._times(inputs[0], absolute=True)

    def _times(self, x: Tensor, absolute: bool) -> Tensor:
        parts = []
        for block in self.weight.blocks():
            parts.append(torch.matmul(x, (block.data.abs() if absolute else block.data).T))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def transpose(self, coef: Tensor) -> tuple[Tensor, ...]:
        """``coef W``, summed block by block in the store's order (the same order in every store)."""
        flat = coef.reshape(-1, self.weight.shape[0])
        out: Tensor | None = None
        in_place = not (torch.is_grad_enabled() and (flat.requires_grad or self.weight.requires_grad))
        for block in self.weight.blocks():
            piece = flat[:, block.start : block.stop]
            if out is None:
                out = piece @ block.data
            elif in_place:
                out.addmm_(piece, block.data)
            else:
                out = torch.addmm(out, piece, block.data)
        assert out is not None
        return (out.reshape(*coef.shape[:-1], self.weight.shape[1]),)

    def bias_dot(self, coef: Tensor) -> Tensor | None:
        if self.bias is None:
            return None
        dot = coef @ self.bias
        return dot if coef.ndim == 2 else dot.flatten(1).sum(1)

    def rows(self, index: Tensor, host: Sequence[int]) -> Tensor:
        """Rows ``index`` (sorted) of the weight, ``[len(index), in]``: the first step of a pass that starts here.

        ``host``: the same indices on the host, so that cutting them by block costs no synchronisation.
        """
        parts = []
        for block in self.weight.blocks():
            first, last = bisect_left(host, block.start), bisect_left(host, block.stop)
            if first < last:
                parts.append(block.data.index_select(0, index[first:last] - block.start))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

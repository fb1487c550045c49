"""Linear maps of the last axis by a constant matrix: Gemm and MatMul with constants."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from auto_LiRPA.operators.adjoint import LinearMap, linear_step
from auto_LiRPA.operators.base import LinearOperator
from auto_LiRPA.parallel.store import Weight
from auto_LiRPA.values import Interval


@dataclass(frozen=True)
class Linear(LinearOperator):
    """``y = x W^T + b`` over the last axis. ``weight``: ``[out, in]`` in row blocks; ``bias``: ``[out]`` or None."""

    weight: Weight
    bias: Tensor | None = None
    recordable: ClassVar[bool] = True

    def bias_values(self) -> Tensor | None:
        return self.bias

    def apply(self, *inputs: Tensor) -> Tensor:
        return self._step(inputs[0], self._times, self._times_transposed)

    def apply_abs(self, *inputs: Tensor) -> Tensor:
        there, back = partial(self._times, absolute=True), partial(self._times_transposed, absolute=True)
        return self._step(inputs[0], there, back)

    def transpose(self, coef: Tensor) -> tuple[Tensor, ...]:
        """``coef W``, summed block by block in the store's order (the same order in every store)."""
        return (self._step(coef, self._times_transposed, self._times),)

    def _step(self, x: Tensor, there: LinearMap, back: LinearMap) -> Tensor:
        return there(x) if self.weight.requires_grad else linear_step(x, there, back)

    def _center_and_radius(self, pairs: tuple[Interval, ...]) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled():
            return super()._center_and_radius(pairs)
        (pair,) = pairs  # in one walk over the blocks: each is fetched once
        center, radius = (pair.lower + pair.upper) / 2, (pair.upper - pair.lower) / 2
        found = [(center @ block.data.T, radius @ block.data.abs().T) for block in self.weight.blocks()]
        return torch.cat([part[0] for part in found], -1), torch.cat([part[1] for part in found], -1)

    def _times(self, x: Tensor, absolute: bool = False) -> Tensor:
        parts = []
        for block in self.weight.blocks():
            parts.append(torch.matmul(x, (block.data.abs() if absolute else block.data).T))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def _times_transposed(self, coef: Tensor, absolute: bool = False) -> Tensor:
        flat = coef.reshape(-1, self.weight.shape[0])
        out: Tensor | None = None
        in_place = not (torch.is_grad_enabled() and (flat.requires_grad or self.weight.requires_grad))
        for block in self.weight.blocks():
            data = block.data.abs() if absolute else block.data
            piece = flat[:, block.start : block.stop]
            if out is None:
                out = piece @ data
            elif in_place:
                out.addmm_(piece, data)
            else:
                out = torch.addmm(out, piece, data)
        assert out is not None
        return out.reshape(*coef.shape[:-1], self.weight.shape[1])

    def bias_dot(self, coef: Tensor) -> Tensor | None:
        if self.bias is None:
            return None
        dot = coef @ self.bias
        return dot if coef.ndim == 2 else dot.flatten(1).sum(1)

    def rows(self, index: Tensor, host: Sequence[int], out: Tensor | None = None) -> Tensor:
        """Rows ``index`` (sorted) of the weight, ``[len(index), in]``: the first step of a pass that starts here.

        ``host``: the same indices on the host, so that cutting them by block costs no synchronisation. ``out``: where
        to put the rows.
        """

        def needed(start: int, stop: int) -> bool:
            return bisect_left(host, start) < bisect_left(host, stop)

        parts = []
        for block in self.weight.blocks_where(needed):
            first, last = bisect_left(host, block.start), bisect_left(host, block.stop)
            place = None if out is None else out[first:last]
            parts.append(torch.index_select(block.data, 0, index[first:last] - block.start, out=place))
        if out is not None:
            return out
        return parts[0] if len(parts) == 1 else torch.cat(parts)

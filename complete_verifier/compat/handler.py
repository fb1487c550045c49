"""The in-memory property that hooks are given (`vnnlibHandler`, interface 4)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from complete_verifier.compat.read_vnnlib import Compiled, compiled_form
from complete_verifier.spec.property import Property


@dataclass(frozen=True, slots=True)
class AllSpecs:
    """Every (box, clause) pair as one batch element; unequal clauses are padded with c = 0, rhs = inf."""

    batch_size: int
    x: Tensor  # [num_or, *input], the middle of each box
    data_min: Tensor
    data_max: Tensor
    c: Tensor  # [num_or, max_and, n_out]
    rhs: Tensor  # [num_or, max_and]
    or_spec_size: Tensor  # [num_or]
    same_x_range: bool
    same_or_spec_size: bool


class SpecHandler:
    """What a hook may look at: boxes, rows and clauses of the instance at work. It is a copy."""

    def __init__(self, prop: Property, input_shape: tuple[int, ...]) -> None:
        pairs = [(region, clause) for region in prop.regions for clause in region.clauses]
        lower, upper = (
            torch.from_numpy(np.stack([ends[side] for ends in ((r.box.lo, r.box.hi) for r, _ in pairs)]))
            .to(torch.get_default_dtype())
            .reshape(len(pairs), *input_shape)
            for side in (0, 1)
        )
        self._prop = prop
        self.data_min, self.data_max = lower, upper
        self.x = (lower + upper) / 2
        self.c = _tensor([clause.mat for _, clause in pairs], (0, prop.n_outputs))  # [num_spec, n_out]
        self.rhs = _tensor([clause.rhs for _, clause in pairs], (0,))  # [num_spec]
        self.or_spec_size = torch.tensor([len(clause.rows) for _, clause in pairs])
        self.input_shape = [-1, *input_shape]
        self.is_linf_norm = all(region.ball is None for region in prop.regions)

    @cached_property
    def vnnlib(self) -> Compiled:
        """The compiled form."""
        return compiled_form(self._prop)

    @cached_property
    def all_specs(self) -> AllSpecs:
        """Rows padded to the largest clause."""
        count, most = len(self.or_spec_size), max(1, int(self.or_spec_size.max()))
        present = torch.arange(most) < self.or_spec_size.unsqueeze(1)
        c = self.c.new_zeros(count, most, self.c.shape[1])
        rhs = torch.full((count, most), torch.inf, dtype=self.rhs.dtype)
        c[present], rhs[present] = self.c, self.rhs
        same = len(self._prop.regions) == 1
        equal = bool((self.or_spec_size == self.or_spec_size[0]).all())
        return AllSpecs(count, self.x, self.data_min, self.data_max, c, rhs, self.or_spec_size, same, equal)


def _tensor(arrays: list[np.ndarray], empty: tuple[int, ...]) -> Tensor:
    joined = np.concatenate([np.zeros(empty), *arrays])
    return torch.from_numpy(joined).to(torch.get_default_dtype())

"""What is searched, as tensors: one problem per clause of each input box.

Shape letters: G boxes, P problems, K rows of the largest clause, O outputs, ``*in`` the input's per-sample shape.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from auto_LiRPA.errors import ContractError
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.parallel.store import Weight
from complete_verifier.spec.property import Clause, Property
from complete_verifier.spec.scaling import float_rows


@dataclass(frozen=True, slots=True)
class Problems:
    """Find x in a box with ``mat @ y(x) <= rhs`` in every present row.

    Every box ends on float32 numbers inside the exact one, whatever dtype holds them, so that a float32 number
    between its ends is inside too. A strict row has the next smaller ``rhs``, which makes it an ordinary one.
    """

    lower: Tensor  # [G, *in]
    upper: Tensor  # [G, *in]
    box: Tensor  # [P], which box a problem is searched in
    mat: Tensor  # [P, K, O]
    rhs: Tensor  # [P, K]
    present: Tensor  # [P, K] bool; False for padding
    region: tuple[int, ...]  # of the property, for each problem
    clause: tuple[int, ...]  # of that region, for each problem

    @classmethod
    def from_property(
        cls, prop: Property, input_shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str
    ) -> Problems:
        """All clauses of all regions. Raises SpecError for a box that float32 cannot hold."""
        pairs = [(r, c) for r, region in enumerate(prop.regions) for c in range(len(region.clauses))]
        if prop.n_inputs != torch.Size(input_shape).numel():
            raise ContractError(f"{prop.source}: {prop.n_inputs} inputs for a network of input shape {input_shape}")
        ends = [region.box.inward(np.float32) for region in prop.regions]
        mat, rhs, present = _padded_rows([prop.regions[r].clauses[c] for r, c in pairs], prop.n_outputs, dtype)

        def boxes(side: int) -> Tensor:
            stacked = torch.from_numpy(np.stack([end[side] for end in ends]))
            return stacked.reshape(len(ends), *input_shape).to(device, dtype)

        return cls(
            lower=boxes(0),
            upper=boxes(1),
            box=torch.tensor([r for r, _ in pairs], device=device),
            mat=mat.to(device),
            rhs=rhs.to(device),
            present=present.to(device),
            region=tuple(r for r, _ in pairs),
            clause=tuple(c for _, c in pairs),
        )

    def narrowed(self, lower: Tensor, upper: Tensor, problem: Tensor) -> Problems:
        """Problem ``problem[d]`` searched in the part of its box between ``lower[d]`` and ``upper[d]``, for each d.

        Args:
            lower: ``[D, *in]``, of any float dtype; it may stick out of the box (branch and bound rounds outwards).
            upper: ``[D, *in]``.
            problem: ``[D]`` positions of problems.
        """
        problem = problem.to(self.box.device)
        box = self.box[problem]
        lo, hi = self.lower[box], self.upper[box]
        lower = _to_float32(lower.to(self.lower.device), upwards=True).to(self.lower.dtype)
        upper = _to_float32(upper.to(self.lower.device), upwards=False).to(self.lower.dtype)
        # A part that holds no float32 number shrinks to the nearest one of the whole box.
        lower = torch.minimum(torch.maximum(lower, lo), hi)
        upper = torch.maximum(torch.minimum(upper, hi), lower)
        ids = problem.tolist()
        return Problems(
            lower=lower,
            upper=upper,
            box=torch.arange(len(ids), device=self.box.device),
            mat=self.mat[problem],
            rhs=self.rhs[problem],
            present=self.present[problem],
            region=tuple(self.region[i] for i in ids),
            clause=tuple(self.clause[i] for i in ids),
        )

    def select(self, index: Tensor) -> Problems:
        """The problems at positions ``index`` ``[P']``; their boxes are left whole."""
        ids = index.tolist()
        return replace(
            self,
            box=self.box[index],
            mat=self.mat[index],
            rhs=self.rhs[index],
            present=self.present[index],
            region=tuple(self.region[i] for i in ids),
            clause=tuple(self.clause[i] for i in ids),
        )

    @property
    def count(self) -> int:
        """P."""
        return len(self.region)

    def values(self, y: Tensor) -> Tensor:
        """``mat @ y - rhs``: ``[..., P, O] -> [..., P, K]``; a row is violated where this is <= 0. Padding is -inf."""
        rows = torch.einsum("...po,pko->...pk", y, self.mat) - self.rhs
        return rows.masked_fill(~self.present, -torch.inf)

    def worst(self, values: Tensor) -> Tensor:
        """The row furthest from being violated: ``[..., P, K] -> [..., P]``; all are where that is <= 0. NaN: inf."""
        worst = values.amax(-1) if values.shape[-1] else values.new_full(values.shape[:-1], -torch.inf)
        return worst.masked_fill(worst.isnan(), torch.inf)


def graph_dtype(graph: Graph) -> torch.dtype:
    """The dtype that a graph computes in: that of its first weight or constant (float32 where it has none)."""
    for node in graph.nodes:
        for item in fields(node.op):  # type: ignore[arg-type]
            value = getattr(node.op, item.name)
            if isinstance(value, Weight | Tensor) and value.dtype.is_floating_point:
                return value.dtype
    return torch.float32


def on_float32_grid(x: Tensor) -> Tensor:
    """x rounded to float32, in its own dtype. Points between float32 ends stay between them."""
    return x if x.dtype == torch.float32 else x.float().to(x.dtype)


def project(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """x moved into its box and onto float32 numbers (which stay between the box's float32 ends)."""
    return on_float32_grid(torch.minimum(torch.maximum(x, lower), upper))


def _to_float32(x: Tensor, upwards: bool) -> Tensor:
    """The nearest float32 numbers that are not below (``upwards``) or not above x."""
    near = x.float()
    back = near.double()
    past = back < x.double() if upwards else back > x.double()
    towards = torch.full_like(near, torch.inf if upwards else -torch.inf)
    return torch.where(past, torch.nextafter(near, towards), near)


def _padded_rows(clauses: list[Clause], n_outputs: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """``mat [P, K, O]``, ``rhs [P, K]`` and ``present [P, K]`` of clauses with different numbers of rows."""
    sizes = np.array([len(clause.rows) for clause in clauses])
    present = np.arange(sizes.max()) < sizes[:, None]
    mat = np.zeros((*present.shape, n_outputs))
    rhs = np.zeros(present.shape)
    strict = np.zeros(present.shape, dtype=np.bool_)
    strict[present] = np.concatenate([clause.strict for clause in clauses])
    rows = float_rows(clauses, n_outputs, np.float64 if dtype == torch.float64 else np.float32)
    usual = rows.scale == 1
    # rows that are written in floats keep their nearest right-hand side: candidates are judged exactly anyway
    mat[present] = rows.c
    rhs[present] = np.where(usual, np.concatenate([clause.rhs for clause in clauses]), rows.rhs)
    limit = torch.from_numpy(rhs).to(dtype)
    below = torch.nextafter(limit, torch.full_like(limit, -torch.inf))
    limit = torch.where(torch.from_numpy(strict), below, limit)
    return torch.from_numpy(mat).to(dtype), limit, torch.from_numpy(present)

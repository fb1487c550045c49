"""A region's clauses as tensors for the bound engine, rounded so that every doubt leans to `unknown`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from auto_LiRPA.errors import ContractError, SpecError
from complete_verifier.spec.property import Clause, ExactRow, Property, Region
from complete_verifier.spec.rounding import cast_decimal, round_up

_NUMPY_TYPE: dict[torch.dtype, np.dtype[np.floating[Any]]] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
}


@dataclass(frozen=True, slots=True, eq=False)
class CompiledSpec:
    """The clauses over one input box. Letters: K clauses, R rows of the longest, S all rows, O outputs, I inputs.

    A counterexample satisfies C y <= rhs (< where strict) on all rows of a clause; so a clause is proven when ANY
    of its rows has a lower bound above its rhs. Padding rows (row_mask False) have C = 0, rhs = +inf and never
    prove. Flat and padded layouts hold the same rows: flat row s is row (clause_ids[s], position in its clause).
    rhs is rounded UP to the engine's type. C is the nearest number of that type; where that is not exact (decimals
    such as 0.1), C_exact is False, C_float64 keeps the nearest float64, and a proof must also clear
    `coefficient_slack`.
    """

    region: Region
    lower: Tensor  # [I] the box rounded outwards
    upper: Tensor  # [I]
    C: Tensor  # [K, R, O]
    rhs: Tensor  # [K, R]
    strict: Tensor  # [K, R] bool
    row_mask: Tensor  # [K, R] bool
    rows: Tensor  # [S, O]
    row_rhs: Tensor  # [S]
    row_strict: Tensor  # [S] bool
    clause_ids: Tensor  # [S] int64
    row_index: Tensor  # [K, R] int64: flat row of each padded one, S for padding
    C_float64: Tensor | None  # [K, R, O] where C is not exact, else None
    row_error: Tensor | None  # [S, O] float64 >= |exact coefficient - coefficient used|, None if all are exact

    @property
    def C_exact(self) -> bool:
        """Whether every coefficient is exactly the number that was written."""
        return self.row_error is None

    @property
    def n_clauses(self) -> int:
        return self.C.shape[0]

    def coefficient_slack(self, output_lower: Tensor, output_upper: Tensor) -> Tensor:
        """Most that inexact coefficients can shift each row over outputs in [lower, upper] ([..., O] -> [..., S]).

        Rounded up, NaN or infinite where an output bound is. Zeros where C is exact.
        """
        magnitude = torch.maximum(output_lower.abs(), output_upper.abs()).double()
        if self.row_error is None:
            return torch.zeros(
                *magnitude.shape[:-1], self.rows.shape[0], dtype=self.rows.dtype, device=self.rows.device
            )
        # An n-term float64 sum of products is off by less than (n + 1) * 2^-53 relative; allow a generous multiple.
        inflation = 1.0 + 4.0 * (self.rows.shape[1] + 2) * torch.finfo(torch.float64).eps
        slack = (magnitude @ self.row_error.T) * inflation
        cast = slack.to(self.rows.dtype)
        above = torch.nextafter(cast, torch.full_like(cast, torch.inf))
        return torch.where(cast.double() < slack, above, cast)

    def rows_proven(self, lower_bounds: Tensor, slack: Tensor | None = None) -> Tensor:
        """Which rows have a lower bound that no counterexample can meet: [..., S] -> [..., S] bool.

        lb > rhs proves; a strict row is already disproved as part of a counterexample by lb >= rhs. NaN and
        infinite bounds never prove. `slack` (from `coefficient_slack`) is required where C is not exact.
        """
        if lower_bounds.shape[-1] != self.rows.shape[0]:
            raise ContractError(f"{lower_bounds.shape[-1]} row bounds were given for {self.rows.shape[0]} rows")
        limit, at_limit = self.row_rhs, self.row_strict
        if not self.C_exact:
            if slack is None:
                raise ContractError("coefficients of the specification are rounded: pass coefficient_slack(...)")
            raised = limit + slack
            # One step up covers the rounding of the sum; equality then proves nothing more than the strict rule.
            limit = torch.nextafter(raised, torch.full_like(raised, torch.inf))
        beyond = (lower_bounds > limit) | (at_limit & (lower_bounds >= limit))
        return beyond & torch.isfinite(lower_bounds)

    def clause_proven(self, lower_bounds: Tensor, slack: Tensor | None = None) -> Tensor:
        """Which clauses are proven by lower bounds of the flat rows: [..., S] -> [..., K] bool. See `rows_proven`."""
        proven = self.rows_proven(lower_bounds, slack)
        never = proven.new_zeros((*proven.shape[:-1], 1))  # what padding points at
        padded = torch.cat((proven, never), dim=-1)[..., self.row_index]
        return padded.any(dim=-1)

    def clause_proven_padded(self, lower_bounds: Tensor, slack: Tensor | None = None) -> Tensor:
        """The same for bounds in the padded layout: [..., K, R] -> [..., K] bool (padding entries are ignored)."""
        if lower_bounds.shape[-2:] != self.row_mask.shape:
            raise ContractError(f"bounds of shape {tuple(lower_bounds.shape)} for clauses {tuple(self.row_mask.shape)}")
        return self.clause_proven(lower_bounds[..., self.row_mask], slack)

    def subset(self, keep: Tensor) -> CompiledSpec:
        """Only the clauses marked in `keep` ([K] bool), as their own specification over the same box."""
        chosen = tuple(clause for clause, kept in zip(self.region.clauses, keep.tolist(), strict=True) if kept)
        region = replace(self.region, clauses=chosen)
        return _compile(region, self.lower, self.upper, self.C.shape[-1])


def compile_property(
    spec: Property, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[CompiledSpec, ...]:
    """One CompiledSpec per region, in order. `dtype` is float32 or float64."""
    return tuple(compile_region(region, spec.n_outputs, dtype, device) for region in spec.regions)


def compile_region(
    region: Region, n_outputs: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> CompiledSpec:
    """The tensors of one region."""
    if dtype not in _NUMPY_TYPE:
        raise ContractError(f"a specification is compiled to float32 or float64, not {dtype}")
    lower, upper = (torch.tensor(bound, device=device) for bound in region.box.outward(_NUMPY_TYPE[dtype]))
    return _compile(region, lower, upper, n_outputs)


def _compile(region: Region, lower: Tensor, upper: Tensor, n_outputs: int) -> CompiledSpec:
    numpy_type, device = _NUMPY_TYPE[lower.dtype], lower.device
    rows = [row for clause in region.clauses for row in clause.rows]
    lengths = np.array([len(clause.rows) for clause in region.clauses], dtype=np.int64)
    mat = _stack(region.clauses, n_outputs)
    with np.errstate(over="ignore"):
        nearest = mat.astype(numpy_type)
    if not np.isfinite(nearest).all():
        raise SpecError(f"a coefficient of an output constraint does not fit {numpy_type.name}; set double_fp")
    flat_rhs = round_up([row.rhs for row in rows], np.array([float(row.rhs) for row in rows]), numpy_type)
    error = _coefficient_error(rows, nearest)
    row_mask = np.arange(lengths.max(initial=0))[None, :] < lengths[:, None]  # [K, R]
    row_index = np.full(row_mask.shape, len(rows), dtype=np.int64)
    row_index[row_mask] = np.arange(len(rows))  # rows lie clause by clause, as a mask is filled
    strict = np.array([row.strict for row in rows], dtype=np.bool_)
    return CompiledSpec(
        region=region,
        lower=lower,
        upper=upper,
        C=torch.tensor(_pad(nearest, row_mask, 0.0), device=device),
        rhs=torch.tensor(_pad(flat_rhs, row_mask, np.inf), device=device),
        strict=torch.tensor(_pad(strict, row_mask, False), device=device),
        row_mask=torch.tensor(row_mask, device=device),
        rows=torch.tensor(nearest, device=device),
        row_rhs=torch.tensor(flat_rhs, device=device),
        row_strict=torch.tensor(strict, device=device),
        clause_ids=torch.tensor(np.repeat(np.arange(len(lengths)), lengths), device=device),
        row_index=torch.tensor(row_index, device=device),
        C_float64=None if error is None else torch.tensor(_pad(mat, row_mask, 0.0), device=device),
        row_error=None if error is None else torch.tensor(error, device=device),
    )


def _stack(clauses: tuple[Clause, ...], n_outputs: int) -> NDArray[np.float64]:
    return np.concatenate([np.zeros((0, n_outputs)), *(clause.mat for clause in clauses)])


def _pad(flat: NDArray[np.generic], row_mask: NDArray[np.bool_], fill: float | bool) -> NDArray[np.generic]:
    """[S, ...] -> [K, R, ...], with `fill` in the padding."""
    padded = np.full(row_mask.shape + flat.shape[1:], fill, dtype=flat.dtype)
    padded[row_mask] = flat
    return padded


def _coefficient_error(rows: list[ExactRow], used: NDArray[np.floating]) -> NDArray[np.float64] | None:
    """[S, O] float64 bounds, rounded up, on how far each coefficient is off; None if none is (the usual case)."""
    written = {coefficient for row in rows for _, coefficient in row.terms}
    rounded = {coefficient for coefficient in written if Decimal(cast_decimal(coefficient, used.dtype)) != coefficient}
    if not rounded:
        return None
    error = np.zeros(used.shape, dtype=np.float64)
    for number, row in enumerate(rows):
        for index, coefficient in row.terms:
            if coefficient in rounded:
                gap = abs(Fraction(coefficient) - Fraction(float(used[number, index])))
                error[number, index] = np.nextafter(float(gap), np.inf)
    return error

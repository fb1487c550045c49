"""The question asked of a network: input boxes, and clauses over its outputs that a counterexample satisfies.

A counterexample is an input x in the box of SOME region together with its output y that satisfies ALL rows of SOME
clause of that region. Every number is kept twice: as the decimal that was written (exact; decides membership and
violation) and as the nearest float64 (for the engine, which rounds it outwards).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fractions import Fraction
from math import isfinite
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from auto_LiRPA.errors import ContractError, SpecError
from complete_verifier.spec.balls import Ball
from complete_verifier.spec.rounding import (
    Bools,
    Float64s,
    Floats,
    cast_decimal,
    exact_context,
    nearest64,
    round_down,
    round_up,
    step_off,
)


class ExactRow(NamedTuple):
    """sum(coefficient * y[index]) <= rhs (< where strict); indices ascending, coefficients non-zero."""

    terms: tuple[tuple[int, Decimal], ...]
    rhs: Decimal
    strict: bool

    def holds(self, y: Sequence[Fraction]) -> bool:
        """Whether outputs y satisfy this row, in exact arithmetic."""
        total = sum((Fraction(coefficient) * y[index] for index, coefficient in self.terms), Fraction(0))
        rhs = Fraction(self.rhs)
        return total < rhs if self.strict else total <= rhs


@dataclass(frozen=True, slots=True, eq=False)
class InputBox:
    """lo <= x <= hi for each input (< where strict); all [n_in]. `lo`, `hi` are the float64 nearest to the decimals."""

    lo: Float64s
    hi: Float64s
    lo_exact: tuple[Decimal, ...]
    hi_exact: tuple[Decimal, ...]
    lo_strict: Bools
    hi_strict: Bools

    def __post_init__(self) -> None:
        """Raises SpecError for an empty or unbounded box, naming the input."""
        shapes = {self.lo.shape, self.hi.shape, self.lo_strict.shape, self.hi_strict.shape}
        if shapes != {(len(self.lo_exact),)} or len(self.lo_exact) != len(self.hi_exact):
            raise ContractError(f"an input box needs six sequences of one length, found shapes {sorted(shapes)}")
        finite = np.isfinite(self.lo) & np.isfinite(self.hi)
        if not finite.all():
            raise SpecError(f"input X_{int(np.argmin(finite))} has a bound that is NaN or infinite; give finite bounds")
        empty = self.lo > self.hi
        for i in np.flatnonzero(self.lo == self.hi).tolist():
            lo, hi = self.lo_exact[i], self.hi_exact[i]
            empty[i] = lo > hi or (lo == hi and bool(self.lo_strict[i] or self.hi_strict[i]))
        if empty.any():
            i = int(np.argmax(empty))
            raise SpecError(f"the box of input X_{i} is empty: {self._interval(i)}; correct one of its two bounds")

    @classmethod
    def from_exact(
        cls,
        lo: Sequence[Decimal],
        hi: Sequence[Decimal],
        lo_strict: Sequence[bool] | Bools | None = None,
        hi_strict: Sequence[bool] | Bools | None = None,
    ) -> InputBox:
        """The box of these decimals; closed on every side that is not named strict."""
        for name, bounds in (("lower", lo), ("upper", hi)):
            for i, bound in enumerate(bounds):
                if not bound.is_finite():
                    raise SpecError(f"input X_{i}: its {name} bound is {bound}; give a finite number")
        closed = np.zeros(len(lo), dtype=np.bool_)
        return cls(
            lo=nearest64(lo),
            hi=nearest64(hi),
            lo_exact=tuple(lo),
            hi_exact=tuple(hi),
            lo_strict=closed if lo_strict is None else np.array(lo_strict, dtype=np.bool_),
            hi_strict=closed if hi_strict is None else np.array(hi_strict, dtype=np.bool_),
        )

    @property
    def n_inputs(self) -> int:
        return len(self.lo_exact)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, InputBox):
            return NotImplemented
        return (
            self.lo_exact == other.lo_exact
            and self.hi_exact == other.hi_exact
            and np.array_equal(self.lo_strict, other.lo_strict)
            and np.array_equal(self.hi_strict, other.hi_strict)
        )

    def __hash__(self) -> int:
        return hash((self.lo_exact, self.hi_exact, self.lo_strict.tobytes(), self.hi_strict.tobytes()))

    def contains(self, x: Sequence[Decimal]) -> bool:
        """Whether the point lies in the box: exact, strict where the box is strict."""
        if len(x) != self.n_inputs:
            raise ContractError(f"a point of {len(x)} numbers was tested against a box of {self.n_inputs} inputs")
        return all(self._inside(i, value) for i, value in enumerate(x))

    def outward(self, dtype: DTypeLike = np.float32) -> tuple[Floats, Floats]:
        """The smallest closed box of `dtype` that contains the exact one: (lo, hi), each [n_in]."""
        lo = round_down(self.lo_exact, self.lo, dtype)
        hi = round_up(self.hi_exact, self.hi, dtype)
        finite = np.isfinite(lo) & np.isfinite(hi)
        if not finite.all():
            i = int(np.argmin(finite))
            raise SpecError(f"input X_{i} in {self._interval(i)} does not fit {np.dtype(dtype).name}; set double_fp")
        return lo, hi

    def inward(self, dtype: DTypeLike = np.float32) -> tuple[Floats, Floats]:
        """The box an attack may search: (lo, hi) of `dtype`, each [n_in], never empty.

        Where an input's interval holds numbers of `dtype`, these are the smallest and largest of them (an open end
        is stepped off). Where it holds none (a width of zero, or of less than one float), lo = hi = the float that
        the interval's decimal midpoint is cast to: it lies outside by less than a rounding, but a decimal inside
        reads back as it. `decimals_for` prints every point of this box as decimals that are exactly inside.
        """
        self.outward(dtype)  # refuses what `dtype` cannot hold
        lo = step_off(round_up(self.lo_exact, self.lo, dtype), self.lo_exact, self.lo_strict, np.inf)
        hi = step_off(round_down(self.hi_exact, self.hi, dtype), self.hi_exact, self.hi_strict, -np.inf)
        for i in np.flatnonzero(lo > hi).tolist():
            lo[i] = hi[i] = cast_decimal(self._middle(i), dtype)
        return lo, hi

    def decimals_for(self, x: Floats) -> tuple[Decimal, ...] | None:
        """Decimals exactly inside the box that are cast to x ([n_in], its own dtype); None if there are none.

        The shortest text of the float is preferred; it may lie outside although the float is inside (or the
        reverse), and then the float's full expansion, a bound or the middle of the interval stands in.
        """
        values = np.asarray(x).astype(np.float64)
        if values.shape != self.lo.shape:
            raise ContractError(f"a point of shape {values.shape} was printed for a box of {self.n_inputs} inputs")
        safe = (self.lo < values) & (values < self.hi)  # then the shortest text is inside too (see rounding.py)
        decimals = [Decimal(repr(value)) if fine else None for value, fine in zip(values.tolist(), safe, strict=True)]
        for i in np.flatnonzero(~safe).tolist():
            decimals[i] = self._decimal_for(i, float(values[i]), x.dtype)
            if decimals[i] is None:
                return None
        return tuple(value for value in decimals if value is not None)

    def _decimal_for(self, i: int, value: float, dtype: DTypeLike) -> Decimal | None:
        if not isfinite(value):
            return None
        candidates = (Decimal(repr(value)), Decimal(value), self.lo_exact[i], self.hi_exact[i], self._middle(i))
        for candidate in candidates:
            if self._inside(i, candidate) and cast_decimal(candidate, dtype) == value:
                return candidate
        return None

    def _inside(self, i: int, value: Decimal) -> bool:
        lo, hi = self.lo_exact[i], self.hi_exact[i]
        if not value.is_finite():
            return False
        return (value > lo if self.lo_strict[i] else value >= lo) and (value < hi if self.hi_strict[i] else value <= hi)

    def _middle(self, i: int) -> Decimal:
        if self.lo_exact[i] == self.hi_exact[i]:
            return self.lo_exact[i]
        context = exact_context()
        return context.multiply(context.add(self.lo_exact[i], self.hi_exact[i]), Decimal("0.5"))

    def _interval(self, i: int) -> str:
        left, right = "(" if self.lo_strict[i] else "[", ")" if self.hi_strict[i] else "]"
        return f"{left}{self.lo_exact[i]}, {self.hi_exact[i]}{right}"


@dataclass(frozen=True, slots=True)
class Clause:
    """Rows that a counterexample satisfies together: mat @ y <= rhs, < where strict. Equal if the exact rows are.

    mat [rows, n_out], rhs [rows] (nearest float64 of the exact numbers), strict [rows].
    No rows at all is legal and means that every output counts.
    """

    mat: Float64s = field(compare=False)
    rhs: Float64s = field(compare=False)
    strict: Bools = field(compare=False)
    rows: tuple[ExactRow, ...]

    @classmethod
    def from_rows(cls, rows: Sequence[ExactRow], n_outputs: int) -> Clause:
        return clauses_from_rows([tuple(rows)], n_outputs)[0]

    def holds(self, y: Sequence[Fraction]) -> bool:
        """Whether outputs y satisfy every row, in exact arithmetic."""
        return all(row.holds(y) for row in self.rows)


@dataclass(frozen=True, slots=True)
class Region:
    """One input box and the clauses (OR) that describe a counterexample in it.

    With a ``ball`` the inputs are those of the ball, and the box is the one around it.
    """

    box: InputBox
    clauses: tuple[Clause, ...]
    ball: Ball | None = None

    def contains(self, x: Sequence[Decimal]) -> bool:
        """Whether the point is an input of the region: exact, strict where its box is strict."""
        return self.box.contains(x) and (self.ball is None or self.ball.contains(x))

    def decimals_for(self, x: Floats) -> tuple[Decimal, ...] | None:
        """Decimals exactly inside the region that are cast to x ([n_in], its own dtype); None if none were found."""
        decimals = self.box.decimals_for(x)
        if decimals is None or self.ball is None or self.ball.contains(decimals):
            return decimals
        whole = tuple(Decimal(float(value)) for value in x.reshape(-1))  # the floats to their last digit
        return whole if self.contains(whole) else None


@dataclass(frozen=True, slots=True)
class Property:
    """OR over regions, OR over a region's clauses, AND over a clause's rows."""

    n_inputs: int
    n_outputs: int
    regions: tuple[Region, ...]
    source: str = field(default="property", compare=False)  # for messages: the file it came from

    def __post_init__(self) -> None:
        """A property that nothing can violate would be "proved" unread: refuse it here."""
        if not self.regions or not all(region.clauses for region in self.regions):
            raise SpecError(f"{self.source}: no case describes a counterexample; nothing to verify")
        for region in self.regions:
            widths = {clause.mat.shape[1] for clause in region.clauses}
            if region.box.n_inputs != self.n_inputs or widths != {self.n_outputs}:
                raise ContractError(
                    f"{self.source}: a region does not have {self.n_inputs} inputs and {self.n_outputs} outputs"
                )

    def violated_by(self, x: Sequence[Decimal | float], y: Sequence[float]) -> bool:
        """Whether input x with the network's outputs y is a counterexample, in exact arithmetic.

        A float counts as the exact binary number it is, a Decimal as written; box and rows are strict where the
        file is strict. A NaN or infinity anywhere is never a counterexample.
        """
        if len(x) != self.n_inputs or len(y) != self.n_outputs:
            raise ContractError(
                f"a point of {len(x)} inputs and {len(y)} outputs was tested against {self.n_inputs}"
                f" and {self.n_outputs}"
            )
        point = [value if isinstance(value, Decimal) else Decimal(float(value)) for value in x]
        outputs = [float(value) for value in y]
        if not all(value.is_finite() for value in point) or not all(map(isfinite, outputs)):
            return False
        exact = [Fraction(value) for value in outputs]
        return any(
            region.contains(point) and any(clause.holds(exact) for clause in region.clauses)
            for region in self.regions
        )

    def named(self, source: str) -> Property:
        """The same property under another name in messages."""
        return replace(self, source=source)


def clauses_from_rows(groups: Sequence[tuple[ExactRow, ...]], n_outputs: int) -> list[Clause]:
    """One clause per group of rows; their matrices are views of one array [all rows, n_out], filled at once."""
    rows = [row for group in groups for row in group]
    terms = [(number, index, float(value)) for number, row in enumerate(rows) for index, value in row.terms]
    mat = np.zeros((len(rows), n_outputs), dtype=np.float64)
    if terms:
        row_ids, columns, values = zip(*terms, strict=True)
        mat[np.array(row_ids), np.array(columns)] = values
    rhs = nearest64(row.rhs for row in rows)
    strict: NDArray[np.bool_] = np.array([row.strict for row in rows], dtype=np.bool_)
    if not (np.isfinite(mat).all() and np.isfinite(rhs).all()):
        raise SpecError("an output constraint has a number beyond the float64 range; rescale it")
    for array in (mat, rhs, strict):
        array.setflags(write=False)
    ends = np.cumsum([len(group) for group in groups]).tolist()
    starts = [0, *ends[:-1]]
    return [
        Clause(mat=mat[start:end], rhs=rhs[start:end], strict=strict[start:end], rows=group)
        for start, end, group in zip(starts, ends, groups, strict=True)
    ]

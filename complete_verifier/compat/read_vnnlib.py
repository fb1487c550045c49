"""`from read_vnnlib import read_vnnlib` of a user's module, and the compiled form that it gives (interface 4)."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from auto_LiRPA.errors import SpecError
from complete_verifier.spec.compile import read_vnnlib as _read
from complete_verifier.spec.property import Clause, ExactRow, InputBox, Property, Region, clauses_from_rows

# Boxes as [lo, hi] per input, each with its clauses as (mat, rhs); a counterexample has mat @ y <= rhs on all rows.
Compiled = list[tuple[list[list[float]], list[tuple[NDArray[np.float64], NDArray[np.float64]]]]]


def read_vnnlib(path: str | Path, regression: bool = False) -> Compiled:
    """A VNN-LIB file in compiled form.

    Raises:
        SpecError: it cannot be read, or ``regression`` is asked for.
    """
    if regression:
        raise SpecError(f"{path}: read_vnnlib(regression=True) is not provided; read the file without it")
    return compiled_form(_read(path))


def compiled_form(prop: Property) -> Compiled:
    """A property in compiled form: the nearest floats of its numbers."""
    return [
        (
            [[float(lo), float(hi)] for lo, hi in zip(region.box.lo, region.box.hi, strict=True)],
            [(clause.mat.copy(), clause.rhs.copy()) for clause in region.clauses],
        )
        for region in prop.regions
    ]


def property_from(compiled: object, source: str) -> Property:
    """The property of a compiled form that user code made; its floats are taken as the exact numbers they are.

    Raises:
        SpecError: it has another form.
    """
    try:
        pairs = [(np.asarray(box, dtype=np.float64), _clauses(clauses)) for box, clauses in compiled]  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise SpecError(f"{source}: expected a list of (box, clauses) as read_vnnlib gives it") from None
    if not pairs:
        raise SpecError(f"{source}: an empty property")
    widths = {mat.shape[1] for _, clauses in pairs for mat, _ in clauses}
    if len(widths) != 1 or any(box.ndim != 2 or box.shape[1] != 2 for box, _ in pairs):
        raise SpecError(f"{source}: boxes are [lo, hi] per input, and all clauses have one number of outputs")
    (n_outputs,) = widths
    regions = tuple(Region(_box(box), _exact(clauses, n_outputs)) for box, clauses in pairs)
    return Property(regions[0].box.n_inputs, n_outputs, regions, source=source)


def _clauses(clauses: Sequence[Any]) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    found = []
    for mat, rhs in clauses:
        rows = np.atleast_2d(np.asarray(mat, dtype=np.float64))
        limits = np.asarray(rhs, dtype=np.float64).reshape(-1)
        if len(rows) != len(limits):
            raise ValueError
        found.append((rows, limits))
    return found


def _box(box: NDArray[np.float64]) -> InputBox:
    return InputBox.from_exact([Decimal(v) for v in box[:, 0].tolist()], [Decimal(v) for v in box[:, 1].tolist()])


def _exact(clauses: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]], n_outputs: int) -> tuple[Clause, ...]:
    groups = [
        tuple(
            ExactRow(tuple((j, Decimal(v)) for j, v in enumerate(row) if v), Decimal(limit), strict=False)
            for row, limit in zip(mat.tolist(), rhs.tolist(), strict=True)
            if limit != np.inf  # padding
        )
        for mat, rhs in clauses
    ]
    return tuple(clauses_from_rows(groups, n_outputs))

"""Robustness of one data-set example as a property: a region around it, and margins between the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, DecimalException
from math import isfinite
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from auto_LiRPA.errors import SpecError
from complete_verifier.spec.adjust import as_written, ball_region
from complete_verifier.spec.balls import Ball
from complete_verifier.spec.property import Clause, ExactRow, InputBox, Property, Region, clauses_from_rows
from complete_verifier.spec.rounding import MINUS_ONE, ONE, exact_context

RobustnessType = Literal["verified-acc", "runnerup", "specify-target", "all-positive", "clean-acc"]
_FLOATS = "give float32 or float64"


def box_from_floats(lower: ArrayLike, upper: ArrayLike) -> InputBox:
    """The closed box of two float arrays (flattened in C order); the floats are taken as the exact numbers they are."""
    lo, hi = (np.asarray(bound).reshape(-1) for bound in (lower, upper))
    if lo.shape != hi.shape:
        raise SpecError(f"the input box has {lo.size} lower but {hi.size} upper bounds; give one of each per input")
    for name, bounds in (("lower", lo), ("upper", hi)):
        if not np.issubdtype(bounds.dtype, np.floating) or bounds.dtype.itemsize > 8:
            raise SpecError(f"the {name} bounds of the input box have type {bounds.dtype}; {_FLOATS}")
    return InputBox.from_exact([Decimal(v) for v in lo.tolist()], [Decimal(v) for v in hi.tolist()])


def box_around(x: ArrayLike, eps: ArrayLike, lower: ArrayLike | None, upper: ArrayLike | None) -> InputBox:
    """The box [x - eps, x + eps] cut to the data's range [lower, upper], in exact arithmetic on the floats given.

    All arrays are broadcast to x. Nothing is rounded: subtracting in float32 would move an end by up to an ulp to
    either side.
    """
    point, (radius, low, high) = np.asarray(x), _like(x, eps, lower, upper)
    context, ends = exact_context(), ([], [])  # type: tuple[Any, tuple[list[Decimal], list[Decimal]]]
    values = zip(*(a.reshape(-1).tolist() for a in (point, radius, low, high)), strict=True)
    for number, (value, r, least, most) in enumerate(values):
        if not (isfinite(value) and isfinite(r) and r >= 0):
            raise SpecError(f"input X_{number}: {value} with radius {r}; give finite numbers and a radius of 0 or more")
        center, step = Decimal(value), Decimal(r)
        try:
            ends[0].append(_most(context.subtract(center, step), least))
            ends[1].append(_least(context.add(center, step), most))
        except DecimalException:
            raise SpecError(f"input X_{number}: {value} with radius {r}: the numbers lie too far apart") from None
    return InputBox.from_exact(*ends)


def _like(x: ArrayLike, eps: ArrayLike, lower: ArrayLike | None, upper: ArrayLike | None) -> tuple[NDArray[Any], ...]:
    shape = np.asarray(x).shape
    arrays = []
    for name, array in (("radius", eps), ("data_min", -np.inf if lower is None else lower),
                        ("data_max", np.inf if upper is None else upper)):  # fmt: skip
        try:
            arrays.append(np.broadcast_to(np.asarray(array, dtype=_float(array)), shape))
        except ValueError:
            raise SpecError(f"{name} of shape {np.shape(array)} does not fit an example of shape {shape}") from None
    return tuple(arrays)


def _float(array: ArrayLike) -> np.dtype[np.floating[Any]]:
    kind = np.asarray(array).dtype
    return kind if np.issubdtype(kind, np.floating) else np.dtype(np.float64)


def _most(value: Decimal, bound: float) -> Decimal:
    return value if bound == -np.inf else max(value, Decimal(bound))


def _least(value: Decimal, bound: float) -> Decimal:
    return value if bound == np.inf else min(value, Decimal(bound))


def robustness_property(
    lower: ArrayLike,
    upper: ArrayLike,
    label: int,
    kind: RobustnessType,
    *,
    n_outputs: int,
    target: int | None = None,
    threshold: float = 0.0,
    source: str = "robustness property",
) -> Property:
    """What `specification.robustness_type` asks about one example, as a property.

    A counterexample is an input in [lower, upper] (any shape, [n_in] in all) that satisfies one of `margin_clauses`.
    Raises SpecError.
    """
    clauses = margin_clauses(label, kind, n_outputs=n_outputs, target=target, threshold=threshold, source=source)
    try:
        region = Region(box_from_floats(lower, upper), clauses)
    except SpecError as error:
        raise SpecError(f"{source}: {error}") from None
    return Property(region.box.n_inputs, n_outputs, (region,), source=source)


def property_of(region: Region, n_outputs: int, source: str) -> Property:
    """A property of one region."""
    return Property(region.box.n_inputs, n_outputs, (region,), source=source)


def region_around(
    x: ArrayLike, eps: ArrayLike, norm: float, lower: ArrayLike | None, upper: ArrayLike | None,
    clauses: tuple[Clause, ...],
) -> Region:  # fmt: skip
    """The ball of ``norm`` around x: cut to the data's range for the infinity norm, whole for others (interface 2.3).

    Raises:
        SpecError: the radius of a ball that is no box is not one number.
    """
    if norm == np.inf:
        return Region(box_around(x, eps, lower, upper), clauses)
    radii = np.unique(np.asarray(eps, dtype=_float(eps)))
    if radii.size != 1:
        raise SpecError(f"norm {norm:g} takes one radius, found {radii.size}: data.std has to be one number")
    center = tuple(Decimal(v) for v in np.asarray(x, dtype=_float(x)).reshape(-1).tolist())
    return ball_region(Ball(center, Decimal(float(radii[0])), norm), clauses)


def margin_clauses(
    label: int,
    kind: RobustnessType,
    *,
    n_outputs: int,
    target: int | None = None,
    threshold: float = 0.0,
    source: str = "robustness property",
) -> tuple[Clause, ...]:
    """The clauses of one example, each with one row.

    A counterexample has, for some j, y_label - y_j <= threshold: every j but the label for `verified-acc`, only
    `target` for `runnerup` and `specify-target`. For `all-positive`: y_j <= threshold for some j (label and target play
    no part). `threshold` is `bab.decision_thresh` as it was written: a proof needs a lower bound above it.
    Raises SpecError.
    """
    if not isfinite(threshold):
        raise SpecError(f"{source}: the decision threshold is {threshold}; give a finite number")
    margins = [[(j, ONE)] for j in range(n_outputs)]
    if kind != "all-positive":
        margins = [_margin(label, j) for j in _rivals(label, kind, n_outputs, target, source)]
    rows = [(ExactRow(tuple(terms), as_written(threshold), strict=False),) for terms in margins]
    return tuple(clauses_from_rows(rows, n_outputs))


def _margin(label: int, rival: int) -> list[tuple[int, Decimal]]:
    """y_label - y_rival, indices ascending."""
    return sorted([(label, ONE), (rival, MINUS_ONE)])


def _rivals(label: int, kind: str, n_outputs: int, target: int | None, source: str) -> Sequence[int]:
    """The outputs that must stay below the label's."""
    if kind == "clean-acc":
        raise SpecError(f"{source}: robustness_type clean-acc asks nothing about a region; choose verified-acc")
    if kind not in get_args(RobustnessType):
        raise SpecError(
            f"{source}: unknown robustness_type {kind!r}; choose one of {', '.join(get_args(RobustnessType))}"
        )
    if not 0 <= label < n_outputs:
        raise SpecError(f"{source}: label {label} does not fit a network of {n_outputs} outputs; check the labels")
    if kind == "verified-acc":
        rivals = [j for j in range(n_outputs) if j != label]
        if not rivals:
            raise SpecError(f"{source}: verified-acc compares outputs, but there is one only; choose all-positive")
        return rivals
    if target is None or not 0 <= target < n_outputs or target == label:
        raise SpecError(
            f"{source}: {kind} needs a target among the {n_outputs} outputs other than the label {label},"
            f" found {target}"
        )
    return [target]

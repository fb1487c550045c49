"""Robustness of one data-set example as a property: a box of floats, and margins between the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from math import isfinite
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from auto_LiRPA.errors import SpecError
from complete_verifier.spec.property import ExactRow, InputBox, Property, Region, clauses_from_rows
from complete_verifier.spec.rounding import MINUS_ONE, ONE

RobustnessType = Literal["verified-acc", "runnerup", "specify-target", "all-positive", "clean-acc"]


def box_from_floats(lower: ArrayLike, upper: ArrayLike) -> InputBox:
    """The closed box of two float arrays (flattened in C order); the floats are taken as the exact numbers they are."""
    lo, hi = (np.asarray(bound).reshape(-1) for bound in (lower, upper))
    if lo.shape != hi.shape:
        raise SpecError(f"the input box has {lo.size} lower but {hi.size} upper bounds; give one of each per input")
    for name, bounds in (("lower", lo), ("upper", hi)):
        if not np.issubdtype(bounds.dtype, np.floating) or bounds.dtype.itemsize > 8:
            raise SpecError(f"the {name} bounds of the input box have type {bounds.dtype}; give float32 or float64")
    return InputBox.from_exact([Decimal(v) for v in lo.tolist()], [Decimal(v) for v in hi.tolist()])


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

    A counterexample is an input in [lower, upper] (any shape, [n_in] in all) for which, for some j,
    y_label - y_j <= threshold: every j but the label for `verified-acc`, only `target` for `runnerup` and
    `specify-target`. For `all-positive`: y_j <= threshold for some j (label and target play no part).
    `threshold` is `bab.decision_thresh`: a proof needs a lower bound above it. Raises SpecError.
    """
    if not isfinite(threshold):
        raise SpecError(f"{source}: the decision threshold is {threshold}; give a finite number")
    margins = [[(j, ONE)] for j in range(n_outputs)]
    if kind != "all-positive":
        margins = [_margin(label, j) for j in _rivals(label, kind, n_outputs, target, source)]
    rhs = Decimal(float(threshold))
    rows = [(ExactRow(tuple(terms), rhs, strict=False),) for terms in margins]
    try:
        box = box_from_floats(lower, upper)
    except SpecError as error:
        raise SpecError(f"{source}: {error}") from None
    region = Region(box, tuple(clauses_from_rows(rows, n_outputs)))
    return Property(box.n_inputs, n_outputs, (region,), source=source)


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

"""Input bounds collected from literals: tightening them, spotting contradictions, and making the boxes."""

from __future__ import annotations

from decimal import Decimal
from typing import NamedTuple

import numpy as np

from auto_LiRPA.errors import SpecError
from complete_verifier.spec.lexer import Words
from complete_verifier.spec.linear import BoundLiteral, Side, side_of
from complete_verifier.spec.property import InputBox
from complete_verifier.spec.rounding import ZERO, nearest64


class Bound(NamedTuple):
    """The bound of a side. `at` is the word that set it."""

    value: Decimal
    strict: bool
    at: int


Bounds = dict[Side, Bound]
# Boxes compared by value: 0.5 and 0.50 are the same number, and where a bound was written does not count.
BoxKey = frozenset[tuple[Side, Decimal, bool]]


def box_key(bounds: Bounds) -> BoxKey:
    """What makes two sets of bounds the same box."""
    return frozenset([(side, bound.value, bound.strict) for side, bound in bounds.items()])


def tighten(bounds: Bounds, literal: BoundLiteral, common: Bounds) -> None:
    """Adds a bound to `bounds` if it is tighter than what they and the common bounds say already."""
    side, value = literal.side, literal.bound
    known = bounds.get(side) or common.get(side)
    if known is not None:
        tighter = value < known.value if side % 2 else value > known.value
        if not tighter and not (literal.strict and not known.strict and value == known.value):
            return
    bounds[side] = Bound(value, literal.strict, literal.at)


def empty_input(bounds: Bounds, common: Bounds) -> int | None:
    """An input whose interval is empty once `bounds` narrow the common ones; None if there is none."""
    for side, bound in bounds.items():
        opposite = side ^ 1
        other = bounds.get(opposite) or common.get(opposite)
        if other is not None:
            lo, hi = (other, bound) if side % 2 else (bound, other)
            if lo.value > hi.value or (lo.value == hi.value and (lo.strict or hi.strict)):
                return side // 2
    return None


def check_nonempty(source: Words, bounds: Bounds, common: Bounds) -> None:
    """Raises SpecError at the later of two bounds that contradict each other."""
    index = empty_input(bounds, common)
    if index is not None:
        lo, hi = (bounds.get(side) or common[side] for side in (side_of(index, False), side_of(index, True)))
        interval = f"{'(' if lo.strict else '['}{lo.value}, {hi.value}{')' if hi.strict else ']'}"
        message = f"the box of input X_{index} is empty: {interval}; correct one of its two bounds"
        raise source.error(max(lo.at, hi.at), message)


class BoxMaker:
    """Makes the boxes of a property: each is the common box, copied and narrowed."""

    def __init__(self, source: Words, n_inputs: int, common: Bounds) -> None:
        sides = range(2 * n_inputs)
        self._source = source
        self._missing = [side for side in sides if side not in common]  # every case must bound these itself
        # Entry of each side: lower and upper bounds take turns.
        self._exact = [common[side].value if side in common else ZERO for side in sides]
        self._nearest = nearest64(self._exact)
        self._strict = np.array([side in common and common[side].strict for side in sides], dtype=np.bool_)

    def box(self, bounds: Bounds) -> InputBox:
        """The common box narrowed by `bounds`; raises SpecError where an input stays unbounded."""
        for side in self._missing:
            if side not in bounds:
                self._refuse_unbounded(side, bounds)
        exact, nearest, strict = self._exact.copy(), self._nearest.copy(), self._strict.copy()
        for side, bound in bounds.items():
            exact[side], nearest[side], strict[side] = bound.value, float(bound.value), bound.strict
        for array in (nearest, strict):
            array.setflags(write=False)
        if not np.isfinite(nearest).all():
            index = int(np.argmin(np.isfinite(nearest))) // 2
            raise SpecError(
                f"{self._source.source}: a bound of input X_{index} is beyond the float64 range; make it finite"
            )
        return InputBox(
            lo=nearest[0::2],
            hi=nearest[1::2],
            lo_exact=tuple(exact[0::2]),
            hi_exact=tuple(exact[1::2]),
            lo_strict=strict[0::2],
            hi_strict=strict[1::2],
        )

    def _refuse_unbounded(self, side: Side, bounds: Bounds) -> None:
        name, word, operator = f"X_{side // 2}", "upper" if side % 2 else "lower", "<=" if side % 2 else ">="
        message = f"input {name} has no {word} bound; add (assert ({operator} {name} number))"
        if not bounds:
            raise SpecError(f"{self._source.source}: {message}")
        at = min(bound.at for bound in bounds.values())
        raise self._source.error(at, f"in this case of the disjunction {message}")

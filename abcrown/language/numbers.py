"""What stands beside a variable: numbers and arrays of any library, as the exact fractions that they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal, DecimalException
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from auto_LiRPA.errors import SpecError
from complete_verifier.spec.rounding import exact_context

Number = int | float | Fraction | Decimal | np.number[Any]
# Entries are Python objects (`Fraction`): numpy gives them its shapes, its broadcasting and its indexing.
Objects = NDArray[Any]
ArrayLike = Number | NDArray[Any] | torch.Tensor | Sequence[Any]


def is_numeric(value: object) -> bool:
    """Whether `fractions_of` may take it: no text, no truth value, nothing of ours."""
    kinds = (int, float, Fraction, Decimal, np.number, np.ndarray, torch.Tensor, list, tuple)
    return isinstance(value, kinds) and not isinstance(value, bool | np.bool_)


def fractions_of(values: object, what: str) -> Objects:
    """An object array of fractions, in the shape of ``values`` (``()`` for a number).

    Floats count as the binary numbers they are, `Decimal` and `Fraction` as written.

    Raises:
        SpecError: something that is no finite number; ``what`` names its place.
    """
    if isinstance(values, torch.Tensor):
        # numpy has no bfloat16; float64 holds every narrower float exactly
        plain = values.detach().cpu()
        values = (plain.double() if plain.is_floating_point() else plain).numpy()
    try:
        array = np.asarray(values, dtype=None if isinstance(values, np.ndarray) else object)
    except ValueError:
        raise SpecError(f"{what}: the parts of a list have different lengths; give a rectangular array") from None
    if array.dtype.kind not in "iufO":
        raise SpecError(f"{what}: an array of {array.dtype} holds no real numbers; give floats or integers")
    out = np.empty(array.size, dtype=object)
    out[:] = [_fraction(value, what) for value in array.ravel().tolist()]
    return out.reshape(array.shape)


def _fraction(value: object, what: str) -> Fraction:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool | np.bool_):
        raise SpecError(f"{what}: {value} is a truth value, not a number")
    if isinstance(value, int | Fraction | np.integer):
        return Fraction(int(value) if isinstance(value, np.integer) else value)
    if isinstance(value, Decimal):
        if value.is_finite():
            return Fraction(value)
    elif isinstance(value, float | np.floating):
        number = float(value)
        if math.isfinite(number):
            return Fraction(number)
    else:
        raise SpecError(f"{what}: {type(value).__name__} is no number; write numbers, arrays or tensors")
    raise SpecError(f"{what}: {value} is not finite; every number of a property must be")


def decimal_of(value: Fraction) -> Decimal | None:
    """The decimal that is exactly this fraction; None if it has no finite one (as 1/3)."""
    try:
        return exact_context().divide(Decimal(value.numerator), Decimal(value.denominator))
    except DecimalException:
        return None


def clear_denominators(values: Sequence[Fraction]) -> tuple[Fraction, ...]:
    """The values times one positive whole number, so that each has a finite decimal expansion."""
    factor = math.lcm(*(_without(_without(value.denominator, 2), 5) for value in values))
    return tuple(value * factor for value in values)


def _without(number: int, prime: int) -> int:
    while number % prime == 0:
        number //= prime
    return number

"""A ball in the input space, in exact numbers: which points lie in it, and the box around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Context, Decimal, DecimalException
from fractions import Fraction
from math import isfinite

from auto_LiRPA.errors import ContractError, SpecError
from complete_verifier.spec.rounding import exact_context

# Powers with a broken exponent are irrational: they are computed to so many digits, and a point counts as inside only
# if it is so by more than the last of them.
_DIGITS = 60
_MARGIN = Decimal("1e-50")


@dataclass(frozen=True, slots=True)
class Ball:
    """``||x - center||_p <= radius`` with 1 <= p < inf (a ball of the infinity norm is a box)."""

    center: tuple[Decimal, ...]
    radius: Decimal
    p: float

    def __post_init__(self) -> None:
        """Raises SpecError for a radius or a centre that makes no ball."""
        if not (isfinite(self.p) and self.p >= 1):
            raise ContractError(f"a ball of norm {self.p}")
        if not self.radius.is_finite() or self.radius < 0:
            raise SpecError(f"the radius of the ball is {self.radius}; give a finite number, 0 or more")
        for i, value in enumerate(self.center):
            if not value.is_finite():
                raise SpecError(f"input X_{i} of the ball's centre is {value}; give a finite number")

    def contains(self, x: Sequence[Decimal]) -> bool:
        """Whether the point is in the ball: exact for a whole p, else only if it is in beyond doubt."""
        if len(x) != len(self.center):
            raise ContractError(f"a point of {len(x)} numbers was tested against a ball of {len(self.center)} inputs")
        if not all(value.is_finite() for value in x):
            return False
        gaps = [abs(Fraction(a) - Fraction(b)) for a, b in zip(x, self.center, strict=True)]
        if self.p == int(self.p):
            power = int(self.p)
            return sum((gap**power for gap in gaps), Fraction(0)) <= Fraction(self.radius) ** power
        return self._surely_contains([gap for gap in gaps if gap])

    def _surely_contains(self, gaps: Sequence[Fraction]) -> bool:
        if not gaps:
            return True
        context = Context(prec=_DIGITS)
        power = Decimal(self.p)

        def raised(value: Fraction) -> Decimal:
            quotient = context.divide(Decimal(value.numerator), Decimal(value.denominator))
            return context.power(quotient, power)

        total = Decimal(0)
        for gap in gaps:
            total = context.add(total, raised(gap))
        limit = raised(Fraction(self.radius)) if self.radius else Decimal(0)
        return context.add(total, context.multiply(total, _MARGIN)) <= limit

    def sides(self) -> tuple[tuple[Decimal, ...], tuple[Decimal, ...]]:
        """The smallest box around the ball, exactly."""
        context = exact_context()
        try:
            lower = tuple(context.subtract(value, self.radius) for value in self.center)
            upper = tuple(context.add(value, self.radius) for value in self.center)
        except DecimalException:
            raise SpecError("the ball's centre and radius have too many digits; round them") from None
        return lower, upper

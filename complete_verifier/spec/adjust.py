"""Changes of a property that the configuration asks for: offsets of right-hand sides, narrower or scaled regions.

All of it is exact, on the decimals of the property, and the same property is proved and confirmed: a shifted limit or
a narrower box is what counterexamples are judged by as well. Rounding to the engine's floats comes afterwards and
leans to the safe side as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from decimal import Context, Decimal, DecimalException
from math import isfinite

from auto_LiRPA.errors import SpecError
from complete_verifier.spec.balls import Ball
from complete_verifier.spec.property import Clause, InputBox, Property, Region, clauses_from_rows
from complete_verifier.spec.rounding import exact_context

Change = Callable[[Context, Decimal, Decimal], tuple[Decimal, Decimal]]  # of an interval's two ends


def as_written(value: float) -> Decimal:
    """The decimal that a setting was written as: the shortest one that reads back as the float."""
    return Decimal(repr(float(value)))


def offset_rows(prop: Property, offset: float) -> Property:
    """Every right-hand side plus ``offset`` (`specification.rhs_offset`): a counterexample has C y <= rhs + offset."""
    if not isfinite(offset):
        raise SpecError(f"specification.rhs_offset = {offset}; give a finite number")
    context, shift = exact_context(), as_written(offset)

    def moved(region: Region) -> Region:
        groups = [tuple(row._replace(rhs=context.add(row.rhs, shift)) for row in c.rows) for c in region.clauses]
        return replace(region, clauses=tuple(clauses_from_rows(groups, prop.n_outputs)))

    with _exact(prop):
        return replace(prop, regions=tuple(map(moved, prop.regions)))


def shrink(prop: Property, amount: float) -> Property:
    """Both ends of every input interval moved inwards by ``amount`` (`specification.shrink_eps`); a ball's radius too.

    Raises:
        SpecError: an interval would be empty then.
    """
    step = as_written(amount)

    def narrower(context: Context, lo: Decimal, hi: Decimal) -> tuple[Decimal, Decimal]:
        return context.add(lo, step), context.subtract(hi, step)

    return _changed(prop, narrower, lambda context, radius: context.subtract(radius, step), "specification.shrink_eps")


def rescale(prop: Property, factor: float) -> Property:
    """Every input interval scaled about its middle (`debug.rescale_vnnlib_ptb`); a ball's radius too."""
    if not (isfinite(factor) and factor >= 0):
        raise SpecError(f"debug.rescale_vnnlib_ptb = {factor}; give a finite number, 0 or more")
    half, scale = Decimal("0.5"), as_written(factor)

    def scaled(context: Context, lo: Decimal, hi: Decimal) -> tuple[Decimal, Decimal]:
        middle = context.multiply(context.add(lo, hi), half)
        width = context.multiply(context.multiply(context.subtract(hi, lo), half), scale)
        return context.subtract(middle, width), context.add(middle, width)

    return _changed(prop, scaled, lambda context, radius: context.multiply(radius, scale), "debug.rescale_vnnlib_ptb")


def _changed(prop: Property, ends: Change, radius: Callable[[Context, Decimal], Decimal], key: str) -> Property:
    context = exact_context()
    regions = []
    for region in prop.regions:
        box = region.box
        try:
            if region.ball is not None:
                new = replace(region.ball, radius=radius(context, region.ball.radius))
                regions.append(ball_region(new, region.clauses))
                continue
            with _exact(prop):
                pairs = [ends(context, lo, hi) for lo, hi in zip(box.lo_exact, box.hi_exact, strict=True)]
            lower, upper = [lo for lo, _ in pairs], [hi for _, hi in pairs]
            narrowed = InputBox.from_exact(lower, upper, box.lo_strict, box.hi_strict)
            regions.append(replace(region, box=narrowed))
        except SpecError as error:
            raise SpecError(f"{prop.source}: after {key}: {error}") from None
    return replace(prop, regions=tuple(regions))


def ball_region(ball: Ball, clauses: tuple[Clause, ...]) -> Region:
    """The region of a ball, with the box around it."""
    return Region(InputBox.from_exact(*ball.sides()), clauses, ball)


@contextmanager
def _exact(prop: Property) -> Iterator[None]:
    """Within: arithmetic that would need more digits than are kept is one line for the user."""
    try:
        yield
    except DecimalException:
        raise SpecError(f"{prop.source}: its numbers have too many digits to be changed exactly") from None

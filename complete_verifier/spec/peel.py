"""A property of a network that ends in softmax or sigmoid, restated for the network without that last layer.

Both are increasing: softmax keeps the order of outputs, sigmoid maps a limit back by the logit. The restated property
is what is proved and searched; counterexamples are judged on the original file with the original property.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import ROUND_CEILING, Context, Decimal
from typing import Literal

from auto_LiRPA.errors import SpecError
from complete_verifier.spec.property import Clause, ExactRow, Property, clauses_from_rows

LastLayer = Literal["Softmax", "Sigmoid"]

# The logit is irrational: a limit is rounded up, which makes the restated property harder to prove, never easier.
_DIGITS, _KEPT = 60, Decimal("1e-40")


def restated(prop: Property, layer: LastLayer) -> Property:
    """The property of the outputs before ``layer``.

    Rows may compare two outputs (+1, -1, right-hand side 0); before a sigmoid also one output with a number.

    Raises:
        SpecError: a row has another form.
    """
    regions = []
    for region in prop.regions:
        groups = [tuple(_row(prop, row, layer) for row in clause.rows if not _certain(row, layer))
                  for clause in region.clauses]  # fmt: skip
        regions.append(replace(region, clauses=_clauses(groups, prop.n_outputs)))
    return replace(prop, regions=tuple(regions))


def _clauses(groups: list[tuple[ExactRow, ...]], n_outputs: int) -> tuple[Clause, ...]:
    return tuple(clauses_from_rows(groups, n_outputs))


def _certain(row: ExactRow, layer: LastLayer) -> bool:
    """Whether every output of a sigmoid satisfies the row, so that it says nothing."""
    if layer != "Sigmoid" or len(row.terms) != 1:
        return False
    limit, upper = _limit(row)
    return limit >= 1 if upper else limit <= 0


def _row(prop: Property, row: ExactRow, layer: LastLayer) -> ExactRow:
    values = [coefficient for _, coefficient in row.terms]
    if sorted(values) == [-1, 1] and not row.rhs:
        return row
    if layer == "Softmax" or len(values) != 1:
        raise SpecError(
            f"{prop.source}: a row cannot be restated without the last layer ({layer}): only comparisons of two outputs"
            f"{' or of one output with a number' if layer == 'Sigmoid' else ''} can; leave out"
            " onnx_vnnlib_joint_optimization_flags"
        )
    limit, upper = _limit(row)
    if not 0 < limit < 1:
        raise SpecError(
            f"{prop.source}: no output of a sigmoid is {'<=' if upper else '>='} {limit}; correct the limit of Y"
        )
    ((index, _),) = row.terms
    logit = _logit(limit)
    # y <= limit: z <= logit; y >= limit: -z <= -logit. Either right-hand side is rounded up.
    sign, bound = (Decimal(1), logit) if upper else (Decimal(-1), logit.copy_negate())
    return ExactRow(((index, sign),), bound.quantize(_KEPT, rounding=ROUND_CEILING, context=_context()), False)


def _limit(row: ExactRow) -> tuple[Decimal, bool]:
    """The number that one output is compared with, and whether it is an upper limit."""
    ((_, coefficient),) = row.terms
    return _context().divide(row.rhs, coefficient), coefficient > 0


def _logit(value: Decimal) -> Decimal:
    context = _context()
    return context.subtract(context.ln(value), context.ln(context.subtract(Decimal(1), value)))


def _context() -> Context:
    return Context(prec=_DIGITS + 60)

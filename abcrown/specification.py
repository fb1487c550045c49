"""`VerificationSpec`: what is asked about a network, from symbolic constraints, arrays, a ball or a VNN-LIB file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from abcrown.language.expressions import Expression, variables
from abcrown.language.formulas import Formula, Junction, Kind, Space
from abcrown.language.normal_form import boxes_of, violations_of
from abcrown.language.numbers import ArrayLike, Objects, decimal_of, fractions_of
from auto_LiRPA.errors import SpecError
from complete_verifier.spec.compile import read_vnnlib
from complete_verifier.spec.property import ExactRow, InputBox, Property, Region, clauses_from_rows
from complete_verifier.spec.writer import print_vnnlib

Rows = tuple[ExactRow, ...]

# Numbers (float64) that the boxes and matrices of a property may hold in all: 2 GB, as for files.
_MAX_NUMBERS = 250_000_000
_MAX_CASES = 100_000


def input_vars(shape: int | Sequence[int]) -> Expression:
    """The network's inputs as symbols, in the shape of one sample: ``input_vars(784)``, ``input_vars((1, 28, 28))``.

    Raises:
        SpecError: no positive whole number, and no sequence of such.
    """
    return variables(Kind.INPUT, shape)


def output_vars(shape: int | Sequence[int]) -> Expression:
    """The network's outputs as symbols; ``output_vars(10)``.

    Raises:
        SpecError: no positive whole number, and no sequence of such.
    """
    return variables(Kind.OUTPUT, shape)


@dataclass(frozen=True, slots=True)
class VerificationSpec:
    """A property of a network: input boxes, and what an output has to satisfy to be a counterexample.

    Make one by `build_spec`. ``input_shape`` is that of the input variables (or arrays); None where only a number of
    inputs is known. ``property`` holds the question in exact decimals.
    """

    property: Property
    input_shape: tuple[int, ...] | None

    @classmethod
    def build_spec(
        cls,
        input_vars: Expression | None = None,
        output_vars: Expression | None = None,
        input_constraint: Formula | None = None,
        output_constraint: Formula | None = None,
        *,
        lower: ArrayLike | None = None,
        upper: ArrayLike | None = None,
        clauses: Sequence[tuple[ArrayLike, ArrayLike]] | None = None,
        center: ArrayLike | None = None,
        eps: ArrayLike | None = None,
        label: int | None = None,
        n_outputs: int | None = None,
        vnnlib_path: str | Path | None = None,
        input_shape: Sequence[int] | None = None,
        name: str = "specification",
    ) -> VerificationSpec:
        """Make a specification. The inputs and the outputs are described in one way each.

        Inputs, one of:
            ``input_vars`` and ``input_constraint``: bounds of every input, joined by ``&``; several boxes by ``|``.
            ``lower`` and ``upper``: arrays ``[*shape]``, one box.
            ``center`` and ``eps``: an array ``[*shape]`` and a radius (a number, or an array of that shape).
        Outputs, one of:
            ``output_vars`` and ``output_constraint``: the property to **prove**, of strict comparisons.
            ``clauses``: the **counterexamples**, as in a compiled VNN-LIB file: pairs (matrix ``[rows, outputs]``, rhs
            ``[rows]``); an output ``y`` with ``matrix @ y <= rhs`` in all rows of some pair is a counterexample.
            ``label`` (with ``n_outputs`` or ``output_vars``): the output at this position is the largest.
        Or both from a file: ``vnnlib_path``, with ``input_shape`` where the network takes more than one axis.

        Args:
            name: what messages call the specification.

        Raises:
            SpecError: parts that are missing, given twice or do not fit; constraints that are no boxes or not strict;
                a box that is empty or unbounded; more cases than can be kept. One line says what and how to mend it.
        """
        inputs = _given(input_constraint=input_constraint, lower=lower, upper=upper, center=center, eps=eps)
        outputs = _given(output_constraint=output_constraint, clauses=clauses, label=label)
        if vnnlib_path is not None:
            if inputs or outputs:
                also = ", ".join((*inputs, *outputs))
                raise SpecError(f"{name}: vnnlib_path describes inputs and outputs; leave out {also}")
            read = read_vnnlib(vnnlib_path)
            return cls(read, _declared_shape(input_shape, read.n_inputs, name))
        try:
            boxes, shape = _boxes(inputs, input_vars)
            groups, width = _violations(outputs, output_vars, n_outputs)
            n_inputs = boxes[0].n_inputs
            _refuse_size(len(boxes), groups, n_inputs, width)
            made = tuple(clauses_from_rows(groups, width))
        except SpecError as error:
            raise SpecError(f"{name}: {error}") from None
        prop = Property(n_inputs, width, tuple(Region(box, made) for box in boxes), source=name)
        return cls(prop, shape if input_shape is None else _declared_shape(input_shape, n_inputs, name))

    def to_vnnlib(self) -> str:
        """The same question as VNN-LIB 1.0 text, which other tools read too."""
        return print_vnnlib(self.property)


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


# -- inputs -----------------------------------------------------------------------------------------------------------
def _boxes(given: dict[str, Any], variables_of: Expression | None) -> tuple[tuple[InputBox, ...], tuple[int, ...]]:
    """The boxes in the one way in which they are given, and the shape of a sample."""
    match tuple(given):
        case ("input_constraint",):
            space = _space_of(variables_of, Kind.INPUT)
            return boxes_of(given["input_constraint"], space), space.shape
        case ("lower", "upper"):
            return _box_between(given["lower"], given["upper"])
        case ("center", "eps"):
            return _box_around(given["center"], given["eps"])
    raise SpecError(
        "the inputs are described by input_constraint, by lower and upper, or by center and eps;"
        f" found {', '.join(given) or 'nothing'}"
    )


def _space_of(given: Expression | None, kind: Kind) -> Space:
    word = kind.value
    if given is None:
        raise SpecError(f"{word}_constraint needs {word}_vars: the variables that it is written in")
    if not isinstance(given, Expression) or given.space.kind is not kind:
        raise SpecError(f"{word}_vars: pass what {word}_vars(...) returned")
    return given.space


def _box_between(lower: Any, upper: Any) -> tuple[tuple[InputBox, ...], tuple[int, ...]]:
    lo, hi = fractions_of(lower, "lower"), fractions_of(upper, "upper")
    if lo.shape != hi.shape:
        raise SpecError(f"lower has the shape {lo.shape}, upper {hi.shape}; give one of each per input")
    return (_box(lo, hi),), lo.shape


def _box_around(center: Any, eps: Any) -> tuple[tuple[InputBox, ...], tuple[int, ...]]:
    middle, radius = fractions_of(center, "center"), fractions_of(eps, "eps")
    if any(value < 0 for value in radius.flat):
        raise SpecError("eps: a radius is negative; give 0 or more")
    try:
        radius = np.broadcast_to(radius, middle.shape)
    except ValueError:
        raise SpecError(f"eps has the shape {radius.shape}, center {middle.shape}; make them alike") from None
    return (_box(middle - radius, middle + radius),), middle.shape


def _box(lo: Objects, hi: Objects) -> InputBox:
    if lo.size == 0 or lo.ndim == 0:
        raise SpecError(f"an input of shape {lo.shape}; give an array with at least one axis and one number")
    return InputBox.from_exact(_decimals(lo), _decimals(hi))


def _decimals(values: Objects) -> list[Decimal]:
    found = [decimal_of(value) for value in values.flat]
    for value, decimal in zip(values.flat, found, strict=True):
        if decimal is None:
            raise SpecError(f"the bound {value} has no finite decimal form; give it as a float")
    return [decimal for decimal in found if decimal is not None]


def _declared_shape(shape: Sequence[int] | None, n_inputs: int, name: str) -> tuple[int, ...] | None:
    if shape is None:
        return None
    lengths = tuple(int(length) for length in shape)
    if int(np.prod(lengths)) != n_inputs or min(lengths, default=1) < 1:
        raise SpecError(f"{name}: input_shape = {lengths} does not hold the {n_inputs} inputs of the property")
    return lengths


# -- outputs ----------------------------------------------------------------------------------------------------------
def _violations(
    given: dict[str, Any], variables_of: Expression | None, n_outputs: int | None
) -> tuple[list[Rows], int]:
    """What counterexamples satisfy, in the one way in which it is given, and the number of outputs."""
    match tuple(given):
        case ("output_constraint",):
            space = _space_of(variables_of, Kind.OUTPUT)
            groups, width = violations_of(given["output_constraint"], space), space.size
        case ("clauses",):
            groups, width = _given_clauses(given["clauses"])
        case ("label",):
            groups, width = _largest(given["label"], n_outputs, variables_of)
        case _:
            raise SpecError(
                "the outputs are described by output_constraint, clauses or label;"
                f" found {', '.join(given) or 'nothing'}"
            )
    if n_outputs is not None and n_outputs != width:
        raise SpecError(f"n_outputs = {n_outputs}, but {width} outputs are described")
    return groups, width


def _given_clauses(clauses: Sequence[tuple[ArrayLike, ArrayLike]]) -> tuple[list[Rows], int]:
    groups: list[Rows] = []
    widths: set[int] = set()
    for position, pair in enumerate(clauses):
        place = f"clauses[{position}]"
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise SpecError(f"{place}: a clause is a pair (matrix [rows, outputs], rhs [rows])")
        matrix, rhs = fractions_of(pair[0], f"{place}: matrix"), fractions_of(pair[1], f"{place}: rhs")
        matrix, rhs = np.atleast_2d(matrix), np.atleast_1d(rhs)
        if matrix.ndim != 2 or rhs.shape != matrix.shape[:1] or matrix.size == 0:
            raise SpecError(f"{place}: a matrix of shape {matrix.shape} and a rhs of shape {rhs.shape} make no rows")
        widths.add(matrix.shape[1])
        groups.append(tuple(_given_row(*row, place) for row in zip(matrix, rhs, strict=True)))
    if not groups:
        raise SpecError("clauses: none is given, so nothing can be a counterexample; nothing to verify")
    if len(widths) > 1:
        raise SpecError(f"clauses: matrices of {', '.join(map(str, sorted(widths)))} columns; one column per output")
    return groups, widths.pop()


def _given_row(coefficients: Objects, rhs: Fraction, place: str) -> ExactRow:
    # floats have finite decimal expansions; only Fractions of a caller may have none
    numbers = [(i, decimal_of(k)) for i, k in enumerate(coefficients) if k]
    limit = decimal_of(rhs)
    if limit is None or any(decimal is None for _, decimal in numbers):
        raise SpecError(f"{place}: a number has no finite decimal form; give it as a float")
    return ExactRow(tuple((i, decimal) for i, decimal in numbers if decimal is not None), limit, strict=False)


def _largest(label: int, n_outputs: int | None, outputs: Expression | None) -> tuple[list[Rows], int]:
    if n_outputs is None and outputs is None:
        raise SpecError("label needs n_outputs: among how many outputs it is the largest")
    space = variables(Kind.OUTPUT, n_outputs).space if n_outputs is not None else _space_of(outputs, Kind.OUTPUT)
    if isinstance(label, bool) or not isinstance(label, int | np.integer) or not 0 <= label < space.size:
        raise SpecError(f"label = {label}: give the position of one of the {space.size} outputs")
    if space.size == 1:
        raise SpecError("label: there is one output only, which nothing can exceed")
    y = variables(Kind.OUTPUT, space.size)
    rivals = tuple(y[int(label)] > y[j] for j in range(space.size) if j != label)
    return violations_of(Junction(True, rivals), y.space), space.size


def _refuse_size(boxes: int, groups: Sequence[Rows], n_inputs: int, n_outputs: int) -> None:
    numbers = 2 * boxes * n_inputs + sum(map(len, groups)) * n_outputs
    if numbers > _MAX_NUMBERS or boxes * len(groups) > _MAX_CASES:
        raise SpecError(
            f"{boxes} boxes and {len(groups)} clauses make {boxes * len(groups)} cases (limit {_MAX_CASES}) and"
            f" {numbers} numbers (limit {_MAX_NUMBERS}); split it into several specifications"
        )

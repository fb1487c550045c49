"""From formulas to what is searched: a disjunction of cubes, its size known before it is built; boxes and clauses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from abcrown.language.formulas import Atom, Formula, Junction, Negation, Space
from abcrown.language.numbers import clear_denominators, decimal_of
from auto_LiRPA.errors import ContractError, SpecError
from complete_verifier.spec.formula import DEFAULT_MAX_CLAUSES
from complete_verifier.spec.property import ExactRow, InputBox

Cube = tuple[Atom, ...]

# Comparisons that a normal form may hold in all, as a multiple of the cap on its cubes.
_ATOMS_PER_CUBE = 100


@dataclass(frozen=True, slots=True)
class NormalForm:
    """A disjunction of conjunctions. No cube: false. An empty cube: true.

    ``multiplied``: at least two disjunctions were multiplied out, so cubes that contradict themselves may be nobody's
    mistake.
    """

    cubes: tuple[Cube, ...]
    multiplied: bool = False


def normal_form(formula: Formula, negated: bool = False, max_cubes: int = DEFAULT_MAX_CLAUSES) -> NormalForm:
    """The formula, or exactly its opposite, as a disjunction of cubes; equal comparisons and cubes are kept once.

    Raises:
        SpecError: it would have more cubes (or comparisons) than the cap allows.
    """
    found = _form(formula, negated, max_cubes)
    cubes = [_without_repeats(cube) for cube in found.cubes]
    once = {frozenset(atom.key for atom in cube): cube for cube in reversed(cubes)}
    return NormalForm(tuple(reversed(once.values())), found.multiplied)


def _form(formula: Formula, negated: bool, cap: int) -> NormalForm:
    if isinstance(formula, Negation):
        return _form(formula.operand, not negated, cap)
    if isinstance(formula, Atom):
        atom = formula.negation() if negated else formula
        if atom.constant is None:
            return NormalForm(((atom,),))
        return NormalForm(((),) if atom.constant else ())
    if not isinstance(formula, Junction):
        raise ContractError(f"a formula of the unknown kind {type(formula).__name__}")
    parts = [_form(part, negated, cap) for part in formula.parts()]
    if formula.conjunction != negated:
        return _conjoined(parts, cap)
    _check_size(sum(len(part.cubes) for part in parts), 0, cap)
    cubes = tuple(cube for part in parts for cube in part.cubes)
    return NormalForm(cubes, any(part.multiplied for part in parts))


def _conjoined(parts: Sequence[NormalForm], cap: int) -> NormalForm:
    """The cross product of the parts' cubes."""
    choices = [part for part in parts if len(part.cubes) != 1]
    product: list[Cube] = [tuple(atom for part in parts if len(part.cubes) == 1 for atom in part.cubes[0])]
    for part in choices:
        atoms = len(product) * sum(map(len, part.cubes)) + len(part.cubes) * sum(map(len, product))
        _check_size(len(product) * len(part.cubes), atoms, cap)
        product = [cube + other for cube in product for other in part.cubes]
    multiplied = sum(len(part.cubes) > 1 for part in parts) > 1 or any(part.multiplied for part in parts)
    return NormalForm(tuple(product), multiplied)


def _check_size(cubes: int, atoms: int, cap: int) -> None:
    if cubes > cap or atoms > cap * _ATOMS_PER_CUBE:
        raise SpecError(
            f"the constraint multiplies out to {cubes} cases with {atoms} comparisons (limit {cap}, and"
            f" {_ATOMS_PER_CUBE} comparisons for each); split the property into several specifications"
        )


def _without_repeats(cube: Cube) -> Cube:
    return tuple({atom.key: atom for atom in cube}.values())


# -- inputs -----------------------------------------------------------------------------------------------------------
def boxes_of(formula: Formula, space: Space, max_boxes: int = DEFAULT_MAX_CLAUSES) -> tuple[InputBox, ...]:
    """The input boxes that a constraint of the inputs describes, each once.

    Raises:
        SpecError: outputs in it, a relation between inputs, an input without bounds, an empty box.
    """
    check_variables(formula, space, "input_constraint")
    form = normal_form(formula, max_cubes=max_boxes)
    found: dict[InputBox, None] = {}
    problem: SpecError | None = None
    for cube in form.cubes:
        sides = _Sides(space)
        for atom in cube:
            sides.narrow(atom)
        problem = sides.contradiction()
        if problem is None:
            found[sides.box()] = None
        elif not form.multiplied:
            raise problem
    if not found:
        raise problem or SpecError("input_constraint: it can never hold; nothing to verify")
    return tuple(found)


class _Sides:
    """The bounds of all inputs in one cube, as it is read: the tightest of each side."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._bounds: dict[tuple[int, bool], tuple[Fraction, bool]] = {}  # (input, upper) -> bound, strict

    def narrow(self, atom: Atom) -> None:
        """Take one comparison in."""
        if len(atom.terms) != 1:
            names = " and ".join(self._space.name_of(i) for i, _ in atom.terms[:2])
            raise SpecError(
                f"input_constraint: {names} stand in one comparison, but the input region is a box: bound each input by"
                " numbers, or let the network compute the relation"
            )
        ((index, coefficient),) = atom.terms
        upper, bound = coefficient > 0, atom.rhs / coefficient
        known = self._bounds.get((index, upper))
        if known is not None:
            tighter = bound < known[0] if upper else bound > known[0]
            if not tighter and not (bound == known[0] and atom.strict):
                return
        self._bounds[index, upper] = bound, atom.strict

    def contradiction(self) -> SpecError | None:
        """What is wrong with an input whose interval is empty."""
        for (index, upper), (hi, hi_strict) in self._bounds.items():
            if not upper or (index, False) not in self._bounds:
                continue
            lo, lo_strict = self._bounds[index, False]
            if lo > hi or (lo == hi and (lo_strict or hi_strict)):
                interval = f"{'(' if lo_strict else '['}{float(lo)}, {float(hi)}{')' if hi_strict else ']'}"
                name = self._space.name_of(index)
                return SpecError(f"input_constraint: the box of {name} is empty: {interval}; correct one of its bounds")
        return None

    def box(self) -> InputBox:
        """The box. Raises SpecError for an input that is unbounded, or bounded by a number without finite decimals."""
        sides = [[self._side(i, upper) for i in range(self._space.size)] for upper in (False, True)]
        (lo, lo_strict), (hi, hi_strict) = (zip(*side, strict=True) for side in sides)
        return InputBox.from_exact(lo, hi, lo_strict, hi_strict)

    def _side(self, index: int, upper: bool) -> tuple[Decimal, bool]:
        found = self._bounds.get((index, upper))
        name, operator, side = self._space.name_of(index), "<=" if upper else ">=", "upper" if upper else "lower"
        if found is None:
            raise SpecError(f"input_constraint: {name} has no {side} bound; add ({name} {operator} number)")
        bound = decimal_of(found[0])
        if bound is None:
            raise SpecError(
                f"input_constraint: the {side} bound of {name}, {found[0]}, has no finite decimal form;"
                f" write it as a float: {name} {operator} {float(found[0])!r}"
            )
        return bound, found[1]


# -- outputs ----------------------------------------------------------------------------------------------------------
def violations_of(formula: Formula, space: Space, max_clauses: int = DEFAULT_MAX_CLAUSES) -> list[tuple[ExactRow, ...]]:
    """What a counterexample to a property of the outputs satisfies: one of these groups, all rows of it.

    Raises:
        SpecError: inputs in it, comparisons that are not strict, a property that always or never holds.
    """
    check_variables(formula, space, "output_constraint")
    for atom in _literals(formula, negated=False):
        if not atom.strict and atom.terms:
            raise SpecError(
                f"output_constraint: {atom} is not strict: a property is proved by bounds that stay clear of its limit;"
                " write it with < or >"
            )
    form = normal_form(formula, negated=True, max_cubes=max_clauses)
    if not form.cubes:
        raise SpecError("output_constraint: it holds whatever the outputs are; nothing to verify")
    if () in form.cubes:
        raise SpecError("output_constraint: it never holds, whatever the outputs are; nothing to verify")
    return [tuple(_row(atom) for atom in cube) for cube in form.cubes]


def _literals(formula: Formula, negated: bool) -> Iterator[Atom]:
    """The comparisons as they stand once every negation has been moved inwards."""
    if isinstance(formula, Negation):
        yield from _literals(formula.operand, not negated)
    elif isinstance(formula, Junction):
        for part in formula.parts():
            yield from _literals(part, negated)
    elif isinstance(formula, Atom):
        yield formula.negation() if negated else formula


def _row(atom: Atom) -> ExactRow:
    *coefficients, rhs = clear_denominators([*(k for _, k in atom.terms), atom.rhs])
    indices = [index for index, _ in atom.terms]
    terms = tuple((i, _decimal(k, atom)) for i, k in zip(indices, coefficients, strict=True))
    return ExactRow(terms, _decimal(rhs, atom), atom.strict)


def _decimal(value: Fraction, atom: Atom) -> Decimal:
    found = decimal_of(value)
    if found is None:  # more digits than exact arithmetic keeps
        raise SpecError(f"output_constraint: {atom}: its numbers have too many digits; shorten them")
    return found


def check_variables(formula: object, space: Space, place: str) -> None:
    """Raises SpecError unless ``formula`` is a constraint over the variables of ``space`` only."""
    if not isinstance(formula, Formula):
        raise SpecError(f"{place}: {type(formula).__name__} is no constraint; build it of comparisons such as y[0] > 0")
    for atom in formula.atoms():
        if atom.space is space:
            continue
        if atom.space.kind is not space.kind:
            raise SpecError(
                f"{place}: {atom.space.kind.value} variables in it; inputs belong into input_constraint, outputs into"
                " output_constraint"
            )
        raise SpecError(f"{place}: uses other variables than the {space.kind.value}_vars that are given with it")

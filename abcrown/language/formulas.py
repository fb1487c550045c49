"""Formulas: comparisons of linear expressions, joined by & and |. They are never true or false by themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from fractions import Fraction
from itertools import islice
from typing import NoReturn

from auto_LiRPA.errors import SpecError

# And and or may alternate so often: what reads a formula recurses that deep.
_DEEPEST = 200
_SHOWN = 5  # comparisons in a representation


class Kind(Enum):
    """What a variable stands for; the value is what messages call it."""

    INPUT = "input"
    OUTPUT = "output"


@dataclass(frozen=True, slots=True, eq=False)
class Space:
    """One set of variables. Two spaces are the same only if they are the same object."""

    kind: Kind
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of variables."""
        size = 1
        for length in self.shape:
            size *= length
        return size

    def name_of(self, index: int) -> str:
        """What messages call the variable at this flat position: ``x[2]``, ``x[0, 3]``."""
        letter = "x" if self.kind is Kind.INPUT else "y"
        place: list[int] = []
        for length in reversed(self.shape):
            place.append(index % length)
            index //= length
        return f"{letter}[{', '.join(str(i) for i in reversed(place))}]"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Formula:
    """Comparisons of linear expressions, joined by ``&`` (and), ``|`` (or) and ``~`` (not).

    Python's own ``and``, ``or``, ``not`` and chained comparisons ask for a truth value, which a formula has not: they
    raise `SpecError` here, as they would silently drop a part of the property.
    """

    __array_ufunc__ = None  # so that numpy leaves `array & formula` to us

    def __and__(self, other: object) -> Formula:
        return Junction(True, (self, _formula(other, "&")))

    def __or__(self, other: object) -> Formula:
        return Junction(False, (self, _formula(other, "|")))

    def __rand__(self, other: object) -> Formula:
        return Junction(True, (_formula(other, "&"), self))

    def __ror__(self, other: object) -> Formula:
        return Junction(False, (_formula(other, "|"), self))

    def __invert__(self) -> Formula:
        return Negation(self)

    def __bool__(self) -> NoReturn:
        raise SpecError(
            "a constraint has no truth value: join comparisons by & and |, each in parentheses, not by and, or, not;"
            " write (0 <= x) & (x <= 1), not 0 <= x <= 1"
        )

    def __eq__(self, other: object) -> NoReturn:
        raise SpecError("two constraints cannot be compared; join them by & and |, each in parentheses")

    __ne__ = __eq__
    __hash__ = object.__hash__

    def _compared(self, other: object) -> NoReturn:
        raise SpecError("a comparison of a comparison: write a < b < c as (a < b) & (b < c), with parentheses")

    __lt__ = __le__ = __gt__ = __ge__ = _compared

    def __repr__(self) -> str:
        shown = list(islice(self.atoms(), _SHOWN + 1))
        return f"<constraint: {', '.join(map(str, shown[:_SHOWN]))}{', ...' if len(shown) > _SHOWN else ''}>"

    @property
    def depth(self) -> int:
        """How often and, or and not alternate at most."""
        return 0

    def holds(self, values: Sequence[Fraction]) -> bool:
        """Whether the formula is true where the variable at flat position i has the value ``values[i]``; exact."""
        raise NotImplementedError

    def atoms(self) -> Iterator[Atom]:
        """Every comparison in the formula."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Atom(Formula):
    """``sum(coefficient * variable) <= rhs`` (``<`` where strict). Positions ascend; no coefficient is zero."""

    space: Space
    terms: tuple[tuple[int, Fraction], ...]
    rhs: Fraction
    strict: bool

    def negation(self) -> Atom:
        """``not (a <= r)`` is ``-a < -r``: strictness turns over with the side."""
        return Atom(self.space, tuple((i, -k) for i, k in self.terms), -self.rhs, not self.strict)

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for equal comparisons."""
        return self.terms, self.rhs, self.strict

    @property
    def constant(self) -> bool | None:
        """Its truth where no variable is left in it, else None."""
        if self.terms:
            return None
        return self.rhs > 0 if self.strict else self.rhs >= 0

    def holds(self, values: Sequence[Fraction]) -> bool:
        total = sum((k * values[i] for i, k in self.terms), Fraction(0))
        return total < self.rhs if self.strict else total <= self.rhs

    def atoms(self) -> Iterator[Atom]:
        yield self

    def __str__(self) -> str:
        sign = -1 if self.terms and self.terms[0][1] < 0 else 1  # y[0] > 0 rather than -y[0] < 0
        total = " + ".join(
            f"{'' if sign * k == 1 else f'{_number(sign * k)}*'}{self.space.name_of(i)}" for i, k in self.terms
        )
        return f"{total or '0'} {'<' if sign > 0 else '>'}{'' if self.strict else '='} {_number(sign * self.rhs)}"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Junction(Formula):
    """Several formulas, all (``conjunction``) or one of which must hold."""

    conjunction: bool
    operands: tuple[Formula, ...]
    depth: int = field(init=False)

    def __post_init__(self) -> None:
        depth = 0
        for operand in self.operands:
            same = isinstance(operand, Junction) and operand.conjunction == self.conjunction
            depth = max(depth, operand.depth + (0 if same else 1))
        object.__setattr__(self, "depth", _within_limit(depth))

    def parts(self) -> Iterator[Formula]:
        """The operands, with those of nested junctions of the same kind in their place; not recursive."""
        waiting: list[Formula] = list(reversed(self.operands))
        while waiting:
            part = waiting.pop()
            if isinstance(part, Junction) and part.conjunction == self.conjunction:
                waiting.extend(reversed(part.operands))
            else:
                yield part

    def holds(self, values: Sequence[Fraction]) -> bool:
        found = (part.holds(values) for part in self.parts())
        return all(found) if self.conjunction else any(found)

    def atoms(self) -> Iterator[Atom]:
        for part in self.parts():
            yield from part.atoms()


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Negation(Formula):
    """The opposite of a formula."""

    operand: Formula
    depth: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "depth", _within_limit(self.operand.depth + 1))

    def holds(self, values: Sequence[Fraction]) -> bool:
        return not self.operand.holds(values)

    def atoms(self) -> Iterator[Atom]:
        yield from self.operand.atoms()


def comparison(space: Space, terms: Mapping[int, Fraction], constant: Fraction, strict: bool) -> Atom:
    """``sum(terms) + constant <= 0`` as an atom."""
    return Atom(space, tuple(sorted((i, k) for i, k in terms.items() if k)), -constant, strict)


def _formula(value: object, operator: str) -> Formula:
    if isinstance(value, Formula):
        return value
    raise SpecError(
        f"{operator} joins comparisons, found {type(value).__name__}: put each comparison in parentheses, as in"
        f" (y[0] > 0) {operator} (y[1] > 0)"
    )


def _within_limit(depth: int) -> int:
    if depth > _DEEPEST:
        raise SpecError(f"a constraint in which &, | and ~ alternate more than {_DEEPEST} times; write it flatter")
    return depth


def _number(value: Fraction) -> str:
    return str(float(value)) if value.denominator != 1 else str(value.numerator)

"""Meaning of comparisons: exact linear arithmetic over declared variables, giving input bounds and output rows."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from decimal import Context, Decimal, DecimalException
from math import isfinite
from typing import NamedTuple

from auto_LiRPA.errors import SpecError
from complete_verifier.spec.lexer import NUMBER, Words
from complete_verifier.spec.parser import Expression
from complete_verifier.spec.property import ExactRow
from complete_verifier.spec.rounding import MINUS_ONE, ONE, ZERO, exact_context, negate

COMPARISONS = frozenset({"<=", "<", ">=", ">"})
_FEWEST_OPERANDS = {"+": 1, "-": 1, "*": 2, "/": 2}
_NO_NUMBER = re.compile(r"[+-]?(?:inf|infinity|nan|oo)", re.IGNORECASE)
_MAX_NUMBER_LENGTH = 1000
_MIN_EXPONENT, _MAX_EXPONENT = -1000, 308  # of numbers; from 1e309 on float64 has only infinity

# Variables are numbered inputs first, outputs after them, as the network lists them.
Variable = int
CONSTANT: Variable = -1  # stands for the constant in a linear form
LinearForm = dict[Variable, Decimal]  # sum of number * variable
Terms = tuple[tuple[Variable, Decimal], ...]


# A side of an input's interval: 2 * input index, plus 1 for the upper one. An integer, as it keys large tables.
Side = int


def side_of(index: int, upper: bool) -> Side:
    return 2 * index + upper


class BoundLiteral(NamedTuple):
    """X <= bound on an upper side, X >= bound on a lower one; < or > where strict. `at` is the word it starts at."""

    side: Side
    bound: Decimal
    strict: bool
    at: int


class RowLiteral(NamedTuple):
    """A linear constraint over the outputs."""

    row: ExactRow
    at: int


Literal = BoundLiteral | RowLiteral


@dataclass(frozen=True, slots=True)
class LinearReader:
    """Reads terms and comparisons of one specification."""

    source: Words
    n_inputs: int
    n_outputs: int
    words: list[str] = field(init=False)  # of the source
    variables: dict[str, Variable] = field(init=False)
    numbers: dict[str, Decimal] = field(init=False, default_factory=dict)  # words read before
    context: Context = field(init=False, default_factory=exact_context)

    def __post_init__(self) -> None:
        names = [f"X_{i}" for i in range(self.n_inputs)] + [f"Y_{j}" for j in range(self.n_outputs)]
        object.__setattr__(self, "words", self.source.words)
        object.__setattr__(self, "variables", {name: number for number, name in enumerate(names)})

    def comparison(self, group: list[Expression], head: int, negated: bool) -> Literal | bool:
        """The literal of (cmp a b), or of its negation; a bool where no variable is left in it."""
        operator = self.words[head]
        if len(group) != 3:
            raise self.source.error(
                head, f"'{operator}' takes two operands, found {len(group) - 1}; chain with (and ...)"
            )
        left, right = group[1:]
        if operator[0] == ">":
            left, right = right, left
        strict = operator[-1] != "="
        if negated:  # not (a <= b)  is  b < a
            left, right, strict = right, left, not strict
        terms, rhs = self._difference(left, right, head)
        if not terms:
            return rhs > ZERO if strict else rhs >= ZERO
        if terms[-1][0] < self.n_inputs:
            return self._bound(terms, rhs, strict, head)
        if terms[0][0] < self.n_inputs:
            raise self.source.error(
                head, "a constraint mixes inputs (X) and outputs (Y); let the network output the difference"
            )
        own_terms = tuple([(variable - self.n_inputs, coefficient) for variable, coefficient in terms])
        return RowLiteral(ExactRow(own_terms, rhs, strict), head)

    def _difference(self, left: Expression, right: Expression, at: int) -> tuple[Terms, Decimal]:
        """left <= right  as  sum(terms) <= rhs. Two atoms, nearly every line of a file, go a short way."""
        if isinstance(left, int) and isinstance(right, int):
            left_variable = self.variables.get(self.words[left])
            right_variable = self.variables.get(self.words[right])
            if left_variable is not None and right_variable is None:
                return ((left_variable, ONE),), self._number(right)
            if left_variable is None and right_variable is not None:
                return ((right_variable, MINUS_ONE),), negate(self._number(left))
            if left_variable is not None and right_variable is not None and left_variable != right_variable:
                pair = ((left_variable, ONE), (right_variable, MINUS_ONE))
                return pair if left_variable < right_variable else pair[::-1], ZERO
        total: LinearForm = {}
        try:
            self._add(left, ONE, total)
            self._add(right, MINUS_ONE, total)
        except DecimalException:
            raise self.source.error(
                at, "the numbers here multiply out to more digits than can be kept; shorten them"
            ) from None
        rhs = negate(total.pop(CONSTANT, ZERO))
        return tuple([(variable, total[variable]) for variable in sorted(total) if total[variable]]), rhs

    def _add(self, expression: Expression, factor: Decimal, total: LinearForm) -> None:
        """total += factor * expression, exactly (or DecimalException)."""
        if isinstance(expression, int):
            variable = self.variables.get(self.words[expression], CONSTANT)
            if variable == CONSTANT:
                factor = self.context.multiply(factor, self._number(expression))
            total[variable] = self.context.add(total[variable], factor) if variable in total else factor
            return
        operator, operands, at = self._operation(expression)
        if operator == "+":
            for operand in operands:
                self._add(operand, factor, total)
        elif operator == "-":
            opposite = negate(factor)
            self._add(operands[0], factor if len(operands) > 1 else opposite, total)
            for operand in operands[1:]:
                self._add(operand, opposite, total)
        elif operator == "*":
            self._add_product(operands, factor, total, at)
        else:
            self._add_quotient(operands, factor, total, at)

    def _operation(self, group: list[Expression]) -> tuple[str, list[Expression], int]:
        """Operator, operands and place of an arithmetic group."""
        head, operands = group[0], group[1:]
        at = first_word(head)
        operator = self.words[at]
        if not isinstance(head, int) or operator not in _FEWEST_OPERANDS:
            raise self.source.error(at, f"{self.source.quote(at)} is no arithmetic operator; use + - * /")
        if len(operands) < _FEWEST_OPERANDS[operator]:
            raise self.source.error(at, f"'{operator}' has too few operands; give it {_FEWEST_OPERANDS[operator]}")
        return operator, operands, at

    def _add_product(self, operands: list[Expression], factor: Decimal, total: LinearForm, at: int) -> None:
        rest: list[Expression] = []
        for operand in operands:
            if isinstance(operand, int) and self.words[operand] not in self.variables:
                factor = self.context.multiply(factor, self._number(operand))
            else:
                rest.append(operand)
        if len(rest) == 1:  # as in (* 0.5 (+ Y_0 Y_1)): no need to know whether it is constant
            return self._add(rest[0], factor, total)
        values = [self._value(operand) for operand in rest]
        varying = [value for value in values if value.keys() - {CONSTANT}]
        if len(varying) > 1:
            raise self.source.error(at, "a product of variables is not linear; only constants may multiply a variable")
        for value in values:
            if not value.keys() - {CONSTANT}:
                factor = self.context.multiply(factor, value.get(CONSTANT, ZERO))
        self._add_scaled(varying[0] if varying else {CONSTANT: ONE}, factor, total)

    def _add_quotient(self, operands: list[Expression], factor: Decimal, total: LinearForm, at: int) -> None:
        value = self._value(operands[0])
        for operand in operands[1:]:
            divisor = self._value(operand)
            if list(divisor) != [CONSTANT]:
                raise self.source.error(at, "a divisor must be a constant other than zero")
            value = {variable: self._divide(number, divisor[CONSTANT], at) for variable, number in value.items()}
        self._add_scaled(value, factor, total)

    def _add_scaled(self, value: LinearForm, factor: Decimal, total: LinearForm) -> None:
        for variable, number in value.items():
            product = self.context.multiply(number, factor)
            total[variable] = self.context.add(total[variable], product) if variable in total else product

    def _value(self, expression: Expression) -> LinearForm:
        """An arithmetic expression by itself, without vanished terms."""
        total: LinearForm = {}
        self._add(expression, ONE, total)
        return {variable: number for variable, number in total.items() if number}

    def _bound(self, terms: Terms, rhs: Decimal, strict: bool, at: int) -> BoundLiteral:
        """coefficient * X <= rhs  as a bound of X."""
        if len(terms) != 1:
            names = " and ".join(f"X_{variable}" for variable, _ in terms[:2])
            raise self.source.error(
                at,
                f"{names} stand in one constraint, but the input region is a box: bound each input by a"
                " number, or let the network compute the relation",
            )
        index, coefficient = terms[0]
        if coefficient in (1, -1):
            bound = rhs if coefficient == 1 else negate(rhs)
        else:
            bound = self._divide(rhs, coefficient, at)
        return BoundLiteral(side_of(index, coefficient > 0), bound if bound else ZERO, strict, at)

    def _divide(self, numerator: Decimal, denominator: Decimal, at: int) -> Decimal:
        try:
            return self.context.divide(numerator, denominator)
        except DecimalException:
            raise self.source.error(
                at, "this division has no finite decimal result; write the result as a decimal"
            ) from None

    def _number(self, at: int) -> Decimal:
        word = self.words[at]
        known = self.numbers.get(word)
        if known is not None:
            return known
        if NUMBER.fullmatch(word) is None:
            raise self._no_number(at)
        if len(word) > _MAX_NUMBER_LENGTH:
            raise self.source.error(at, f"a number of {len(word)} characters; at most {_MAX_NUMBER_LENGTH} are read")
        try:
            value = self.context.create_decimal(word)
        except DecimalException:
            raise self._out_of_range(at) from None
        exponent = value.adjusted()
        if value and not _MIN_EXPONENT <= exponent < _MAX_EXPONENT:
            if exponent != _MAX_EXPONENT or not isfinite(float(value)):
                raise self._out_of_range(at)
        self.numbers[word] = value = value if value else ZERO
        return value

    def _out_of_range(self, at: int) -> SpecError:
        return self.source.error(at, f"{self.source.quote(at)} is beyond the float64 range; give a finite number")

    def _no_number(self, at: int) -> SpecError:
        word, quoted = self.words[at], self.source.quote(at)
        if _NO_NUMBER.fullmatch(word):
            return self.source.error(at, f"{quoted} is no finite number; every bound must be finite")
        if word[:2] in ("X_", "Y_"):
            counts = f"{self.n_inputs} inputs and {self.n_outputs} outputs are declared"
            return self.source.error(
                at,
                f"{quoted} is not declared ({counts}); add (declare-const {word[:40]} Real)"
                if word.isascii()
                else f"{quoted} is not declared ({counts})",
            )
        if word[:3] in ("-X_", "-Y_"):
            return self.source.error(at, f"{quoted} is not a variable; write (- {word[1:]})")
        return self.source.error(at, f"{quoted} is neither a declared variable nor a decimal number")


def first_word(expression: Expression) -> int:
    """Index of the first word inside an expression, for messages."""
    while not isinstance(expression, int):
        expression = expression[0]
    return expression

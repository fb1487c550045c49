"""And, or, not: an assertion as a disjunction of cubes (conjunctions of literals), with a cap on its size."""

from __future__ import annotations

from dataclasses import dataclass

from auto_LiRPA.errors import SpecError
from complete_verifier.spec.linear import COMPARISONS, LinearReader, Literal, first_word
from complete_verifier.spec.parser import Expression

Cube = tuple[Literal, ...]

DEFAULT_MAX_CLAUSES = 100_000
_LITERALS_PER_CLAUSE = 100  # the cap on literals, as a multiple of the cap on clauses

_DUAL = {"and": "or", "or": "and"}
_HINTS = {
    "=": "write (and (<= a b) (>= a b))",
    "=>": "write (or (not a) b)",
    "assert": "a ')' is missing before it",
    "declare-const": "a ')' is missing before it",
    "ite": "write it with and, or, not",
    "let": "write the terms out",
}


@dataclass(frozen=True, slots=True)
class FormulaReader:
    """Turns assertions into disjunctive normal form."""

    linear: LinearReader
    max_clauses: int = DEFAULT_MAX_CLAUSES

    def cubes(self, formula: Expression, negated: bool = False) -> list[Cube]:
        """The cubes whose disjunction is the formula (or its negation). None: false. One empty cube: true."""
        if isinstance(formula, int):
            raise self._no_formula(formula, self.linear.words[formula])
        head = formula[0]
        if not isinstance(head, int):
            raise self._no_formula(first_word(head), "(")
        operator = self.linear.words[head]
        if operator in COMPARISONS:
            literal = self.linear.comparison(formula, head, negated)
            if isinstance(literal, bool):
                return [()] if literal else []
            return [(literal,)]
        if len(formula) < 2:
            raise self.linear.source.error(head, f"'{operator}' has no operand; remove it or give it one")
        if operator == "not":
            if len(formula) != 2:
                raise self.linear.source.error(head, f"'not' takes one operand, found {len(formula) - 1}")
            return self.cubes(formula[1], not negated)
        if operator not in _DUAL:
            raise self._no_formula(head, operator)
        parts = [self.cubes(part, negated) for part in formula[1:]]
        if (_DUAL[operator] if negated else operator) == "and":
            return self.conjoin(parts, head)
        return self._within_cap([cube for part in parts for cube in part], head)

    def alternatives(self, formula: Expression, negated: bool = False) -> int:
        """How many disjunctions multiply in a formula that `cubes` has accepted: 0, 1, or 2 for more."""
        operator = self.linear.words[first_word(formula)]
        if isinstance(formula, int) or operator in COMPARISONS:
            return 0
        if operator == "not":
            return self.alternatives(formula[1], not negated)
        parts = [self.alternatives(part, negated) for part in formula[1:]]
        conjunction = (_DUAL[operator] if negated else operator) == "and"
        return min(2, sum(parts)) if conjunction else max(1, *parts)

    def conjoin(self, parts: list[list[Cube]], at: int) -> list[Cube]:
        """Cubes of the conjunction of several disjunctions: their cross product, sized before it is built."""
        certain: list[Literal] = []
        choices = []
        for part in parts:
            if len(part) == 1:
                certain += part[0]
            else:
                choices.append(part)
        product: list[Cube] = [tuple(certain)]
        for part in choices:
            literals = len(product) * sum(map(len, part)) + len(part) * sum(map(len, product))
            self.check_size(len(product) * len(part), literals, at)
            product = [cube + other for cube in product for other in part]
        return product

    def _within_cap(self, cubes: list[Cube], at: int) -> list[Cube]:
        self.check_size(len(cubes), 0, at)
        return cubes

    def check_size(self, n_cubes: int, n_literals: int, at: int) -> None:
        """Raises SpecError where a normal form would have more clauses or constraints than the cap allows."""
        if n_cubes > self.max_clauses or n_literals > self.max_clauses * _LITERALS_PER_CLAUSE:
            raise self.linear.source.error(
                at,
                f"the disjunctions multiply out to {n_cubes} clauses with {n_literals} constraints"
                f" (limit {self.max_clauses}); split the property into several files",
            )

    def _no_formula(self, at: int, operator: str) -> SpecError:
        quoted = self.linear.source.quote(at)
        hint = _HINTS.get(operator, "formulas are built with and, or, not, <=, <, >=, >")
        return self.linear.source.error(at, f"{quoted} is not supported as a formula; {hint}")

"""A property as VNN-LIB 1.0 text: the inverse of the reader."""

from __future__ import annotations

from decimal import Decimal

from auto_LiRPA.errors import SpecError
from complete_verifier.spec.property import Clause, ExactRow, InputBox, Property
from complete_verifier.spec.rounding import ONE, negate


def print_vnnlib(spec: Property) -> str:
    """VNN-LIB 1.0 text that `read_vnnlib_text` reads back as an equal property.

    Rows that compare two outputs, or one with a number, are written the short way that other tools read too.
    Raises SpecError for a ball, which VNN-LIB has no words for.
    """
    if any(region.ball is not None for region in spec.regions):
        raise SpecError(f"{spec.source}: a ball cannot be written as VNN-LIB, which knows boxes only")
    lines = [f"(declare-const X_{i} Real)" for i in range(spec.n_inputs)]
    lines += [f"(declare-const Y_{j} Real)" for j in range(spec.n_outputs)]
    if len(spec.regions) == 1:
        region = spec.regions[0]
        lines += [f"(assert {bound})" for bound in _box(region.box)]
        cases = [_clause(clause) for clause in region.clauses]
    else:
        cases = [_box(region.box) + _clause(clause) for region in spec.regions for clause in region.clauses]
    if len(cases) == 1:
        lines += [f"(assert {part})" for part in cases[0]]
    else:
        # A clause without rows is satisfied by every output; (and) may not stand empty.
        conjunctions = [f"    (and {' '.join(case or ['(<= 0 0)'])})" for case in cases]
        lines += ["(assert (or", *conjunctions, "))"]
    return "\n".join(lines) + "\n"


def _box(box: InputBox) -> list[str]:
    parts = []
    for i in range(box.n_inputs):
        parts.append(f"({'>' if box.lo_strict[i] else '>='} X_{i} {box.lo_exact[i]})")
        parts.append(f"({'<' if box.hi_strict[i] else '<='} X_{i} {box.hi_exact[i]})")
    return parts


def _clause(clause: Clause) -> list[str]:
    return [_row(row) for row in clause.rows]


def _row(row: ExactRow) -> str:
    less, greater = ("<", ">") if row.strict else ("<=", ">=")
    if len(row.terms) == 1 and row.terms[0][1] in (1, -1):
        ((index, coefficient),) = row.terms
        return f"({less} Y_{index} {row.rhs})" if coefficient > 0 else f"({greater} Y_{index} {negate(row.rhs)})"
    if len(row.terms) == 2 and not row.rhs and {coefficient for _, coefficient in row.terms} == {1, -1}:
        left, right = (index for index, _ in sorted(row.terms, key=lambda term: term[1], reverse=True))
        return f"({less} Y_{left} Y_{right})"
    total = " ".join(_term(index, coefficient) for index, coefficient in row.terms)
    return f"({less} (+ {total}) {row.rhs})"


def _term(index: int, coefficient: Decimal) -> str:
    return f"Y_{index}" if coefficient == ONE else f"(* {coefficient} Y_{index})"

"""From assertions to the property: input boxes and output clauses, grouped by box. `read_vnnlib` is the door."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from auto_LiRPA.errors import SpecError
from complete_verifier.spec.boxes import Bounds, BoxKey, BoxMaker, box_key, check_nonempty, empty_input, tighten
from complete_verifier.spec.formula import DEFAULT_MAX_CLAUSES, Cube, FormulaReader
from complete_verifier.spec.lexer import Words, read_words, split_words
from complete_verifier.spec.linear import BoundLiteral, LinearReader, first_word
from complete_verifier.spec.parser import Expression, Script, parse_script
from complete_verifier.spec.property import ExactRow, Property, Region, clauses_from_rows

logger = logging.getLogger(__name__)

# Numbers (float64) that the boxes and matrices of a property may hold in all: 2 GB.
_MAX_NUMBERS = 250_000_000

Rows = tuple[ExactRow, ...]


def read_vnnlib(
    path: str | Path,
    *,
    n_inputs: int | None = None,
    n_outputs: int | None = None,
    max_clauses: int = DEFAULT_MAX_CLAUSES,
) -> Property:
    """The property in a VNN-LIB 1.0 file (plain or gzip); a point that satisfies all assertions is a counterexample.

    `n_inputs` and `n_outputs` are the network's, if known: a file that declares others is refused.
    Raises SpecError (one line: file, line and column, what is wrong, the mend).
    """
    return _read(read_words(Path(path)), n_inputs, n_outputs, max_clauses)


def read_vnnlib_text(text: str, *, source: str = "property", max_clauses: int = DEFAULT_MAX_CLAUSES) -> Property:
    """`read_vnnlib` for a text that is not in a file; `source` names it in messages."""
    return _read(split_words(text, source), None, None, max_clauses)


def read_counts(path: str | Path) -> tuple[int, int]:
    """How many inputs and outputs a VNN-LIB file declares."""
    script = parse_script(read_words(Path(path)))
    return script.n_inputs, script.n_outputs


def _read(source: Words, n_inputs: int | None, n_outputs: int | None, max_clauses: int) -> Property:
    with _no_collection():
        return _read_words(source, n_inputs, n_outputs, max_clauses)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Pauses the cycle collector: reading makes up to a million small tuples, none in a cycle, which it would scan
    again and again (measured: 1.7 s instead of 3.0 s for 40,000 clauses)."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _read_words(source: Words, n_inputs: int | None, n_outputs: int | None, max_clauses: int) -> Property:
    script = parse_script(source)
    for noun, declared, expected in (("inputs", script.n_inputs, n_inputs), ("outputs", script.n_outputs, n_outputs)):
        if expected is not None and declared != expected:
            mend = "is this the property of another network?"
            raise SpecError(f"{source.source}: declares {declared} {noun} but the network has {expected}; {mend}")
    reader = FormulaReader(LinearReader(source, script.n_inputs, script.n_outputs), max_clauses)
    return _Compiler(source, script, reader).property()


@dataclass(frozen=True, slots=True)
class _Case:
    """One cube, sorted out: the bounds it narrows and all rows that hold in it."""

    bounds: Bounds
    rows: Rows


@dataclass(slots=True)
class _Compiler:
    """Works out one script: what is common to all cases, the cases, their boxes, their clauses."""

    source: Words
    script: Script
    reader: FormulaReader
    common_bounds: Bounds = field(default_factory=dict)  # from assertions without alternatives
    common_rows: list[ExactRow] = field(default_factory=list)
    disjunctions: list[tuple[Expression, list[Cube]]] = field(default_factory=list)  # assertions of two cases or more

    def property(self) -> Property:
        self._sort_assertions()
        check_nonempty(self.source, self.common_bounds, {})
        at = first_word(self.script.assertions[-1])
        cubes = self.reader.conjoin([cubes for _, cubes in self.disjunctions], at)
        self.reader.check_size(len(cubes), len(cubes) * len(self.common_rows), at)
        groups: dict[BoxKey, list[_Case]] = {}
        n_empty = 0
        for cube in cubes:
            case = self._case(cube)
            if empty_input(case.bounds, self.common_bounds) is None:
                groups.setdefault(box_key(case.bounds), []).append(case)
            else:
                n_empty += 1
        if n_empty:
            self._account_for_empty_cases(n_empty, len(cubes))
        if not any(case.rows for group in groups.values() for case in group):
            raise SpecError(
                f"{self.source.source}: no assertion constrains an output (Y), so every input would be a"
                " counterexample; assert what a violation is"
            )
        return self._build(list(groups.values()))

    def _sort_assertions(self) -> None:
        """Fills the common parts and the disjunctions."""
        for assertion in self.script.assertions:
            cubes = self.reader.cubes(assertion)
            if not cubes:
                raise self.source.error(first_word(assertion), "this assertion can never hold; nothing to verify")
            if len(cubes) > 1:
                self.disjunctions.append((assertion, cubes))
                continue
            for literal in cubes[0]:
                if isinstance(literal, BoundLiteral):
                    tighten(self.common_bounds, literal, {})
                else:
                    self.common_rows.append(literal.row)

    def _account_for_empty_cases(self, n_empty: int, n_cases: int) -> None:
        """Boxes of different disjunctions need not meet: such combined cases are left out, as logic has it.

        But a case that contradicts itself or the common box as it is written is a mistake of the writer: refused.
        """
        for assertion, cubes in self.disjunctions:
            if self.reader.alternatives(assertion) == 1:
                for cube in cubes:
                    check_nonempty(self.source, self._case(cube).bounds, self.common_bounds)
        if n_empty == n_cases:
            raise SpecError(f"{self.source.source}: every case of the assertions contradicts itself; nothing to verify")
        logger.info(
            "%s: %d of %d combined cases have an empty input box and are left out", self.source.source, n_empty, n_cases
        )

    def _case(self, cube: Cube) -> _Case:
        bounds: Bounds = {}
        rows = self.common_rows.copy()
        for literal in cube:
            if isinstance(literal, BoundLiteral):
                tighten(bounds, literal, self.common_bounds)
            else:
                rows.append(literal.row)
        return _Case(bounds, tuple(rows))

    def _build(self, groups: list[list[_Case]]) -> Property:
        """One region per distinct box, in order of appearance; equal clauses of a box are kept once."""
        clause_rows = [list(dict.fromkeys(case.rows for case in group)) for group in groups]
        all_rows = [rows for group in clause_rows for rows in group]
        n_inputs, n_outputs = self.script.n_inputs, self.script.n_outputs
        size = 2 * len(groups) * n_inputs + sum(map(len, all_rows)) * n_outputs
        if size > _MAX_NUMBERS:
            raise SpecError(
                f"{self.source.source}: {len(groups)} boxes and {len(all_rows)} clauses make {size} numbers"
                f" (limit {_MAX_NUMBERS}); split the property into several files"
            )
        try:
            clauses = iter(clauses_from_rows(all_rows, n_outputs))
        except SpecError as error:
            raise SpecError(f"{self.source.source}: {error}") from None
        maker = BoxMaker(self.source, n_inputs, self.common_bounds)
        regions = tuple(
            Region(maker.box(group[0].bounds), tuple(islice(clauses, len(rows))))
            for group, rows in zip(groups, clause_rows, strict=True)
        )
        return Property(n_inputs, n_outputs, regions, source=self.source.source)

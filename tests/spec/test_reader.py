"""What a VNN-LIB text means: the property read from it against the raw formula, point by point."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from auto_LiRPA.errors import SpecError
from complete_verifier.spec import boxes, linear
from complete_verifier.spec import compile as reader
from complete_verifier.spec.compile import read_counts, read_vnnlib, read_vnnlib_text
from complete_verifier.spec.formula import FormulaReader
from complete_verifier.spec.parser import Expression
from complete_verifier.spec.property import ExactRow, Property
from complete_verifier.spec.writer import print_vnnlib
from tests.spec.generators import all_points, vnnlib_text
from tests.spec.oracle import is_counterexample, trees

POINTS = all_points()
HEAD = "".join(f"(declare-const {v}_{i} Real)\n" for v in "XY" for i in range(2))
BOX = "(assert (<= X_0 1)) (assert (>= X_0 -1)) (assert (<= X_1 1)) (assert (>= X_1 -1))\n"

# Between them these use every feature; each planted fault below must show on one of them.
RICH = (
    HEAD + BOX + "(assert (<= Y_0 Y_1)) (assert (or (and (>= Y_0 0.5) (<= Y_1 1)) (< Y_1 -0.5)))",
    HEAD + "(assert (or (and (<= X_0 1) (>= X_0 0.25) (<= X_1 1) (>= X_1 0) (>= Y_0 1))"
    " (and (< X_0 0) (>= X_0 -1) (<= X_1 1) (>= X_1 0) (or (<= Y_0 Y_1) (> Y_1 0.25)))))",
    HEAD + "(assert (or (<= X_0 -0.5) (>= X_0 0.5)))" + BOX + "(assert (or (<= Y_0 Y_1) (>= Y_0 0.5)))",
    HEAD + BOX + "(assert (not (or (<= (+ Y_0 (* 2 Y_1)) 0.5) (> (- Y_0 0.25) (* 3 Y_1)))))",
)  # fmt: skip


def disagreement(text: str, spec: Property, points: list[tuple[tuple[Fraction, ...], tuple[Fraction, ...]]]) -> object:
    """A point where the property and the raw formula differ; None where they agree on all."""
    commands = trees(text)
    for x, y in points:
        expected = is_counterexample(commands, x, y)
        if spec.violated_by([float(v) for v in x], [float(v) for v in y]) != expected:
            return x, y, expected
    return None


@pytest.mark.parametrize("text", RICH)
def test_property_means_what_the_formula_says_on_all_grid_points(text: str) -> None:
    assert disagreement(text, read_vnnlib_text(text), POINTS) is None


@settings(max_examples=100, deadline=None)
@given(vnnlib_text(), st.integers(0, 2**32))
def test_property_means_what_a_random_formula_says(text: str, seed: int) -> None:
    points = Random(seed).sample(POINTS, 60)
    try:
        spec = read_vnnlib_text(text)
    except SpecError as error:
        if "can never hold" in str(error) or "every case" in str(error):
            commands = trees(text)
            assert not any(is_counterexample(commands, x, y) for x, y in points)
        else:
            assert "box of input" in str(error) or "constrains an output" in str(error)
        assume(False)
    assert disagreement(text, spec, points) is None


@settings(max_examples=50, deadline=None)
@given(vnnlib_text())
def test_reading_what_was_printed_gives_the_same_property(text: str) -> None:
    try:
        spec = read_vnnlib_text(text)
    except SpecError:
        assume(False)
    again = read_vnnlib_text(print_vnnlib(spec))
    assert again == spec
    assert print_vnnlib(again) == print_vnnlib(spec)


def drop_last_literal(monkeypatch: pytest.MonkeyPatch) -> None:
    conjoin = FormulaReader.conjoin
    monkeypatch.setattr(FormulaReader, "conjoin", lambda self, parts, at: conjoin(self, parts[:-1] or parts, at))


def lose_boxes_of_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    tighten = boxes.tighten
    monkeypatch.setattr(reader, "tighten", lambda mine, literal, common: common or tighten(mine, literal, common))


def lose_common_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = reader._Compiler
    sort = compiler._sort_assertions

    def sort_and_forget(self: reader._Compiler) -> None:
        sort(self)
        self.common_rows.clear()

    monkeypatch.setattr(compiler, "_sort_assertions", sort_and_forget)


def changing_rows(monkeypatch: pytest.MonkeyPatch, change: Callable[[ExactRow], ExactRow]) -> None:
    comparison = linear.LinearReader.comparison

    def faulty(self: linear.LinearReader, group: list[Expression], head: int, negated: bool) -> object:
        literal = comparison(self, group, head, negated)
        return literal._replace(row=change(literal.row)) if isinstance(literal, linear.RowLiteral) else literal

    monkeypatch.setattr(linear.LinearReader, "comparison", faulty)


def swap_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    changing_rows(monkeypatch, lambda row: row._replace(terms=tuple((i, -c) for i, c in row.terms)))


def forget_strict_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    changing_rows(monkeypatch, lambda row: row._replace(strict=False))


def forget_strict_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    tighten = boxes.tighten
    loose = lambda mine, literal, common: tighten(mine, literal._replace(strict=False), common)  # noqa: E731
    monkeypatch.setattr(reader, "tighten", loose)


def ignore_not(monkeypatch: pytest.MonkeyPatch) -> None:
    cubes = FormulaReader.cubes
    monkeypatch.setattr(FormulaReader, "cubes", lambda self, formula, negated=False: cubes(self, formula, False))


def merge_all_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "box_key", lambda bounds: frozenset())


FAULTS = (
    drop_last_literal,
    lose_boxes_of_cases,
    lose_common_rows,
    swap_signs,
    forget_strict_rows,
    forget_strict_bounds,
    ignore_not,
    merge_all_boxes,
)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_of_the_reader_shows(
    fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison above can fail: with each fault some text is misread (or refused)."""
    fault(monkeypatch)
    shown = 0
    for text in RICH:
        try:
            shown += disagreement(text, read_vnnlib_text(text), POINTS) is not None
        except SpecError:
            shown += fault is lose_boxes_of_cases  # an input left unbounded
    assert shown, f"{fault.__name__} is not noticed"


def test_equal_boxes_become_one_region_by_value() -> None:
    cases = (
        "(<= X_0 0.5) (>= Y_0 0)",
        "(<= X_0 0.50) (>= Y_1 0)",
        "(<= X_0 5e-1) (<= X_1 7) (>= Y_1 1)",
        "(< X_0 0.5) (>= Y_1 1)",
    )
    spec = read_vnnlib_text(HEAD + BOX + f"(assert (or {' '.join(f'(and {case})' for case in cases)}))")
    assert [len(region.clauses) for region in spec.regions] == [3, 1]
    assert spec.regions[1].box.hi_strict.tolist() == [True, False]


def test_equal_clauses_of_a_box_are_kept_once() -> None:
    spec = read_vnnlib_text(HEAD + BOX + "(assert (or (>= Y_0 1) (>= Y_0 1.0) (> Y_0 1) (<= 1 Y_0)))")
    assert [[row.strict for row in clause.rows] for clause in spec.regions[0].clauses] == [[False], [True]]


def test_numbers_are_kept_exactly() -> None:
    """Forty digits survive: arithmetic in Python's default decimal context would round them to 28."""
    digits = "0.1234567890123456789012345678901234567891"
    spec = read_vnnlib_text(HEAD + BOX + f"(assert (>= X_0 -{digits})) (assert (>= (- Y_0 Y_1) (+ 1 {digits})))")
    assert spec.regions[0].box.lo_exact[0] == Decimal(f"-{digits}")
    row = spec.regions[0].clauses[0].rows[0]
    assert row.rhs == Decimal(f"-1{digits[1:]}") and row.terms == ((0, Decimal(-1)), (1, Decimal(1)))


def test_cases_that_do_not_meet_are_left_out_of_a_product() -> None:
    first, second = "(or (<= X_0 -0.5) (>= X_0 0.5))", "(or (<= X_0 0) (>= X_0 0.75))"
    text = HEAD + BOX + f"(assert {first}) (assert {second}) (assert (<= Y_0 Y_1))"
    assert len(read_vnnlib_text(text).regions) == 2
    nested = HEAD + BOX + f"(assert (and {first} {second} (<= Y_0 Y_1)))"
    assert read_vnnlib_text(nested) == read_vnnlib_text(text)


def test_gzip_bom_carriage_returns_and_foreign_bytes_in_comments(tmp_path: Path) -> None:
    expected = read_vnnlib_text(RICH[0])
    plain, packed, odd = tmp_path / "a.vnnlib", tmp_path / "b.vnnlib.gz", tmp_path / "c.vnnlib"
    plain.write_text(RICH[0])
    packed.write_bytes(gzip.compress(RICH[0].encode()))
    odd.write_bytes(b"\xef\xbb\xbf; 20 \xb0C\r" + RICH[0].replace("\n", "\r").encode())
    assert read_vnnlib(plain) == read_vnnlib(packed) == read_vnnlib(odd) == expected
    assert read_counts(packed) == (2, 2)
    packed.rename(tmp_path / "unmarked")
    assert read_vnnlib(tmp_path / "unmarked") == expected


def test_the_networks_sizes_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "a.vnnlib"
    file.write_text(RICH[0])
    assert read_vnnlib(file, n_inputs=2, n_outputs=2).n_inputs == 2
    with pytest.raises(SpecError, match="declares 2 inputs but the network has 784"):
        read_vnnlib(file, n_inputs=784)
    with pytest.raises(SpecError, match="declares 2 outputs but the network has 10"):
        read_vnnlib(file, n_outputs=10)


def test_the_strict_one_of_two_equal_bounds_counts_in_either_order() -> None:
    bounds = ("(assert (< X_0 1)) ", "(assert (<= X_0 1.0)) ", "(assert (>= X_1 -1.0)) ", "(assert (> X_1 -1)) ")
    for order in (bounds, bounds[::-1]):
        box = read_vnnlib_text(HEAD + BOX + "".join(order) + "(assert (<= Y_0 Y_1))").regions[0].box
        assert box.hi_strict.tolist() == [True, False] and box.lo_strict.tolist() == [False, True]
    case = HEAD + BOX + "(assert (or (and (< X_0 1) (<= Y_0 Y_1)) (>= Y_0 1)))"
    assert [region.box.hi_strict.tolist() for region in read_vnnlib_text(case).regions] == [[True, False], [False] * 2]


def test_harmless_headers_are_skipped_and_products_of_groups_understood() -> None:
    plain = HEAD + BOX + "(assert (<= (* 6 Y_0) (* 0.5 Y_1)))"
    product = "(assert (<= (* (+ 1 1) (- 4 1) Y_0) (/ (* (- 3 1) (+ Y_1 0) (* 1 1)) (+ 2 2))))"
    assert read_vnnlib_text("(set-logic QF_LRA)(vnnlib-version <1.0>)" + HEAD + BOX + product) == read_vnnlib_text(
        plain
    )
    constant = HEAD + BOX + "(assert (<= (* 6 Y_0) (* 0.5 Y_1))) (assert (<= (* (+ 1 1) (- 4 1)) 6))"
    assert read_vnnlib_text(constant) == read_vnnlib_text(plain)

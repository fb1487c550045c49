"""Printed counterexamples: format, reading back, and a check that only the truth passes."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest

from auto_LiRPA.errors import ContractError, SpecError
from complete_verifier.outcome import Verdict
from complete_verifier.spec.compile import read_vnnlib_text
from complete_verifier.spec.counterexample import (
    check_printed,
    format_counterexample,
    parse_counterexample,
    printable_input,
    results_text,
)

# Outputs: y0 = x0 + x1, y1 = x0 - x1. X_1 has no width and no float32 in its interval.
SPEC = read_vnnlib_text(
    "(declare-const X_0 Real) (declare-const X_1 Real) (declare-const Y_0 Real) (declare-const Y_1 Real)"
    "(assert (<= X_0 0.3)) (assert (>= X_0 0)) (assert (<= X_1 0.1)) (assert (>= X_1 0.1))"
    "(assert (or (and (>= Y_0 0.39) (>= Y_1 0.19)) (and (< Y_0 0.11) (<= Y_1 -0.09) (<= X_0 0.01))))"
)


def network(x: np.ndarray) -> np.ndarray:
    assert x.dtype == np.float32
    return np.array([x[0] + x[1], x[0] - x[1]], dtype=np.float32)


def printed(x0: float) -> str:
    x = np.array([x0, 0.1], dtype=np.float32)
    y = network(x).tolist()
    decimals = printable_input(SPEC, x, y)
    assert decimals is not None
    return format_counterexample(decimals, y)


def test_the_format_is_the_competitions() -> None:
    text = format_counterexample([Decimal("0.1"), 0.5], [-1.25, 3.0])
    assert text == "((X_0  0.1)\n(X_1  0.5)\n(Y_0  -1.25)\n(Y_1  3.0))"
    assert results_text(Verdict.VIOLATED, text) == f"sat\n{text}"


def test_printing_and_parsing_give_the_same_numbers() -> None:
    values = [0.1, -1e-7, 1e30, float(np.float32(0.3)), 5e-324, -0.0]
    point = parse_counterexample(format_counterexample(values, values[::-1]))
    assert [float(v) for v in point.x] == values and [float(v) for v in point.y] == values[::-1]
    long = Decimal("0.1234567890123456789012345678901234567891")
    assert parse_counterexample(format_counterexample([long], [1.0])).x == (long,)


def test_a_results_file_and_other_layouts_are_read() -> None:
    point = parse_counterexample("sat\n(\n(X_0 0.5)(X_1\t1e-3)\n (Y_0  2))\n")
    assert point.x == (Decimal("0.5"), Decimal("0.001")) and point.y == (Decimal(2),)


BROKEN = {
    "": "expected '('",
    "unsat": "expected '('",
    "((X_0 0.5)": "expected ')'",
    "((X_0 0.5)) tail": "follows the counterexample",
    "((X_1 0.5))": "out of order",
    "((Y_0 0.5)\n(X_0 0.5))": "counterexample:2:2: 'X_0' is out of order",
    "((X_0 nan))": "no finite decimal number",
    "((X_0 1e999))": "no finite decimal number",
    "((X_0 0x10))": "no finite decimal number",
    "((X_0))": "no finite decimal number",
    "((X_0 0.5 0.6))": "expected ')'",
    "((Z_0 0.5))": "out of order",
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_counterexample_ends_in_one_line(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_counterexample(text)
    assert BROKEN[text] in str(caught.value) and "\n" not in str(caught.value)
    assert not check_printed(SPEC, text, network)


def test_a_true_counterexample_passes_although_no_float_lies_in_the_interval() -> None:
    text = printed(float(np.nextafter(np.float32(0.3), np.float32(0))))
    assert "(X_1  0.1)" in text
    assert check_printed(SPEC, text, network).reason == "confirmed"


def test_a_float_just_over_the_decimal_bound_is_printed_as_the_bound() -> None:
    """float32(0.3) > 0.3, but the decimal 0.3 reads back as it: the network really sees this number."""
    text = printed(0.3)
    assert text.startswith("((X_0  0.3)") and check_printed(SPEC, text, network)


def test_no_decimals_for_a_point_outside_or_without_violation() -> None:
    outside = np.array([np.nextafter(np.float32(0.3), np.float32(1)), 0.1], dtype=np.float32)
    assert printable_input(SPEC, outside, [0.9, 0.9]) is None
    inside = np.array([0.2, 0.1], dtype=np.float32)
    assert printable_input(SPEC, inside, network(inside).tolist()) is None


# What is done to a good text, and what the check must say.
LIES = {
    "outside by the last digit": (("(X_0  0.3)", "(X_0  0.30000000000000000001)"), "outside the input box"),
    "other fixed input": (("(X_1  0.1)", "(X_1  0.10000000149011612)"), "outside the input box"),
    "no violation": (("(X_0  0.3)", "(X_0  0.25)"), "differ from the network's"),
    "invented output": (("(Y_0  0.4", "(Y_0  0.5"), "differ from the network's"),
    "one input less": (("(X_1  0.1)\n", ""), "1 inputs and 2 outputs"),
}


@pytest.mark.parametrize("name", LIES)
def test_an_altered_counterexample_is_refused(name: str) -> None:
    (right, wrong), reason = LIES[name]
    text = printed(0.3)
    assert right in text
    result = check_printed(SPEC, text.replace(right, wrong), network)
    assert not result and reason in result.reason


def test_honest_outputs_that_violate_nothing_are_refused() -> None:
    y = network(np.array([0.2, 0.1], dtype=np.float32)).tolist()
    result = check_printed(SPEC, format_counterexample([Decimal("0.2"), Decimal("0.1")], y), network)
    assert not result and "violates no clause" in result.reason


def test_a_strict_row_is_strict_in_the_check() -> None:
    spec = read_vnnlib_text(
        "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (<= X_0 1))(assert (>= X_0 0))(assert (< Y_0 0.5))"
    )
    at, below = format_counterexample([0.5], [0.5]), format_counterexample([0.25], [0.25])
    assert not check_printed(spec, at, lambda x: x) and check_printed(spec, below, lambda x: x)


def test_case_boxes_are_kept_apart() -> None:
    """x0 = 0.005 is in the second case's box only; x0 = 0.02 violates its rows but lies outside it."""
    assert check_printed(SPEC, printed(0.005), network)
    y = [0.10, -0.10]
    assert SPEC.violated_by([Decimal("0.005"), Decimal("0.1")], y)
    assert not SPEC.violated_by([Decimal("0.02"), Decimal("0.1")], y)


@pytest.mark.parametrize("bad", [np.array([np.nan, 0.0]), np.array([np.inf, 0.0]), np.zeros(3)])
def test_a_network_that_answers_nonsense_confirms_nothing(bad: np.ndarray) -> None:
    assert not check_printed(SPEC, printed(0.3), lambda x: bad)


def test_double_precision_networks_see_float64() -> None:
    def wide(x: np.ndarray) -> np.ndarray:
        assert x.dtype == np.float64
        return np.array([x[0] + x[1], x[0] - x[1] + 1e-9])

    x = np.array([0.3, 0.1])
    y = wide(x).tolist()
    decimals = printable_input(SPEC, x, y)
    assert decimals is not None and check_printed(SPEC, format_counterexample(decimals, y), wide, dtype=np.float64)


@pytest.mark.parametrize("verdict", [Verdict.HOLDS, Verdict.TIMEOUT, Verdict.UNKNOWN])
def test_results_text_of_other_verdicts_is_the_bare_word(verdict: Verdict) -> None:
    assert results_text(verdict) == verdict.value
    with pytest.raises(ContractError):
        results_text(verdict, "((X_0  1))")


def test_sat_without_a_counterexample_cannot_be_written() -> None:
    with pytest.raises(ContractError):
        results_text(Verdict.VIOLATED)

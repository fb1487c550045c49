"""The reader against the public `vnnlib` package (0.0.1), which reads the same language in another way.

It reads < as <= and rounds numbers to float64, so strictness is left out of the comparison. It also has faults of
its own, shown below; the random files here avoid the two forms that it misreads.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from complete_verifier.spec.compile import read_vnnlib, read_vnnlib_text
from complete_verifier.spec.property import Property
from complete_verifier.spec.writer import print_vnnlib
from tests.support import shared_dir

compat = pytest.importorskip("vnnlib.compat", reason="the vnnlib package (0.0.1.post1) is not installed")

# One case: the box (lo and hi of every input), and its rows, as sets, for order and repetition mean nothing.
Case = tuple[tuple[tuple[float, float], ...], frozenset[tuple[float, ...]]]
FAMILIES = (
    "acasxu",
    "collins_rul_cnn",
    "mnist_fc",
    "oval21",
    "reach_prob_density",
    "rl_benchmarks",
    "sri_resnet_a",
    "vit",
)
BIG = 50_000  # bytes: of the families with files beyond that, two files each are compared
HEAD = "".join(f"(declare-const {v}_{i} Real)\n" for v in "XY" for i in range(3))
BOX = "".join(f"(assert (<= X_{i} 1))\n(assert (>= X_{i} -1))\n" for i in range(3))


def ours(spec: Property) -> set[Case]:
    return {
        (
            tuple(zip(region.box.lo.tolist(), region.box.hi.tolist(), strict=True)),
            frozenset((*row, rhs) for row, rhs in zip(clause.mat.tolist(), clause.rhs.tolist(), strict=True)),
        )
        for region in spec.regions
        for clause in region.clauses
    }


def theirs(path: Path, n_inputs: int, n_outputs: int) -> set[Case]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of every negative number
        cases = compat.read_vnnlib_simple(str(path), n_inputs, n_outputs)
    return {
        (
            tuple((float(lo), float(hi)) for lo, hi in box),
            frozenset((*map(float, row), float(limit)) for row, limit in zip(mat, np.ravel(rhs), strict=True)),
        )
        for box, clauses in cases
        for mat, rhs in clauses
    }


def agree(text: str, folder: Path) -> bool:
    path = folder / "spec.vnnlib"
    path.write_text(text)
    spec = read_vnnlib(path)
    return ours(spec) == theirs(path, spec.n_inputs, spec.n_outputs)


@pytest.mark.parametrize("family", FAMILIES)
def test_benchmark_files_are_read_alike(family: str) -> None:
    """Every file is read; all small ones and two big ones of each family are compared; all survive printing."""
    files = sorted(shared_dir("benchmarks", family, "vnnlib").iterdir())
    big = [file for file in files if file.stat().st_size > BIG]
    for file in files:
        spec = read_vnnlib(file)
        if file not in big[2:]:
            assert ours(spec) == theirs(file, spec.n_inputs, spec.n_outputs), file.name
            assert read_vnnlib_text(print_vnnlib(spec)) == spec, file.name


def literal() -> st.SearchStrategy[str]:
    number = st.sampled_from(["0", "0.25", "-0.5", "3", "-0.0", "1e-3"])
    bound = st.sampled_from(["0.25", "-0.5", "0.125", "0", "7e-1"])
    y = st.integers(0, 2)
    upper = st.builds("(<= X_{} {})".format, y, bound.filter(lambda v: float(v) >= 0.2))
    lower = st.builds("(>= X_{} {})".format, y, bound.filter(lambda v: float(v) < 0.2))
    compare = st.sampled_from(["<=", ">="])
    single = st.builds("({} Y_{} {})".format, compare, y, number)
    pair = st.builds(lambda c, a, d: f"({c} Y_{a} Y_{(a + d) % 3})", compare, y, st.integers(1, 2))
    linear = st.builds("({} (+ (* 2.5 Y_{}) (- {}) Y_{}) {})".format, compare, st.just(0), number, st.just(1), number)
    return st.one_of(single, single, pair, pair, linear, upper, lower)


LITERAL = literal()
CASE = st.one_of(LITERAL, st.lists(LITERAL, min_size=1, max_size=4).map(lambda parts: f"(and {' '.join(parts)})"))
CASES = st.lists(
    st.one_of(CASE, CASE, st.lists(CASE, min_size=2, max_size=2).map(lambda parts: f"(or {' '.join(parts)})")),
    min_size=2,
    max_size=5,
)
DISJUNCTION = CASES.map(lambda cases: f"(assert (or {' '.join(cases)}))\n")
OUTPUT_CASES = st.just("(assert (or (and (<= Y_0 Y_1) (<= Y_0 Y_2)) (>= Y_2 0.5)))\n")


@settings(max_examples=80, deadline=None)
@given(st.permutations(BOX.splitlines(keepends=True)), st.lists(DISJUNCTION, min_size=0, max_size=2), OUTPUT_CASES)
def test_random_disjunctions_are_read_alike(
    tmp_path_factory: pytest.TempPathFactory, box: list[str], parts: list[str], last: str
) -> None:
    assert agree(HEAD + "".join([*box[:3], *parts, *box[3:], last]), tmp_path_factory.getbasetemp())


@settings(max_examples=40, deadline=None)
@given(st.lists(LITERAL, min_size=1, max_size=5))
def test_random_plain_assertions_are_read_alike(tmp_path_factory: pytest.TempPathFactory, literals: list[str]) -> None:
    inputs_first = sorted([*literals, "(<= Y_0 Y_1)"], key=lambda text: "Y_" in text)  # else the package crashes
    plain = "".join(f"(assert {text})\n" for text in inputs_first)
    assert agree(HEAD + BOX + plain, tmp_path_factory.getbasetemp())


def test_the_comparison_can_fail(tmp_path: Path) -> None:
    text = HEAD + BOX + "(assert (or (and (<= Y_0 Y_1) (<= Y_0 Y_2)) (>= Y_2 0.5)))"
    path = tmp_path / "spec.vnnlib"
    path.write_text(text)
    reference = theirs(path, 3, 3)
    for right, wrong in (
        ("(<= Y_0 Y_2)", ""),
        ("(<= Y_0 Y_1)", "(<= Y_1 Y_0)"),
        ("0.5", "0.25"),
        ("(<= X_2 1)", "(<= X_2 2)"),
    ):
        assert ours(read_vnnlib_text(text.replace(right, wrong))) != reference


def test_upstream_package_loses_a_plain_conjunct_beside_a_disjunction(tmp_path: Path) -> None:
    """Why the raw-formula oracle exists: here the package overwrites a conjunct, and we must not follow it."""
    text = HEAD + BOX + "(assert (<= Y_0 0.25)) (assert (or (<= Y_1 0) (<= Y_2 0)))"
    assert not agree(text, tmp_path)
    assert [len(clause.rows) for clause in read_vnnlib_text(text).regions[0].clauses] == [2, 2]

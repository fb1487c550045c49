"""Wrong answer 7: NaN, infinite or crossed bounds taken as proved. Every place that concludes something is asked."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import complete_verifier.incomplete.first_bounds as first_bounds_module
from auto_LiRPA.bounds.intermediate import Intermediate, crown_boxes
from auto_LiRPA.bounds.methods import Method, Query, compute
from auto_LiRPA.bounds.optimize import _Best
from auto_LiRPA.bounds.settings import BoundSettings
from auto_LiRPA.operators.activation import Relu
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.values import Box, Interval
from complete_verifier.bab.store import DomainStore
from complete_verifier.incomplete.regions import relax_all, trusted
from complete_verifier.problem import Clauses
from complete_verifier.spec.compile import read_vnnlib_text
from complete_verifier.spec.compiled import compile_property
from tests.bab.problems import Setup, clauses, domains, random_case, set_up
from tests.end_to_end.runs import Hard, mlp_model, property_text, run, write
from tests.nets import Builder, Dense

NOT_NUMBERS = [math.nan, -math.inf]


def two_rows(strict: bool) -> Clauses:
    """One clause of two rows and one of a single row with a padding row."""
    c = torch.tensor([[[1.0], [-1.0]], [[1.0], [0.0]]])
    rhs = torch.tensor([[0.5, 0.5], [0.5, torch.inf]])
    attainable = torch.full((2, 2), strict) & torch.isfinite(rhs)
    return Clauses(c, rhs, torch.zeros(2, dtype=torch.long), attainable)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("value", NOT_NUMBERS)
def test_clauses(value: float, strict: bool) -> None:
    """Neither alone nor beside a row that proves nothing; a row that does prove still does."""
    spec = two_rows(strict)
    assert spec.proven(torch.full((2, 2), value)).tolist() == [False, False]
    assert spec.proven(torch.tensor([[value, 0.4], [0.4, value]])).tolist() == [False, False]
    assert spec.proven(torch.tensor([[value, 0.6], [0.6, value]])).tolist() == [True, True]
    # padding proves nothing, however high; equality proves a strict row only
    assert spec.proven(torch.tensor([[0.4, 0.4], [0.4, 1e30]])).tolist() == [False, False]
    assert spec.proven(torch.tensor([[0.5, 0.4], [0.5, 0.0]])).tolist() == [strict, strict]


@pytest.mark.parametrize("value", [*NOT_NUMBERS, math.inf])
def test_compiled_specification(value: float) -> None:
    text = (
        "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (>= X_0 0))(assert (<= X_0 1))"
        "(assert (or (and (<= Y_0 0.5) (> Y_0 -0.5)) (< Y_0 -2)))"
    )
    (spec,) = compile_property(read_vnnlib_text(text))
    assert not bool(spec.rows_proven(torch.full((3,), value)).any())
    assert not bool(spec.clause_proven(torch.full((3,), value)).any())
    assert not bool(spec.clause_proven_padded(torch.full((2, 2), value)).any())
    assert spec.clause_proven(torch.tensor([0.6, value, value])).tolist() == [True, False]


def some_setup() -> Setup:
    setup = set_up(random_case("mlp", 0).problem, iterations=2)
    assert setup.layout.width
    return setup


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("value", [*NOT_NUMBERS, math.inf])
def test_bounder(value: float, strict: bool) -> None:
    """A domain is closed by a finite number only: above 0, or 0 itself where all rows of its clause are strict."""
    setup = some_setup()
    spec = setup.problem.clauses
    spec = replace(spec, attainable_rhs=torch.isfinite(spec.rhs) & strict)
    bounder = set_up(replace(setup.problem, clauses=spec), iterations=2).bounder
    sign = torch.zeros(4, setup.layout.width, dtype=torch.int8)
    batch = domains(setup, torch.zeros(4, dtype=torch.long), sign, torch.Generator())
    lower = torch.tensor([value, 0.0, 1e-6, -1e-6], dtype=spec.c.dtype)
    assert bounder.proven(batch, lower).tolist() == [False, strict, True, False]


def test_one_lax_row_keeps_zero_open() -> None:
    """A clause with strict and non-strict rows may hold where the weighted sum is 0."""
    spec = clauses([(np.eye(2, 3), np.zeros(2))], torch.float64, torch.tensor([[True, False]]))
    setup = some_setup()
    bounder = set_up(replace(setup.problem, clauses=spec), iterations=2).bounder
    sign = torch.zeros(1, setup.layout.width, dtype=torch.int8)
    batch = replace(domains(setup, torch.zeros(1, dtype=torch.long), sign, torch.Generator()), mix=torch.ones(1, 2))
    assert bounder.proven(batch, torch.zeros(1)).tolist() == [False]


def test_the_store_works_on_nan_first() -> None:
    setup = some_setup()
    sign = torch.zeros(3, setup.layout.width, dtype=torch.int8)
    batch = domains(setup, torch.zeros(3, dtype=torch.long), sign, torch.Generator())
    store = DomainStore(batch, "worst_first")
    store.add(batch, torch.tensor([-1e30, math.nan, 5.0], dtype=batch.lower.dtype))
    assert store.take(3).id.tolist() == [1, 0, 2]


def test_an_iteration_without_numbers_is_no_improvement() -> None:
    """alpha-CROWN keeps the best bound of all iterations: NaN is not one."""
    best = _Best()
    for value in (-2.0, math.nan, -1.0, math.nan):
        best.update(torch.tensor([[value, -3.0]]), "sum", {0: torch.full((1, 1), value)}, {}, True)
    assert best.lower.tolist() == [[-1.0, -3.0]]
    assert best.slopes[0].tolist() == [[-1.0]]


def test_a_relu_with_an_unknown_bound_is_not_stable() -> None:
    """Not even if the other bound says so by itself."""
    nan, box = math.nan, Interval(torch.tensor([[math.nan, -1.0, math.nan]]), torch.tensor([[1.0, math.nan, math.nan]]))
    assert Relu().needs_tightening(box)[0].tolist() == [[True, True, True]]
    lines = Relu().lines(box)
    assert lines.upper_offset is not None
    value = lines.upper_slope * 0.5 + lines.upper_offset
    assert torch.equal(torch.isnan(value), torch.tensor([[True, True, True]])), nan


@pytest.mark.parametrize("wide_mib", [0.0, 1e9])
def test_a_box_whose_width_overflows_is_no_proof(wide_mib: float) -> None:
    """Both ends are finite; with u / inf = 0 as its slope the chord would be 0, where the output reaches 2."""
    build = Builder((1,))
    on = build.relu(build.dense(Dense(torch.tensor([[2e38]]), torch.zeros(1)), 0))
    build.dense(Dense(torch.tensor([[1e-38]]), torch.zeros(1)), on)
    x = torch.zeros(2, 1)
    for intersected in (True, False):
        chosen = BoundSettings(wide_mib=wide_mib, compare_with_ibp=intersected)
        asked = build.graph(), Box(x - 1, x + 1), Query(boxes=False)
        with torch.no_grad():
            found = compute(*asked, Method.CROWN, DistributedContext.single(), chosen)
        assert found.upper is not None
        assert bool(found.upper.bound.isnan().all()) or bool((found.upper.bound > 1.99).all())
    ends = torch.tensor([[2e38, 1.0]])
    assert trusted({1: Interval(-ends, ends)}).tolist() == [False]  # type: ignore[union-attr]
    assert trusted({1: Interval(-ends / 2, ends / 2)}).tolist() == [True]  # type: ignore[union-attr]


HARD = Hard.make([3, 12, 12, 2], seed=3)


@pytest.mark.parametrize("method", ["crown", "alpha-crown"])
@pytest.mark.parametrize(
    ("lower", "upper"),
    [(math.nan, math.nan), (1.0, -1.0), (math.nan, 1.0), (2.0, math.nan), (0.5, 0.4), (-2e38, 2e38)],
)
def test_broken_boxes_end_as_unknown(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    lower: float,
    upper: float,
    method: str,
) -> None:
    """One neuron of the first layer is spoiled: neither the bounds nor the search conclude anything from it."""
    files = HARD.write(tmp_path, -20.0)  # so far away that any sound bound proves it
    flags = ("--pgd_order", "skip", "--bound_prop_method", method, "--init_iteration", "5", "--max_iterations", "3")
    assert run(capsys, tmp_path, files, *flags).word == "unsat"
    real = crown_boxes

    def broken(graph, region, context, settings, *given):  # type: ignore[no-untyped-def]
        found = real(graph, region, context, settings, *given)
        first = min(found.boxes)
        box = Interval(found.boxes[first].lower.clone(), found.boxes[first].upper.clone())
        box.lower[0, 0], box.upper[0, 0] = lower, upper
        boxes = {**found.boxes, first: box}
        return Intermediate(boxes, relax_all(graph, boxes), found.starts)

    monkeypatch.setattr(first_bounds_module, "crown_boxes", broken)
    done = run(capsys, tmp_path, files, *flags)
    assert (done.code, done.word) == (0, "unknown")


def overflowing() -> tuple[list[Dense], float]:
    """A network whose output is -1e36 everywhere, and whose constants overflow when they are summed backward.

    The constants met on the way back are +2.9e37 and +3.3e38, more than float32 holds, and only then twice -1.8e38;
    forward no sum leaves the range. One ReLU (of x itself) is undecided, so that there is something to split.
    """
    big = 1e38

    def dense(weight: list[list[float]], bias: list[float]) -> Dense:
        return Dense(torch.tensor(weight, dtype=torch.float64), torch.tensor(bias, dtype=torch.float64))

    layers = [
        dense([[1], [0]], [0, 1.8 * big]),
        dense([[1, 0], [0, 1], [0, 0]], [0, 0, 1.8 * big]),
        dense([[1, 0, 0], [0, 1, 0], [0, 0, -1]], [0, 0, 3.3 * big]),
        dense([[1, -1, 1]], [0.29 * big]),
    ]
    return layers, -0.01 * big


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown", "forward", "alpha-crown"])
def test_an_infinite_bound_is_no_proof(tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str) -> None:
    """The search meets +inf as the bound of both children; every input is a counterexample."""
    layers, value = overflowing()
    text = property_text(np.array([-1.0]), np.array([1.0]), 1, [[([1.0], 0.0)]])
    files = write(tmp_path, mlp_model(layers), text)
    session = onnxruntime.InferenceSession(files[0], providers=["CPUExecutionProvider"])
    y = session.run(None, {"x": np.array([[-1.0], [0.5]], dtype=np.float32)})[0]
    assert np.allclose(y, value, rtol=1e-2), "the network itself overflows: nothing is tested"
    flags = ("--bound_prop_method", method, "--init_iteration", "3", "--iteration", "3")
    assert run(capsys, tmp_path, files, *flags, "--pgd_order", "skip").word in ("sat", "unknown")
    assert run(capsys, tmp_path, files, *flags).word == "sat"

"""Known instances: counterexamples where they exist, checked by another reader of VNN-LIB; none where none exists."""

from __future__ import annotations

import csv

import numpy as np
import onnxruntime
import pytest

from auto_LiRPA.graph.onnx_reader import read_onnx
from auto_LiRPA.parallel.store import LocalStore
from complete_verifier.attack.search import SearchResult, find_counterexample
from complete_verifier.attack.settings import AttackSettings
from complete_verifier.spec.compile import read_vnnlib
from tests.support import shared_dir

SAT = [
    ("mnist_fc", "mnist-net_256x2", "prop_1_0.03"),
    ("mnist_fc", "mnist-net_256x2", "prop_0_0.05"),  # plain descents from near the centre all stall
    ("acasxu", "ACASXU_run2a_2_2_batch_2000", "prop_2"),
    ("acasxu", "ACASXU_run2a_1_7_batch_2000", "prop_3"),
    ("acasxu", "ACASXU_run2a_2_9_batch_2000", "prop_8"),  # a narrow region, several clauses of two rows
    ("collins_rul_cnn", "NN_rul_small_window_20", "if_then_7levels_w20"),  # no gradient at most points of the box
    ("reach_prob_density", "gcas", "gcas_6"),
    ("rl_benchmarks", "lunarlander", "lunarlander_case_unsafe_20"),
]
UNSAT = [
    ("mnist_fc", "mnist-net_256x2", "prop_0_0.03"),
    ("acasxu", "ACASXU_run2a_1_1_batch_2000", "prop_3"),
    ("rl_benchmarks", "cartpole", "cartpole_case_unsafe_0"),
]


def _search(family: str, onnx: str, vnnlib: str, settings: AttackSettings) -> SearchResult:
    folder = shared_dir("benchmarks", family)
    path = folder / "onnx" / f"{onnx}.onnx"
    spec = read_vnnlib(folder / "vnnlib" / f"{vnnlib}.vnnlib")
    return find_counterexample(read_onnx(path, LocalStore()), spec, path, settings, "cpu", lambda: 1e9)


def _expected(family: str, onnx: str, vnnlib: str) -> str:
    with (shared_dir("benchmarks") / "expected.csv").open() as file:
        wanted = (family, f"onnx/{onnx}.onnx", f"vnnlib/{vnnlib}.vnnlib")
        return next(r["expected"] for r in csv.DictReader(file) if (r["family"], r["onnx"], r["vnnlib"]) == wanted)


@pytest.mark.parametrize(("family", "onnx", "vnnlib"), SAT)
def test_known_counterexamples_are_found(family: str, onnx: str, vnnlib: str) -> None:
    assert _expected(family, onnx, vnnlib) == "sat"
    found = _search(family, onnx, vnnlib, AttackSettings()).counterexample
    assert found is not None
    oracle = pytest.importorskip("vnnlib.compat", reason="vnnlib is not installed: no other reader to compare with")
    folder = shared_dir("benchmarks", family)
    session = onnxruntime.InferenceSession(folder / "onnx" / f"{onnx}.onnx", providers=["CPUExecutionProvider"])
    (first,) = session.get_inputs()
    shape = [length if isinstance(length, int) else 1 for length in first.shape]
    x = np.array([float(value) for value in found.x])
    y = session.run(None, {first.name: x.astype(np.float32).reshape(shape)})[0].reshape(-1).astype(np.float64)
    cases = oracle.read_vnnlib_simple(str(folder / "vnnlib" / f"{vnnlib}.vnnlib"), x.size, y.size)
    assert any(
        all(lo <= value <= hi for value, (lo, hi) in zip(x, box, strict=True))
        and any((np.asarray(mat) @ y <= np.asarray(rhs).reshape(-1)).all() for mat, rhs in clauses)
        for box, clauses in cases
    )


@pytest.mark.parametrize(("family", "onnx", "vnnlib"), UNSAT)
def test_nothing_is_found_where_nothing_is(family: str, onnx: str, vnnlib: str) -> None:
    assert _expected(family, onnx, vnnlib) == "unsat"
    result = _search(family, onnx, vnnlib, AttackSettings(steps=20, restarts=10))
    assert result.counterexample is None
    assert result.attack.accepted is None
    assert (result.attack.restarts, result.attack.steps) == (10, 20)

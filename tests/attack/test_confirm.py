"""Only what onnxruntime computes on the original file, for the decimals that are printed, is a counterexample."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from auto_LiRPA.errors import ModelError
from auto_LiRPA.graph.run import evaluate
from complete_verifier.attack.confirm import confirm, confirm_inside, repair
from complete_verifier.attack.objective import Candidate
from complete_verifier.attack.onnx_network import OnnxNetwork
from complete_verifier.attack.pgd import attack, run_attack
from complete_verifier.attack.problems import Problems
from complete_verifier.attack.search import find_counterexample
from complete_verifier.attack.settings import AttackSettings
from complete_verifier.spec.counterexample import Counterexample, format_counterexample
from complete_verifier.spec.property import Property
from tests.attack.nets import box, linear, load, prop, random_layers, region, row, save

UNIT = box(("0", "1"), ("0", "1"))
QUICK = AttackSettings(steps=20, restarts=6)


def forever() -> float:
    return 1e9


def stands(found: Counterexample, path: Path, spec: Property) -> bool:
    """A check of our own: the printed text, read by a regular expression, in a session with default options."""
    pairs = re.findall(r"\(([XY])_(\d+)  (\S+?)\)", format_counterexample(found.x, found.y))  # type: ignore[arg-type]
    x = [Decimal(text) for name, _, text in pairs if name == "X"]
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    (first,) = session.get_inputs()
    feed = np.array([float(value) for value in x], dtype=np.float32).reshape(1, -1)
    y = [Fraction(float(value)) for value in session.run(None, {first.name: feed})[0].reshape(-1)]
    for part in spec.regions:
        bounds = zip(part.box.lo_exact, x, part.box.hi_exact, strict=True)
        if all(Fraction(lo) <= Fraction(value) <= Fraction(hi) for lo, value, hi in bounds):
            for clause in part.clauses:
                sums = [(sum(Fraction(c) * y[i] for i, c in r.terms), Fraction(r.rhs), r.strict) for r in clause.rows]
                if all(left < right or (left == right and not strict) for left, right, strict in sums):
                    return True
    return False


@pytest.mark.parametrize("batch", [1, 4, "N", None])
@pytest.mark.parametrize("name", ["net.onnx", "net.onnx.gz"])
def test_every_form_of_file_is_run(tmp_path: Path, batch: int | str | None, name: str) -> None:
    """Frozen batch (1 and 4), symbolic batch, no batch axis; plain and gzip."""
    layers = random_layers(1, 3, 8, 2)
    network = OnnxNetwork(save(layers, tmp_path / name, batch))
    x = np.array([0.25, -1, 0.5], dtype=np.float32)
    hidden = np.maximum(layers[0][0] @ x + layers[0][1], 0)
    assert network.run(x) == pytest.approx(layers[1][0] @ hidden + layers[1][1], abs=1e-6)
    spec = prop(region(box(*[("-1", "1")] * 3), [row({0: "1"}, "1000")], n_outputs=2), n_outputs=2)
    found = confirm(tmp_path / name, spec, x)
    assert found is not None
    assert [float(value) for value in found.x] == x.tolist()
    assert [float(value) for value in found.y] == network.run(x).tolist()


def test_what_only_float64_accepts_is_refused(tmp_path: Path) -> None:
    """y = (x + 2^24) - 2^24 is x in exact arithmetic and a multiple of 2 in float32: 0 at x = 0.75."""
    big = np.array([2.0**24], np.float32)
    one = np.array([[1.0]], np.float32)
    path = save([(one, big), (one, -big)], tmp_path / "net.onnx")
    spec = prop(region(box(("0", "0.75")), [row({0: "-1"}, "-0.5")]))
    candidate = attack(load(path, torch.float64), spec, QUICK, "cpu", forever)
    assert candidate is not None, "the attack in float64 believes it"
    assert confirm(path, spec, candidate.x) is None
    result = find_counterexample(load(path, torch.float64), spec, path, QUICK, "cpu", forever)
    assert result.counterexample is None
    assert result.attack.accepted is None


@pytest.mark.parametrize("strict", [False, True])
def test_a_strict_row_is_strict(tmp_path: Path, strict: bool) -> None:
    """The output is exactly 0 all over the box."""
    path = save([*linear([1, 1], bias=[-9]), *linear([1])], tmp_path / "net.onnx")
    spec = prop(region(UNIT, [row({0: "1"}, "0", strict)]))
    found = confirm(path, spec, np.array([0.5, 0.5], np.float32))
    assert (found is None) == strict
    assert (find_counterexample(load(path), spec, path, QUICK, "cpu", forever).counterexample is None) == strict


def test_a_point_outside_the_exact_box_is_refused(tmp_path: Path) -> None:
    path = save(linear([1]), tmp_path / "net.onnx")
    spec = prop(region(box(("0", "0.1")), [row({0: "-1"}, "0")]))
    inside = np.nextafter(np.float32(0.1), np.float32(0))
    assert confirm(path, spec, np.array([inside])) is not None
    assert confirm(path, spec, np.array([0.1], np.float32)) is not None, "printed as 0.1, which is read back as it"
    above = np.nextafter(np.float32(0.1), np.float32(1))
    assert confirm(path, spec, np.array([above])) is None
    assert confirm(path, spec, np.array([np.nan], np.float32)) is None
    assert confirm(path, spec, np.array([np.inf], np.float32)) is None


def test_a_corner_that_was_rounded_outwards_is_moved_inside(tmp_path: Path) -> None:
    """As a linear program gives it. What is farther outside stays refused, and so does what violates nothing."""
    path = save(linear([1]), tmp_path / "net.onnx")
    spec = prop(region(box(("0", "0.1")), [row({0: "-1"}, "0")]))
    above = np.nextafter(np.float32(0.1), np.float32(1))
    assert confirm(path, spec, np.array([above])) is None
    found = confirm_inside(path, spec, np.array([above]))
    assert found is not None and stands(found, path, spec)
    assert confirm_inside(path, spec, np.array([0.11], np.float32)) is None
    assert confirm_inside(path, spec, np.array([np.nan], np.float32)) is None
    held = prop(region(box(("0", "0.1")), [row({0: "1"}, "-1")]))
    assert confirm_inside(path, held, np.array([above])) is None


def test_what_is_printed_is_run_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that answers otherwise the second time has no counterexample that a reader could check."""
    network = OnnxNetwork(save(linear([1]), tmp_path / "net.onnx"))
    spec = prop(region(box(("0", "1")), [row({0: "1"}, "0.5")]))
    x = np.array([0.4], np.float32)
    assert confirm(network, spec, x) is not None
    answers = iter([np.array([0.4], np.float32), np.array([0.6], np.float32)])
    monkeypatch.setattr(network, "run", lambda point: next(answers))
    assert confirm(network, spec, x) is None


def test_region_and_clause_go_together(tmp_path: Path) -> None:
    """A point of the first box that violates only the second box's clause is no counterexample."""
    path = save(linear([1]), tmp_path / "net.onnx")
    low, high = box(("0", "1")), box(("2", "3"))
    spec = prop(region(low, [row({0: "-1"}, "-2")]), region(high, [row({0: "1"}, "1")]))
    assert confirm(path, spec, np.array([0.5], np.float32)) is None
    assert confirm(path, spec, np.array([2.5], np.float32)) is None


def test_all_rows_of_a_clause_count(tmp_path: Path) -> None:
    path = save(linear([1]), tmp_path / "net.onnx")
    spec = prop(region(box(("0", "1")), [row({0: "1"}, "0.5"), row({0: "-1"}, "-0.4")]))
    assert confirm(path, spec, np.array([0.3], np.float32)) is None
    assert confirm(path, spec, np.array([0.45], np.float32)) is not None


@given(st.integers(0, 10**6))
def test_what_is_reported_stands(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """Random networks, thresholds so tight that rounding decides; checked again by other means."""
    folder = tmp_path_factory.mktemp("net")
    path = save(random_layers(seed, 2, 8, 8, 1), folder / "net.onnx")
    graph = load(path)
    where = box(("0.1", "0.7"), ("-1e-9", "1e-9"))
    lowest = run_attack(graph, prop(region(where, [row({0: "1"}, "-1e3")])), QUICK, "cpu", forever, lambda c: True).best
    assert lowest is not None
    rng = np.random.default_rng(seed)
    least = Decimal(float(evaluate(graph, torch.from_numpy(lowest.x)[None])))
    threshold = least + Decimal(float(rng.choice([0, 1e-9, -1e-9, 1e-7, -1e-7])))
    spec = prop(region(where, [row({0: "1"}, str(threshold), bool(rng.integers(2)))]))
    found = find_counterexample(graph, spec, path, QUICK, "cpu", forever).counterexample
    assert found is None or stands(found, path, spec)


def test_another_network_in_the_graph_is_found_out(tmp_path: Path) -> None:
    """As if the reader were wrong: the graph says the property is violated, the file says it is not."""
    right = save(linear([1, 0]), tmp_path / "right.onnx")
    wrong = load(save(linear([-1, 0]), tmp_path / "wrong.onnx"))
    spec = prop(region(UNIT, [row({0: "1"}, "-0.1")]))
    result = find_counterexample(wrong, spec, right, QUICK, "cpu", forever)
    assert result.counterexample is None
    assert result.attack.accepted is None
    assert result.attack.best is not None
    assert result.attack.best.violating


def _candidate(x: list[float], worst_row: float) -> Candidate:
    return Candidate(np.array(x, np.float32), 0, 0, 0, worst_row)


def test_repair_finds_the_neighbour_that_counts(tmp_path: Path) -> None:
    """The candidate misses the threshold by one float32 step of the output."""
    path = save(linear([1, 0], bias=[0.5]), tmp_path / "net.onnx")
    graph = load(path)
    x = [0.25, 0.5]
    y = np.float32(0.75)
    limit = np.nextafter(y, np.float32(1))
    spec = prop(region(UNIT, [row({0: "-1"}, str(-Decimal(float(limit))))]))
    problems = Problems.from_property(spec, (2,), torch.float32, "cpu")
    assert confirm(path, spec, np.array(x, np.float32)) is None
    found = repair(graph, path, spec, problems, _candidate(x, 6e-8), forever)
    assert found is not None
    assert stands(found, path, spec)
    assert float(found.x[0]) - 0.25 < 0.13, "a point close by"
    assert repair(graph, path, spec, problems, _candidate(x, 6e-8), lambda: 0.0) is None


def test_repair_does_not_invent(tmp_path: Path) -> None:
    path = save(linear([1, 0]), tmp_path / "net.onnx")
    spec = prop(region(UNIT, [row({0: "-1"}, "-1.0000001")]))
    problems = Problems.from_property(spec, (2,), torch.float32, "cpu")
    assert repair(load(path), path, spec, problems, _candidate([1, 0.5], 1e-7), forever) is None


def test_near_misses_are_repaired_in_the_search(tmp_path: Path) -> None:
    """The graph is off by 1e-6 to the wrong side: its best point misses, the file's does not."""
    right = save(linear([1, 0]), tmp_path / "right.onnx")
    graph = load(save(linear([1, 0], bias=[-1e-6]), tmp_path / "shifted.onnx"))
    spec = prop(region(UNIT, [row({0: "-1"}, "-1")]))
    assert attack(graph, spec, QUICK, "cpu", forever) is None
    found = find_counterexample(graph, spec, right, QUICK, "cpu", forever).counterexample
    assert found is not None
    assert stands(found, right, spec)
    strict = AttackSettings(steps=20, restarts=6, tolerance=1e-9)
    assert find_counterexample(graph, spec, right, strict, "cpu", forever).counterexample is None


@pytest.mark.parametrize("element", [TensorProto.DOUBLE, TensorProto.FLOAT16])
def test_the_file_s_own_precision_counts(tmp_path: Path, element: int) -> None:
    path = save(linear([1], bias=[0.1]), tmp_path / "net.onnx", element=element)
    network = OnnxNetwork(path)
    x = np.array([0.25], np.float32)
    assert network.run(x).dtype == network.dtype
    y = Decimal(float(network.run(x)[0]))
    for limit, violated in ((y, True), (y - Decimal("1e-12"), False)):
        spec = prop(region(box(("0", "1")), [row({0: "1"}, str(limit))]))
        assert (confirm(network, spec, x) is not None) == violated


def _broken(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / ("net.onnx.gz" if kind == "no gzip" else "net.onnx")
    if kind in ("garbage", "no gzip"):
        path.write_bytes(b"this is no network")
    elif kind == "unknown operator":
        model = onnx.load(save(linear([1]), path))
        model.graph.node[0].op_type = "Frobnicate"
        path.write_bytes(model.SerializeToString())
    elif kind == "two inputs":
        model = onnx.load(save(linear([1]), path))
        model.graph.input.append(onnx.helper.make_tensor_value_info("z", TensorProto.FLOAT, [1]))
        path.write_bytes(model.SerializeToString())
    elif kind == "integers":
        model = onnx.load(save(linear([1]), path))
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
        model.graph.node.insert(0, onnx.helper.make_node("Cast", ["x"], ["c"], to=TensorProto.FLOAT))
        model.graph.node[1].input[0] = "c"
        path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("kind", ["missing", "garbage", "no gzip", "unknown operator", "two inputs", "integers"])
def test_unusable_files_are_one_line(tmp_path: Path, kind: str) -> None:
    path = _broken(tmp_path, kind)
    with pytest.raises(ModelError) as error:
        OnnxNetwork(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_wrong_sizes_are_one_line(tmp_path: Path) -> None:
    path = save(linear([1, 0]), tmp_path / "net.onnx")
    with pytest.raises(ModelError, match="does not take 3 numbers"):
        OnnxNetwork(path).run(np.zeros(3, np.float32))
    with pytest.raises(ModelError, match="1 outputs, but test property has 2"):
        confirm(path, prop(region(UNIT, [row({1: "1"}, "0")], n_outputs=2), n_outputs=2), np.zeros(2, np.float32))

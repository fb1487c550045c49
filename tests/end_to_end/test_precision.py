"""Numbers that float32 cannot hold: double networks, casts, tiny and huge coefficients. onnxruntime judges."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from complete_verifier.spec.counterexample import parse_counterexample
from tests.end_to_end.runs import Run, run, write
from tests.graph.single import model, node, session

DOUBLE, FLOAT, HALF = TensorProto.DOUBLE, TensorProto.FLOAT, TensorProto.FLOAT16


def scalar(lower: str, upper: str, body: str) -> str:
    """A property of one input and one output."""
    declared = "(declare-const X_0 Real)\n(declare-const Y_0 Real)\n"
    return f"{declared}(assert (>= X_0 {lower}))(assert (<= X_0 {upper}))\n(assert {body})\n"


def stands(done: Run, proto: onnx.ModelProto, coefficient: str, rhs: str, strict: bool = False) -> bool:
    """Whether the printed point satisfies ``coefficient * y <= rhs`` in onnxruntime and exact arithmetic."""
    assert done.results is not None
    point = parse_counterexample(done.results)
    kind = np.float64 if proto.graph.input[0].type.tensor_type.elem_type == DOUBLE else np.float32
    (y,) = session(proto).run(None, {"x": np.array([[float(x) for x in point.x]], kind)})
    left, right = Fraction(Decimal(coefficient)) * Fraction(float(y.item())), Fraction(Decimal(rhs))
    return left < right if strict else left <= right


# -- element types ----------------------------------------------------------------------------------------------------
def difference(kind: type[np.floating], elem: int, casts: bool = False) -> onnx.ModelProto:
    """``1e6 (1 + 1e-9) x - 1e6 x``: 1e-3 x in double, 0 where the first factor is rounded to float32."""
    constants = {
        "w": np.array([[1e6 * (1 + 1e-9)], [1e6]], kind), "b": np.zeros(2, kind), "v": np.array([[1, -1]], kind),
        "c": np.zeros(1, kind),
    }  # fmt: skip
    first = [node("Cast", "x", "d", to=DOUBLE)] if casts else []
    nodes = [*first, node("Gemm", f"{'d' if casts else 'x'} w b", "h", transB=1), node("Gemm", "h v c", transB=1)]
    proto = model(nodes, ["N", 1], constants, elem=elem)
    proto.graph.output[0].type.tensor_type.elem_type = DOUBLE
    return proto


@pytest.mark.parametrize("casts", [False, True], ids=["double", "float input, double inside"])
@pytest.mark.parametrize("flags", [(), ("--pgd_order", "skip")], ids=["attack", "bounds"])
def test_double_networks_are_bounded_in_double(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], casts: bool, flags: tuple[str, ...]
) -> None:
    proto = difference(np.float64, FLOAT if casts else DOUBLE, casts)
    files = write(tmp_path, proto, scalar("0", "1", "(>= Y_0 5e-4)"))
    done = run(capsys, tmp_path, files, *flags)
    assert done.word == "sat" and stands(done, proto, "-1", "-5e-4")
    assert done.out.count("bounded in double precision") == 1
    files = write(tmp_path, proto, scalar("0", "1", "(>= Y_0 1.1e-3)"))
    assert run(capsys, tmp_path, files, *flags).word == "unsat"
    assert "double precision" not in run(capsys, tmp_path, files, "--double_fp").out


def test_a_double_softmax_network_is_read_in_double_without_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proto = difference(np.float64, DOUBLE)
    proto.graph.node[-1].output[0] = "z"
    proto.graph.node.append(onnx.helper.make_node("Sigmoid", ["z"], ["y"], name="last"))
    files = write(tmp_path, proto, scalar("0", "1", "(>= Y_0 0.5001)"))
    flags = ("--onnx_vnnlib_joint_optimization_flags", "peel_off_last_softmax_layer", "--pgd_order", "skip")
    done = run(capsys, tmp_path, files, *flags)
    assert done.word == "sat" and done.out.count("bounded in double precision") == 1


def cast_back() -> onnx.ModelProto:
    """``1e9 (x - float(x))``: what a cast rounds off, which passes over casts take for 0."""
    constants = {"k": np.array([1e9])}
    nodes = [node("Cast", "x", "f", to=FLOAT), node("Cast", "f", "d", to=DOUBLE), node("Sub", "x d", "r"),
             node("Mul", "r k")]  # fmt: skip
    return model(nodes, ["N", 1], constants, elem=DOUBLE)


def half_like() -> onnx.ModelProto:
    nodes = [node("CastLike", "x h", "f"), node("CastLike", "f s", "y")]
    return model(nodes, ["N", 1], {"h": np.zeros(1, np.float16), "s": np.zeros(1, np.float32)})


def half_inside() -> onnx.ModelProto:
    return model([node("Cast", "x", "h", to=HALF), node("Cast", "h", to=FLOAT)], ["N", 1])


@pytest.mark.parametrize("make", [cast_back, half_like, half_inside])
def test_casts_that_round_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], make: object) -> None:
    proto = make()  # type: ignore[operator]
    session(proto)  # a valid file
    done = run(capsys, tmp_path, write(tmp_path, proto, scalar("0", "1", "(>= Y_0 2)")))
    assert (done.code, done.results, done.err.count("\n")) == (2, None, 1)
    assert "net.onnx: node the_" in done.err


def test_half_inputs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proto = model([node("Relu", "x")], ["N", 1], elem=HALF)
    done = run(capsys, tmp_path, write(tmp_path, proto, scalar("0", "1", "(>= Y_0 2)")))
    assert done.code == 2 and "only FLOAT and DOUBLE" in done.err


@pytest.mark.parametrize("through", [HALF, FLOAT], ids=["half", "float"])
def test_constants_are_rounded_by_their_casts(tmp_path: Path, capsys: pytest.CaptureFixture[str], through: int) -> None:
    """A double weight of 0.1 that the file casts: onnxruntime multiplies by the rounded one, and so must bounds."""
    constants = {"w": np.array([0.1])}
    nodes = [node("Cast", "w", "h", to=through), node("Cast", "h", "f", to=FLOAT), node("Mul", "x f")]
    proto = model(nodes, ["N", 1], constants)
    (y,) = session(proto).run(None, {"x": np.ones((1, 1), np.float32)})
    largest = float(y.item())
    assert largest != 0.1
    inside = (0.1 + largest) / 2
    files = write(tmp_path, proto, scalar("0", "1", f"({'>=' if largest > 0.1 else '<='} Y_0 {inside!r})"))
    if largest > 0.1:
        assert run(capsys, tmp_path, files, "--pgd_order", "skip").word == "sat"
    else:  # the file never reaches what lies between: asked from the other side
        files = write(tmp_path, proto, scalar("1", "1", f"(<= Y_0 {inside!r})"))
        assert run(capsys, tmp_path, files, "--pgd_order", "skip").word == "sat"


# -- coefficients of rows ---------------------------------------------------------------------------------------------
def line(slope: float) -> onnx.ModelProto:
    constants = {"w": np.array([[slope]], np.float32), "b": np.zeros(1, np.float32)}
    return model([node("Gemm", "x w b", transB=1)], ["N", 1], constants)


SAT = [
    (1.0, "1", "1e-50", "0", True), (1e6, "1", "1e-50", "-2e-45", False), (1.0, "10", "1e-46", "-5e-46", False),
    (1.0, "10", "1e-400", "-5e-400", False), (1.0, "10", "1e-40", "-5.00000001e-40", False),
    (1.0, "1", "1e39", "1e38", False), (1.0, "1", "1e300", "-9e299", False),
]  # fmt: skip


@pytest.mark.parametrize("order", ["before", "after", "skip"])
@pytest.mark.parametrize(("slope", "radius", "coefficient", "rhs", "strict"), SAT)
def test_tiny_and_huge_coefficients(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], order: str,
    slope: float, radius: str, coefficient: str, rhs: str, strict: bool,
) -> None:  # fmt: skip
    proto = line(slope)
    body = f"({'<' if strict else '<='} (* {coefficient} Y_0) {rhs})"
    files = write(tmp_path, proto, scalar(f"-{radius}", radius, body))
    done = run(capsys, tmp_path, files, "--pgd_order", order, "--timeout", "20")
    assert done.word == "sat" and stands(done, proto, coefficient, rhs, strict)


@pytest.mark.parametrize(
    ("slope", "body"),
    [
        (1.0, "(<= (* 1e-50 Y_0) -2e-50)"), (1e6, "(<= (* 1e-50 Y_0) -1.001e-44)"), (1.0, "(>= (* 1e39 Y_0) 1.1e39)"),
        (1.0, "(>= Y_0 1e39)"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_proved(tmp_path: Path, capsys: pytest.CaptureFixture[str], slope: float, body: str) -> None:
    files = write(tmp_path, line(slope), scalar("-1", "1", body))
    assert run(capsys, tmp_path, files, "--timeout", "20").word == "unsat"


def test_bounds_are_told_in_the_units_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write(tmp_path, line(3.0), scalar("-1", "1", "(<= (* 0.1 Y_0) -0.4)"))
    done = run(capsys, tmp_path, files, "--pgd_order", "skip")
    assert done.word == "unsat"
    assert done.stats["bounds"] == {"lower": [pytest.approx(-0.3)]}


def test_an_offset_is_added_in_the_units_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """3e-50 y <= -4e-50 on |y| <= 1 has no solution; with 2e-50 more on the right it has."""
    files = write(tmp_path, line(1.0), scalar("-1", "1", "(<= (* 3e-50 Y_0) -4e-50)"))
    assert run(capsys, tmp_path, files).word == "unsat"
    assert run(capsys, tmp_path, files, "--rhs_offset", "2e-50").word == "sat"


def test_coefficients_too_far_apart_prove_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``y0 + 1e-50 y1 < 0`` where y0 is 0: without its second term the row would be refuted."""
    constants = {"w": np.array([[0.0], [1.0]], np.float32), "b": np.zeros(2, np.float32)}
    proto = model([node("Gemm", "x w b", transB=1)], ["N", 1], constants)
    text = "(declare-const Y_1 Real)\n" + scalar("-1", "1", "(< (+ Y_0 (* 1e-50 Y_1)) 0)")
    done = run(capsys, tmp_path, write(tmp_path, proto, text), "--timeout", "10")
    assert done.word in ("sat", "unknown", "timeout")
    assert done.out.count("too far apart for float32") == 1
    assert run(capsys, tmp_path, write(tmp_path, proto, text), "--timeout", "10", "--double_fp").word == "sat"

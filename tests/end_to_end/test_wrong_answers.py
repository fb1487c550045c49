"""Wrong answers that other verifiers have given, as whole runs: each must come out right here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end.runs import property_text, run, write
from tests.graph.single import model, node, session


def reshaped_residual(seed: int) -> tuple[bytes, np.ndarray, np.ndarray]:
    """A residual branch of a reshape and three convolutions without a ReLU between; its weights stay random.

    Plain CROWN of a peer gives the branch a box of width zero and says unsat (peers, wrong answer 6).
    """
    gen = np.random.default_rng(seed)

    def weight(*shape: int) -> np.ndarray:
        return (gen.normal(size=shape) / np.prod(shape[1:]) ** 0.5).astype(np.float32)

    constants = {
        "w0": weight(16, 6), "b0": weight(16),
        "shape": np.array([-1, 1, 4, 4]), "flat": np.array([-1, 16]),
        "c1": weight(2, 1, 3, 3), "c2": weight(2, 2, 3, 3), "c3": weight(1, 2, 3, 3),
        "w1": weight(3, 16), "b1": weight(3),
    }  # fmt: skip
    nodes = [
        node("Gemm", "x w0 b0", "z", transB=1),
        node("Relu", "z", "a"),
        node("Reshape", "a shape", "image"),
        node("Conv", "image c1", "d1", pads=[1, 1, 1, 1]),
        node("Conv", "d1 c2", "d2", pads=[1, 1, 1, 1]),
        node("Conv", "d2 c3", "d3", pads=[1, 1, 1, 1]),
        node("Add", "image d3", "s"),
        node("Relu", "s", "r"),
        node("Reshape", "r flat", "f"),
        node("Gemm", "f w1 b1", "y", transB=1),
    ]
    proto = model(nodes, ["N", 6], constants)
    x = gen.uniform(-0.5, 0.5, size=(4000, 6)).astype(np.float32)
    (y,) = session(proto).run(None, {"x": x})
    return proto, x, y


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", ["crown", "alpha-crown"])
def test_residual_branch_of_reshape_and_convolutions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int, method: str
) -> None:
    """The threshold lies above an output that was really computed: unsat is wrong, whatever the method."""
    proto, _, y = reshaped_residual(seed)
    margin = y[:, 0] - y[:, 1]
    row = ([1.0, -1.0, 0.0], float(margin.min()) + 1e-3)
    files = write(tmp_path, proto, property_text(-np.full(6, 0.5), np.full(6, 0.5), 3, [[row]]))
    flags = ("--pgd_order", "skip", "--bound_prop_method", method, "--init_iteration", "10", "--iteration", "5")
    done = run(capsys, tmp_path, files, *flags, "--max_iterations", "3")
    assert done.word in ("sat", "unknown")
    (bound,) = done.stats["bounds"]["lower"]
    assert bound <= margin.min()
    assert run(capsys, tmp_path, files).word == "sat"


def overflowing(scale: float) -> bytes:
    """``y = s*s*relu(x0) - s*s*relu(x1)``: in float32 inf - inf, in exact arithmetic of either sign."""
    constants = {
        "w0": np.eye(2, dtype=np.float32) * np.float32(scale),
        "w1": np.array([[scale, -scale]], dtype=np.float32),
        "b1": np.zeros(1, dtype=np.float32),
    }
    nodes = [
        node("MatMul", "x w0", "z"),
        node("Relu", "z", "a"),
        node("Gemm", "a w1 b1", "m", transB=1),
        node("Relu", "m", "n"),
        node("Neg", "n", "y"),
    ]
    return model(nodes, ["N", 2], constants)


@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown", "forward", "forward+crown", "alpha-crown"])
def test_numbers_that_overflow_prove_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str) -> None:
    """NaN bounds are no proof (wrong answer 7): y reaches -1e60 at x = (1, 0), so unsat is wrong."""
    text = property_text(np.array([-1.0, -1.0]), np.array([1.0, 1.0]), 1, [[([1.0], -5.0)]])
    files = write(tmp_path, overflowing(1e30), text)
    done = run(capsys, tmp_path, files, "--bound_prop_method", method, "--pgd_order", "skip")
    assert (done.code, done.word) == (0, "unknown")
    # the same network with numbers that fit is decided, so it is the overflow that the above is about
    files = write(tmp_path, overflowing(10.0), text)
    assert run(capsys, tmp_path, files, "--bound_prop_method", method).word == "sat"

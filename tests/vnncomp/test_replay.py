"""The replay of counterexamples accepts what is one and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.replay import fault
from tests.graph.single import model, node

# y = 2 x, and x in [0.1, 1]: a counterexample has y_0 >= 1 and y_1 < 1 (x_0 >= 0.5, x_1 < 0.5).
_PROPERTY = """
(declare-const X_0 Real) (declare-const X_1 Real)
(declare-const Y_0 Real) (declare-const Y_1 Real)
(assert (>= X_0 0.1)) (assert (<= X_0 1.0)) ; the box
(assert (>= X_1 0.1)) (assert (<= X_1 1.0))
(assert (or (and (>= Y_0 1.0) (< Y_1 1.0)) (>= Y_0 1e3)))
"""


def _text(x: tuple[str, str], y: tuple[str, str]) -> str:
    return f"sat\n((X_0  {x[0]})\n(X_1  {x[1]})\n(Y_0  {y[0]})\n(Y_1  {y[1]}))"


GOOD = _text(("0.5", "0.25"), ("1.0", "0.5"))


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    network, specification = tmp_path / "net.onnx", tmp_path / "prop.vnnlib"
    onnx.save(model([node("Add", "x x", "y")], ["N", 2], {"w": np.zeros(1, dtype=np.float32)}), network)
    specification.write_text(_PROPERTY)
    return network, specification


def test_a_counterexample_is_accepted(files: tuple[Path, Path]) -> None:
    assert fault(GOOD, *files) is None
    assert fault(GOOD.replace("\n", " ").replace("sat ", "sat\n"), *files) is None  # line ends mean nothing


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (GOOD.replace("sat", "unsat"), "first line"),
        ("sat", "first line"),
        ("sat\n", "malformed"),
        (GOOD[:-1], "malformed"),
        (GOOD.replace("X_1", "X_2"), "order"),
        (GOOD.replace("(X_1  0.25)\n", ""), "1 inputs"),
        (GOOD.replace("\n(Y_1  0.5)", ""), "1 outputs"),
        (_text(("0.5", "0.25"), ("1.0", "0.6")), "off by"),
        (_text(("0.5", "0.09999"), ("1.0", "0.19998")), "assertions"),  # outside the box, by less than 1e-4
        (_text(("0.49999", "0.25"), ("0.99998", "0.5")), "assertions"),
        (_text(("0.5", "0.5"), ("1.0", "1.0")), "assertions"),  # on the border where the file is strict
        (_text(("0.5", "nan"), ("1.0", "nan")), "malformed"),
    ],
)
def test_anything_else_is_refused(files: tuple[Path, Path], text: str, why: str) -> None:
    found = fault(text, *files)
    assert found is not None and why in found


def test_a_property_of_another_network_is_refused(files: tuple[Path, Path]) -> None:
    files[1].write_text(_PROPERTY + "(declare-const Y_2 Real)")
    assert fault(GOOD, *files) == "the property has other numbers of inputs or outputs"

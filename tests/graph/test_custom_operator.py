"""Operators that users register: the documented example runs as printed, names are checked, bad ones refused."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import Tensor

from auto_LiRPA.errors import ConfigError, UnsupportedOperator
from auto_LiRPA.graph.registry import nearest, operator_key, register_custom_op, unregister_custom_op
from auto_LiRPA.operators.arithmetic import Affine
from auto_LiRPA.operators.base import LinearOperator
from tests.graph.single import kinds, model, node, node_values, read, weights
from tests.support import ROOT

DOCUMENT = ROOT / "docs" / "custom_operator.md"


def test_the_documented_example_runs_as_printed(tmp_path: Path) -> None:
    """In a process of its own, since it registers an operator and writes a file."""
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
    assert len(blocks) == 4
    script = tmp_path / "example.py"
    closing = 'unregister_custom_op("example::Softplus")\nassert lower.shape == upper.shape == (1, 2)\n'
    script.write_text("\n\n".join([*blocks, closing]))
    run = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr


@dataclass(frozen=True)
class Scaled(LinearOperator):
    """``factor * x``, the factor by attribute or as a constant input."""

    factor: float

    @classmethod
    def from_onnx(cls, attributes: Mapping[str, object], in_shapes: tuple[tuple[int, ...], ...]) -> Scaled:
        assert in_shapes == ((3,),)
        factor = attributes.get("factor", attributes.get("input_1"))
        assert isinstance(factor, float | Tensor)
        return cls(float(factor))

    def apply(self, *inputs: Tensor) -> Tensor:
        return inputs[0] * self.factor

    def transpose(self, coef: Tensor) -> tuple[Tensor, ...]:
        return (coef * self.factor,)


@pytest.fixture
def scaled() -> Iterator[None]:
    register_custom_op("ns::Scaled", Scaled)
    yield
    unregister_custom_op("ns::Scaled")


def network(*, by_input: bool, domain: str = "ns") -> onnx.ModelProto:
    inputs = ["x", "f"] if by_input else ["x"]
    attributes: dict[str, Any] = {} if by_input else {"factor": 2.5}
    custom = helper.make_node("Scaled", inputs, ["t"], name="scaling", domain=domain, **attributes)
    constants = {"f": np.float32(2.5)} if by_input else {}
    proto = model([custom, node("Relu", "t")], ["N", 3], constants)
    proto.opset_import.append(helper.make_opsetid(domain, 1))
    return proto


@pytest.mark.parametrize("by_input", [False, True])
@pytest.mark.usefixtures("scaled")
def test_attributes_and_constant_inputs(by_input: bool) -> None:
    graph = read(network(by_input=by_input))
    assert kinds(graph) == ["Scaled", "Relu"]
    assert graph.nodes[1].name == "scaling"
    x = torch.randn(2, 3)
    assert torch.allclose(node_values(graph, x)[1], x * 2.5)


def test_unregistered_name_is_told(scaled: None) -> None:
    unregister_custom_op("ns::Scaled")
    try:
        with pytest.raises(UnsupportedOperator, match=r"node scaling \(Scaled\): operator ns::Scaled .*'ns::Scaled'"):
            read(network(by_input=False))
    finally:
        register_custom_op("ns::Scaled", Scaled)


def test_registered_class_wins_over_a_built_in_operator() -> None:
    class Doubled(Scaled):
        @classmethod
        def from_onnx(cls, attributes: Mapping[str, object], in_shapes: tuple[tuple[int, ...], ...]) -> Scaled:
            return cls(2.0)

    register_custom_op("Relu", Doubled)
    try:
        assert kinds(read(model([node("Relu", "x")], ["N", 3]))) == ["Doubled"]
    finally:
        unregister_custom_op("Relu")
    assert kinds(read(model([node("Relu", "x")], ["N", 3]))) == ["Relu"]


@pytest.mark.usefixtures("scaled")
def test_names_taken_unknown_or_malformed() -> None:
    register_custom_op("ns::Scaled", Scaled)  # the same class again is fine
    with pytest.raises(ConfigError, match="is taken by Scaled"):
        register_custom_op("ns::Scaled", type("Other", (Scaled,), {}))
    with pytest.raises(ConfigError, match="not registered"):
        unregister_custom_op("ns::Unknown")
    with pytest.raises(ConfigError, match="no class method from_onnx"):
        register_custom_op("ns::Affine", Affine)  # type: ignore[arg-type]
    for name in ("", "ns::", "::Name"):
        with pytest.raises(ConfigError, match="expected 'namespace::Name'"):
            operator_key(name)


def test_nearest_name() -> None:
    assert nearest("LeakyReLU", ("Relu", "LeakyRelu", "Conv")) == "LeakyRelu"
    assert nearest("Qqqq", ("Relu", "Conv")) is None
    assert weights(1).shape == (1,)

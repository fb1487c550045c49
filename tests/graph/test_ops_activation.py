"""Scalar functions and pass-through operators, in the forms of every opset."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from auto_LiRPA.errors import ModelError, UnsupportedOperator
from auto_LiRPA.operators.activation import Relu
from auto_LiRPA.operators.piecewise import Clip
from tests.graph.single import agree, kinds, model, node, read, weights


@pytest.mark.parametrize("op", ["Relu", "Abs", "Sign", "Sigmoid", "Tanh", "Identity", "Neg", "Dropout"])
@pytest.mark.parametrize("shape", [["N", 3], [5], ["N", 2, 3, 4]], ids=str)
def test_scalar_functions(op: str, shape: list[int | str]) -> None:
    agree(model([node(op, "x", "t"), node("Relu", "t")], shape), shape, scale=3)


@pytest.mark.parametrize("alpha", [None, 0.0, 0.25, 0.99])
def test_leaky_relu(alpha: float | None) -> None:
    attributes: dict[str, Any] = {} if alpha is None else {"alpha": alpha}
    graph = agree(model([node("LeakyRelu", "x", **attributes)], ["N", 3]), [1, 3])
    assert isinstance(graph.nodes[1].op, Relu)


@pytest.mark.parametrize("alpha", [-0.1, 1.0, 1.5])
def test_leaky_relu_out_of_range(alpha: float) -> None:
    with pytest.raises(UnsupportedOperator, match=r"LeakyRelu with alpha"):
        read(model([node("LeakyRelu", "x", alpha=alpha)], ["N", 3]))


@pytest.mark.parametrize("limits", [{}, {"min": -0.5}, {"max": 0.5}, {"min": -0.5, "max": 0.25}], ids=str)
def test_clip(limits: dict[str, float]) -> None:
    """Attributes before opset 11, inputs since; None is an open side, not an infinite number."""
    old = agree(model([node("Clip", "x", "t", **limits), node("Relu", "t")], ["N", 3], opset=10), [1, 3])
    names = " ".join(n if n in limits else "-" for n in ("min", "max"))
    constants = {k: np.float32(v) for k, v in limits.items()}
    new = agree(model([node("Clip", f"x {names}", "t"), node("Relu", "t")], ["N", 3], constants, opset=13), [1, 3])
    clips = [n.op for n in (*old.nodes, *new.nodes) if isinstance(n.op, Clip)]
    assert [(c.low, c.high) for c in clips] == ([(limits.get("min"), limits.get("max"))] * 2 if limits else [])


def test_max_and_min_of_a_number_are_clips() -> None:
    constants = {"a": np.float32(-0.5), "b": np.full((1, 3), 0.25, np.float32), "c": np.float32(0.5)}
    for nodes in (
        [node("Max", "x a", "t"), node("Min", "b t")],
        [node("Min", "x b", "t"), node("Max", "t a")],
    ):
        graph = agree(model(nodes, ["N", 3], {k: constants[k] for k in "ab"}), [1, 3])
        assert [(n.op.low, n.op.high) for n in graph.nodes if isinstance(n.op, Clip)] == [(-0.5, 0.25)]
    for nodes in (
        [node("Max", "x c", "t"), node("Min", "t b")],  # 0.25 everywhere: no interval to clip to
        [node("Max", "x a", "t"), node("Max", "t b")],
        [node("Min", "x b", "t"), node("Max", "t a", "m"), node("Add", "m t")],
    ):
        used = {i for n in nodes for i in n.input}
        assert len(agree(model(nodes, ["N", 3], {k: v for k, v in constants.items() if k in used}), [1, 3]).nodes) > 2
    with pytest.raises(UnsupportedOperator, match="one value and one constant"):
        read(model([node("Max", "x x")], ["N", 3]))
    with pytest.raises(UnsupportedOperator, match="a constant of one number"):
        read(model([node("Max", "x a")], ["N", 3], {"a": weights(3)}))


def test_cast_like() -> None:
    nodes = [node("CastLike", "x c", "t"), node("CastLike", "i x", "k"), node("Mul", "t k")]
    agree(model(nodes, ["N", 3], {"c": np.float32(0), "i": np.array(2)}), [1, 3])
    with pytest.raises(UnsupportedOperator, match="whole numbers"):
        read(model([node("CastLike", "x i")], ["N", 3], {"i": np.array(2)}))


def test_clip_limits_that_depend_on_the_input_or_cross() -> None:
    nodes = [node("ReduceSum", "x", "s", keepdims=0), node("Clip", "x s")]
    with pytest.raises(UnsupportedOperator, match="input 1 has to be a constant"):
        read(model(nodes, [1, 3]))
    with pytest.raises(ModelError, match="above the upper limit"):
        read(model([node("Clip", "x a b")], ["N", 3], {"a": np.float32(1), "b": np.float32(0)}))


@pytest.mark.parametrize("opset", [7, 10, 12, 13])
def test_dropout_forms(opset: int) -> None:
    ratio = {"ratio": 0.25} if opset < 12 else {}
    constants = {"r": np.float32(0.25), "t": np.array(False)} if opset >= 12 else {}
    inputs = "x r t" if opset >= 12 else "x"
    graph = agree(
        model([node("Dropout", inputs, "d", **ratio), node("Relu", "d")], ["N", 3], constants, opset=opset), [1, 3]
    )
    assert kinds(graph) == ["Relu"]


def test_dropout_in_training_and_its_mask_are_refused() -> None:
    constants = {"r": np.float32(0.25), "t": np.array(True)}
    with pytest.raises(UnsupportedOperator, match="training mode"):
        read(model([node("Dropout", "x r t")], ["N", 3], constants))
    with pytest.raises(UnsupportedOperator, match="second output"):
        read(model([node("Dropout", "x", "d m"), node("Cast", "m", "c", to=1), node("Add", "d c")], ["N", 3]))


def test_cast() -> None:
    nodes = [
        node("Cast", "x", "d", to=TensorProto.DOUBLE),
        node("Cast", "d", "f", to=TensorProto.FLOAT),
        node("Relu", "f"),
    ]
    assert kinds(agree(model(nodes, ["N", 3]), [1, 3])) == ["Relu"]
    for kind in (TensorProto.FLOAT16, TensorProto.INT64):
        with pytest.raises(UnsupportedOperator, match="Cast to element type"):
            read(model([node("Cast", "x", to=kind)], ["N", 3]))


def test_unsupported_operator_is_one_helpful_line() -> None:
    with pytest.raises(UnsupportedOperator) as caught:
        read(model([node("Celu", "x")], ["N", 3]))
    text = str(caught.value)
    assert "\n" not in text
    for part in ("test.onnx", "the_y", "Celu", "[1, 3]", "Relu", "register_custom_op", "docs/custom_operator.md"):
        assert part in text


def test_unknown_domain_is_named() -> None:
    made = onnx.helper.make_node("Rotate", ["x"], ["y"], domain="my.ops", name="rot")
    proto = model([made], ["N", 3])
    proto.opset_import.append(onnx.helper.make_opsetid("my.ops", 1))
    with pytest.raises(UnsupportedOperator, match=r"node rot \(Rotate\): operator my.ops::Rotate"):
        read(proto)


def test_random_values_are_refused() -> None:
    nodes = [node("RandomNormal", "", "r", shape=[3]), node("Add", "x r")]
    with pytest.raises(UnsupportedOperator, match="random values"):
        read(model(nodes, ["N", 3]))


def test_constants_are_folded_by_evaluation() -> None:
    nodes = [node("Exp", "c", "e"), node("Sqrt", "e", "s"), node("Mul", "x s")]
    graph = agree(model(nodes, ["N", 3], {"c": weights(3)}), [1, 3])
    assert kinds(graph) == ["Affine"]

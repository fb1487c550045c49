"""Reshape, Flatten, Squeeze, Unsqueeze, Transpose, Expand and shape arithmetic, in the forms of every opset."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from auto_LiRPA.errors import ModelError, UnsupportedOperator
from tests.graph.single import agree, ints, kinds, model, node, read, weights


@pytest.mark.parametrize(
    "target", [[1, -1], [0, -1], [-1, 24], [0, 4, 6], [1, 2, 0, 4], [0, 0, 2, 6], [24, 1], [-1], [6, 4]]
)
def test_reshape_of_a_frozen_batch(target: list[int]) -> None:
    agree(model([node("Reshape", "x s")], [1, 2, 3, 4], {"s": ints(*target)}), [1, 2, 3, 4])


@pytest.mark.parametrize("target", [[1, -1], [0, -1], [-1, 24], [0, 4, 6], [0, 2, 0, 4]])
def test_reshape_of_a_free_batch(target: list[int]) -> None:
    proto = model([node("Reshape", "x s")], ["N", 2, 3, 4], {"s": ints(*target)})
    if target[0] == 1:
        assert read(proto).output_shape == (24,)  # repaired: onnxruntime itself would merge the samples
    else:
        agree(proto, [1, 2, 3, 4])


def test_reshape_forms() -> None:
    old = helper.make_node("Reshape", ["x"], ["y"], name="r", shape=[1, 6])
    assert read(model([old], [1, 2, 3], opset=1)).output_shape == (6,)
    made = model([node("Reshape", "x s", allowzero=1)], [1, 2, 3], {"s": ints(1, 6)})
    agree(made, [1, 2, 3])


@pytest.mark.parametrize(
    ("target", "text"),
    [([5, -1], "does not fit"), ([-1, -1], "not valid"), ([1, 2, 3, 0], "copies an axis"), ([7], "does not fit")],
    ids=str,
)
def test_impossible_reshape_names_the_node(target: list[int], text: str) -> None:
    with pytest.raises(ModelError, match=rf"node the_y \(Reshape\).*{text}"):
        read(model([node("Reshape", "x s")], [1, 2, 3], {"s": ints(*target)}))


def test_reshape_to_a_computed_shape_is_refused() -> None:
    nodes = [node("Cast", "x", "s", to=7), node("Reshape", "x s")]
    with pytest.raises(UnsupportedOperator):
        read(model(nodes, [1, 2]))


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -2])
def test_flatten(axis: int) -> None:
    agree(model([node("Flatten", "x", axis=axis)], [1, 2, 3, 4], opset=13), [1, 2, 3, 4])


@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ([1, 3, 1, 4], [2]),
        ([1, 3, 1, 4], [0]),
        ([1, 3, 1, 4], [0, 2]),
        ([1, 3, 1, 4], [-2]),
        ([1, 3, 1], None),
        ([3, 1], [1]),
    ],
    ids=str,
)
def test_squeeze(shape: list[int], axes: list[int] | None, opset: int) -> None:
    if opset < 13:
        proto = model([node("Squeeze", "x", **_axes(axes))], shape, opset=opset)
    elif axes is None:
        proto = model([node("Squeeze", "x")], shape, opset=opset)
    else:
        proto = model([node("Squeeze", "x a")], shape, {"a": ints(*axes)}, opset=opset)
    agree(proto, shape)


@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [([1, 3], [1]), ([1, 3], [0]), ([1, 3], [2, 0]), ([1, 3], [-1]), ([1, 3], [0, 1, 4]), ([3], [0]), ([3], [0, 2])],
    ids=str,
)
def test_unsqueeze(shape: list[int], axes: list[int], opset: int) -> None:
    if opset < 13:
        proto = model([node("Unsqueeze", "x", axes=axes)], shape, opset=opset)
    else:
        proto = model([node("Unsqueeze", "x a")], shape, {"a": ints(*axes)}, opset=opset)
    agree(proto, shape)


@pytest.mark.parametrize("axes", [[1], [2], [-1], [1, 3]])
def test_unsqueeze_of_a_free_batch(axes: list[int]) -> None:
    agree(model([node("Unsqueeze", "x a")], ["N", 3, 4], {"a": ints(*axes)}), [1, 3, 4])


@pytest.mark.parametrize("perm", [None, [0, 2, 1], [0, 1, 2], [1, 0, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]], ids=str)
def test_transpose(perm: list[int] | None) -> None:
    """Back at the end: the batch axis is followed through any permutation."""
    attributes: dict[str, Any] = {} if perm is None else {"perm": perm}
    back = [int(i) for i in np.argsort(perm or [2, 1, 0])]
    nodes = [node("Transpose", "x", "t", **attributes), node("Relu", "t", "r"), node("Transpose", "r", perm=back)]
    agree(model(nodes, ["N", 3, 4]), [1, 3, 4])
    agree(model([node("Transpose", "x", **attributes)], [1, 3, 4]), [1, 3, 4])


def test_transpose_that_does_not_fit() -> None:
    with pytest.raises(ModelError, match=r"perm \[0, 1\] does not fit"):
        read(model([node("Transpose", "x", perm=[0, 1])], [1, 3, 4]))


@pytest.mark.parametrize("target", [[1, 3, 4], [1, 3, 1], [5, 1, 3, 4], [1, 1, 3, 4], [1]], ids=str)
def test_expand(target: list[int]) -> None:
    agree(model([node("Expand", "x s")], [1, 3, 1], {"s": ints(*target)}), [1, 3, 1])


def test_consecutive_reshapes_are_one() -> None:
    nodes = [node("Reshape", "x a", "t"), node("Flatten", "t", "f"), node("Unsqueeze", "f b", "u"), node("Relu", "u")]
    graph = agree(model(nodes, ["N", 2, 3], {"a": ints(0, 3, 2), "b": ints(1)}), [1, 2, 3])
    assert kinds(graph) == ["Reshape", "Relu"]


def _axes(axes: list[int] | None) -> dict[str, Any]:
    return {} if axes is None else {"axes": axes}


def shape_arithmetic() -> list[onnx.NodeProto]:
    """view(x.size(0), -1) as exporters write it."""
    return [
        node("Shape", "x", "shape"),
        node("Gather", "shape zero", "n", axis=0),
        node("Unsqueeze", "n axis", "n1"),
        node("Concat", "n1 rest", "target", axis=0),
        node("Reshape", "x target", "flat"),
    ]


def test_shape_arithmetic_is_folded() -> None:
    constants = {"zero": np.array(0, np.int64), "axis": ints(0), "rest": ints(-1), "w": weights(6, 2)}
    nodes = [*shape_arithmetic(), node("MatMul", "flat w")]
    graph = agree(model(nodes, ["N", 2, 3], constants), [1, 2, 3])
    assert kinds(graph) == ["Reshape", "Linear"]


def test_constant_of_shape_range_and_expand() -> None:
    """A class token as long as the batch, and positions by Range: all of it constant for one sample."""
    nodes = [
        node("Shape", "x", "shape"),
        node("Slice", "shape a b", "n"),
        node("Concat", "n two four", "ts", axis=0),
        helper.make_node("ConstantOfShape", ["ts"], ["token"], value=helper.make_tensor("v", 1, [1], [0.5])),
        node("Concat", "token x", "joined", axis=1),
        node("Range", "start stop step", "positions"),
        node("Add", "joined positions"),
    ]
    constants = {
        "a": ints(0),
        "b": ints(1),
        "two": ints(2),
        "four": ints(4),
        "start": np.float32(0),
        "stop": np.float32(4),
        "step": np.float32(1),
    }
    agree(model(nodes, ["N", 3, 4], constants), [1, 3, 4])


def test_shape_of_an_inner_value_and_size() -> None:
    nodes = [
        node("Transpose", "x", "t", perm=[0, 2, 1]),
        node("Shape", "t", "s"),
        node("Size", "t", "size"),
        node("Reshape", "x s", "r"),
        node("Cast", "size", "f", to=1),
        node("Mul", "r f"),
    ]
    agree(model(nodes, [1, 3, 4]), [1, 3, 4])


def test_if_on_a_constant_condition() -> None:
    then = helper.make_graph([node("Relu", "x", "a")], "then", [], [helper.make_tensor_value_info("a", 1, None)])
    other = helper.make_graph([node("Neg", "x", "b")], "else", [], [helper.make_tensor_value_info("b", 1, None)])
    nodes = [
        node("Shape", "x", "s"),
        node("Size", "s", "rank"),
        node("Equal", "rank two", "c"),
        helper.make_node("If", ["c"], ["z"], then_branch=then, else_branch=other),
        node("Neg", "z"),
    ]
    assert kinds(agree(model(nodes, ["N", 3], {"two": np.array(2, np.int64)}), [1, 3])) == ["Relu", "Affine"]


def test_local_function_is_inlined() -> None:
    function = helper.make_function(
        "mine", "Double", ["a"], ["b"], [node("Add", "a a", "b")], [helper.make_opsetid("", 17)]
    )
    proto = model([helper.make_node("Double", ["x"], ["y"], domain="mine", name="d")], ["N", 3])
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    agree(proto, [1, 3])

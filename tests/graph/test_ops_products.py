"""Products and quotients of two values, Softmax, Exp, Sqrt, Reciprocal, Where: against onnxruntime, any batch."""

from __future__ import annotations

import numpy as np
import pytest

from auto_LiRPA.errors import ModelError
from tests.graph.single import agree, ints, kinds, model, node, read, weights


@pytest.mark.parametrize("shape", [["N", 3, 4], ["N", 2, 3, 4]])
def test_matrix_product_of_two_values(shape: list[int | str]) -> None:
    rank = len(shape)
    perm = [*range(rank - 2), rank - 1, rank - 2]
    nodes = [node("Relu", "x", "r"), node("Transpose", "r", "t", perm=perm), node("MatMul", "x t")]
    assert kinds(agree(model(nodes, shape), shape))[-1] == "MatMul"


def test_matrix_product_broadcasts_leading_axes() -> None:
    nodes = [
        node("ReduceMean", "x", "m", axes=[1], keepdims=1),
        node("Transpose", "m", "t", perm=[0, 1, 3, 2]),
        node("MatMul", "x t"),
    ]
    agree(model(nodes, ["N", 2, 3, 4]), ["N", 2, 3, 4])


def test_matrix_product_along_the_batch_is_refused() -> None:
    nodes = [node("Relu", "x", "r"), node("Transpose", "r", "t", perm=[1, 0]), node("MatMul", "x t")]
    with pytest.raises(ModelError, match="batch"):
        read(model(nodes, ["N", 4]))


def test_inner_lengths_that_differ_are_named() -> None:
    with pytest.raises(ModelError, match=r"the_y \(MatMul\).*inner lengths 4 and 3 differ"):
        read(model([node("Relu", "x", "r"), node("MatMul", "x r")], ["N", 3, 4]))


@pytest.mark.parametrize("op", ["Mul", "Div"])
def test_products_and_quotients_of_values(op: str) -> None:
    nodes = [node("Exp", "x", "e"), node("ReduceSum", "e a", "s", keepdims=1), node(op, "x s")]
    agree(model(nodes, ["N", 5], {"a": ints(1)}), ["N", 5])


def test_constant_over_a_value() -> None:
    nodes = [node("Exp", "x", "e"), node("Div", "c e")]
    assert kinds(agree(model(nodes, ["N", 2], {"c": weights(2)}), ["N", 2])) == ["Exp", "Reciprocal", "Affine"]


@pytest.mark.parametrize("opset", [9, 11, 13, 17])
@pytest.mark.parametrize("axis", [1, 2, 3, -1])
def test_softmax(opset: int, axis: int) -> None:
    """Before opset 13 it is taken over all axes from `axis` on together."""
    if opset == 9 and axis < 0:
        return
    agree(model([node("Softmax", "x", axis=axis)], ["N", 2, 3, 4], opset=opset), ["N", 2, 3, 4])


@pytest.mark.parametrize("opset", [11, 17])
def test_softmax_with_its_default_axis(opset: int) -> None:
    agree(model([node("Softmax", "x")], ["N", 2, 3], opset=opset), ["N", 2, 3])


@pytest.mark.parametrize("n", [1, 2, 200])
def test_softmax_of_any_length(n: int) -> None:
    found = kinds(agree(model([node("Softmax", "x", axis=-1)], ["N", n], opset=13), ["N", n]))
    assert found == (["Differences", "PairSoftmax"] if n in (2, 200) and n * (n - 1) // 2 <= 2**14 else ["Softmax"])


def test_softmax_over_the_batch_is_refused() -> None:
    with pytest.raises(ModelError, match="batch"):
        read(model([node("Softmax", "x", axis=0)], ["N", 3], opset=13))


@pytest.mark.parametrize("op", ["Sqrt", "Reciprocal"])
def test_functions_of_positive_values(op: str) -> None:
    agree(model([node("Exp", "x", "e"), node(op, "e")], ["N", 4]), ["N", 4])


def test_where_with_a_constant_condition() -> None:
    mask = np.array([[True, False, True], [False, False, True]])
    constants = {"m": mask, "c": weights(2, 3)}
    agree(model([node("Where", "m x c")], ["N", 2, 3], constants), ["N", 2, 3])
    agree(model([node("Where", "m c x")], ["N", 2, 3], constants), ["N", 2, 3])
    agree(model([node("Relu", "x", "r"), node("Where", "m x r")], ["N", 2, 3], {"m": mask}), ["N", 2, 3])

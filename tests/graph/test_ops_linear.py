"""Gemm, MatMul and their bias, with the constant on either side, against onnxruntime."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from auto_LiRPA.errors import ModelError, UnsupportedOperator
from auto_LiRPA.operators.linear import Linear
from tests.graph.single import agree, kinds, model, node, read, weights


@pytest.mark.parametrize("opset", [7, 9, 11, 13])
@pytest.mark.parametrize(("trans_b", "alpha", "beta"), list(itertools.product([0, 1], [1.0, 0.5], [1.0, -2.0])))
def test_gemm(trans_b: int, alpha: float, beta: float, opset: int) -> None:
    w = weights(3, 4) if trans_b else weights(4, 3)
    gemm = node("Gemm", "x w b", transB=trans_b, alpha=alpha, beta=beta)
    agree(model([gemm], [1, 4], {"w": w, "b": weights(3)}, opset=opset), [1, 4])


@pytest.mark.parametrize("bias", [(3,), (1, 3), (1,), (), (1, 1)])
def test_gemm_bias_shapes(bias: tuple[int, ...]) -> None:
    proto = model([node("Gemm", "x w b")], ["N", 4], {"w": weights(4, 3), "b": weights(*bias)})
    assert kinds(agree(proto, [1, 4])) == ["Linear"]


def test_gemm_without_bias_and_plain_bias_is_one_node() -> None:
    assert kinds(agree(model([node("Gemm", "x w", transB=1)], [1, 4], {"w": weights(3, 4)}), [1, 4])) == ["Linear"]


def test_gemm_trans_a_on_a_column() -> None:
    """A column vector without batch axis."""
    proto = model([node("Gemm", "x w b", transA=1)], [4, 1], {"w": weights(4, 3), "b": weights(3)})
    agree(proto, [4, 1])


@pytest.mark.parametrize(("trans_a", "trans_b"), list(itertools.product([0, 1], [0, 1])))
def test_gemm_constant_on_the_left(trans_a: int, trans_b: int) -> None:
    w = weights(4, 3) if trans_a else weights(3, 4)
    shape = [5, 4] if trans_b else [4, 5]
    proto = model([node("Gemm", "w x b", transA=trans_a, transB=trans_b)], shape, {"w": w, "b": weights(3, 1)})
    agree(proto, shape)


def test_gemm_with_a_branch_as_bias() -> None:
    nodes = [node("Relu", "x", "r"), node("Gemm", "x w r", beta=0.5)]
    agree(model(nodes, ["N", 4], {"w": weights(4, 4)}), [1, 4])


@pytest.mark.parametrize(
    ("shape", "w"),
    [
        ([1, 4], (4, 3)),
        (["N", 2, 4], (4, 3)),
        (["N", 2, 5, 4], (4, 3)),
        (["N", 2, 5, 4], (1, 4, 3)),
        (["N", 4], (1, 4, 3)),
        (["N", 4], (4,)),
        (["N", 2, 4], (4,)),
        ([4], (4, 3)),
        ([4], (4,)),
        ([2, 4], (4, 3)),
    ],
)
def test_matmul_constant_right(shape: list[int | str], w: tuple[int, ...]) -> None:
    graph = agree(model([node("MatMul", "x w")], shape, {"w": weights(*w)}), shape)
    linear = next(n.op for n in graph.nodes if isinstance(n.op, Linear))
    assert all(block.data.is_contiguous() for block in linear.weight.blocks())


@pytest.mark.parametrize(
    ("shape", "w"),
    [
        ([4], (3, 4)),
        ([4], (4,)),
        ([4, 1], (3, 4)),
        ([4, 5], (3, 4)),
        (["N", 4, 5], (3, 4)),
        (["N", 4, 5], (4,)),
        (["N", 2, 4, 5], (3, 4)),
        (["N", 2, 4, 5], (1, 1, 3, 4)),
    ],
)
def test_matmul_constant_left(shape: list[int | str], w: tuple[int, ...]) -> None:
    agree(model([node("MatMul", "w x")], shape, {"w": weights(*w)}), shape)


def test_matmul_then_add_is_one_linear_with_the_name_of_the_add() -> None:
    nodes = [node("MatMul", "x w", "m"), node("Add", "m b")]
    graph = agree(model(nodes, ["N", 4], {"w": weights(4, 3), "b": weights(3)}), [1, 4])
    assert kinds(graph) == ["Linear"]
    assert graph.nodes[1].name == "the_y"


def test_add_is_not_merged_where_the_product_is_read_elsewhere() -> None:
    nodes = [node("MatMul", "x w", "m"), node("Add", "m b", "a"), node("Add", "a m")]
    graph = agree(model(nodes, ["N", 4], {"w": weights(4, 3), "b": weights(3)}), [1, 4])
    assert kinds(graph) == ["Linear", "Affine", "Add"]


def test_add_on_another_axis_is_not_taken_for_a_bias() -> None:
    nodes = [node("MatMul", "x w", "m"), node("Add", "m b")]
    graph = agree(model(nodes, ["N", 2, 4], {"w": weights(4, 3), "b": weights(2, 1)}), [1, 2, 4])
    assert kinds(graph) == ["Linear", "Affine"]


def test_transposed_constant_is_folded() -> None:
    nodes = [node("Transpose", "w", "wt"), node("MatMul", "x wt")]
    assert kinds(agree(model(nodes, ["N", 4], {"w": weights(3, 4)}), [1, 4])) == ["Linear"]


def test_float64_weights_and_run() -> None:
    proto = model([node("Gemm", "x w")], ["N", 4], {"w": weights(4, 3).astype(np.float64)}, elem=11)
    graph = agree(proto, [1, 4], tolerance=1e-12, dtype=torch.float64)
    assert graph.nodes[1].op.weight.dtype == torch.float64  # type: ignore[attr-defined]


def test_wrong_inner_length_is_named() -> None:
    with pytest.raises(ModelError, match=r"test.onnx: node the_y \(MatMul\).*takes 5 values but its input has 4"):
        read(model([node("MatMul", "x w")], ["N", 4], {"w": weights(5, 3)}))


def test_several_constant_matrices_are_refused() -> None:
    with pytest.raises(UnsupportedOperator, match="several matrices"):
        read(model([node("MatMul", "x w")], ["N", 2, 3, 4], {"w": weights(2, 4, 3)}))


def test_shape_by_constant_node() -> None:
    from onnx import helper

    constant = helper.make_node("Constant", [], ["s"], value_ints=[-1, 8])
    agree(model([constant, node("Reshape", "x s")], ["N", 2, 4]), [1, 2, 4])

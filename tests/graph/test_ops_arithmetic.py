"""Add, Sub, Mul, Div, Neg, Sum, Pow, BatchNormalization, with constants of any broadcast shape and with branches."""

from __future__ import annotations

import numpy as np
import pytest

from auto_LiRPA.errors import ModelError, UnsupportedOperator
from tests.graph.single import agree, kinds, model, node, read, weights

SHAPES = [(), (1,), (4,), (3, 1), (3, 4), (1, 3, 4), (1, 1, 1), (1, 1, 3, 4), (2, 1, 3, 4), (1, 2, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
def test_constant_on_the_right(op: str, shape: tuple[int, ...]) -> None:
    """(1, 3, 4) has the rank of the input, so its first axis stands on the batch; longer ones put axes before it."""
    agree(model([node(op, "x c")], [1, 3, 4], {"c": weights(*shape) + 3}), [1, 3, 4])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul"])
def test_constant_on_the_left(op: str, shape: tuple[int, ...]) -> None:
    agree(model([node(op, "c x")], [1, 3, 4], {"c": weights(*shape)}), [1, 3, 4])


@pytest.mark.parametrize("shape", [(), (4,), (3, 1), (3, 4), (1, 3, 4)], ids=str)
def test_free_batch(shape: tuple[int, ...]) -> None:
    agree(model([node("Sub", "x c")], ["N", 3, 4], {"c": weights(*shape)}), [1, 3, 4])


def test_constant_enlarges_the_value() -> None:
    graph = agree(model([node("Add", "x c")], ["N", 3, 1], {"c": weights(3, 4)}), [1, 3, 1])
    assert kinds(graph) == ["Expand", "Affine"]


def test_constant_longer_than_one_on_the_batch_axis() -> None:
    """One sample against two rows of constants: allowed where the file is for one sample, refused where N is free."""
    agree(model([node("Add", "x c")], [1, 4], {"c": weights(2, 4)}), [1, 4])
    with pytest.raises(ModelError, match=r"node the_y \(Add\).*samples would mix"):
        read(model([node("Add", "x c")], ["N", 4], {"c": weights(2, 4)}))


def test_quotient_by_zero_and_by_input_are_refused() -> None:
    with pytest.raises(ModelError, match="divisor holds a zero"):
        read(model([node("Div", "x c")], ["N", 2], {"c": np.array([1, 0], np.float32)}))


@pytest.mark.parametrize("opset", [1, 6])
def test_broadcasting_before_opset_7(opset: int) -> None:
    """Attribute axis says where the constant's axes stand; onnxruntime no longer runs these files."""
    c = weights(3)
    graph = read(model([node("Add", "x c", broadcast=1, axis=1)], [1, 3, 4], {"c": c}, opset=opset))
    newer = read(model([node("Add", "x c")], [1, 3, 4], {"c": c.reshape(3, 1)}))
    assert (graph.nodes[1].op.shift == newer.nodes[1].op.shift).all()  # type: ignore[attr-defined]


@pytest.mark.parametrize("op", ["Add", "Sub"])
@pytest.mark.parametrize(
    ("perm", "extra"),
    [([0, 1, 2], None), ([0, 2, 1], None), ([0, 1, 2], [1])],
)
def test_two_branches(op: str, perm: list[int], extra: list[int] | None) -> None:
    nodes = [node("Relu", "x", "r"), node("Transpose", "r", "t", perm=perm)]
    if extra is not None:
        nodes = [node("Relu", "x", "r"), node("ReduceSum", "r axes", "t", keepdims=1)]
    nodes.append(node(op, "x t"))
    agree(model(nodes, ["N", 4, 4], {"axes": np.array([1])}), [1, 4, 4])


def test_branches_of_different_rank() -> None:
    """[N, 3, 4] + [4] that lost its batch axis: only for files of one sample."""
    nodes = [
        node("ReduceSum", "x axes", "t", keepdims=0),
        node("Add", "x t"),
    ]
    agree(model(nodes, [1, 3, 4], {"axes": np.array([0, 1])}), [1, 3, 4])
    with pytest.raises(ModelError, match=r"node the_t \(ReduceSum\).*samples would mix"):
        read(model(nodes, ["N", 3, 4], {"axes": np.array([0, 1])}))


def test_sum_of_three_and_neg() -> None:
    nodes = [node("Neg", "x", "n"), node("Abs", "x", "a"), node("Sum", "n a c x")]
    agree(model(nodes, ["N", 3], {"c": weights(3)}), [1, 3])


def test_square() -> None:
    assert kinds(agree(model([node("Mul", "x x")], ["N", 3]), [1, 3])) == ["Power"]
    assert kinds(agree(model([node("Pow", "x c")], ["N", 3], {"c": np.float32(2)}), [1, 3])) == ["Power"]
    assert kinds(
        agree(model([node("Pow", "x c", "t"), node("Relu", "t")], ["N", 3], {"c": np.float32(1)}), [1, 3])
    ) == ["Relu"]


@pytest.mark.parametrize("exponent", [2.0, 3.0, 4.0])
def test_pow(exponent: float) -> None:
    agree(model([node("Pow", "x c")], ["N", 3], {"c": np.full((1, 3), exponent, np.float32)}), [1, 3])


def test_pow_with_several_exponents_is_refused() -> None:
    with pytest.raises(UnsupportedOperator, match="one constant exponent"):
        read(model([node("Pow", "x c")], ["N", 2], {"c": np.array([1, 2], np.float32)}))
    with pytest.raises(UnsupportedOperator, match="input 1 has to be a constant"):
        read(model([node("Pow", "x x")], ["N", 2]))


@pytest.mark.parametrize("opset", [7, 8, 9, 14, 15])
@pytest.mark.parametrize("shape", [[1, 3], ["N", 3], ["N", 3, 4], ["N", 3, 4, 2]], ids=str)
def test_batch_normalization(shape: list[int | str], opset: int) -> None:
    constants = {"g": weights(3), "b": weights(3, seed=2), "m": weights(3, seed=3), "v": np.abs(weights(3, seed=4))}
    proto = model([node("BatchNormalization", "x g b m v", epsilon=1e-3)], shape, constants, opset=opset)
    graph = agree(proto, shape)
    assert kinds(graph) == ["Affine"]


def test_batch_normalization_in_training_is_refused() -> None:
    constants = {"g": weights(3), "b": weights(3), "m": weights(3), "v": np.abs(weights(3))}
    proto = model([node("BatchNormalization", "x g b m v", training_mode=1)], ["N", 3], constants)
    with pytest.raises(UnsupportedOperator, match="training mode"):
        read(proto)
    constants["m"] = weights(4)
    with pytest.raises(ModelError, match="m has shape"):
        read(model([node("BatchNormalization", "x g b m v")], ["N", 3], constants))

"""The batch axis: found, followed, repaired where a 1 was frozen at export, refused by node name where samples mix."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from auto_LiRPA.errors import ModelError
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.run import evaluate
from tests.graph.single import agree, close, ints, kinds, model, node, read, session, weights


@pytest.mark.parametrize(
    ("shape", "sample", "batched"),
    [
        (["N", 5], (5,), True),
        ([None, 5], (5,), True),
        ([0, 5], (5,), True),
        ([-1, 5], (5,), True),
        ([1, 5], (5,), True),
        ([1, 784, 1], (784, 1), True),
        ([1, 1, 1, 5], (1, 1, 5), True),
        ([5], (5,), False),
        ([1], (1,), False),
        (["N"], (), True),
        ([], (), False),
        ([3, 8, 8], (3, 8, 8), False),
        ([2, 5], (2, 5), False),
    ],
    ids=str,
)
def test_which_axis_is_the_batch(shape: list[int | str], sample: tuple[int, ...], batched: bool) -> None:
    graph = read(model([node("Relu", "x")], shape))
    assert (graph.input_shape, graph.input_batched, graph.output_batched) == (sample, batched, batched)


@pytest.mark.parametrize("shape", [[5], [1], [2, 5], [3, 4, 5]], ids=str)
def test_nets_without_batch_axis(shape: list[int]) -> None:
    nodes = [node("MatMul", "x w", "m"), node("Add", "m b", "a"), node("Relu", "a")]
    agree(model(nodes, shape, {"w": weights(shape[-1], 3), "b": weights(3)}), shape)


def test_net_without_batch_axis_may_put_one_in_and_out() -> None:
    nodes = [node("Unsqueeze", "x a", "u"), node("Gemm", "u w", "g"), node("Squeeze", "g a")]
    graph = agree(model(nodes, [5], {"a": ints(0), "w": weights(5, 3)}), [5])
    assert (graph.output_shape, graph.output_batched) == ((3,), False)


def test_vector_output_of_a_batched_net() -> None:
    nodes = [node("Gemm", "x w", "g"), node("Reshape", "g s")]
    graph = agree(model(nodes, [1, 5], {"s": ints(-1), "w": weights(5, 3)}), [1, 5])
    assert (graph.output_shape, graph.output_batched) == ((3,), False)


FLAT_THEN_DENSE = [node("Reshape", "x s", "f"), node("MatMul", "f w")]


@pytest.mark.parametrize("first", [1, "N"])
@pytest.mark.parametrize("target", [[1, -1], [1, 12], [-1], [12], [-1, 12]], ids=str)
def test_flattening_frozen_for_one_sample_is_repaired(target: list[int], first: int | str) -> None:
    """Each sample keeps its 12 entries in order, and the dense layer takes no other number: safe for any batch."""
    proto = model(FLAT_THEN_DENSE, [first, 3, 4], {"s": ints(*target), "w": weights(12, 2)})
    graph = read(proto)
    x = torch.randn(3, 3, 4)
    wanted = np.stack([session(proto).run(None, {"x": x[i : i + 1].numpy()})[0].reshape(2) for i in range(3)])
    close(evaluate(graph, x), wanted, 1e-5)
    assert graph.output_batched == (len(target) == 2)


def test_flattening_in_the_middle_comes_back() -> None:
    """[N, 6, 2] -> [N * 6, 2] -> dense -> [N, 6, 3]: rows of all samples share a layer, no sample sees another."""
    nodes = [
        node("Reshape", "x rows", "r"),
        node("MatMul", "r w", "m"),
        node("Add", "m b", "a"),
        node("Relu", "a", "p"),
        node("Reshape", "p back"),
    ]
    constants = {"rows": ints(-1, 2), "w": weights(2, 3), "b": weights(3), "back": ints(-1, 6, 3)}
    graph = agree(model(nodes, ["N", 6, 2], constants), [1, 6, 2])
    assert graph.output_batched


def test_moved_batch_axis_comes_back() -> None:
    """Column convention: x^T, W x + b, and back."""
    nodes = [
        node("Transpose", "x", "t", perm=[1, 0]),
        node("MatMul", "w t", "m"),
        node("Add", "m b", "a"),
        node("Relu", "a", "r"),
        node("Transpose", "r", perm=[1, 0]),
    ]
    graph = agree(model(nodes, ["N", 4], {"w": weights(3, 4), "b": weights(3, 1)}), [1, 4])
    assert kinds(graph) == ["Linear", "Relu"]


def test_batch_axis_left_elsewhere_at_the_end() -> None:
    proto = model([node("Transpose", "x", perm=[1, 0])], [1, 4])
    graph = agree(proto, [1, 4])
    assert (graph.output_shape, graph.output_batched) == ((4, 1), False)


def test_sequence_first_and_back() -> None:
    """[N, T, C] -> [T, N, 2, C / 2] keeps the batch on an axis of its own; [T, N * 2, C / 2] does not: refused."""
    nodes = [node("Transpose", "x", "t", perm=[1, 0, 2]), node("Reshape", "t s", "r")]
    back = node("Transpose", "r", perm=[1, 0, 2, 3])
    agree(model([*nodes, back], ["N", 3, 4], {"s": ints(3, -1, 2, 2)}), [1, 3, 4])
    with pytest.raises(ModelError, match=r"node the_r \(Reshape\).*samples would mix"):
        read(model(nodes, ["N", 3, 4], {"s": ints(3, -1, 2)}, output="r"))


MIXING = {
    "sum over samples": [node("ReduceSum", "x a")],
    "mean of everything": [node("ReduceMean", "x", keepdims=0)],
    "first sample": [node("Gather", "x zero", axis=0)],
    "slice of samples": [node("Slice", "x a b a", "s"), node("Concat", "s x", axis=0)],
    "flatten to one row": [node("Flatten", "x", axis=0)],
    "transposed, then flattened": [node("Transpose", "x", "t", perm=[1, 0]), node("Reshape", "t flat")],
    "transposed, then in one row": [node("Transpose", "x", "t", perm=[1, 0]), node("Reshape", "t row")],
    "rows of all samples summed": [node("Reshape", "x flat", "r"), node("ReduceSum", "r a")],
    "rows of all samples picked": [node("Reshape", "x flat", "r"), node("Slice", "r a b a")],
    "outer sum of samples": [node("Unsqueeze", "x a", "u"), node("Unsqueeze", "x b", "v"), node("Add", "u v")],
    "stacked samples": [node("Concat", "x x", axis=0)],
    "split samples": [node("Reshape", "x flat", "r"), node("Split", "r", "y z", axis=0)],
    "batch as channels": [
        node("Transpose", "x", "t", perm=[1, 0]),
        node("Unsqueeze", "t two", "u"),
        node("Conv", "u k"),
    ],
}
CONSTANTS = {
    "a": ints(0),
    "b": ints(1),
    "two": ints(2),
    "zero": np.array(0),
    "flat": ints(-1),
    "row": ints(1, -1),
    "k": weights(2, 1, 1),
}


@pytest.mark.parametrize("case", MIXING)
def test_mixing_samples_is_refused_where_the_batch_is_free(case: str) -> None:
    used = {i for n in MIXING[case] for i in n.input}
    proto = model(MIXING[case], ["N", 4], {k: v for k, v in CONSTANTS.items() if k in used})
    with pytest.raises(ModelError, match=r"test.onnx: node the_\w+ \(\w+\).*") as caught:
        read(proto)
    assert "\n" not in str(caught.value)
    assert "mix" in str(caught.value) or "axis 0 has to be the batch" in str(caught.value)


@pytest.mark.parametrize("case", [c for c in MIXING if c != "batch as channels"])
def test_the_same_files_for_one_sample_are_that_sample_s_function(case: str) -> None:
    used = {i for n in MIXING[case] for i in n.input}
    agree(model(MIXING[case], [1, 4], {k: v for k, v in CONSTANTS.items() if k in used}), [1, 4])


def test_a_constant_of_the_sample_s_length_proves_one_sample() -> None:
    """[N, 4] -> [-1] is 4 N long; adding 4 numbers fits N = 1 only, so what follows may work along that axis."""
    nodes = [node("Reshape", "x flat", "r"), node("Add", "r c", "s"), node("ReduceSum", "s a")]
    proto = model(nodes, ["N", 4], {"flat": ints(-1), "c": weights(4), "a": ints(0)})
    graph = read(proto)
    x = torch.randn(3, 4)
    wanted = np.stack([session(proto).run(None, {"x": x[i : i + 1].numpy()})[0] for i in range(3)])
    close(evaluate(graph, x), wanted, 1e-5)


def test_axes_put_in_front_move_the_batch_axis() -> None:
    """[N, 3, 4] + [1, 2, 1, 1] stands as [1, N, 3, 4]: the 2 meets the batch, not an axis of the sample."""
    nodes = [node("Add", "x c")]
    agree(model(nodes, [1, 3, 4], {"c": weights(1, 2, 1, 1)}), [1, 3, 4])
    with pytest.raises(ModelError, match="samples would mix"):
        read(model(nodes, ["N", 3, 4], {"c": weights(1, 2, 1, 1)}))


@pytest.mark.parametrize("index", [np.array(2), np.array([3, 0]), np.array([[1, 2], [0, 4]])], ids=str)
def test_gather_in_front_of_the_batch_axis(index: np.ndarray) -> None:
    nodes = [node("Transpose", "x", "t", perm=[1, 0, 2]), node("Gather", "t i", "g", axis=0)]
    front = index.ndim
    back = [front, *range(front), front + 1]
    agree(model([*nodes, node("Transpose", "g", perm=back)], ["N", 5, 4], {"i": index}), [1, 5, 4])


def test_reduction_in_front_of_the_batch_axis() -> None:
    nodes = [node("Transpose", "x", "t", perm=[1, 0, 2]), node("ReduceSum", "t a", "s", keepdims=0), node("Relu", "s")]
    agree(model(nodes, ["N", 5, 4], {"a": ints(0)}), [1, 5, 4])


def override(shape: list[int | str], given: tuple[int, ...], nodes: list[onnx.NodeProto] | None = None) -> Graph:
    return read(model(nodes or [node("Relu", "x")], shape), input_shape=given)


@pytest.mark.parametrize(
    ("shape", "given", "sample", "batched"),
    [
        ([1, 784, 1], (-1, 784), (784,), True),
        ([5], (-1, 5), (5,), False),
        ([1, 5], (1, 5), (1, 5), False),
        (["N", "C", "H", "W"], (-1, 3, 8, 8), (3, 8, 8), True),
        (["N", 5], (1, 5), (1, 5), False),
        ([4, 3, 8], (-1, 3, 8), (3, 8), True),
    ],
    ids=str,
)
def test_input_shape(shape: list[int | str], given: tuple[int, ...], sample: tuple[int, ...], batched: bool) -> None:
    graph = override(shape, given)
    assert (graph.input_shape, graph.input_batched) == (sample, batched)
    assert evaluate(graph, torch.zeros(2, *sample)).shape[0] == 2


@pytest.mark.parametrize("given", [(-1, 6), (5, -1), (0, 5), (-1, -1, 5), (7,)], ids=str)
def test_input_shape_that_does_not_fit(given: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"test.onnx: input_shape \[.*\]"):
        override(["N", 5], given)


def test_input_shape_without_batch_allows_work_along_axis_0() -> None:
    """What is refused on a batch axis is right on an axis of the sample."""
    nodes = [node("ReduceSum", "x a")]
    proto = model(nodes, ["N", 4], {"a": ints(0)})
    with pytest.raises(ModelError, match="give input_shape without -1"):
        read(proto)
    graph = read(proto, input_shape=(1, 4))
    close(evaluate(graph, torch.arange(8.0).reshape(2, 1, 4)), np.arange(8.0), 1e-6)


def test_a_batch_frozen_at_another_number() -> None:
    """Exported for 4 samples: input_shape says that axis 0 is the batch, and the Reshape to [4, -1] is repaired."""
    nodes = [node("Reshape", "x s", "f"), node("Gemm", "f w", "g"), node("Add", "g rows")]
    constants = {"s": ints(4, -1), "w": weights(12, 2), "rows": np.repeat(weights(1, 2), 4, axis=0)}
    proto = model(nodes, [4, 3, 4], constants)
    graph = read(proto, input_shape=(-1, 3, 4))
    x = torch.randn(4, 3, 4)
    close(evaluate(graph, x), session(proto).run(None, {"x": x.numpy()})[0], 1e-5)
    close(evaluate(graph, x[:1]), session(proto).run(None, {"x": x.numpy()})[0][:1], 1e-5)
    constants["s"] = ints(2, -1)
    with pytest.raises(ModelError, match=r"node the_f \(Reshape\).*samples would mix"):
        read(model(nodes[:1], [4, 3, 4], {"s": ints(2, -1)}, output="f"), input_shape=(-1, 3, 4))


def test_unknown_inner_lengths_ask_for_input_shape() -> None:
    with pytest.raises(ModelError, match=r"\[\?, 3, \?\] is not fully known; give input_shape"):
        read(model([node("Relu", "x")], ["N", 3, "L"]))

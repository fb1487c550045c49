"""`merge_batchnorm` changes the number of nodes and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.merge import merge_batchnorm
from auto_LiRPA.graph.onnx_reader import read_model
from auto_LiRPA.graph.run import evaluate
from auto_LiRPA.parallel.store import LocalStore
from tests.graph.single import kinds, model, node, read, weights

NORM = {"g": weights(6), "b": weights(6, seed=2), "m": weights(6, seed=3), "v": np.abs(weights(6, seed=4))}


def merged(graph: Graph) -> Graph:
    """The merged graph, after comparing it with the given one."""
    after = merge_batchnorm(graph, LocalStore())
    x = torch.randn(3, *graph.input_shape)
    before = evaluate(graph, x)
    assert torch.allclose(evaluate(after, x), before, rtol=1e-4, atol=1e-5)
    assert [n.id for n in after.nodes] == list(range(len(after.nodes)))
    assert after.nodes[after.output].name == graph.nodes[graph.output].name
    return after


@pytest.mark.parametrize("bias", [False, True])
def test_after_a_convolution(bias: bool) -> None:
    nodes = [
        node("Conv", "x w c" if bias else "x w", "h", group=2, pads=[1, 1, 1, 1]),
        node("BatchNormalization", "h g b m v", "n"),
        node("Relu", "n"),
    ]
    constants = {"w": weights(6, 2, 3, 3), **NORM} | ({"c": weights(6)} if bias else {})
    graph = read(model(nodes, ["N", 4, 5, 5], constants))
    assert kinds(graph) == ["Conv", "Affine", "Relu"]
    after = merged(graph)
    assert kinds(after) == ["Conv", "Relu"]
    assert after.nodes[1].name == "the_n"


def test_after_dense_layers_and_in_chains() -> None:
    nodes = [
        node("Gemm", "x w c", "h"),
        node("BatchNormalization", "h g b m v", "n"),
        node("Mul", "n s", "k"),
        node("Relu", "k", "r"),
        node("MatMul", "r u", "o"),
        node("Mul", "o two"),
    ]
    constants = {"w": weights(4, 6), "c": weights(6), "s": weights(6), "u": weights(6, 3), "two": np.float32(2), **NORM}
    assert kinds(merged(read(model(nodes, ["N", 4], constants)))) == ["Linear", "Relu", "Linear"]


def test_what_must_not_be_merged() -> None:
    """Another reader of the convolution; numbers that differ within a channel; an affine map after a nonlinear node."""
    shared = [node("Conv", "x w", "h"), node("Mul", "h s", "k"), node("Add", "h k")]
    graph = read(model(shared, ["N", 2, 4], {"w": weights(6, 2, 1), "s": weights(6, 1)}))
    assert kinds(merged(graph)) == ["Conv", "Affine", "Add"]
    uneven = [node("Conv", "x w", "h"), node("Mul", "h s")]
    graph = read(model(uneven, ["N", 2, 4], {"w": weights(6, 2, 1), "s": weights(4)}))
    assert kinds(merged(graph)) == ["Conv", "Affine"]
    behind = [node("Relu", "x", "h"), node("Mul", "h s")]
    assert kinds(merged(read(model(behind, ["N", 4], {"s": weights(4)})))) == ["Relu", "Affine"]


def test_weights_in_training_stay_shared() -> None:
    nodes = [node("MatMul", "x w", "h"), node("Mul", "h s")]
    proto = model(nodes, ["N", 4], {"s": weights(3)})
    trained = torch.randn(4, 3, requires_grad=True)
    graph = read_model(proto, {"w": trained}, LocalStore(), place="test").graph
    assert kinds(merged(graph)) == ["Linear", "Affine"]

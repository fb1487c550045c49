"""Sharded and offloaded weights: the same blocks, the same bits, 1/P of the bytes. Ranks are gloo processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, save_model

from tests.parallel.launching import Launch, launch, once
from tests.parallel.store_checks import BLOCK_MIB, CHECKS, numbers

SIZES = (1, 2, 3)
WIDTH = 192


def network(path: Path, layers: list[tuple[torch.Tensor, torch.Tensor]], turned: bool) -> Path:
    """A ReLU network; ``turned``: written as x @ W (weights ``[in, out]``), else as Gemm with transB."""
    nodes, constants, value = [], [], "x"
    for i, (weight, bias) in enumerate(layers):
        kept = weight.numpy().T if turned else weight.numpy()
        constants += [
            numpy_helper.from_array(np.ascontiguousarray(kept), f"w{i}"), numpy_helper.from_array(bias.numpy(), f"b{i}")
        ]  # fmt: skip
        if turned:
            nodes.append(helper.make_node("MatMul", [value, f"w{i}"], [f"m{i}"]))
            nodes.append(helper.make_node("Add", [f"m{i}", f"b{i}"], [f"z{i}"]))
        else:
            nodes.append(helper.make_node("Gemm", [value, f"w{i}", f"b{i}"], [f"z{i}"], transB=1))
        value = f"z{i}"
        if i + 1 < len(layers):
            nodes.append(helper.make_node("Relu", [value], [f"r{i}"]))
            value = f"r{i}"
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size])
        for name, size in (("x", layers[0][0].shape[1]), (value, len(layers[-1][1])))
    ]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], constants)
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), str(path))
    return path


def with_constants(path: Path) -> Path:
    """relu(x * a + b) flattened and multiplied by a matrix; ``a`` and ``b`` are as large as x."""
    shapes = {"a": (20, 8), "b": (1, 20, 8), "w": (160, 17)}
    constants = [numpy_helper.from_array(numbers(shape).numpy(), name) for name, shape in shapes.items()]
    nodes = [
        helper.make_node("Mul", ["x", "a"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["z"]),
        helper.make_node("Relu", ["z"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, s) for name, s in (("x", [1, 20, 8]), ("y", [1, 17]))
    ]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], constants)
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), str(path))
    return path


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, str]]]:
    """What every rank of every number of ranks found."""
    return once(tmp_path_factory, "stores", lambda: _results(tmp_path_factory))


def _results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, str]]]:
    folder = tmp_path_factory.mktemp("nets")
    layers = [(numbers((WIDTH, WIDTH), i), numbers((WIDTH,), i)) for i in range(4)]
    broken = [(weight.clone(), bias) for weight, bias in layers]
    broken[2][0][-1, -1] = torch.nan
    launches = []
    for size in SIZES:
        # each number of ranks reads another kind of file: rows as they lie, and columns
        case = {
            "layers": layers,
            "onnx": network(folder / f"net{size}.onnx", layers, turned=size == 2),
            "constants": with_constants(folder / f"constants{size}.onnx"),
            "nan": network(folder / f"nan{size}.onnx", broken, turned=size == 3),
        }
        launches.append(Launch(size, "tests.parallel.store_checks:run", case, timeout_s=120))
    return dict(zip(SIZES, (outcome.checked() for outcome in launch(launches)), strict=True))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("check", CHECKS)
def test_ranks(results: dict[int, list[dict[str, str]]], size: int, check: str) -> None:
    """Every rank came through the check."""
    faults = [found[check] for found in results[size]]
    assert not any(faults), "\n".join(f"rank {rank}: {fault}" for rank, fault in enumerate(faults) if fault)


def test_blocks_are_small_enough_to_mean_something() -> None:
    assert BLOCK_MIB * 2**20 < 2

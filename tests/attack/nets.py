"""Small networks as ONNX files and graphs, and properties in exact decimals."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.onnx_reader import read_onnx
from auto_LiRPA.parallel.store import LocalStore
from complete_verifier.spec.property import ExactRow, InputBox, Property, Region, clauses_from_rows

Layer = tuple[NDArray[np.float32], NDArray[np.float32]]  # weight [out, in], bias [out]


def random_layers(seed: int, *sizes: int) -> list[Layer]:
    rng = np.random.default_rng(seed)
    return [
        ((rng.standard_normal((m, n)) / np.sqrt(n)).astype(np.float32), (rng.standard_normal(m) / 2).astype(np.float32))
        for n, m in zip(sizes, sizes[1:], strict=False)
    ]


def linear(*rows: Sequence[float], bias: Sequence[float] | None = None) -> list[Layer]:
    """One layer without activation."""
    weight = np.array(rows, dtype=np.float32)
    return [(weight, np.zeros(len(weight), np.float32) if bias is None else np.array(bias, dtype=np.float32))]


def save(
    layers: Sequence[Layer],
    path: Path,
    batch: int | str | None = 1,
    element: int = TensorProto.FLOAT,
) -> Path:
    """A ReLU network (no ReLU after the last layer) at ``path`` (.onnx or .onnx.gz).

    ``batch``: the length of the first axis (a name: symbolic), None: tensors without a batch axis.
    """
    dtype = helper.tensor_dtype_to_np_dtype(element)
    nodes, constants, value = [], [], "x"
    for i, (weight, bias) in enumerate(layers):
        constants += [
            numpy_helper.from_array(weight.T.astype(dtype), f"w{i}"),
            numpy_helper.from_array(bias.astype(dtype), f"b{i}"),
        ]
        nodes += [
            helper.make_node("MatMul", [value, f"w{i}"], [f"m{i}"]),
            helper.make_node("Add", [f"m{i}", f"b{i}"], [f"a{i}"]),
        ]
        value = f"a{i}"
        if i < len(layers) - 1:
            nodes.append(helper.make_node("Relu", [value], [f"r{i}"]))
            value = f"r{i}"
    lead: list[int | str] = [] if batch is None else [batch]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", element, [*lead, layers[0][0].shape[1]])],
        [helper.make_tensor_value_info(value, element, [*lead, layers[-1][0].shape[0]])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    content = model.SerializeToString()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def load(path: Path, dtype: torch.dtype = torch.float32) -> Graph:
    return read_onnx(path, LocalStore(), dtype=dtype)


def row(terms: dict[int, str], rhs: str, strict: bool = False) -> ExactRow:
    """sum(coefficient * y[index]) <= rhs, all as decimal texts."""
    return ExactRow(tuple((i, Decimal(c)) for i, c in sorted(terms.items())), Decimal(rhs), strict)


def box(*intervals: tuple[str, str]) -> InputBox:
    return InputBox.from_exact([Decimal(lo) for lo, _ in intervals], [Decimal(hi) for _, hi in intervals])


def region(where: InputBox, *clauses: Sequence[ExactRow], n_outputs: int = 1) -> Region:
    return Region(where, tuple(clauses_from_rows([tuple(rows) for rows in clauses], n_outputs)))


def prop(*regions: Region, n_outputs: int = 1) -> Property:
    return Property(regions[0].box.n_inputs, n_outputs, regions, source="test property")

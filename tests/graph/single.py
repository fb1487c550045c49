"""Small ONNX models built node by node, and the comparison with onnxruntime that all reader tests use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.onnx_reader import read_model
from auto_LiRPA.parallel.store import LocalStore

Shape = Sequence[int | str | None]


def model(
    nodes: Sequence[onnx.NodeProto],
    shape: Shape,
    constants: Mapping[str, Any] | None = None,
    *,
    opset: int = 17,
    output: str = "y",
    elem: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model with input ``x`` of ``shape`` (strings are free lengths) and the given initialisers."""
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info("x", elem, shape)],
        [helper.make_tensor_value_info(output, elem, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    made.ir_version = 8
    return made


def node(op_type: str, inputs: str, outputs: str = "y", **attributes: Any) -> onnx.NodeProto:
    """``node("Add", "x c")``; a dash leaves an input out."""
    names = ["" if n == "-" else n for n in inputs.split()]
    return helper.make_node(op_type, names, outputs.split(), name=f"the_{outputs.split()[0]}", **attributes)


def read(proto: onnx.ModelProto, **options: Any) -> Graph:
    """The graph of a model."""
    return read_model(proto, {}, LocalStore(), place="test.onnx", **options).graph


def session(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """onnxruntime on one thread, without its warnings and graph rewriting."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def node_values(graph: Graph, x: torch.Tensor) -> list[torch.Tensor]:
    """Values of all nodes; each has to have the shape that the graph promises."""
    values = [x]
    for item in graph.nodes[1:]:
        value = item.op.forward(*(values[i] for i in item.inputs))
        assert tuple(value.shape) == (len(x), *item.shape), f"{item.name}: {tuple(value.shape)} != N, {item.shape}"
        values.append(value)
    return values


def agree(
    proto: onnx.ModelProto, shape: Shape, *, scale: float = 1.0, tolerance: float = 1e-5, **options: Any
) -> Graph:
    """Read the model and compare with onnxruntime: one sample, and three at once against three single runs.

    ``shape`` is the input's shape in the file; free lengths stand for one sample. Where the batch length is free,
    onnxruntime also runs on three at once: what it says of a batch has to be what we say of each sample.
    """
    graph = read(proto, **options)
    runner = session(proto)
    name = runner.get_inputs()[0].name
    kind = np.float64 if runner.get_inputs()[0].type == "tensor(double)" else np.float32
    rng = np.random.default_rng(0)
    samples = [
        (scale * rng.standard_normal([s if isinstance(s, int) else 1 for s in shape])).astype(kind) for _ in range(3)
    ]
    wanted = [runner.run(None, {name: s})[0] for s in samples]
    x = torch.from_numpy(np.stack(samples)).reshape(3, *graph.input_shape)
    close(node_values(graph, x)[graph.output], np.stack(wanted), tolerance)
    single = node_values(graph, x[:1])[graph.output]
    close(single, wanted[0], tolerance)
    file_shape = single.shape if graph.output_batched else single.shape[1:]
    assert tuple(file_shape[:-1] if graph.scalar_output else file_shape) == wanted[0].shape
    if graph.input_batched and isinstance(proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param, str):
        if proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
            together = runner.run(None, {name: np.concatenate(samples)})[0]
            close(node_values(graph, x)[graph.output], together, tolerance)
    names = [n.name for n in graph.nodes]
    assert len(set(names)) == len(names)
    return graph


def close(ours: torch.Tensor, wanted: np.ndarray, tolerance: float) -> None:
    """Equal up to ``tolerance`` of the greatest magnitude."""
    found = ours.detach().numpy().reshape(-1)
    wanted = wanted.reshape(-1)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max(initial=0.0) <= tolerance * max(1e-6, np.abs(wanted).max(initial=0.0))


def kinds(graph: Graph) -> list[str]:
    """Operator names in order, the input left out."""
    return [type(n.op).__name__ for n in graph.nodes[1:]]


def weights(*shape: int, seed: int = 1) -> np.ndarray:
    """Reproducible float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    """An int64 vector."""
    return np.array(values, dtype=np.int64)

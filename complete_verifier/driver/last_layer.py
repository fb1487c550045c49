"""An ONNX file read without the softmax or sigmoid at its end (`peel_off_last_softmax_layer`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from auto_LiRPA.errors import ModelError
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.onnx_reader import read_model
from auto_LiRPA.parallel.store import ParameterStore
from complete_verifier.spec.peel import LastLayer

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_LAYERS: Mapping[str, LastLayer] = {"Softmax": "Softmax", "Sigmoid": "Sigmoid"}
# What may follow the layer: it neither changes nor reorders the numbers.
_SHAPES = frozenset({"Identity", "Flatten", "Squeeze", "Unsqueeze", "Reshape"})


def read_without_last_layer(
    proto: ModelProto,
    path: Path,
    store: ParameterStore,
    dtype: torch.dtype,
    device: torch.device,
    input_shape: Sequence[int] | None,
) -> tuple[Graph, LastLayer | None]:
    """The graph up to the last layer, and which that was; None where the file ends otherwise and is read whole.

    Args:
        proto: what ``path`` holds; it is changed.

    Raises:
        ModelError: as for any file.
    """
    node = _last(proto)
    if node is not None:  # what follows it is not needed any more
        proto.graph.output[0].name = node.input[0]
        proto.graph.output[0].type.Clear()
    read = read_model(
        proto, {}, store, place=str(path), folder=path.parent, dtype=dtype, device=device, input_shape=input_shape
    )
    if node is None:
        return read.graph, None
    if node.op_type == "Softmax" and not _over_all(proto, node, read.graph.output_shape):
        raise ModelError(
            f"{path}: its last softmax does not run over all outputs together, so that their order is not kept;"
            " leave out onnx_vnnlib_joint_optimization_flags"
        )
    return read.graph, _LAYERS[node.op_type]


def _last(proto: ModelProto) -> NodeProto | None:
    """The softmax or sigmoid at the end, if there is one."""
    makers = {name: node for node in proto.graph.node for name in node.output}
    node: NodeProto | None = makers.get(proto.graph.output[0].name)
    while node is not None and node.op_type in _SHAPES and node.input:
        node = makers.get(node.input[0])
    return node if node is not None and node.op_type in _LAYERS else None


def _over_all(proto: ModelProto, node: NodeProto, shape: tuple[int, ...]) -> bool:
    """Whether one sum normalises all outputs of a sample, whose shape (without the batch) is given."""
    opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 13)
    axis = next((a.i for a in node.attribute if a.name == "axis"), -1 if opset >= 13 else 1)
    axis = axis - 1 if axis > 0 else axis + len(shape)
    if not 0 <= axis < len(shape):
        return False
    summed = shape[axis] if opset >= 13 else prod(shape[axis:])
    return summed == prod(shape)

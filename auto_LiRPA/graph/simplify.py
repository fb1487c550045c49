"""Folding by onnxscript's optimiser, for what our reader does not do itself: sequences and control flow.

Importing it takes a second, so files that need none of it are read without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx import ModelProto

# Values of these operators are lists or branches; the optimiser turns them into plain tensors where it can.
_NEEDS_LIBRARY = frozenset(
    {"SplitToSequence", "SequenceAt", "SequenceConstruct", "SequenceLength", "ConcatFromSequence", "Loop", "Scan"}
)


def folded_structure(model: Any) -> ModelProto:
    """An `onnx_ir.Model` (weights as inputs) with constants folded and dead nodes removed, as ModelProto."""
    import onnx_ir
    from onnxscript import optimizer

    optimizer.fold_constants(model, onnx_shape_inference=False)
    optimizer.remove_unused_nodes(model)
    proto: ModelProto = onnx_ir.to_proto(model)
    return proto


def without_sequences(proto: ModelProto) -> ModelProto:
    """The same network after the optimiser, if it uses operators that need it; else ``proto`` itself.

    Floating-point weights are kept out of the optimiser's sight, so that they are neither copied nor changed.
    """
    if not any(node.op_type in _NEEDS_LIBRARY for node in proto.graph.node):
        return proto
    import onnx
    import onnx_ir

    light = _without_initializers(proto)
    declared = {value.name for value in light.graph.input}
    weights = []
    for item in proto.graph.initializer:
        if item.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
            weights.append(item)
            if item.name not in declared:
                light.graph.input.append(onnx.helper.make_tensor_value_info(item.name, item.data_type, item.dims))
        else:
            light.graph.initializer.append(item)
    folded = folded_structure(onnx_ir.from_proto(light))
    folded.graph.initializer.extend(weights)
    return folded


def _without_initializers(proto: ModelProto) -> ModelProto:
    """A copy of everything but the weights."""
    import onnx

    copy = onnx.ModelProto(ir_version=proto.ir_version)
    copy.opset_import.extend(proto.opset_import)
    copy.functions.extend(proto.functions)
    graph = proto.graph
    copy.graph.name = graph.name
    copy.graph.node.extend(graph.node)
    copy.graph.input.extend(graph.input)
    copy.graph.output.extend(graph.output)
    copy.graph.value_info.extend(graph.value_info)
    return copy

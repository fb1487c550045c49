"""The element types of an ONNX file: which precision its bounds need, and casts whose rounding nothing here bounds.

onnxruntime judges a file in the precisions that are written in it. What it computes in double must be bounded in
double: float32 bounds of a double network speak of another network, and would prove what it violates.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from auto_LiRPA.errors import ModelError
from auto_LiRPA.graph.onnx_walk import one_line

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

_FLOAT, _DOUBLE = 1, 11  # TensorProto.DataType
_KEPT = frozenset({_FLOAT, _DOUBLE})  # float16 and smaller types round far more than bounds allow for
_NAMED = frozenset({"to", "dtype"})  # attributes that name an element type
_INT64, _BOOL = 7, 9
# Attributes of a Constant that imply one, and operators that do.
_VALUES = {"value_float": _FLOAT, "value_floats": _FLOAT, "value_int": _INT64, "value_ints": _INT64}
_RESULTS = {
    "Shape": _INT64, "Size": _INT64, "Equal": _BOOL, "Greater": _BOOL, "GreaterOrEqual": _BOOL, "Less": _BOOL,
    "LessOrEqual": _BOOL, "Not": _BOOL, "And": _BOOL, "Or": _BOOL,
}  # fmt: skip
_OF_SHAPES = frozenset({"Shape", "Size"})  # the same numbers whatever the input is


def needs_double(proto: ModelProto, place: str) -> bool:
    """Whether any number of the network is a double.

    Raises:
        ModelError: values that depend on the input are cast from double to float, or to a smaller type: they are
            rounded there, and bounds pass over casts.
    """
    if proto.functions:
        from onnx import inliner

        proto = inliner.inline_local_functions(proto)
    _Casts(place).walk(proto.graph)
    return any(_DOUBLE in _types_of(graph) for graph in _graphs(proto.graph))


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and those within its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _types_of(graph: GraphProto) -> set[int]:
    """Element types that the graph itself names."""
    found = {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output, *graph.value_info)}
    found.update(tensor.data_type for tensor in graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                found.add(attribute.t.data_type)
            elif attribute.name in _NAMED:
                found.add(attribute.i)
    return found


class _Casts:
    """Follows element types through the nodes, in order, and refuses casts that round what depends on the input."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._types: dict[str, int] = {}
        self._activations: set[str] = set()

    def walk(self, graph: GraphProto) -> None:
        constants = {tensor.name for tensor in graph.initializer}
        self._types.update((tensor.name, tensor.data_type) for tensor in graph.initializer)
        for value in graph.input:
            if value.name not in constants:
                self._types[value.name] = value.type.tensor_type.elem_type
                self._activations.add(value.name)
        for node in graph.node:
            self._node(node)

    def _node(self, node: NodeProto) -> None:
        inner = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
        for graph in inner:
            self.walk(graph)
        read = [*node.input, *(output.name for graph in inner for output in graph.output)]
        moving = [name for name in read if name in self._activations and node.op_type not in _OF_SHAPES]
        kind = self._result(node, [*moving, *read])
        if moving and node.op_type in ("Cast", "CastLike"):
            self._check(node, self._types.get(node.input[0]), kind)
        for name in node.output:
            if kind is not None:
                self._types[name] = kind
            if moving:
                self._activations.add(name)

    def _result(self, node: NodeProto, read: list[str]) -> int | None:
        """The element type of a node's result: that of its first input but for the nodes that name another one."""
        for attribute in node.attribute:
            if attribute.HasField("t"):
                return int(attribute.t.data_type)
            if attribute.name in _NAMED:
                return int(attribute.i)
            if attribute.name in _VALUES:
                return _VALUES[attribute.name]
        if node.op_type in _RESULTS:
            return _RESULTS[node.op_type]
        if node.op_type == "CastLike" and len(node.input) > 1:
            return self._types.get(node.input[1])
        return next((self._types[name] for name in read if name in self._types), None)

    def _check(self, node: NodeProto, before: int | None, after: int | None) -> None:
        if after == _DOUBLE or before == after == _FLOAT:
            return
        if after not in _KEPT:
            if node.op_type == "Cast":
                return  # refused by name where the graph is read
        elif before != _DOUBLE:
            return
        name = one_line(node.name or node.output[0])
        raise ModelError(
            f"{self._place}: node {name} ({node.op_type}): rounds what depends on the input to another element type,"
            " which no bound accounts for; export the whole network as FLOAT or as DOUBLE"
        )

"""ONNX -> Graph: walks the nodes in order, folds what is constant, lets one builder translate each other node.

The only way in (DESIGN 2.1): files, and torch modules exported in memory, whose parameters are handed in as tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from auto_LiRPA.errors import ModelError, UnsupportedOperator
from auto_LiRPA.graph.assembler import Assembler
from auto_LiRPA.graph.builders import BUILDERS
from auto_LiRPA.graph.builders_custom import build_custom
from auto_LiRPA.graph.folding import evaluate, fold_view
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.layout import Activation, Constant, Unread, Value
from auto_LiRPA.graph.node_view import NodeView
from auto_LiRPA.graph.onnx_attributes import Attributes
from auto_LiRPA.graph.onnx_file import load_proto
from auto_LiRPA.graph.onnx_inputs import InputShape, declared_dims, resolve_input
from auto_LiRPA.graph.onnx_tensors import FLOATING, mapped_tensor, require_finite, torch_tensor, weight_tensor
from auto_LiRPA.graph.onnx_walk import names_read, needed_nodes, one_line, only_weights, right_factors
from auto_LiRPA.graph.registry import CUSTOM_OPERATORS, nearest
from auto_LiRPA.graph.simplify import without_sequences
from auto_LiRPA.parallel.store import ParameterStore

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

_STANDARD_DOMAINS = ("", "ai.onnx")
_QUIRKS = {"Reshape": ("fix_batch_size",)}


@dataclass(frozen=True, slots=True)
class ReadResult:
    """``derived``: parameter -> node that computed new constants from it; these go stale when the parameter changes.

    ``copied``: parameters of which the store keeps a copy, which go stale too.
    """

    graph: Graph
    derived: Mapping[str, str]
    copied: frozenset[str] = frozenset()


def read_onnx(
    path: str | Path,
    store: ParameterStore,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    input_shape: Sequence[int] | None = None,
    quirks: Mapping[str, Mapping[str, object]] | None = None,
) -> Graph:
    """Read a ``.onnx`` or ``.onnx.gz`` file.

    Args:
        path: the file.
        store: takes the weights of Linear and Conv nodes.
        dtype: element type of all weights and constants.
        device: where they go.
        input_shape: the input's shape, batch as -1 (no -1: the tensor has no batch axis); None takes the file's.
        quirks: converter quirks of other tools; only ``{"Reshape": {"fix_batch_size": ...}}`` exists, and is always on.

    Raises:
        ModelError: the file or the network is unusable. UnsupportedOperator: a node has no rules here.
    """
    path = Path(path)
    check_quirks(quirks, str(path))
    proto = load_proto(path)
    return read_model(
        proto, {}, store, place=str(path), folder=path.parent, dtype=dtype, device=device, input_shape=input_shape
    ).graph


def read_model(
    proto: ModelProto,
    parameters: Mapping[str, Tensor],
    store: ParameterStore,
    *,
    place: str,
    folder: Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    input_shape: Sequence[int] | None = None,
    batch_fixed: bool | None = None,
) -> ReadResult:
    """Read a network whose weights are partly (or all) given as tensors.

    Args:
        proto: the network.
        parameters: tensors by initialiser name; they win over the file's and are shared, never copied, where their
            element type and device are those asked for.
        store: takes the weights of Linear and Conv nodes.
        place: names the network in errors.
        folder: where external data lie.
        dtype: element type of all weights and constants.
        device: where they go.
        input_shape: as in `read_onnx`.
        batch_fixed: False treats a leading 1 as free, so that operations which mix samples are refused (a module that
            was exported with one sample); None believes the file.
    """
    if proto.functions:
        from onnx import inliner

        proto = inliner.inline_local_functions(proto)
    proto = without_sequences(proto)
    return _Reader(proto, parameters, store, place, folder, dtype, torch.device(device)).read(input_shape, batch_fixed)


def check_quirks(quirks: Mapping[str, Mapping[str, object]] | None, place: str) -> None:
    """Refuse converter quirks that do not exist; those that do are always on here."""
    for op_type, flags in (quirks or {}).items():
        for flag in flags:
            if flag not in _QUIRKS.get(op_type, ()):
                raise ModelError(f"{place}: onnx_quirks {op_type}.{flag} is unknown; use Reshape.fix_batch_size")


class _Reader:
    """State of one read: the values known so far, by ONNX name."""

    def __init__(
        self,
        proto: ModelProto,
        parameters: Mapping[str, Tensor],
        store: ParameterStore,
        place: str,
        folder: Path | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.graph = proto.graph
        self.place = place
        self.folder = folder
        self.dtype = dtype
        self.device = device
        self.store = store
        self.parameters = parameters
        self.opsets = {("" if o.domain in _STANDARD_DOMAINS else o.domain): o.version for o in proto.opset_import}
        if "" not in self.opsets:
            raise ModelError(f"{place}: does not say which ONNX opset it uses; export it again")
        if proto.graph.sparse_initializer:
            raise ModelError(f"{place}: sparse weights are not supported; export them dense")
        self.initializers: dict[str, TensorProto] = {i.name: i for i in proto.graph.initializer}
        self.values: dict[str, Value] = {}
        self.read_names: set[str] = set()
        self.turned: set[str] = set()
        self.weights: dict[str, int] = {}  # names that are nothing but weights -> reads to come
        self.assembler: Assembler

    def read(self, input_shape: Sequence[int] | None, batch_fixed: bool | None) -> ReadResult:
        """The whole network."""
        if len(self.graph.output) != 1:
            names = ", ".join(one_line(o.name) for o in self.graph.output)
            raise ModelError(f"{self.place}: the network has {len(self.graph.output)} outputs ({names}); one is needed")
        output = self.graph.output[0].name
        nodes = needed_nodes(self.graph, output)
        self.read_names = {name for node in nodes for name in names_read(node)} | {output}
        self.turned = right_factors(nodes)
        self.weights = dict(only_weights(nodes, output))
        entry = self._entry()
        shape = resolve_input(declared_dims(entry, self.place), input_shape, batch_fixed, self.place)
        self.assembler = Assembler(self.store, shape.batch, self.dtype, self.device, bool(self.parameters))
        self._start(entry.name, shape)
        self._run(nodes)
        self.store.agree()
        return self._finish(output)

    def _entry(self) -> ValueInfoProto:
        """The one graph input that is no initialiser and that a node reads."""
        inputs = [v for v in self.graph.input if v.name not in self.initializers and v.name not in self.parameters]
        used = [v for v in inputs if v.name in self.read_names]
        if len(used) != 1:
            names = ", ".join(one_line(v.name) for v in used) or "none"
            raise ModelError(f"{self.place}: the network reads {len(used)} inputs ({names}); exactly one is needed")
        return used[0]

    def _start(self, name: str, shape: InputShape) -> None:
        node = self.assembler.add_input(name, shape.sample)
        batch = 0 if shape.batch.batched else None
        self.values[name] = Activation(self.assembler.reshape(node, shape.onnx), shape.onnx, batch)
        self.assembler.name_new({}, name)

    def _finish(self, output: str) -> ReadResult:
        result = self.values.get(output)
        if result is None:
            raise ModelError(f"{self.place}: nothing produces the output {one_line(output)}")
        if isinstance(result, Constant):
            raise ModelError(f"{self.place}: the output {one_line(output)} does not depend on the input")
        node, shape = result.node, result.onnx_shape(1)
        batched = result.batch == 0
        if result.batch is None and self.assembler.batch.batched and shape[:1] == (1,):
            batched = True  # the file's own tensor has a leading 1 again
        shape = shape[1:] if batched else shape
        node = self.assembler.reshape(node, shape)
        self.assembler.name_new({node: output}, output)
        graph = self.assembler.finish(node, batched, scalar=not shape)
        return ReadResult(graph, dict(self.assembler.derived), frozenset(self.assembler.copied))

    # -- nodes ------------------------------------------------------------------------------------------------------

    def _run(self, nodes: Iterable[NodeProto]) -> None:
        for node in nodes:
            name = one_line(node.name or next((o for o in node.output if o), node.op_type))
            place = f"{self.place}: node {name} ({one_line(node.op_type)})"
            if node.op_type == "If" and node.domain in _STANDARD_DOMAINS:
                self._branch(node, place)
                continue
            results = self._translate(node, name, place)
            if len(results) < self._outputs_read(node):
                raise ModelError(f"{place}: gives {len(results)} values but {len(node.output)} are named")
            self.values.update({o: r for o, r in zip(node.output, results, strict=False) if o})
            self._name(node, name, results)
            self._forget(node)

    def _forget(self, node: NodeProto) -> None:
        """Let go of weights that are in the store now and of which nothing more is to be read."""
        for name in node.input:
            if name in self.weights:
                self.weights[name] -= 1
                if not self.weights[name]:
                    self.values.pop(name, None)

    def _translate(self, node: NodeProto, name: str, place: str) -> tuple[Value, ...]:
        domain = "" if node.domain in _STANDARD_DOMAINS else node.domain
        inputs = tuple(self._value(i, place) if i else None for i in node.input)
        attributes = Attributes(node, place)
        opset = self.opsets.get(domain, 1)
        custom = CUSTOM_OPERATORS.find((domain, node.op_type))
        if not any(isinstance(v, Activation) for v in inputs) and custom is None:
            constants = tuple(v for v in inputs if not isinstance(v, Activation))
            return self._fold(node, attributes, opset, constants, name, place)
        if custom is not None:
            inputs = tuple(self.assembler.settled(v) if isinstance(v, Constant) else v for v in inputs)
        view = NodeView(
            self.assembler,
            node.op_type,
            name,
            place,
            opset,
            attributes,
            inputs,
            self._outputs_read(node),
            len(node.output),
        )
        if custom is not None:
            return (build_custom(view, custom),)
        builder = BUILDERS.get(node.op_type) if domain == "" else None
        if builder is None:
            raise UnsupportedOperator(self._no_rules(node, inputs, view, place))
        result = builder(view)
        return result if isinstance(result, tuple) else (result,)

    def _no_rules(self, node: NodeProto, inputs: tuple[Value | None, ...], view: NodeView, place: str) -> str:
        """What cannot be read, where, and what to do."""
        shapes = ", ".join(str(list(view.shape(v))) for v in inputs if v is not None)
        op_type = one_line(node.op_type)
        full = op_type if node.domain in _STANDARD_DOMAINS else f"{one_line(node.domain)}::{op_type}"
        close = nearest(op_type, (*BUILDERS, *CUSTOM_OPERATORS.names()))
        hint = f"; nearest supported operator: {close}" if close else ""
        return (
            f"{place}: operator {full} on shapes {shapes} is not supported{hint}; "
            f"to add it: register_custom_op({full!r}, YourOperator), see docs/custom_operator.md"
        )

    def _branch(self, node: NodeProto, place: str) -> None:
        """If on a constant condition: the branch that is taken stands in its place."""
        condition = self._value(node.input[0], place)
        if not isinstance(condition, Constant) or condition.tensor.numel() != 1:
            raise UnsupportedOperator(f"{place}: its condition depends on the input, which has no rules here")
        taken = Attributes(node, place).graph("then_branch" if bool(condition.tensor.item()) else "else_branch")
        if taken is None:
            raise ModelError(f"{place}: a branch is missing")
        self.initializers.update({i.name: i for i in taken.initializer})
        self._run(taken.node)
        for outer, inner in zip(node.output, taken.output, strict=False):
            self.values[outer] = self._value(inner.name, place)

    def _name(self, node: NodeProto, name: str, results: tuple[Value, ...]) -> None:
        """The result keeps the ONNX node's name; several results take the names of their values."""
        nodes = [(r.node, o) for r, o in zip(results, node.output, strict=False) if isinstance(r, Activation)]
        wanted = {nodes[0][0]: name} if len(nodes) == 1 else {n: o or name for n, o in nodes}
        self.assembler.name_new(wanted, name)

    def _outputs_read(self, node: NodeProto) -> int:
        return max((i + 1 for i, o in enumerate(node.output) if o and o in self.read_names), default=0)

    # -- constants --------------------------------------------------------------------------------------------------

    def _value(self, name: str, place: str) -> Value:
        value = self.values.get(name)
        if value is None:
            value = self.values[name] = self._initializer(name, place)
        return value

    def _initializer(self, name: str, place: str) -> Constant:
        where = f"{self.place}: initializer {one_line(name)}"
        if name in self.parameters:
            tensor = self.parameters[name]
            require_finite(tensor, where)
            if name in self.weights and tensor.is_floating_point() and not self.store.shares:
                return Constant(tensor, name, name, Unread(name, where))
            settled = self._settled(tensor)
            if settled is tensor:
                return Constant(tensor, name, name)
            self.assembler.derived.setdefault(name, name)
            return Constant(settled.detach(), name)
        proto = self.initializers.pop(name, None)
        if proto is None:
            raise ModelError(f"{place}: reads {one_line(name)}, which no node, input or initializer provides")
        if name in self.weights and proto.data_type in FLOATING:
            return Constant(mapped_tensor(proto, where, self.folder), name, unread=Unread(name, where))
        turned = name in self.turned
        tensor = weight_tensor(proto, where, self.folder, self.dtype, self.device, turned=turned)
        require_finite(tensor, where)
        return Constant(tensor, name)

    def _settled(self, tensor: Tensor) -> Tensor:
        """Numbers in the run's element type and on its device; whole numbers (shapes, indices) stay on the CPU."""
        return tensor.to(self.device, self.dtype) if tensor.is_floating_point() else tensor

    def _fold(
        self,
        node: NodeProto,
        attributes: Attributes,
        opset: int,
        inputs: tuple[Constant | None, ...],
        name: str,
        place: str,
    ) -> tuple[Value, ...]:
        if node.op_type == "Constant" and "value" in attributes:
            proto = attributes.tensor("value")
            assert proto is not None
            tensor = self._settled(torch_tensor(proto, place, self.folder))
            require_finite(tensor, place)
            return (Constant(tensor, name),)
        if node.op_type.startswith("Random") or node.op_type in ("Multinomial", "Bernoulli"):
            raise UnsupportedOperator(f"{place}: random values have no rules here; export in evaluation mode")
        view = fold_view(node.op_type, attributes, opset, inputs, name)
        if view is not None:
            return (view,)
        inputs = tuple(None if c is None else self.assembler.settled(c) for c in inputs)
        self.assembler.note_derived(tuple(c for c in inputs if c is not None), name)
        results = evaluate(node, self.opsets, inputs, place, torch.device("cpu"))
        for result in results:
            require_finite(result, place)
        return tuple(Constant(self._settled(r), name) for r in results)

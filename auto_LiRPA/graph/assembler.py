"""Collects nodes while a file is read, then removes what the output does not need and returns the finished graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from auto_LiRPA.graph.ir import Graph, Node
from auto_LiRPA.graph.layout import Constant, Unread
from auto_LiRPA.graph.onnx_tensors import require_finite
from auto_LiRPA.operators.arithmetic import Affine
from auto_LiRPA.operators.base import Input, Operator
from auto_LiRPA.operators.linear import Linear
from auto_LiRPA.operators.placed import PlacedAffine
from auto_LiRPA.operators.reduce import ReduceSum
from auto_LiRPA.operators.shape import Reshape
from auto_LiRPA.parallel.store import MIB, ParameterStore, Weight, as_own


@dataclass(frozen=True, slots=True)
class BatchRule:
    """What the file says about its batch axis.

    ``batched``: axis 0 of the input is a batch axis. ``size``: its length in the file (1 where it is free).
    ``fixed``: the file allows no other length, so N samples can only mean N runs, and an operation on the batch axis
    is one on an axis of length 1. Where the length is free, such an operation mixes samples and is refused.
    """

    batched: bool
    size: int
    fixed: bool


@dataclass
class Assembler:
    """Nodes in the making. Ids are positions; names are given when an ONNX node is finished."""

    store: ParameterStore
    batch: BatchRule
    dtype: torch.dtype
    device: torch.device
    shared_constants: bool = False  # some belong to a module, whose later changes have to be seen
    nodes: list[Node] = field(default_factory=list)
    derived: dict[str, str] = field(default_factory=dict)  # parameter -> ONNX node that computed a constant from it
    copied: set[str] = field(default_factory=set)  # parameters of which the store keeps a copy
    _placed: dict[object, Weight] = field(default_factory=dict)
    _names: set[str] = field(default_factory=set)
    _named: int = 0

    def emit(self, op: Operator, inputs: tuple[int, ...], shape: tuple[int, ...]) -> int:
        """Append a node (its name comes later).

        A value of one number per sample and no axis gets an axis of length 1: passes work along per-sample axes.
        """
        if not shape and inputs:
            if isinstance(op, ReduceSum) and not op.keepdims:
                return self.reshape(self.emit(replace(op, keepdims=True), inputs, (1,) * len(op.in_shape)), (1,))
            shape = (1,)
        if isinstance(op, Affine) and self._is_large(op, shape):
            scale, shift = (None if t is None else self.store.place(t.contiguous()) for t in (op.scale, op.shift))
            op = PlacedAffine(scale, shift)
        self.nodes.append(Node(len(self.nodes), "", op, inputs, shape))
        return len(self.nodes) - 1

    def _is_large(self, op: Affine, shape: tuple[int, ...]) -> bool:
        """Whether constants are of the size of a block of weights, so that they belong where the weights are.

        A constant of one axis stays: it may become the bias of a Linear.
        """
        held = [t for t in (op.scale, op.shift) if t is not None]
        if self.shared_constants or not self.store.takes_constants or len(shape) < 2:
            return False
        least = self.store.block_mib * MIB
        return bool(held) and all(tuple(t.shape) == shape and t.numel() * t.element_size() >= least for t in held)

    def add_input(self, name: str, shape: tuple[int, ...]) -> int:
        """Append the network's input."""
        node = self.emit(Input(), (), shape)
        self.name_new({node: name}, name)
        return node

    def reshape(self, node: int, shape: tuple[int, ...]) -> int:
        """A Reshape, unless it does nothing; one of a Reshape reads that one's source instead."""
        source, shape = self.nodes[node], shape or (1,)
        if source.shape == shape:
            return node
        if isinstance(source.op, Reshape):
            return self.reshape(source.inputs[0], shape)
        return self.emit(Reshape(source.shape, shape), (node,), shape)

    def place(self, constant: Constant) -> Weight:
        """Hand a weight to the store; shared with the module that it belongs to, if the store does that."""
        if constant.source is not None and not self.store.shares:
            self.copied.add(constant.source)
        if constant.unread is not None:
            return self._loaded(constant.tensor, constant.unread)
        tensor = constant.tensor
        return self.store.place(tensor if constant.source is not None else tensor.contiguous())

    def _loaded(self, tensor: Tensor, unread: Unread) -> Weight:
        """The weight, read now; one that several nodes use in the same way is read and kept once."""
        key = (unread.initializer, tensor.shape, tensor.stride(), tensor.storage_offset())
        if key not in self._placed:
            check = partial(require_finite, place=unread.place)
            self._placed[key] = self.store.load(tensor, self.dtype, self.device, check)
        return self._placed[key]

    def settled(self, constant: Constant) -> Constant:
        """The constant in the run's element type and on its device."""
        if constant.unread is None:
            return constant
        tensor = as_own(constant.tensor, self.dtype, self.device)
        require_finite(tensor, constant.unread.place)
        return replace(constant, tensor=tensor, unread=None)

    def note_derived(self, constants: tuple[Constant, ...], node_name: str) -> None:
        """Remember that new numbers were computed from parameters, so that they go stale when those change."""
        for constant in constants:
            if constant.source is not None:
                self.derived.setdefault(constant.source, node_name)

    def name_new(self, results: dict[int, str], name: str) -> None:
        """Name the nodes made since the last call: ``results`` as given, helpers ``name/operator``."""
        for i in range(self._named, len(self.nodes)):
            wanted = results.get(i) or f"{name}/{type(self.nodes[i].op).__name__.lower()}"
            self.nodes[i] = replace(self.nodes[i], name=self._unique(wanted))
        self._named = len(self.nodes)

    def _unique(self, name: str) -> str:
        count, unique = 1, name
        while unique in self._names:
            count += 1
            unique = f"{name}_{count}"
        self._names.add(unique)
        return unique

    def finish(self, output: int, output_batched: bool, scalar: bool = False) -> Graph:
        """The graph of what ``output`` depends on, with MatMul + Add of a constant merged."""
        merge_bias(self.nodes, needed_ids(self.nodes, output), output)
        nodes, output = kept_nodes(self.nodes, output)
        return Graph(nodes, output, self.batch.batched, output_batched, scalar)


def needed_ids(nodes: Sequence[Node], output: int) -> set[int]:
    """Ids of the input and of all that ``output`` depends on."""
    needed, stack = {0}, [output]
    while stack:
        node = stack.pop()
        if node not in needed:
            needed.add(node)
            stack.extend(nodes[node].inputs)
    return needed


def kept_nodes(nodes: Sequence[Node], output: int) -> tuple[tuple[Node, ...], int]:
    """What ``output`` needs, numbered anew, and the output's new id."""
    kept = sorted(needed_ids(nodes, output))
    position = {old: new for new, old in enumerate(kept)}
    fresh = []
    for i in kept:
        sources = tuple(position[j] for j in nodes[i].inputs)
        fresh.append(replace(nodes[i], id=position[i], inputs=sources))
    return tuple(fresh), position[output]


def merge_bias(nodes: list[Node], needed: set[int], output: int) -> None:
    """Give the shift of an Affine to the Linear that it alone reads (MatMul followed by Add), in place."""
    readers: dict[int, int] = {}
    for i in needed:
        for source in nodes[i].inputs:
            readers[source] = readers.get(source, 0) + 1
    for i in sorted(needed):
        node = nodes[i]
        if not isinstance(node.op, Affine) or node.op.scale is not None or node.op.shift is None:
            continue
        (source,) = node.inputs
        linear = nodes[source]
        if not isinstance(linear.op, Linear) or linear.op.bias is not None or readers[source] > 1 or source == output:
            continue
        bias = last_axis_vector(node.op.shift, linear.shape)
        if bias is not None:
            nodes[i] = replace(node, op=Linear(linear.op.weight, bias), inputs=linear.inputs)


def last_axis_vector(values: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """``values`` (broadcastable to ``shape``) as one number per entry of the last axis; None if it needs more."""
    if not shape or any(s != 1 for s in values.shape[:-1]):
        return None
    return values.reshape(-1).expand(shape[-1])

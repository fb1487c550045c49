"""What a builder sees of one ONNX node: its inputs, attributes, and the ways to translate axes and add graph nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from auto_LiRPA.errors import ModelError, UnsupportedOperator
from auto_LiRPA.graph.assembler import Assembler
from auto_LiRPA.graph.layout import Activation, Constant, Value
from auto_LiRPA.graph.onnx_attributes import Attributes
from auto_LiRPA.operators.base import Operator
from auto_LiRPA.operators.shape import Expand, Transpose


class NodeView:
    """One ONNX node being translated."""

    def __init__(
        self,
        assembler: Assembler,
        op_type: str,
        name: str,
        place: str,
        opset: int,
        attributes: Attributes,
        inputs: tuple[Value | None, ...],
        n_outputs: int,
        outputs_declared: int,
    ) -> None:
        """``place`` names file, node and operator; ``n_outputs`` is 1 + the last output that anything reads."""
        self.assembler = assembler
        self.op_type = op_type
        self.name = name
        self.place = place
        self.opset = opset
        self.attributes = attributes
        self.inputs = inputs
        self.n_outputs = n_outputs
        self.outputs_declared = outputs_declared

    # -- errors -----------------------------------------------------------------------------------------------------

    def unsupported(self, reason: str) -> NoReturn:
        """End the load: this use of the operator has no rules here."""
        shapes = ", ".join(str(list(self.shape(v))) for v in self.inputs if v is not None)
        raise UnsupportedOperator(f"{self.place}: {reason} (input shapes {shapes}); mend: register_custom_op")

    def wrong(self, reason: str) -> NoReturn:
        """End the load: the file contradicts itself."""
        raise ModelError(f"{self.place}: {reason}")

    def mixes(self, axis: int) -> NoReturn:
        """End the load: the operation reads across samples."""
        raise ModelError(
            f"{self.place}: works along axis {axis}, which is the batch, so samples would mix; export the network for "
            "one sample, or give input_shape without -1 if that axis is no batch"
        )

    # -- inputs -----------------------------------------------------------------------------------------------------

    def input(self, i: int) -> Value | None:
        """Input ``i``; None if it is left out."""
        return self.inputs[i] if i < len(self.inputs) else None

    def activation(self, i: int) -> Activation:
        """Input ``i``, which has to depend on the network's input."""
        value = self.input(i)
        if isinstance(value, Activation):
            return value
        return self.unsupported(f"input {i} is {'missing' if value is None else 'a constant'}")

    def constant(self, i: int) -> Constant | None:
        """Input ``i``, which has to be a constant or left out."""
        value = self.input(i)
        if isinstance(value, Activation):
            return self.unsupported(f"input {i} has to be a constant")
        return value

    def required(self, i: int) -> Constant:
        """Input ``i``, which has to be a constant."""
        value = self.constant(i)
        return self.wrong(f"input {i} is missing") if value is None else value

    def int_list(self, i: int) -> tuple[int, ...] | None:
        """Constant input ``i`` as whole numbers; None if it is left out."""
        value = self.constant(i)
        if value is None:
            return None
        if value.tensor.is_floating_point():
            return self.wrong(f"input {i} has to hold whole numbers")
        return tuple(int(v) for v in value.tensor.reshape(-1).tolist())

    def scalar(self, i: int) -> float | None:
        """Constant input ``i`` as one number; None if it is left out."""
        value = self.constant(i)
        if value is None or value.tensor.numel() == 0:
            return None
        if value.tensor.numel() != 1:
            return self.unsupported(f"input {i} has to be a single number")
        self.assembler.note_derived((value,), self.name)
        return float(value.tensor.detach().item())

    def shape(self, value: Value) -> tuple[int, ...]:
        """ONNX shape of a value, with the file's own batch size."""
        if isinstance(value, Constant):
            return tuple(value.tensor.shape)
        return value.onnx_shape(self.assembler.batch.size)

    def computed(self, rule: Callable[..., Tensor], *constants: Constant) -> Tensor:
        """New numbers from constants; remembered if a parameter is behind them."""
        self.assembler.note_derived(constants, self.name)
        return rule(*(c.tensor.detach() for c in constants))

    def number(self, value: float) -> Tensor:
        """A plain number of the run's element type, on its device."""
        return torch.tensor(value, dtype=self.assembler.dtype, device=self.assembler.device)

    def indices(self, values: list[int]) -> Tensor:
        """Indices on the run's device."""
        return torch.tensor(values, dtype=torch.int64, device=self.assembler.device)

    # -- axes -------------------------------------------------------------------------------------------------------

    def axis_number(self, axis: int, rank: int) -> int:
        """ONNX axis counted from 0."""
        if not -rank <= axis < max(rank, 1):
            self.wrong(f"axis {axis} does not exist in a value with {rank} axes")
        return axis + rank if axis < 0 else axis

    def sample_axes(
        self, x: Activation, axes: Sequence[int], *, one_sample: bool = False
    ) -> tuple[Activation, tuple[int, ...]]:
        """Per-sample axes behind ONNX ``axes`` (negative counts from the end), ready to be worked along.

        If one of them carries the batch, the value is turned into one without batch axis where that is safe: the file
        fixes the batch to one sample, or the operation itself does (``one_sample``: it fits no other length).
        """
        numbers = tuple(self.axis_number(a, x.rank) for a in axes)
        if x.batch in numbers:
            x = self.without_batch(x, one_sample=one_sample)
        elif x.folded and 0 in numbers:
            x = self.without_batch(x, one_sample=one_sample)
        return x, tuple(a for n in numbers if (a := x.sample_axis(n)) is not None)

    def without_batch(self, x: Activation, *, one_sample: bool = False) -> Activation:
        """The same ONNX value with its batch axis (of length 1) taken as one of the sample's own."""
        rule = self.assembler.batch
        if x.batch is None and not x.folded:
            return x
        if rule.size != 1 or not (rule.fixed or one_sample):
            self.mixes(x.batch or 0)
        shape = x.onnx_shape(1)
        return Activation(self.assembler.reshape(x.node, shape), shape, None)

    def batch_first(self, x: Activation) -> Activation:
        """The value with its batch on ONNX axis 0, as Conv and pooling want it."""
        if x.batch == 0:
            return x
        if x.batch is not None:
            x = self.without_batch(x)
        if x.folded or not x.shape or x.shape[0] != 1:
            self.unsupported(
                "axis 0 has to be the batch; give input_shape with -1 for the batch axis if it is another one"
            )
        return self.reshape(x, x.shape[1:], batch=0)

    def aligned(self, x: Activation, rank: int) -> Activation:
        """Axes of length 1 put in front until the ONNX value has ``rank`` axes."""
        missing = rank - x.rank
        if missing <= 0:
            return x
        if x.folded:
            x = self.without_batch(x)
        if x.batch is None:
            return self.reshape(x, (1,) * missing + x.shape, batch=None)
        return self.reshape(x, (1,) * missing + x.shape, batch=x.batch + missing)

    # -- new nodes --------------------------------------------------------------------------------------------------

    def emit(self, op: Operator, inputs: Sequence[Activation], shape: tuple[int, ...]) -> Activation:
        """A node whose result has the layout of its first input."""
        return inputs[0].at(self.assembler.emit(op, tuple(x.node for x in inputs), shape), shape)

    def reshape(self, x: Activation, shape: tuple[int, ...], *, batch: int | None, folded: bool = False) -> Activation:
        """The same entries per sample in another shape and layout."""
        return Activation(self.assembler.reshape(x.node, shape), shape, batch, folded)

    def transposed(self, x: Activation, perm: Sequence[int]) -> Activation:
        """ONNX axes permuted; the batch axis is followed."""
        if sorted(perm) != list(range(x.rank)):
            self.wrong(f"perm {list(perm)} does not fit a value with {x.rank} axes")
        if x.folded and perm[0] != 0:
            x = self.without_batch(x)
        sample_perm = tuple(a for p in perm if (a := x.sample_axis(p)) is not None)
        batch = None if x.batch is None else list(perm).index(x.batch)
        shape = tuple(x.shape[a] for a in sample_perm)
        if sample_perm == tuple(range(len(sample_perm))):
            return Activation(x.node, shape, batch, x.folded)
        node = self.assembler.emit(Transpose(sample_perm), (x.node,), shape)
        return Activation(node, shape, batch, x.folded)

    def expanded(self, x: Activation, shape: tuple[int, ...]) -> Activation:
        """Axes of length 1 repeated up to ``shape`` (same number of axes)."""
        return x if x.shape == shape else self.emit(Expand(x.shape, shape), (x,), shape)

    # -- broadcasting -----------------------------------------------------------------------------------------------

    def with_constant(self, x: Activation, constant: Tensor) -> tuple[Activation, Tensor]:
        """An activation and a constant of an elementwise operation, ready for per-sample broadcasting.

        The activation is expanded to the result's shape; the constant loses its place on the batch axis.
        """
        rank = max(x.rank, constant.dim())
        x = self.aligned(x, rank)
        constant = constant.reshape((1,) * (rank - constant.dim()) + tuple(constant.shape))
        if x.batch is not None:
            length, size = constant.shape[x.batch], self.assembler.batch.size
            if length == 1 or (length == size and bool((constant == constant.narrow(x.batch, 0, 1)).all())):
                constant = constant.select(x.batch, 0)
            else:
                x = self.without_batch(x)
        elif x.folded and constant.shape[0] != 1:
            # a constant of that length fits one sample only
            x = self.without_batch(x, one_sample=True)
        shape = self.broadcast(x.shape, tuple(constant.shape))
        return self.expanded(x, shape), constant.reshape(()) if constant.numel() == 1 else constant

    def with_branch(self, x: Activation, y: Activation) -> tuple[Activation, Activation]:
        """Two activations of an elementwise operation, brought to one layout and shape."""
        rank = max(x.rank, y.rank)
        if x.folded != y.folded or (x.folded and (x.shape[0] != y.shape[0] or x.rank != y.rank)):
            x, y = self.without_batch(x, one_sample=True), self.without_batch(y, one_sample=True)
        x, y = self.aligned(x, rank), self.aligned(y, rank)
        if x.batch != y.batch:
            x, y = self.one_batch(x, y)
        shape = self.broadcast(x.shape, y.shape)
        return self.expanded(x, shape), self.expanded(y, shape)

    def one_batch(self, x: Activation, y: Activation) -> tuple[Activation, Activation]:
        """Bring two values of equal rank with different batch axes to one: that of either, or none."""
        for first, second, swapped in ((x, y, False), (y, x, True)):
            if first.batch is not None and second.batch is None and second.shape[first.batch] == 1:
                shape = second.shape[: first.batch] + second.shape[first.batch + 1 :]
                second = self.reshape(second, shape, batch=first.batch)
                return (second, first) if swapped else (first, second)
        return self.without_batch(x), self.without_batch(y)

    def broadcast(self, a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the two together."""
        try:
            # numpy's, because torch's pulls in a computer algebra system, half a second of start-up
            return tuple(np.broadcast_shapes(a, b))
        except ValueError as error:
            raise ModelError(
                f"{self.place}: shapes {list(a)} and {list(b)} (per sample) do not fit together"
            ) from error


Builder = Callable[[NodeView], Value | tuple[Value, ...]]

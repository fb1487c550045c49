"""Nodes whose inputs are all constants: views where the numbers stay the same, else onnx's reference evaluator.

A view keeps a weight in its module's own storage (an exporter writes ``x @ W.T`` as a Transpose of W). Shape arithmetic
(Gather, Concat, Range, ... on the constant that Shape gives) is folded by the evaluator like everything else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from auto_LiRPA.errors import ModelError, UnsupportedOperator
from auto_LiRPA.graph.layout import Constant
from auto_LiRPA.graph.onnx_attributes import Attributes

if TYPE_CHECKING:
    from onnx import NodeProto


class NotAViewError(Exception):
    """This use of the operator computes new numbers (internal to this file)."""


def _identity(attributes: Attributes, opset: int, x: Tensor, *rest: Tensor) -> Tensor:
    return x


def _cast(attributes: Attributes, opset: int, x: Tensor) -> Tensor:
    target = attributes.integer("to", 0)
    if x.is_floating_point() and (target == 11 or (target == 1 and x.dtype != torch.float64)):
        return x  # a double that becomes a float is rounded: new numbers
    raise NotAViewError


def _transpose(attributes: Attributes, opset: int, x: Tensor) -> Tensor:
    perm = attributes.ints("perm")
    return x.permute(tuple(reversed(range(x.dim()))) if perm is None else perm)


def _reshape(attributes: Attributes, opset: int, x: Tensor, *rest: Tensor) -> Tensor:
    target = attributes.ints("shape") if opset < 5 else tuple(int(v) for v in rest[0].tolist())
    if target is None or not x.is_contiguous():
        raise NotAViewError
    if not attributes.integer("allowzero", 0):
        target = tuple(x.shape[i] if t == 0 else t for i, t in enumerate(target))
    return x.view(target)


def _flatten(attributes: Attributes, opset: int, x: Tensor) -> Tensor:
    axis = attributes.integer("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    if not x.is_contiguous():
        raise NotAViewError
    return x.view(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _axes(attributes: Attributes, opset: int, rest: tuple[Tensor, ...]) -> tuple[int, ...] | None:
    if opset < 13:
        return attributes.ints("axes")
    return tuple(int(v) for v in rest[0].reshape(-1).tolist()) if rest else None


def _squeeze(attributes: Attributes, opset: int, x: Tensor, *rest: Tensor) -> Tensor:
    axes = _axes(attributes, opset, rest)
    return x.squeeze() if axes is None else x.squeeze(axes)


def _unsqueeze(attributes: Attributes, opset: int, x: Tensor, *rest: Tensor) -> Tensor:
    axes = _axes(attributes, opset, rest)
    if axes is None:
        raise NotAViewError
    rank = x.dim() + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


_VIEWS: Mapping[str, Callable[..., Tensor]] = {
    "Identity": _identity,
    "Dropout": _identity,
    "Cast": _cast,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
}


def fold_view(
    op_type: str, attributes: Attributes, opset: int, inputs: tuple[Constant | None, ...], name: str
) -> Constant | None:
    """The node's value as a view of its first input; None if it computes new numbers."""
    rule = _VIEWS.get(op_type)
    if rule is None or not inputs or any(c is None for c in inputs):
        return None
    first = inputs[0]
    assert first is not None
    try:
        tensor = rule(attributes, opset, *(c.tensor for c in inputs if c is not None))
    except (NotAViewError, RuntimeError, IndexError):
        # torch refuses what is not a view (or not valid); the evaluator then says which
        return None
    return Constant(tensor, name, first.source, first.unread)


def evaluate(
    node: NodeProto, opsets: Mapping[str, int], inputs: tuple[Constant | None, ...], place: str, device: torch.device
) -> tuple[Tensor, ...]:
    """Values of a constant node by onnx's reference evaluator.

    Raises:
        ModelError: the node's inputs contradict each other. UnsupportedOperator: the evaluator does not know it.
    """
    from onnx.reference import ReferenceEvaluator

    feeds = {n: _numpy(c.tensor) for n, c in zip(node.input, inputs, strict=True) if c is not None}
    try:
        evaluator = ReferenceEvaluator(node, opsets=dict(opsets))
        with np.errstate(all="ignore"):  # what is not finite is refused by the caller
            results = evaluator.run(None, feeds)
    except NotImplementedError as error:
        raise UnsupportedOperator(f"{place}: it works on constants but cannot be evaluated ({_line(error)})") from error
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, ArithmeticError) as error:
        raise ModelError(f"{place}: its constant inputs do not fit together ({_line(error)})") from error
    return tuple(torch.from_numpy(np.array(r)).to(device) for r in results)


def _numpy(tensor: Tensor) -> np.ndarray:
    return np.asarray(tensor.detach().cpu().numpy())


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__

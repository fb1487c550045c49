"""Operators that a user registered: made from attributes and per-sample shapes, measured by their own forward."""

from __future__ import annotations

import torch

from auto_LiRPA.graph.layout import Activation, Constant, Value
from auto_LiRPA.graph.node_view import NodeView
from auto_LiRPA.graph.registry import CustomOperator


def build_custom(view: NodeView, operator: type[CustomOperator]) -> Value:
    """A user's operator: per-sample shapes in, its own forward rule tells the shape out."""
    inputs = [v for v in view.inputs if isinstance(v, Activation)]
    if not inputs:
        return view.unsupported("a custom operator needs an input that depends on the network's input")
    if any(v.batch not in (0, None) or v.folded for v in inputs) or len({v.batch for v in inputs}) > 1:
        inputs = [view.without_batch(v) for v in inputs]
    attributes = dict(view.attributes.plain())
    for i, value in enumerate(view.inputs):
        if isinstance(value, Constant):
            attributes[f"input_{i}"] = value.tensor
    op = operator.from_onnx(attributes, tuple(v.shape for v in inputs))
    zeros = [view.number(0.0).expand(1, *v.shape) for v in inputs]
    with torch.no_grad():
        shape = tuple(op.forward(*zeros).shape[1:])
    return view.emit(op, inputs, shape)

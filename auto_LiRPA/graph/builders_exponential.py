"""Softmax, Exp, Sqrt, Reciprocal, and Where with a constant condition."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from auto_LiRPA.graph.layout import Activation, Constant, Value
from auto_LiRPA.graph.node_view import Builder, NodeView
from auto_LiRPA.operators.arithmetic import Add, Affine
from auto_LiRPA.operators.exponential import Exp, Reciprocal
from auto_LiRPA.operators.smooth import Power
from auto_LiRPA.operators.softmax import Differences, PairSoftmax, Softmax, pair_count

# Softmax by differences of all pairs makes that many neurons; above it the entries' own boxes have to do.
_MOST_PAIRS = 2**14


def build_exp(view: NodeView) -> Value:
    """``exp(x)``."""
    x = view.activation(0)
    return view.emit(Exp(), (x,), x.shape)


def build_sqrt(view: NodeView) -> Value:
    """``x ** 0.5``."""
    x = view.activation(0)
    return view.emit(Power(0.5), (x,), x.shape)


def build_reciprocal(view: NodeView) -> Value:
    """``1 / x``."""
    x = view.activation(0)
    return view.emit(Reciprocal(), (x,), x.shape)


def build_softmax(view: NodeView) -> Value:
    """``exp(x) / sum(exp(x))`` along one axis; before opset 13 along all axes from ``axis`` on together."""
    x = view.activation(0)
    modern = view.opset >= 13
    number = view.axis_number(view.attributes.integer("axis", -1 if modern else 1), x.rank)
    numbers = (number,) if modern else tuple(range(number, x.rank))
    x, axes = view.sample_axes(x, numbers)
    if not modern and len(axes) > 1:
        shape, size = x.shape, math.prod(x.shape[a] for a in axes)
        flat = view.reshape(x, (*shape[: axes[0]], size), batch=x.batch, folded=x.folded)
        return view.reshape(_softmax(view, flat), shape, batch=x.batch, folded=x.folded)
    if not axes:
        return view.wrong(f"axis {number} does not exist")
    (axis,) = axes
    if axis == len(x.shape) - 1:
        return _softmax(view, x)
    order = list(range(x.rank))
    order.append(order.pop(number if x.rank == len(order) else axis))
    turned = view.transposed(x, order)
    return view.transposed(_softmax(view, turned), sorted(range(x.rank), key=order.__getitem__))


def _softmax(view: NodeView, x: Activation) -> Activation:
    """Over the last axis of a sample."""
    length = x.shape[-1]
    pairs = (*x.shape[:-1], pair_count(length))
    if length < 2 or math.prod(pairs) > _MOST_PAIRS:
        return view.emit(Softmax(length), (x,), x.shape)
    t = view.emit(Differences(length), (x,), pairs)
    return view.emit(PairSoftmax(length), (t,), x.shape)


def build_where(view: NodeView) -> Value:
    """``x`` where a constant condition holds, else ``y``."""
    condition = view.required(0)
    taken, other = view.input(1), view.input(2)
    if taken is None or other is None:
        return view.wrong("a branch is missing")
    mask = condition.tensor.to(view.assembler.dtype).to(view.assembler.device)
    parts = [_masked(view, taken, mask, condition), _masked(view, other, 1 - mask, condition)]
    branches = [p for p in parts if isinstance(p, Activation)]
    constants = [p for p in parts if isinstance(p, Constant)]
    if constants:
        x, shift = view.with_constant(branches[0], constants[0].tensor)
        return view.emit(Affine(None, shift), (x,), x.shape)
    x, y = view.with_branch(branches[0], branches[1])
    return view.emit(Add(), (x, y), x.shape)


def _masked(view: NodeView, value: Value, mask: torch.Tensor, condition: Constant) -> Value:
    """``value`` where ``mask`` is 1, and 0 elsewhere."""
    if isinstance(value, Constant):
        return Constant(view.computed(lambda v: torch.where(mask != 0, v, 0.0), value), view.name)
    x, scale = view.with_constant(value, mask)
    return view.emit(Affine(scale, None), (x,), x.shape)


BUILDERS: Mapping[str, Builder] = {
    "Exp": build_exp,
    "Sqrt": build_sqrt,
    "Reciprocal": build_reciprocal,
    "Softmax": build_softmax,
    "Where": build_where,
}

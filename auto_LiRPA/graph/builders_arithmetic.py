"""Add, Sub, Mul, Div, Neg, Sum and BatchNormalization -> Affine, or Add and Sub of two branches."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

import torch

from auto_LiRPA.graph.builders_products import product, quotient
from auto_LiRPA.graph.layout import Activation, Constant, Value
from auto_LiRPA.graph.node_view import Builder, NodeView
from auto_LiRPA.operators.arithmetic import Add, Affine, Sub


def build_add(view: NodeView) -> Value:
    """``x + y``."""
    return _sum(view, _operand(view, 0), _operand(view, 1))


def build_sum(view: NodeView) -> Value:
    """Sum of any number of inputs."""
    values = [_operand(view, i) for i in range(len(view.inputs))]
    return reduce(lambda a, b: _sum(view, a, b), values)


def _sum(view: NodeView, a: Value, b: Value) -> Value:
    if isinstance(a, Activation) and isinstance(b, Activation):
        a, b = view.with_branch(a, b)
        return view.emit(Add(), (a, b), a.shape)
    if isinstance(a, Constant) and isinstance(b, Constant):
        return Constant(view.computed(torch.add, a, b), view.name)
    x, c = (a, b) if isinstance(a, Activation) else (b, a)
    assert isinstance(x, Activation) and isinstance(c, Constant)
    x, shift = view.with_constant(x, c.tensor)
    return view.emit(Affine(None, shift), (x,), x.shape)


def build_sub(view: NodeView) -> Value:
    """``x - y``."""
    a, b = _operand(view, 0), _operand(view, 1)
    if isinstance(a, Activation) and isinstance(b, Activation):
        a, b = view.with_branch(a, b)
        return view.emit(Sub(), (a, b), a.shape)
    if isinstance(a, Activation):
        assert isinstance(b, Constant)
        a, shift = view.with_constant(a, view.computed(torch.neg, b))
        return view.emit(Affine(None, shift), (a,), a.shape)
    assert isinstance(b, Activation)
    b, shift = view.with_constant(b, a.tensor)
    return view.emit(Affine(view.number(-1.0), shift), (b,), b.shape)


def build_mul(view: NodeView) -> Value:
    """``x * y``; two values that both depend on the input are bounded by planes."""
    a, b = _operand(view, 0), _operand(view, 1)
    if isinstance(a, Activation) and isinstance(b, Activation):
        return product(view, a, b)
    x, c = (a, b) if isinstance(a, Activation) else (b, a)
    assert isinstance(x, Activation) and isinstance(c, Constant)
    x, scale = view.with_constant(x, c.tensor)
    return view.emit(Affine(scale, None), (x,), x.shape)


def build_div(view: NodeView) -> Value:
    """``x / y``; a divisor that depends on the input must have bounds on one side of 0."""
    a, b = _operand(view, 0), _operand(view, 1)
    if isinstance(b, Activation):
        return quotient(view, a, b)
    assert isinstance(a, Activation)
    if bool((b.tensor.detach() == 0).any()):
        return view.wrong("the divisor holds a zero")
    x, scale = view.with_constant(a, view.computed(torch.reciprocal, b))
    return view.emit(Affine(scale, None), (x,), x.shape)


def build_neg(view: NodeView) -> Value:
    """``-x``."""
    x = view.activation(0)
    return view.emit(Affine(view.number(-1.0), None), (x,), x.shape)


def build_batch_normalization(view: NodeView) -> Value:
    """``gamma * (x - mean) / sqrt(var + epsilon) + beta`` per channel (ONNX axis 1), with the stored statistics."""
    if view.n_outputs > 1 or view.attributes.integer("training_mode", 0) != 0:
        return view.unsupported("BatchNormalization in training mode has no rules here; export in evaluation mode")
    if view.opset < 9 and view.attributes.integer("spatial", 1) == 0:
        return view.unsupported("BatchNormalization with spatial=0 has no rules here")
    x = view.activation(0)
    gamma, beta, mean, var = (view.required(i) for i in range(1, 5))
    x, (axis,) = view.sample_axes(x, (1,))
    for part in (gamma, beta, mean, var):
        if part.tensor.shape != (x.shape[axis],):
            return view.wrong(f"{part.name} has shape {list(part.tensor.shape)} for {x.shape[axis]} channels")
    epsilon = view.attributes.number("epsilon", 1e-5)
    shape = (-1,) + (1,) * (len(x.shape) - axis - 1)
    # factor and shift in float64: one rounding each, whatever order the exporting framework used
    inverse = view.computed(lambda v: (v.double() + epsilon).rsqrt(), var)
    offset = view.computed(lambda m: -m.double() * inverse, mean)
    if gamma.tensor.requires_grad or beta.tensor.requires_grad:
        # parameters in training stay shared: the fixed statistics and the parameters get a node each
        dtype = gamma.tensor.dtype
        x = view.emit(Affine(inverse.to(dtype).reshape(shape), offset.to(dtype).reshape(shape)), (x,), x.shape)
        return view.emit(Affine(gamma.tensor.reshape(shape), beta.tensor.reshape(shape)), (x,), x.shape)
    scale = view.computed(lambda g: (g.double() * inverse).to(g.dtype), gamma)
    shift = view.computed(lambda b, g: (b.double() + g.double() * offset).to(b.dtype), beta, gamma)
    return view.emit(Affine(scale.reshape(shape), shift.reshape(shape)), (x,), x.shape)


def _operand(view: NodeView, i: int) -> Value:
    """Input ``i``, with the broadcasting of opsets before 7 (attributes ``broadcast`` and ``axis``) made explicit."""
    value = view.input(i)
    if value is None:
        return view.wrong(f"input {i} is missing")
    if i == 1 and view.opset < 7 and isinstance(value, Constant) and view.attributes.integer("broadcast", 0):
        first = view.inputs[0]
        rank = len(view.shape(first)) if first is not None else 0
        dims = tuple(value.tensor.shape)
        axis = view.attributes.integer("axis", rank - len(dims))
        trailing = max(rank - axis - len(dims), 0)
        return Constant(value.tensor.reshape(dims + (1,) * trailing), value.name, value.source)
    return value


BUILDERS: Mapping[str, Builder] = {
    "Add": build_add,
    "Sum": build_sum,
    "Sub": build_sub,
    "Mul": build_mul,
    "Div": build_div,
    "Neg": build_neg,
    "BatchNormalization": build_batch_normalization,
}

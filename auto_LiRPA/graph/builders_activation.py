"""Scalar functions (Relu, Clip, Abs, Sign, Sigmoid, Tanh, Pow, ...) and what passes values through."""

from __future__ import annotations

from collections.abc import Mapping

from auto_LiRPA.graph.layout import Activation, Constant, Value
from auto_LiRPA.graph.node_view import Builder, NodeView
from auto_LiRPA.operators.activation import Relu
from auto_LiRPA.operators.base import Operator
from auto_LiRPA.operators.piecewise import Abs, Clip, Sign
from auto_LiRPA.operators.smooth import Power, Sigmoid, Tanh

_FLOAT_TYPES = {1: "FLOAT", 11: "DOUBLE"}


def _elementwise(view: NodeView, op: Operator) -> Activation:
    x = view.activation(0)
    return view.emit(op, (x,), x.shape)


def build_relu(view: NodeView) -> Value:
    """``max(x, 0)``."""
    return _elementwise(view, Relu())


def build_leaky_relu(view: NodeView) -> Value:
    """``max(x, alpha * x)`` for 0 <= alpha < 1."""
    alpha = view.attributes.number("alpha", 0.01)
    if not 0 <= alpha < 1:
        return view.unsupported(f"LeakyRelu with alpha = {alpha:g} has no rules here (0 <= alpha < 1)")
    return _elementwise(view, Relu(alpha))


def build_clip(view: NodeView) -> Value:
    """``min(max(x, low), high)``; limits as attributes before opset 11, as inputs since."""
    if view.opset < 11:
        low = view.attributes.number("min", 0.0) if "min" in view.attributes else None
        high = view.attributes.number("max", 0.0) if "max" in view.attributes else None
    else:
        low, high = view.scalar(1), view.scalar(2)
    if low is None and high is None:
        return view.activation(0)
    if low is not None and high is not None and low > high:
        return view.wrong(f"the lower limit {low:g} is above the upper limit {high:g}")
    return _elementwise(view, Clip(low, high))


def build_max(view: NodeView) -> Value:
    """``max(x, c)``, how some exporters write Clip, for one constant ``c``."""
    x, c = _with_number(view)
    return _clipped(view, x, c, None)


def build_min(view: NodeView) -> Value:
    """``min(x, c)`` for one constant ``c``."""
    x, c = _with_number(view)
    return _clipped(view, x, None, c)


def _with_number(view: NodeView) -> tuple[Activation, float]:
    """The activation (in the result's shape) and the one number of a Max or Min."""
    first, second = view.input(0), view.input(1)
    if isinstance(first, Constant):
        first, second = second, first
    if len(view.inputs) != 2 or not isinstance(first, Activation) or not isinstance(second, Constant):
        return view.unsupported(f"{view.op_type} has rules for one value and one constant only")
    values = second.tensor.detach()
    if values.numel() == 0 or bool((values != values.reshape(-1)[0]).any()):
        return view.unsupported(f"{view.op_type} has rules for a constant of one number only")
    x, _ = view.with_constant(first, values)
    return x, float(view.computed(lambda t: t.reshape(-1)[0], second))


def _clipped(view: NodeView, x: Activation, low: float | None, high: float | None) -> Activation:
    """A Clip; one open side of a Clip in front is closed instead (Max then Min), which bounds more tightly."""
    before = view.assembler.nodes[x.node]
    inner = before.op
    if isinstance(inner, Clip):
        merged_low = inner.low if low is None else low
        merged_high = inner.high if high is None else high
        free = (low is None or inner.low is None) and (high is None or inner.high is None)
        if free and (merged_low is None or merged_high is None or merged_low <= merged_high):
            return x.at(view.assembler.emit(Clip(merged_low, merged_high), before.inputs, x.shape), x.shape)
    return view.emit(Clip(low, high), (x,), x.shape)


def build_pow(view: NodeView) -> Value:
    """``x ** c`` for one constant exponent."""
    exponent = view.required(1)
    values = exponent.tensor.detach()
    if values.numel() == 0 or bool((values != values.reshape(-1)[0]).any()):
        return view.unsupported("Pow has to have one constant exponent")
    x, _ = view.with_constant(view.activation(0), values)
    c = view.computed(lambda t: t.reshape(-1)[0], exponent)
    if float(c) == 1:
        return x
    return view.emit(Power(float(c)), (x,), x.shape)


def build_identity(view: NodeView) -> Value:
    """Identity, and Dropout at inference."""
    if view.n_outputs > 1:
        return view.unsupported(f"the second output of {view.op_type} has no rules here")
    return view.activation(0)


def build_dropout(view: NodeView) -> Value:
    """Dropout keeps its input at inference, whatever the ratio."""
    training = view.input(2)
    if training is not None and view.int_list(2) not in ((0,), ()):
        return view.unsupported("Dropout in training mode has no rules here; export in evaluation mode")
    return build_identity(view)


def build_cast(view: NodeView) -> Value:
    """Cast between FLOAT and DOUBLE: the run's own element type is kept."""
    target = view.attributes.integer("to", 0)
    if target not in _FLOAT_TYPES:
        return view.unsupported(f"Cast to element type {target} has no rules here (only FLOAT and DOUBLE)")
    return view.activation(0)


def build_cast_like(view: NodeView) -> Value:
    """CastLike between floating-point values: the run's own element type is kept."""
    for value in view.inputs:
        if isinstance(value, Constant) and not value.tensor.is_floating_point():
            if value is view.inputs[0] and isinstance(view.inputs[1], Activation):
                return Constant(view.computed(lambda t: t.to(view.assembler.dtype), value), view.name)
            return view.unsupported("CastLike to or from whole numbers has no rules here")
    first = view.inputs[0]
    return view.wrong("input 0 is missing") if first is None else first


def build_abs(view: NodeView) -> Value:
    """``|x|``."""
    return _elementwise(view, Abs())


def build_sign(view: NodeView) -> Value:
    """-1, 0 or 1."""
    return _elementwise(view, Sign())


def build_sigmoid(view: NodeView) -> Value:
    """``1 / (1 + exp(-x))``."""
    return _elementwise(view, Sigmoid())


def build_tanh(view: NodeView) -> Value:
    """Hyperbolic tangent."""
    return _elementwise(view, Tanh())


BUILDERS: Mapping[str, Builder] = {
    "Relu": build_relu,
    "LeakyRelu": build_leaky_relu,
    "Clip": build_clip,
    "Max": build_max,
    "Min": build_min,
    "Pow": build_pow,
    "Identity": build_identity,
    "Dropout": build_dropout,
    "Cast": build_cast,
    "CastLike": build_cast_like,
    "Abs": build_abs,
    "Sign": build_sign,
    "Sigmoid": build_sigmoid,
    "Tanh": build_tanh,
}

"""Products and quotients whose factors both depend on the input: Mul, Div and MatMul of two activations."""

from __future__ import annotations

from auto_LiRPA.graph.layout import Activation, Value
from auto_LiRPA.graph.node_view import NodeView
from auto_LiRPA.operators.arithmetic import Affine
from auto_LiRPA.operators.bilinear import MatMul, Mul
from auto_LiRPA.operators.exponential import Reciprocal
from auto_LiRPA.operators.smooth import Power


def product(view: NodeView, x: Activation, y: Activation) -> Activation:
    """``x * y``; a value times itself is its square."""
    if x == y:
        return view.emit(Power(2.0), (x,), x.shape)
    x, y = view.with_branch(x, y)
    return view.emit(Mul(), (x, y), x.shape)


def quotient(view: NodeView, a: Value, y: Activation) -> Activation:
    """``a / y`` as ``a * (1 / y)``."""
    inverse = view.emit(Reciprocal(), (y,), y.shape)
    if isinstance(a, Activation):
        return product(view, a, inverse)
    inverse, scale = view.with_constant(inverse, a.tensor)
    return view.emit(Affine(scale, None), (inverse,), inverse.shape)


def matrix_product(view: NodeView, x: Activation, y: Activation) -> Activation:
    """``x @ y``: one product per leading index; the batch is a leading axis of both (or of neither)."""
    if min(x.rank, y.rank) < 2:
        return view.unsupported("a product of a vector and a matrix that both depend on the input has no rules here")
    averages = getattr(view.assembler.nodes[x.node].op, "on_simplex", False) and _last_axis_kept(view, x)
    rank = max(x.rank, y.rank)
    x, y = view.aligned(_whole(view, x), rank), view.aligned(_whole(view, y), rank)
    if x.batch != y.batch:
        x, y = view.one_batch(x, y)
    if x.shape[-1] != y.shape[-2]:
        return view.wrong(f"the inner lengths {x.shape[-1]} and {y.shape[-2]} differ")
    lead = view.broadcast(x.shape[:-2], y.shape[:-2])
    x, y = view.expanded(x, (*lead, *x.shape[-2:])), view.expanded(y, (*lead, *y.shape[-2:]))
    return view.emit(MatMul(averages), (x, y), (*lead, x.shape[-2], y.shape[-1]))


def _last_axis_kept(view: NodeView, x: Activation) -> bool:
    """Whether the value's last axis is the one that its Softmax went along."""
    return x.shape == view.assembler.nodes[x.node].shape and x.batch != x.rank - 1


def _whole(view: NodeView, x: Activation) -> Activation:
    """The value with its batch on a leading axis: on one of the matrix's own axes samples would mix."""
    if x.folded and x.rank > 2:
        return x
    if x.folded or (x.batch is not None and x.batch >= x.rank - 2):
        return view.without_batch(x)
    return x

"""Gemm and MatMul with a constant on either side -> Linear (with Transposes where the constant stands on the left)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from auto_LiRPA.graph.builders_products import matrix_product
from auto_LiRPA.graph.layout import Activation, Constant, Value
from auto_LiRPA.graph.node_view import Builder, NodeView
from auto_LiRPA.operators.arithmetic import Add, Affine
from auto_LiRPA.operators.linear import Linear


def build_matmul(view: NodeView) -> Value:
    """Matrix products, of a value and a constant or of two values."""
    left, right = view.input(0), view.input(1)
    if isinstance(left, Activation) and isinstance(right, Constant):
        return times_constant(view, left, right)
    if isinstance(left, Constant) and isinstance(right, Activation):
        return constant_times(view, left, right)
    return matrix_product(view, view.activation(0), view.activation(1))


def build_gemm(view: NodeView) -> Value:
    """``alpha * A' B' + beta * C``."""
    attributes = view.attributes
    trans_a, trans_b = attributes.integer("transA", 0) != 0, attributes.integer("transB", 0) != 0
    alpha, beta = attributes.number("alpha", 1.0), attributes.number("beta", 1.0)
    left, right = view.input(0), view.input(1)
    for value in (left, right):
        if value is None or len(view.shape(value)) != 2:
            return view.wrong("A and B have to have 2 axes")
    if isinstance(left, Activation) and isinstance(right, Constant):
        x = view.transposed(left, (1, 0)) if trans_a else left
        y = times_constant(view, x, _turned(right) if trans_b else right, alpha)
    elif isinstance(left, Constant) and isinstance(right, Activation):
        x = view.transposed(right, (1, 0)) if trans_b else right
        y = constant_times(view, _turned(left) if trans_a else left, x, alpha)
    else:
        return view.unsupported("a product of two values that both depend on the input has no rules here")
    return _plus(view, y, view.input(2), beta)


def _plus(view: NodeView, y: Activation, c: Value | None, beta: float) -> Activation:
    if c is None or beta == 0:
        return y
    if isinstance(c, Constant):
        shift = c.tensor if beta == 1 else view.computed(lambda t: t * beta, c)
        y, shift = view.with_constant(y, shift)
        return view.emit(Affine(None, shift), (y,), y.shape)
    if beta != 1:
        c = view.emit(Affine(view.number(beta), None), (c,), c.shape)
    y, c = view.with_branch(y, c)
    return view.emit(Add(), (y, c), y.shape)


def times_constant(view: NodeView, x: Activation, c: Constant, alpha: float = 1.0) -> Activation:
    """``x @ c`` for a vector ``[K]`` or a matrix ``[K, M]`` (leading axes of length 1 allowed)."""
    if x.rank == 0 or c.tensor.dim() == 0:
        return view.wrong("a factor has no axes")
    matrix = _matrix(view, c)
    if c.tensor.dim() > 2:
        x = view.aligned(x, c.tensor.dim())
    vector_result = c.tensor.dim() == 1
    if vector_result:
        matrix = replace(matrix, tensor=matrix.tensor.unsqueeze(1))
    # the constant's length fits one batch length only, so a batch on this axis can only have that one
    x, (axis,) = view.sample_axes(x, (-1,), one_sample=matrix.tensor.shape[0] == x.onnx_shape(1)[-1])
    y = _linear(view, x, _turned(matrix), alpha)
    return view.reshape(y, y.shape[:axis], batch=y.batch, folded=y.folded) if vector_result else y


def constant_times(view: NodeView, c: Constant, x: Activation, alpha: float = 1.0) -> Activation:
    """``c @ x`` for a vector ``[K]`` or a matrix ``[M, K]`` (leading axes of length 1 allowed)."""
    if x.rank == 0 or c.tensor.dim() == 0:
        return view.wrong("a factor has no axes")
    matrix = _matrix(view, c)
    if c.tensor.dim() > 2:
        x = view.aligned(x, c.tensor.dim())
    vector_result = c.tensor.dim() == 1
    if vector_result:
        matrix = replace(matrix, tensor=matrix.tensor.unsqueeze(0))
    onnx_axis = max(x.rank - 2, 0)
    one_sample = matrix.tensor.shape[1] == x.onnx_shape(1)[onnx_axis]
    x, (axis,) = view.sample_axes(x, (onnx_axis,), one_sample=one_sample)
    swapped = axis != len(x.shape) - 1
    order = (*range(x.rank - 2), x.rank - 1, x.rank - 2)
    y = _linear(view, view.transposed(x, order) if swapped else x, matrix, alpha)
    if swapped:
        y = view.transposed(y, order)
    if not vector_result:
        return y
    batch = y.batch if y.batch is None or y.batch < onnx_axis else y.batch - 1
    return view.reshape(y, y.shape[:axis] + y.shape[axis + 1 :], batch=batch)


def _linear(view: NodeView, x: Activation, matrix: Constant, alpha: float) -> Activation:
    """Linear over the last per-sample axis; ``matrix`` is ``[out, in]``."""
    shape = matrix.tensor.shape
    if shape[1] != x.shape[-1]:
        view.wrong(f"the weight takes {shape[1]} values but its input has {x.shape[-1]}")
    if shape[0] == 0 or shape[1] == 0:
        view.wrong(f"the weight is empty: {list(shape)}")
    scale_after = alpha != 1 and matrix.source is not None
    if alpha != 1 and not scale_after:
        matrix = view.assembler.settled(matrix)
        matrix = replace(matrix, tensor=matrix.tensor * alpha)
    op = Linear(view.assembler.place(matrix))
    y = view.emit(op, (x,), (*x.shape[:-1], shape[0]))
    if scale_after:
        # the parameter stays shared with its module, so the factor gets a node of its own
        y = view.emit(Affine(view.number(alpha), None), (y,), y.shape)
    return y


def _matrix(view: NodeView, c: Constant) -> Constant:
    """A constant factor without its leading axes of length 1."""
    if any(s != 1 for s in c.tensor.shape[:-2]):
        return view.unsupported("a constant factor with several matrices has no rules here")
    return replace(c, tensor=c.tensor.reshape(c.tensor.shape[-2:])) if c.tensor.dim() > 2 else c


def _turned(c: Constant) -> Constant:
    return replace(c, tensor=_transpose(c.tensor))


def _transpose(matrix: Tensor) -> Tensor:
    """``matrix.T``, giving back the parameter itself (not a view of a view) where it is one's transpose."""
    base = matrix._base
    if base is not None and base.dim() == 2 and base.shape == matrix.shape[::-1]:
        if base.data_ptr() == matrix.data_ptr() and base.stride() == matrix.stride()[::-1]:
            return base
    return matrix.t()


BUILDERS: Mapping[str, Builder] = {"MatMul": build_matmul, "Gemm": build_gemm}

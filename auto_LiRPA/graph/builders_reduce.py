"""ReduceSum and ReduceMean over axes of the sample."""

from __future__ import annotations

from collections.abc import Mapping

from auto_LiRPA.graph.layout import Activation, Value
from auto_LiRPA.graph.node_view import Builder, NodeView
from auto_LiRPA.operators.reduce import ReduceMean, ReduceSum

# the opset in which the axes moved from an attribute to an input
_AXES_INPUT_SINCE = {"ReduceSum": 13, "ReduceMean": 18}


def build_reduce(view: NodeView) -> Value:
    """Axes by attribute or input; none at all means every axis."""
    op_type = view.op_type
    x = view.activation(0)
    by_input = view.opset >= _AXES_INPUT_SINCE[op_type]
    axes = view.int_list(1) if by_input else view.attributes.ints("axes")
    if not axes:
        if by_input and view.attributes.integer("noop_with_empty_axes", 0):
            return x
        axes = tuple(range(x.rank))
    numbers = {view.axis_number(a, x.rank) for a in axes}
    x, sample_axes = view.sample_axes(x, tuple(sorted(numbers)))
    keepdims = view.attributes.integer("keepdims", 1) != 0
    if not sample_axes:
        return x
    op = (ReduceSum if op_type == "ReduceSum" else ReduceMean)(sample_axes, keepdims, x.shape)
    if keepdims:
        return view.emit(op, (x,), tuple(1 if a in sample_axes else s for a, s in enumerate(x.shape)))
    shape = tuple(s for a, s in enumerate(x.shape) if a not in sample_axes)
    batch = x.batch
    if batch is not None:
        batch -= sum(1 for n in numbers if n < batch)
    return Activation(view.assembler.emit(op, (x.node,), shape), shape, batch, x.folded)


BUILDERS: Mapping[str, Builder] = {"ReduceSum": build_reduce, "ReduceMean": build_reduce}

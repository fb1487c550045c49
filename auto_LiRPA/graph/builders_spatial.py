"""Conv, AveragePool, MaxPool, GlobalAveragePool: windows over ``(channels, *spatial)`` with the batch on axis 0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from auto_LiRPA.graph.layout import Activation, Value
from auto_LiRPA.graph.node_view import Builder, NodeView
from auto_LiRPA.operators.conv import Conv
from auto_LiRPA.operators.pooling import AveragePool, MaxPool
from auto_LiRPA.operators.reduce import ReduceMean
from auto_LiRPA.operators.shape import PadConstant


@dataclass(frozen=True, slots=True)
class Windows:
    """Geometry of a node's windows, one entry per spatial axis, and the resulting spatial size."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    out: tuple[int, ...]


def _windows(view: NodeView, spatial: tuple[int, ...], kernel: tuple[int, ...], ceil_mode: bool) -> Windows:
    """Read strides, dilations, pads or auto_pad."""
    n = len(spatial)
    attributes = view.attributes
    stride = attributes.ints("strides") or (1,) * n
    dilation = attributes.ints("dilations") or (1,) * n
    pads = attributes.ints("pads") or (0,) * (2 * n)
    if len(kernel) != n or len(stride) != n or len(dilation) != n or len(pads) != 2 * n:
        view.wrong(f"kernel, strides, dilations or pads do not fit {n} spatial axes")
    if min(kernel) < 1 or min(stride) < 1 or min(dilation) < 1 or min(pads) < 0:
        view.wrong(f"kernel {kernel}, strides {stride}, dilations {dilation} or pads {pads} are out of range")
    before, after = pads[:n], pads[n:]
    spans = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    auto = attributes.text("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        same = tuple(-(-size // s) for size, s in zip(spatial, stride, strict=True))
        total = tuple(
            max((o - 1) * s + span - size, 0) for o, s, span, size in zip(same, stride, spans, spatial, strict=True)
        )
        small, large = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
        before, after = (small, large) if auto == "SAME_UPPER" else (large, small)
        ceil_mode = False
    elif auto == "VALID":
        before = after = (0,) * n
    elif auto != "NOTSET":
        view.wrong(f"auto_pad {auto!r} is unknown")
    lengths = []
    for size, span, s, b, a in zip(spatial, spans, stride, before, after, strict=True):
        room = size + b + a - span
        if room < 0:
            view.wrong(f"a window of length {span} does not fit into {size + b + a} entries")
        steps = -(-room // s) if ceil_mode else room // s
        # a window that would begin in the padding behind the input is left out
        lengths.append(steps if ceil_mode and steps * s >= size + b else steps + 1)
    return Windows(kernel, stride, dilation, before, after, tuple(lengths))


def _image(view: NodeView, axes: tuple[int, ...] = (1, 2)) -> Activation:
    x = view.batch_first(view.activation(0))
    if len(x.shape) - 1 not in axes:
        return view.unsupported(f"{len(x.shape) - 1} spatial axes have no rules here (only {axes})")
    return x


def build_conv(view: NodeView) -> Value:
    """Conv in 1 or 2 dimensions with a constant kernel; unequal pads become a PadConstant in front."""
    weight, bias = view.required(1), view.constant(2)
    x = _image(view)
    channels, *spatial = x.shape
    groups = view.attributes.integer("group", 1)
    if weight.tensor.dim() != len(x.shape) + 1:
        return view.wrong(f"the weight has {weight.tensor.dim()} axes for an input with {x.rank}")
    out_channels, per_group, *kernel = weight.tensor.shape
    if groups < 1 or per_group * groups != channels or out_channels % groups or out_channels == 0:
        return view.wrong(f"weight {list(weight.tensor.shape)} and group = {groups} do not fit {channels} channels")
    declared = view.attributes.ints("kernel_shape")
    if declared is not None and declared != tuple(kernel):
        return view.wrong(f"kernel_shape {list(declared)} is not that of the weight {list(weight.tensor.shape)}")
    if bias is not None and tuple(bias.tensor.shape) != (out_channels,):
        return view.wrong(f"the bias has shape {list(bias.tensor.shape)} for {out_channels} channels")
    windows = _windows(view, tuple(spatial), tuple(kernel), ceil_mode=False)
    padding = windows.before
    if windows.before != windows.after:
        before, after = (0, *windows.before), (0, *windows.after)
        shape = tuple(b + s + a for b, s, a in zip(before, x.shape, after, strict=True))
        x = view.emit(PadConstant(before, after, None), (x,), shape)
        padding = (0,) * len(padding)
    op = Conv(
        view.assembler.place(weight),
        None if bias is None else bias.tensor,
        windows.stride,
        padding,
        windows.dilation,
        groups,
        x.shape,
    )
    return view.emit(op, (x,), (out_channels, *windows.out))


def build_average_pool(view: NodeView) -> Value:
    """AveragePool in 1 or 2 dimensions."""
    x = _image(view)
    ceil_mode = view.attributes.integer("ceil_mode", 0) != 0
    windows = _windows(view, x.shape[1:], _kernel(view), ceil_mode)
    if any(d != 1 for d in windows.dilation):
        return view.unsupported(f"AveragePool with dilations {list(windows.dilation)} has no rules here")
    include = view.attributes.integer("count_include_pad", 0) != 0
    shape = (x.shape[0], *windows.out)
    op = AveragePool(
        windows.kernel, windows.stride, (windows.before, windows.after), ceil_mode, include, x.shape, shape
    )
    return view.emit(op, (x,), shape)


def build_max_pool(view: NodeView) -> Value:
    """MaxPool in 1 or 2 dimensions; its second output (indices) has no rules."""
    if view.n_outputs > 1:
        return view.unsupported("the second output of MaxPool has no rules here")
    x = _image(view)
    ceil_mode = view.attributes.integer("ceil_mode", 0) != 0
    windows = _windows(view, x.shape[1:], _kernel(view), ceil_mode)
    shape = (x.shape[0], *windows.out)
    op = MaxPool(
        windows.kernel,
        windows.stride,
        (windows.before, windows.after),
        windows.dilation,
        ceil_mode,
        x.shape,
        shape,
    )
    return view.emit(op, (x,), shape)


def build_global_average_pool(view: NodeView) -> Value:
    """Mean over all spatial axes, which stay with length 1."""
    x = view.activation(0)
    x, axes = view.sample_axes(x, tuple(range(2, x.rank)))
    shape = tuple(1 if a in axes else s for a, s in enumerate(x.shape))
    return view.emit(ReduceMean(axes, True, x.shape), (x,), shape)


def _kernel(view: NodeView) -> tuple[int, ...]:
    kernel = view.attributes.ints("kernel_shape")
    return view.wrong("kernel_shape is missing") if kernel is None else kernel


BUILDERS: Mapping[str, Builder] = {
    "Conv": build_conv,
    "AveragePool": build_average_pool,
    "MaxPool": build_max_pool,
    "GlobalAveragePool": build_global_average_pool,
}

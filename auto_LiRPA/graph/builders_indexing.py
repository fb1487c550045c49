"""Slice, Gather, Split, Concat and Pad -> Cut, Select, Concat and PadConstant along per-sample axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from auto_LiRPA.graph.layout import Activation, Constant, Value
from auto_LiRPA.graph.node_view import Builder, NodeView
from auto_LiRPA.operators.shape import Concat, Cut, PadConstant, Select

_PAD_MODES: Mapping[str, Literal["reflect", "edge", "wrap"]] = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}


def picked(view: NodeView, x: Activation, axis: int, indices: range) -> Activation:
    """Entries ``indices`` along per-sample ``axis``."""
    length = x.shape[axis]
    if indices == range(length):
        return x
    shape = (*x.shape[:axis], len(indices), *x.shape[axis + 1 :])
    if indices.step == 1:
        return view.emit(Cut(axis, indices.start, indices.stop, x.shape), (x,), shape)
    return view.emit(Select(axis, view.indices(list(indices)), x.shape), (x,), shape)


def build_slice(view: NodeView) -> Value:
    """Ranges along some axes, steps of any sign; attributes before opset 10, inputs since."""
    x = view.activation(0)
    if view.opset < 10:
        starts, ends = view.attributes.ints("starts"), view.attributes.ints("ends")
        axes, steps = view.attributes.ints("axes"), None
    else:
        starts, ends, axes, steps = (view.int_list(i) for i in range(1, 5))
    if starts is None or ends is None:
        return view.wrong("starts or ends are missing")
    axes = tuple(range(len(starts))) if axes is None else axes
    steps = (1,) * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        return view.wrong("starts, ends, axes and steps do not fit together")
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        number = view.axis_number(axis, x.rank)
        length = view.shape(x)[number]
        indices = range(*slice(start, end, step).indices(length))
        if indices == range(length):
            continue
        if len(indices) == 0:
            return view.unsupported(f"axis {axis} would be left empty")
        x, sample = view.sample_axes(x, (number,))
        x = picked(view, x, sample[0], indices)
    return x


def build_gather(view: NodeView) -> Value:
    """Constant indices of any rank along one axis; a single number drops the axis."""
    x = view.activation(0)
    index = view.required(1).tensor
    if index.is_floating_point():
        return view.wrong("the indices have to be whole numbers")
    number = view.axis_number(view.attributes.integer("axis", 0), x.rank)
    length = view.shape(x)[number]
    values = [int(v) for v in index.reshape(-1).tolist()]
    if any(not -length <= v < length for v in values):
        return view.wrong(f"an index is outside an axis of length {length}")
    if not values:
        return view.unsupported("an empty list of indices")
    if index.dim() == 1 and values == list(range(length)):
        return x
    x, (axis,) = view.sample_axes(x, (number,))
    values = [v + length if v < 0 else v for v in values]
    y = _selected(view, x, axis, values)
    shape = (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
    batch = x.batch if x.batch is None or x.batch < number else x.batch - 1 + index.dim()
    return view.reshape(y, shape, batch=batch, folded=x.folded)


def _selected(view: NodeView, x: Activation, axis: int, values: list[int]) -> Activation:
    run = range(values[0], values[0] + len(values))
    if values == list(run):
        return picked(view, x, axis, run)
    shape = (*x.shape[:axis], len(values), *x.shape[axis + 1 :])
    return view.emit(Select(axis, view.indices(values), x.shape), (x,), shape)


def build_split(view: NodeView) -> tuple[Value, ...]:
    """Consecutive parts along one axis; sizes as attribute, input, or equal (the last one smaller)."""
    x = view.activation(0)
    number = view.axis_number(view.attributes.integer("axis", 0), x.rank)
    length = view.shape(x)[number]
    sizes = view.attributes.ints("split") if view.opset < 13 else view.int_list(1)
    if sizes is None:
        count = view.attributes.integer("num_outputs", view.outputs_declared)
        if count < 1:
            return view.wrong("num_outputs has to be positive")
        each = -(-length // count)
        sizes = tuple(min(each, length - i * each) for i in range(count))
    if sum(sizes) != length or min(sizes) <= 0:
        return view.wrong(f"parts {list(sizes)} do not fill an axis of length {length}")
    if len(sizes) == 1:
        return (x,)
    x, (axis,) = view.sample_axes(x, (number,))
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(picked(view, x, axis, range(s, s + size)) for s, size in zip(starts, sizes, strict=True))


def build_concat(view: NodeView) -> Value:
    """Parts joined along one axis. Constants are written into the padding of the part beside them."""
    values = [v for v in view.inputs if v is not None]
    branches = [v for v in values if isinstance(v, Activation)]
    rank = branches[0].rank
    if any(len(view.shape(v)) != rank for v in values):
        return view.wrong("the parts have different numbers of axes")
    number = view.axis_number(view.attributes.integer("axis", 1), rank)
    branches = _one_layout(view, branches, number)
    axis = branches[0].sample_axis(number)
    assert axis is not None
    rest = iter(branches)
    parts = [next(rest) if isinstance(v, Activation) else _part(view, v, branches[0]) for v in values]
    for part in parts:
        if _without(_part_shape(part), axis) != _without(branches[0].shape, axis):
            return view.wrong(f"the parts differ beside axis {number}")
    joined = _absorb_constants(view, parts, axis)
    if len(joined) == 1:
        return joined[0]
    sizes = tuple(p.shape[axis] for p in joined)
    shape = (*joined[0].shape[:axis], sum(sizes), *joined[0].shape[axis + 1 :])
    return view.emit(Concat(axis, sizes), joined, shape)


def _one_layout(view: NodeView, branches: list[Activation], number: int) -> list[Activation]:
    """All branches with the same batch axis, which is not the one to join along."""
    first = branches[0]
    if all(b.batch == first.batch and b.folded == first.folded for b in branches):
        alike = not first.folded or all(b.shape[0] == first.shape[0] for b in branches)
        if alike and first.sample_axis(number) is not None and not (first.folded and number == 0):
            return branches
    return [view.without_batch(b) for b in branches]


def _part(view: NodeView, value: Constant, like: Activation) -> Constant:
    """A constant part without the batch axis."""
    tensor = value.tensor
    if like.batch is not None:
        length = tensor.shape[like.batch]
        if length != view.assembler.batch.size or bool((tensor != tensor.narrow(like.batch, 0, 1)).any()):
            view.wrong(f"{value.name} has length {length} on the batch axis {like.batch}")
        tensor = tensor.select(like.batch, 0)
    return Constant(tensor, value.name, value.source)


def _part_shape(part: Activation | Constant) -> tuple[int, ...]:
    return part.shape if isinstance(part, Activation) else tuple(part.tensor.shape)


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def _absorb_constants(view: NodeView, parts: list[Activation | Constant], axis: int) -> list[Activation]:
    """Constants go in front of the next branch; those at the end behind the last one."""
    joined: list[Activation] = []
    waiting: list[Constant] = []
    last = max(i for i, p in enumerate(parts) if isinstance(p, Activation))
    for i, part in enumerate(parts[: last + 1]):
        if isinstance(part, Constant):
            waiting.append(part)
            continue
        behind = [p for p in parts[last + 1 :] if isinstance(p, Constant)] if i == last else []
        joined.append(_surrounded(view, part, waiting, behind, axis))
        waiting = []
    return joined


def _surrounded(view: NodeView, x: Activation, front: list[Constant], behind: list[Constant], axis: int) -> Activation:
    """Constants joined to both sides of ``x``."""
    if not front and not behind:
        return x

    def fill(*tensors: Tensor) -> Tensor:
        middle = tensors[0].new_zeros(x.shape)
        return torch.cat([*tensors[: len(front)], middle, *tensors[len(front) :]], dim=axis)

    before, after = [0] * len(x.shape), [0] * len(x.shape)
    before[axis] = sum(c.tensor.shape[axis] for c in front)
    after[axis] = sum(c.tensor.shape[axis] for c in behind)
    values = view.computed(fill, *front, *behind)
    op = PadConstant(tuple(before), tuple(after), values)
    return view.emit(op, (x,), tuple(values.shape))


def build_pad(view: NodeView) -> Value:
    """Constant, reflected or repeated borders; negative numbers cut."""
    x = view.activation(0)
    if view.opset < 11:
        pads = view.attributes.ints("pads") or view.attributes.ints("paddings")
        value = view.attributes.number("value", 0.0)
        axes = None
    else:
        pads, value, axes = view.int_list(1), view.scalar(2) or 0.0, view.int_list(3)
    if pads is None:
        return view.wrong("pads are missing")
    numbers = tuple(range(x.rank)) if axes is None else tuple(view.axis_number(a, x.rank) for a in axes)
    if len(pads) != 2 * len(numbers):
        return view.wrong(f"{len(pads)} pads for {len(numbers)} axes")
    wanted = {n: (b, a) for n, b, a in zip(numbers, pads[: len(numbers)], pads[len(numbers) :], strict=True) if b or a}
    x, sample_axes = view.sample_axes(x, tuple(wanted))
    sides = dict(zip(sample_axes, wanted.values(), strict=True))
    for axis, (b, a) in sides.items():
        if x.shape[axis] + min(b, 0) + min(a, 0) <= 0:
            return view.unsupported(f"negative pads leave nothing of axis {axis}")
        x = picked(view, x, axis, range(max(-b, 0), x.shape[axis] - max(-a, 0)))
    mode = view.attributes.text("mode", "constant")
    if mode == "constant":
        return _padded(view, x, sides, value)
    if mode not in _PAD_MODES:
        return view.unsupported(f"Pad mode {mode!r} has no rules here")
    for axis, (b, a) in sides.items():
        order = np.arange(x.shape[axis])
        border = np.pad(order, (max(b, 0), max(a, 0)), mode=_PAD_MODES[mode])
        x = _selected(view, x, axis, border.tolist())
    return x


def _padded(view: NodeView, x: Activation, sides: dict[int, tuple[int, int]], value: float) -> Activation:
    before = tuple(max(sides.get(i, (0, 0))[0], 0) for i in range(len(x.shape)))
    after = tuple(max(sides.get(i, (0, 0))[1], 0) for i in range(len(x.shape)))
    if not any(before) and not any(after):
        return x
    shape = tuple(b + s + a for b, s, a in zip(before, x.shape, after, strict=True))
    fill = None
    if value != 0:
        fill = view.number(value).expand(shape).clone()
        inner = fill
        for axis, (b, size) in enumerate(zip(before, x.shape, strict=True)):
            inner = inner.narrow(axis, b, size)
        inner.zero_()
    return view.emit(PadConstant(before, after, fill), (x,), shape)


BUILDERS: Mapping[str, Builder] = {
    "Slice": build_slice,
    "Gather": build_gather,
    "Split": build_split,
    "Concat": build_concat,
    "Pad": build_pad,
}

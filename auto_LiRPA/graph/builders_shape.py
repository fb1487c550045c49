"""Reshape, Flatten, Squeeze, Unsqueeze, Transpose, Expand, Shape and Size, with the batch axis followed or repaired."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from auto_LiRPA.graph.layout import Activation, Constant, Value
from auto_LiRPA.graph.node_view import Builder, NodeView


def build_reshape(view: NodeView) -> Value:
    """Reshape to a constant shape; 0 copies a length (unless allowzero), -1 takes what is left."""
    x = view.activation(0)
    target = view.attributes.ints("shape") if view.opset < 5 else view.int_list(1)
    if target is None:
        return view.wrong("the target shape is missing")
    allow_zero = view.attributes.integer("allowzero", 0) != 0
    return reshaped(view, x, _resolve(view, view.shape(x), target, allow_zero))


def _resolve(view: NodeView, source: tuple[int, ...], target: tuple[int, ...], allow_zero: bool) -> tuple[int, ...]:
    """The target with its 0 and -1 replaced, at the file's own batch size."""
    if target.count(-1) > 1 or any(t < -1 for t in target):
        view.wrong(f"target shape {list(target)} is not valid")
    if not allow_zero:
        if any(t == 0 and i >= len(source) for i, t in enumerate(target)):
            view.wrong(f"target shape {list(target)} copies an axis that {list(source)} does not have")
        target = tuple(source[i] if t == 0 else t for i, t in enumerate(target))
    total = math.prod(source)
    if -1 in target:
        known = math.prod(t for t in target if t != -1)
        if known == 0 or total % known:
            view.wrong(f"target shape {list(target)} does not fit {list(source)}")
        target = tuple(total // known if t == -1 else t for t in target)
    if math.prod(target) != total:
        view.wrong(f"target shape {list(target)} does not fit {list(source)}")
    return target


def reshaped(view: NodeView, x: Activation, target: tuple[int, ...]) -> Activation:
    """The value in ONNX shape ``target`` (at the file's batch size), repaired where a 1 stands for the batch.

    A shape that was fixed at export for one sample is safe for any number of samples if each sample keeps all its
    entries in their order. That holds where an axis of ``target`` has as many entries before it and behind it as the
    batch axis had; where the batch is outermost it also holds if it is only multiplied into axis 0 (`folded`).
    """
    rule = view.assembler.batch
    source = view.shape(x)
    if x.batch is not None:
        before, behind = math.prod(source[: x.batch]), math.prod(source[x.batch + 1 :])
        for i, length in enumerate(target):
            if length == rule.size and (math.prod(target[:i]), math.prod(target[i + 1 :])) == (before, behind):
                return view.reshape(x, target[:i] + target[i + 1 :], batch=i)
    leads = target[:1] == (1,)
    if x.folded or (x.batch == 0 and rule.size == 1):
        # the batch is outermost, so samples stay whole whatever the shape
        if leads:
            return view.reshape(x, target[1:], batch=0)
        return view.reshape(x, target, batch=None, folded=True)
    if x.batch is not None:
        x = view.without_batch(x)
    if leads and rule.batched:
        # the batch axis was dropped before and comes back
        return view.reshape(x, target[1:], batch=0)
    return view.reshape(x, target, batch=None)


def build_flatten(view: NodeView) -> Value:
    """Two axes: what stands before ``axis`` and the rest."""
    x = view.activation(0)
    axis = view.attributes.integer("axis", 1)
    axis = axis if axis == x.rank else view.axis_number(axis, x.rank)
    if axis == 0:
        x = view.without_batch(x)
    shape = view.shape(x)
    return reshaped(view, x, (math.prod(shape[:axis]), math.prod(shape[axis:])))


def build_squeeze(view: NodeView) -> Value:
    """Axes of length 1 removed: those named, or all."""
    x = view.activation(0)
    axes = view.attributes.ints("axes") if view.opset < 13 else view.int_list(1)
    shape = view.shape(x)
    numbers = {view.axis_number(a, x.rank) for a in axes} if axes else {i for i, s in enumerate(shape) if s == 1}
    if any(shape[i] != 1 for i in numbers):
        return view.wrong(f"axes {sorted(numbers)} of {list(shape)} are not all of length 1")
    if x.batch in numbers or (x.folded and 0 in numbers):
        # an axis that is removed has length 1, so this network is for one sample
        x = view.without_batch(x, one_sample=True)
    kept = tuple(s for i, s in enumerate(x.onnx_shape(1)) if i not in numbers and i != x.batch)
    batch = None if x.batch is None else x.batch - sum(1 for i in numbers if i < x.batch)
    return view.reshape(x, kept, batch=batch, folded=x.folded)


def build_unsqueeze(view: NodeView) -> Value:
    """Axes of length 1 put in; their numbers count in the result."""
    x = view.activation(0)
    axes = view.attributes.ints("axes") if view.opset < 13 else view.int_list(1)
    if axes is None:
        return view.wrong("axes are missing")
    rank = x.rank + len(axes)
    numbers = {view.axis_number(a, rank) for a in axes}
    if len(numbers) != len(axes):
        return view.wrong(f"axes {list(axes)} repeat")
    if x.folded and 0 in numbers:
        # the batch is outermost: one new axis in front of all samples
        x = view.without_batch(x)
    if x.batch is None and not x.folded and view.assembler.batch.batched and 0 in numbers:
        numbers -= {0}
        return view.reshape(x, _with_ones(x.shape, {n - 1 for n in numbers}), batch=0)
    if x.batch is None:
        return view.reshape(x, _with_ones(x.shape, numbers), batch=None, folded=x.folded)
    kept = [i for i in range(rank) if i not in numbers]
    batch = kept[x.batch]
    return view.reshape(x, _with_ones(x.shape, {n - (n > batch) for n in numbers}), batch=batch)


def _with_ones(shape: tuple[int, ...], positions: set[int]) -> tuple[int, ...]:
    """``shape`` with ones so that they stand at ``positions`` of the result."""
    rest = iter(shape)
    return tuple(1 if i in positions else next(rest) for i in range(len(shape) + len(positions)))


def build_transpose(view: NodeView) -> Value:
    """Axes permuted; without ``perm`` reversed."""
    x = view.activation(0)
    perm = view.attributes.ints("perm")
    return view.transposed(x, tuple(reversed(range(x.rank))) if perm is None else perm)


def build_expand(view: NodeView) -> Value:
    """Broadcast to a constant shape."""
    x = view.activation(0)
    target = view.int_list(1)
    if target is None:
        return view.wrong("the target shape is missing")
    # broadcasting against a tensor of that shape (one stored number) is exactly what Expand does
    return view.with_constant(x, torch.zeros(()).expand(target))[0]


def build_shape(view: NodeView) -> Value:
    """The ONNX shape, at the file's own batch size (1 where it is free): what follows is folded."""
    shape = view.shape(view.activation(0))
    start, end = view.attributes.integer("start", 0), view.attributes.integer("end", len(shape))
    return Constant(torch.tensor(shape[start:end], dtype=torch.int64), view.name)


def build_size(view: NodeView) -> Value:
    """Number of entries, at the file's own batch size."""
    return Constant(torch.tensor(math.prod(view.shape(view.activation(0)))), view.name)


BUILDERS: Mapping[str, Builder] = {
    "Reshape": build_reshape,
    "Flatten": build_flatten,
    "Squeeze": build_squeeze,
    "Unsqueeze": build_unsqueeze,
    "Transpose": build_transpose,
    "Expand": build_expand,
    "Shape": build_shape,
    "Size": build_size,
}

"""The network's one input: which axis is the batch, what a sample's shape is, and what ``input_shape`` overrides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from auto_LiRPA.errors import ModelError
from auto_LiRPA.graph.assembler import BatchRule

if TYPE_CHECKING:
    from onnx import ValueInfoProto

_FLOAT_TYPES = (1, 11)  # TensorProto.FLOAT, DOUBLE
Dims = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class InputShape:
    """``sample``: per-sample shape that callers use; ``onnx``: the one that the file's nodes expect (equal counts)."""

    sample: tuple[int, ...]
    onnx: tuple[int, ...]
    batch: BatchRule


def declared_dims(value: ValueInfoProto, place: str) -> Dims | None:
    """Lengths in the file, None where one is free (symbolic, unknown, 0 or -1); None if there is no shape at all."""
    if not value.type.HasField("tensor_type"):
        raise ModelError(f"{place}: input {value.name} is not a tensor")
    kind = value.type.tensor_type
    if kind.elem_type not in _FLOAT_TYPES:
        raise ModelError(f"{place}: input {value.name} has element type {kind.elem_type}; only FLOAT and DOUBLE work")
    if not kind.HasField("shape"):
        return None
    return tuple(d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in kind.shape.dim)


def resolve_input(dims: Dims | None, override: Sequence[int] | None, fixed: bool | None, place: str) -> InputShape:
    """Decide batch axis and shapes.

    A leading axis that is free, or 1 in front of others, is the batch. Anything else (``[5]``, ``[3, 32, 32]``) is one
    sample without batch axis. ``override`` says it itself: ``-1`` in front is the batch, no ``-1`` means none.

    Args:
        dims: from `declared_dims`.
        override: the user's ``input_shape``.
        fixed: overrides whether the file's batch size is the only possible one (`BatchRule.fixed`).
        place: file for errors.
    """
    found = _from_file(dims, place) if override is None else _from_override(dims, tuple(override), place)
    if fixed is None or not found.batch.batched:
        return found
    return InputShape(found.sample, found.onnx, BatchRule(True, found.batch.size, fixed))


def _from_file(dims: Dims | None, place: str) -> InputShape:
    if dims is None:
        raise ModelError(f"{place}: the input has no shape; give input_shape (batch as -1)")
    if dims and dims[0] is None:
        batch, rest = BatchRule(True, 1, False), dims[1:]
    elif len(dims) > 1 and dims[0] == 1:
        batch, rest = BatchRule(True, 1, True), dims[1:]
    else:
        batch, rest = BatchRule(False, 1, True), dims
    sample = tuple(d for d in rest if d is not None)
    if len(sample) != len(rest):
        shown = ", ".join("?" if d is None else str(d) for d in dims)
        raise ModelError(f"{place}: the input's shape [{shown}] is not fully known; give input_shape (batch as -1)")
    return InputShape(sample, sample, batch)


def _from_override(dims: Dims | None, override: tuple[int, ...], place: str) -> InputShape:
    batched = override[:1] == (-1,)
    sample = override[1:] if batched else override
    if any(d < 1 for d in sample):
        raise ModelError(f"{place}: input_shape {list(override)} is not valid; -1 may stand in front only (the batch)")
    if dims is None:
        return InputShape(sample, sample, BatchRule(batched, 1, not batched))
    if batched and dims:
        inner = _filled(dims[1:], sample)
        if inner is not None:
            return InputShape(sample, inner, BatchRule(True, dims[0] or 1, dims[0] is not None))
    whole = _filled(dims, sample)
    if whole is None and dims and dims[0] is None and not batched:
        whole = _filled((1, *dims[1:]), sample)
    if whole is None:
        shown = ", ".join("?" if d is None else str(d) for d in dims)
        raise ModelError(f"{place}: input_shape {list(override)} does not fit the file's input [{shown}]")
    return InputShape(sample, whole, BatchRule(False, 1, True))


def _filled(dims: Dims, sample: tuple[int, ...]) -> tuple[int, ...] | None:
    """The file's lengths with free ones taken from ``sample``; None if the two cannot be the same entries."""
    if len(dims) == len(sample):
        filled = tuple(s if d is None else d for d, s in zip(dims, sample, strict=True))
    else:
        filled = tuple(d for d in dims if d is not None)
        if len(filled) != len(dims):
            return None
    return filled if math.prod(filled) == math.prod(sample) else None

"""Counts what operations make: bytes alive at once, floating-point operations. Works on tensors without data too."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Meter(TorchDispatchMode):
    """While active, every storage that an operation makes counts until it is freed.

    ``live``: bytes of those storages now; ``peak``: the most at once since `mark`; ``flops``: multiplications and
    additions of matrix products and convolutions; ``operations``: those that make new memory. Memory that was there
    before (weights) does not count.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch's own hook: no need to import its compiler (two seconds) to keep it away."""
        return False

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self.flops = 0
        self.operations = 0
        self._sizes: dict[int, int] = {}
        self._counts = True

    def mark(self) -> None:
        """The peak counts from here."""
        self.peak = self.live

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is made within does not count."""
        self._counts = False
        try:
            yield
        finally:
            self._counts = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = getattr(func, "overloadpacket", func)
        result = _quick(packet, args, kwargs)
        if result is None:
            result = func(*args, **(kwargs or {}))
        if not self._counts:
            return result
        count = _FLOPS.get(packet)
        if count is not None:
            self.flops += count(args, result)
        before = {_key(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and _key(leaf) not in before:
                self._track(leaf)
        return result

    def _track(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._sizes or size == 0:
            return
        self._sizes[key] = size
        self.operations += 1
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _quick(packet: Any, args: Any, kwargs: Any) -> Tensor | None:
    """The result of an element-wise operation on tensors without data; None: torch has to say.

    Torch's own rules for such tensors are written in Python and take a hundred times as long.
    """
    if not args or not isinstance(args[0], Tensor) or not args[0].is_meta:
        return None
    if packet in _IN_PLACE:
        return args[0]
    if kwargs or (packet not in _ELEMENTWISE and packet not in _TRUTHS):
        return None
    tensors = [a for a in args if isinstance(a, Tensor)]
    kinds = {t.dtype for t in (tensors[1:] if packet is _ATEN.where else tensors) if t.ndim}
    if packet in _ELEMENTWISE and len(kinds) != 1:
        return None
    shape = torch.broadcast_shapes(*(t.shape for t in tensors))
    return torch.empty(shape, dtype=torch.bool if packet in _TRUTHS else kinds.pop(), device="meta")


def _product(first: int, second: int) -> Callable[[Any, Any], int]:
    def flops(args: Any, result: Any) -> int:
        a, b = args[first], args[second]
        return 2 * int(math.prod(a.shape) * b.shape[-1])

    return flops


def _vector(args: Any, result: Any) -> int:
    return 2 * int(math.prod(args[0].shape))


def _convolution(args: Any, result: Any) -> int:
    """Every entry of the input (transposed) or output meets the kernel once per channel of the other side."""
    x, weight, transposed = args[0], args[1], bool(args[6])
    per_position = math.prod(weight.shape) // max(1, weight.shape[0])
    return 2 * int(math.prod(x.shape if transposed else result.shape) * per_position)


_ATEN = torch.ops.aten
_ELEMENTWISE = frozenset(
    {_ATEN.mul, _ATEN.add, _ATEN.sub, _ATEN.abs, _ATEN.neg, _ATEN.addcmul, _ATEN.clone, _ATEN.relu, _ATEN.where}
    | {_ATEN.clamp, _ATEN.clamp_min, _ATEN.clamp_max, _ATEN.maximum, _ATEN.minimum, _ATEN.fmax, _ATEN.fmin}
)
_TRUTHS = frozenset({_ATEN.ge, _ATEN.gt, _ATEN.le, _ATEN.lt, _ATEN.eq, _ATEN.ne})
_IN_PLACE = frozenset(
    {_ATEN.mul_, _ATEN.add_, _ATEN.sub_, _ATEN.div_, _ATEN.addcmul_, _ATEN.addmm_, _ATEN.index_copy_}
    | {_ATEN.clamp_, _ATEN.clamp_min_, _ATEN.clamp_max_, _ATEN.gt_}
)
_FLOPS: Mapping[Any, Callable[[Any, Any], int]] = MappingProxyType(
    {
        _ATEN.mm: _product(0, 1),
        _ATEN.bmm: _product(0, 1),
        _ATEN.addmm: _product(1, 2),
        _ATEN.addmm_: _product(1, 2),
        _ATEN.mv: _vector,
        _ATEN.convolution: _convolution,
    }
)

"""Convolution over one or two spatial axes, with groups, dilation and stride. Exact in every direction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from auto_LiRPA.operators.adjoint import LinearMap, linear_step
from auto_LiRPA.operators.base import LinearOperator
from auto_LiRPA.parallel.store import Weight
from auto_LiRPA.values import Window
from auto_LiRPA.values.windows import whole

SMALL_MAP = 8
# On a GPU many channels on a small map are multiplied as one matrix product: for some numbers of rows cuDNN takes a
# Fourier transform there, whose weights fill a gigabyte (640 channels on 4x4 maps, 46 rows or more, H100: 1.08 ms and
# 980 MiB, as a product 0.21 ms and 24 MiB), and the transposed convolution takes three times as long.
MANY_CHANNELS = 128
SMALL_WINDOW = 4


@dataclass(frozen=True, slots=True)
class _Segment:
    """Consecutive output channels of one block that see ``groups`` whole groups of input channels, or a part of one.

    ``rows``: output channels; ``channels``: the input channels they read; ``data``: their weights.
    """

    rows: slice
    channels: slice
    groups: int
    data: Tensor


@dataclass(frozen=True)
class Conv(LinearOperator):
    """``y = conv(x, weight) + bias`` for per-sample shape ``in_shape = (channels, *spatial)``.

    ``weight``: ``[out, in / groups, *kernel]`` in blocks of output channels; ``bias``: ``[out]`` or None. ``padding``
    holds one number per spatial axis, used on both sides (the reader writes unequal padding as a PadConstant before).
    """

    weight: Weight
    bias: Tensor | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    in_shape: tuple[int, ...]
    recordable: ClassVar[bool] = True

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Per-sample shape of the result."""
        sizes = zip(self.in_shape[1:], self.weight.shape[2:], self.stride, self.padding, self.dilation, strict=True)
        spatial = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)
        return (self.weight.shape[0], *spatial)

    def bias_values(self) -> Tensor | None:
        return None if self.bias is None else self.bias.reshape(-1, *([1] * len(self.stride)))

    def bias_dot(self, coef: Tensor) -> Tensor | None:
        # sums over the spatial axes first: coef * bias is never made
        return None if self.bias is None else coef.flatten(2).sum(2) @ self.bias

    def apply(self, *inputs: Tensor) -> Tensor:
        return self._step(inputs[0], self._times, self._times_transposed)

    def apply_abs(self, *inputs: Tensor) -> Tensor:
        there, back = partial(self._times, absolute=True), partial(self._times_transposed, absolute=True)
        return self._step(inputs[0], there, back)

    def transpose(self, coef: Tensor) -> tuple[Tensor, ...]:
        """The transposed convolution, summed block by block in the store's order (the same in every store)."""
        return (self._step(coef, self._times_transposed, self._times),)

    def _step(self, x: Tensor, there: LinearMap, back: LinearMap) -> Tensor:
        return there(x) if self.weight.requires_grad else linear_step(x, there, back)

    def _times(self, x: Tensor, absolute: bool = False) -> Tensor:
        conv: Callable[..., Tensor] = _CONV[len(self.stride)]
        parts = []
        for part in self._segments(absolute):
            if self._is_product(part):
                parts.append(self._product(x, part))
                continue
            parts.append(
                conv(x[:, part.channels], part.data, None, self.stride, self.padding, self.dilation, part.groups)
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _times_transposed(self, coef: Tensor, absolute: bool = False) -> Tensor:
        out: Tensor | None = None
        for part in self._segments(absolute):
            piece = self._transposed(coef[:, part.rows], part)
            if piece.shape[1] != self.in_shape[0]:
                # a part of the channels. Adding in place is safe for autograd too: a sum saves none of its operands
                out = coef.new_zeros(coef.shape[0], *self.in_shape) if out is None else out
                out[:, part.channels] += piece
            else:
                out = piece if out is None else out.add_(piece)
        assert out is not None
        return out

    def transpose_window(self, coef: Tensor, window: Window) -> tuple[tuple[Tensor, Window], ...] | None:
        """The transposed convolution of a window of the map: what it reaches of the input, without the padding."""
        if self.groups != 1:
            return None
        reach = []
        for axis, (a, b) in enumerate(zip(window.start, window.stop, strict=True)):
            s, p = self.stride[axis], self.padding[axis]
            spread = self.dilation[axis] * (self.weight.shape[2 + axis] - 1)
            reach.append((a * s - p, (b - 1) * s - p + spread + 1))
        inside = Window(
            tuple(max(a, 0) for a, _ in reach),
            tuple(min(b, n) for (_, b), n in zip(reach, self.in_shape[1:], strict=True)),
        )
        if any(n <= 0 for n in inside.size):
            return None
        origin = tuple(a for a, _ in reach)
        cut = Window(
            tuple(a - o for a, o in zip(inside.start, origin, strict=True)),
            tuple(b - o for b, o in zip(inside.stop, origin, strict=True)),
        )
        there, back = partial(self._window, size=window.size, cut=cut), partial(self._unwindow, inside, window)
        return ((self._step(coef, there, back), inside),)

    def _window(self, coef: Tensor, size: tuple[int, ...], cut: Window) -> Tensor:
        """Transposed convolution of a window of ``size``; ``cut``: what lies inside the map."""
        transposed: Callable[..., Tensor] = _TRANSPOSED[len(self.stride)]
        out: Tensor | None = None
        for part in self._segments():
            piece = coef[:, part.rows]
            if all(s == 1 for s in self.stride) and min(size) >= SMALL_WINDOW:
                piece = self._full_convolution(piece, part)
            else:
                piece = transposed(piece, part.data, None, self.stride, 0, 0, 1, self.dilation)
            out = piece if out is None else out.add_(piece)
        assert out is not None
        return cut.crop(out).contiguous()

    def _unwindow(self, inside: Window, window: Window, gradient: Tensor) -> Tensor:
        """The adjoint of `_window`: the convolution of what is zero but ``inside``, seen through the window."""
        return window.crop(self._times(inside.place(gradient, whole(self.in_shape[1:])))).contiguous()

    def _full_convolution(self, coef: Tensor, part: _Segment) -> Tensor:
        """The transposed convolution without stride or padding, as a convolution with the flipped kernel."""
        conv: Callable[..., Tensor] = _CONV[len(self.stride)]
        flipped = part.data.flip(tuple(range(2, part.data.ndim))).transpose(0, 1)
        margin = tuple(d * (k - 1) for k, d in zip(part.data.shape[2:], self.dilation, strict=True))
        return conv(coef, flipped, None, 1, margin, self.dilation, 1)

    def _is_product(self, part: _Segment) -> bool:
        """Whether the convolution, there and back, is a matrix product with all of a map's windows."""
        if not part.data.is_cuda or part.groups != 1 or self.groups != 1 or len(self.stride) != 2:
            return False
        small = min(self.in_shape[1:]) < SMALL_MAP and max(self.weight.shape[2:]) > 1
        return small and min(self.weight.shape[:2]) >= MANY_CHANNELS

    def _product(self, x: Tensor, part: _Segment) -> Tensor:
        (k, q), (s, t), (d, e), (p, r) = self.weight.shape[2:], self.stride, self.dilation, self.padding
        padded = torch.nn.functional.pad(x, (r, r, p, p))
        windows = padded.unfold(2, d * (k - 1) + 1, s)[..., ::d].unfold(3, e * (q - 1) + 1, t)[..., ::e]
        columns = windows.permute(1, 4, 5, 0, 2, 3).reshape(x.shape[1] * k * q, -1)  # [in * k * k, N * map]
        found = (part.data.flatten(1) @ columns).unflatten(1, (x.shape[0], *self.out_shape[1:]))
        return found.transpose(0, 1).contiguous()

    def _product_transposed(self, coef: Tensor, part: _Segment) -> Tensor:
        rows = coef.flatten(2).transpose(0, 1).flatten(1)  # [out, N * map]
        columns = (part.data.flatten(1).t() @ rows).unflatten(1, (coef.shape[0], -1)).transpose(0, 1).contiguous()
        shape, kernel = self.in_shape[1:], self.weight.shape[2:]
        return torch.nn.functional.fold(columns, shape, kernel, self.dilation, self.padding, self.stride)

    def _transposed(self, coef: Tensor, part: _Segment) -> Tensor:
        if self._is_product(part):
            return self._product_transposed(coef, part)
        if self._is_plain_convolution(part):
            conv: Callable[..., Tensor] = _CONV[len(self.stride)]
            flipped = part.data.flip(tuple(range(2, part.data.ndim))).transpose(0, 1)
            kernel = zip(part.data.shape[2:], self.padding, self.dilation, strict=True)
            margin = tuple(d * (k - 1) - p for k, p, d in kernel)
            return conv(coef, flipped, None, 1, margin, self.dilation, 1)
        transposed: Callable[..., Tensor] = _TRANSPOSED[len(self.stride)]
        # a stride that does not divide leaves input entries at the far end that no window reads: they get zeros
        sizes = zip(
            self.in_shape[1:], self.out_shape[1:], part.data.shape[2:], self.stride, self.padding, self.dilation,
            strict=True,
        )  # fmt: skip
        rest = tuple(n - ((m - 1) * s - 2 * p + d * (k - 1) + 1) for n, m, k, s, p, d in sizes)
        return transposed(coef, part.data, None, self.stride, self.padding, rest, part.groups, self.dilation)

    def _is_plain_convolution(self, part: _Segment) -> bool:
        """Whether the transpose is taken as a convolution with the flipped kernel.

        Without stride it is one, and cuDNN runs it 1.2 to 1.7 times as fast as the transposed form, whose FFT kernels
        are also less exact; below 8 entries an axis it is the other way round (measured on an H100).
        """
        if part.groups != 1 or any(s != 1 for s in self.stride) or min(self.in_shape[1:]) < SMALL_MAP:
            return False
        return all(p <= d * (k - 1) for k, p, d in zip(part.data.shape[2:], self.padding, self.dilation, strict=True))

    def _segments(self, absolute: bool = False) -> Iterator[_Segment]:
        """The blocks, cut where they leave a group of channels in the middle."""
        per_out, per_in = self.weight.shape[0] // self.groups, self.in_shape[0] // self.groups
        for block in self.weight.blocks():
            start = block.start
            while start < block.stop:
                first, within = divmod(start, per_out)
                whole = 0 if within else (block.stop - start) // per_out
                stop = start + whole * per_out if whole else min(block.stop, (first + 1) * per_out)
                count = max(whole, 1)
                channels = slice(first * per_in, (first + count) * per_in)
                data = block.data[start - block.start : stop - block.start]
                yield _Segment(slice(start, stop), channels, count, data.abs() if absolute else data)
                start = stop


_CONV = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d}
_TRANSPOSED = {1: torch.nn.functional.conv_transpose1d, 2: torch.nn.functional.conv_transpose2d}

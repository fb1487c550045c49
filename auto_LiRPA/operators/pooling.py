"""Average and max pooling over one or two spatial axes: any window, stride, padding, overlap and ceiling mode.

Everything is written as one strided view of the padded value per position in the window: `view k` holds, for every
window, its k-th entry. Views need no index tensors, and adding them up again (the transpose) is deterministic.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import ClassVar

import torch
from torch import Tensor

from auto_LiRPA.errors import ModelError
from auto_LiRPA.operators.base import (
    AlphaSpec,
    LinearBounds,
    LinearOperator,
    NonlinearOperator,
    Pulled,
    Relaxation,
    RelaxationGradient,
)
from auto_LiRPA.values import Interval

Pads = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Windows:
    """Where the windows lie. All tuples have one entry per spatial axis; ``before`` is the padding in front."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    size: tuple[int, ...]
    out: tuple[int, ...]

    @property
    def count(self) -> int:
        """Entries of one window, padding included."""
        return int(torch.Size(self.kernel).numel())

    @property
    def _span(self) -> tuple[int, ...]:
        """Length that all windows together cover, per axis."""
        axes = zip(self.out, self.kernel, self.stride, self.dilation, strict=True)
        return tuple((o - 1) * s + d * (k - 1) + 1 for o, k, s, d in axes)

    def pad(self, x: Tensor, fill: float) -> Tensor:
        """``[..., *size]`` -> ``[..., *span]``: what the windows cover, no more (negative padding cuts)."""
        pads = [(b, span - b - n) for b, span, n in zip(self.before, self._span, self.size, strict=True)]
        flat = [p for pair in reversed(pads) for p in pair]
        return torch.nn.functional.pad(x, flat, value=fill) if any(flat) else x

    def unpad(self, padded: Tensor) -> Tensor:
        """The transpose of ``pad``: ``[..., *span]`` -> ``[..., *size]``."""
        pads = [(-b, n - (span - b)) for b, span, n in zip(self.before, self._span, self.size, strict=True)]
        flat = [p for pair in reversed(pads) for p in pair]
        return torch.nn.functional.pad(padded, flat) if any(flat) else padded

    def views(self, padded: Tensor) -> Iterator[Tensor]:
        """For each position in the window, that entry of every window: views ``[..., *out]`` of ``[..., *span]``."""
        for offsets in itertools.product(*(range(k) for k in self.kernel)):
            axes = zip(offsets, self.out, self.stride, self.dilation, strict=True)
            index: tuple[EllipsisType | slice, ...] = (
                ...,
                *(slice(i * d, i * d + s * (o - 1) + 1, s) for i, o, s, d in axes),
            )
            yield padded[index]

    def gather(self, x: Tensor, fill: float) -> Tensor:
        """All window entries: ``[..., *size]`` -> ``[..., *out, count]``."""
        return torch.stack(list(self.views(self.pad(x, fill))), dim=-1)

    def zeros(self, like: Tensor, leading: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        """Zeros ``[*leading, *span]`` to add views into, on ``like``'s device."""
        return like.new_zeros((*leading, *self._span), dtype=dtype)


@dataclass(frozen=True)
class AveragePool(LinearOperator):
    """Mean over windows of ``in_shape = (channels, *spatial)``. ``padding``: (before per axis, after per axis).

    With ``count_include_pad`` the divisor counts padding but never what ``ceil_mode`` adds beyond it.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Pads
    ceil_mode: bool
    count_include_pad: bool
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    nonnegative: ClassVar[bool] = True

    @property
    def _windows(self) -> Windows:
        ones = (1,) * len(self.kernel)
        return Windows(self.kernel, self.stride, ones, self.padding[0], self.in_shape[1:], self.out_shape[1:])

    def _scale(self, like: Tensor) -> Tensor | float:
        """One over each window's divisor, broadcastable to ``*out``; a plain number where all windows are alike."""
        per_axis = []
        for axis, (k, s, n, o) in enumerate(
            zip(self.kernel, self.stride, self.in_shape[1:], self.out_shape[1:], strict=True)
        ):
            before, after = self.padding[0][axis], self.padding[1][axis]
            low, high = (-before, n + after) if self.count_include_pad else (0, n)
            starts = [i * s - before for i in range(o)]
            per_axis.append([min(start + k, high) - max(start, low) for start in starts])
        if any(c < 1 for counts in per_axis for c in counts):
            raise ModelError(f"AveragePool over {self.in_shape}: a window holds padding only; use smaller pads")
        if all(c == k for k, counts in zip(self.kernel, per_axis, strict=True) for c in counts):
            return 1 / self._windows.count
        divisor = torch.ones((), dtype=like.dtype, device=like.device)
        for counts in per_axis:
            divisor = divisor.unsqueeze(-1) * torch.tensor(counts, dtype=like.dtype, device=like.device)
        return 1 / divisor

    def apply(self, *inputs: Tensor) -> Tensor:
        windows = self._windows
        views = windows.views(windows.pad(inputs[0], 0.0))
        total = next(views).clone()
        for view in views:
            total += view
        return total * self._scale(total)

    def transpose(self, coef: Tensor) -> tuple[Tensor, ...]:
        windows = self._windows
        share = coef * self._scale(coef)
        padded = windows.zeros(coef, coef.shape[: -len(self.kernel)])
        for view in windows.views(padded):
            view += share
        return (windows.unpad(padded),)


@dataclass(frozen=True)
class MaxPool(NonlinearOperator):
    """Greatest entry of each window of ``in_shape = (channels, *spatial)``; padding never wins.

    ``padding``: (before per axis, after per axis); ``out_shape`` already reflects ``ceil_mode``.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Pads
    dilation: tuple[int, ...]
    ceil_mode: bool
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        axes = zip(
            self.kernel, self.stride, self.dilation, self.padding[0], self.in_shape[1:], self.out_shape[1:],
            strict=True,
        )  # fmt: skip
        for k, s, d, before, n, out in axes:
            if any(all(not 0 <= o * s - before + i * d < n for i in range(k)) for o in range(out)):
                raise ModelError(f"MaxPool over {self.in_shape}: a window holds padding only; use smaller pads")

    @property
    def windows(self) -> Windows:
        """The geometry of the windows."""
        before, _ = self.padding
        return Windows(self.kernel, self.stride, self.dilation, before, self.in_shape[1:], self.out_shape[1:])

    def forward(self, *inputs: Tensor) -> Tensor:
        views = self.windows.views(self.windows.pad(inputs[0], -torch.inf))
        best = next(views)
        for view in views:
            best = torch.maximum(best, view)
        return best

    def interval(self, *inputs: Interval) -> Interval:
        (x,) = inputs
        return Interval(self.forward(x.lower), self.forward(x.upper))

    def relax(self, *boxes: Interval) -> Relaxation:
        return MaxPoolRelaxation(self, boxes[0])

    def needs_tightening(self, *boxes: Interval) -> tuple[Tensor, ...]:
        """Inputs of undecided windows, except those that some other input of the window is always above."""
        pick = choose(self.windows, boxes[0])
        upper = self.windows.gather(boxes[0].upper, -torch.inf)
        # a NaN bound decides nothing
        useful = ~(upper <= pick.best_lower.unsqueeze(-1)) & ~pick.decided.unsqueeze(-1)
        out = self.windows.zeros(upper, upper.shape[:2], dtype=torch.bool)
        for k, view in enumerate(self.windows.views(out)):
            view |= useful[..., k]
        return (self.windows.unpad(out),)


@dataclass(frozen=True, slots=True)
class Choice:
    """Per window: which entries bound it. All masks are ``[B, *out, count]``, exactly one entry True.

    ``low``: the entry with the greatest lower bound (in decided windows: the greatest entry). ``top``, ``second``: the
    entries with the two greatest upper bounds. ``decided``: `top` is never below any other entry.
    """

    low: Tensor
    top: Tensor
    second: Tensor
    decided: Tensor
    best_lower: Tensor
    valid: Tensor


def choose(windows: Windows, box: Interval) -> Choice:
    """Compare the entries of every window by their bounds (NaN wins every comparison, so that it stays visible)."""
    lower, upper = windows.gather(box.lower, -torch.inf), windows.gather(box.upper, -torch.inf)
    valid = windows.gather(torch.ones_like(box.lower[:1]), 0.0) > 0
    if windows.count == 1:
        one = torch.ones_like(valid).expand(lower.shape)
        decided = torch.ones_like(one[..., 0])
        return Choice(one, one, torch.zeros_like(one), decided, lower[..., 0], valid)
    # finite ranks keep padding (-inf) below every real entry, unbounded ones included; NaN ranks first
    least = torch.finfo(lower.dtype).min
    ranks = torch.where(valid, lower.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=least), -torch.inf)
    low = _one_hot(ranks.argmax(-1), windows.count)
    ranks = torch.where(valid, upper.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=least), -torch.inf)
    first, second = ranks.topk(2, dim=-1).indices.unbind(-1)
    top = _one_hot(first, windows.count)
    runner_up = _one_hot(second, windows.count)
    decided = _take(lower, top) >= _take(upper, runner_up)
    low = torch.where(decided.unsqueeze(-1), top, low)
    return Choice(low, top, runner_up, decided, lower.amax(-1), valid)


class MaxPoolRelaxation(Relaxation):
    """Below: a convex mix of the window's entries (default: the one with the greatest lower bound).

    Above, with i the entry of the greatest upper bound u_i and m the greatest upper bound of the others:
    ``max(x) <= max(x_i, m)``, convex in x_i, hence below its chord from (l_i, m) to (u_i, u_i) where l_i < m (never
    above the constant u_i), and x_i itself where l_i >= m. alpha: one weight in [0, 1] per entry, normalised.
    """

    def __init__(self, op: MaxPool, box: Interval) -> None:
        self.op = op
        self.box = box
        self.windows = op.windows
        with torch.no_grad():
            self.choice = choose(self.windows, box)
        self.upper_slope, self.upper_offset = self._chord(box)
        self._spec: AlphaSpec | None = None

    def _chord(self, box: Interval) -> tuple[Tensor, Tensor]:
        """Slope on the entry ``top`` and offset of the upper line, each ``[B, *out]``."""
        pick = self.choice
        upper = self.windows.gather(box.upper, -torch.inf)
        u, m = _take(upper, pick.top), _take(upper, pick.second)
        lo = _take(self.windows.gather(box.lower, -torch.inf), pick.top)
        width = torch.where(pick.decided, 1.0, u - lo)
        slope = torch.where(pick.decided, 1.0, (u - torch.where(pick.decided, u, m)) / width)
        return slope, torch.where(pick.decided, 0.0, u - slope * u)

    @property
    def alpha(self) -> AlphaSpec:  # type: ignore[override]
        """Weights of the undecided windows' entries; built on first use, which costs one host synchronisation."""
        if self._spec is None:
            free = (~self.choice.decided).flatten(1)
            index = free.any(0).nonzero().squeeze(-1) if self.pinned is None else self.pinned
            start = self._columns(self.choice.low.to(self.box.lower), index)
            open_ = free[:, index].unsqueeze(1) & self._columns(self.choice.valid, index)
            low, high = torch.where(open_, 0.0, start), torch.where(open_, 1.0, start)
            self._spec = AlphaSpec(index, start, low.unsqueeze(1), high.unsqueeze(1))
        return self._spec

    def _columns(self, entries: Tensor, index: Tensor) -> Tensor:
        """``[B, *out, count]`` -> ``[B, count, len(index)]``."""
        return entries.movedim(-1, 1).flatten(2)[:, :, index]

    def _mix(self, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised weights ``[B, T, count, u]`` and their sums ``[B, T, 1, u]``; no weight at all is the default."""
        total = alpha.sum(2, keepdim=True)
        empty = total <= torch.finfo(alpha.dtype).tiny
        total = torch.where(empty, 1.0, total)
        return torch.where(empty, self.alpha.initial.unsqueeze(1), alpha / total), total

    def _weights(self, rows: int, alpha: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        """For each window entry: its share in the lower and the upper line, ``[B, 1 or T, *out]``."""
        mixed = None if alpha is None else self._mix(alpha)[0]
        for k in range(self.windows.count):
            low = self.choice.low[..., k].to(self.upper_slope).unsqueeze(1)
            if mixed is not None:
                flat = low.flatten(2).expand(-1, rows, -1).clone()
                flat.index_copy_(2, self.alpha.index, mixed[:, :, k].expand(flat.shape[0], rows, -1))
                low = flat.reshape(*flat.shape[:2], *self.op.out_shape)
            # not slope * mask: an infinite slope must not spoil the entries that it does not belong to
            yield low, torch.where(self.choice.top[..., k], self.upper_slope, 0.0).unsqueeze(1)

    def pull(self, coef: Tensor, alpha: Tensor | None = None, owned: bool = False) -> Pulled:
        batch = max(coef.shape[0], self.box.lower.shape[0])
        positive = coef >= 0
        padded = self.windows.zeros(coef, (batch, *coef.shape[1:3]))
        weights = self._weights(coef.shape[1], alpha)
        for view, (low, high) in zip(self.windows.views(padded), weights, strict=True):
            view += coef * torch.where(positive, low, high)
        bias = (coef.clamp_max(0) * self.upper_offset.unsqueeze(1)).flatten(2).sum(-1)
        return Pulled((self.windows.unpad(padded),), bias)

    def values(self, coef: Tensor, inputs: tuple[Tensor, ...], alpha: Tensor | None = None) -> Tensor:
        positive = coef >= 0
        out = torch.where(positive, 0.0, self.upper_offset.unsqueeze(1))
        weights = self._weights(coef.shape[1], alpha)
        for view, (low, high) in zip(self.windows.views(self.windows.pad(inputs[0], 0.0)), weights, strict=True):
            out = out + torch.where(positive, low, high) * view
        return out

    def gradient(
        self,
        coef: Tensor,
        inputs: tuple[Tensor, ...],
        weight: Tensor,
        alpha: Tensor | None = None,
        with_boxes: bool = True,
    ) -> RelaxationGradient:
        """``d/da_k = A+ (z_k - mix . z) / sum a``; the chord's two numbers are differentiated by autograd."""
        w = weight.reshape(*weight.shape, *([1] * (coef.ndim - 2)))
        z = self.windows.pad(inputs[0], 0.0)
        d_alpha = None
        if alpha is not None:
            index = self.alpha.index
            entries = torch.stack([v.flatten(2)[:, :, index] for v in self.windows.views(z)], dim=2)
            mixed, total = self._mix(alpha)
            positive = (coef.clamp_min(0) * w).flatten(2)[:, :, index].unsqueeze(2)
            d_alpha = positive * (entries - (mixed * entries).sum(2, keepdim=True)) / total
        if not with_boxes:
            return RelaxationGradient(d_alpha, (None,))
        return RelaxationGradient(d_alpha, (self._box_gradient(coef.clamp_max(0) * w, z),))

    def _box_gradient(self, negative: Tensor, z: Tensor) -> Interval:
        """Derivatives of the upper lines' share of the bounds by the box; ``negative``: weighted ``A-``."""
        at_top = torch.zeros_like(negative)
        for k, view in enumerate(self.windows.views(z)):
            at_top = at_top + torch.where(self.choice.top[..., k].unsqueeze(1), view, 0.0)
        by_slope, by_offset = (negative * at_top).sum(1), negative.sum(1)
        with torch.enable_grad():
            lower, upper = (x.detach().requires_grad_() for x in (self.box.lower, self.box.upper))
            slope, offset = self._chord(Interval(lower, upper))
            total_bound = (by_slope * slope + by_offset * offset).sum()
            grads = torch.autograd.grad(total_bound, [lower, upper], allow_unused=True)
        d_lower, d_upper = (
            torch.zeros_like(x) if g is None else torch.nan_to_num(g)
            for g, x in zip(grads, (lower, upper), strict=True)
        )
        return Interval(d_lower, d_upper)

    def push(self, inputs: tuple[LinearBounds, ...]) -> LinearBounds:
        (x,) = inputs
        sums: list[Tensor | None] = [None, None, None, None]
        padded = [self.windows.views(self.windows.pad(t, 0.0)) for t in (x.lower_w, x.lower_b, x.upper_w, x.upper_b)]
        for (low, high), *views in zip(self._weights(1, None), *padded, strict=True):
            # both lines have slopes >= 0, so each uses its own side of the input
            shares = (low, low.squeeze(1), high, high.squeeze(1))
            for i, (share, view) in enumerate(zip(shares, views, strict=True)):
                before = sums[i]
                sums[i] = share * view if before is None else before + share * view
        lower_w, lower_b, upper_w, upper_b = (s for s in sums if s is not None)
        return LinearBounds(lower_w, lower_b, upper_w, upper_b + self.upper_offset)


def _one_hot(index: Tensor, count: int) -> Tensor:
    """``[...]`` -> bool ``[..., count]``."""
    return index.unsqueeze(-1) == torch.arange(count, device=index.device)


def _take(entries: Tensor, mask: Tensor) -> Tensor:
    """The one entry per window that ``mask`` picks. A gather's derivative would not be deterministic on CUDA."""
    return torch.where(mask, entries, 0.0).sum(-1)

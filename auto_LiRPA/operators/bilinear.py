"""Products of two variables: Mul (entry by entry) and MatMul, by the planes of McCormick (1976).

With centres xm, ym and half-widths rx, ry of the factors' boxes, and any rho, sigma in [-1, 1],

    x y >= xm y + ym x - xm ym - rx ry - rho   (ry (x - xm) + rx (y - ym))
    x y <= xm y + ym x - xm ym + rx ry + sigma (ry (x - xm) - rx (y - ym))

rho = 1, -1 (sigma likewise) are the two planes below (above) the product; all of them have one value at the centre. The
least value over the box is greatest for every rho between xm / rx and ym / ry (clamped to [-1, 1]), and the greatest
value of the upper plane is least for every sigma between xm / rx and -ym / ry: CROWN starts halfway between the two,
and in a MatMul whose left factor has one sign at that end.
In a MatMul rho is the mean of one number per entry of either factor, so nothing of the size rows x inner x columns is
ever made: every term is a matrix product of the size of the coefficients.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from auto_LiRPA.operators.base import AlphaSpec, LinearBounds, NonlinearOperator, Pulled, Relaxation
from auto_LiRPA.operators.local_gradient import LocalRelaxation, negative_part, positive_part
from auto_LiRPA.tolerances import LINE_ROUNDING_ULPS
from auto_LiRPA.values import Interval

# Entries of the products that the interval rule of MatMul lays out at a time.
_INTERVAL_ENTRIES = 2**23


@dataclass(frozen=True)
class Mul(NonlinearOperator):
    """``x * y`` of two branches of equal shape. alpha: the mixes of the two lower and of the two upper planes."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0] * inputs[1]

    def interval(self, *inputs: Interval) -> Interval:
        x, y = inputs
        return _extremes(x.lower * y.lower, x.lower * y.upper, x.upper * y.lower, x.upper * y.upper)

    def relax(self, *boxes: Interval) -> Relaxation:
        return MulRelaxation((boxes[0], boxes[1]))

    def needs_tightening(self, *boxes: Interval) -> tuple[Tensor, ...]:
        # a factor that is a single number makes the product linear; NaN is no number
        both = ~((boxes[0].lower == boxes[0].upper) | (boxes[1].lower == boxes[1].upper))
        return both, both


@dataclass(frozen=True)
class MatMul(NonlinearOperator):
    """``x @ y`` of ``[*lead, n, k]`` and ``[*lead, k, m]``, equal leading axes. alpha as in Mul, per factor's entry.

    ``averages``: each row of x is known to be at least 0 and to sum to 1 (a Softmax), so the interval is that of means.
    """

    averages: bool = False

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0] @ inputs[1]

    def interval(self, *inputs: Interval) -> Interval:
        """Exact for independent factors: the four products of ends, some rows of x at a time."""
        x, y = inputs
        inner = y.lower.unsqueeze(-3), y.upper.unsqueeze(-3)
        step = max(1, _INTERVAL_ENTRIES // max(1, y.lower.numel()))
        parts = []
        for start in range(0, x.lower.shape[-2], step):
            low, high = (s.narrow(-2, start, min(step, s.shape[-2] - start)).unsqueeze(-1) for s in (x.lower, x.upper))
            box = _extremes(low * inner[0], low * inner[1], high * inner[0], high * inner[1])
            part = Interval(box.lower.sum(-2), box.upper.sum(-2))
            if self.averages:
                part = part.intersect(Interval(_least_mean(low, high, inner[0]), -_least_mean(low, high, -inner[1])))
            parts.append(part)
        return Interval(torch.cat([p.lower for p in parts], -2), torch.cat([p.upper for p in parts], -2))

    def relax(self, *boxes: Interval) -> Relaxation:
        return MatMulRelaxation((boxes[0], boxes[1]))

    def needs_tightening(self, *boxes: Interval) -> tuple[Tensor, ...]:
        x, y = (~(b.lower == b.upper) for b in boxes)
        return x & y.any(-1, keepdim=True).transpose(-1, -2), y & x.any(-2, keepdim=True).transpose(-1, -2)


def _least_mean(low: Tensor, high: Tensor, y: Tensor) -> Tensor:
    """Least ``sum_k p_k y_k`` over ``low <= p <= high`` with sum 1, along the axis before the last.

    All take their least share, and what is left goes to the smallest y first. ``low``, ``high``: ``[..., k, 1]``.
    """
    order = torch.sort(y, dim=-2, stable=True).indices
    room = (high - low).expand(*high.shape[:-1], y.shape[-1]).gather(-2, order.expand(*high.shape[:-1], y.shape[-1]))
    left = 1 - low.sum(-2, keepdim=True)
    taken = torch.minimum((left - (room.cumsum(-2) - room)).clamp_min(0), room)
    values = y.gather(-2, order).expand(taken.shape)
    # rounding: the shares may add up to a little more or less than 1
    slack = 4 * y.shape[-2] * torch.finfo(y.dtype).eps * y.abs().amax(-2)
    return (low * y).sum(-2) + (taken * values).sum(-2) - slack


def _extremes(*ends: Tensor) -> Interval:
    a, b, c, d = ends
    return Interval(
        torch.minimum(torch.minimum(a, b), torch.minimum(c, d)), torch.maximum(torch.maximum(a, b), torch.maximum(c, d))
    )


class _ProductRelaxation(LocalRelaxation):
    """What Mul and MatMul share: centres, half-widths, and the mixes rho and sigma in [-1, 1] as two numbers."""

    def __init__(self, boxes: tuple[Interval, ...]) -> None:
        self.boxes = boxes
        x, y = boxes
        self.xm, self.rx = (x.lower + x.upper) / 2, (x.upper - x.lower) / 2
        self.ym, self.ry = (y.lower + y.upper) / 2, (y.upper - y.lower) / 2
        # greatest sizes of the factors, from which the planes' rounding errors follow
        ulps = LINE_ROUNDING_ULPS * torch.finfo(self.xm.dtype).eps
        self.x_size, self.y_size = ulps * (self.xm.abs() + self.rx), self.ym.abs() + self.ry
        self._spec: AlphaSpec | None = None

    def over(self, boxes: tuple[Interval, ...]) -> LocalRelaxation:
        return type(self)(boxes)

    def _carriers(self) -> Tensor:
        """Which entries ``[B, n]`` a mix makes a difference to."""
        raise NotImplementedError

    @property
    def alpha(self) -> AlphaSpec:  # type: ignore[override]
        """Built on first use: finding the entries costs one host synchronisation."""
        if self._spec is None:
            carriers = self._carriers()
            index = carriers.any(0).nonzero().squeeze(-1) if self.pinned is None else self.pinned
            self._spec = AlphaSpec(index, self._start()[:, :, index], -1.0, 1.0)
        return self._spec

    def _start(self) -> Tensor:
        """The mixes where CROWN starts, ``[B, 2, n]``."""
        raise NotImplementedError

    def _dense(self, alpha: Tensor | None) -> Tensor:
        """``[B, T, 2, u] -> [B, T, 2, n]``; the start where no variable is."""
        start = self._start().unsqueeze(1)
        if alpha is None:
            return start
        index = self.alpha.index
        if len(index) == start.shape[3]:  # sorted, so it is the identity
            return alpha
        return start.expand(alpha.shape[0], alpha.shape[1], -1, -1).index_copy(3, index, alpha)

    def _sides(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Centres and half-widths with an axis for rows."""
        return self.xm.unsqueeze(1), self.ym.unsqueeze(1), self.rx.unsqueeze(1), self.ry.unsqueeze(1)


def _ratio(center: Tensor, radius: Tensor) -> Tensor:
    """Where a box lies, from -1 (below 0) to 1 (above 0)."""
    return torch.where(radius > 0, (center / torch.where(radius > 0, radius, 1.0)).clamp(-1, 1), 0.0)


class MulRelaxation(_ProductRelaxation):
    """Planes of entrywise products."""

    def _carriers(self) -> Tensor:
        return ((self.rx != 0) & (self.ry != 0)).flatten(1)

    def _start(self) -> Tensor:
        of_x, of_y = _ratio(self.xm, self.rx), _ratio(self.ym, self.ry)
        return torch.stack([of_x + of_y, of_x - of_y], 1).flatten(2) / 2

    def pull(self, coef: Tensor, alpha: Tensor | None = None, owned: bool = False) -> Pulled:
        xm, ym, rx, ry = self._sides()
        on_x, on_y = coef * ym, coef * xm
        bias = coef * xm * ym - coef.abs() * (rx * ry + (self.x_size * self.y_size).unsqueeze(1))
        rho, sigma = self._dense(alpha).unflatten(3, coef.shape[2:]).unbind(2)
        low, high = positive_part(coef) * rho, negative_part(coef) * sigma
        on_x, on_y = on_x + (high - low) * ry, on_y - (high + low) * rx
        bias = (bias - on_x * xm - on_y * ym).flatten(2).sum(-1)
        return Pulled((on_x, on_y), bias)

    def push(self, inputs: tuple[LinearBounds, ...]) -> LinearBounds:
        x, y = inputs

        def side(a: LinearBounds, slope: Tensor, upper: bool) -> tuple[Tensor, Tensor]:
            up, down = slope.clamp_min(0), slope.clamp_max(0)
            first_w, second_w = (a.upper_w, a.lower_w) if upper else (a.lower_w, a.upper_w)
            first_b, second_b = (a.upper_b, a.lower_b) if upper else (a.lower_b, a.upper_b)
            weight = up.unsqueeze(1) * first_w + down.unsqueeze(1) * second_w
            return weight, up * first_b + down * second_b

        return _pushed(
            [side(x, self.ym, False), side(y, self.xm, False)],
            [side(x, self.ym, True), side(y, self.xm, True)],
            self.xm * self.ym,
            self.rx * self.ry + self.x_size * self.y_size,
        )


class MatMulRelaxation(_ProductRelaxation):
    """Planes of all products in a matrix product; the mixes of both factors' entries stand in one list, x first."""

    def _carriers(self) -> Tensor:
        return torch.cat([(self.rx != 0).flatten(1), (self.ry != 0).flatten(1)], 1)

    def pull(self, coef: Tensor, alpha: Tensor | None = None, owned: bool = False) -> Pulled:
        xm, ym, rx, ry = self._sides()
        turned = ym.transpose(-1, -2)
        on_x, on_y = coef @ turned, xm.transpose(-1, -2) @ coef
        bias = coef * (xm @ ym) - coef.abs() * (rx @ ry + (self.x_size @ self.y_size).unsqueeze(1))
        more_x, more_y = self._mixed(coef, self._dense(alpha), rx, ry)
        on_x, on_y = on_x + more_x, on_y + more_y
        total = bias.flatten(2).sum(-1) - (on_x * xm).flatten(2).sum(-1) - (on_y * ym).flatten(2).sum(-1)
        return Pulled((on_x, on_y), total)

    def _start(self) -> Tensor:
        # where a column of x has one sign (shares of a softmax) every mix up to that sign is as good over the box, and
        # the sign itself better over what follows: measured on transformers
        of_x, of_y = _ratio(self.xm, self.rx), _ratio(self.ym, self.ry)
        least, most = (side.unsqueeze(-1).expand_as(of_y) for side in (of_x.amin(-2), of_x.amax(-2)))
        sign = (least >= 1).to(of_y) - (most <= -1).to(of_y)
        low, high = (torch.where(sign != 0, sign, side).flatten(1) for side in (of_y, -of_y))
        of_x = of_x.flatten(1)
        return torch.stack([torch.cat([of_x, low], 1), torch.cat([of_x, high], 1)], 1)

    def _mixed(self, coef: Tensor, dense: Tensor, rx: Tensor, ry: Tensor) -> tuple[Tensor, Tensor]:
        """What the mixes ``[B, 1 or T, 2, n]`` add to both factors' coefficients."""
        size = self.rx[0].numel()
        of_x = dense[..., :size].unflatten(3, self.rx.shape[1:]) / 2
        of_y = dense[..., size:].unflatten(3, self.ry.shape[1:]) / 2
        ry_turned, rx_turned = ry.transpose(-1, -2), rx.transpose(-1, -2)
        on_x: Tensor | float = 0.0
        on_y: Tensor | float = 0.0
        for which, part, sign in ((0, positive_part(coef), -1.0), (1, negative_part(coef), 1.0)):
            a, b = of_x[:, :, which], of_y[:, :, which]
            on_x = on_x + sign * (a * (part @ ry_turned) + part @ (b * ry).transpose(-1, -2))
            on_y = on_y - ((a * rx).transpose(-1, -2) @ part + b * (rx_turned @ part))
        assert isinstance(on_x, Tensor) and isinstance(on_y, Tensor)
        return on_x, on_y

    def push(self, inputs: tuple[LinearBounds, ...]) -> LinearBounds:
        x, y = inputs

        def of_x(upper: bool) -> tuple[Tensor, Tensor]:
            up, down = self.ym.clamp_min(0), self.ym.clamp_max(0)
            first_w, second_w = (x.upper_w, x.lower_w) if upper else (x.lower_w, x.upper_w)
            first_b, second_b = (x.upper_b, x.lower_b) if upper else (x.lower_b, x.upper_b)
            weight = first_w @ up.unsqueeze(1) + second_w @ down.unsqueeze(1)
            return weight, first_b @ up + second_b @ down

        def of_y(upper: bool) -> tuple[Tensor, Tensor]:
            up, down = self.xm.clamp_min(0), self.xm.clamp_max(0)
            first_w, second_w = (y.upper_w, y.lower_w) if upper else (y.lower_w, y.upper_w)
            first_b, second_b = (y.upper_b, y.lower_b) if upper else (y.lower_b, y.upper_b)
            weight = up.unsqueeze(1) @ first_w + down.unsqueeze(1) @ second_w
            return weight, up @ first_b + down @ second_b

        return _pushed(
            [of_x(False), of_y(False)],
            [of_x(True), of_y(True)],
            self.xm @ self.ym,
            self.rx @ self.ry + self.x_size @ self.y_size,
        )


def _pushed(
    low: list[tuple[Tensor, Tensor]], high: list[tuple[Tensor, Tensor]], center: Tensor, error: Tensor
) -> LinearBounds:
    """Forward mode: both factors' shares, and the constants of the two mean planes."""
    return LinearBounds(
        low[0][0] + low[1][0],
        low[0][1] + low[1][1] - center - error,
        high[0][0] + high[1][0],
        high[0][1] + high[1][1] - center + error,
    )

"""Windows: the part of a feature map where a tile's coefficients can be other than zero.

A neuron of a convolution reads a small part of the map below it. A tile of neighbouring neurons therefore starts with
coefficients that vanish outside a window; the window grows by the kernel at every convolution on the way down, and the
pass works on the window alone until it is nearly the whole map. Geometry only: no bound depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# A window of at least this share of the map is not worth the bookkeeping: the pass goes on with the whole map.
WHOLE_SHARE = 0.6
# Neurons are ordered by squares of this side, so that a tile's neurons are neighbours.
ORDER_SIDE = 4


@dataclass(frozen=True, slots=True)
class Window:
    """``start <= position < stop`` along each spatial axis (the axes behind the channels)."""

    start: tuple[int, ...]
    stop: tuple[int, ...]

    @property
    def size(self) -> tuple[int, ...]:
        """Length along each spatial axis."""
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    def worthwhile(self, shape: Sequence[int]) -> bool:
        """Whether working on the window saves enough of a map of the given spatial shape."""
        return bool(np.prod(self.size) < WHOLE_SHARE * np.prod(shape))

    def union(self, other: Window) -> Window:
        """The smallest window around both."""
        return Window(
            tuple(min(a, b) for a, b in zip(self.start, other.start, strict=True)),
            tuple(max(a, b) for a, b in zip(self.stop, other.stop, strict=True)),
        )

    def crop(self, value: Tensor) -> Tensor:
        """The window of a tensor whose last axes are the whole map (a view)."""
        first = value.ndim - len(self.start)
        for axis, (a, b) in enumerate(zip(self.start, self.stop, strict=True)):
            value = value.narrow(first + axis, a, b - a)
        return value

    def place(self, value: Tensor, outer: Window) -> Tensor:
        """``value`` on this window, laid into ``outer`` with zeros around."""
        pads: list[int] = []
        for a, b, oa, ob in zip(
            reversed(self.start), reversed(self.stop), reversed(outer.start), reversed(outer.stop), strict=True
        ):
            pads += [a - oa, ob - b]
        return torch.nn.functional.pad(value, pads) if any(pads) else value


def whole(shape: Sequence[int]) -> Window:
    """The window that is all of a map."""
    return Window((0,) * len(shape), tuple(shape))


def window_of(shape: Sequence[int], neurons: Sequence[int]) -> Window | None:
    """Smallest window around some flat neurons of a value ``(channels, *spatial)``; None if it is not worthwhile."""
    if len(shape) < 2:
        return None
    positions = np.unravel_index(np.asarray(neurons), shape)[1:]
    window = Window(tuple(int(p.min()) for p in positions), tuple(int(p.max()) + 1 for p in positions))
    return window if window.worthwhile(shape[1:]) else None


def neighbour_order(shape: Sequence[int], neurons: Tensor) -> Tensor:
    """The flat neurons ordered by small squares of the map, row of squares by row, every other row backwards.

    Consecutive neurons are then neighbours on the map, whatever their channel. Values without a map stay in order.
    """
    if len(shape) != 3 or min(shape[1:]) < 2 * ORDER_SIDE:
        return neurons
    _, height, width = shape
    row, column = neurons // width % height // ORDER_SIDE, neurons % width // ORDER_SIDE
    squares = -(-width // ORDER_SIDE)
    column = torch.where(row % 2 == 1, squares - 1 - column, column)
    return neurons[(row * squares + column).argsort(stable=True)]

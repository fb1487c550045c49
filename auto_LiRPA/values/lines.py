"""A line below and a line above a scalar function, neuron by neuron."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Lines:
    """``lower_slope*x + lower_offset <= f(x) <= upper_slope*x + upper_offset`` on the neuron's interval.

    Shapes broadcast against ``[B, T, *shape]`` (T rows): ``[B, 1, ...]`` where all rows share the lines. An offset of
    None is zero for every neuron (ReLU's lower line), which saves its product.
    """

    lower_slope: Tensor
    lower_offset: Tensor | None
    upper_slope: Tensor
    upper_offset: Tensor | None

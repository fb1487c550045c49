"""Columns: the splittable neurons of all layers side by side, as the flat vectors of sub-problems carry them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Layer:
    """Splittable neurons of one pre-activation node: flat neurons ``index`` ``[u]``, columns ``start:stop``."""

    node: int  # the ReLU
    source: int  # its input, whose sign is split
    index: Tensor
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Layout:
    """All layers in order; ``width`` columns in all. ``complete``: splitting all of them leaves an affine network."""

    layers: tuple[Layer, ...]
    width: int
    complete: bool

    def of(self, flat: Tensor, layer: Layer) -> Tensor:
        """Columns of one layer: ``[..., width] -> [..., u]``."""
        return flat[..., layer.start : layer.stop]

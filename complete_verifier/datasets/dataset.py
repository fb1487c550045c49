"""A data set in memory, and the property that is asked about one of its examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from auto_LiRPA.errors import SpecError
from complete_verifier.spec.property import Property, Region
from complete_verifier.spec.robustness import (
    RobustnessType,
    box_from_floats,
    margin_clauses,
    property_of,
    region_around,
)

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Scaling:
    """How images of [0, 1] become inputs: (x - mean) / std, one number or one per channel."""

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def apply(self, images: Floats) -> NDArray[np.float32]:
        """Images ``[N, C, ...]`` as inputs. 0 and 1 are mapped by the very same rounding as the pixels are."""
        channels = images.shape[1] if images.ndim > 1 else 1
        mean, std = (self._shaped(values, name, channels, images.ndim) for values, name in
                     ((self.mean, "mean"), (self.std, "std")))  # fmt: skip
        scaled: NDArray[np.float32] = ((images.astype(np.float32) - mean) / std).astype(np.float32)
        return scaled

    def ends(self, images: Floats) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What 0 and 1 are mapped to, ``[1, C or 1, 1, ...]``."""
        channels = images.shape[1] if images.ndim > 1 else 1
        shape = (1, channels, *(1 for _ in images.shape[2:]))
        return self.apply(np.zeros(shape, np.float32)), self.apply(np.ones(shape, np.float32))

    def radius(self, epsilon: float, images: Floats) -> Floats:
        """A radius of the unscaled images as one of the inputs, ``[1, C or 1, 1, ...]`` float64: epsilon / std."""
        return np.float64(epsilon) / self._shaped(self.std, "std", images.shape[1], images.ndim, np.float64)

    def _shaped(
        self, values: Sequence[float], name: str, channels: int, ndim: int, kind: Any = np.float32
    ) -> Floats:
        if len(values) not in (1, channels):
            raise SpecError(f"data.{name} has {len(values)} numbers, but the images have {channels} channels")
        array: Floats = np.asarray(values, dtype=kind)
        return array.reshape(1, -1, *(1 for _ in range(ndim - 2))) if ndim > 1 else array


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Examples and the regions around them.

    Args:
        x: ``[N, *input]``, as the network takes them.
        labels: ``[N]``.
        lower, upper: the range of the data or, for boxes, each example's region; ``[1 or N, ...]``, broadcast to x.
        eps: radius, broadcast to x (first axis 1 or N, or a plain number); None where boxes are given.
        runnerup, target: ``[N]`` outputs that those robustness types compare the label with.
        source: what messages call it.
    """

    x: Floats
    labels: Integers
    lower: Floats | None
    upper: Floats | None
    eps: Floats | None
    norm: float
    runnerup: Integers | None = None
    target: Integers | None = None
    source: str = "data set"

    def __len__(self) -> int:
        return len(self.x)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one example."""
        return self.x.shape[1:]

    def name(self, index: int) -> str:
        """What messages call one example."""
        return f"{self.source} [{index}]"

    def property(
        self, index: int, kind: RobustnessType, *, n_outputs: int, threshold: float, boxes: bool
    ) -> Property:
        """What is asked about one example (`specification.type`: ``boxes`` for box or bound).

        Raises:
            SpecError: something that the question needs is missing or does not fit.
        """
        source, rival = self.name(index), self._rival(kind)
        clauses = margin_clauses(
            int(self.labels[index]), kind, n_outputs=n_outputs, threshold=threshold, source=source,
            target=None if rival is None else int(rival[index]),
        )  # fmt: skip
        try:
            return property_of(self._region(index, boxes, clauses), n_outputs, source)
        except SpecError as error:
            raise SpecError(f"{source}: {error}") from None

    def _region(self, index: int, boxes: bool, clauses: Any) -> Region:
        x, lower, upper = self.x[index], _entry(self.lower, index, len(self)), _entry(self.upper, index, len(self))
        if boxes:
            if lower is None or upper is None:
                raise SpecError("specification.type box needs data_min and data_max of each example")
            like = np.broadcast_to(lower, x.shape), np.broadcast_to(upper, x.shape)
            return Region(box_from_floats(*like), clauses)
        if self.eps is None:
            raise SpecError("no radius is known; set specification.epsilon")
        eps = _entry(self.eps, index, len(self))
        assert eps is not None
        return region_around(x, eps, self.norm, lower, upper, clauses)

    def _rival(self, kind: RobustnessType) -> Integers | None:
        if kind == "runnerup" and self.runnerup is None:
            raise SpecError(f"{self.source}: robustness_type runnerup needs the runner-up labels of the loader")
        if kind == "specify-target" and self.target is None:
            raise SpecError(f"{self.source}: robustness_type specify-target needs the target labels of the loader")
        return {"runnerup": self.runnerup, "specify-target": self.target}.get(kind)


def _entry(values: Floats | None, index: int, count: int) -> Floats | None:
    """The part of an array with or without a leading axis for examples that concerns one of them."""
    if values is None or values.ndim == 0:
        return values
    if values.shape[0] == 1:
        return values[0]
    return values[index] if values.shape[0] == count else values

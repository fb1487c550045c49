"""A network whose parameters belong to a torch module: its graph, read again when the numbers behind it went stale.

Weights are shared, so an optimiser step needs nothing. Three things do need another read, which takes milliseconds:
constants computed from parameters (a batch norm's statistics, a weight norm's quotient), views of parameters that were
given new storage (``module.to(...)``), and another element type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.onnx_reader import ReadResult, read_model
from auto_LiRPA.parallel.store import ParameterStore

if TYPE_CHECKING:
    from onnx import ModelProto

Fingerprint = tuple[int, torch.dtype, torch.device, int]


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that a read needs beside the parameters."""

    proto: ModelProto
    place: str
    default_dtype: torch.dtype
    default_device: torch.device
    input_shape: tuple[int, ...] | None = None
    batch_fixed: bool | None = None


class GraphSource:
    """Reads the graph on first use and again when it went stale."""

    def __init__(
        self,
        recipe: Recipe,
        parameters: Callable[[], Mapping[str, Tensor]],
        make_store: Callable[[], ParameterStore],
    ) -> None:
        """``parameters`` gives the tensors by initialiser name as they are now; ``make_store`` an empty store."""
        self.recipe = recipe
        self._parameters = parameters
        self._make_store = make_store
        self._result: ReadResult | None = None
        self._seen: dict[str, Fingerprint] = {}
        self.store = make_store()

    @property
    def derived(self) -> Mapping[str, str]:
        """Parameters from which new constants were computed, with the node that did; no gradient reaches these."""
        return {} if self._result is None else self._result.derived

    @property
    def graph(self) -> Graph:
        """The graph with the parameters of this moment."""
        tensors = self._parameters()
        if self._result is None or self._is_stale(tensors):
            self._read(tensors)
        assert self._result is not None
        return self._result.graph

    def _is_stale(self, tensors: Mapping[str, Tensor]) -> bool:
        assert self._result is not None
        if tensors.keys() != self._seen.keys():
            return True
        derived = self._result.derived
        return any(_fingerprint(t, name in derived) != self._seen[name] for name, t in tensors.items())

    def _read(self, tensors: Mapping[str, Tensor]) -> None:
        floating = next((t for t in tensors.values() if t.is_floating_point()), None)
        self.store = self._make_store()
        self._result = read_model(
            self.recipe.proto,
            tensors,
            self.store,
            place=self.recipe.place,
            dtype=self.recipe.default_dtype if floating is None else floating.dtype,
            device=self.recipe.default_device if floating is None else floating.device,
            input_shape=self.recipe.input_shape,
            batch_fixed=self.recipe.batch_fixed,
        )
        derived = self._result.derived
        self._seen = {name: _fingerprint(t, name in derived) for name, t in tensors.items()}


def _fingerprint(tensor: Tensor, with_version: bool) -> Fingerprint:
    """Where the numbers lie; ``with_version`` also counts changes in place."""
    return (tensor.data_ptr(), tensor.dtype, tensor.device, tensor._version if with_version else 0)


def as_shape(shape: Sequence[int] | None) -> tuple[int, ...] | None:
    """A frozen copy of an ``input_shape`` argument."""
    return None if shape is None else tuple(int(s) for s in shape)

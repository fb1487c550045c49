"""A network whose parameters belong to a torch module: its graph, read again when the numbers behind it went stale.

Weights are shared, so an optimiser step needs nothing. Three things do need another read, which takes milliseconds:
constants computed from parameters (a batch norm's statistics, a weight norm's quotient), views of parameters that were
given new storage (``module.to(...)``), and another element type. A store that keeps weights elsewhere copies them: then
every change needs a read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from auto_LiRPA.errors import ModelError
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.onnx_reader import ReadResult, read_model
from auto_LiRPA.parallel.store import ParameterStore

if TYPE_CHECKING:
    from onnx import ModelProto

Place = tuple[int, torch.dtype, torch.device]


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
        *,
        compare_contents: bool,
    ) -> None:
        """``parameters`` gives the tensors by initialiser name as they are now; ``make_store`` an empty store.

        ``compare_contents``: look at the numbers behind computed constants on every use (one host synchronisation).
        Torch's own counts of changes miss those of a batch norm's statistics and of everything done to ``.data``.
        """
        self.recipe = recipe
        self._parameters = parameters
        self._make_store = make_store
        self._compare_contents = compare_contents
        self._result: ReadResult | None = None
        self._places: dict[str, Place] = {}
        self._versions: dict[str, int] = {}
        self._contents: Tensor | None = None
        self._copied: frozenset[str] = frozenset()
        self._sums: dict[str, tuple[float, float]] = {}  # of what is copied: too large to be kept for comparison
        self.store = make_store()

    @property
    def derived(self) -> Mapping[str, str]:
        """Parameters from which new constants were computed, with the node that did; no gradient reaches these."""
        return {} if self._result is None else self._result.derived

    @property
    def copied(self) -> frozenset[str]:
        """Parameters of which the store keeps a copy of its own; no gradient reaches these either."""
        return self._copied

    def give_up(self) -> None:
        """Free the module's memory of all weights that the store keeps copies of; the module cannot run any more."""
        _ = self.graph
        tensors = self._parameters()
        for name in self._copied:
            tensors[name].data = tensors[name].new_empty(0)

    @property
    def graph(self) -> Graph:
        """The graph with the parameters of this moment; the same object as long as it is true to them."""
        if self._result is not None and torch.compiler.is_exporting():
            return self._result.graph  # part of a module that is being exported: numbers cannot be looked at there
        tensors = self._parameters()
        if self._result is None or self._is_stale(tensors):
            self._result = self._read(tensors)
        return self._result.graph

    def _is_stale(self, tensors: Mapping[str, Tensor]) -> bool:
        if tensors.keys() != self._places.keys():
            return True
        # a module may give up the memory of what the store has a copy of
        present = {name: t for name, t in tensors.items() if name not in self._copied or not _given_up(t)}
        if any(_place(t) != self._places[name] for name, t in present.items()):
            return True
        if any(t._version != self._versions.get(name, t._version) for name, t in present.items()):
            return True
        if any(_sums(t) != self._sums[name] for name, t in present.items() if name in self._sums):
            return True
        if self._contents is None:
            return False
        return not torch.equal(self._contents, _contents(tensors, self.derived))

    def _read(self, tensors: Mapping[str, Tensor]) -> ReadResult:
        lost = next((name for name in sorted(self._copied) if _given_up(tensors[name])), None)
        if lost is not None:
            raise ModelError(
                f"{self.recipe.place}: has changed, but the memory of {lost} was given up after it was placed;"
                " build the bounded module anew"
            )
        floating = next((t for t in tensors.values() if t.is_floating_point()), None)
        self._result = None  # so that no two copies of the weights are alive
        self.store = self._make_store()
        where = self.recipe.default_device if floating is None else floating.device
        # a view made while gradients are off would not lead back to its parameter
        with torch.enable_grad():
            result = read_model(
                self.recipe.proto,
                tensors,
                self.store,
                place=self.recipe.place,
                dtype=self.recipe.default_dtype if floating is None else floating.dtype,
                device=self.store.device or where,
                input_shape=self.recipe.input_shape,
                batch_fixed=self.recipe.batch_fixed,
            )
        self._places = {name: _place(t) for name, t in tensors.items()}
        self._copied = result.copied
        self._sums = {name: _sums(tensors[name]) for name in result.copied} if self._compare_contents else {}
        self._versions = {name: tensors[name]._version for name in (*result.derived, *result.copied)}
        readable = result.derived and not any(tensors[name].is_meta for name in result.derived)
        self._contents = _contents(tensors, result.derived) if self._compare_contents and readable else None
        return result


def _place(tensor: Tensor) -> Place:
    """Where the numbers lie."""
    return tensor.data_ptr(), tensor.dtype, tensor.device


def _given_up(tensor: Tensor) -> bool:
    """Whether the numbers are gone: ``tensor.untyped_storage().resize_(0)``, or an empty tensor in its place."""
    return not tensor.is_meta and tensor.untyped_storage().nbytes() == 0


def _sums(tensor: Tensor) -> tuple[float, float]:
    """Two numbers that hardly any change leaves as they are."""
    values = tensor.detach()
    return float(values.sum(dtype=torch.float64)), float(torch.linalg.vector_norm(values, dtype=torch.float64))


def _contents(tensors: Mapping[str, Tensor], names: Iterable[str]) -> Tensor:
    """A copy of the numbers themselves, as one vector: one comparison for all."""
    parts = [tensors[name].detach().reshape(-1).to(torch.float64) for name in names]
    return torch.cat([part.to(parts[0].device) for part in parts])


def as_shape(shape: Sequence[int] | None) -> tuple[int, ...] | None:
    """A frozen copy of an ``input_shape`` argument."""
    return None if shape is None else tuple(int(s) for s in shape)

"""Where a `BoundedModule` gets its graph: from a network that brings its own, or by exporting a torch module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.module import OnnxModule
from auto_LiRPA.parallel.store import ParameterStore, Weight


class SharedGraph(Protocol):
    """A graph over a module's own parameters, as they are now."""

    @property
    def graph(self) -> Graph:
        """The same object as long as it is true to the parameters."""
        ...

    @property
    def derived(self) -> Mapping[str, str]:
        """Parameters that constants were computed from -> the node that did: no gradient reaches these."""
        ...

    @property
    def copied(self) -> frozenset[str]:
        """Parameters of which a store keeps a copy of its own (`fsdp`, `offload`): no gradient reaches these either."""
        ...


class OwnGraph:
    """The graph of a module that was built around one (its attribute ``graph``), its weights in a given store."""

    def __init__(self, module: nn.Module, make_store: Callable[[], ParameterStore]) -> None:
        self._module, self._make_store = module, make_store
        self._stored: tuple[Graph, Graph] | None = None

    @property
    def graph(self) -> Graph:
        own: Graph = self._module.graph  # type: ignore[assignment]
        if self._stored is None or self._stored[0] is not own:
            self._stored = own, own.stored(self._make_store())
        return self._stored[1]

    @property
    def derived(self) -> Mapping[str, str]:
        return {}

    @property
    def copied(self) -> frozenset[str]:
        return frozenset()


def shared_graph(module: nn.Module, example: Tensor, make_store: Callable[[], ParameterStore]) -> SharedGraph:
    """The graph of ``module``, which shares its parameters.

    Raises:
        ModelError: the module cannot be exported, or uses an operator without rules.
    """
    if isinstance(module, OnnxModule):
        store = make_store()
        fits = store.shares and store.block_mib == module.source.store.block_mib
        return module.source if fits else module.source_in(make_store)
    if isinstance(getattr(module, "graph", None), Graph):
        return OwnGraph(module, make_store)
    from auto_LiRPA.graph.torch_export import source_from_module  # brings torch's exporter, which is slow to import

    first = next(module.parameters(), None)
    return source_from_module(module, example if first is None else example.to(first.device, first.dtype), make_store)


def element_type(graph: Graph, otherwise: Tensor) -> tuple[torch.dtype, torch.device]:
    """Element type and device of the network's numbers; those of ``otherwise`` if it has none."""
    for node in graph.nodes[1:]:
        for value in vars(node.op).values():
            if isinstance(value, Weight | Tensor) and value.dtype.is_floating_point:
                return value.dtype, value.device
    return otherwise.dtype, otherwise.device

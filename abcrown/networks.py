"""What a solver takes for a network: an ONNX file, a torch module, a `BoundedModule` or a graph of ours."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from auto_LiRPA import BoundedModule
from auto_LiRPA.errors import ModelError, SpecError, UnsupportedOperator
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.module import OnnxModule
from auto_LiRPA.graph.run import evaluate
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.store import ParameterStore, Weight, accepted
from auto_LiRPA.parallel.whole import whole
from auto_LiRPA.shared_graph import element_type, shared_graph
from complete_verifier.attack.torch_network import TorchNetwork
from complete_verifier.compat.hooks import hooks_of
from complete_verifier.config import Config
from complete_verifier.driver.networks import Network, read_network, spread_over_ranks

ComputingGraph = nn.Module | Graph | str | Path


def name_of(network: ComputingGraph) -> str:
    """What messages and reports call it."""
    if isinstance(network, str | Path):
        return str(network)
    if isinstance(network, Graph):
        return "graph"
    return type(network._source if isinstance(network, BoundedModule) else network).__name__


def numbers_of(network: ComputingGraph) -> Iterable[Tensor]:
    """All its numbers, for comparison between ranks; none of a file, which is compared itself."""
    if isinstance(network, str | Path):
        return
    if isinstance(network, nn.Module):
        module = network._source if isinstance(network, BoundedModule) else network
        yield from module.state_dict().values()
        return
    constants: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        constants.append(value)
        return value

    network.mapped(keep, lambda handle: handle)
    yield from constants
    for weight in network.weights:
        yield whole(weight)


def check_kind(network: object) -> None:
    """Raises ModelError for what is no network."""
    if not isinstance(network, nn.Module | Graph | str | Path):
        raise ModelError(
            f"computing_graph: {type(network).__name__}: expected a torch.nn.Module, a BoundedModule, a graph or the"
            " path of an ONNX file"
        )


def load_network(
    network: ComputingGraph,
    input_shape: tuple[int, ...] | None,
    n_inputs: int,
    config: Config,
    context: DistributedContext,
) -> Network:
    """The network as a run needs it: a file is read, a module exported; the caller's own is left as it is.

    Numbers are float64 where a module's own are or ``general.double_fp`` asks for it, else float32.

    Args:
        input_shape: of the specification's inputs; a module that brings no shape of its own takes one sample of it.
        n_inputs: how many inputs the specification has.

    Raises:
        ModelError: it cannot be read or exported, or has numbers of another type. SpecError: it takes other inputs.
    """
    name = name_of(network)
    if isinstance(network, str | Path):
        read = read_network(config, hooks_of(config, None), context, Path(network), None)
        _check_inputs(read.graph, input_shape, n_inputs, name)
        return read
    module: nn.Module | None = None
    if isinstance(network, Graph):
        graph, judge = network, TorchNetwork(_GraphModule(network), network.input_shape, name)
    else:
        module = network._source if isinstance(network, BoundedModule) else network
        TorchNetwork(module, (n_inputs,), name)  # refuses numbers of other types before the exporter meets them
        own = network._shared.graph if isinstance(network, BoundedModule) else None
        graph = _graph_of(module, input_shape, n_inputs) if own is None else own
        judge = TorchNetwork(module, graph.input_shape, name)
    _check_inputs(graph, input_shape, n_inputs, name)
    kind = torch.float64 if config.general.double_fp else judge.torch_dtype
    moved, store = _moved(graph, kind, context)
    return spread_over_ranks(Network(moved, store, kind, judge, module=module), context)


class _GraphModule(nn.Module):
    """A graph as a module, so that it is judged by its own evaluation, in its own dtype and place."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        kind, device = element_type(graph, torch.zeros(1))
        self.register_buffer("kind", torch.zeros(1, dtype=kind, device=device))
        self._graph = graph

    def forward(self, x: Tensor) -> Tensor:
        return evaluate(self._graph, x)


def _graph_of(module: nn.Module, input_shape: tuple[int, ...] | None, n_inputs: int) -> Graph:
    """The graph of a module: its own, or by export for one sample of the specification's shape.

    A shape that begins with 1 may hold the batch already, as in (1, 3, 32, 32): tried where the other reading fails.
    """
    if isinstance(module, OnnxModule) or isinstance(getattr(module, "graph", None), Graph):
        return shared_graph(module, torch.zeros(1), DistributedContext.single().make_store).graph
    shape = input_shape or (n_inputs,)
    try:
        return _exported(module, shape)
    except UnsupportedOperator:
        raise
    except ModelError as error:
        if shape[0] == 1 and len(shape) > 1:
            try:
                return _exported(module, shape[1:])
            except ModelError:
                pass
        raise ModelError(f"{error}; it was given one sample of shape {shape}, the specification's") from error


def _exported(module: nn.Module, shape: tuple[int, ...]) -> Graph:
    example = torch.zeros(1, *shape)
    return shared_graph(module, example, DistributedContext.single().make_store).graph


def _check_inputs(graph: Graph, shape: tuple[int, ...] | None, n_inputs: int, name: str) -> None:
    """Refuses another number of inputs, and another order of axes: (32, 32, 3) is not (3, 32, 32)."""
    own = graph.input_shape
    if graph.nodes[0].size != n_inputs:
        raise SpecError(f"{name}: takes {graph.nodes[0].size} inputs {own}, the specification has {n_inputs}")
    if shape is not None and len(_long(shape)) > 1 and len(_long(own)) > 1 and _long(shape) != _long(own):
        raise SpecError(f"{name}: takes inputs of shape {own}, the specification has {shape}; order its axes alike")


def _long(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes that are longer than 1."""
    return tuple(length for length in shape if length != 1)


def _moved(graph: Graph, dtype: torch.dtype, context: DistributedContext) -> tuple[Graph, ParameterStore]:
    """The graph in the run's dtype and place; weights that are there already are shared, not copied."""
    store = context.make_store()

    def tensor(value: Tensor) -> Tensor:
        return value.to(context.device, dtype if value.is_floating_point() else value.dtype).detach()

    def weight(handle: Weight) -> Weight:
        if store.shares:
            return store.place(whole(handle, dtype, context.device))
        return store.load(whole(handle), dtype, context.device, accepted)

    return graph.mapped(tensor, weight), store

"""Networks of a run: read from an ONNX file, or built as a torch module by a name or by user code."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from auto_LiRPA.errors import ConfigError
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.onnx_file import load_proto
from auto_LiRPA.graph.onnx_reader import check_quirks, read_model
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.store import ParameterStore
from complete_verifier.attack.original import OriginalNetwork
from complete_verifier.attack.torch_network import TorchNetwork
from complete_verifier.compat.config_view import tree_of
from complete_verifier.compat.hooks import Hooks
from complete_verifier.config import Config, NamedCall, literal_dict, parse_reference
from complete_verifier.driver.element_types import needs_double
from complete_verifier.driver.last_layer import read_without_last_layer
from complete_verifier.spec.peel import LastLayer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Network:
    """A network as the stages take it, and who judges its counterexamples.

    ``last_layer``: what was left out of the graph at its end, if anything; the original still has it. ``module``: the
    network as a torch module, where it is one.
    """

    graph: Graph
    store: ParameterStore
    dtype: torch.dtype
    original: Path | OriginalNetwork
    last_layer: LastLayer | None = None
    module: nn.Module | None = None


def element_type(config: Config) -> torch.dtype:
    """What a run computes in; a file of double numbers is read as such nevertheless (`read_network`)."""
    return torch.float64 if config.general.double_fp else torch.float32


def read_network(
    config: Config, hooks: Hooks, context: DistributedContext, path: Path | None, sample_shape: tuple[int, ...] | None
) -> Network:
    """The network that the configuration names; ``path``: its ONNX file, ``sample_shape``: of one input, if known.

    Raises:
        ConfigError: it is named twice or not at all. ModelError: it cannot be read, built or used.
    """
    if config.model.name is not None:
        module = build(config, hooks)
        return from_module(module, config, context, _shape(config, sample_shape), config.model.name)
    return spread_over_ranks(_read_file(config, context, path), context)


def spread_over_ranks(network: Network, context: DistributedContext) -> Network:
    """With mode tp this rank's part of the network; else the network itself."""
    if context.mode != "tp" or context.weights.size == 1:
        return network
    from auto_LiRPA.graph.tensor_parallel import local_store, tensor_parallel

    store = local_store(context)
    return replace(network, graph=tensor_parallel(network.graph, context, store), store=store)


def _read_file(config: Config, context: DistributedContext, path: Path | None) -> Network:
    if path is None:
        raise ConfigError("no network is named: give model.onnx_path, or model.name with model.path")
    check_quirks(quirks_of(config), str(path))
    proto, store, shape = load_proto(path), context.make_store(), config.model.input_shape
    dtype = element_type(config)
    if needs_double(proto, str(path)) and dtype != torch.float64:
        logger.warning("%s: has double-precision numbers: bounded in double precision, as by general.double_fp", path)
        dtype = torch.float64
    if config.model.onnx_vnnlib_joint_optimization_flags != "none":
        graph, layer = read_without_last_layer(proto, path, store, dtype, context.device, shape)
        return Network(graph, store, dtype, path, layer)
    place, folder = str(path), path.parent
    read = read_model(
        proto, {}, store, place=place, folder=folder, dtype=dtype, device=context.device, input_shape=shape
    )
    return Network(read.graph, store, dtype, path)


def build(config: Config, hooks: Hooks) -> nn.Module:
    """The torch module of `model.name`, with the weights of `model.path` if that is set."""
    from complete_verifier.models import build_module, load_weights

    name = config.model.name
    assert name is not None
    reference = parse_reference(name)
    if isinstance(reference, NamedCall):
        module: object = build_module(reference.name, reference.args, reference.kwargs)
    else:
        module = hooks.call("model.name", name, tree_of(config))
    if not isinstance(module, nn.Module):
        raise ConfigError(f"model.name = {name}: gives {type(module).__name__}; a torch.nn.Module is needed")
    if config.model.path is not None:
        load_weights(module, Path(config.model.path))
    return module.eval()


def from_module(
    module: nn.Module, config: Config, context: DistributedContext, shape: tuple[int, ...], name: str
) -> Network:
    """The graph of a module; the module itself judges counterexamples."""
    from auto_LiRPA.graph.module import OnnxModule
    from auto_LiRPA.graph.torch_export import source_from_module

    if config.model.onnx_vnnlib_joint_optimization_flags != "none":
        raise ConfigError("model.onnx_vnnlib_joint_optimization_flags: for ONNX files only; leave it out")
    dtype = element_type(config)
    shares = context.make_store().shares
    # weights that are kept elsewhere must fit nowhere whole but in the host's memory
    where = context.device if shares else torch.device("cpu")
    module = module.to(device=where, dtype=dtype).eval()
    example = torch.zeros(1, *shape, device=where, dtype=dtype)
    if isinstance(module, OnnxModule):  # a network that was read from a file already is its graph
        source = module.source_in(context.make_store)
    else:
        source = source_from_module(module, example, context.make_store)
    # the graph first: it is what fills the store
    graph = source.graph
    network = Network(graph, source.store, dtype, TorchNetwork(module, shape, name), module=module)
    return spread_over_ranks(network, context)


def _shape(config: Config, sample_shape: tuple[int, ...] | None) -> tuple[int, ...]:
    if config.model.input_shape is not None:
        return tuple(config.model.input_shape[1:])
    if sample_shape is None:
        raise ConfigError("model.input_shape is missing: model.name and a VNN-LIB file do not say it; batch as -1")
    return sample_shape


def quirks_of(config: Config) -> Mapping[str, Mapping[str, object]] | None:
    """`model.onnx_quirks` as the reader takes them."""
    if config.model.onnx_quirks is None:
        return None
    quirks: dict[str, Mapping[str, object]] = {}
    for operator, flags in literal_dict(config.model.onnx_quirks).items():
        if not isinstance(flags, Mapping):
            raise ConfigError(f"model.onnx_quirks: {operator}: expected a dict such as {{'fix_batch_size': True}}")
        quirks[operator] = flags
    return quirks

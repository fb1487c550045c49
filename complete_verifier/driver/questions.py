"""One instance as a Problem: network and property, from their files or from memory, checked against each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from auto_LiRPA.bounds.intermediate import NOTHING_GIVEN, Given
from auto_LiRPA.bounds.settings import BoundSettings
from auto_LiRPA.errors import SpecError
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.run import evaluate
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.store import ParameterStore
from auto_LiRPA.values import Region
from complete_verifier.attack.original import OriginalNetwork
from complete_verifier.compat.hooks import Hooks, hooks_of
from complete_verifier.config import Config
from complete_verifier.driver.input_regions import input_region
from complete_verifier.driver.networks import Network, read_network
from complete_verifier.problem import Clauses, Clock, Problem
from complete_verifier.spec.adjust import offset_rows, rescale, shrink
from complete_verifier.spec.compile import read_vnnlib
from complete_verifier.spec.peel import restated
from complete_verifier.spec.property import Property
from complete_verifier.spec.rounding import round_up

# Relative to the outputs: far more than two right computations of one network part by.
_NEARLY = 1e-3

DEFAULT_LOADER = "default_onnx_and_vnnlib_loader"


@dataclass(frozen=True, slots=True)
class Question:
    """One instance as read: the problem in tensors, and what counterexamples are judged by: property and network.

    ``searched``: the same property as asked of ``problem.graph``, which may lack the network's last layer.
    ``given``: true bounds of nodes that the caller knows, one batch element per region.
    ``example``: an input that the region was made around, the first candidate for a counterexample.
    ``module``: the network as a torch module, where it is one.
    """

    problem: Problem
    prop: Property
    store: ParameterStore
    network: Path | OriginalNetwork
    searched: Property
    given: Given = NOTHING_GIVEN
    example: NDArray[np.floating] | None = None
    module: nn.Module | None = None


# Makes the question of a run: from files (`FileReader`), or from what a caller has in memory.
Reader = Callable[[Config, DistributedContext, BoundSettings, Clock], Question]


@dataclass(frozen=True, slots=True)
class FileReader:
    """The reader of an instance that is a property file and a network. ``config_dir``: user code is looked up there."""

    network: Path
    specification: Path
    config_dir: Path | None = None

    def __call__(self, config: Config, context: DistributedContext, bounds: BoundSettings, clock: Clock) -> Question:
        hooks = hooks_of(config, self.config_dir)
        return read_question(self.network, self.specification, config, context, bounds, clock, hooks)


def read_question(
    network: Path,
    specification: Path,
    config: Config,
    context: DistributedContext,
    bounds: BoundSettings,
    clock: Clock,
    hooks: Hooks | None = None,
) -> Question:
    """Read both files; the network may be one of `model.name` instead.

    Raises:
        ModelError: the network cannot be read or used. SpecError: the property cannot, or is one of another network.
        ConfigError: user code fails.
    """
    hooks = hooks or hooks_of(config, None)
    if config.model.onnx_loader != DEFAULT_LOADER:
        from complete_verifier.driver.user_loader import load_both

        found, prop = load_both(config, hooks, context, network, specification)
    else:
        found, prop = read_network(config, hooks, context, network, None), None
    sizes = _sizes(found.graph)
    if prop is None:
        prop = read_vnnlib(specification, n_inputs=sizes[0], n_outputs=sizes[1])
    elif (prop.n_inputs, prop.n_outputs) != sizes:
        raise SpecError(
            f"{prop.source}: {prop.n_inputs} inputs and {prop.n_outputs} outputs, the network has {sizes[0]} and"
            f" {sizes[1]}"
        )
    return ask(found, adjusted(prop, config), context, bounds, clock)


def adjusted(prop: Property, config: Config) -> Property:
    """The property with what the configuration changes about it (scaled or narrower regions, moved limits), exactly."""
    if config.debug.rescale_vnnlib_ptb is not None:
        prop = rescale(prop, config.debug.rescale_vnnlib_ptb)
    if config.specification.shrink_eps is not None:
        prop = shrink(prop, config.specification.shrink_eps)
    if config.specification.rhs_offset is not None:
        prop = offset_rows(prop, config.specification.rhs_offset)
    return prop


def ask(
    found: Network,
    prop: Property,
    context: DistributedContext,
    bounds: BoundSettings,
    clock: Clock,
    example: NDArray[np.floating] | None = None,
) -> Question:
    """The question whether ``prop`` holds for a network."""
    searched = prop if found.last_layer is None else restated(prop, found.last_layer)
    problem = _problem(found.graph, searched, found.dtype, context, bounds, clock)
    return Question(
        problem, prop, found.store, found.original, searched, example=example, module=found.module
    )


def may_violate(question: Question, x: NDArray[np.floating]) -> bool:
    """Whether it is worth asking the original network about a point: the graph's own arithmetic nearly says so."""
    problem = question.problem
    clauses, point = problem.clauses, torch.from_numpy(x).reshape(1, *problem.graph.input_shape)
    with torch.no_grad():
        y = evaluate(problem.graph, point.to(clauses.c)).flatten()
        gap = clauses.c @ y - clauses.rhs
    slack = _NEARLY * (1 + y.abs().max())
    return not bool((gap > slack).any(1).all())


def make_question(
    graph: Graph,
    prop: Property,
    dtype: torch.dtype,
    store: ParameterStore,
    network: Path | OriginalNetwork,
    context: DistributedContext,
    bounds: BoundSettings,
    clock: Clock,
) -> Question:
    """A graph of ``dtype`` on the context's device and a property of its sizes; ``network`` judges counterexamples."""
    return Question(_problem(graph, prop, dtype, context, bounds, clock), prop, store, network, prop)


def _problem(
    graph: Graph, prop: Property, dtype: torch.dtype, context: DistributedContext, bounds: BoundSettings, clock: Clock
) -> Problem:
    return Problem(
        graph=graph,
        region=_region(prop, graph, dtype, context.device),
        clauses=clauses_of(prop, dtype, context.device),
        context=context,
        bounds=bounds,
        clock=clock,
    )


def _sizes(graph: Graph) -> tuple[int, int]:
    return graph.nodes[0].size, graph.nodes[graph.output].size


def _region(prop: Property, graph: Graph, dtype: torch.dtype, device: torch.device) -> Region:
    return input_region(prop, graph.input_shape, dtype, device)


def clauses_of(prop: Property, dtype: torch.dtype, device: torch.device) -> Clauses:
    """All clauses of all regions, padded to the rows of the largest.

    Right-hand sides are rounded up: a bound above the rounded one is above the exact one.
    """
    pairs = [(number, clause) for number, region in enumerate(prop.regions) for clause in region.clauses]
    sizes = np.array([len(clause.rows) for _, clause in pairs])
    n_rows = max(1, int(sizes.max()))
    present = np.arange(n_rows) < sizes[:, None]
    c = np.zeros((*present.shape, prop.n_outputs), dtype=np.float64)
    rhs = np.full(present.shape, np.inf, dtype=_numpy(dtype))
    strict = np.zeros(present.shape, dtype=np.bool_)
    c[present] = np.concatenate([clause.mat for _, clause in pairs])
    exact = [row.rhs for _, clause in pairs for row in clause.rows]
    rhs[present] = round_up(exact, np.concatenate([clause.rhs for _, clause in pairs]), rhs.dtype)
    strict[present] = np.concatenate([clause.strict for _, clause in pairs])

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    region = np.array([number for number, _ in pairs], dtype=np.int64)
    return Clauses(tensor(c).to(dtype), tensor(rhs), tensor(region), tensor(strict))


def _numpy(dtype: torch.dtype) -> type[np.floating]:
    return np.float64 if dtype == torch.float64 else np.float32

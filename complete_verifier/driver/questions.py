"""One instance as a Problem: network and property, from their files or from memory, checked against each other."""

from __future__ import annotations

import logging
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
from complete_verifier.driver.judge import Judge
from complete_verifier.driver.networks import Network, read_network
from complete_verifier.driver.same_input import check_same_question
from complete_verifier.problem import Clauses, Clock, Problem
from complete_verifier.spec.adjust import offset_rows, rescale, shrink
from complete_verifier.spec.compile import read_vnnlib
from complete_verifier.spec.peel import restated
from complete_verifier.spec.property import Property
from complete_verifier.spec.scaling import FloatRows, float_rows

logger = logging.getLogger(__name__)

# Relative to the outputs: far more than two right computations of one network part by.
_NEARLY = 1e-3

DEFAULT_LOADER = "default_onnx_and_vnnlib_loader"


@dataclass(frozen=True, slots=True)
class Question:
    """One instance as read: the problem in tensors, and what counterexamples are judged by: property and network.

    ``searched``: the same property as asked of ``problem.graph``, which may lack the network's last layer.
    ``judge``: the network that candidates are run on, opened once. ``row_scale`` ``[K, R]`` float64: what rows of the
    property were multiplied by to become those of ``problem.clauses``.
    ``given``: true bounds of nodes that the caller knows, one batch element per region.
    ``example``: an input that the region was made around, the first candidate for a counterexample.
    ``module``: the network as a torch module, where it is one.
    """

    problem: Problem
    prop: Property
    store: ParameterStore
    network: Path | OriginalNetwork
    searched: Property
    judge: Judge
    row_scale: Tensor
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
    if found.module is not None:
        check_same_question(context, prop, found.module)
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
    problem, scale = _problem(found.graph, searched, found.dtype, context, bounds, clock)
    original = found.original
    return Question(
        problem, prop, found.store, original, searched, Judge(original), scale, example=example, module=found.module
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


def _problem(
    graph: Graph, prop: Property, dtype: torch.dtype, context: DistributedContext, bounds: BoundSettings, clock: Clock
) -> tuple[Problem, Tensor]:
    """The problem, and what each row of its clauses was multiplied by."""
    clauses, scale = scaled_clauses(prop, dtype, context.device)
    region = _region(prop, graph, dtype, context.device)
    problem = Problem(graph=graph, region=region, clauses=clauses, context=context, bounds=bounds, clock=clock)
    return problem, scale


def _sizes(graph: Graph) -> tuple[int, int]:
    return graph.nodes[0].size, graph.nodes[graph.output].size


def _region(prop: Property, graph: Graph, dtype: torch.dtype, device: torch.device) -> Region:
    return input_region(prop, graph.input_shape, dtype, device)


def clauses_of(prop: Property, dtype: torch.dtype, device: torch.device) -> Clauses:
    """All clauses of all regions, padded to the rows of the largest. See `scaled_clauses`."""
    return scaled_clauses(prop, dtype, device)[0]


def scaled_clauses(prop: Property, dtype: torch.dtype, device: torch.device) -> tuple[Clauses, Tensor]:
    """All clauses of all regions, padded to the rows of the largest, and what each row was multiplied by ``[K, R]``.

    Right-hand sides are rounded up: a bound above the rounded one is above the exact one. Coefficients are exact where
    a multiple of the row is (`float_rows`), else the nearest numbers: a warning says so.
    """
    pairs = [(number, clause) for number, region in enumerate(prop.regions) for clause in region.clauses]
    sizes = np.array([len(clause.rows) for _, clause in pairs])
    n_rows = max(1, int(sizes.max()))
    present = np.arange(n_rows) < sizes[:, None]
    rows = float_rows([clause for _, clause in pairs], prop.n_outputs, _numpy(dtype))
    _warn(prop.source, rows, dtype)
    c = np.zeros((*present.shape, prop.n_outputs), dtype=_numpy(dtype))
    rhs = np.full(present.shape, np.inf, dtype=_numpy(dtype))
    strict = np.zeros(present.shape, dtype=np.bool_)
    scale = np.ones(present.shape)
    c[present], rhs[present], scale[present] = rows.c, rows.rhs, rows.scale
    strict[present] = np.concatenate([clause.strict for _, clause in pairs])

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    region = np.array([number for number, _ in pairs], dtype=np.int64)
    return Clauses(tensor(c), tensor(rhs), tensor(region), tensor(strict)), torch.from_numpy(scale)


def _warn(source: str, rows: FloatRows, dtype: torch.dtype) -> None:
    """One line each about rows that the element type cannot hold."""
    kind, mend = ("double", "") if dtype == torch.float64 else ("float32", "; general.double_fp holds more")
    if rows.unusable.any():
        logger.warning(
            "%s: %d rows are left out of proofs: their coefficients lie too far apart for %s%s",
            source, int(rows.unusable.sum()), kind, mend,
        )  # fmt: skip
    if rows.rounded.any():
        logger.warning(
            "%s: %d rows have coefficients that are rounded to %s, and so are their bounds%s",
            source, int(rows.rounded.sum()), kind, mend,
        )  # fmt: skip


def _numpy(dtype: torch.dtype) -> type[np.floating]:
    return np.float64 if dtype == torch.float64 else np.float32

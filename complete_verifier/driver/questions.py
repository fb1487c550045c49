"""Reading one instance: network and property from their files, checked against each other, as one Problem."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from auto_LiRPA.bounds.settings import BoundSettings
from auto_LiRPA.errors import ConfigError, SpecError
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.onnx_reader import read_onnx
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.store import ParameterStore
from auto_LiRPA.values import Box
from complete_verifier.config import Config, literal_dict
from complete_verifier.problem import Clauses, Clock, Problem
from complete_verifier.spec.compile import read_vnnlib
from complete_verifier.spec.property import Property
from complete_verifier.spec.rounding import round_up


@dataclass(frozen=True, slots=True)
class Question:
    """One instance as read: the problem in tensors, and the exact property that counterexamples are judged by."""

    problem: Problem
    prop: Property
    store: ParameterStore
    network: Path


def read_question(
    network: Path, specification: Path, config: Config, context: DistributedContext, bounds: BoundSettings, clock: Clock
) -> Question:
    """Read both files.

    Raises:
        ModelError: the network cannot be read or used. SpecError: the property cannot, or is one of another network.
    """
    dtype = torch.float64 if config.general.double_fp else torch.float32
    store = context.make_store()
    graph = read_onnx(
        network,
        store,
        dtype=dtype,
        device=context.device,
        input_shape=config.model.input_shape,
        quirks=_quirks(config.model.onnx_quirks),
    )
    sizes = graph.nodes[0].size, graph.nodes[graph.output].size
    prop = read_vnnlib(specification, n_inputs=sizes[0], n_outputs=sizes[1])
    problem = Problem(
        graph=graph,
        region=_input_boxes(prop, graph, dtype, context.device),
        clauses=clauses_of(prop, dtype, context.device),
        context=context,
        bounds=bounds,
        clock=clock,
    )
    return Question(problem, prop, store, network)


def _quirks(text: str | None) -> Mapping[str, Mapping[str, object]] | None:
    if text is None:
        return None
    quirks: dict[str, Mapping[str, object]] = {}
    for operator, flags in literal_dict(text).items():
        if not isinstance(flags, Mapping):
            raise ConfigError(f"model.onnx_quirks: {operator}: expected a dict such as {{'fix_batch_size': True}}")
        quirks[operator] = flags
    return quirks


def _input_boxes(prop: Property, graph: Graph, dtype: torch.dtype, device: torch.device) -> Box:
    """The smallest boxes of ``dtype`` around the exact ones: ``[n_regions, *input]`` on both sides."""
    numpy_dtype = _numpy(dtype)
    sides: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for region in prop.regions:
        try:
            ends = region.box.outward(numpy_dtype)
        except SpecError as error:
            raise SpecError(f"{prop.source}: {error}") from None
        for side, end in zip(sides, ends, strict=True):
            side.append(end)
    lower, upper = (
        torch.from_numpy(np.stack(side)).reshape(-1, *graph.input_shape).to(device, dtype) for side in sides
    )
    return Box(lower, upper)


def clauses_of(prop: Property, dtype: torch.dtype, device: torch.device) -> Clauses:
    """All clauses of all regions, padded to the rows of the largest.

    Right-hand sides are rounded up: a bound above the rounded one is above the exact one.
    """
    pairs = [(number, clause) for number, region in enumerate(prop.regions) for clause in region.clauses]
    n_rows = max(1, max(len(clause.rows) for _, clause in pairs))
    shape = (len(pairs), n_rows)
    c = np.zeros((*shape, prop.n_outputs), dtype=np.float64)
    rhs = np.full(shape, np.inf, dtype=_numpy(dtype))
    strict = np.zeros(shape, dtype=np.bool_)
    for number, (_, clause) in enumerate(pairs):
        count = len(clause.rows)
        c[number, :count] = clause.mat
        rhs[number, :count] = round_up([row.rhs for row in clause.rows], clause.rhs, rhs.dtype)
        strict[number, :count] = clause.strict

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    region = np.array([number for number, _ in pairs], dtype=np.int64)
    return Clauses(tensor(c).to(dtype), tensor(rhs), tensor(region), tensor(strict))


def _numpy(dtype: torch.dtype) -> type[np.floating]:
    return np.float64 if dtype == torch.float64 else np.float32

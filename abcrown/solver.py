"""`ABCrownSolver`: decides a specification of a network from Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from abcrown.configuration import ConfigBuilder
from abcrown.networks import ComputingGraph, check_kind, load_network, name_of, numbers_of
from abcrown.running import decide, without_question
from abcrown.specification import VerificationSpec
from auto_LiRPA.bound_request import find_node
from auto_LiRPA.bounds.intermediate import Given
from auto_LiRPA.bounds.settings import BoundSettings
from auto_LiRPA.errors import SpecError
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.values import Interval
from complete_verifier.attack.onnx_network import opened
from complete_verifier.attack.original import OriginalNetwork
from complete_verifier.config import Config, LoadedConfig
from complete_verifier.driver.instances import Instance
from complete_verifier.driver.questions import Question, adjusted, ask
from complete_verifier.driver.same_input import check_same_question
from complete_verifier.incomplete.result import IncompleteResult
from complete_verifier.outcome import Verdict
from complete_verifier.problem import Clock
from complete_verifier.reporting.report import InstanceReport
from complete_verifier.reporting.results import statistics
from complete_verifier.spec.counterexample import Counterexample, parse_counterexample

Bounds = Mapping[str, tuple[Tensor, Tensor]]
Settings = ConfigBuilder | Mapping[str, Any] | str | Path | None


@dataclass(frozen=True, slots=True)
class SolveResult:
    """What a run concluded.

    Attributes:
        status: in upstream's words: ``safe`` and ``safe-incomplete`` (proved), ``unsafe-pgd`` and ``unsafe-bab``
            (refuted), ``unknown``.
        success: whether the property was **proved**. A counterexample is no success; ask ``verdict`` for "decided".
        reference: bounds of the inputs of the nonlinear nodes, by the node's name: ``(lower, upper)``, each
            ``[regions, *shape]``. They hold for every input of the specification. Empty where the run ended before.
        stats: the facts of the run as plain values, as ``--stats_file`` writes them: ``wall_s``, ``phases``, ``bab``,
            ``bounds``, ``stopped_by``, ...
        verdict: ``unsat`` (no counterexample exists: proved), ``sat``, ``timeout`` or ``unknown``.
        counterexample: with ``sat`` the input, in the specification's shape and the network's own dtype, on the CPU.
        output: with ``sat`` what the network answers there ``[outputs]``.
    """

    status: str
    success: bool
    reference: Bounds
    stats: Mapping[str, Any]
    verdict: str
    counterexample: Tensor | None = None
    output: Tensor | None = None


class ABCrownSolver:
    """One specification of one network, decided by attack, bounds, and branch and bound.

    Args:
        spec: the question.
        computing_graph: a `torch.nn.Module` with one tensor in and one out, the module of `load_onnx`, a
            `BoundedModule`, a graph of ours, or the path of an ONNX file.
        config: settings: a `ConfigBuilder`, a nested mapping (`default_config`), the path of a YAML file, or None for
            the defaults. Keys that name a network or a property are passed over.
        name: what reports call the instance.

    What makes a verdict is the command line's: ``unsat`` needs every case of the property proved; ``sat`` a
    counterexample that is confirmed. An ONNX file is judged by onnxruntime. A module is judged by itself: its own
    forward, in evaluation mode, in its own dtype and on its own device, with decimals that lie exactly in the box and
    outputs that violate the property exactly. A graph is judged by its own evaluation, which no second program checks.

    Under `torchrun` every rank makes the same solver and calls `solve` alike (``parallel`` in the settings says what
    they share), and every rank gets the same result. Specification and network are compared.

    Raises:
        UserError: settings or arguments that do not fit, when it is made; a network that does not fit, in `solve`.
            One line says what and how to mend it.
    """

    def __init__(
        self,
        spec: VerificationSpec,
        computing_graph: ComputingGraph,
        config: Settings = None,
        name: str = "instance",
    ) -> None:
        if not isinstance(spec, VerificationSpec):
            raise SpecError(f"spec: {type(spec).__name__}: expected what VerificationSpec.build_spec returned")
        check_kind(computing_graph)
        self._spec = spec
        self._network = computing_graph
        self._loaded = without_question(loaded_settings(config))
        self._name = name

    def solve(self, interm_bounds: Bounds | None = None, return_reference: bool = True) -> SolveResult:
        """Decide the specification within ``bab.timeout`` seconds, counted from this call.

        Args:
            interm_bounds: bounds that are known to hold for every input of the specification, as an earlier run of the
                same network leaves them in `SolveResult.reference` for a specification whose inputs contain these.
                Each side ``[*shape]`` or ``[regions, *shape]``. Bounds that do not hold make wrong verdicts.
            return_reference: whether the result carries the bounds of this run.

        Raises:
            UserError: bad input, before any long work.
        """
        kept: dict[str, tuple[Tensor, Tensor]] = {}

        def keep(question: Question, result: IncompleteResult) -> None:
            nodes = question.problem.graph.nodes
            for node_id, box in result.intermediate.boxes.items():
                kept[nodes[node_id].name] = (box.lower.detach().clone(), box.upper.detach().clone())

        reader = MemoryReader(self._spec, self._network, interm_bounds)
        instance = Instance(0, Path(name_of(self._network)), Path(self._name), config_dir=self._loaded.config_dir)
        report = decide(self._loaded, instance, reader, keep if return_reference else None)
        return result_of(report, kept, self._spec.input_shape, reader.original)


def loaded_settings(config: Settings) -> LoadedConfig:
    """Checked settings, however they were given.

    Raises:
        ConfigError: a key or value is wrong, or a file cannot be read.
    """
    if isinstance(config, str | Path):
        return ConfigBuilder.from_yaml(config).loaded()
    return ConfigBuilder.from_config({} if config is None else config).loaded()


@dataclass(slots=True)
class MemoryReader:
    """Makes the question of a specification and a network from Python; ``original`` judged the run that asked."""

    spec: VerificationSpec
    network: ComputingGraph
    interm_bounds: Bounds | None = None
    original: Path | OriginalNetwork | None = field(default=None, init=False)

    def __call__(self, config: Config, context: DistributedContext, bounds: BoundSettings, clock: Clock) -> Question:
        prop = self.spec.property
        found = load_network(self.network, self.spec.input_shape, prop.n_inputs, config, context)
        self.original = found.original
        check_same_question(context, prop, numbers_of(self.network))
        outputs = found.graph.nodes[found.graph.output].size
        if outputs != prop.n_outputs:
            raise SpecError(f"{name_of(self.network)}: gives {outputs} outputs, {prop.source} has {prop.n_outputs}")
        asked = ask(found, adjusted(prop, config), context, bounds, clock)
        return asked if self.interm_bounds is None else with_bounds(asked, self.interm_bounds)


def with_bounds(question: Question, named: Bounds) -> Question:
    """The question with bounds of nodes that the caller knows.

    Raises:
        UserError: no such node, another shape, a lower bound above its upper one, or NaN.
    """
    graph, region = question.problem.graph, question.problem.region.center()
    boxes: dict[int, Interval] = {}
    for name, sides in named.items():
        node = find_node(graph, name, "interm_bounds")
        shape = (len(region), *node.shape)
        pair = []
        for side in sides:
            if not isinstance(side, Tensor) or side.numel() not in (node.size, node.size * len(region)):
                found = tuple(side.shape) if isinstance(side, Tensor) else type(side).__name__
                raise SpecError(f"interm_bounds[{name!r}]: found {found}, expected two tensors {shape}")
            pair.append(side.detach().to(region).reshape(-1, *node.shape).expand(shape))
        if len(pair) != 2 or not bool((pair[0] <= pair[1]).all()):
            raise SpecError(f"interm_bounds[{name!r}]: some lower bound is above the upper one, or NaN")
        boxes[node.id] = Interval(*pair)
    return replace(question, given=Given({}, boxes))


def result_of(
    report: InstanceReport,
    bounds: Bounds,
    input_shape: tuple[int, ...] | None,
    original: Path | OriginalNetwork | None,
) -> SolveResult:
    """What a report says, for Python: the counterexample as tensors."""
    x = y = None
    point = None if report.counterexample is None else _point(report.counterexample)
    if point is not None and original is not None:
        kind = opened(original).dtype
        x, y = (torch.from_numpy(np.array([float(v) for v in side]).astype(kind)) for side in (point.x, point.y))
        x = x if input_shape is None else x.reshape(input_shape)
    return SolveResult(
        status=report.status,
        success=report.verdict is Verdict.HOLDS,
        reference=bounds,
        stats=statistics(report),
        verdict=report.verdict.value,
        counterexample=x,
        output=y,
    )


def _point(text: str) -> Counterexample | None:
    """The counterexample in a text; None if a saver of the user's own (`attack.adv_saver`) has written another form."""
    try:
        return parse_counterexample(text)
    except SpecError:
        return None

"""What a run would need under each placement, and which one `parallel.mode: auto` takes (DESIGN 4, 6).

A plan needs shapes only: of the network's file no weight is read, and no device is touched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch

from auto_LiRPA.bounds.domains.schedule import is_relu_network
from auto_LiRPA.bounds.dry_run import Asked, ShapeGraph, ShapeStore, examine
from auto_LiRPA.errors import ConfigError
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.onnx_file import load_proto
from auto_LiRPA.graph.onnx_reader import read_model
from auto_LiRPA.operators.base import NonlinearOperator
from auto_LiRPA.parallel.axes import Mode, resolve_axes
from auto_LiRPA.parallel.memory_model import CPU, H100, Facts, Machine, Prediction, predict
from auto_LiRPA.parallel.settings import ParallelSettings
from auto_LiRPA.parallel.store import LocalStore
from complete_verifier.bab.search import gpu_tile, synchronous_tile
from complete_verifier.bab.shrink import LARGEST_MIB
from complete_verifier.bab.tiers.budget import DEVICE_SHARE, HOST_SHARE, free_host_bytes
from complete_verifier.config import Config, LoadedConfig
from complete_verifier.driver.choices import bab_settings, bound_settings, incomplete_settings
from complete_verifier.driver.element_types import needs_double
from complete_verifier.driver.input_splits import resolved, splits_inputs
from complete_verifier.driver.instances import (
    Instance,
    is_dataset,
    is_list,
    listed_instances,
    network_name,
    single_instance,
)
from complete_verifier.driver.placing import whole_weights
from complete_verifier.driver.search_memory import Growth, SearchFacts
from complete_verifier.spec.compile import read_vnnlib

# The share of a layer's neurons that are taken to be undecided: without weights nobody knows.
UNDECIDED = 0.5
# Slopes of joint alpha-CROWN are shared among a layer's neurons above this (`incomplete.optimized_bounds`).
_SLOPE_BYTES, _SLOPE_COPIES = 2 * 2**30, 4
# Bytes of a stored sub-problem beside its columns, rows and bound: id, clause and depth.
_ID_BYTES = 24

Placed = Literal["replicated", "fsdp", "offload", "tp"]


@dataclass(frozen=True, slots=True)
class Place:
    """The machine of a plan: ``memory`` of one device in bytes, and on how many ranks."""

    world: int
    memory: float
    machine: Machine
    device: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of a plan."""

    name: Placed
    settings: ParallelSettings
    prediction: Prediction
    fits: bool


@dataclass(frozen=True, slots=True)
class Choice:
    """What `auto` means here, and why in one line."""

    settings: ParallelSettings
    reason: str

    @property
    def line(self) -> str:
        """What is printed."""
        return f"parallel.mode auto: {self.settings.mode}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Plan:
    """All placements of one question on one machine, and the one that `auto` takes."""

    network: str
    place: Place
    undecided: float
    entries: tuple[Entry, ...]
    choice: Choice


@dataclass(frozen=True)
class Question:
    """Shapes of what is asked: the network on tensors without data, regions, rows of the specification."""

    config: Config
    network: str
    graph: Graph
    dtype: torch.dtype
    regions: int
    rows: int
    clauses: int  # of all regions
    clause_rows: int  # of one

    @classmethod
    def of(cls, loaded: LoadedConfig) -> Question:
        """Read the first network that the configuration names, and its property if there is one.

        Raises:
            UserError: a file cannot be read or used.
        """
        config = loaded.config
        instance = _first_instance(loaded)
        graph, dtype = _shapes(loaded, instance.network)
        outputs = graph.nodes[graph.output].size
        found = partial(cls, config, str(instance.network), graph, dtype)
        if is_dataset(config):
            return found(regions=1, rows=outputs, clauses=outputs, clause_rows=1)
        regions = read_vnnlib(instance.specification).regions
        rows = [[len(clause.rows) for clause in region.clauses] for region in regions]
        return found(
            regions=len(regions),
            rows=max(1, *(sum(own) for own in rows)),
            clauses=sum(len(own) for own in rows),
            clause_rows=max((max(own, default=1) for own in rows), default=1),
        )

    @cached_property
    def columns(self) -> int:
        """Neurons whose undecided ones are split."""
        nodes = self.graph.nodes[1 : self.graph.output + 1]
        return sum(self.graph.nodes[i].size for n in nodes if isinstance(n.op, NonlinearOperator) for i in n.inputs)


def make_plan(
    question: Question,
    settings: ParallelSettings,
    place: Place,
    undecided: float = UNDECIDED,
    left_open: int | None = None,
) -> Plan:
    """Every placement that the settings leave open, predicted.

    ``left_open``: sub-problems at the end of the search, if they are known: of all ranks where rounds are those of all
    (the synchronous schedule), else of each.
    """
    entries = tuple(_entries(question, settings, place, undecided, left_open))
    return Plan(question.network, place, undecided, entries, _choose(entries, place))


def _entries(
    question: Question, settings: ParallelSettings, place: Place, undecided: float, left_open: int | None
) -> Iterator[Entry]:
    shapes = ShapeGraph.of(question.graph, settings)
    facts = _facts(question, shapes, place, undecided, left_open)
    endless = facts.domains is not None and left_open is None and bab_settings(question.config).max_iterations < 0
    modes: Mapping[Placed, Mode] = {"replicated": "single", "fsdp": "fsdp", "offload": "offload", "tp": "tp"}
    for name, mode in modes.items():
        if place.world == 1 and mode in ("fsdp", "tp"):
            continue
        wanted = whole_weights(settings) if name == "replicated" else replace(settings, mode=mode)
        try:
            axes = resolve_axes(wanted, place.world)
        except ConfigError:
            continue  # not what the settings allow
        mine = facts
        if mode == "tp":
            mine = _facts(question, shapes.split(axes.weights), place, undecided, left_open)
        prediction = predict(mine, axes, place.world, place.machine)
        if mine.domains is not None:
            prediction = _within_budget(prediction, place, endless)
        yield Entry(name, wanted, prediction, prediction.fits(place.memory, place.machine))


def _facts(question: Question, shapes: ShapeGraph, place: Place, undecided: float, left_open: int | None) -> Facts:
    config = question.config
    method = incomplete_settings(config, math.inf).method
    alpha = bound_settings(config).alpha
    asked = Asked(  # the command keeps every layer's boxes: no layer is bounded block by block
        batch=_regions_together(question),
        spec_rows=question.rows,
        undecided=undecided,
        alpha=alpha.mode if method == "alpha-crown" else "none",
        share_slopes=alpha.share_alphas,
    )
    facts = examine(shapes, question.dtype, asked)
    slopes = sum(a.slopes * a.tiles.count for p, a in facts.ascents() if not p.final)
    if asked.alpha == "keep" and _SLOPE_COPIES * slopes > _SLOPE_BYTES * asked.batch:
        facts = replace(facts, share_slopes=True)
    config = resolved(config, question.graph.nodes[0].size)
    searches = config.general.complete_verifier in ("bab", "bab-refine") and not splits_inputs(config)
    if not searches:
        return facts
    return replace(facts, domains=search_facts(question, shapes, facts.weight_bytes, place, undecided, left_open))


def _regions_together(question: Question) -> int:
    """Regions that are bounded together (`incomplete.first_bounds`)."""
    widest = max(node.size for node in question.graph.nodes)
    return max(1, min(question.regions, 2**26 // (16 * widest * question.dtype.itemsize)))


def search_facts(
    question: Question,
    shapes: ShapeGraph,
    weight_bytes: int,
    place: Place,
    undecided: float,
    left_open: int | None = None,
) -> SearchFacts:
    """Branch and bound on neurons, as `bab.search` does it on a GPU; ``shapes``: of this rank's slices, under tp.

    Without a limit of rounds and ``left_open``: up to the first full round; what more there may be is
    `Prediction.growth`.
    """
    settings = bab_settings(question.config)
    graph, number = shapes.graph, question.dtype.itemsize
    variable = 2 if settings.half_variables and number == 4 else number
    columns = max(1, round(undecided * question.columns))
    boxes = 2 * number * columns if settings.clip is not None else 0
    slot = columns * (1 + variable) + boxes + (1 + question.clause_rows) * number + _ID_BYTES
    spread = graph.spread is not None
    lean = is_relu_network(question.graph)
    sizes = [torch.Size(graph.local_shape(n.id)).numel() for n in graph.nodes if isinstance(n.op, NonlinearOperator)]
    inputs, outputs = graph.nodes[0].size, graph.nodes[graph.output].size
    # neurons that are off are left out where weights are not spread; half of those that are decided, for all we know
    shrinks = lean and not spread and weight_bytes <= LARGEST_MIB * 2**20
    kept = (1 + undecided) / 2 if shrinks else 1.0
    # the input's coefficients and corner, or values of a layer, and of the next one with and without its bias
    flow = max(2 * inputs, round(3 * kept * max(sizes, default=0))) * number
    if left_open is None:
        growth = Growth.of(question.clauses, settings, max(0, settings.max_iterations)).open
        left_open = growth if settings.max_iterations >= 0 else 2 * settings.batch_size
    together = settings.synchronous
    return SearchFacts(
        slot=-(-slot // 8) * 8,
        columns=columns,
        own=max(1, round(columns * sum(sizes) / max(1, question.columns))),
        number=number,
        variable=variable,
        batch=settings.batch_size,
        together=together,
        open=int(min(left_open, settings.max_domains)),
        tile=synchronous_tile(question.graph, torch.device("cuda")) if together else gpu_tile(question.graph),
        row=question.clause_rows * (outputs + 6) * number + 7 * number + (2 * inputs * number if boxes else 0),
        flow=flow,
        walk=round(kept * sum(sizes)) * number + flow,
        tried=2 * settings.candidates if settings.method in ("kfsb", "fsb") else 0,
        fused=lean and not spread and number == 4 and place.machine is not CPU,
        own_boxes=bool(boxes) or question.regions > 1,
        smaller=round(kept**2 * weight_bytes) if shrinks else 0,
        small=question.config.parallel.block_mib * 2**20,
        iterations=settings.iterations,
    )


def _within_budget(prediction: Prediction, place: Place, endless: bool) -> Prediction:
    """A store keeps to its share of what is free when the search begins; the host's memory has the rest."""
    stays = ("weights", "blocks", "constants", "bounds", "workspace")
    free = place.memory - place.machine.context - sum(prediction.parts[name] for name in stays)
    share = HOST_SHARE if place.machine is CPU else DEVICE_SHARE
    most = max(0, int(share * free))
    stored = prediction.parts["domains"]
    parts = {**prediction.parts, "domains": min(stored, most)}
    return replace(prediction, parts=MappingProxyType(parts), growth=max(0, most - stored) if endless else 0)


def _choose(entries: tuple[Entry, ...], place: Place) -> Choice:
    """Whole weights where they fit (nothing is fetched), else shared out, else in the host's memory."""
    by_name = {entry.name: entry for entry in entries}
    ordered = [by_name[name] for name in ("replicated", "fsdp", "offload") if name in by_name]
    if not ordered:
        raise ConfigError("parallel.mode = auto: no mode agrees with parallel.mesh; set the mode")
    memory = f"{place.memory / 2**30:.1f} GiB"
    passed: list[str] = []
    for entry in ordered:
        need = f"{entry.prediction.peak / 2**30:.2f} GiB"
        if entry.fits:
            past = f", {' and '.join(passed)}" if passed else ""
            return Choice(entry.settings, f"{entry.name} needs about {need} of {memory} on each rank{past}")
        passed.append(f"{entry.name} would need {need}")
    least = min(ordered, key=lambda entry: entry.prediction.peak)
    return Choice(
        least.settings,
        f"nothing fits {memory}, {least.name} needs least ({least.prediction.peak / 2**30:.2f} GiB); lower"
        " parallel.tile_rows or solver.batch_size, or take more ranks",
    )


def place_of(loaded: LoadedConfig, device: torch.device, world: int, local_ranks: int) -> Place:
    """This machine's devices, or those that `--gpu_mem_gib` speaks of."""
    given = loaded.options.gpu_mem_gib
    if given is not None:
        return Place(world, given * 2**30, H100, "assumed GPU")
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return Place(world, float(properties.total_memory), H100, properties.name)
    return Place(world, free_host_bytes() / max(1, local_ranks), CPU, "CPU")


def _first_instance(loaded: LoadedConfig) -> Instance:
    config = loaded.config
    if is_dataset(config):
        network = network_name(config)
        if network is None:
            raise ConfigError("model.name and model.onnx_path are missing: data.dataset alone names no network")
        return Instance(0, network, Path(config.data.dataset or ""))  # its regions are not looked at
    return listed_instances(config)[0] if is_list(config) else single_instance(config, loaded.config_dir)


def _shapes(loaded: LoadedConfig, path: Path) -> tuple[Graph, torch.dtype]:
    """The graph of the network, its weights left where they are."""
    config = loaded.config
    dtype = torch.float64 if config.general.double_fp else torch.float32
    if config.model.name is not None:
        return _of_module(loaded, dtype), dtype
    proto = load_proto(path)
    if needs_double(proto, str(path)):
        dtype = torch.float64
    store, shape = ShapeStore(config.parallel.block_mib), config.model.input_shape
    read = read_model(proto, {}, store, place=str(path), folder=path.parent, dtype=dtype, input_shape=shape)
    return read.graph, dtype


def _of_module(loaded: LoadedConfig, dtype: torch.dtype) -> Graph:
    """The graph of a torch module, which is built to know its shapes."""
    from auto_LiRPA.graph.torch_export import source_from_module
    from complete_verifier.compat.hooks import hooks_of
    from complete_verifier.driver.networks import build

    config = loaded.config
    if config.model.input_shape is None:
        raise ConfigError("model.input_shape is missing: a plan of model.name has to know it; batch as -1")
    module = build(config, hooks_of(config, loaded.config_dir)).to(dtype)
    example = torch.zeros(1, *config.model.input_shape[1:], dtype=dtype)
    return source_from_module(module, example, lambda: LocalStore(config.parallel.block_mib)).graph

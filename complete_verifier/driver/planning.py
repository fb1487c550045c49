"""What a run would need under each placement, and which one `parallel.mode: auto` takes (DESIGN 4, 6).

A plan needs shapes only: of the network's file no weight is read, and no device is touched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch

from auto_LiRPA.bounds.domains.engine import SIZES
from auto_LiRPA.bounds.dry_run import Asked, ShapeGraph, ShapeStore, examine
from auto_LiRPA.errors import ConfigError
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.onnx_file import load_proto
from auto_LiRPA.graph.onnx_reader import read_model
from auto_LiRPA.operators.base import NonlinearOperator
from auto_LiRPA.parallel.axes import Mode, resolve_axes
from auto_LiRPA.parallel.memory_model import CPU, H100, DomainFacts, Facts, Machine, Prediction, predict
from auto_LiRPA.parallel.settings import ParallelSettings
from auto_LiRPA.parallel.store import LocalStore
from complete_verifier.bab.expansion import CHOOSE_TILE
from complete_verifier.bab.schedule_synchronous import SYNCHRONOUS_TILE
from complete_verifier.bab.search import GPU_TILE
from complete_verifier.bab.settings import BabSettings
from complete_verifier.bab.tiers.budget import free_host_bytes
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
from complete_verifier.spec.compile import read_vnnlib

# The share of a layer's neurons that are taken to be undecided: without weights nobody knows.
UNDECIDED = 0.5
# Slopes of joint alpha-CROWN are shared among a layer's neurons above this (`incomplete.optimized_bounds`).
_SLOPE_BYTES, _SLOPE_COPIES = 2 * 2**30, 4
# A round of branch and bound: tensors as wide as all columns while neurons are chosen, and stored domains that a
# parent has beside itself (its children, as they are bounded).
_CHOOSING_COPIES, _DOMAINS_OF_A_PARENT = 16, 5
# Captured CUDA graphs of every size of tile; each has a stream of its own, with the matrix library's workspace.
_GRAPHS_OF_A_SIZE = 3
_ID_BYTES = 60  # number, clause, depth, bound, row weights and keys of a stored domain

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

    @classmethod
    def of(cls, loaded: LoadedConfig) -> Question:
        """Read the first network that the configuration names, and its property if there is one.

        Raises:
            UserError: a file cannot be read or used.
        """
        config = loaded.config
        instance = _first_instance(loaded)
        graph, dtype = _shapes(loaded, instance.network)
        regions, rows = 1, graph.nodes[graph.output].size
        if not is_dataset(config):
            prop = read_vnnlib(instance.specification)
            regions = len(prop.regions)
            rows = max(1, max(sum(len(clause.rows) for clause in region.clauses) for region in prop.regions))
        return cls(config, str(instance.network), graph, dtype, regions, rows)

    @cached_property
    def columns(self) -> int:
        """Neurons whose undecided ones are split."""
        nodes = self.graph.nodes[1 : self.graph.output + 1]
        return sum(self.graph.nodes[i].size for n in nodes if isinstance(n.op, NonlinearOperator) for i in n.inputs)


def make_plan(question: Question, settings: ParallelSettings, place: Place, undecided: float = UNDECIDED) -> Plan:
    """Every placement that the settings leave open, predicted."""
    entries = tuple(_entries(question, settings, place, undecided))
    return Plan(question.network, place, undecided, entries, _choose(entries, place))


def _entries(question: Question, settings: ParallelSettings, place: Place, undecided: float) -> Iterator[Entry]:
    shapes = ShapeGraph.of(question.graph, settings)
    facts = _facts(question, shapes, place, undecided)
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
            mine = _facts(question, shapes.split(axes.weights), place, undecided)
        prediction = predict(mine, axes, place.world, place.machine)
        yield Entry(name, wanted, prediction, prediction.fits(place.memory, place.machine))


def _facts(question: Question, shapes: ShapeGraph, place: Place, undecided: float) -> Facts:
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
    return replace(facts, domains=_domains(question, shapes, place, undecided)) if searches else facts


def _regions_together(question: Question) -> int:
    """Regions that are bounded together (`incomplete.first_bounds`)."""
    widest = max(node.size for node in question.graph.nodes)
    return max(1, min(question.regions, 2**26 // (16 * widest * question.dtype.itemsize)))


def _domains(question: Question, shapes: ShapeGraph, place: Place, undecided: float) -> DomainFacts:
    """Branch and bound on neurons, as `bab.search` does it on a GPU."""
    settings = bab_settings(question.config)
    itemsize = question.dtype.itemsize
    columns = max(1, round(undecided * question.columns))
    stored = 2 if settings.half_variables and itemsize == 4 else itemsize
    slot = columns * (1 + stored) + _ID_BYTES
    tile = SYNCHRONOUS_TILE if settings.synchronous else GPU_TILE
    graph = shapes.graph
    wide = sum(torch.Size(graph.local_shape(n.id)).numel() for n in graph.nodes if isinstance(n.op, NonlinearOperator))
    of_a_row = (5 * columns + wide + 3 * graph.nodes[0].size) * itemsize
    choosing = min(CHOOSE_TILE, settings.batch_size) * _CHOOSING_COPIES * columns * itemsize
    streams = 1 + _GRAPHS_OF_A_SIZE * _sizes_met(settings, tile)
    return DomainFacts(
        slot=slot,
        open=question.regions + settings.batch_size * max(0, settings.max_iterations),
        batch=settings.batch_size,
        tile=tile,
        iterations=settings.iterations,
        fixed=tile * of_a_row + choosing + streams * place.machine.workspace,
        per_parent=_DOMAINS_OF_A_PARENT * slot,
    )


def _sizes_met(settings: BabSettings, tile: int) -> int:
    """Sizes of buffers that a search makes on its way from a few domains to whole tiles."""
    met, domains = {SIZES[0]}, max(2, int(settings.min_batch_ratio * settings.batch_size))
    while domains < 2 * min(tile, settings.batch_size):
        met.add(next((size for size in SIZES if size >= min(domains, tile)), tile))
        domains *= 2
    met.add(next((size for size in SIZES if size >= min(tile, 2 * settings.batch_size)), tile))
    return len(met)


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

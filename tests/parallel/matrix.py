"""The equality matrix: ways to lay out ranks, tasks that each of them does, and the function that a rank runs.

`MATRIX_DEVICE=cuda` in the environment computes on GPUs; ranks share them, through gloo, where there are too few.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor

from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm
from auto_LiRPA.bounds.settings import AlphaSettings, BoundSettings
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.tensor_parallel import tensor_parallel
from auto_LiRPA.parallel import tiles as tiling
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.settings import ParallelSettings
from auto_LiRPA.parallel.store import LocalStore, LocalWeight, ParameterStore, Weight, accepted
from auto_LiRPA.parallel.stores import make_store
from auto_LiRPA.values import Box
from complete_verifier.bab import nonlinear_search, schedule_synchronous
from complete_verifier.bab import search as searching
from complete_verifier.bab.domains import Domains
from complete_verifier.bab.settings import BabSettings
from complete_verifier.bab.store import DomainStore
from complete_verifier.incomplete.settings import IncompleteSettings
from complete_verifier.incomplete.stage import run_incomplete
from complete_verifier.problem import Clauses, Clock, Problem
from tests.parallel.networks import BLOCK_MIB, NETS, OUTPUTS, Held, blocks_of, center
from tests.parallel.patches import replaced_everywhere

Kind = Literal["ibp", "crown", "fixed", "keep", "stream", "bab"]
BOUND_KINDS: tuple[Kind, ...] = ("ibp", "crown", "fixed", "keep", "stream")
ITERATIONS = 2
DEVICE = os.environ.get("MATRIX_DEVICE", "cpu")


@dataclass(frozen=True)
class Searched:
    """A search: how hard it is, when it ends, how many domains a tile has, how neurons are chosen."""

    radius: float
    slack: float
    rounds: int
    tile: int
    method: str


# One closes, two end with domains open; all have ragged tiles.
SEARCHES = {
    "mlp": Searched(0.17, 0.5, 12, 5, "kfsb"),
    "cnn": Searched(0.12, 0.4, 3, 7, "babsr"),
    "residual": Searched(0.2, 0.5, 2, 5, "babsr"),
    "attention": Searched(0.1, 0.63, 4, 4, "by derivative"),
}
BAB = BabSettings(
    batch_size=16,
    min_batch_ratio=1.0,
    iterations=2,
    lr_alpha=0.1,
    lr_beta=0.1,
    synchronous=True,
    auto_enlarge=False,
    pruning_in_iteration=False,
)


@dataclass(frozen=True)
class Layout:
    """One way to lay out the ranks: a line of the matrix."""

    name: str
    mode: Literal["single", "fsdp", "tp", "offload"]
    ranks: tuple[int, ...]
    rows: Literal["shard", "replicate"] = "replicate"
    domains: Literal["shard", "replicate"] = "replicate"
    mesh: Mapping[str, int] | None = None
    tp_intermediate: Literal["exact", "ibp"] = "exact"

    def settings(self, net: str) -> ParallelSettings:
        """The `parallel:` section of this line for a network."""
        return ParallelSettings(
            mode=self.mode,
            rows=self.rows,
            domains=self.domains,
            mesh=None if self.mesh is None else dict(self.mesh),
            tile_rows=NETS[net].tile_rows,
            block_mib=BLOCK_MIB,
            tp_intermediate=self.tp_intermediate,
            timeout_s=60,
            threads=1,
            backend=_backend(),
        )


def _backend() -> Literal["gloo", "auto"]:
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return "gloo" if DEVICE == "cuda" and ranks > torch.cuda.device_count() else "auto"


@dataclass(frozen=True)
class Task:
    """One thing to compute: a network and a method (`bab`: whole searches)."""

    net: str
    kind: Kind
    dtype: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        return f"{self.net}-{self.kind}" + ("-64" if self.dtype == torch.float64 else "")


@dataclass
class Facts:
    """What the statistics say about one task on one rank."""

    blocks: dict[str, int] = field(default_factory=dict)
    layouts: list[tuple[int, bool]] = field(default_factory=list)  # each cut: tiles, and whether the last is ragged
    tiles: int = 0
    idle_tiles: int = 0
    live_blocks_max: int = 0
    collectives: dict[str, int] = field(default_factory=dict)
    weight_bytes: int = 0
    bounded: dict[int, float] = field(default_factory=dict)  # id -> bound, of the domains stored here
    seconds: float = 0.0
    cpu_seconds: float = 0.0


@dataclass
class Found:
    """Results of one task on one rank, or why there are none."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)
    facts: Facts = field(default_factory=Facts)
    error: str = ""


def run(case: tuple[float, list[tuple[Layout, list[Task]]]]) -> dict[tuple[str, Task], Found]:
    """Every task of every line on this rank; begins none after so many seconds."""
    seconds, lines = case
    found: dict[tuple[str, Task], Found] = {}
    first = ParallelSettings(rows="shard", timeout_s=60, threads=1, backend=_backend())
    world = DistributedContext.from_env(first, DEVICE).world
    began = time.monotonic()
    for layout, tasks in lines:
        for task in tasks:
            # a task that was not begun has no result, and its own test says so; the others keep theirs
            if world.some(time.monotonic() - began > seconds):
                return found
            try:
                found[layout.name, task] = compute(layout, task)
                facts = found[layout.name, task].facts
                sys.stderr.write(f"{layout.name} {task.name} {facts.seconds:.2f} s, of CPU {facts.cpu_seconds:.2f} s\n")
            except Exception:  # noqa: BLE001 (told to the test, which fails by it)
                found[layout.name, task] = Found(error=traceback.format_exc())
            world.every(not found[layout.name, task].error)
    return found


def compute(layout: Layout, task: Task) -> Found:
    """One task in one layout."""
    began, cpu = time.monotonic(), time.process_time()
    context = DistributedContext.from_env(layout.settings(task.net), DEVICE)
    store = make_store(context)
    graph = _graph(task, store, context)
    with _watched_cuts() as cuts:
        found = (_search if task.kind == "bab" else _bounds)(graph, task, context)
    counters = context.counters
    facts = found.facts
    facts.blocks, facts.layouts = blocks_of(graph, store), cuts
    facts.tiles, facts.idle_tiles, facts.live_blocks_max = counters.tiles, counters.idle_tiles, counters.live_blocks_max
    facts.collectives = {kind: traffic.calls for kind, traffic in counters.collectives.items()}
    facts.weight_bytes = store.weight_bytes()
    facts.seconds, facts.cpu_seconds = time.monotonic() - began, time.process_time() - cpu
    return found


def _graph(task: Task, store: ParameterStore, context: DistributedContext) -> Graph:
    """The network with its weights in the store, on the context's device."""
    net = NETS[task.net]
    if context.device.type == "cpu":
        return net.make(store, task.dtype)

    def placed(weight: Weight) -> Weight:
        assert isinstance(weight, LocalWeight)
        return store.load(weight.tensor, task.dtype, context.device, accepted)

    return net.make(LocalStore(BLOCK_MIB), task.dtype).mapped(lambda tensor: tensor.to(context.device), placed)


@contextmanager
def _watched_cuts() -> Iterator[list[tuple[int, bool]]]:
    """Notes into how many tiles each list of rows is cut, and whether the last one is smaller."""
    cuts: list[tuple[int, bool]] = []
    original = tiling.cut

    def cut(n_rows: int, height: int) -> Any:
        tiles = original(n_rows, height)
        if tiles:
            cuts.append((len(tiles), tiles[-1].stop - tiles[-1].start < tiles[-1].height))
        return tiles

    with replaced_everywhere(original, cut):
        yield cuts


def specification(dtype: torch.dtype) -> Tensor:
    """One row per output and its neighbour: ``[1, OUTPUTS, OUTPUTS]``."""
    eye = torch.eye(OUTPUTS, dtype=dtype)
    return (eye - eye.roll(1, 1)).unsqueeze(0)


def _bounds(graph: Graph, task: Task, context: DistributedContext) -> Found:
    """Bounds of margins and of outputs, through the public interface; the boxes of the hidden neurons too."""
    net = NETS[task.net]
    x = center(task.net, graph, task.dtype).to(context.device)
    options = {"optimize_bound_args": {"iteration": ITERATIONS, "lr_alpha": 0.1}}
    optimised = task.kind not in ("ibp", "crown")
    if optimised:
        options["optimize_bound_args"]["interm_alpha"] = task.kind  # type: ignore[assignment]
    bounded = BoundedModule(Held(graph), x, bound_opts=options, parallel=context)
    box = BoundedTensor(x, PerturbationLpNorm(norm=float("inf"), eps=net.eps))
    method = "alpha-CROWN" if optimised else task.kind
    with torch.no_grad():
        if optimised:
            lower, upper = bounded.compute_bounds(
                x=(box,), C=specification(task.dtype).to(x.device), method=method, bound_upper=False
            )
            upper = lower
        else:
            lower, upper = bounded.compute_bounds(x=(box,), method=method)
    tensors = {"lower": lower, "upper": upper}
    nodes = bounded._graph().nodes
    for node, interval in bounded._last.boxes.items():
        name = nodes[node].name
        tensors[f"lower of {name}"], tensors[f"upper of {name}"] = interval.lower, interval.upper
    return Found({name: tensor.clone().cpu() for name, tensor in tensors.items()})


def problem_of(
    graph: Graph, net: str, dtype: torch.dtype, context: DistributedContext, radius: float, slack: float
) -> Problem:
    """Three clauses whose thresholds lie below the centre's outputs, so that a search has rounds to do.

    There is all the time in the world: what the incomplete stage leaves out for lack of time depends on the machine.
    """
    values, whole = [center(net, graph, dtype)], NETS[net].make(LocalStore(BLOCK_MIB), dtype)
    for node in whole.nodes[1:]:
        values.append(node.op.forward(*(values[i] for i in node.inputs)))
    y, x = values[whole.output].flatten(), values[0].to(context.device)
    c = specification(dtype)[0, :3].unsqueeze(1)
    rhs = (c[:, 0] @ y - slack).unsqueeze(1)
    kinds, strict = torch.zeros(3, dtype=torch.int64), torch.zeros(3, 1, dtype=torch.bool)
    spec = Clauses(*(part.to(x.device) for part in (c, rhs, kinds, strict)))
    alpha = AlphaSettings(iterations=ITERATIONS, lr_alpha=0.25)
    return Problem(
        graph, Box(x - radius, x + radius), spec, context, BoundSettings(alpha=alpha), Clock(time.monotonic(), 1e9)
    )




def _search(graph: Graph, task: Task, context: DistributedContext) -> Found:
    """The incomplete stage and a synchronous search of some rounds."""
    if context.mode == "tp":
        graph = tensor_parallel(graph, context)
    chosen = SEARCHES[task.net]
    problem = problem_of(graph, task.net, task.dtype, context, chosen.radius, chosen.slack)
    found = Found()
    progress: list[tuple[int, int, int, float]] = []
    with spied_bounds(found.facts.bounded), domain_tiles(chosen.tile):
        if task.net == "attention":  # most of the time would be the joint optimisation, which is a task of its own
            fixed = replace(problem.bounds, alpha=replace(problem.bounds.alpha, mode="fixed"))
            problem = replace(problem, bounds=fixed)
        start = run_incomplete(problem, IncompleteSettings())
        result = (nonlinear_search.nonlinear_search if task.net == "attention" else searching.search)(
            problem,
            start,
            replace(BAB, max_iterations=chosen.rounds, method=chosen.method),
            on_progress=lambda p: progress.append((p.round, p.domains_open, p.domains_visited, p.worst_bound)),
        )
    found.tensors["root"] = start.lower.cpu()
    found.numbers = {
        "closed": result.closed,
        "stopped_by": result.stopped_by,
        "visited": result.domains_visited,
        "rounds": result.rounds,
        "worst": result.worst_bound,
        "progress": progress,
    }
    return found


@contextmanager
def domain_tiles(children: int) -> Iterator[None]:
    """Within: synchronous rounds are cut into jobs of at most so many children."""
    with patch.object(searching, "SYNCHRONOUS_TILE", children):
        with patch.object(schedule_synchronous, "SYNCHRONOUS_TILE", children):
            with patch.object(nonlinear_search, "JOB_CHILDREN", children):
                yield


@contextmanager
def spied_bounds(bounded: dict[int, float]) -> Iterator[None]:
    """Notes the bound of every domain that comes into this process's store."""
    original: Callable[..., None] = DomainStore.add

    def add(self: DomainStore[Domains], domains: Domains, margin: Tensor) -> None:
        for identity, lower in zip(domains.id.tolist(), domains.lower.tolist(), strict=True):
            bounded[identity] = lower
        original(self, domains, margin)

    with patch.object(DomainStore, "add", add):
        yield

"""The memory model of branch and bound against peaks that GPUs showed, and against storages counted on the CPU."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from auto_LiRPA.bounds.domains import engine
from auto_LiRPA.bounds.dry_run import ShapeGraph
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.parallel.memory_model import CPU, H100, MIB
from auto_LiRPA.parallel.settings import ParallelSettings
from auto_LiRPA.values import Box
from benchmarks.live_bytes import LiveBytes
from complete_verifier.bab import search as searching
from complete_verifier.bab.domains import Domains
from complete_verifier.bab.exchange import first_of_all
from complete_verifier.bab.expansion import Expander
from complete_verifier.bab.relu_bounding import ReluBounder
from complete_verifier.bab.settings import BabSettings, Tiling
from complete_verifier.bab.store import DomainStore
from complete_verifier.bab.tiers.slabs import slots_held
from complete_verifier.branching.layout import make_layout
from complete_verifier.config import load_config
from complete_verifier.driver import planning
from complete_verifier.driver.planning import Place, Question, make_plan, search_facts
from complete_verifier.driver.search_memory import Growth, SearchFacts
from tests.bab.problems import clauses, incomplete, make_problem
from tests.nets import dense_layers, mlp
from tests.support import shared_dir

COLUMNS, NEURONS = 905, 1536  # splittable ones of mnist-net_256x6, prop_0_0.05
SYNCHRONOUS, FREE = True, False
# One H100 80GB, torch 2.11, 2026-11-22, kFSB, 20 iterations, rounds or 5 s, nothing closed; MiB of torch's allocator.
# Schedule, parents a round, ranks, sub-problems bounded together, open at the end of a rank (0: 10 rounds say), peak,
# and how much of it were buffers of searches before that nobody had collected.
MEASURED = [
    (SYNCHRONOUS, 4096, 1, 4096, 0, 317.1, 0.0), (SYNCHRONOUS, 16384, 1, 4096, 0, 660.6, 0.0),
    (FREE, 16384, 1, 4096, 433238, 1611.8, 65.4),
    (SYNCHRONOUS, 16384, 1, 1024, 0, 640.3, 41.4), (SYNCHRONOUS, 4096, 1, 1024, 0, 305.3, 82.8),
    (SYNCHRONOUS, 16384, 2, 1024, 0, 440.5, 41.4), (SYNCHRONOUS, 8192, 2, 1024, 0, 336.5, 82.8),
    (FREE, 16384, 1, 4096, 658049, 2280.0, 65.4), (FREE, 16384, 2, 4096, 570696, 2098.8, 65.4),
    (FREE, 8192, 2, 4096, 526418, 1948.0, 147.0),
]  # fmt: skip


@cache
def _question(**chosen: str) -> Question:
    folder = shared_dir("benchmarks", "mnist_fc")
    words = ["--onnx_path", str(folder / "onnx" / "mnist-net_256x6.onnx")]
    words += ["--vnnlib_path", str(folder / "vnnlib" / "prop_0_0.05.vnnlib")]
    for key, value in {"solver.beta-crown.iteration": "20", **chosen}.items():
        words += ["--set", f"{key}={value}"]
    return Question.of(load_config(words))


def _searching(together: bool, batch: int, rounds: int) -> dict[str, str]:
    return {
        "bab.force_synchronous": str(together).lower(),
        "bab.max_iterations": str(rounds),
        "solver.batch_size": str(batch),
    }


@pytest.mark.parametrize(("together", "batch", "ranks", "tile", "left_open", "peak", "before"), MEASURED)
def test_peaks_that_gpus_showed(
    monkeypatch: pytest.MonkeyPatch,
    together: bool,
    batch: int,
    ranks: int,
    tile: int,
    left_open: int,
    peak: float,
    before: float,
) -> None:
    monkeypatch.setattr(planning, "synchronous_tile", lambda graph, device: tile)
    monkeypatch.setattr(planning, "gpu_tile", lambda graph: tile)
    question = _question(**_searching(together, batch, 10 if together else -1))
    assert question.columns == NEURONS and question.clauses == 9
    settings = replace(question.config.parallel.settings(), mode="single", domains="shard" if ranks > 1 else "auto")
    place = Place(ranks, 80 * 2**30, H100, "H100")
    (entry,) = (
        e for e in make_plan(question, settings, place, COLUMNS / NEURONS, left_open or None).entries
        if e.name == "replicated"
    )  # fmt: skip
    assert entry.prediction.peak / MIB == pytest.approx(peak - before, rel=0.06), dict(entry.prediction.parts)


# -- counted -----------------------------------------------------------------------------------------------------
class _Kernel:
    """Launched like a kernel: fills what it would compute with zeros. Nothing is ever proved."""

    def __init__(self, run: Callable[..., None]) -> None:
        self._run = run

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return lambda *args, **names: self._run(*args)


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused engine without Triton and graphs: its buffers, its order of steps, no bounds."""
    kernels, package = ModuleType("kernels"), "auto_LiRPA.bounds.domains"
    for name, run in {
        "down": lambda coef, out, *_: out.zero_(),
        "up": lambda *_: None,
        "land": lambda *_: None,
    }.items():
        setattr(kernels, f"{name}_kernel", _Kernel(run))
    monkeypatch.setitem(sys.modules, f"{package}.triton_kernels", kernels)
    monkeypatch.setitem(sys.modules, f"{package}.fused", ModuleType("taken out afterwards"))
    monkeypatch.delitem(sys.modules, f"{package}.fused")
    monkeypatch.setattr(engine, "fusing", lambda device, dtype: engine.Fusing(True, ""))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)


@dataclass
class _Counted:
    """A search's peak, neurons that it can split, what its steps made beside all else the last time, bytes of slabs."""

    peak: int = 0
    columns: int = 0
    steps: dict[str, int] = field(default_factory=dict)
    slabs: int = 0


def _counted(
    graph: Graph, settings: BabSettings, tiling: Tiling, live: LiveBytes, monkeypatch: pytest.MonkeyPatch
) -> _Counted:
    counted = _Counted()

    def watched(owner: type, name: str) -> None:
        step = getattr(owner, name)

        def run(self: Any, *args: Any) -> Any:
            before, live.peak = live.peak, live.live
            present, found = live.live, step(self, *args)
            counted.steps[name] = live.peak - present
            live.peak = max(live.peak, before)
            if isinstance(self, DomainStore):
                counted.slabs = self.use().device_bytes
            return found

        monkeypatch.setattr(owner, name, run)

    watched(ReluBounder, "bound")
    watched(Expander, "_choose_tile")
    watched(DomainStore, "add")
    monkeypatch.setattr(searching, "make_tiling", lambda *_: tiling)
    size, outputs = graph.nodes[0].size, graph.nodes[graph.output].size
    box = Box(-torch.ones(1, size), torch.ones(1, size))
    rows = [(np.eye(outputs)[k : k + 1], np.array([1e6])) for k in range(outputs)]  # nothing is closed
    problem = make_problem(graph, box, clauses(rows, torch.float32))
    start = incomplete(problem)
    with live:
        found = searching.search(problem, start, settings)
    assert found.stopped_by == f"round limit {settings.max_iterations}" and not found.closed
    counted.peak, counted.columns = live.peak, make_layout(graph, start.intermediate).width
    return counted


CASES = [
    (SYNCHRONOUS, 256, 64, True, True), (SYNCHRONOUS, 256, 512, True, False), (FREE, 256, 64, True, True),
    (FREE, 256, 1024, True, False), (FREE, 128, 64, False, True), (SYNCHRONOUS, 128, 128, False, False),
]  # fmt: skip


@pytest.mark.parametrize(("together", "batch", "tile", "kernels", "half"), CASES)
def test_storages_of_a_search(
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    together: bool,
    batch: int,
    tile: int,
    kernels: bool,
    half: bool,
) -> None:
    """Both schedules, one tile and many, fused and not, variables that rest as halves and as they are."""
    if kernels:
        request.getfixturevalue("fused")
    graph = mlp(dense_layers([12, 160, 120, 80, 3], 0, torch.float32))
    config = load_config(["--onnx_path", "none.onnx"]).config
    settings = BabSettings(
        batch_size=batch, iterations=2, max_iterations=8, synchronous=together, half_variables=half, method="kfsb"
    )
    monkeypatch.setattr(planning, "bab_settings", lambda config: settings)
    counted = _counted(graph, settings, Tiling(tile, kernels), LiveBytes(), monkeypatch)
    question = Question(config, "", graph, torch.float32, regions=1, rows=3, clauses=3, clause_rows=1)
    shapes = ShapeGraph.of(graph, ParallelSettings())
    place = Place(1, 2**40, H100 if kernels else CPU, "")
    weights = sum(w.numel * 4 for w in graph.weights)
    facts = replace(search_facts(question, shapes, weights, place, counted.columns / question.columns), tile=tile)
    assert facts.columns == counted.columns and facts.fused == kernels
    found = max(facts.moments(1, recorded=False, workspace=0), key=sum)
    assert sum(found) == pytest.approx(counted.peak, rel=0.15)
    job = min(tile, 2 * batch)
    every = job if together else 2 * batch
    assert facts.bounding(every, job, recorded=False) == pytest.approx(counted.steps["bound"], rel=0.15)
    assert facts.choosing(every // 2, recorded=False) == pytest.approx(counted.steps["_choose_tile"], rel=0.15)
    assert counted.steps["add"] >= 2 * batch * facts.slot
    assert slots_held(facts.open) * facts.slot == pytest.approx(counted.slabs, rel=0.15)


def test_parents_that_are_gathered() -> None:
    """Of four ranks, each with a quarter of them."""

    class Four:
        size, rank = 4, 0

        def gather(self, tensor: Tensor) -> Tensor:
            return torch.stack([tensor] * 4)

    count, width = 4096, 600
    like = Domains(
        *(torch.arange(count) for _ in range(3)),
        torch.zeros(count, width, dtype=torch.int8),
        torch.zeros(count, width, dtype=torch.float16),
        torch.zeros(count),
        torch.zeros(count, 1),
        *(torch.zeros(count, 0) for _ in range(2)),
        {},
    )
    with DomainStore(like, "worst_first") as store:
        store.add(like, torch.arange(count, dtype=torch.float64))
        with LiveBytes() as live:
            first_of_all(Four(), store, like, count)  # type: ignore[arg-type]
    slot = like.bytes() // count
    assert live.peak == pytest.approx(3 * slot * (count + count // 4), rel=0.1)
    facts = replace(_facts(_question(**_searching(SYNCHRONOUS, 16384, 10))), tile=64)
    assert max(sum(one) for one in facts.moments(64, True, 0)) > 3 * facts.slot * (16384 + 256)


def test_jobs_that_are_joined() -> None:
    """The queue of a long search seldom grows: parents, a job's own, children, and all of these again."""
    facts = replace(_facts(_question(**_searching(SYNCHRONOUS, 1024, 10))), tile=64, open=60_000)
    assert facts.stored(60_000) == facts.stored(60_000 - 1024)
    assert max(sum(one) for one in facts.moments(1, True, 0)) > facts.stored(60_000) + 6 * 1024 * facts.slot
    grown = replace(facts, open=98_400)  # or it does: the new slab is there, the jobs' parts are gone
    assert max(sum(one) for one in grown.moments(1, True, 0)) > grown.stored(98_400) + 5 * 1024 * facts.slot


def _facts(question: Question) -> SearchFacts:
    shapes = ShapeGraph.of(question.graph, ParallelSettings())
    return search_facts(question, shapes, 2**21, Place(1, 2**40, H100, ""), COLUMNS / NEURONS)


def test_the_first_pass_of_a_tile_is_a_moment_of_its_own() -> None:
    """Recorded: variables are kept, and a pass runs on a stream of its own. A short search has its most there."""
    facts = replace(_facts(_question(**_searching(FREE, 16384, 7))), tile=16384)
    recorded = [sum(one) for one in facts.moments(1, True, 32 * MIB)]
    assert max(recorded) == recorded[-1]
    assert recorded[-1] > 16384 * (37 * COLUMNS + facts.walk) + 64 * MIB


def test_growth_is_what_a_search_does() -> None:
    """256x6 on one H100: 199 552 and 49 888 sub-problems in ten rounds, of which 100 352 and 25 088 stayed open."""
    for batch, visited, left in ((16384, 199_552, 100_352), (4096, 49_888, 25_088)):
        found = Growth.of(9, BabSettings(batch_size=batch), 10)
        assert found.open == left and visited - found.parents + 9 == left


def plans(question: Question, world: int, memory: float, **more: Any) -> Any:
    place = Place(world, memory, H100, "H100")
    return {entry.name: entry.prediction for entry in make_plan(question, ParallelSettings(**more), place).entries}


def test_small_networks_are_whole_while_they_are_searched() -> None:
    """Then nothing is fetched in a round; with smaller blocks they stay where they are."""
    question = _question(**_searching(SYNCHRONOUS, 4096, 10))
    whole = plans(question, 2, 80 * 2**30)
    assert whole["offload"].work["bab"].copied == 0
    assert whole["fsdp"].work["bab"].gathered == whole["replicated"].work["bab"].gathered > 0
    question = _question(**_searching(SYNCHRONOUS, 4096, 10), **{"parallel.block_mib": "0.5"})
    fetched = plans(question, 2, 80 * 2**30, block_mib=0.5)
    assert fetched["offload"].work["bab"].copied > 0
    assert fetched["fsdp"].work["bab"].gathered > whole["fsdp"].work["bab"].gathered


def test_the_store_of_a_search_without_a_limit_of_rounds() -> None:
    """It may take half of what is free; with a limit it takes what it needs, or goes to the host."""
    endless = plans(_question(**_searching(FREE, 4096, -1)), 1, 10 * 2**30)["replicated"]
    limited = plans(_question(**_searching(FREE, 4096, 50)), 1, 10 * 2**30)["replicated"]
    assert limited.growth == 0 and endless.peak < limited.peak < endless.peak + endless.growth
    assert endless.parts["domains"] + endless.growth == pytest.approx((10 * 2**30 - H100.context) / 2, rel=0.01)
    little = plans(_question(**_searching(FREE, 4096, 10_000)), 1, 10 * 2**30)["replicated"]
    assert little.parts["domains"] == endless.parts["domains"] + endless.growth


def test_ranks_of_a_free_running_search_have_rounds_of_their_own() -> None:
    free = _facts(_question(**_searching(FREE, 4096, 20)))
    assert list(free.moments(1, True, MIB)) == list(free.moments(2, True, MIB)) and free.parents(2) == 4096
    assert free.moved(2) == 0
    together = _facts(_question(**_searching(SYNCHRONOUS, 16384, 10)))
    one, two = (max(together.moments(ranks, True, MIB), key=sum) for ranks in (1, 2))
    assert two[0] < 0.6 * one[0] and two[1] < one[1] and together.parents(2) == 8192
    assert together.moved(2) > 16384 * together.slot and together.moved(1) == 0

"""The memory model against what is counted: live tensors on the CPU, collectives between ranks, known GPU figures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from auto_LiRPA.bounds import wide
from auto_LiRPA.bounds.dry_run import Asked, ShapeGraph, ShapeStore, examine
from auto_LiRPA.bounds.intermediate import crown_boxes
from auto_LiRPA.bounds.methods import Method, Query, compute
from auto_LiRPA.bounds.settings import AlphaSettings, BoundSettings
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.operators.smooth import Sigmoid
from auto_LiRPA.parallel.axes import Axes, resolve_axes
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.memory_model import CPU, H100, Facts, Machine, Prediction, predict, rows_that_hide
from auto_LiRPA.parallel.meter import Meter
from auto_LiRPA.parallel.settings import ParallelSettings
from auto_LiRPA.parallel.store import LocalStore
from auto_LiRPA.values import Box
from benchmarks.live_bytes import LiveBytes
from benchmarks.parallel.plan_check import compared, mlp_shapes
from tests.nets import Builder, dense_layers
from tests.parallel.launching import Launch, launch, once
from tests.parallel.networks import BLOCK_MIB, NETS, RELU_NETS, center
from tests.parallel.plan_workers import settings_for

ONE = Axes("single", 1, 1, 1, True)
# docs/parallel.md, section 9: H100s, one process a mode, 2026-11-22. h, d, tile, mode, ranks, MiB.
MEASURED = [
    (4096, 4, 512, "single", 1, 269.0), (4096, 4, 2048, "single", 1, 365.1), (8192, 4, 512, "single", 1, 890.0),
    (8192, 4, 2048, "single", 1, 1082.1), (4096, 8, 512, "single", 1, 525.7), (4096, 8, 2048, "single", 1, 621.7),
    (4096, 4, 512, "offload", 1, 96.6), (4096, 4, 2048, "offload", 1, 192.7), (8192, 4, 512, "offload", 1, 161.2),
    (8192, 4, 2048, "offload", 1, 353.3), (4096, 8, 512, "offload", 1, 97.3), (4096, 8, 2048, "offload", 1, 193.3),
    (4096, 4, 512, "fsdp", 2, 198.8), (4096, 4, 2048, "fsdp", 2, 294.9), (8192, 4, 512, "fsdp", 2, 557.6),
    (8192, 4, 2048, "fsdp", 2, 749.7), (4096, 8, 512, "fsdp", 2, 327.5), (4096, 8, 2048, "fsdp", 2, 423.5),
    (4096, 4, 512, "fsdp+rows", 2, 198.8), (4096, 4, 2048, "fsdp+rows", 2, 294.8),
    (8192, 4, 512, "fsdp+rows", 2, 557.6), (8192, 4, 2048, "fsdp+rows", 2, 749.6),
    (4096, 8, 512, "fsdp+rows", 2, 327.5), (4096, 8, 2048, "fsdp+rows", 2, 423.5), (4096, 4, 512, "tp", 2, 166.9),
    (4096, 4, 2048, "tp", 2, 262.9), (8192, 4, 512, "tp", 2, 493.8), (8192, 4, 2048, "tp", 2, 685.8),
    (4096, 8, 512, "tp", 2, 295.6), (4096, 8, 2048, "tp", 2, 391.6), (16384, 4, 512, "single", 1, 3285.0),
    (16384, 4, 4096, "single", 1, 4181.1), (16384, 4, 512, "offload", 1, 226.4),
    (16384, 4, 4096, "offload", 1, 1122.5), (16384, 4, 512, "fsdp", 2, 1787.2), (16384, 4, 4096, "fsdp", 2, 2683.3),
    (16384, 4, 512, "fsdp+rows", 2, 1787.2), (16384, 4, 4096, "fsdp+rows", 2, 2683.2),
    (16384, 4, 512, "tp", 2, 1723.5), (16384, 4, 4096, "tp", 2, 2619.6),
]  # fmt: skip


def _facts(hidden: int, depth: int, tile: Any, ranks: int = 1) -> Facts:
    shapes = ShapeGraph.of(mlp_shapes(hidden, depth), ParallelSettings(tile_rows=tile))
    return examine(shapes.split(ranks), torch.float32, Asked())


# -- against measurements ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("hidden", "depth", "tile", "mode", "ranks", "peak"), MEASURED)
def test_peaks_that_gpus_showed(hidden: int, depth: int, tile: int, mode: str, ranks: int, peak: float) -> None:
    figure = {"h": hidden, "d": depth, "tile": tile, "mode": mode, "world": ranks, "peak_mib": peak}
    (line,) = compared(figure)
    assert abs(line.off) < 0.02


# docs/parallel_results.md, experiment 1: 4096 - ReLU(262144) - 1, 2048 inputs, blocks of 32 MiB. Mode, ranks, boxes cut
# at 0 and 1 (then radii differ), MiB.
WIDE = [
    ("single", 1, False, 4387.0), ("single", 1, True, 4435.0), ("offload", 1, False, 354.0),
    ("fsdp+rows", 2, False, 2355.0), ("tp", 2, False, 2339.0), ("rows", 2, False, 4339.0),
]  # fmt: skip


@pytest.mark.parametrize(("mode", "ranks", "clamped", "peak"), WIDE)
def test_peaks_of_a_very_wide_layer(mode: str, ranks: int, clamped: bool, peak: float) -> None:
    figure = {"what": "wide_time", "net": "4096-262144-1", "loop": "blocks", "batch": 2048, "tile": "auto",
              "block_mib": 32.0, "mode": mode, "world": ranks, "clamped": clamped, "peak_mib": peak}  # fmt: skip
    (line,) = compared(figure)
    assert abs(line.off) < 0.002, line.told()


def test_the_comparison_tells_what_is_off() -> None:
    figure = {"hidden": 1024, "depth": 4, "tile": "512", "method": "CROWN", "peak_mib": 55.0}
    (line,) = compared(figure)
    assert abs(line.off) < 0.05 and "OFF" not in line.told()
    (line,) = compared({**figure, "peak_mib": 100.0})
    assert "OFF" in line.told()


def _mlp() -> tuple[Graph, Tensor, float]:
    build, at = Builder((64,)), 0
    layers = dense_layers([64, 96, 96, 96, 8], 5, torch.float32)
    for layer in layers[:-1]:
        at = build.relu(build.dense(layer, at))
    build.dense(layers[-1], at)
    return build.graph(), torch.zeros(1, 64), 0.3


def _small(name: str) -> tuple[Graph, Tensor, float]:
    graph = NETS[name].make(LocalStore(), torch.float32)
    return graph, center(name, graph, torch.float32), NETS[name].eps


@pytest.mark.parametrize("alpha", ["none", "fixed", "keep", "stream"])
@pytest.mark.parametrize("tile", [12, "auto"])
@pytest.mark.parametrize("name", ["wide", "cnn", "residual"])
def test_live_bytes_of_a_call(name: str, tile: Any, alpha: Any) -> None:
    """Within 15 %, and a few KiB that networks as small as these have in odds and ends."""
    graph, x, eps = _mlp() if name == "wide" else _small(name)
    context = DistributedContext.single("cpu", ParallelSettings(tile_rows=tile))
    mode: Any = "keep" if alpha == "none" else alpha
    settings = BoundSettings(compare_with_ibp=False, alpha=AlphaSettings(mode=mode, iterations=3))
    region = Box(x - eps, x + eps)
    c = torch.randn(1, 7, graph.nodes[graph.output].size)
    with torch.no_grad():
        middle = crown_boxes(graph, region, context, settings)
        known = {start.node: len(start.index) for start in middle.starts}
        unstable = {
            graph.nodes[i].inputs[0]: len(r.alpha.index) for i, r in middle.relaxations.items() if r.alpha is not None
        }
        del middle
        method = Method.CROWN if alpha == "none" else Method.ALPHA_CROWN
        with LiveBytes() as live:
            compute(graph, region, Query(c=c, upper=False), method, context, settings)
    asked = Asked(spec_rows=7, known=known, unstable=unstable, alpha=alpha)
    found = predict(examine(ShapeGraph.of(graph, context.settings), torch.float32, asked), ONE, 1, CPU)
    predicted = found.peak - found.parts["weights"] - found.parts["constants"]
    assert predicted == pytest.approx(live.peak, rel=0.15, abs=8 * 1024), dict(found.parts)


def _wide(inputs: int, outputs: int, smooth: bool) -> Graph:
    build = Builder((inputs,), block_mib=0.125)
    first, last = dense_layers([inputs, 1200, outputs], 3, torch.float32)
    at = build.dense(first, 0)
    build.dense(last, build.add(Sigmoid(), (at,), (1200,)) if smooth else build.relu(at))
    return build.graph()


@pytest.mark.parametrize(
    ("tile", "kept_mib", "outputs", "clamped", "intersected", "smooth"),
    [
        (8, 256, 1, False, False, False), (8, 256, 1, True, True, False), (8, 0.02, 1, False, True, False),
        ("auto", 256, 1, True, False, False), ("auto", 0, 1, False, True, True), (24, 256, 3, False, False, False),
        (24, 256, 3, True, True, True),
    ],
)  # fmt: skip
def test_live_bytes_of_a_very_wide_layer(
    monkeypatch: pytest.MonkeyPatch,
    tile: Any,
    kept_mib: float,
    outputs: int,
    clamped: bool,
    intersected: bool,
    smooth: bool,
) -> None:
    """The loop itself is what runs dry: several tiles a walk, several walks, one tile."""
    monkeypatch.setattr(wide, "KEPT_MIB", kept_mib)
    graph = _wide(64, outputs, smooth)
    x = torch.rand(50, 64, generator=torch.Generator().manual_seed(1))
    region = Box((x - 0.01).clamp(0, 1), (x + 0.01).clamp(0, 1)) if clamped else Box(x - 0.01, x + 0.01)
    settings = BoundSettings(compare_with_ibp=intersected, wide_mib=0)
    context = DistributedContext.single("cpu", ParallelSettings(tile_rows=tile, block_mib=0.125, threads=1))
    with torch.no_grad(), LiveBytes() as live:
        compute(graph, region, Query(boxes=False), Method.CROWN, context, settings)
    asked = Asked(batch=50, boxes=False, one_radius=not clamped, bounds=settings)
    facts = examine(ShapeGraph.of(graph, context.settings), torch.float32, asked)
    assert facts.wide is not None and facts.wide.tiles.count == len(wide.batch_tiles(50, outputs, context))
    parts = predict(facts, ONE, 1, CPU).parts
    assert parts["tile"] + parts["bounds"] - 2 * x.numel() * 4 == pytest.approx(live.peak, rel=0.005)


def test_which_layers_the_model_takes_for_very_wide() -> None:
    """Those that the engine does; a caller who wants the boxes, as the command does, has them."""
    shapes = ShapeGraph.of(mlp_shapes(4096, 1, 64, 1), ParallelSettings())
    for batch, boxes, alpha, found in [
        (8192, False, "none", False), (8193, False, "none", True), (8193, True, "none", False),
        (8193, False, "fixed", False),
    ]:  # fmt: skip
        asked = Asked(batch=batch, boxes=boxes, alpha=alpha, spec_rows=1)  # type: ignore[arg-type]
        facts = examine(shapes, torch.float32, asked)
        assert (facts.wide is not None) is found and bool(facts.passes) is not found


def test_weights_are_fetched_once_a_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    """All tiles of a rank share a walk; where they do not fit, there are several."""
    asked = Asked(batch=64, boxes=False, bounds=BoundSettings(wide_mib=0))
    for kept_mib, walks in ((256, [1, 1, 1]), (0.02, [4, 2, 2]), (0, [8, 4, 3])):
        monkeypatch.setattr(wide, "KEPT_MIB", kept_mib)
        facts = examine(ShapeGraph.of(mlp_shapes(4096, 1, 64, 1), ParallelSettings(tile_rows=8)), torch.float32, asked)
        assert facts.wide is not None and facts.wide.tiles.count == 8
        for ranks, count in zip((1, 2, 3), walks, strict=True):
            found = _by_mode(facts, ranks, mode="fsdp" if ranks > 1 else "offload", rows="shard")
            moved = found.work["crown"].gathered + found.work["crown"].copied
            results = facts.wide.results * -(-8 // ranks) * ranks * (ranks > 1)
            # and the last weight once, which makes the rows
            assert moved - results == 4 * 64 * 4096 * count + 4 * 4096


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[Any, Any, int], list[Any]]:
    """What ranks moved in one CROWN call, by mode, rows and number of ranks: all in one launch."""
    return once(tmp_path_factory, "traffic", _counted)


def _counted() -> dict[tuple[Any, Any, int], list[Any]]:
    cases: list[tuple[Any, Any, int]] = [
        (mode, rows, size)
        for size in (2, 3)
        for mode, rows in (("fsdp", "shard"), ("fsdp", "replicate"), ("tp", "replicate"), ("single", "shard"))
    ]
    launches = [
        Launch(size, "tests.parallel.plan_workers:traffic", settings_for(mode, rows, 5)) for mode, rows, size in cases
    ]
    return {case: found.checked() for case, found in zip(cases, launch(launches), strict=True)}


@pytest.mark.parametrize("name", RELU_NETS)
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(
    ("mode", "rows"), [("fsdp", "shard"), ("fsdp", "replicate"), ("tp", "replicate"), ("single", "shard")]
)
def test_traffic_of_a_crown_pass(counted: Any, mode: Any, rows: Any, size: int, name: str) -> None:
    """Calls to the number (but for how tp's broadcasts meet slices), bytes but for the padding of parts."""
    settings = settings_for(mode, rows, 5)
    shapes = ShapeGraph.of(NETS[name].make(ShapeStore(BLOCK_MIB), torch.float32), settings)
    facts = examine(shapes.split(size if mode == "tp" else 1), torch.float32, Asked())
    found = predict(facts, resolve_axes(settings, size), size, CPU)
    work, ranks = found.work["crown"], counted[mode, rows, size]
    for rank in ranks:
        moved = {kind: one for kind, one in rank[name]["moved"].items() if kind not in ("agree", "objects")}
        calls = sum(calls for _, calls in moved.values())
        assert work.calls == pytest.approx(calls, rel=0.25 if mode == "tp" else 0)
        assert work.gathered + work.exchanged == pytest.approx(
            sum(size for size, _ in moved.values()), rel=0.15 if mode == "tp" else 0.04
        )
    most = max(rank[name]["weights"] for rank in ranks)
    assert found.parts["weights"] == pytest.approx(most, rel=0.04)


# -- the parts ------------------------------------------------------------------------------------------
def _by_mode(facts: Facts, world: int, **settings: Any) -> Prediction:
    return predict(facts, resolve_axes(ParallelSettings(**settings), world), world)


def test_where_weights_lie() -> None:
    facts = _facts(4096, 4, 512)
    whole = _by_mode(facts, 4, mode="auto")
    assert whole.parts["weights"] == facts.weight_bytes and whole.parts["blocks"] == 0
    for world in (2, 3, 8):
        sharded = _by_mode(facts, world, mode="fsdp")
        assert sharded.parts["weights"] == pytest.approx(facts.weight_bytes / world, rel=0.01)
        assert sharded.parts["blocks"] == 2 * max(w.block for w in facts.weights)
        assert sharded.peak - sharded.parts["blocks"] < whole.peak
    offloaded = _by_mode(facts, 1, mode="offload")
    assert offloaded.parts["weights"] == sum(w.size for w in facts.weights if w.small) < 0.01 * facts.weight_bytes
    assert offloaded.host + offloaded.parts["weights"] == facts.weight_bytes
    split = predict(_facts(4096, 4, 512, ranks=2), resolve_axes(ParallelSettings(mode="tp"), 2), 2)
    assert 0.5 <= split.parts["weights"] / facts.weight_bytes < 0.53
    assert split.parts["tile"] == pytest.approx(whole.parts["tile"], rel=0.01)  # whole rows meet where pairs begin


def test_sharded_rows_halve_what_rows_store_and_the_work() -> None:
    graph = mlp_shapes(512, 4)
    shapes = ShapeGraph.of(graph, ParallelSettings(tile_rows=64))
    facts = examine(shapes, torch.float32, Asked(alpha="keep", undecided=0.5))
    alone, two = _by_mode(facts, 1, mode="single"), _by_mode(facts, 2, mode="single", rows="shard")
    assert two.parts["rows"] <= 0.52 * alone.parts["rows"]
    for kind in ("crown", "alpha"):
        assert 0.49 < two.work[kind].compute_s / alone.work[kind].compute_s < 0.7
    assert alone.work["crown"].traffic_s == 0 and two.work["crown"].gathered > 0
    replicated = _by_mode(facts, 2, mode="fsdp", rows="replicate")
    assert replicated.parts["rows"] == alone.parts["rows"]


def test_operations_are_those_of_the_products() -> None:
    """A pass from layer k of an MLP multiplies 2 T rows by every weight below it."""
    facts, hidden, tile = _facts(1024, 4, 128), 1024, 128
    for position, one in enumerate(facts.passes[:-1]):
        products = 2 * (2 * tile) * (position * hidden * hidden + hidden * 784)
        assert one.bound.flops == pytest.approx(products, rel=0.02)
        below = position * hidden * hidden + hidden * 784 + hidden * hidden  # the start's own rows are read too
        assert one.bound.fetched == 4 * below


def test_rows_in_flight_that_hide_the_traffic() -> None:
    machine = Machine(flops=50e12, host=50e9, gather=500e9)
    assert rows_that_hide("offload", 4, machine) == 2000
    assert rows_that_hide("fsdp", 4, machine) == 200
    assert rows_that_hide("offload", 4, H100) == 1962


def test_blocks_that_offload_copies() -> None:
    """All weights below a start node, for each tile; of its own what holds the rows; for intervals each once."""
    first, hidden, last = 4 * 4096 * 784, 4 * 4096 * 4096, 4 * 10 * 4096
    below = [first, first + hidden, first + 2 * hidden]
    expected = 4 * sum(below) + 3 * hidden + (first + 3 * hidden) + last + (first + 3 * hidden)
    work = _by_mode(_facts(4096, 4, 1024), 1, mode="offload").work["crown"]
    assert work.copied == expected
    assert work.traffic_s == pytest.approx(expected / H100.host)


def test_fits_leaves_room_for_the_context_and_the_models_error() -> None:
    found = predict(_facts(1024, 4, 512), ONE, 1)
    need = 1.15 * found.peak + H100.context
    assert found.fits(need) and not found.fits(need - 1)


def test_no_number_of_a_weight_is_needed() -> None:
    facts = _facts(16384, 24, "auto")  # 24 GiB of weights
    assert facts.weight_bytes > 23 * 2**30


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_meter_counts_storages_once(device: str) -> None:
    with torch.no_grad(), Meter() as meter:
        a = torch.zeros(100, 10, device=device)
        view, b = a[:50], a @ a.T
        assert meter.live == 4000 + 40000 and meter.flops == 2 * 100 * 10 * 100
        del a, b
        assert meter.live == 4000 and meter.peak == 44000
        with meter.paused():
            c = torch.zeros(10, device=device)
        c = c + 1
        del view
        assert meter.live == 40

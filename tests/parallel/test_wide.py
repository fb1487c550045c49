"""A very wide layer bounded block by block: same bits in every placement, the ordinary bounds, sound, small."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm
from auto_LiRPA.bounds import wide
from auto_LiRPA.bounds.methods import Method, Query, compute
from auto_LiRPA.bounds.settings import BoundSettings
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.graph.run import evaluate
from auto_LiRPA.operators.arithmetic import Add
from auto_LiRPA.operators.exponential import Reciprocal
from auto_LiRPA.operators.smooth import Sigmoid
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.settings import ParallelSettings
from auto_LiRPA.parallel.store import LocalStore
from auto_LiRPA.values import Box, LpBall
from benchmarks.live_bytes import LiveBytes
from tests.nets import Builder, dense_layers
from tests.parallel.launching import Launch, launch
from tests.parallel.networks import Held
from tests.parallel.wide_workers import ALONE, CALLS, HIDDEN, TOGETHER, Asked, bounds, network, region, rows, settings

SIZES = (1, 2, 3)


@pytest.fixture(scope="module")
def found() -> dict[int, list[dict[Any, Any]]]:
    """What every rank of every launch has found."""
    launches = [
        Launch(size, "tests.parallel.wide_workers:bound_everywhere", ALONE if size == 1 else TOGETHER)
        for size in SIZES
    ]  # fmt: skip
    return dict(zip(SIZES, (one.checked() for one in launch(launches)), strict=True))


def _apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a - b).abs() / (1 + b.abs())).max())


def test_every_placement_has_the_same_bits(found: dict[int, list[dict[Any, Any]]]) -> None:
    alone = found[1][0]
    compared = 0
    for size, ranks in found.items():
        for report in ranks:
            for layout in ALONE if size == 1 else TOGETHER:
                for number, asked in enumerate(CALLS):
                    for mine, single in zip(report[layout, number], alone["single", number], strict=True):
                        if layout == "tp":
                            assert _apart(mine, single) <= (1e-12 if asked.dtype == torch.float64 else 1e-5)
                        else:
                            assert torch.equal(mine, single), f"{layout}, P={size}: {asked}"
                        compared += 1
                assert report[layout, "alive"] <= 2
                assert report[layout, "late"], f"{layout}, P={size}: a rank did not stop at another one's deadline"
    assert compared == 2 * len(CALLS) * (len(ALONE) + 5 * len(TOGETHER))


def test_tiles_are_shared_out(found: dict[int, list[dict[Any, Any]]]) -> None:
    whole = found[1][0]["single", "tiles"]
    assert whole == 12 + 12 + 8 + 8 + 8
    for size in (2, 3):
        assert sum(report["fsdp+rows", "tiles"] for report in found[size]) == whole
        assert all(report["fsdp", "tiles"] == report["tp", "tiles"] == whole for report in found[size])
        assert all(report["fsdp", "alive"] == 2 for report in found[size])


def test_weights_are_fetched_once_a_walk(found: dict[int, list[dict[Any, Any]]]) -> None:
    blocks = -(-HIDDEN // 8)
    for size in (2, 3):
        for report in found[size]:
            # all tiles of a rank share a walk, or each has its own; and the last weight, once
            assert [report["fsdp fetches", n] - 1 for n in range(5)] == [blocks * n for n in (1, 12, 1, 1, 8)]
            turns = [1, -(-12 // size), 1, 1, -(-8 // size)]
            assert [report["fsdp+rows fetches", n] - 1 for n in range(5)] == [blocks * n for n in turns]


@pytest.mark.parametrize("asked", [replace(asked, dtype=dtype) for asked in CALLS
                                   for dtype in (torch.float32, torch.float64)])  # fmt: skip
def test_the_ordinary_bounds(asked: Asked) -> None:
    context = DistributedContext.single("cpu", settings("single"))
    graph = network(context.make_store(), asked)
    limit = 1e-6 if asked.dtype == torch.float32 else 1e-14
    for mine, plain in zip(bounds(graph, asked, context), bounds(graph, asked, context, streamed=False), strict=True):
        assert _apart(mine, plain) <= limit


@pytest.mark.parametrize("method", [Method.CROWN, Method.CROWN_IBP])
def test_one_side_alone(method: Method) -> None:
    context = DistributedContext.single("cpu", settings("single"))
    graph, asked = network(context.make_store(), CALLS[0]), CALLS[0]
    lower, upper = bounds(graph, asked, context)
    for side in ("lower", "upper"):
        query = Query(lower=side == "lower", upper=side == "upper", boxes=False)
        with torch.no_grad():
            found = compute(graph, region(asked), query, method, context, BoundSettings(wide_mib=0))
        assert (
            not found.boxes
            and (found.lower is None) is (side == "upper")
            and (found.upper is None) is (side == "lower")
        )
        mine = found.lower or found.upper
        assert mine is not None and _apart(mine.bound, lower if side == "lower" else upper) < 1e-6


@pytest.mark.parametrize("asked", CALLS)
def test_sampled_outputs_lie_between(asked: Asked) -> None:
    context = DistributedContext.single("cpu", settings("single"))
    graph = network(context.make_store(), asked)
    lower, upper = bounds(graph, asked, context)
    box, c = region(asked), rows(asked)
    gen = torch.Generator().manual_seed(11)
    for _ in range(400):
        share = torch.rand(box.lower.shape, generator=gen, dtype=torch.float64).to(asked.dtype)
        share = share.round() if _ % 2 else share  # corners, too
        y = evaluate(graph, box.lower + share * (box.upper - box.lower))
        y = y if c is None else (c @ y.unsqueeze(-1)).squeeze(-1)
        assert ((y >= lower - 1e-5) & (y <= upper + 1e-5)).all()


def test_interval_bounds_win_where_they_are_better() -> None:
    """A neuron for each input, on more often than off: its lower line ends below 0, its interval at 0."""
    context = DistributedContext.single("cpu", settings("single"))
    first, last = dense_layers([12, 12, 3], 1)
    build = Builder((12,))
    on = build.relu(build.dense(replace(first, weight=torch.eye(12, dtype=torch.float64)), 0))
    build.dense(replace(last, weight=last.weight.abs()), on)
    graph = build.graph()
    x = torch.rand(5, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    box = Box(x - 1, x + 1)
    found = {}
    for streamed in (0.0, 1e9):
        for intersected in (True, False):
            chosen = BoundSettings(compare_with_ibp=intersected, wide_mib=streamed)
            with torch.no_grad():
                one = compute(graph, box, Query(boxes=False), Method.CROWN, context, chosen)
            assert one.lower is not None and one.upper is not None
            found[streamed, intersected] = torch.stack([one.lower.bound, -one.upper.bound])
    assert (found[0.0, True] > found[0.0, False]).any()
    assert _apart(found[0.0, True], found[1e9, True]) < 1e-12
    assert _apart(found[0.0, False], found[1e9, False]) < 1e-12


def test_a_common_radius_is_never_smaller_than_a_real_one() -> None:
    x = 3 * torch.rand(64, 9, generator=torch.Generator().manual_seed(2))
    box = Box(x - 0.01, x + 0.01).interval()
    radius = wide.common_radius(box)
    assert radius is not None
    assert ((box.upper - box.lower) / 2 <= radius).all()
    assert (radius - 0.01).abs().max() < 1e-6
    clamped = Box((x - 0.01).clamp_min(0.5), x.clamp_min(0.5) + 0.01).interval()
    assert wide.common_radius(clamped) is None
    x[3, 4] = torch.nan
    assert wide.common_radius(Box(x - 0.01, x + 0.01).interval()) is None


def test_nothing_of_the_size_of_batch_times_layer_is_made() -> None:
    batch, inputs = 64, 256
    context = DistributedContext.single("cpu", ParallelSettings(threads=1))
    x = torch.rand(batch, inputs, generator=torch.Generator().manual_seed(1))
    peaks = {}
    for hidden in (8192, 16384):
        build = Builder((inputs,), block_mib=0.25)  # 512 neurons a block
        first, last = dense_layers([inputs, hidden, 1], 3, torch.float32)
        build.dense(last, build.relu(build.dense(first, 0)))
        graph = build.graph()
        for kept in (False, True):
            with torch.no_grad(), LiveBytes() as meter:
                query, chosen = Query(boxes=kept), BoundSettings(wide_mib=1)
                compute(graph, Box(x - 0.01, x + 0.01), query, Method.CROWN, context, chosen)
            peaks[hidden, kept] = meter.peak
    box = batch * 8192 * 4  # one side of the smaller layer's boxes: 2 MiB
    assert peaks[8192, False] < box
    assert peaks[16384, False] - peaks[8192, False] < 0.1 * box  # the output's row on the layer, a few times
    assert peaks[8192, True] > 6 * box


def test_which_networks_have_such_a_layer() -> None:
    x = torch.rand(4, 6)
    box = Box(x, x + 1)
    first, second, last = dense_layers([6, 30, 30, 2], 1, torch.float32)

    def made(kind: str) -> Graph:
        build = Builder((6,))
        at = build.dense(first, 0)
        if kind in ("sigmoid", "reciprocal"):
            return _ended(build, build.add(Sigmoid() if kind == "sigmoid" else Reciprocal(), (at,), (30,)), last)
        on = build.relu(at)
        if kind == "deep":
            on = build.relu(build.dense(second, on))
        if kind == "around":
            on = build.add(Add(), (on, at), (30,))
        if kind == "linear tail":
            on = build.dense(second, on)
        return _ended(build, on, last)

    with torch.no_grad():
        expected = {"plain": True, "linear tail": True, "sigmoid": True, "deep": False, "around": False}
        expected["reciprocal"] = False  # an error in some rank's tile would leave the others waiting
        for kind, found in expected.items():
            assert (wide.wide_layer(made(kind), box, 0.0) is not None) is found, kind
        assert wide.wide_layer(made("plain"), box, 1.0) is None  # its boxes are small
        assert wide.wide_layer(made("plain"), LpBall(x, torch.tensor(1.0), 2.0), 0.0) is None
    assert wide.wide_layer(made("plain"), box, 0.0) is None  # gradients may be asked for


def _ended(build: Builder, at: int, last: Any) -> Graph:
    build.dense(last, at)
    return build.graph()


def test_bounds_that_were_dropped_are_missed_by_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    x = torch.rand(4, 12)
    bounded = BoundedModule(Held(network(LocalStore(), Asked())), x)
    options = replace(bounded._options, bounds=replace(bounded._options.bounds, wide_mib=0.0))
    monkeypatch.setattr(bounded, "_options", options)
    point = BoundedTensor(x, PerturbationLpNorm(eps=0.1))
    with torch.no_grad():
        lower, upper = bounded.compute_bounds((point,), method="CROWN")
        assert len(bounded.save_intermediate()) == 1  # the output's
        assert "cache_bounds=True" in caplog.text
        caplog.clear()
        kept = bounded.compute_bounds((point,), method="CROWN", cache_bounds=True)
        assert len(bounded.save_intermediate()) == 2
        assert not caplog.text
    torch.testing.assert_close((lower, upper), kept)

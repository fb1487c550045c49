"""On a GPU: passes that are replayed have the bits of passes that are launched anew, wherever the weights live."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from auto_LiRPA.bounds.methods import Method, Query, compute
from auto_LiRPA.bounds.settings import BoundSettings
from auto_LiRPA.graph.ir import Graph
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.numerics import full_precision
from auto_LiRPA.parallel.settings import ParallelSettings
from auto_LiRPA.parallel.store import LocalStore, LocalWeight, Weight, accepted
from auto_LiRPA.values import Box
from tests.parallel.networks import BLOCK_MIB, NETS, center

if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)

CALLS = 3  # the first one of a height is launched, the second recorded, the third replayed


def on_gpu(name: str, context: DistributedContext, dtype: torch.dtype) -> Graph:
    """The network with its weights in the context's store."""
    graph, store = NETS[name].make(LocalStore(BLOCK_MIB), dtype), context.make_store()

    def placed(weight: Weight) -> Weight:
        assert isinstance(weight, LocalWeight)
        return store.load(weight.tensor, dtype, context.device, accepted)

    return graph.mapped(lambda tensor: tensor.to(context.device), placed)


def bounds(graph: Graph, context: DistributedContext, x: Tensor) -> Tensor:
    region = Box((x - 0.2).to(context.device), (x + 0.2).to(context.device))
    with torch.no_grad(), full_precision():
        found = compute(graph, region, Query(), Method.CROWN, context, BoundSettings(sparse_intermediate=False))
    assert found.lower is not None and found.upper is not None
    return torch.stack([found.lower.bound, found.upper.bound]).cpu()


@pytest.mark.parametrize("name", ["mlp", "cnn", "residual"])
@pytest.mark.parametrize("mode", ["single", "offload"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 3])
def test_replays_have_the_same_bits(name: str, mode: Any, dtype: torch.dtype, batch: int) -> None:
    settings = ParallelSettings(mode=mode, tile_rows=4, block_mib=BLOCK_MIB)
    context = DistributedContext.single("cuda", settings)
    graph = on_gpu(name, context, dtype)
    points = [center(name, graph, dtype, batch) + shift for shift in (0, 0, 0.1, 0.3)]
    replayed = [bounds(graph, context, x) for x in points]
    with context.recorder.paused():
        launched = [bounds(graph, context, x) for x in points]
    assert all(torch.equal(a, b) for a, b in zip(replayed, launched, strict=True))
    assert not torch.equal(launched[0], launched[-1])
    # residual has no vector where a pass could start but its output
    assert name == "residual" or context.counters.replays > 0
    assert context.counters.live_blocks_max <= 2


def test_traffic_of_replays_counts() -> None:
    """A call that only replays reads as much as one that launches; the calls before it also check first replays."""
    counts = []
    for paused in (True, False):
        settings = ParallelSettings(mode="offload", tile_rows=4, block_mib=BLOCK_MIB, prefetch=False)
        context = DistributedContext.single("cuda", settings)
        graph = on_gpu("mlp", context, torch.float32)
        x = center("mlp", graph, torch.float32)
        with context.recorder.paused() if paused else nullcontext():
            for _ in range(CALLS):
                bounds(graph, context, x)
            before = {kind: (one.calls, one.bytes) for kind, one in context.counters.collectives.items()}
            bounds(graph, context, x)
        assert paused == (context.counters.replays == 0)
        counts.append(
            {
                kind: (one.calls - before[kind][0], one.bytes - before[kind][1])
                for kind, one in context.counters.collectives.items()
            }
        )
    assert counts[0] == counts[1]
    assert any(calls for calls, _ in counts[0].values())


def test_a_weight_that_moved_is_read_where_it_is_now() -> None:
    context = DistributedContext.single("cuda", ParallelSettings(tile_rows=4, block_mib=BLOCK_MIB))
    graph = on_gpu("mlp", context, torch.float64)
    x = center("mlp", graph, torch.float64)
    before = [bounds(graph, context, x) for _ in range(CALLS)][-1]
    for weight in graph.weights:
        assert isinstance(weight, LocalWeight)
        weight.tensor.data = 0.5 * weight.tensor
    after = bounds(graph, context, x)
    with context.recorder.paused():
        assert torch.equal(after, bounds(graph, context, x))
    assert not torch.equal(before, after)

"""What a rank moves in one CROWN call, counted, for comparison with the memory model; and aliases and choices there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from auto_LiRPA.bounds.methods import Method, Query, compute
from auto_LiRPA.bounds.settings import BoundSettings
from auto_LiRPA.graph.tensor_parallel import tensor_parallel
from auto_LiRPA.parallel.context import DistributedContext
from auto_LiRPA.parallel.counters import Counters
from auto_LiRPA.parallel.settings import ParallelSettings
from auto_LiRPA.parallel.store import LocalStore
from auto_LiRPA.values import Box
from tests.parallel.networks import BLOCK_MIB, NETS, center


def traffic(settings: ParallelSettings) -> dict[str, dict[str, Any]]:
    """By network: bytes and calls by kind, and bytes of this rank's weights."""
    context = DistributedContext.from_env(settings)
    found = {name: _one(context, name) for name in NETS}
    context.close()
    return found


def _one(context: DistributedContext, name: str) -> dict[str, Any]:
    net = NETS[name]
    store = context.make_store()
    graph = net.make(store, torch.float32)
    if context.mode == "tp":
        store = LocalStore(BLOCK_MIB)
        graph = tensor_parallel(graph, context, store)
    context.world.barrier()
    x = center(name, graph, torch.float32)
    before = _read(context.counters)
    with torch.no_grad():
        query, every = Query(), BoundSettings(compare_with_ibp=False, sparse_intermediate=False)
        compute(graph, Box(x - net.eps, x + net.eps), query, Method.CROWN, context, every)
    after = _read(context.counters)
    moved = {kind: (size - before.get(kind, (0, 0))[0], calls - before.get(kind, (0, 0))[1])
             for kind, (size, calls) in after.items()}  # fmt: skip
    return {"moved": moved, "weights": store.weight_bytes()}


def _read(counters: Counters) -> dict[str, tuple[int, int]]:
    return {kind: (one.bytes, one.calls) for kind, one in counters.collectives.items()}


def settings_for(mode: Any, rows: Any, tile_rows: int) -> ParallelSettings:
    """With blocks so small that every layer has several."""
    base = ParallelSettings(mode=mode, rows=rows, domains="replicate", threads=1, timeout_s=30)
    return replace(base, tile_rows=tile_rows, block_mib=BLOCK_MIB)
